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
#include "ops/paged_attention/cuda/pieces.cuh"
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
    // of_values: what this stage has. A stage kStages - 1 later has the same if kStages is odd.
    template <bool of_values>
    LAMINA_DEVICE void wait_and_refill(Loads<Shape>& loads) const {
      dev::cp_async_wait<Shape::kStages - 2>();
      dev::block_sync();  // the stage has arrived for all, and the stage before it is free
      const int free = stage == 0 ? Shape::kStages - 1 : stage - 1;
      if constexpr (of_values == (Shape::kStages % 2 == 1)) {
        loads.start_values(free);
      } else {
        loads.start_keys(free);
      }
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
    for (int s = 0; s < Shape::kStages - 1; s += 2) {
      loads.start_keys(s);
      if (s + 1 < Shape::kStages - 1) loads.start_values(s + 1);
    }
    Ring ring;
    const bool has_rows = Shape::has_rows();
#pragma unroll 1
    for (Walk<Shape> walk(args); !walk.is_done(); walk.advance(args)) {
      ring.template wait_and_refill<false>(loads);
      typename Multiply::Scores scores;
      float maxima[Shape::kTilesM][2];
      if (has_rows) {
        Multiply::multiply_keys(ring.current(), queries, scores);
        if (!rule.is_plain) Weigh::transform(args, rule, walk, ring.stage, scores);
        if (walk.token() >= 0 || walk.first_column() < Shape::at(&Place::all_low) ||
            Shape::at(&Place::all_high) - walk.first_column() < kColumns)
          Weigh::mask(args, walk, scores);
        Weigh::find_maxima(scores, maxima);
      }
      if constexpr (Shape::kWarpsN > 1) dev::block_sync();
      typename Multiply::Weights weights, scaled;
      if (has_rows) {
        Weigh::find_maxima_of_warps(maxima);
        Weigh::raise(maxima, rule.factor, state);
        Weigh::weigh(scores, rule.factor, state, ring.stage, has_scales, weights, scaled);
        if constexpr (Shape::kWarpsN > 1) {
          Multiply::store_weights(weights, Shape::kWeightsAt);
          if constexpr (Shape::kIsQuantized)
            if (has_scales)
              Multiply::store_weights(scaled, Shape::kWeightsAt + Shape::kWeightBytes);
        }
      }
      ring.advance();
      ring.template wait_and_refill<true>(loads);
      const bool specials = has_specials(walk, ring.current());
      if (has_rows) {
        if (specials) Special::add(args, walk, ring.current(), weights, state);
        Multiply::multiply_values(ring.current(), weights, scaled, has_scales, specials, state);
      }
      ring.advance();
    }
    dev::cp_async_wait<0>();
  }

  LAMINA_DEVICE static void load_piece(const Args& args, const Place& at) {
    Rows::load_queries(args, at);
    Rows::load_infos(args, at);
    if (dev::thread_index() == 0) store_shared_words(Shape::place(), at);
    dev::cp_async_commit();
    dev::cp_async_wait<0>();
    dev::block_sync();
    if constexpr (Shape::kIsQuantized) {
      Multiply::permute_queries();
      dev::block_sync();
    }
  }

  LAMINA_DEVICE static void run(const Args& args) {
    dev::wait_for_previous();
    Line<Shape>::load(args.work);
    dev::block_sync();
    Pieces<Shape>::for_each(args, [&](const Place& at) {
      load_piece(args, at);
      typename Multiply::Queries queries;
      Multiply::load_queries(queries);
      const ScoreRule rule = ScoreRule::of<Shape>(args.p);
      Pieces<Shape>::compute(args, [&](State& state) { attend(args, rule, queries, state); });
    });
  }

  static Status start(const KernelArgs& args, void* stream) {
    return dev::launch<Sm80>({{args.work.blocks, 1, 1}, Shape::kSmemBytes, 1, args.overlaps},
                             stream, args);
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
