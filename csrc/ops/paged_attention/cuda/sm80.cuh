// paged_attention / sm80:   the formula of paged_attention.h, for f16 and bf16 queries
//
// Algorithm  a block of threads computes one part of the work (work.h): for each tile of rows and KV head of the part it
//            walks over blocks of 64 columns with a running maximum (online softmax). A tile in one part is written at
//            once; the last of the parts that share a tile merges their results in order
// Layouts    q [tokens, heads, head_dim] with any strides; caches: kv/cache.h; weights: fragments of mma, or rows of 64
// Data path  gmem -cp.async-> smem ring -ldmatrix-> mma m16n8k16 -> scores -> weights (regs, or smem where several warps
//            share a row) -> mma -> f32 -> out
// Order      a score sums head_dim in steps of 16; a block of columns has one maximum; weights, rounded to 16 bits, and
//            their products with values are summed in steps of 16 columns, by the tensor core. Tiles of all sizes
//            do the same operations on a row
// Budget     regs <= 255; 0 spills; 0 bank conflicts in the ring (layout/swizzle.h)
//            requires SASS: HMMA, LDGSTS
// Requires   no alignment: rows that do not allow 16-byte copies are copied in 4-byte words or in bytes
// Source     own; online softmax as in FlashAttention-2 (arXiv:2307.08691), parts as in FlashMLA
// Reference  tests/reference/paged_attention.py
#pragma once

#include "block/reduce.cuh"
#include "ops/paged_attention/cuda/loads.cuh"
#include "ops/paged_attention/cuda/results.cuh"
#include "ops/paged_attention/cuda/run.h"
#include "ops/paged_attention/cuda/specials.cuh"

namespace lamina::paged_attention {

template <Sm80Config kConfig, class Query>
struct Sm80 {
  using Shape = Sm80Shape<kConfig, Query>;
  using State = typename Shape::State;
  using Multiply = Products<Shape>;
  using Weigh = Softmax<Shape>;
  using Rows = TileRows<Shape>;
  using Result = Results<Shape>;
  using Special = Specials<Shape>;

  using Args = KernelArgs;
  static constexpr const char* kName = "paged_attention_sm80";
  static constexpr int kThreads = Shape::kThreads, kMinBlocks = kConfig.blocks_per_sm;

  // The stage of the ring that is read next.
  struct Ring {
    int stage = 0;

    LAMINA_DEVICE int current() const { return stage * Shape::kTileBytes; }
    LAMINA_DEVICE void advance() { stage = stage + 1 == Shape::kStages ? 0 : stage + 1; }
    LAMINA_DEVICE void wait_and_refill(Loads<Shape>& loads) const {
      dev::cp_async_wait<Shape::kStages - 2>();
      dev::block_sync();  // the stage has arrived for all, and the stage before it is free
      loads.start_next(stage == 0 ? Shape::kStages - 1 : stage - 1);
    }
  };

  // Whether some values of the stage are special and not for all rows. The same in all threads.
  LAMINA_DEVICE static bool has_specials(const Walk<Shape>& walk, int stage) {
    return Special::may_matter(walk) &&
           any_of_block<Shape::kWarps>(Special::are_there(stage),
                                       reinterpret_cast<int32_t*>(Shape::smem(Shape::kFlagAt)));
  }

