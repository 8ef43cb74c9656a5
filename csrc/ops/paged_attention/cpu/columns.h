// Where the keys and values of a chunk are: pointers to the rows of each column, and what belongs to a column.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "base/int_math.h"
#include "base/prefetch_line.h"
#include "ops/paged_attention/plan.h"

namespace lamina::paged_attention {
namespace {

// A row of any cache that is all zeros.
alignas(64) inline constexpr char kZeros[kv::kMaxHeadDim * sizeof(float)] = {};

// Where the rows of a chunk's columns are, and what belongs to each column.
struct Columns {
  const char* keys[kChunk];
  const char* values[kChunk];
  alignas(64) float key_scale[kChunk];
  alignas(64) float value_scale[kChunk];
  alignas(64) float positions[kChunk];  // from the first column of the chunk
};

struct Range {
  int64_t low, high;
  int64_t count() const { return std::max<int64_t>(high - low, 0); }
  bool operator==(const Range&) const = default;
};

// Where blocks of values start, so that the keys of a dword do not depend on the range: columns before it are zeros.
inline int64_t start_values(Columns& columns, Range range) {
  const int64_t start = range.low / kAlign * kAlign;
  for (int64_t j = start; j < range.low; ++j) columns.values[j] = kZeros;
  return start;
}

// Calls body(token of the call, rows of the tile) for each token of the tile.
template <class Body>
void for_tokens(const Params& params, const Plan& plan, const Tile& tile, const Body& body) {
  const int64_t group = params.heads / params.kv_heads;
  const int64_t first = plan.requests[static_cast<size_t>(tile.request)].token;
  for (int64_t r = 0, end; r < tile.rows; r = end) {
    const int64_t token = (tile.row + r) / group;
    end = std::min(tile.rows, (token + 1) * group - tile.row);
    body(first + token, Range{r, end});
  }
}

// The columns of one chunk of a tile, for one KV head.
struct Chunk {
  const Params& params;
  const Plan& plan;
  const Tile& tile;
  int64_t head;
  int64_t origin;  // the first column

  const Request& request() const { return plan.requests[static_cast<size_t>(tile.request)]; }
  const Token& token(int64_t index) const { return plan.tokens[static_cast<size_t>(index)]; }
  int64_t block(int64_t index) const { return params.block_table.row(tile.request)[index]; }

  Range clipped(int64_t low, int64_t high) const {
    return {std::clamp<int64_t>(low - origin, 0, kChunk),
            std::clamp<int64_t>(high - origin, 0, kChunk)};
  }
  Range seen(const Token& token) const { return clipped(token.low, token.high); }
  Range seen_shared(const Token& token) const { return clipped(token.low, token.shared_end); }
  Range seen_own(const Token& token) const {
    return clipped(std::max(token.low, token.shared_end), token.high);
  }

  // The columns that some token of the tile sees and that are slots of the same number.
  Range shared() const {
    Range all{kChunk, 0};
    for_tokens(params, plan, tile, [&](int64_t index, Range) {
      const Range seen = seen_shared(token(index));
      if (seen.count() > 0) all = {std::min(all.low, seen.low), std::max(all.high, seen.high)};
    });
    return all;
  }

  // The first of these keys, in whole steps, if all tokens see them; none if a token begins later than another.
  Range common_keys(Range block) const {
    Range first{block.high, block.high}, last{block.low, block.low};
    for_tokens(params, plan, tile, [&](int64_t index, Range) {
      const Range seen = seen_shared(token(index));
      const int64_t low = std::clamp(seen.low, block.low, block.high);
      const int64_t high = std::clamp(seen.high, low, block.high);
      first = {std::min(first.low, low), std::min(first.high, high)};
      last = {std::max(last.low, low), std::max(last.high, high)};
    });
    if (first == last) return first;
    const int64_t high = first.high / kAlign * kAlign;
    if (first.low != last.low || high <= first.low) return {block.low, block.low};
    return {first.low, high};
  }

