// The walk of verify_draft from the root of a request along accepted drafts: sample.h. Each backend has a Row, which
// holds the distributions p and q of one node at a time:
//
//   load(pointer), store(pointer, value)
//   Flag set(row, settings)            p = the distribution of a row of the logits
//   bool is_greedy()                   whether the temperature is 0
//   int32_t draw(u)                    a token drawn from p
//   Flag set_draft(row)                q = a row of draft_probs
//   bool accepts(token, u)             true with probability min(1, p / q)
//   void reject(token)                 p = max(p - q, 0), and q loses the token
#pragma once

#include "ops/sample/weights.h"

namespace lamina::sample {

template <class Row>
LAMINA_INLINE constexpr int64_t load_id(const Row& row, const Ids& ids, int64_t i) {
  return ids.narrow != nullptr ? int64_t{row.load(ids.narrow + i)} : row.load(ids.wide + i);
}

// The rows of a request, counted in the whole batch. count = 0 if its offsets are bad.
struct Span {
  int64_t begin = 0;
  int32_t count = 0;
  Flag flag = Flag::kNone;
};

template <class Load>
LAMINA_INLINE constexpr Span span_of(const int32_t* cu_seqlens, int64_t request, int64_t rows,
                                     int64_t max_len, const Load& load) {
  const int64_t begin = load(cu_seqlens + request), end = load(cu_seqlens + request + 1);
  if (begin < 0 || end < begin || end > rows || end - begin > max_len)
    return {0, 0, Flag::kOffsets};
  return {begin, static_cast<int32_t>(end - begin), begin == end ? Flag::kNoRow : Flag::kNone};
}

template <class Row>
LAMINA_INLINE constexpr void verify_request(const Verify& v, int64_t request, Row& row) {
  const auto load = [&](const auto* at) { return row.load(at); };
  const Span span = span_of(v.cu_seqlens, request, v.target.rows, v.max_len, load);
  Settings settings = settings_of(v.target, request, load);
  int32_t* const tokens = v.tokens + request * v.max_len;
  int32_t* const accepted = v.accepted + request * v.max_len;
  const auto parent_of = [&](int32_t node) {
    return v.parents == nullptr ? node - 1 : row.load(v.parents + span.begin + node);
  };
  Flag flag = span.flag;
  int32_t depth = 0, bonus = 0;
  for (int32_t node = 0; flag == Flag::kNone;) {
    row.store(accepted + depth, node);
    const int64_t at = span.begin + node;
    flag = row.set(at, settings);
    const bool against_q = v.draft_probs != nullptr && flag == Flag::kNone && !row.is_greedy();
    const uint64_t u = uniform(settings.seed, settings.offset, against_q ? kAgainstDraft : kToken);
    int32_t token = 0, next = -1;
    if (flag == Flag::kNone && !against_q) token = row.draw(u);
    uint32_t children = 0;
    for (int32_t child = node + 1; child < span.count && next < 0 && flag == Flag::kNone; ++child) {
      if (parent_of(child) != node) continue;
      const int64_t draft = load_id(row, v.draft_tokens, span.begin + child);
      if (!against_q) {
        if (draft == token) next = child;
        continue;
      }
      if (draft < 0 || draft >= v.target.vocab) continue;
      const auto its = static_cast<int32_t>(draft);
      if (++children == 1) flag = row.set_draft(at);
      if (flag != Flag::kNone) break;
      if (row.accepts(its, uniform(settings.seed, settings.offset, children))) {
        token = its;
        next = child;
      } else {
        row.reject(its);
      }
    }
    if (flag == Flag::kNone && against_q && next < 0) token = row.draw(u);
    if (flag != Flag::kNone) token = 0;
    row.store(tokens + depth, token);
    if (next < 0) {
      bonus = token;
      break;
    }
    node = next;
    ++depth;
    settings.offset = static_cast<int64_t>(static_cast<uint64_t>(settings.offset) + 1);
  }
  for (int32_t i = span.count == 0 ? 0 : depth + 1; i < v.max_len; ++i) {
    row.store(tokens + i, -1);
    row.store(accepted + i, -1);
  }
  row.store(v.count + request, depth);
  row.store(v.bonus + request, bonus);
  row.store(v.flags + request, static_cast<int32_t>(flag));
}

}  // namespace lamina::sample
