// verify_draft / requests:   the walk of walk.h, a block for each request
//
// Algorithm  all threads walk with the same scalars; at each node the block finds the distribution together. Each
//            rejection adds a level: the sums of p and q before it, in shared memory. The weight of a token after some
//            rejections is computed from its logit, its draft probability and the levels, so no row is stored
// Data path  gmem -> regs, 16 bytes a lane where rows are aligned; every pass of a node but the first reads from L2
// Budget     <= 128 regs; 0 spills; smem <= 48 KiB of levels; requires SASS: LDG, STG, SHFL
// Reference  tests/reference/sample.py
#include <algorithm>
#include <climits>

#include "ops/sample/cuda/row.cuh"
#include "ops/sample/walk.h"

namespace lamina::sample {
namespace {

// A rejected draft: its token and the sums of p and q before the rejection. p_total = 0: the rejection left p
// unchanged. q_total = 0: the draft was not drawn from q.
struct Level {
  uint64_t p_total, q_total;
  int64_t token;
};

// The children of a node that can be rejected: their levels fill 48 KiB.
constexpr int64_t kMaxLevels = 2000;

// The levels follow in shared memory.
struct VerifySmem {
  RowSmem row;
};

// A Row of walk.h.
template <class T>
class VerifyRow {
 public:
  LAMINA_DEVICE VerifyRow(const Verify& v, VerifySmem* smem)
      : v_(v), smem_(smem), row_(v.target.vocab, &smem->row) {}

  template <class Value>
  LAMINA_DEVICE Value load(const Value* at) const {
    return dev::load_global(at);
  }
  LAMINA_DEVICE void store(int32_t* at, int32_t value) const {
    if (dev::thread_index() == 0) dev::store_global(at, value);
  }

  LAMINA_DEVICE Flag set(int64_t row, const Settings& settings) {
    levels_ = 0;
    const Flag flag =
        row_.set(static_cast<const T*>(v_.target.logits) + row * v_.target.stride, settings);
    total_ = row_.distribution().total;
    return flag;
  }
  LAMINA_DEVICE bool is_greedy() const { return row_.distribution().greedy >= 0; }

  LAMINA_DEVICE int32_t draw(uint64_t u) const {
    if (levels_ == 0) return row_.draw(u);
    (void)sum_of_weights();  // leaves the sums of the warps for find()
    return row_.find(below(total_, u),
                     [&](int64_t token, float value) { return weight_of_value(token, value); });
  }

  LAMINA_DEVICE Flag set_draft(int64_t row) {
    q_ = v_.draft_probs + row * v_.draft_stride;
    bool is_bad = false;
    q_total_ = 0;
    for (int64_t j = dev::thread_index(); j < v_.target.vocab; j += kThreads) {
      const float q = dev::load_global(q_ + j);
      is_bad |= !is_draft_prob(q);
      q_total_ += draft_weight(is_draft_prob(q) ? q : 0.0f);
    }
    q_total_ = sum_of_block(q_total_, &smem_->row);
    dev::block_sync();  // all threads have read the extremes
    return any_of_block<kWarps>(is_bad, smem_->row.extreme) ? Flag::kDraftProbs : Flag::kNone;
  }

  LAMINA_DEVICE bool accepts(int32_t token, uint64_t u) const {
    const Weights w = weights(token, row_.logit(token));
    return q_total_ == 0 ? sample::accepts(w.p, total_, 1, 1, u)
                         : sample::accepts(w.p, total_, w.q, q_total_, u);
  }

  LAMINA_DEVICE void reject(int32_t token) {
    const uint64_t q = weights(token, 0.0f).q;
    dev::block_sync();  // all threads have read the levels
    Level* const level = this->level(levels_++);
    if (dev::thread_index() == 0) {
      dev::store_shared(&level->p_total, total_);
      dev::store_shared(&level->q_total, q_total_);
      dev::store_shared(&level->token, int64_t{token});
    }
    dev::block_sync();
    const uint64_t sum = sum_of_weights();
    q_total_ -= q;
    if (sum == 0) {  // p and q are equal but for their rounding
      if (dev::thread_index() == 0) dev::store_shared(&level->p_total, uint64_t{0});
      dev::block_sync();
      return;
    }
    total_ = sum;
  }

 private:
  struct Weights {
    uint64_t p, q;
  };

  LAMINA_DEVICE Level* level(int32_t l) const { return reinterpret_cast<Level*>(smem_ + 1) + l; }

  LAMINA_DEVICE Weights weights(int64_t token, float value) const {
    Weights w{row_.distribution().weight(value), draft_weight(dev::load_global(q_ + token))};
    for (int32_t l = 0; l < levels_; ++l) {
      const uint64_t p_total = dev::load_shared(&level(l)->p_total);
      const uint64_t q_total = dev::load_shared(&level(l)->q_total);
      const bool is_it = token == dev::load_shared(&level(l)->token);
      if (p_total != 0 && w.p != 0)
        w.p =
            q_total == 0 ? residual(w.p, p_total, is_it, 1) : residual(w.p, p_total, w.q, q_total);
      if (is_it) w.q = 0;
    }
    return w;
  }
  LAMINA_DEVICE uint64_t weight_of_value(int64_t token, float value) const {
    return row_.distribution().weight(value) == 0 ? 0 : weights(token, value).p;
  }
  LAMINA_DEVICE uint64_t sum_of_weights() const {
    uint64_t sum = 0;
    row_.for_keys(
        [&](int64_t token, int32_t, float value) { sum += weight_of_value(token, value); });
    return sum_of_block(sum, &smem_->row);
  }

  const Verify& v_;
  VerifySmem* const smem_;
  BlockRow<T> row_;
  const float* q_ = nullptr;
  int32_t levels_ = 0;
  uint64_t total_ = 0, q_total_ = 0;
};

template <class T>
struct VerifyRequests {
  using Args = Verify;
  static constexpr const char* kName = "sample_verify";
  static constexpr int kThreads = sample::kThreads, kMinBlocks = 2;

  LAMINA_DEVICE static void run(const Args& v) {
    VerifyRow<T> row(v, reinterpret_cast<VerifySmem*>(dev::dynamic_smem()));
    for (int64_t r = dev::block_index().x; r < v.requests; r += dev::grid_size().x)
      verify_request(v, r, row);
  }
};

template <class T>
Status launch_as(const Verify& v, void* stream) {
  const int64_t blocks = std::min<int64_t>(v.requests, INT_MAX);
  const int64_t levels = v.draft_probs == nullptr ? 0 : v.max_len;
  if (levels > kMaxLevels)
    return Status::error("verify_draft: max_seqlen_q = ", v.max_len, "; at most ", kMaxLevels,
                         " with draft_probs on CUDA");
  const auto smem = static_cast<int>(sizeof(VerifySmem) + levels * sizeof(Level));
  return dev::launch<VerifyRequests<T>>({{static_cast<int>(blocks), 1, 1}, smem}, stream, v);
}

}  // namespace

Status run_cuda(const Verify& checked, void* stream) {
  if (checked.requests == 0) return Status::ok();
  if (checked.target.dtype == DType::kF32) return launch_as<float>(checked, stream);
  if (checked.target.dtype == DType::kF16) return launch_as<F16>(checked, stream);
  return launch_as<BF16>(checked, stream);
}

}  // namespace lamina::sample