  // state = the result over the columns of the split.
  LAMINA_DEVICE static void attend(const Args& args, const ScoreRule& rule,
                                   const typename Multiply::Queries& queries, State& state) {
    Result::clear(state);
    Loads<Shape> loads(args);
    const bool has_scales = args.p.v_scale.is_per_token();
#pragma unroll 1
    for (int s = 0; s < Shape::kStages - 1; ++s) loads.start_next(s);
    Ring ring;
#pragma unroll 1
    for (Walk<Shape> walk(args); !walk.is_done(); walk.advance(args)) {
      ring.wait_and_refill(loads);
      typename Multiply::Scores scores;
      Multiply::multiply_keys(ring.current(), queries, scores);
      if (!rule.is_plain) Weigh::transform(args, rule, walk, ring.stage, scores);
      if (walk.token() >= 0 || walk.first_column() < Shape::at(&Place::all_low) ||
          Shape::at(&Place::all_high) - walk.first_column() < kColumns)
        Weigh::mask(args, walk, scores);
      float maxima[Shape::kTilesM][2];
      Weigh::find_maxima(scores, maxima);
      Weigh::raise(maxima, rule.factor, state);
      typename Multiply::Weights weights, scaled;
      Weigh::weigh(scores, rule.factor, state, ring.stage, has_scales, weights, scaled);
      if constexpr (Shape::kWarpsN > 1) {
        Multiply::store_weights(weights, Shape::kWeightsAt);
        if constexpr (Shape::kIsQuantized)
          if (has_scales) Multiply::store_weights(scaled, Shape::kWeightsAt + Shape::kWeightBytes);
      }
      ring.advance();
      ring.wait_and_refill(loads);
      const bool specials = has_specials(walk, ring.current());
      Multiply::multiply_values(ring.current(), weights, scaled, has_scales, specials, state);
      if (specials) Special::add(args, walk, ring.current(), state);
      ring.advance();
    }
    dev::cp_async_wait<0>();
  }

  // The places of the parts of a call.
  struct Parts {
    int64_t visits, count;
    LAMINA_DEVICE int64_t begin(int64_t part) const { return part * visits / count; }
    LAMINA_DEVICE int64_t part_of(int64_t visit) const {
      return ((visit + 1) * count - 1) / visits;
    }
  };

  LAMINA_DEVICE static float* slot(const Work& work, int64_t part, int64_t index) {
    return work.partials + (part * work.slots_per_part + index) * work.slot_floats;
  }

  // Whether this block of threads is the last of those that share the tile. The results of all are then visible.
  LAMINA_DEVICE static bool is_last(int32_t* arrivals, int64_t others) {
    auto* const flag = reinterpret_cast<int32_t*>(Shape::smem(Shape::kFlagAt));
    dev::block_sync();  // all threads have stored their results
    if (dev::thread_index() == 0) {
      dev::fence_device();
      dev::store_shared(flag, dev::atomic_add(arrivals, 1) == others ? 1 : 0);
      dev::fence_device();
    }
    dev::block_sync();
    return dev::load_shared(flag) != 0;
  }

  // The slot of the merged result of the piece that begins a tile. Other pieces leave a result for each of their splits.
  LAMINA_DEVICE static float* merged_slot(const Work& work, int64_t part) {
    return slot(work, part, work.slots_per_part - 1);
  }

  // Merges the results of all parts that share the tile, if this block of threads is the last of them.
  LAMINA_DEVICE static bool merge_parts(const Work& work, State& state) {
    const Parts parts = parts_of(work);
    const int64_t begin = Shape::at(&Place::first), end = begin + Shape::at(&Place::visits);
    const int64_t first = parts.part_of(begin), last = parts.part_of(end - 1);
    if (!is_last(work.arrivals + first, last - first)) return false;
    Result::load(merged_slot(work, first), state);
#pragma unroll 1
    for (int64_t part = first + 1; part <= last; ++part) {
      const int64_t from = parts.begin(part), next = parts.begin(part + 1);
      const int64_t results = !work.has_splits() ? 1 : (next < end ? next : end) - from;
#pragma unroll 1
      for (int64_t i = 0; i < results; ++i)
        Result::template merge<false>(slot(work, part, i), state);
    }
    return true;
  }

  LAMINA_DEVICE static void load_piece(const Args& args, const Place& at) {
    Rows::load_queries(args, at);
    Rows::load_infos(args, at);
    if (dev::thread_index() == 0) store_shared_words(Shape::place(), at);
    dev::cp_async_commit();
    dev::cp_async_wait<0>();
    dev::block_sync();
  }

