// The loop nest of every CPU kernel of paged_attention. Each ISA compiles its own copy, in an unnamed namespace: the linker
// may not merge copies that were compiled with different flags.
//
//   for each piece of a tile (its rows against a run of chunks, one KV head)
//     queries to f32 [rows, head_dim]
//     for each chunk of 512 columns
//       scores = queries * keys^T      blocks of kColumns keys, transposed into a panel
//       weights                        row by row, in place (softmax.h)
//       vectors += weights * values    blocks of kValueKeys keys; a row takes only the keys that it sees
//       merge with the chunks before
//     divide, store; or leave partial results to the last of the parts that share the tile
//
// A `Simd` wraps the vectors of an instruction set:
//   F, I         kLanes floats, kLanes 32-bit integers;  kColumns = 2 kLanes; kMaxRows rows of a microkernel
//   load, load_int, store, set, set_int, first, add (F and I), sub, mul, div, fma(a, b, c) = a b + c, as_float, as_int
//   max(a, b)    b if either is NaN;  if_less(a, b, yes, no): no if either is NaN
//   keep_lanes(x, low, high, other): other in lanes outside [low, high)
//   shift_left<n>, shift_right<n>, shift_right_signed<n>, bit_and, bit_or, to_floats(I)
//   widen<bytes>(p): kLanes elements of 1, 2 or 4 bytes, zero-extended; from_f16(I): of the low half of each dword
//   transpose(I (&)[kLanes])
#pragma once

#include <algorithm>
#include <cstring>

#include "base/scratch.h"
#include "ops/paged_attention/cpu/kernel.h"
#include "ops/paged_attention/cpu/multiply.h"
#include "ops/paged_attention/cpu/panels.h"
#include "ops/paged_attention/cpu/softmax.h"

namespace lamina::paged_attention {
namespace {

inline constexpr int kValueKeys = 32;

using PackKeys = void (*)(const char* const* rows, int count, int64_t dim, float* panel);

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

template <class Simd>
class Worker {
 public:
  Worker(const Call& call, int64_t part)
      : call_(call),
        p_(call.params),
        plan_(call.plan),
        part_(part),
        group_(p_.heads / p_.kv_heads),
        q_stride_(round_up(p_.head_dim, Simd::kColumns)),
        dim_(round_up(p_.v_head_dim, Simd::kColumns)),
        state_stride_(State::kHead + dim_),
        key_bytes_(p_.head_dim * kv::size_bytes(p_.k.dtype)),
        value_bytes_(p_.v_head_dim * kv::size_bytes(p_.v.dtype)) {
    with_type(p_.k.dtype, [&](auto element) {
      using T = decltype(element);
      pack_keys_ = &pack_keys<Simd, T>;
      pack_values_ = &pack_values<Simd, T>;
    });
    const int64_t rows = plan_.tile_rows;
    const int64_t states = rows * state_stride_;
    const int64_t panel =
        std::max(p_.head_dim * Simd::kColumns, static_cast<int64_t>(kValueKeys) * dim_);
    const int64_t floats = rows * (q_stride_ + kScoreStride) + 2 * states + panel;
    char* memory = static_cast<char*>(
        thread_scratch(floats * static_cast<int64_t>(sizeof(float)) + 2 * static_cast<int64_t>(sizeof(Columns))));
    shared_ = reinterpret_cast<Columns*>(memory);
    own_ = shared_ + 1;
    queries_ = reinterpret_cast<float*>(shared_ + 2);
    scores_ = queries_ + rows * q_stride_;
    states_ = scores_ + rows * kScoreStride;
    partial_ = states_ + states;
    panel_ = partial_ + states;
  }

  void run() {
    const int64_t end = plan_.begin(part_ + 1);
    for (int64_t visit = plan_.begin(part_); visit < end;) {
      tile_ = &plan_.tile_of(visit);
      head_ = (visit - tile_->visit) / tile_->chunks;
      const int64_t first = tile_->visit + head_ * tile_->chunks;
      const int64_t last = std::min(tile_->chunks, end - first);
      compute_piece(first, visit - first, last);
      visit = first + last;
    }
  }

