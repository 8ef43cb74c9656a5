// pack_activations:   int8 activations, or floats that it quantises -> PackedActivations
//
// Algorithm  a block owns a row at a time. It finds the extremes and the grid of a float row first. Then a team of
//            threads, a power of two, owns a group at a time: a thread stores and sums 16 input features at a time,
//            and the team adds up its sums with shuffles, and through shared memory where the team has several warps
// Layouts    a [m, any], any row stride.  PackedActivations: int4_int8.h
// Data path  gmem -> regs (whole words where rows are aligned; with a perm an element at a time) -> 16 bytes -> gmem
// Budget     regs <= 64; 0 spills; 0 bank conflicts
// Requires   no alignment
// Source     own; the quantiser is quant/int8.h. Reference: tests/reference/gemm_int4.py, quantize.py
#pragma once

#include <algorithm>
#include <bit>
#include <limits>

#include "base/int_math.h"
#include "block/reduce.cuh"
#include "block/runs.cuh"
#include "device/device.h"
#include "gemm/cuda/int4_int8.h"
#include "gemm/cuda/int4_slices.h"
#include "quant/int8_row.cuh"
#include "quant/perm.h"

namespace lamina::gemm {

// Converts an element of a row to int8.
template <class In>
struct Encoder {
  static constexpr int kThreads = 256;

  RowGrid grid;
  Quantizer quantizer;

  LAMINA_DEVICE Encoder(const In* row, int64_t features, std::byte* smem)
      : grid(row_grid(Int8Row<In, kThreads>::find_range(row, features, smem), true)),
        quantizer(grid.quantizer(true)) {}

  LAMINA_DEVICE int8_t operator()(In x) const {
    return grid.is_there ? quantizer(to_f32(x)) : int8_t{0};
  }
  LAMINA_DEVICE float scale(const Broadcast<float>&, int64_t) const { return grid.kept().scale; }
};

template <>
struct Encoder<int8_t> {
  static constexpr int kThreads = 256;

  LAMINA_DEVICE Encoder(const int8_t*, int64_t, std::byte*) {}
  LAMINA_DEVICE int8_t operator()(int8_t a) const { return a; }
  LAMINA_DEVICE float scale(const Broadcast<float>& given, int64_t i) const { return given[i]; }
};

// kIsSparse: in the order for 2:4 weights.
template <class In, bool kIsSparse>
struct PackActivations {
  static constexpr const char* kName =
      kIsSparse ? "matmul_sparse24_int4_int8_pack_activations" : "gemm_int4_int8_pack_activations";
  static constexpr int kThreads = Encoder<In>::kThreads, kMinBlocks = 4;
  static constexpr int kWarps = kThreads / dev::kWarpLanes;

  // Behind the extremes, for each warp: its part of a sum, and whether it met an index of perm that is out of range.
  static constexpr int kPartsAt = 2 * kWarps * 4, kWrongAt = kPartsAt + kWarps * 4;
  static constexpr int kSmemBytes = kWrongAt + kWarps * 4;
  static_assert(Int8Row<float, kThreads>::kSmemBytes == kPartsAt);

  struct Args {
    const In* a;
    int64_t a_stride, features;
    int64_t m, k;
    Perm perm;
    Broadcast<float> a_scale;
    Broadcast<int8_t> a_zero_point;
    PackedActivations to;
    int64_t to_stride, sums_stride;
    int groups, slices, group_slices;  // slices of kSliceK: in all tiles, in a group
    int team;                          // threads that own a group, a power of two
  };

  LAMINA_DEVICE static int32_t* shared_at(int byte) {
    return reinterpret_cast<int32_t*>(dev::dynamic_smem() + byte);
  }

  // Loads the 16 elements from p on and returns a mask of the elements that exist. Sets is_wrong if an index in perm
  // is out of range.
  LAMINA_DEVICE static uint32_t load_slice(const Args& args, const In* row, int64_t p,
                                           Run<In, kSliceK>& to, bool& is_wrong) {
    const int64_t left = args.k - p;
    const int count = left < 0 ? 0 : left > kSliceK ? kSliceK : static_cast<int>(left);
    to = {};
    if (count == 0) return 0;
    if (!args.perm.is_given()) {
      const In* const from[] = {row + p};
      Run<In, kSliceK> runs[1];
      load_runs(from, count, runs);
      to = runs[0];
      return (1u << count) - 1;
    }
    uint32_t there = 0;
#pragma unroll
    for (int e = 0; e < kSliceK; ++e) {
      if (e >= count) continue;
      const int32_t feature = dev::load_global(args.perm.data + p + e);
      if (feature < 0 || feature >= args.perm.features) {
        is_wrong |= feature != -1;
        continue;
      }
      to.value[e] = dev::load_global(row + feature);
      there |= 1u << e;
    }
    return there;
  }

