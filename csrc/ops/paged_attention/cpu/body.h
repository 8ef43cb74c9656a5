// The loop nest of every CPU kernel of paged_attention, in an unnamed namespace: the linker may not merge copies of ISAs.
//
//   for each piece of a tile (its rows against a run of chunks, one KV head)
//     queries to operands [rows, head_dim]
//     for each chunk of 512 columns
//       scores = queries * keys^T      blocks of kColumns keys, transposed into a panel
//       weights                        row by row, in place (softmax.h)
//       sums += weights * values       blocks of keys, in the cache itself if possible; a row takes those that it sees
//       merge with the chunks before
//     divide, store; or leave partial results to the last of the parts that share the tile
#pragma once

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/scratch.h"
#include "base/with_type.h"
#include "ops/paged_attention/cpu/columns.h"
#include "ops/paged_attention/cpu/kernel.h"
#include "ops/paged_attention/cpu/products.h"

namespace lamina::paged_attention {
namespace {

inline constexpr int64_t kKeysInPlace = 256;  // of a block of values
template <class Simd, class Product>
class Worker {
 public:
  Worker(const Call& call, int64_t part)
      : call_(call),
        p_(call.params),
        plan_(call.plan),
        part_(part),
        group_(p_.heads / p_.kv_heads),
        q_stride_(round_up(Product::dwords(p_.head_dim), Simd::kLanes)),
        dim_(round_up(p_.v_head_dim, Product::kValueColumns)),
        state_stride_(State::kHead + dim_),
        key_bytes_(p_.head_dim * kv::size_bytes(p_.k.dtype)),
        value_bytes_(p_.v_head_dim * kv::size_bytes(p_.v.dtype)),
        product_(p_.k.dtype, p_.v_head_dim),
        value_keys_(product_.prepare_values == nullptr ? kKeysInPlace : kPreparedKeys) {
    // A microkernel may read 16 rows from any row on, of which it needs some.
    const int64_t rows = plan_.tile_rows;
    const int64_t planes = Product::kPlanes * rows + 15;
    // A panel may end in rows of zeros, of elements that fill a vector of dwords.
    panel_dwords_ =
        std::max(kKeyDwords, q_stride_ * Simd::kColumns) + 3 * Simd::kLanes * Simd::kColumns;
    const int64_t panel = std::max(2 * panel_dwords_, kValueRows * dim_);
    const int64_t dwords = round_up(p_.head_dim, Simd::kColumns) + 2 * rows * state_stride_ +
                           3 * rows + 3 * planes * kRowStride + panel;
    char* memory =
        static_cast<char*>(thread_scratch(4 * dwords + 2 * static_cast<int64_t>(sizeof(Columns))));
    shared_ = reinterpret_cast<Columns*>(memory);
    own_ = shared_ + 1;
    auto* next = reinterpret_cast<int32_t*>(own_ + 1);
    const auto take = [&](int64_t count) { return std::exchange(next, next + count); };
    panel_ = take(panel);
    queries_ = take(planes * kRowStride);
    scores_ = take(planes * kRowStride);
    sums_ = take(planes * kRowStride);
    states_ = reinterpret_cast<float*>(take(rows * state_stride_));
    partial_ = reinterpret_cast<float*>(take(rows * state_stride_));
    row_ = reinterpret_cast<float*>(take(round_up(p_.head_dim, Simd::kColumns)));
    query_ = reinterpret_cast<Query*>(take(2 * rows));
    weight_factors_ = reinterpret_cast<float*>(take(rows));
    const int64_t bytes = dim_ * static_cast<int64_t>(sizeof(int32_t)) / Product::kKeysPerDword;
    for (int64_t i = 0; i < kPreparedKeys; ++i)
      prepared_[i] = reinterpret_cast<const char*>(panel_) + i * bytes;
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

 private:
  static constexpr int64_t kValueRows = 32;  // of a panel of values, at most
  static constexpr int64_t kPreparedKeys = kValueRows * Product::kKeysPerDword;
  static constexpr int64_t kKeyDwords =
      2048;  // of panels of keys together, which should stay in L1
  // Rows of the cache are prefetched as they follow each other: keys, values, keys of the next chunk. This many rows
  // ahead take longer to multiply than memory takes to answer.
  static constexpr int64_t kAhead = 256, kAgain = 160, kManyRows = 16;

  // Chunks [begin, end) of the tile; `first` is the visit of chunk 0.
  void compute_piece(int64_t first, int64_t begin, int64_t end) {
    load_queries();
    const bool is_whole = begin == 0 && end == tile_->chunks;
    float* merged = is_whole ? states_ : slot(part_, plan_.slots_per_part - 1);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      // The first piece of a tile merges its chunks; later pieces leave each chunk to the one that merges all.
      float* into = begin > 0 ? slot(part_, chunk - begin) : chunk > 0 ? partial_ : merged;
      compute_chunk(first + chunk, into);
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
    return call_.partials + (part * plan_.slots_per_part + index) * plan_.tile_rows * state_stride_;
  }
  State state(float* states, int64_t row) const { return {states + row * state_stride_, dim_}; }

  void merge_rows(float* into, float* next) const {
    for (int64_t r = 0; r < tile_->rows; ++r) merge<Simd>(state(into, r), state(next, r));
  }

  template <class Body>
  void for_tokens(const Body& body) const {
    paged_attention::for_tokens(p_, plan_, *tile_, body);
  }
  int64_t head_of(int64_t row) const { return head_ * group_ + (tile_->row + row) % group_; }

  static Planes planes(int32_t* rows, int64_t row) {
    return {rows + Product::kPlanes * row * kRowStride};
  }

  static void clear(int32_t* rows, int64_t row, int64_t dwords) {
    for (int i = 0; i < Product::kPlanes; ++i)
      std::fill_n(planes(rows, row).dwords + i * kRowStride, dwords, 0);
  }

  void load_queries() {
    const auto load = [&](auto element) {
      using T = decltype(element);
      for_tokens([&](int64_t token, Range rows) {
        for (int64_t r = rows.low; r < rows.high; ++r) {
          const char* from = reinterpret_cast<const char*>(static_cast<const T*>(p_.q) +
                                                           token * p_.q_token_stride +
                                                           head_of(r) * p_.q_head_stride);
          Prefetch none;
          widen_values<Simd, T>(&from, 1, p_.head_dim, reinterpret_cast<int32_t*>(row_), none);
          clear(queries_, r, q_stride_);
          query_[r] = Product::query(row_, p_.head_dim, planes(queries_, r));
        }
      });
    };
    with_type(p_.q_dtype, load);
  }

  Chunk chunk_of(int64_t visit) const {
    const Tile& tile = plan_.tile_of(visit);
    const int64_t index = visit - tile.visit;
    return {p_, plan_, tile, index / tile.chunks, (tile.chunk + index % tile.chunks) * kChunk};
  }

  void compute_chunk(int64_t visit, float* states) {
    const Chunk chunk = chunk_of(visit);
    const Range shared = chunk.shared();
    chunk.point_slots(shared, *shared_);
    const bool is_last = visit + 1 == plan_.begin(part_ + 1);
    const Chunk next = is_last ? chunk : chunk_of(visit + 1);
    multiply_keys(*shared_, shared, {0, tile_->rows}, is_last ? nullptr : &next);
    for (int64_t r = 0; r < tile_->rows; ++r) clear(sums_, r, dim_);
    for_tokens([&](int64_t token, Range rows) { weigh(chunk, token, rows, states); });
    next_count_ = is_last ? 0 : next.point_first(kAhead, next_);
    multiply_values(chunk, shared);
    for_tokens([&](int64_t token, Range rows) { add_own(chunk, token, rows); });
    for (int64_t r = 0; r < tile_->rows; ++r)
      Product::finish_vector(planes(sums_, r), weight_factors_[r], dim_, state(states, r).vector());
  }

  // The keys to prefetch while `count` keys from j on are multiplied. After the keys come the values.
  Prefetch keys_ahead(const Columns& columns, Range range, int64_t j, int64_t count,
                      int64_t passes) const {
    const int64_t distance = std::clamp<int64_t>(range.count() / count * count, count, kAhead);
    const int64_t ahead = j + distance, value = range.low + ahead - range.high;
    if (ahead < range.high)
      return {columns.keys + ahead, std::min(count, range.high - ahead), key_bytes_, passes,
              again(ahead - range.low)};
    return {columns.values + value, std::min(count, range.high - value), value_bytes_, passes,
            again(value - range.low)};
  }

  // How many rows later a row is asked for again, where `before` rows lie before the first. Few rows of queries wait
  // for memory anyway.
  int64_t again(int64_t before) const {
    return before >= kAgain && tile_->rows >= kManyRows ? kAgain : 0;
  }

  // Prefetches the scales of the next chunk, if one is given. While a step multiplies, the keys of the next are packed.
  void multiply_keys(const Columns& columns, Range range, Range rows, const Chunk* next) {
    const int64_t dwords = Product::dwords(p_.head_dim), block = q_stride_ * Simd::kColumns;
    const int64_t operands = Product::kPlanes * rows.count();
    const int64_t most = std::max<int64_t>(kKeyDwords / block, 1) * Simd::kColumns;
    const bool packs_ahead = product_.packs_ahead && dwords % Simd::kLanes == 0;
    int32_t *panel = panel_, *other = panel_ + panel_dwords_;
    bool is_packed = false;
    for (int64_t j = range.low, end; j < range.high; j = end, std::swap(panel, other)) {
      end = std::min(j + most, range.high);
      const int64_t blocks = ceil_div(end - j, Simd::kColumns);
      if (next != nullptr) next->prefetch_scales({j, end});
      const int64_t passes = Product::template passes<Panel>(operands, dwords, blocks);
      const int64_t pieces = is_packed ? 0 : blocks * pieces_of_block<Simd>(key_bytes_ / 4);
      Prefetch prefetch = keys_ahead(columns, range, j, end - j, pieces + passes);
      for (int64_t i = j; i < end && !is_packed; i += Simd::kColumns)
        product_.pack_keys(columns.keys + i,
                           static_cast<int>(std::min<int64_t>(end - i, Simd::kColumns)),
                           p_.head_dim, panel + (i - j) * q_stride_, prefetch);
      const int64_t after = std::min(end + most, range.high) - end;
      is_packed = packs_ahead && after > 0 && after % Simd::kColumns == 0;
      typename Product::Side side(prefetch);
      if constexpr (Simd::kPacksAhead)
        if (is_packed)
          side.begin(columns.keys + end, after / Simd::kColumns, dwords, other, block, passes);
      Product::multiply_keys(operands,
                             {planes(queries_, rows.low).dwords,
                              {panel, block},
                              planes(scores_, rows.low).dwords + j,
                              dwords,
                              blocks,
                              false},
                             side);
      if constexpr (Simd::kPacksAhead) side.finish();
    }
  }

  // Scores to weights, for the rows of one token. The states hold their sums and maxima from here on.
  void weigh(const Chunk& chunk, int64_t token_index, Range rows, float* states) {
    const Token& token = chunk.token(token_index);
    const Range all = chunk.seen(token), own = chunk.seen_own(token);
    const Columns* columns = shared_;
    if (own.count() > 0) {
      chunk.point_own(token_index, own, *shared_, *own_);
      multiply_keys(*own_, own, rows, nullptr);
      columns = own_;
    }
    const float scale = p_.scale * p_.k_scale.of_all();
    ScoreRow row{};
    row.low = all.low;
    row.high = all.high;
    row.softcap = p_.softcap;
    row.position = static_cast<float>(token.position - chunk.origin);
    row.positions = columns->positions;
    row.key_scale = p_.k_scale.is_per_token() ? columns->key_scale : nullptr;
    row.value_scale = p_.v_scale.is_per_token() ? columns->value_scale : nullptr;
    const auto for_rows = [&](const auto& body) {
      for (int64_t r = rows.low; r < rows.high; ++r) {
        const Planes scores = planes(scores_, r);
        row.scores = scores.floats();
        row.scale = scale * query_[r].factor;
        if (p_.alibi_slopes != nullptr)
          row.slope = p_.alibi_slopes[tile_->request * p_.alibi_request_stride + head_of(r)];
        body(r, scores, state(states, r));
      }
    };
    if (all.count() == 0) {
      for_rows([&](int64_t r, const Planes&, const State& result) {
        result.maximum() = -kInfinity;
        result.sum() = weight_factors_[r] = 0.0f;
      });
      return;
    }
    // In two loops: meanwhile the processor looks into the next row.
    for_rows([&](int64_t r, const Planes& scores, const State& result) {
      result.maximum() = Product::score(scores, query_[r], row);
    });
    for_rows([&](int64_t r, const Planes& scores, const State& result) {
      weight_factors_[r] = Product::weigh(scores, row, result.maximum(), result.sum());
      result.maximum() *= factor_of(row);
    });
  }

  void multiply_values(const Chunk& chunk, Range shared) {
    if (shared.count() == 0) return;
    for (int64_t j = start_values(*shared_, shared); j < shared.high; j += value_keys_) {
      const Range block{j, std::min(j + value_keys_, shared.high)};
      const int64_t ahead = block.low + kAhead, after = ahead - shared.high;
      int64_t passes = Product::template passes<typename Product::Values>(
          Product::kPlanes * tile_->rows, ceil_div(block.count(), Product::kKeysPerDword),
          dim_ / Simd::kColumns);
      if (product_.prepare_values != nullptr) passes += value_passes(block.count());
      Prefetch prefetch = after < 0
                              ? Prefetch(shared_->values + ahead, std::min(value_keys_, -after),
                                         value_bytes_, passes, again(ahead - shared.low))
                              : Prefetch(next_ + after, std::min(value_keys_, next_count_ - after),
                                         key_bytes_, passes, again(after));
      const char* const* values = values_of(*shared_, block, prefetch);
      // Keys that all tokens see go with all rows, then those of each token.
      const Range all = chunk.common_keys(block);
      if (all.count() > 0) add_values(values, block, all, {0, tile_->rows}, prefetch);
      for_tokens([&](int64_t token, Range rows) {
        const Range seen = chunk.seen_shared(chunk.token(token));
        const Range rest{std::max({seen.low, block.low, all.high}),
                         std::min(seen.high, block.high)};
        if (rest.count() > 0) add_values(values, block, rest, rows, prefetch);
      });
    }
  }

  // The keys that a token does not share.
  void add_own(const Chunk& chunk, int64_t token, Range rows) {
    const Range own = chunk.seen_own(chunk.token(token));
    if (own.count() == 0) return;
    chunk.point_own(token, own, *shared_, *own_);
    for (int64_t j = start_values(*own_, own); j < own.high; j += value_keys_) {
      const Range block{j, std::min(j + value_keys_, own.high)};
      Prefetch none;
      add_values(values_of(*own_, block, none), block, block, rows, none);
    }
  }

  // The rows of a block, as multiply_values reads them.
  const char* const* values_of(const Columns& columns, Range block, Prefetch& prefetch) const {
    const char* const* rows = columns.values + block.low;
    if (product_.prepare_values == nullptr) return rows;
    product_.prepare_values(rows, block.count(), p_.v_head_dim, panel_, prefetch);
    return prepared_;
  }

  // The values of `keys`, which are among those of `block`. A step that takes other keys too takes zeros for them:
  // weight 0 does not hide a NaN.
  void add_values(const char* const* values, Range block, Range keys, Range rows,
                  Prefetch& prefetch) {
    constexpr int64_t kStep = Product::kKeysPerStep;
    const Range steps{keys.low / kStep * kStep, round_up(keys.high, kStep)};
    values += steps.low - block.low;
    if (steps != keys) {
      for (int64_t j = steps.low; j < steps.high; ++j)
        cut_[j - steps.low] = j >= keys.low && j < keys.high ? values[j - steps.low] : kZeros;
      values = cut_;
    }
    Product::multiply_values(Product::kPlanes * rows.count(),
                             {planes(scores_, rows.low).dwords + steps.low / Product::kKeysPerDword,
                              {values, 0},
                              planes(sums_, rows.low).dwords,
                              steps.count() / Product::kKeysPerDword,
                              dim_ / Simd::kColumns,
                              true},
                             prefetch);
  }

  void finish(float* states) const {
    for_tokens([&](int64_t token, Range rows) {
      for (int64_t r = rows.low; r < rows.high; ++r) {
        const State result = state(states, r);
        const int64_t head = head_of(r);
        if (p_.lse != nullptr) p_.lse[head * p_.tokens + token] = lse_of(result);
        if (plan_.tokens[static_cast<size_t>(token)].sees_nothing()) {
          std::fill_n(result.vector(), dim_, 0.0f);
        } else {
          divide<Simd>(result, p_.sinks != nullptr ? p_.sinks[head] : -kInfinity,
                       p_.v_scale.of_all());
        }
        const float* vector = Product::in_order(result.vector(), dim_, planes(sums_, 0).floats());
        const int64_t offset = (token * p_.heads + head) * p_.v_head_dim;
        with_type(p_.out_dtype, [&]<class T>(T) {
          store(vector, static_cast<T*>(p_.out) + offset, p_.v_head_dim);
        });
      }
    });
  }

  const Call& call_;
  const Params& p_;
  const Plan& plan_;
  const int64_t part_, group_, q_stride_, dim_, state_stride_, key_bytes_, value_bytes_;
  const Product product_;
  const int64_t value_keys_;  // of a block
  Columns *shared_, *own_;
  int32_t *panel_, *queries_, *scores_, *sums_;
  float *states_, *partial_, *row_, *weight_factors_;
  Query* query_;
  const Tile* tile_ = nullptr;
  int64_t head_ = 0, next_count_ = 0, panel_dwords_;
  const char* next_[kAhead];
  const char* prepared_[kPreparedKeys];
  const char* cut_[std::max(kKeysInPlace, kPreparedKeys) + kAlign];
};

template <class Simd, class Product = F32Product<Simd>>
void compute(const Call& call, int64_t part) {
  Worker<Simd, Product>(call, part).run();
}

}  // namespace
}  // namespace lamina::paged_attention