  LAMINA_DEVICE static void compute_piece(const Args& args) {
    typename Multiply::Queries queries;
    Multiply::load_queries(queries);
    const ScoreRule rule = ScoreRule::of(args.p);
    State state;
    int32_t split = 0;
#pragma unroll 1
    do {
      attend(args, rule, queries, state);
      keep(args.work, split++, state);
    } while (find_next_split(args.work));
    if (merge_if_shared(args.work, state)) Result::write(args, state);
  }

  // Keeps the result of a split. After the last the state is the result of the piece, unless the piece leaves its splits to
  // others.
  LAMINA_DEVICE static void keep(const Work& work, int32_t split, State& state) {
    const int64_t part = dev::block_index().x;
    if (Shape::at(&Place::begin) > 0) return Result::store(state, slot(work, part, split));
    if (split > 0) Result::template merge<true>(merged_slot(work, part), state);
    if (Shape::at(&Place::split_end) < Shape::at(&Place::end_block) ||
        Shape::at(&Place::end) < Shape::at(&Place::visits))
      Result::store(state, merged_slot(work, part));
  }

  LAMINA_DEVICE static bool find_next_split(const Work& work) {
    const int32_t begin = Shape::at(&Place::split_end), end = Shape::at(&Place::end_block);
    if (begin >= end) return false;
    dev::block_sync();  // all warps have read the ring and the split
    if (dev::thread_index() == 0) {
      dev::store_shared(&Shape::place()->split_begin, begin);
      dev::store_shared(&Shape::place()->split_end, split_end(work, begin, end));
    }
    dev::block_sync();
    return true;
  }
  LAMINA_DEVICE static int32_t split_end(const Work& work, int32_t begin, int32_t end) {
    return end - begin < work.split_blocks ? end : begin + work.split_blocks;
  }

  // Whether the state is the result of the whole tile, for this block of threads to write.
  LAMINA_DEVICE static bool merge_if_shared(const Work& work, State& state) {
    const bool is_whole =
        Shape::at(&Place::begin) == 0 && Shape::at(&Place::end) == Shape::at(&Place::visits);
    return is_whole || merge_parts(work, state);
  }

  // The tile of a visit: each round reads 32 tiles at equal distances.
  LAMINA_DEVICE static int32_t tile_of(const Work& work, int32_t tiles, int64_t visit) {
    int32_t low = 0, high = tiles;
    while (high - low > 1) {
      const int32_t step = (high - low + dev::kWarpLanes - 1) / dev::kWarpLanes;
      const int32_t probe = low + dev::lane() * step;
      const bool is_before = probe < high && dev::load_global(&work.tile[probe].visit) <= visit;
      // Lane 0 is before, and the lanes that are form a run.
      const uint32_t after = ~dev::ballot(is_before);
      int32_t count = 1;
      while (count < dev::kWarpLanes && !(after >> count & 1)) ++count;
      low += (count - 1) * step;
      high = low + step < high ? low + step : high;
    }
    return low;
  }

  LAMINA_DEVICE static Parts parts_of(const Work& work) {
    const int64_t visits = dev::load_global(&work.header->visits);
    return {visits, visits < work.parts ? visits : work.parts};
  }