  static int64_t slot_floats(const Params& params, const Plan& plan) {
    return plan.tile_rows * (State::kHead + round_up(params.v_head_dim, Simd::kColumns));
  }

 private:
  static constexpr int64_t kScoreStride = kChunk + Simd::kColumns;  // a block may store past the chunk

  template <class Body>
  static void with_type(kv::CacheDType dtype, const Body& body) {
    switch (dtype) {
      case kv::CacheDType::kF32:
        return body(float{});
      case kv::CacheDType::kF16:
        return body(F16{});
      case kv::CacheDType::kBF16:
        return body(BF16{});
      case kv::CacheDType::kE4M3:
        return body(E4M3{});
      case kv::CacheDType::kI8:
        return body(int8_t{});
    }
  }

  // Chunks [begin, end) of the tile; `first` is the visit of chunk 0.
  void compute_piece(int64_t first, int64_t begin, int64_t end) {
    load_queries();
    const bool is_whole = begin == 0 && end == tile_->chunks;
    float* merged = is_whole ? states_ : slot(part_, plan_.slots_per_part - 1);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      // The first piece of a tile merges its chunks; later pieces leave each chunk to the one that merges all.
      float* into = begin > 0 ? slot(part_, chunk - begin) : chunk > 0 ? partial_ : merged;
      compute_chunk(tile_->chunk + chunk, into);
      if (into == partial_) merge_rows(merged, partial_);
    }
    if (is_whole) return finish(merged);
    const int64_t last = first + tile_->chunks - 1;
    const int64_t first_part = plan_.part_of(first), last_part = plan_.part_of(last);
    if (call_.arrivals[first_part].fetch_add(1, std::memory_order_acq_rel) < last_part - first_part)
      return;
    merged = slot(first_part, plan_.slots_per_part - 1);
    for (int64_t part = first_part + 1; part <= last_part; ++part) {
      const int64_t chunks = std::min(last + 1, plan_.begin(part + 1)) - plan_.begin(part);
      for (int64_t i = 0; i < chunks; ++i) merge_rows(merged, slot(part, i));
    }
    finish(merged);
  }

  float* slot(int64_t part, int64_t index) const {
    return call_.partials +
           (part * plan_.slots_per_part + index) * plan_.tile_rows * state_stride_;
  }
  State state(float* states, int64_t row) const { return {states + row * state_stride_, dim_}; }

  void merge_rows(float* into, float* next) const {
    for (int64_t r = 0; r < tile_->rows; ++r) merge<Simd>(state(into, r), state(next, r));
  }

  const Request& request() const { return plan_.requests[static_cast<size_t>(tile_->request)]; }

  // Calls body(token of the call, rows of the tile) for each token of the tile.
  template <class Body>
  void for_tokens(const Body& body) const {
    for (int64_t r = 0; r < tile_->rows;) {
      const int64_t token = (tile_->row + r) / group_;
      const int64_t end = std::min(tile_->rows, (token + 1) * group_ - tile_->row);
      body(request().token + token, Range{r, end});
      r = end;
    }
  }
  int64_t head_of(int64_t row) const { return head_ * group_ + (tile_->row + row) % group_; }

  void load_queries() {
    const auto load = [&](auto element) {
      using T = decltype(element);
      for_tokens([&](int64_t token, Range rows) {
        for (int64_t r = rows.low; r < rows.high; ++r) {
          const char* row = reinterpret_cast<const char*>(static_cast<const T*>(p_.q) +
                                                          token * p_.q_token_stride +
                                                          head_of(r) * p_.q_head_stride);
          pack_values<Simd, T>(&row, 1, p_.head_dim, queries_ + r * q_stride_);
        }
      });
    };
    if (p_.q_dtype == DType::kF32) return load(float{});
    if (p_.q_dtype == DType::kF16) return load(F16{});
    load(BF16{});
  }

