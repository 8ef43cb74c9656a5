// A call of paged_attention with random arguments, right and wrong, in buffers of exactly their size, and the results of a
// plain loop in double.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "base/int_math.h"
#include "check.h"
#include "memory.h"
#include "ops/paged_attention/paged_attention.h"
#include "paged_cache.h"

namespace lamina::test {

using paged_attention::Params;

// One call: the arguments, the buffers that they point to, and their meaning in plain loops.
class AttentionProblem {
 public:
  explicit AttentionProblem(uint64_t seed)
      : dice_(seed),
        requests_(dice_.between(0, 3)),
        cu_(requests_ + 1),
        seq_lens_(requests_),
        tree_len_(requests_) {
    make_lengths();
    make_tensors();
    make_table();
    make_options();
    if (dice_.one_in(3)) spoil();
  }

  Params& params() { return p_; }

  // Whether the call must succeed. A page that the length reaches but that no token sees may be refused or not.
  enum class Verdict { kRight, kWrong, kEither };
  Verdict verdict() {
    if (cu_[0] != 0) return Verdict::kWrong;
    for (int64_t b = 0; b < p_.requests; ++b)
      if (cu_[b + 1] < cu_[b]) return Verdict::kWrong;
    if (cu_[p_.requests] != p_.tokens) return Verdict::kWrong;
    Verdict verdict = Verdict::kRight;
    for (int64_t b = 0; b < p_.requests; ++b) {
      const int64_t q_len = cu_[b + 1] - cu_[b], seq_len = seq_lens_[b], nodes = nodes_of(b);
      if (q_len > p_.max_seqlen_q || seq_len < 0 || seq_len > p_.block_table.max_blocks * page_ ||
          nodes < 0 || nodes > std::min({q_len, seq_len, 32 * p_.tree_words}))
        return Verdict::kWrong;
      for (int64_t t = cu_[b + 1] - nodes; p_.tree_depth != nullptr && t < cu_[b + 1]; ++t)
        if (p_.tree_depth[t] < 0) return Verdict::kWrong;
      for (int64_t slot = 0; slot < seq_len; ++slot) {
        if (is_page(b, slot)) continue;
        verdict = Verdict::kEither;
        for (int64_t t = cu_[b]; t < cu_[b + 1]; ++t)
          if (sees(b, t, slot)) return Verdict::kWrong;
      }
    }
    return verdict;
  }

  // A kernel that rounds queries or weights may lose so much beside its sums in f32: a part of the largest value, and of lse.
  struct Rounding {
    double values = 0.0, lse = 1e-4;
  };
  void check_results(Rounding allowed) {
    for (int64_t b = 0; b < p_.requests; ++b)
      for (int64_t t = cu_[b]; t < cu_[b + 1]; ++t)
        for (int64_t h = 0; h < p_.heads; ++h) check_row(b, t, h, allowed);
    CHECK(out_->guards_are_intact() && lse_->guards_are_intact());
  }

  bool outputs_are_untouched() {
    return std::all_of(out_->data(), out_->data() + out_bytes_,
                       [](char byte) { return static_cast<uint8_t>(byte) == kPoison; });
  }

 private:
  void make_lengths() {
    p_.requests = requests_;
    const bool is_long = dice_.one_in(40);  // around the end of a chunk
    cu_[0] = 0;
    for (int64_t b = 0; b < p_.requests; ++b) {
      const int64_t q_len = dice_.between(0, dice_.one_in(4)   ? 1
                                             : dice_.one_in(8) ? kMostTokens
                                                               : 6);
      cu_[b + 1] = static_cast<int32_t>(cu_[b] + q_len);
      seq_lens_[b] = static_cast<int32_t>(
          is_long ? dice_.between(505, 520)
                  : std::max<int64_t>(0, q_len + dice_.between(-2, dice_.one_in(2) ? 1 : 40)));
    }
    page_ = is_long ? 16 : dice_.between(1, 9);
    p_.tokens = cu_[p_.requests];
  }