  // The piece of the tile that begins with `visit` and does not pass visit `end`.
  LAMINA_DEVICE static Place place_of(const Args& args, const Tile& tile, int64_t visit,
                                      int64_t end) {
    const Work& work = args.work;
    Place at{};
    at.tile = tile;
    at.visits = visits_of(work, tile);
    const int64_t head = (visit - tile.visit) / at.visits;
    at.first = tile.visit + head * at.visits;
    at.begin = visit - at.first;
    at.end = end - at.first < at.visits ? end - at.first : at.visits;
    at.head = static_cast<int32_t>(head);
    const int64_t left = int64_t{tile.q_len} * args.group - tile.row;
    at.rows = left < Shape::kRows ? static_cast<int32_t>(left) : Shape::kRows;
    const auto [any, all] =
        tile_columns(args.p, tile, tile.row / args.group, (tile.row + at.rows - 1) / args.group);
    at.any_low = Rows::clamp(any.low);
    at.any_high = Rows::clamp(any.high);
    at.all_low = Rows::clamp(all.low);
    at.all_high = Rows::clamp(all.high);
    at.prefix = tile.seq_len - tile.tree_len;
    at.shared_end = static_cast<int32_t>(ceil_div(any.high, kColumns));
    const auto block_of = [&](int64_t index) {
      const int64_t block = index * work.visit_blocks;
      return tile.first_block + (block < tile.blocks ? static_cast<int32_t>(block) : tile.blocks);
    };
    at.end_block = block_of(at.end);
    at.split_begin = block_of(at.begin);
    at.split_end = split_end(work, at.split_begin, at.end_block);
    if (work.has_splits() && tile.tree_len > 0) set_own(args, at);
    return at;
  }

  // With splits the nodes of the tile have columns of their own.
  LAMINA_DEVICE static void set_own(const Args& args, Place& at) {
    const int32_t plain = at.tile.q_len - at.tile.tree_len;
    const int32_t first = at.tile.row / args.group, last = (at.tile.row + at.rows - 1) / args.group;
    if (last < plain) return;
    at.own_token = at.tile.token + (first > plain ? first : plain);
    at.own_end = at.tile.token + last + 1;
    const int64_t whole = at.prefix / kColumns * kColumns;
    int64_t shared = whole;
    if (first < plain) {
      const ColumnRange seen = plain_columns(args.p, at.tile.seq_len, at.tile.q_len, plain - 1);
      shared = seen.high > shared ? seen.high : shared;
    }
    at.shared_end = static_cast<int32_t>(ceil_div(shared, kColumns));
    at.all_high = at.all_high < whole ? at.all_high : static_cast<int32_t>(whole);
  }

  LAMINA_DEVICE static void run(const Args& args) {
    dev::wait_for_previous();
    const Work& work = args.work;
    const Parts parts = parts_of(work);
    const int64_t part = dev::block_index().x;
    if (part >= parts.count) return;
    const int64_t end = parts.begin(part + 1);
    int64_t visit = parts.begin(part);
    int32_t index = tile_of(work, dev::load_global(&work.header->tiles), visit);
#pragma unroll 1
    while (true) {
      const Tile tile = load_words(work.tile + index);
      const Place at = place_of(args, tile, visit, end);
      const int64_t next = at.first + at.end;
      load_piece(args, at);
      compute_piece(args);
      if (next == end) return;
      visit = next;
      if (visit == tile.visit + visits_of(work, tile) * args.p.kv_heads) ++index;
      dev::block_sync();  // all warps have read shared memory
    }
  }

  static Status start(const KernelArgs& args, void* stream) {
    return dev::launch<Sm80>({{args.work.parts, 1, 1}, Shape::kSmemBytes}, stream, args);
  }
};

template <Sm80Config kConfig>
CudaKernel sm80_kernel(const char* name) {
  using Kernel = Sm80<kConfig, F16>;
  using Shape = typename Kernel::Shape;
  return {.name = name,
          .arch = 80,
          .rows = kConfig.rows,
          .dim = kConfig.dim,
          .cache = kConfig.cache,
          .blocks_per_sm = kConfig.blocks_per_sm,
          .smem_bytes = Shape::kSmemBytes,
          .slot_floats = int64_t{Shape::kStateWords} * 4 * Shape::kThreads,
          .launch = [](const KernelArgs& args, void* stream) {
            return args.p.q_dtype == DType::kF16 ? Kernel::start(args, stream)
                                                 : Sm80<kConfig, BF16>::start(args, stream);
          }};
}

}  // namespace lamina::paged_attention