  Range clipped(int64_t low, int64_t high) const {
    return {std::clamp<int64_t>(low - origin_, 0, kChunk),
            std::clamp<int64_t>(high - origin_, 0, kChunk)};
  }
  Range seen(const Token& token) const { return clipped(token.low, token.high); }
  Range seen_shared(const Token& token) const { return clipped(token.low, token.shared_end); }
  Range seen_own(const Token& token) const {
    return clipped(std::max(token.low, token.shared_end), token.high);
  }
  const Token& token_of(int64_t token) const { return plan_.tokens[static_cast<size_t>(token)]; }

  void compute_chunk(int64_t chunk, float* states) {
    origin_ = chunk * kChunk;
    Range shared{kChunk, 0};
    for_tokens([&](int64_t token, Range) {
      const Range seen = seen_shared(token_of(token));
      if (seen.count() == 0) return;
      shared = {std::min(shared.low, seen.low), std::max(shared.high, seen.high)};
    });
    for (int64_t j = shared.low; j < shared.high;) j = point_page(j, shared.high);
    if (p_.alibi_slopes != nullptr)
      for (int64_t j = 0; j < kChunk; ++j) shared_->positions[j] = static_cast<float>(j);
    multiply_keys(*shared_, shared, {0, tile_->rows});
    for_tokens([&](int64_t token, Range rows) { weigh(token, rows, states); });
    multiply_values(shared, states);
    for_tokens([&](int64_t token, Range rows) {
      const Range own = seen_own(token_of(token));
      if (own.count() == 0) return;
      point_nodes(token, own);
      for (int64_t j = own.low; j < own.high; j += kValueKeys) {
        const Range block{j, std::min(j + kValueKeys, own.high)};
        pack_values_(own_->values + j, static_cast<int>(block.count()), p_.v_head_dim, panel_);
        Prefetch none;
        add_values(block, block, rows, states, none);
      }
    });
  }

  // Sets the shared columns from j to the end of their page, at most to `high`; returns where it stopped.
  int64_t point_page(int64_t j, int64_t high) {
    const int64_t slot = origin_ + j, page = p_.k.page;
    const int64_t index = block(slot / page), first = slot % page;
    const int64_t end = std::min(high, j + page - first);
    const char* key = p_.k.row(index, first, head_);
    const char* value = p_.v.row(index, first, head_);
    const int64_t key_step = p_.k.slot_stride * kv::size_bytes(p_.k.dtype);
    const int64_t value_step = p_.v.slot_stride * kv::size_bytes(p_.v.dtype);
    for (int64_t i = j; i < end; ++i, key += key_step, value += value_step) {
      shared_->keys[i] = key;
      shared_->values[i] = value;
    }
    if (p_.k_scale.is_per_token())
      for (int64_t i = j; i < end; ++i)
        shared_->key_scale[i] = p_.k_scale.at(index, first + i - j, head_);
    if (p_.v_scale.is_per_token())
      for (int64_t i = j; i < end; ++i)
        shared_->value_scale[i] = p_.v_scale.at(index, first + i - j, head_);
    return end;
  }

  int64_t block(int64_t index) const {
    return p_.block_table.row(tile_->request)[index];
  }

  // Sets the columns of own_ that are a token's nodes, and copies what belongs to the columns before them.
  void point_nodes(int64_t token, Range own) {
    const int64_t prefix = request().prefix;
    const size_t before = static_cast<size_t>(own.low) * sizeof(float);
    if (p_.k_scale.is_per_token()) std::memcpy(own_->key_scale, shared_->key_scale, before);
    if (p_.v_scale.is_per_token()) std::memcpy(own_->value_scale, shared_->value_scale, before);
    if (p_.alibi_slopes != nullptr) std::memcpy(own_->positions, shared_->positions, before);
    const int32_t* nodes = plan_.nodes.data() + token_of(token).nodes - prefix + origin_;
    for (int64_t j = own.low; j < own.high; ++j) {
      const int64_t slot = prefix + nodes[j], page = slot / p_.k.page, at = slot % p_.k.page;
      const int64_t index = block(page);
      own_->keys[j] = p_.k.row(index, at, head_);
      own_->values[j] = p_.v.row(index, at, head_);
      if (p_.k_scale.is_per_token()) own_->key_scale[j] = p_.k_scale.at(index, at, head_);
      if (p_.v_scale.is_per_token()) own_->value_scale[j] = p_.v_scale.at(index, at, head_);
      const int64_t node_token = request().token + request().tokens + slot - p_.seq_lens[tile_->request];
      own_->positions[j] = static_cast<float>(token_of(node_token).position - origin_);
    }
  }

