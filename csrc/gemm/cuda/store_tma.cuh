// Stores 16-bit results with TMA. A warpgroup rounds its sums into a box of kRows tokens x 64 features in shared
// memory, and one of its threads issues the TMA store of the box. There are two boxes: TMA reads one while the
// warpgroup writes the other. The last store of a tile overlaps with the products of the next tile.
//
// A warp writes two swizzled chunks of 16 bytes in each of four rows, all in different banks. stmatrix would need
// eight lanes to hold eight neighbouring features of a token; here each lane holds a pair of neighbours, which is a
// whole word already.
#pragma once

#include <algorithm>
#include <bit>
#include <type_traits>

#include "block/row_alignment.h"
#include "device/device.h"
#include "gemm/cuda/epilogue.cuh"
#include "gemm/cuda/kernel.h"
#include "gemm/cuda/store_rows.cuh"
#include "layout/int8_tile.h"
#include "layout/swizzle.h"

namespace lamina::gemm {

template <int kTokens, class Scaler>
struct StoreTma {
  static constexpr int kWarps = 4, kFeatures = kWarps * int8_tile::kTileN;
  static constexpr int kRows = StoreRows<kTokens, Scaler>::kRows, kRowBytes = kFeatures * 2;
  static constexpr int kBoxBytes = kRows * kRowBytes;
  static constexpr int kBytes = 2 * kBoxBytes;  // shared memory of a warpgroup
  // A lane has the sums of two neighbouring tokens in every kTokenGroup tokens.
  static constexpr int kTokenGroup = StoreRows<kTokens, Scaler>::kTokenGroup;
  static constexpr int kLaneRows = kRows / kTokenGroup * 2;
  static_assert(kRowBytes == swizzle_bytes(Swizzle::k128));
  static_assert(kTokenGroup * kRowBytes == swizzle_alignment(Swizzle::k128));

  using Row = typename Scaler::Row;
  // A lane has two features of each of its rows.
  using Values = float[kLaneRows * 2];

  // m0, n0: the block's first output. boxes: the boxes of all warpgroups, in order. warp: this warp's index in the
  // block. pair: this lane has features 2 pair and 2 pair + 1 of the warp's 16.
  struct Place {
    int64_t m0, n0;
    std::byte* boxes;
    int warp, pair;

    LAMINA_DEVICE int warpgroup() const { return warp / kWarps; }
    LAMINA_DEVICE bool is_sender() const { return warp % kWarps == 0 && dev::lane() == 0; }
    LAMINA_DEVICE int column() const { return warp % kWarps * int8_tile::kTileN + 2 * pair; }
  };

  template <class P>
  static bool can_store(const P& p, const Split& split) {
    return split.count == 1 && !p.out_scale.is_given() && p.out_dtype != DType::kF32 &&
           row_alignment(p.out, p.problem.m, p.problem.n * 2, p.out_stride * 2) == 16;
  }

  template <class P>
  static Status make_map(const P& p, dev::TensorMap& map) {
    const int64_t m = p.problem.m, n = p.problem.n;
    // The stride of a single row is free, but TMA requires a valid one.
    const int64_t stride = m > 1 ? p.out_stride * 2 : round_up(n * 2, 16);
    const dev::TensorMapSpec spec{p.out,        2, 2, {n, m}, {0, stride}, {kFeatures, kRows},
                                  Swizzle::k128};
    return dev::make_tensor_map(spec, map);
  }