  void make_tensors() {
    using kv::CacheDType;
    const CacheDType dtypes[] = {CacheDType::kF32, CacheDType::kF16, CacheDType::kBF16,
                                 CacheDType::kE4M3, CacheDType::kI8};
    const int64_t dims[] = {8, 16, 24, 40};
    p_.kv_heads = dice_.between(1, 2);
    p_.heads = p_.kv_heads * dice_.between(1, 3);
    p_.head_dim = dice_.one_of(dims), p_.v_head_dim = dice_.one_of(dims);
    const CacheDType dtype = dice_.one_of(dtypes);
    int64_t pages = dice_.between(0, 1);
    for (int64_t b = 0; b < p_.requests; ++b) pages += blocks_of(b);
    k_.make(dice_, dtype, pages, page_, p_.kv_heads, p_.head_dim);
    v_.make(dice_, dtype, pages, page_, p_.kv_heads, p_.v_head_dim);
    p_.k = k_.cache, p_.v = v_.cache;
    p_.k_scale = k_.scales, p_.v_scale = v_.scales;

    const DType floats[] = {DType::kF32, DType::kF16, DType::kBF16};
    p_.q_dtype = dice_.one_of(floats), p_.out_dtype = dice_.one_of(floats);
    p_.q_head_stride = p_.head_dim + dice_.between(0, 3);
    p_.q_token_stride = p_.heads * p_.q_head_stride + dice_.between(0, 3);
    const int64_t bytes = size_bytes(p_.q_dtype);
    const int64_t count = p_.tokens == 0 ? 0
                                         : (p_.tokens - 1) * p_.q_token_stride +
                                               (p_.heads - 1) * p_.q_head_stride + p_.head_dim;
    q_ = std::make_unique<Exact<char>>(count * bytes);
    for (int64_t i = 0; i < count; ++i)
      write(as_cache(p_.q_dtype), q_->data() + i * bytes, dice_.value());
    p_.q = q_->data();
    out_bytes_ = p_.tokens * p_.heads * p_.v_head_dim * size_bytes(p_.out_dtype);
    out_ = std::make_unique<Guarded<char>>(out_bytes_);
    lse_ = std::make_unique<Guarded<float>>(p_.heads * p_.tokens);
    p_.out = out_->data();
    p_.lse = dice_.one_in(4) ? nullptr : lse_->data();
  }

  void make_table() {
    int64_t most = 0, next = 0;
    for (int64_t b = 0; b < p_.requests; ++b) most = std::max(most, blocks_of(b));
    kv::BlockTable& table = p_.block_table;
    table.requests = p_.requests;
    table.max_blocks = most + dice_.between(0, 2);
    table.stride = table.max_blocks + dice_.between(0, 2);
    table_ = std::make_unique<Exact<int32_t>>(
        p_.requests == 0 ? 0 : (p_.requests - 1) * table.stride + table.max_blocks);
    for (int64_t i = 0; i < table_->count(); ++i) (*table_)[i] = dice_.garbage();
    for (int64_t b = 0; b < p_.requests; ++b)
      for (int64_t i = 0; i < blocks_of(b); ++i)
        (*table_)[b * table.stride + i] = static_cast<int32_t>(p_.k.pages - 1 - next++);
    table.data = table_->data();
    p_.seq_lens = seq_lens_.data(), p_.cu_seqlens_q = cu_.data();
    p_.max_seqlen_q = kMostTokens + dice_.between(0, 2);
  }

  void make_options() {
    p_.scale = 0.1f;
    p_.causal = dice_.one_in(2);
    const int64_t windows[] = {-1, -1, -1, 0, 1, 5, std::numeric_limits<int64_t>::max()};
    p_.window_left = dice_.one_of(windows), p_.window_right = dice_.one_of(windows);
    if (dice_.one_in(3)) p_.softcap = 1.5f;
    if (dice_.one_in(3)) {
      p_.alibi_request_stride = dice_.one_in(2) ? 0 : p_.heads + dice_.between(0, 2);
      const int64_t last = std::max<int64_t>(0, p_.requests - 1) * p_.alibi_request_stride;
      slopes_ = std::make_unique<Exact<float>>(last + p_.heads);
      for (int64_t i = 0; i < slopes_->count(); ++i)
        (*slopes_)[i] = static_cast<float>(dice_.between(0, 8)) / 16.0f;
      p_.alibi_slopes = slopes_->data();
    }
    if (dice_.one_in(3)) {
      sinks_ = std::make_unique<Exact<float>>(p_.heads);
      for (int64_t i = 0; i < p_.heads; ++i) (*sinks_)[i] = dice_.value();
      p_.sinks = sinks_->data();
    }
    if (dice_.one_in(2)) make_tree();
  }