  void multiply_keys(const Columns& columns, Range range, Range rows) {
    for (int64_t j = range.low; j < range.high; j += Simd::kColumns) {
      const int64_t count = std::min<int64_t>(Simd::kColumns, range.high - j);
      const int64_t next = j + count, after = std::min<int64_t>(next + Simd::kColumns, range.high);
      // After the last keys come the values.
      Prefetch prefetch =
          next < range.high
              ? Prefetch(columns.keys + next, after - next, key_bytes_, steps(rows, p_.head_dim))
              : Prefetch(columns.values + range.low, std::min<int64_t>(kValueKeys, range.count()),
                         value_bytes_, steps(rows, p_.head_dim));
      pack_keys_(columns.keys + j, static_cast<int>(count), p_.head_dim, panel_);
      multiply<Simd>(rows.count(),
                     {queries_ + rows.low * q_stride_, q_stride_, panel_, Simd::kColumns,
                      scores_ + rows.low * kScoreStride + j, kScoreStride, p_.head_dim, false},
                     prefetch);
    }
  }

  // Scores to weights, for the rows of one token. The vectors of the states become 0.
  void weigh(int64_t token_index, Range rows, float* states) {
    const Token& token = token_of(token_index);
    const Range all = seen(token), own = seen_own(token);
    const Columns* columns = shared_;
    if (own.count() > 0) {
      point_nodes(token_index, own);
      multiply_keys(*own_, own, rows);
      columns = own_;
    }
    ScoreRow row{};
    row.low = all.low;
    row.high = all.high;
    row.scale = p_.k_scale.is_given() && !p_.k_scale.is_per_token() ? p_.scale * p_.k_scale.data[0]
                                                                    : p_.scale;
    row.softcap = p_.softcap;
    row.position = static_cast<float>(token.position - origin_);
    row.positions = columns->positions;
    row.key_scale = p_.k_scale.is_per_token() ? columns->key_scale : nullptr;
    row.value_scale = p_.v_scale.is_per_token() ? columns->value_scale : nullptr;
    for (int64_t r = rows.low; r < rows.high; ++r) {
      const State result = state(states, r);
      std::fill_n(result.vector(), dim_, 0.0f);
      result.maximum() = -kInfinity;
      result.sum() = 0.0f;
      if (all.count() == 0) continue;
      row.scores = scores_ + r * kScoreStride;
      if (p_.alibi_slopes != nullptr)
        row.slope = p_.alibi_slopes[tile_->request * p_.alibi_request_stride + head_of(r)];
      softmax_row<Simd>(row, result.maximum(), result.sum());
    }
  }

  void multiply_values(Range shared, float* states) {
    for (int64_t j = shared.low; j < shared.high; j += kValueKeys) {
      const Range block{j, std::min(j + kValueKeys, shared.high)};
      Prefetch prefetch(shared_->values + block.high,
                        std::min(block.high + kValueKeys, shared.high) - block.high, value_bytes_,
                        steps({0, tile_->rows}, block.count() * (dim_ / Simd::kColumns)));
      pack_values_(shared_->values + j, static_cast<int>(block.count()), p_.v_head_dim, panel_);
      // Tokens in a row that see the same keys of the block go together.
      Range keys{0, 0}, run{0, 0};
      for_tokens([&](int64_t token, Range rows) {
        const Range seen = seen_shared(token_of(token));
        const Range next{std::max(seen.low, block.low), std::min(seen.high, block.high)};
        if (next == keys) {
          run.high = rows.high;
          return;
        }
        add_values(block, keys, run, states, prefetch);
        keys = next;
        run = rows;
      });
      add_values(block, keys, run, states, prefetch);
    }
  }

