// The producer warps of paged_attention on sm_90a: they fill the stages of the ring.
//
// Each warp fills its rows of every stage. A warp whose rows lie in a box of slots that query rows see leaves them to TMA: the warp
// with the first row of the box loads it. Other rows are copied (loads.cuh): those past the end of a request, which must be
// zeros, and all where the pages or the strides allow no boxes. Copies make a stage full for its readers only kAhead stages
// later, when they have landed: wgmma reads shared memory through another proxy than the copies write it, so the threads that
// copied must wait for their copies and then pass a fence.
#pragma once

#include "block/cluster.cuh"
#include "block/ring.cuh"
#include "ops/paged_attention/cuda/loads.cuh"
#include "ops/paged_attention/cuda/sm90a_boxes.h"

namespace lamina::paged_attention {

template <class Shape>
class Sm90aProducer {
 public:
  using Cursor = RingCursor<Shape::kStages>;
  static constexpr int kRows = Loads<Shape>::kRows;

  // Fills stages with the keys and values of a piece.
  LAMINA_DEVICE void fill(const Sm90aArgs& args) {
    Loads<Shape> loads(args);
#pragma unroll 1
    while (!loads.is_done()) {
      const bool is_boxed = args.box_slots > 0 && loads.sees_all(args.box_slots);
      if (is_boxed) finish_copies();
      wait_empty();
      const Spot at = loads.take_block();
      if (is_boxed) {
        load_boxes(args.keys, args.box_slots, at);
        wait_empty();
        load_boxes(args.values, args.box_slots, at);
      } else {
        loads.copy_keys(at, next_.stage);
        pass_copies();
        wait_empty();
        loads.copy_values(next_.stage);
        pass_copies();
      }
    }
    finish_copies();
  }

 private:
  using Spot = typename Loads<Shape>::Spot;
  static constexpr int kAhead = Shape::kAhead;
  static_assert(kAhead + 3 <= Shape::kStages);

  LAMINA_DEVICE void wait_empty() const {
    // The ring starts empty: the phase before the first counts as done.
    dev::mbarrier_wait(&Shape::barriers().empty[next_.stage], next_.parity ^ 1);
  }

  LAMINA_DEVICE static void make_full(int stage) {
    arrive_in_cluster<1>(&Shape::barriers().full[stage]);
  }
  // The stage `count` before the next.
  LAMINA_DEVICE int stage_before(int count) const {
    return next_.stage < count ? next_.stage + Shape::kStages - count : next_.stage - count;
  }

  LAMINA_DEVICE void pass_copies() {
    dev::cp_async_commit();
    if (under_way_ < kAhead) {
      ++under_way_;
    } else {
      dev::cp_async_wait<kAhead>();
      dev::fence_proxy_async();
      make_full(stage_before(kAhead));
    }
    next_.advance();
  }

  LAMINA_DEVICE void finish_copies() {
    if (under_way_ == 0) return;
    dev::cp_async_wait<0>();
    dev::fence_proxy_async();
    for (; under_way_ > 0; --under_way_) make_full(stage_before(under_way_));
  }

  // Loads the boxes whose first row is this warp's; `at` is where that row lies in the cache.
  LAMINA_DEVICE void load_boxes(const dev::TensorMap& map, int slots, const Spot& at) {
    const int row = Loads<Shape>::first_row();
    if (dev::lane() == 0 && (row & (slots - 1)) == 0) {
      dev::MBarrier* const full = &Shape::barriers().full[next_.stage];
      dev::mbarrier_expect_tx(full, Shape::kBoxes * slots * Shape::kRunBytes);
      const int first = next_.stage * Shape::kTileBytes + row * Shape::kRunBytes;
#pragma unroll
      for (int b = 0; b < Shape::kBoxes; ++b)
        dev::tma_load<4>(Shape::smem(first + b * Shape::kBoxBytes), &map, full,
                         {b * kBoxElements, at.slot, Shape::at(&Place::head), at.page});
    }
    make_full(next_.stage);
    next_.advance();
  }

  Cursor next_;
  int under_way_ = 0;  // stages before the next whose copies have not been waited for
};

}  // namespace lamina::paged_attention