  // Stores one tile. box: the index of the box to write next; a warpgroup keeps it from tile to tile.
  template <class P, class Acc>
  LAMINA_DEVICE static void store(const P& p, const dev::TensorMap& map, const Place& at,
                                  const Acc (&sums)[kTokens / 2], int& box) {
    const int64_t n0 = at.n0 + at.warpgroup() * kFeatures, j = n0 + at.column();
    if (n0 >= p.problem.n) return;
    const Columns<Scaler, 2> columns(p, j < p.problem.n ? j : 0);
    std::byte* const boxes = at.boxes + at.warpgroup() * kBytes;
    const uint32_t first = static_cast<uint32_t>(at.m0);
    const uint32_t last = static_cast<uint32_t>(p.problem.m) - 1;
    Row ahead = load_row(p, first, last);
#pragma unroll 1
    for (uint32_t chunk = 0; chunk < kTokens; chunk += kRows) {
      const uint32_t m0 = first + chunk;
      if (m0 > last) return;
      Row scales[kLaneRows] = {};
#pragma unroll
      for (int r = 0; r < kLaneRows; ++r)
        scales[r] = Row::from_lane(ahead, p, static_cast<int>(row_of(r)));
      ahead = load_row(p, m0 + kRows, last);
      Values value;
      scale_chunk(chunk, sums, scales, columns, value);
      if (!p.is_plain()) {
        int64_t rows[kLaneRows];
#pragma unroll
        for (int r = 0; r < kLaneRows; ++r) rows[r] = std::min(m0 + row_of(r), last);
        apply_steps(p, rows, columns, value);
      }
      std::byte* const to = boxes + box * kBoxBytes;
      if (p.out_dtype == DType::kF16) {
        put<F16>(to, at.column(), value);
      } else {
        put<BF16>(to, at.column(), value);
      }
      dev::fence_proxy_async();
      if (at.is_sender()) dev::bulk_wait_read<0>();
      // Now all warps have written this box, and TMA has read the other one.
      dev::barrier_sync(1 + at.warpgroup(), kWarps * dev::kWarpLanes);
      if (at.is_sender()) {
        dev::tma_store<2>(&map, to, {static_cast<int32_t>(n0), static_cast<int32_t>(m0)});
        dev::bulk_commit();
      }
      box ^= 1;
    }
  }

  // Waits until TMA has read the boxes, because shared memory is lost when the block ends.
  LAMINA_DEVICE static void finish() { dev::bulk_wait_read<0>(); }

 private:
  // The row of the box that is this lane's row r.
  LAMINA_DEVICE static uint32_t row_of(int r) {
    return static_cast<uint32_t>(r / 2 * kTokenGroup + dev::lane() % 4 * 2 + r % 2);
  }

  // The row operands of the box that starts at token m0, one row a lane; rows past the last token repeat the last
  // token.
  template <class P>
  LAMINA_DEVICE static Row load_row(const P& p, uint32_t m0, uint32_t last) {
    return Row::of(p, std::min(m0 + static_cast<uint32_t>(dev::lane() % kRows), last));
  }

  template <class Acc>
  LAMINA_DEVICE static void scale_chunk(uint32_t chunk, const Acc (&sums)[kTokens / 2],
                                        const Row (&scales)[kLaneRows],
                                        const Columns<Scaler, 2>& columns, Values& value) {
#pragma unroll
    for (uint32_t c = 0; c < kTokens / kRows; ++c) {
      if (c * kRows != chunk) continue;  // registers have no index
#pragma unroll
      for (int r = 0; r < kLaneRows; ++r) {
        const uint32_t i = (c * (kLaneRows / 2) + r / 2) * 4 + r % 2;
        const Acc two[] = {sums[i], sums[i + 2]};
        float scaled[2];
        scale_row(two, scales[r], columns, scaled);
        value[2 * r] = scaled[0];
        value[2 * r + 1] = scaled[1];
      }
    }
  }

  template <class Out>
  LAMINA_DEVICE static void put(std::byte* box, int column, const Values& value) {
    uint32_t
        first[2];  // of the even and the odd token; the swizzle repeats every kTokenGroup tokens
#pragma unroll
    for (int e = 0; e < 2; ++e)
      first[e] = swizzled(Swizzle::k128, row_of(e) * kRowBytes + static_cast<uint32_t>(column) * 2);
#pragma unroll
    for (int r = 0; r < kLaneRows; ++r) {
      const float two[] = {value[2 * r], value[2 * r + 1]};
      dev::store_shared(
          reinterpret_cast<uint32_t*>(box + first[r % 2] + r / 2 * kTokenGroup * kRowBytes),
          std::bit_cast<uint32_t>(round_run<Out>(two)));
    }
  }
};

}  // namespace lamina::gemm