  // Steps of k of a product with these rows.
  static int64_t steps(Range rows, int64_t k) { return ceil_div(rows.count(), Simd::kMaxRows) * k; }

  // The values of `keys`, which are among those of `block` in the panel.
  void add_values(Range block, Range keys, Range rows, float* states, Prefetch& prefetch) const {
    if (keys.count() == 0) return;
    for (int64_t i = 0; i < dim_; i += Simd::kColumns)
      multiply<Simd>(rows.count(), {scores_ + rows.low * kScoreStride + keys.low, kScoreStride,
                                    panel_ + (keys.low - block.low) * dim_ + i, dim_,
                                    state(states, rows.low).vector() + i, state_stride_,
                                    keys.count(), true},
                     prefetch);
  }

  void finish(float* states) const {
    for_tokens([&](int64_t token, Range rows) {
      for (int64_t r = rows.low; r < rows.high; ++r) {
        const State result = state(states, r);
        const int64_t head = head_of(r);
        if (p_.lse != nullptr)
          p_.lse[head * p_.tokens + token] = static_cast<float>(
              result.maximum() + std::log(static_cast<double>(result.sum())));
        if (token_of(token).sees_nothing()) {
          std::fill_n(result.vector(), dim_, 0.0f);
        } else {
          divide(result, head);
        }
        store(result, token * p_.heads + head);
      }
    });
  }

  void divide(const State& result, int64_t head) const {
    using F = typename Simd::F;
    float factor = 1.0f, total = result.sum();
    if (p_.sinks != nullptr) {
      const float maximum = std::max(result.maximum(), p_.sinks[head]);
      const float reference = maximum == -kInfinity ? 0.0f : maximum;
      factor = exp_of<Simd>(result.maximum() - reference);
      total = std::fma(total, factor, exp_of<Simd>(p_.sinks[head] - reference));
    }
    if (p_.v_scale.is_given() && !p_.v_scale.is_per_token()) factor *= p_.v_scale.data[0];
    // The addition makes every zero +0: a chunk of which a row sees nothing would change the sign.
    for (int64_t i = 0; i < dim_; i += Simd::kLanes) {
      const F scaled = Simd::fma(Simd::load(result.vector() + i), Simd::set(factor), Simd::set(0.0f));
      Simd::store(result.vector() + i, Simd::div(scaled, Simd::set(total)));
    }
  }

  void store(const State& result, int64_t row) const {
    const auto put = [&](auto element) {
      using T = decltype(element);
      T* to = static_cast<T*>(p_.out) + row * p_.v_head_dim;
      for (int64_t i = 0; i < p_.v_head_dim; ++i) to[i] = from_f32<T>(result.vector()[i]);
    };
    if (p_.out_dtype == DType::kF32) return put(float{});
    if (p_.out_dtype == DType::kF16) return put(F16{});
    put(BF16{});
  }

  const Call& call_;
  const Params& p_;
  const Plan& plan_;
  const int64_t part_, group_, q_stride_, dim_, state_stride_, key_bytes_, value_bytes_;
  PackKeys pack_keys_ = nullptr, pack_values_ = nullptr;
  Columns *shared_, *own_;
  float *queries_, *scores_, *states_, *partial_, *panel_;
  const Tile* tile_ = nullptr;
  int64_t head_ = 0, origin_ = 0;
};

template <class Simd>
CpuKernel cpu_kernel(const char* name, Isa isa) {
  return {name, isa, &Worker<Simd>::slot_floats,
          [](const Call& call, int64_t part) { Worker<Simd>(call, part).run(); }};
}

}  // namespace
}  // namespace lamina::paged_attention
