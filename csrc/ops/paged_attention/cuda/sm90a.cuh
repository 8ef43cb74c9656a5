// paged_attention / sm90a:   the formula of paged_attention.h, for many rows of f16 and bf16 queries
//
// Algorithm  parts, tiles and online softmax as in sm80.cuh. A producer warpgroup fills the ring; each math warpgroup has
//            64 rows of the tile. While it turns the scores of a block into weights, its products of the block before
//            with values are in flight. Named barriers make the warpgroups start their products in turn, so one
//            multiplies while the other computes weights
// Layouts    q [tokens, heads, head_dim] with any strides; caches: kv/cache.h; the ring: sm90a_shape.cuh
// Data path  gmem -TMA or cp.async-> smem ring -> wgmma's shared operand: keys times queries (registers; smem for
//            head_dim > 128) -> scores -> weights (registers) -> times values -> f32 -> out
//            caches of one byte an element: gmem -cp.async-> smem tiles -> 16-bit floats -> smem ring
// Order      a score sums head_dim in steps of 16; a block of columns has one maximum; weights are summed in f32 and,
//            rounded to 16 bits, multiplied with values in steps of 16 columns
// Budget     regs <= 168; 0 spills; 0 bank conflicts in the ring (layout/swizzle.h)
//            requires SASS: HGMMA, LDGSTS
// Requires   no alignment, as in sm80.cuh
// Source     own; the roles of warps and the order of products as in FlashAttention-3 (arXiv:2407.08608)
// Reference  tests/reference/paged_attention.py
#pragma once

#include "block/reduce.cuh"
#include "device/registers.h"
#include "ops/paged_attention/cuda/pieces.cuh"
#include "ops/paged_attention/cuda/run.h"
#include "ops/paged_attention/cuda/sm90a_bytes.cuh"
#include "ops/paged_attention/cuda/sm90a_producer.cuh"
#include "ops/paged_attention/cuda/sm90a_products.cuh"
#include "ops/paged_attention/cuda/specials.cuh"

namespace lamina::paged_attention {

template <Sm90aConfig kConfig, class Query>
struct Sm90a {
  using Shape = Sm90aShape<kConfig, Query>;
  using State = typename Shape::State;
  using Multiply = Sm90aProducts<Shape>;
  using Weigh = Softmax<Shape>;
  using Rows = TileRows<Shape>;
  using Special = Specials<Shape>;
  using Piece = Pieces<Shape>;
  using Producer =
      std::conditional_t<Shape::kIsQuantized, Sm90aByteProducer<Shape>, Sm90aProducer<Shape>>;
  using Cursor = typename Producer::Cursor;

  using Args = Sm90aArgs;
  static constexpr const char* kName = "paged_attention_sm90a";
  static constexpr int kThreads = Shape::kThreads + Shape::kLoadWarps * dev::kWarpLanes;
  static constexpr int kMinBlocks = 1;
  // The producer warpgroup hands registers to the math warpgroups. Widening short rows of bytes needs more of them.
  static constexpr int kHanded = Shape::kIsQuantized && Shape::kDim <= 128 ? 56 : 64;
  static constexpr int kMathRegisters = 168 + kHanded, kProducerRegisters = 168 - 2 * kHanded;
  static_assert(dev::owns_registers(Shape::kThreads, kMathRegisters, kThreads - Shape::kThreads,
                                    kProducerRegisters));

  LAMINA_DEVICE static void wait_full(const Cursor& cursor) {
    dev::mbarrier_wait(&Shape::barriers().full[cursor.stage], cursor.parity);
  }
  // Frees a stage; the next stage of keys or of values is the next but one.
  LAMINA_DEVICE static void release(Cursor& cursor) {
    arrive_in_cluster<1>(&Shape::barriers().empty[cursor.stage]);
    cursor.advance();
    cursor.advance();
  }

  // Keys and values are in every other stage.
  struct Stages {
    Cursor keys, values;
    LAMINA_DEVICE static Stages first() {
      Stages stages;
      stages.values.advance();
      return stages;
    }
  };

