// quantize_int8 / rows:   q[i,j] = clamp(rint(x[i,j] / scale[i]) + zero_point[i]), scale: ../maths.h
//
// Algorithm  a block owns a row at a time: its extremes, as integers, by shuffles and shared memory; then its values
// Data path  gmem -> regs (16 bytes a lane where x's rows are aligned) twice, the second time from cache -> q
// Budget     <= 64 regs; 0 spills
// Reference  tests/reference/quantize.py
#include <limits>

#include "base/int_math.h"
#include "device/device.h"
#include "ops/quantize_int8/cuda/launch.h"
#include "ops/quantize_int8/maths.h"

namespace lamina::quantize_int8 {
namespace {

template <class In>
struct Rows {
  struct Args {
    Params p;
  };
  static constexpr const char* kName = "quantize_int8_rows";
  static constexpr int kThreads = 256, kMinBlocks = 4, kWarps = kThreads / dev::kWarpLanes;
  static constexpr int kChunk = 16 / static_cast<int>(sizeof(In));
  static constexpr int kSmemBytes = 2 * kWarps * static_cast<int>(sizeof(int32_t));

  struct alignas(16) Chunk {
    In value[kChunk];
  };
  struct alignas(kChunk) Quantized {
    int8_t value[kChunk];
  };

  // body(first column, count, values) for this thread's chunks of a row.
  template <class Body>
  LAMINA_DEVICE static void for_chunks(const In* x, int64_t k, const Body& body) {
    const bool is_aligned = reinterpret_cast<uintptr_t>(x) % 16 == 0;
    for (int64_t j = int64_t{dev::thread_index()} * kChunk; j < k; j += kThreads * kChunk) {
      const int count = k - j < kChunk ? static_cast<int>(k - j) : kChunk;
      Chunk chunk;
      if (is_aligned && count == kChunk) {
        chunk = dev::load_global(reinterpret_cast<const Chunk*>(x + j));
      } else {
#pragma unroll
        for (int e = 0; e < kChunk; ++e)
          chunk.value[e] = dev::load_global(x + j + (e < count ? e : 0));
      }
      body(j, count, chunk);
    }
  }

  // The block's lowest and highest key; all threads get them.
  LAMINA_DEVICE static void reduce(int32_t& low, int32_t& high) {
#pragma unroll
    for (int step = dev::kWarpLanes / 2; step > 0; step /= 2) {
      low = std::min(low, dev::shuffle_xor(low, step));
      high = std::max(high, dev::shuffle_xor(high, step));
    }
    int32_t* const lows = reinterpret_cast<int32_t*>(dev::dynamic_smem());
    int32_t* const highs = lows + kWarps;
    if (dev::lane() == 0) {
      dev::store_shared(lows + dev::warp(), low);
      dev::store_shared(highs + dev::warp(), high);
    }
    dev::block_sync();
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      low = std::min(low, dev::load_shared(lows + w));
      high = std::max(high, dev::load_shared(highs + w));
    }
  }

  LAMINA_DEVICE static Grid find_grid(const Params& p, int64_t i, Range range) {
    if (!p.static_scale.is_given()) return dynamic_grid(range, p.symmetric);
    return {p.static_scale[i], p.symmetric ? 0 : int32_t{p.static_zero_point[i]}};
  }

  LAMINA_DEVICE static void run(const Args& args) {
    const int64_t stride = dev::grid_size().x;
    for (int64_t i = dev::block_index().x; i < args.p.m; i += stride) {
      quantize_row(args.p, i);
      if (i + stride < args.p.m) dev::block_sync();  // all have read the extremes
    }
  }

  LAMINA_DEVICE static void quantize_row(const Params& p, int64_t i) {
    const In* const x = static_cast<const In*>(p.x) + i * p.x_stride;
    int8_t* const q = p.q + i * p.k;
    int32_t low = 0, high = 0;
    for_chunks(x, p.k, [&](int64_t, int count, const Chunk& chunk) {
#pragma unroll
      for (int e = 0; e < kChunk; ++e) {
        const int32_t key = e < count ? order_key(to_bits(chunk.value[e])) : 0;
        low = std::min(low, key);
        high = std::max(high, key);
      }
    });
    reduce(low, high);
    const Range range{to_f32(from_bits<In>(order_key(low))),
                      to_f32(from_bits<In>(order_key(high)))};
    const bool is_static = p.static_scale.is_given();
    Grid grid = find_grid(p, i, range);
    // Nobody can check a static scale's value before the launch.
    const bool has_grid = is_static
                              ? !range.has_nan() && grid.scale >= FLT_MIN && grid.scale <= FLT_MAX
                              : !range.has_nan_or_inf();
    const Quantizer quantizer(has_grid ? grid : Grid{1.0f, 0}, p.symmetric);
    for_chunks(x, p.k, [&](int64_t j, int count, const Chunk& chunk) {
      Quantized result;
#pragma unroll
      for (int e = 0; e < kChunk; ++e)
        result.value[e] = has_grid ? quantizer(to_f32(chunk.value[e])) : int8_t{0};
      if (count == kChunk && reinterpret_cast<uintptr_t>(q) % kChunk == 0) {
        dev::store_global(reinterpret_cast<Quantized*>(q + j), result);
      } else {
#pragma unroll
        for (int e = 0; e < kChunk; ++e)
          if (e < count) dev::store_global(q + j + e, result.value[e]);
      }
    });
    if (dev::thread_index() != 0) return;
    if (!has_grid) grid = {std::numeric_limits<float>::quiet_NaN(), 0};
    dev::store_global(p.scale + i, grid.scale);
    if (!p.symmetric) dev::store_global(p.zero_point + i, static_cast<int8_t>(grid.zero_point));
  }
};

template <class In>
Status launch_as(const Params& params, int max_blocks, void* stream) {
  const int64_t blocks = std::min<int64_t>(params.m, max_blocks);
  return dev::launch<Rows<In>>({{static_cast<int>(blocks), 1, 1}, Rows<In>::kSmemBytes}, stream,
                               {params});
}

}  // namespace

Status launch_rows(const Params& params, int max_blocks, void* stream) {
  if (params.x_dtype == DType::kF32) return launch_as<float>(params, max_blocks, stream);
  if (params.x_dtype == DType::kF16) return launch_as<F16>(params, max_blocks, stream);
  return launch_as<BF16>(params, max_blocks, stream);
}

}  // namespace lamina::quantize_int8