  // Sets these columns.
  void point_slots(Range range, Columns& columns) const {
    const Params& p = params;
    const int64_t key_step = p.k.slot_stride * kv::size_bytes(p.k.dtype);
    const int64_t value_step = p.v.slot_stride * kv::size_bytes(p.v.dtype);
    for_pages(range, [&](Range part, int64_t page, int64_t first) {
      const char* key = p.k.row(page, first, head);
      const char* value = p.v.row(page, first, head);
      for (int64_t j = part.low; j < part.high; ++j, key += key_step, value += value_step) {
        columns.keys[j] = key;
        columns.values[j] = value;
      }
      if (p.k_scale.is_per_token())
        for (int64_t j = part.low; j < part.high; ++j)
          columns.key_scale[j] = p.k_scale.at(page, first + j - part.low, head);
      if (p.v_scale.is_per_token())
        for (int64_t j = part.low; j < part.high; ++j)
          columns.value_scale[j] = p.v_scale.at(page, first + j - part.low, head);
    });
    if (p.alibi_slopes != nullptr)
      for (int64_t j = 0; j < kChunk; ++j) columns.positions[j] = static_cast<float>(j);
  }

  // Finds the first keys, at most `most`, and returns their number.
  int64_t point_first(int64_t most, const char** keys) const {
    const Range range = shared();
    const int64_t key_step = params.k.slot_stride * kv::size_bytes(params.k.dtype);
    const int64_t count = std::min(range.count(), most);
    for_pages({range.low, range.low + count}, [&](Range part, int64_t page, int64_t first) {
      const char* key = params.k.row(page, first, head);
      for (int64_t j = part.low; j < part.high; ++j, key += key_step) keys[j - range.low] = key;
    });
    return count;
  }

  // Prefetches the scales of those columns that some token sees.
  void prefetch_scales(Range columns) const {
    if (!params.k_scale.is_per_token() && !params.v_scale.is_per_token()) return;
    const Range all = shared();
    const Range range{std::max(columns.low, all.low), std::min(columns.high, all.high)};
    for_pages(range, [&](Range part, int64_t page, int64_t first) {
      prefetch(params.k_scale, page, first, part.count());
      prefetch(params.v_scale, page, first, part.count());
    });
  }

  // Sets the columns in `own`, which the token does not share, and copies what belongs to the columns before them.
  void point_own(int64_t token_index, Range own, const Columns& shared, Columns& columns) const {
    const Params& p = params;
    const int64_t prefix = request().prefix;
    const size_t before = static_cast<size_t>(own.low) * sizeof(float);
    if (p.k_scale.is_per_token()) std::memcpy(columns.key_scale, shared.key_scale, before);
    if (p.v_scale.is_per_token()) std::memcpy(columns.value_scale, shared.value_scale, before);
    if (p.alibi_slopes != nullptr) std::memcpy(columns.positions, shared.positions, before);
    const int32_t* nodes = plan.nodes.data() + token(token_index).nodes;
    const int64_t first_node = request().token + request().tokens - p.seq_lens[tile.request];
    for (int64_t j = own.low; j < own.high; ++j) {
      const int64_t column = origin + j;
      const int64_t slot = column < prefix ? column : prefix + nodes[column - prefix];
      const int64_t index = block(slot / p.k.page), at = slot % p.k.page;
      columns.keys[j] = p.k.row(index, at, head);
      columns.values[j] = p.v.row(index, at, head);
      if (p.k_scale.is_per_token()) columns.key_scale[j] = p.k_scale.at(index, at, head);
      if (p.v_scale.is_per_token()) columns.value_scale[j] = p.v_scale.at(index, at, head);
      const int64_t position = column < prefix ? column : token(first_node + slot).position;
      columns.positions[j] = static_cast<float>(position - origin);
    }
  }

 private:
  // Calls body(columns, page, first row of the page) for each page of slots.
  template <class Body>
  void for_pages(Range range, const Body& body) const {
    const int64_t page = params.k.page;
    int64_t index = (origin + range.low) / page, first = (origin + range.low) % page;
    for (int64_t j = range.low, end; j < range.high; j = end, first = 0) {
      end = std::min(range.high, j + page - first);
      body(Range{j, end}, block(index++), first);
    }
  }

  void prefetch(const kv::Scales& scales, int64_t index, int64_t slot, int64_t count) const {
    if (!scales.is_per_token()) return;
    constexpr int64_t kLineFloats = 16;
    const int64_t step =
        std::max<int64_t>(1, kLineFloats / std::max<int64_t>(1, scales.slot_stride));
    for (int64_t i = 0; i < count; i += step) prefetch_line(&scales.at(index, slot + i, head));
  }
};

}  // namespace
}  // namespace lamina::paged_attention
