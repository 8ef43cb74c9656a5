// rms_norm / rows:   out[i,j] = z[i,j] * inverse_rms(z[i,:]) * weight[j], or its int8 form; z = x (+ residual): rms_norm.h
//
// Algorithm  a block owns a row at a time: it adds the residual and the squares, then normalises; for int8 it then finds
//            the extremes (integers, shuffles, shared memory) and quantises
// Data path  gmem -> regs (16 bytes a lane where rows are aligned); the second and the third reading come from cache
// Budget     <= 64 regs; 0 spills; 0 bank conflicts; requires SASS: LDG, STG, SHFL
// Reference  tests/reference/rms_norm.py
#include <algorithm>

#include "block/runs.cuh"
#include "block/sum.cuh"
#include "device/device.h"
#include "ops/rms_norm/rms_norm.h"
#include "quant/int8_row.cuh"

namespace lamina::rms_norm {
namespace {

template <class T>
struct Rows {
  struct Args {
    Params p;
  };
  static constexpr const char* kName = "rms_norm_rows";
  static constexpr int kThreads = kLanes, kMinBlocks = 4;
  using Row = Int8Row<T, kThreads>;
  using Chunk = typename Row::Chunk;
  static constexpr int kChunk = Row::kChunk;
  static_assert(sizeof(Chunk) == kLaneBytes);
  // The sums of the squares, then what Row needs.
  static constexpr int kSumBytes = Row::kWarps * kChunk * static_cast<int>(sizeof(float));
  static constexpr int kSmemBytes = kSumBytes + Row::kSmemBytes;

  LAMINA_DEVICE static void run(const Args& args) {
    const int64_t stride = dev::grid_size().x;
    for (int64_t i = dev::block_index().x; i < args.p.m; i += stride) {
      run_row(args.p, i);
      if (i + stride < args.p.m) dev::block_sync();  // all threads have read the shared memory
    }
  }

  // Loads the chunks of two rows; their loads are in flight together.
  template <class Combine>
  LAMINA_DEVICE static Chunk combine(const T* a, const T* b, int count, const Combine& with) {
    const T* const from[] = {a, b};
    Chunk chunks[2];
    load_runs(from, count, chunks);
#pragma unroll
    for (int e = 0; e < kChunk; ++e)
      chunks[0].value[e] = with(chunks[0].value[e], chunks[1].value[e]);
    return chunks[0];
  }

  LAMINA_DEVICE static void run_row(const Params& p, int64_t i) {
    const T* z = static_cast<const T*>(p.x) + i * p.x_stride;
    const auto sum_squares = [&](const auto& values) {
      float squares[kChunk] = {};
      Row::for_chunks(p.n, [&](int64_t j, int count) {
        const Chunk chunk = values(j, count);
#pragma unroll
        for (int e = 0; e < kChunk; ++e)
          if (e < count) squares[e] += square(chunk.value[e]);
      });
      return sum_of_block<Row::kWarps>(squares, reinterpret_cast<float*>(dev::dynamic_smem()));
    };
    float sum;
    if (p.residual == nullptr) {
      sum = sum_squares([&](int64_t j, int count) { return Row::load(z + j, count); });
    } else {
      const T* const residual = static_cast<const T*>(p.residual) + i * p.residual_stride;
      T* const added = static_cast<T*>(p.new_residual) + i * p.n;
      sum = sum_squares([&](int64_t j, int count) {
        const Chunk chunk =
            combine(z + j, residual + j, count, [](T x, T other) { return add(x, other); });
        store_run(added + j, chunk, count);
        return chunk;
      });
      z = added;  // each thread reads back what it stored itself
    }
    const float inverse = inverse_rms(sum, p.n, p.eps);
    const T* const weight = static_cast<const T*>(p.weight);
    const auto values = [&](int64_t j, int count) {
      return combine(z + j, weight + j, count,
                     [&](T x, T scale) { return normalize(x, inverse, scale); });
    };
    if (p.quantized.is_given()) {
      Row::quantize(p.n, values, p.quantized, i, dev::dynamic_smem() + kSumBytes);
    } else {
      T* const out = static_cast<T*>(p.out) + i * p.n;
      Row::for_chunks(p.n,
                      [&](int64_t j, int count) { store_run(out + j, values(j, count), count); });
    }
  }
};

template <class T>
Status launch_as(const Params& params, int max_blocks, void* stream) {
  const int64_t blocks = std::min<int64_t>(params.m, max_blocks);
  return dev::launch<Rows<T>>({{static_cast<int>(blocks), 1, 1}, Rows<T>::kSmemBytes}, stream,
                              {params});
}

}  // namespace

Status run_cuda(const Params& checked, int max_blocks, void* stream) {
  if (checked.m == 0) return Status::ok();
  if (checked.dtype == DType::kF32) return launch_as<float>(checked, max_blocks, stream);
  if (checked.dtype == DType::kF16) return launch_as<F16>(checked, max_blocks, stream);
  return launch_as<BF16>(checked, max_blocks, stream);
}

}  // namespace lamina::rms_norm
