// sample_tokens and verify_draft on a CPU: a row, or a request, at a time.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/int_math.h"
#include "base/scratch.h"
#include "base/with_type.h"
#include "ops/sample/cpu/kernel.h"
#include "ops/sample/cpu/row.h"
#include "ops/sample/walk.h"

namespace lamina::sample {
namespace {

template <class T>
const T* logits_of(const Target& target, int64_t row) {
  return static_cast<const T*>(target.logits) + row * target.stride;
}

template <class T>
void sample_rows(const Sample& p, int64_t begin, int64_t end) {
  const int64_t vocab = p.target.vocab;
  LogitRow<T> row(vocab, thread_scratch(LogitRow<T>::scratch_bytes(vocab)));
  for (int64_t i = begin; i < end; ++i) {
    const Settings s = settings_of(p.target, i, [](const auto* at) { return *at; });
    const Flag flag = row.set(logits_of<T>(p.target, i), s);
    p.tokens[i] = flag == Flag::kNone ? row.draw(uniform(s.seed, s.offset, kToken)) : 0;
    p.flags[i] = static_cast<int32_t>(flag);
  }
}

// A Row of walk.h. Until the first rejection, p is computed from the logits; after it, p is stored. q is always stored.
template <class T>
class VerifyRow {
 public:
  static constexpr int64_t scratch_bytes(const Verify& v) {
    const int64_t weights = v.draft_probs == nullptr ? 0 : 3 * v.target.vocab * 8;
    return round_up(LogitRow<T>::scratch_bytes(v.target.vocab), 8) + weights;
  }

  VerifyRow(const Verify& v, char* scratch) : v_(v), row_(v.target.vocab, scratch) {
    p_ = reinterpret_cast<uint64_t*>(
        scratch + round_up(LogitRow<T>::scratch_bytes(v.target.vocab), int64_t{8}));
    left_ = p_ + v.target.vocab;
    q_ = left_ + v.target.vocab;
  }

  template <class Value>
  Value load(const Value* at) const {
    return *at;
  }
  void store(int32_t* at, int32_t value) const { *at = value; }

  Flag set(int64_t row, const Settings& settings) {
    is_stored_ = false;
    const Flag flag = row_.set(logits_of<T>(v_.target, row), settings);
    total_ = row_.distribution().total;
    return flag;
  }
  bool is_greedy() const { return row_.distribution().greedy >= 0; }

  int32_t draw(uint64_t u) const {
    if (!is_stored_) return row_.draw(u);
    uint64_t left = below(total_, u);
    int64_t j = 0;
    for (; left >= p_[j]; ++j) left -= p_[j];
    return static_cast<int32_t>(j);
  }

  Flag set_draft(int64_t row) {
    const float* const q = v_.draft_probs + row * v_.draft_stride;
    bool is_valid = true;
    q_total_ = 0;
    for (int64_t j = 0; j < v_.target.vocab; ++j) {
      is_valid &= is_draft_prob(q[j]);
      q_[j] = draft_weight(is_draft_prob(q[j]) ? q[j] : 0.0f);
      q_total_ += q_[j];
    }
    return is_valid ? Flag::kNone : Flag::kDraftProbs;
  }

  bool accepts(int32_t token, uint64_t u) const {
    const uint64_t p = is_stored_ ? p_[token] : row_.weight(token);
    return q_total_ == 0 ? sample::accepts(p, total_, 1, 1, u)
                         : sample::accepts(p, total_, q_[token], q_total_, u);
  }

  void reject(int32_t token) {
    const bool is_drawn = q_total_ > 0;
    const uint64_t q_total = is_drawn ? q_total_ : 1;
    uint64_t sum = 0;
    for (int64_t j = 0; j < v_.target.vocab; ++j) {
      const uint64_t p = is_stored_ ? p_[j] : row_.weight(j), q = is_drawn ? q_[j] : j == token;
      left_[j] = p == 0 ? 0 : residual(p, total_, q, q_total);
      sum += left_[j];
    }
    q_total_ -= q_[token];
    q_[token] = 0;
    if (sum == 0) return;  // p and q are equal but for their rounding
    std::swap(p_, left_);
    total_ = sum;
    is_stored_ = true;
  }

 private:
  const Verify& v_;
  LogitRow<T> row_;
  uint64_t *p_, *left_, *q_;
  uint64_t total_ = 0, q_total_ = 0;
  bool is_stored_ = false;
};

template <class T>
void verify_requests(const Verify& v, int64_t begin, int64_t end) {
  VerifyRow<T> row(v, static_cast<char*>(thread_scratch(VerifyRow<T>::scratch_bytes(v))));
  for (int64_t r = begin; r < end; ++r) verify_request(v, r, row);
}

constexpr CpuKernel make_kernel(const char* name, Isa isa) {
  return {name, isa,
          [](const Sample& p, int64_t begin, int64_t end) {
            with_type(p.target.dtype,
                      [&](auto type) { sample_rows<decltype(type)>(p, begin, end); });
          },
          [](const Verify& v, int64_t begin, int64_t end) {
            with_type(v.target.dtype,
                      [&](auto type) { verify_requests<decltype(type)>(v, begin, end); });
          }};
}

}  // namespace
}  // namespace lamina::sample