  // Scores of a block of columns to weights, in f32, whose sums the state gets. If each column's values have a scale, the weights
  // are multiplied by it after that.
  LAMINA_DEVICE static typename Weigh::Growth weigh(const Args& args, const ScoreRule& rule,
                                                    const Walk<Shape>& walk,
                                                    typename Multiply::Scores& scores,
                                                    State& state) {
    if (!rule.is_plain)
      Weigh::transform(args, rule, walk, Shape::scales_of(0, walk.index()), scores);
    if (walk.first_column() < Shape::at(&Place::all_low) ||
        Shape::at(&Place::all_high) - walk.first_column() < kColumns)
      Weigh::mask(args, walk, scores);
    float maxima[1][2];
    Weigh::find_maxima(scores, maxima);
    const auto growth = Weigh::raise_exponents(maxima, rule.factor, state);
    Weigh::grow_weights(growth, state);
    if (Shape::kAlwaysScales || (Shape::kIsQuantized && args.p.v_scale.is_per_token())) {
      raise_to_powers<true>(rule.factor, Shape::scales_of(0, walk.index()), scores, state);
    } else {
      raise_to_powers<false>(rule.factor, 0, scores, state);
    }
    return growth;
  }
  // A column that a row does not see may have any scale, and so may one whose score is -inf.
  template <bool kHasScales>
  LAMINA_DEVICE static void raise_to_powers(float factor, int scales,
                                            typename Multiply::Scores& scores, State& state) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float exponent = -Weigh::finite(state.exponent[0][e / 2]);
      float& sum = state.weights[0][e];
#pragma unroll
      for (int n = 0; n < Shape::kTilesColumn; ++n) {
        float& score = scores[0][n][e];
        const float weight = dev::exp2_approx(std::fma(score, factor, exponent));
        sum = sum + weight;
        if constexpr (kHasScales) {
          const float scale =
              dev::load_shared(Shape::scales(scales, true) + Weigh::column_of(n, e));
          score = score == -kInfinity ? 0.0f : weight * scale;
        } else {
          score = weight;
        }
      }
    }
  }

  // Math warpgroups start their products in turn, so that the products of one run while scores of another become weights.
  struct Turn {
    LAMINA_DEVICE static int mine() { return dev::warp() / Shape::kWarpgroupWarps; }
    LAMINA_DEVICE static void begin() { dev::barrier_sync(kFirst + mine(), kTwoThreads); }
    LAMINA_DEVICE static void end() { pass(mine() + 1 == Shape::kWarpgroups ? 0 : mine() + 1); }
    // The first warpgroup begins. Each turn that ends lets another begin, also that of a later piece.
    LAMINA_DEVICE static void start() {
      if (mine() == Shape::kWarpgroups - 1) pass(0);
    }

   private:
    static constexpr int kFirst = 2;  // named barriers; 0 and 1 are others
    static constexpr int kTwoThreads = 2 * Shape::kWarpgroupWarps * dev::kWarpLanes;
    LAMINA_DEVICE static void pass(int warpgroup) {
      dev::barrier_arrive(kFirst + warpgroup, kTwoThreads);
    }
  };

  // Waits for the values of a block of columns. Special ones are added to the state, if rows of this warpgroup see any of
  // the block, and become zeros.
  template <bool kSeesSome>
  LAMINA_DEVICE static void wait_values(const Args& args, const Walk<Shape>& block,
                                        const Cursor& cursor,
                                        const typename Multiply::Weights& weights, State& state) {
    wait_full(cursor);
    if (!Special::may_matter(block)) return;
    const int stage = cursor.stage * Shape::kTileBytes;
    auto* const flags = reinterpret_cast<int32_t*>(Shape::smem(Shape::kFlagAt));
    Shape::sync();  // all threads have read the flags of the block before
    if (!any_of_block<Shape::kWarps>(Special::are_there(stage), flags, Shape::sync)) return;
    if constexpr (kSeesSome) Special::add(args, block, stage, weights, state);
    Shape::sync();
    Special::clear(stage);
    dev::fence_proxy_async();
    Shape::sync();
  }

  // The column from which on the rows of this warpgroup see nothing. It stays in shared memory: the loop over columns has no
  // register for it.
  LAMINA_DEVICE static int32_t* end_column() {
    return reinterpret_cast<int32_t*>(Shape::smem(Shape::kEndsAt)) +
           dev::warp() / Shape::kWarpgroupWarps;
  }
  LAMINA_DEVICE static void find_end_column() {
    if (dev::thread_index() % (Shape::kWarpgroupWarps * dev::kWarpLanes) != 0) return;
    const int32_t first = dev::warp() / Shape::kWarpgroupWarps * Shape::kWarpgroupRows;
    const int32_t rows = Shape::at(&Place::rows), last = first + Shape::kWarpgroupRows - 1;
    const int32_t row = rows - 1 < last ? rows - 1 : last;
    const auto info = [&](RowMember member) {
      return dev::load_shared(Rows::members(static_cast<int>(member)) + row);
    };
    // Plain tokens come before nodes, and no token sees less than the one before it.
    const bool is_node = row >= first && info(RowMember::kToken) >= 0;
    dev::store_shared(end_column(), row < first ? 0 : is_node ? INT32_MAX : info(RowMember::kHigh));
  }

  // Whether the rows of this warpgroup see nothing from this block on. Tiles of the largest head_dim have not even registers
  // for the question: they compute all blocks.
  LAMINA_DEVICE static bool is_past(const Walk<Shape>& block) {
    return Shape::kDim <= 192 && block.first_column() >= dev::load_shared(end_column());
  }

  // state = the result over the columns of the piece.
  LAMINA_DEVICE static void attend(const Args& args, const ScoreRule& rule,
                                   const typename Multiply::Queries& queries, Stages& stages,
                                   State& state) {
    Results<Shape>::clear(state);
    Walk<Shape> block(args);
    if (!block.is_done() && !is_past(block))
      attend_blocks(args, rule, queries, stages, block, state);
    add_sums(state);
    for (; !block.is_done(); block.advance(args)) pass_block(args, block, stages, state);
  }

  // Leaves a block of columns of which the rows of this warpgroup see nothing to the other warpgroup.
  LAMINA_DEVICE static void pass_block(const Args& args, const Walk<Shape>& block, Stages& stages,
                                       State& state) {
    wait_full(stages.keys);
    if (block.index() > 0) {  // the first keys of a piece have no turn
      Turn::begin();
      Turn::end();
    }
    release(stages.keys);
    constexpr typename Multiply::Weights kNone = {};
    wait_values<false>(args, block, stages.values, kNone, state);
    release(stages.values);
  }

  // The blocks before the end column, at least one. Leaves `block` behind them.
  LAMINA_DEVICE static void attend_blocks(const Args& args, const ScoreRule& rule,
                                          const typename Multiply::Queries& queries, Stages& stages,
                                          Walk<Shape>& block, State& state) {
    typename Multiply::Scores scores = {};
    typename Multiply::Weights weights;
    wait_full(stages.keys);
    Multiply::start_keys(stages.keys.stage, queries, scores);
    end_keys<0>(stages.keys, scores);
    weigh(args, rule, block, scores, state);
    Multiply::round(scores, weights);
#pragma unroll 1
    while (true) {
      wait_values<true>(args, block, stages.values, weights, state);
      block.advance(args);
      if (block.is_done() || is_past(block)) {
        Multiply::start_values(stages.values.stage, weights, state);
        end_values(stages.values, weights, state);
        return;
      }
      wait_full(stages.keys);
      Turn::begin();
      Multiply::start_keys(stages.keys.stage, queries, scores);
      Multiply::start_values(stages.values.stage, weights, state);
      Turn::end();
      end_keys<1>(stages.keys, scores);
      const auto growth = weigh(args, rule, block, scores, state);
      end_values(stages.values, weights, state);
      if (growth.is_needed) Weigh::grow_values(growth, state);
      Multiply::round(scores, weights);
    }
  }

  // The elements of a row and the four lanes that share the row have each added the weights of their columns.
  LAMINA_DEVICE static void add_sums(State& state) {
#pragma unroll
    for (int e = 0; e < 4; e += 2) {
      float sum = state.weights[0][e] + state.weights[0][e + 1];
      sum = sum + dev::shuffle_xor(sum, 1);
      sum = sum + dev::shuffle_xor(sum, 2);
      state.weights[0][e] = state.weights[0][e + 1] = sum;
    }
  }

  // kYounger: groups of wgmmas that were started after the products with the keys.
  template <int kYounger>
  LAMINA_DEVICE static void end_keys(Cursor& cursor, typename Multiply::Scores& scores) {
    dev::wgmma_wait<kYounger>();
    dev::wgmma_fence_registers(Multiply::flat(scores));
    release(cursor);
  }
  LAMINA_DEVICE static void end_values(Cursor& cursor, typename Multiply::Weights& weights,
                                       State& state) {
    dev::wgmma_wait<0>();
    dev::wgmma_fence_registers(Multiply::flat(state.values));
#pragma unroll
    for (int s = 0; s < kColumns / 16; ++s) dev::wgmma_fence_registers(weights[0][s]);
    release(cursor);
  }

  LAMINA_DEVICE static void produce(const Args& args) {
    Producer producer;
    Piece::for_each(args, [&](const Place&) {
      dev::block_sync();  // the place is in shared memory
      producer.fill(args);
    });
  }

  LAMINA_DEVICE static void consume(const Args& args) {
    Stages stages = Stages::first();
    Turn::start();
    Piece::for_each(args, [&](const Place& at) {
      if (dev::thread_index() == 0) store_shared_words(Shape::place(), at);
      Rows::load_queries(args, at);
      dev::cp_async_commit();
      Rows::load_infos(args, at);
      dev::block_sync();
      find_end_column();
      dev::cp_async_wait<0>();
      if constexpr (!Shape::kKeepsQueries) dev::fence_proxy_async();
      Shape::sync();
      typename Multiply::Queries queries;
      Multiply::load_queries(queries);
      const ScoreRule rule = ScoreRule::of<Shape>(args.p);
      Piece::compute(args, [&](State& state) { attend(args, rule, queries, stages, state); });
    });
  }

  LAMINA_DEVICE static void run(const Args& args) {
    dev::wait_for_previous();
    Line<Shape>::load(args.work);
    if (dev::thread_index() == Shape::kThreads) {
      for (int s = 0; s < Shape::kStages; ++s) {
        dev::mbarrier_init(&Shape::barriers().full[s], Shape::kLoadWarps);
        dev::mbarrier_init(&Shape::barriers().empty[s], Shape::kWarps);
      }
      dev::fence_mbarrier_init();
    }
    dev::block_sync();
    const int warp =
        dev::shuffle(dev::warp(), 0);  // tells the compiler that the warp index is uniform
    if (warp < Shape::kWarps) {
      dev::raise_registers<kMathRegisters>();
      consume(args);
    } else {
      dev::lower_registers<kProducerRegisters>();
      produce(args);
    }
  }

  static Status start(const KernelArgs& common, void* stream) {
    Args args{common, {}, {}, 0};
    if constexpr (!Shape::kIsQuantized)
      if (Status status = add_boxes(Producer::kRows, args); !status.is_ok()) return status;
    return dev::launch<Sm90a>({{args.work.blocks, 1, 1}, Shape::kSmemBytes, 1, args.overlaps},
                              stream, args);
  }
};

template <Sm90aConfig kConfig>
CudaKernel sm90a_kernel(const char* name) {
  using Kernel = Sm90a<kConfig, F16>;
  using Shape = typename Kernel::Shape;
  return {.name = name,
          .arch = 90,
          .rows = kConfig.rows,
          .dim = kConfig.dim,
          .cache = kConfig.cache,
          .blocks_per_sm = 1,
          .smem_bytes = Shape::kSmemBytes,
          .slot_floats = int64_t{Shape::kStateWords} * 4 * Shape::kThreads,
          .launch = [](const KernelArgs& args, void* stream) {
            return args.p.q_dtype == DType::kF16 ? Kernel::start(args, stream)
                                                 : Sm90a<kConfig, BF16>::start(args, stream);
          }};
}

}  // namespace lamina::paged_attention