  void make_tree() {
    p_.tree_words = dice_.between(1, 2);
    p_.tree_mask_stride = p_.tree_words + dice_.between(0, 2);
    mask_ = std::make_unique<Exact<int32_t>>(
        p_.tokens == 0 ? 0 : (p_.tokens - 1) * p_.tree_mask_stride + p_.tree_words);
    for (int64_t i = 0; i < mask_->count(); ++i)
      (*mask_)[i] = static_cast<int32_t>(dice_.between(kSmallest, kLargest));
    for (int64_t b = 0; b < p_.requests; ++b)
      tree_len_[b] = static_cast<int32_t>(
          dice_.between(0, std::min<int64_t>(cu_[b + 1] - cu_[b], seq_lens_[b])));
    p_.tree_mask = mask_->data(), p_.tree_len = tree_len_.data();
    if (dice_.one_in(2)) return;
    depth_ = std::make_unique<Exact<int32_t>>(p_.tokens);
    for (int64_t i = 0; i < p_.tokens; ++i)
      (*depth_)[i] = static_cast<int32_t>(dice_.between(0, 4));
    for (int64_t b = 0; b < p_.requests; ++b)
      for (int64_t t = cu_[b]; t < cu_[b + 1] - nodes_of(b); ++t) (*depth_)[t] = dice_.garbage();
    p_.tree_depth = depth_->data();
  }

  // Overwrites some indices.
  void spoil() {
    for (int64_t times = dice_.between(1, 3); times > 0; --times) {
      const int64_t b = dice_.between(0, std::max<int64_t>(0, p_.requests - 1));
      const int64_t what = dice_.between(0, 6);
      if (what == 0)
        cu_[b + dice_.between(0, p_.requests > 0)] += dice_.one_in(2) ? 1 : dice_.garbage() / 2;
      if (what == 1) p_.max_seqlen_q = dice_.between(0, 3);
      if (p_.requests == 0) continue;
      if (what == 2)
        seq_lens_[b] =
            dice_.one_in(2) ? dice_.garbage() : static_cast<int32_t>(dice_.between(0, 12));
      if (what == 3 && table_->count() > 0)
        (*table_)[dice_.between(0, table_->count() - 1)] = dice_.garbage();
      if (what == 4 && p_.tree_len != nullptr) tree_len_[b] = dice_.garbage();
      if (what == 5 && depth_ != nullptr && p_.tokens > 0)
        (*depth_)[dice_.between(0, p_.tokens - 1)] = std::min(dice_.garbage(), 1000);
      if (what == 6) p_.k.pages = p_.v.pages = dice_.between(0, p_.k.pages);
    }
  }

  int64_t blocks_of(int64_t b) { return ceil_div(seq_lens_[b], page_); }
  int64_t nodes_of(int64_t b) { return p_.tree_len == nullptr ? 0 : tree_len_[b]; }
  int64_t page_of(int64_t b, int64_t slot) { return p_.block_table.row(b)[slot / page_]; }
  bool is_page(int64_t b, int64_t slot) {
    return page_of(b, slot) >= 0 && page_of(b, slot) < p_.k.pages;
  }

  bool node_sees(int64_t t, int64_t node) {
    return static_cast<uint32_t>(p_.tree_mask[t * p_.tree_mask_stride + node / 32]) >> node % 32 &
           1u;
  }
  int64_t depth_of(int64_t b, int64_t node) {
    const int64_t t = cu_[b + 1] - nodes_of(b) + node;
    if (p_.tree_depth != nullptr) return p_.tree_depth[t];
    int64_t depth = 0;
    for (int64_t other = 0; other < nodes_of(b); ++other)
      depth += other != node && node_sees(t, other);
    return depth;
  }
  int64_t prefix_of(int64_t b) { return seq_lens_[b] - nodes_of(b); }
  bool is_node(int64_t b, int64_t t) { return t >= cu_[b + 1] - nodes_of(b); }