  // Stores 16 input features and returns the sum of their values minus the zero point.
  LAMINA_DEVICE static int32_t store_slice(const Args& args, const In* row, int64_t i, int slice,
                                           const Encoder<In>& encoder, int32_t zero,
                                           bool& is_wrong) {
    Run<In, kSliceK> run;
    const int64_t p = static_cast<int64_t>(slice) * kSliceK;
    const uint32_t there = load_slice(args, row, p, run, is_wrong);
    int32_t sum = 0;
    dev::U32x4 words{};
#pragma unroll
    for (int at = 0; at < kSliceK; ++at) {
      const int e = kIsSparse ? at : int4::s8_k(at);
      const int32_t code = (there >> e & 1) != 0 ? encoder(run.value[e]) : zero;
      sum += code - zero;
      words.x[at / 4] |= (static_cast<uint32_t>(code) & 0xff) << (8 * (at % 4));
    }
    std::byte* const to = reinterpret_cast<std::byte*>(args.to.a) + i * args.to_stride;
    if constexpr (kIsSparse) {
      // Two slices take turns, four k at a time: sparse24_tile::s8_k.
#pragma unroll
      for (int w = 0; w < 4; ++w)
        dev::store_global(
            reinterpret_cast<uint32_t*>(to + slice / 2 * 32 + (2 * w + slice % 2) * 4), words.x[w]);
    } else {
      dev::store_global(reinterpret_cast<dev::U32x4*>(to + p), words);
    }
    return sum;
  }

  // Adds up the sums of a team; the first thread of the team gets the result.
  LAMINA_DEVICE static int32_t add_team(const Args& args, int32_t sum) {
    for (int step = (args.team < dev::kWarpLanes ? args.team : dev::kWarpLanes) / 2; step > 0;
         step /= 2)
      sum += dev::shuffle_xor(sum, step);
    if (args.team <= dev::kWarpLanes) return sum;
    if (dev::lane() == 0) dev::store_shared(shared_at(kPartsAt) + dev::warp(), sum);
    dev::block_sync();
    int32_t all = 0;
    for (int w = 0; w < args.team / dev::kWarpLanes; ++w)
      all += dev::load_shared(shared_at(kPartsAt) + (dev::warp() + w) % kWarps);
    dev::block_sync();  // all threads have read the parts
    return all;
  }

  LAMINA_DEVICE static void pack_row(const Args& args, int64_t i) {
    const In* const row = args.a + i * args.a_stride;
    const Encoder<In> encoder(row, args.features, dev::dynamic_smem());
    const int32_t zero = args.a_zero_point.is_given() ? args.a_zero_point[i] : 0;
    const int mine = dev::thread_index() / args.team, of = dev::thread_index() % args.team;
    bool is_wrong = false;
    for (int first = 0; first < args.groups; first += kThreads / args.team) {
      const int group = first + mine;
      const int begin = group * args.group_slices;
      const int end = group + 1 < args.groups    ? begin + args.group_slices
                      : group + 1 == args.groups ? args.slices
                                                 : 0;
      int32_t sum = 0;
      for (int slice = begin + of; slice < end; slice += args.team)
        sum += store_slice(args, row, i, slice, encoder, zero, is_wrong);
      sum = add_team(args, sum);
      if (of == 0 && group < args.groups)
        dev::store_global(args.to.sums + group * args.sums_stride + i, sum);
    }
    is_wrong = any_of_block<kWarps>(is_wrong, shared_at(kWrongAt));
    if (dev::thread_index() == 0)
      dev::store_global(args.to.scale + i, is_wrong ? std::numeric_limits<float>::quiet_NaN()
                                                    : encoder.scale(args.a_scale, i));
  }

  LAMINA_DEVICE static void run(const Args& args) {
    dev::launch_dependents();
    const int64_t stride = dev::grid_size().x;
    for (int64_t i = dev::block_index().x; i < args.m; i += stride) {
      pack_row(args, i);
      if (i + stride < args.m) dev::block_sync();  // all threads have read shared memory
    }
  }

  static Status launch(const auto& params, const void* a, const PackedActivations& to,
                       int max_blocks, void* stream) {
    const Problem& p = params.problem;
    const auto group_slices = static_cast<int>(ceil_div(std::min(p.group, round_up(p.k, 16)), 16));
    const auto slices = static_cast<int>(int4::tiles_k(p.k) * kSlices);
    int team = 1;
    while (team < kThreads && team < group_slices) team *= 2;
    const int64_t blocks = std::min<int64_t>(p.m, max_blocks);
    return dev::launch<PackActivations>(
        {{static_cast<int>(blocks), 1, 1}, kSmemBytes}, stream,
        {static_cast<const In*>(a), params.a_stride,
         params.perm.is_given() ? params.perm.features : p.k, p.m, p.k, params.perm, params.a_scale,
         params.a_zero_point, to, PackedActivations::a_stride(p), PackedActivations::sums_stride(p),
         static_cast<int>(p.groups()), slices, group_slices, team});
  }
};

// Packs params.a, or quantises and packs params.floats in its place. params: the Params of an op.
template <bool kIsSparse>
Status launch_pack_activations(const auto& params, const PackedActivations& to, int max_blocks,
                               void* stream) {
  if (!params.has_floats)
    return PackActivations<int8_t, kIsSparse>::launch(params, params.a, to, max_blocks, stream);
  if (params.floats_dtype == DType::kF32)
    return PackActivations<float, kIsSparse>::launch(params, params.floats, to, max_blocks, stream);
  if (params.floats_dtype == DType::kF16)
    return PackActivations<F16, kIsSparse>::launch(params, params.floats, to, max_blocks, stream);
  return PackActivations<BF16, kIsSparse>::launch(params, params.floats, to, max_blocks, stream);
}

}  // namespace lamina::gemm
