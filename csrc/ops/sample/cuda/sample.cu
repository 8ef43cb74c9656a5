// sample_tokens / rows:   tokens[i] ~ the distribution of row i: sample.h
//
// Algorithm  a block takes a row at a time: extremes, thresholds of top_k and top_p, sum of weights, draw: row.cuh
// Data path  gmem -> regs, 16 bytes a lane where rows are aligned; every pass but the first reads from L2
// Budget     <= 64 regs; 0 spills; requires SASS: LDG, STG, SHFL
// Reference  tests/reference/sample.py
#include <algorithm>
#include <climits>

#include "ops/sample/cuda/row.cuh"

namespace lamina::sample {
namespace {

template <class T>
struct SampleRows {
  using Args = Sample;
  static constexpr const char* kName = "sample_rows";
  static constexpr int kThreads = sample::kThreads, kMinBlocks = 4;

  LAMINA_DEVICE static void run(const Args& p) {
    BlockRow<T> row(p.target.vocab, reinterpret_cast<RowSmem*>(dev::dynamic_smem()));
    const int64_t stride = dev::grid_size().x;
    for (int64_t i = dev::block_index().x; i < p.target.rows; i += stride) {
      const Settings s =
          settings_of(p.target, i, [](const auto* at) { return dev::load_global(at); });
      const Flag flag = row.set(static_cast<const T*>(p.target.logits) + i * p.target.stride, s);
      const int32_t token = flag == Flag::kNone ? row.draw(uniform(s.seed, s.offset, kToken)) : 0;
      if (dev::thread_index() == 0) {
        dev::store_global(p.tokens + i, token);
        dev::store_global(p.flags + i, static_cast<int32_t>(flag));
      }
    }
  }
};

template <class T>
Status launch_as(const Sample& p, void* stream) {
  const int64_t blocks = std::min<int64_t>(p.target.rows, INT_MAX);
  return dev::launch<SampleRows<T>>({{static_cast<int>(blocks), 1, 1}, sizeof(RowSmem)}, stream, p);
}

}  // namespace

Status run_cuda(const Sample& checked, void* stream) {
  if (checked.target.rows == 0) return Status::ok();
  if (checked.target.dtype == DType::kF32) return launch_as<float>(checked, stream);
  if (checked.target.dtype == DType::kF16) return launch_as<F16>(checked, stream);
  return launch_as<BF16>(checked, stream);
}

}  // namespace lamina::sample