  // The position of a key minus that of the token.
  int64_t distance(int64_t b, int64_t t, int64_t slot) {
    const int64_t prefix = prefix_of(b);
    if (!is_node(b, t)) return slot - (seq_lens_[b] - (cu_[b + 1] - t));
    const int64_t key = slot < prefix ? slot : prefix + depth_of(b, slot - prefix);
    return key - (prefix + depth_of(b, t - (cu_[b + 1] - nodes_of(b))));
  }
  bool sees(int64_t b, int64_t t, int64_t slot) {
    const int64_t away = distance(b, t, slot);
    if (p_.window_left >= 0 && away < -p_.window_left) return false;
    if (p_.window_right >= 0 && away > p_.window_right) return false;
    if (is_node(b, t)) return slot < prefix_of(b) || node_sees(t, slot - prefix_of(b));
    return !p_.causal || away <= 0;
  }

  double score(int64_t b, int64_t t, int64_t h, int64_t slot) {
    const int64_t kv_head = h / (p_.heads / p_.kv_heads);
    double sum = 0;
    for (int64_t i = 0; i < p_.head_dim; ++i)
      sum += read_q(t * p_.q_token_stride + h * p_.q_head_stride + i) *
             k_.at(page_of(b, slot), slot % page_, kv_head, i);
    sum *= p_.scale;
    if (p_.softcap > 0) sum = p_.softcap * std::tanh(sum / p_.softcap);
    if (p_.alibi_slopes == nullptr) return sum;
    return sum - p_.alibi_slopes[b * p_.alibi_request_stride + h] *
                     std::fabs(static_cast<double>(distance(b, t, slot)));
  }
  double read_q(int64_t i) {
    return read(as_cache(p_.q_dtype), q_->data() + i * size_bytes(p_.q_dtype));
  }

  void check_row(int64_t b, int64_t t, int64_t h, Rounding allowed) {
    const int64_t kv_head = h / (p_.heads / p_.kv_heads), dim = p_.v_head_dim;
    std::vector<double> sums(static_cast<size_t>(dim), 0.0);
    double total = 0, magnitude = 0;
    for (int64_t slot = 0; slot < seq_lens_[b]; ++slot) {
      if (!sees(b, t, slot)) continue;
      const double weight = std::exp(score(b, t, h, slot));
      total += weight;
      for (int64_t i = 0; i < dim; ++i) {
        const double value = v_.at(page_of(b, slot), slot % page_, kv_head, i);
        sums[static_cast<size_t>(i)] += weight * value;
        magnitude = std::max(magnitude, std::fabs(value));
      }
    }
    if (p_.lse != nullptr) {
      const double got = p_.lse[h * p_.tokens + t];
      CHECK(total == 0 ? got == -std::numeric_limits<double>::infinity()
                       : std::fabs(got - std::log(total)) < allowed.lse);
    }
    if (total > 0 && p_.sinks != nullptr) total += std::exp(double{p_.sinks[h]});
    const double rounding[] = {1e-4, 0x1p-10, 0x1p-7};
    for (int64_t i = 0; i < dim; ++i) {
      const double want = total == 0 ? 0 : sums[static_cast<size_t>(i)] / total;
      const double got =
          read(as_cache(p_.out_dtype),
               out_->data() + ((t * p_.heads + h) * dim + i) * size_bytes(p_.out_dtype));
      CHECK(std::fabs(got - want) <=
            rounding[static_cast<int>(p_.out_dtype)] * (1 + std::fabs(want)) +
                allowed.values * magnitude);
    }
  }

  static constexpr int64_t kMostTokens = 20;  // of a request: more than the rows of a tile of AMX
  Dice dice_;
  const int64_t requests_;
  Exact<int32_t> cu_, seq_lens_, tree_len_;
  Params p_;
  int64_t page_ = 1, out_bytes_ = 0;
  Room k_, v_;
  std::unique_ptr<Exact<char>> q_;
  std::unique_ptr<Exact<int32_t>> table_, mask_, depth_;
  std::unique_ptr<Exact<float>> slopes_, sinks_;
  std::unique_ptr<Guarded<char>> out_;
  std::unique_ptr<Guarded<float>> lse_;
};

}  // namespace lamina::test
