// silu_mul / rows:   out[i,j] = silu(gate[i,j]) * up[i,j], or its int8 form: silu_mul.h
//
// Algorithm  floats: a thread owns every chunk of 16 bytes at its stride over the whole matrix. int8: a block owns a row
//            at a time, finds the extremes (integers, shuffles, shared memory), then computes the row again and quantises
// Data path  gmem -> regs (16 bytes a lane where rows are aligned), for int8 twice, the second time from cache -> gmem
// Budget     <= 64 regs; 0 spills; requires SASS: LDG, STG
// Reference  tests/reference/silu_mul.py
#include <algorithm>

#include "base/int_math.h"
#include "block/runs.cuh"
#include "device/device.h"
#include "ops/silu_mul/silu_mul.h"
#include "quant/int8_row.cuh"

namespace lamina::silu_mul {
namespace {

template <class T>
struct Chunks {
  struct Args {
    Params p;
  };
  static constexpr const char* kName = "silu_mul_chunks";
  static constexpr int kThreads = 256, kMinBlocks = 4;
  using Row = Int8Row<T, kThreads>;
  using Chunk = typename Row::Chunk;
  static constexpr int kChunk = Row::kChunk, kSmemBytes = 0;

  LAMINA_DEVICE static Chunk compute(const Params& p, int64_t i, int64_t j, int count) {
    const T* const from[] = {static_cast<const T*>(p.gate) + i * p.gate_stride + j,
                             static_cast<const T*>(p.up) + i * p.up_stride + j};
    Chunk chunks[2];
    load_runs(from, count, chunks);
#pragma unroll
    for (int e = 0; e < kChunk; ++e)
      chunks[0].value[e] = silu_times(chunks[0].value[e], chunks[1].value[e]);
    return chunks[0];
  }

  LAMINA_DEVICE static void run(const Args& args) {
    const Params& p = args.p;
    const int64_t of_row = ceil_div(p.n, kChunk);
    const int64_t first = int64_t{dev::block_index().x} * kThreads + dev::thread_index();
    for (int64_t c = first; c < p.m * of_row; c += int64_t{dev::grid_size().x} * kThreads) {
      const int64_t i = c / of_row, j = c % of_row * kChunk;
      const int count = p.n - j < kChunk ? static_cast<int>(p.n - j) : kChunk;
      store_run(static_cast<T*>(p.out) + i * p.n + j, compute(p, i, j, count), count);
    }
  }

  static int64_t blocks(const Params& p) { return ceil_div(p.m * ceil_div(p.n, kChunk), kThreads); }
};

template <class T>
struct Rows : Chunks<T> {
  using typename Chunks<T>::Args;
  using typename Chunks<T>::Row;
  static constexpr const char* kName = "silu_mul_rows";
  static constexpr int kSmemBytes = Row::kSmemBytes;

  LAMINA_DEVICE static void run(const Args& args) {
    const Params& p = args.p;
    const int64_t stride = dev::grid_size().x;
    for (int64_t i = dev::block_index().x; i < p.m; i += stride) {
      const auto values = [&](int64_t j, int count) { return Chunks<T>::compute(p, i, j, count); };
      Row::quantize(p.n, values, p.quantized, i, dev::dynamic_smem());
      if (i + stride < p.m) dev::block_sync();  // all threads have read the extremes
    }
  }

  static int64_t blocks(const Params& p) { return p.m; }
};

template <class Kernel>
Status launch(const Params& params, int max_blocks, void* stream) {
  const int64_t blocks = std::min<int64_t>(Kernel::blocks(params), max_blocks);
  if (blocks == 0) return Status::ok();
  return dev::launch<Kernel>({{static_cast<int>(blocks), 1, 1}, Kernel::kSmemBytes}, stream,
                             {params});
}

template <template <class> class Kernel>
Status launch_as(const Params& params, int max_blocks, void* stream) {
  if (params.dtype == DType::kF32) return launch<Kernel<float>>(params, max_blocks, stream);
  if (params.dtype == DType::kF16) return launch<Kernel<F16>>(params, max_blocks, stream);
  return launch<Kernel<BF16>>(params, max_blocks, stream);
}

}  // namespace

Status run_cuda(const Params& params, int max_blocks, void* stream) {
  return params.quantized.is_given() ? launch_as<Rows>(params, max_blocks, stream)
                                     : launch_as<Chunks>(params, max_blocks, stream);
}

}  // namespace lamina::silu_mul
