// The blocks of columns that a piece of work visits, in order.
//
// A split first visits the columns that its rows share: column c is slot c. With batch_invariant, the nodes that a node of a
// tree sees get columns in the order of its path. Each such token then visits its own blocks, from the block with column
// `prefix` on; other tokens do not see them.
#pragma once

#include "ops/paged_attention/cuda/shape.cuh"

namespace lamina::paged_attention {

template <class Shape>
class Walk {
 public:
  // The blocks of the split.
  LAMINA_DEVICE explicit Walk(const KernelArgs& args) {
    const int32_t low = Shape::at(&Place::any_low) / kColumns;
    const int32_t shared = Shape::at(&Place::shared_end);
    const int32_t begin = Shape::at(&Place::split_begin), end = Shape::at(&Place::split_end);
    block_ = begin > low ? begin : low;
    limit_ = end < shared ? end : shared;
    if (block_ >= limit_) find_own(args, Shape::at(&Place::own_token));
  }

  LAMINA_DEVICE bool is_done() const { return block_ >= limit_; }
  LAMINA_DEVICE int32_t first_column() const { return block_ * kColumns; }
  // Whose own the columns are; -1: shared.
  LAMINA_DEVICE int32_t token() const { return Shape::kHasSplits ? token_ : -1; }
  LAMINA_DEVICE int index() const { return index_; }  // of the block in this walk

  LAMINA_DEVICE void advance(const KernelArgs& args) {
    ++index_;
    if (++block_ < limit_) return;
    find_own(args, token_ < 0 ? Shape::at(&Place::own_token) : token_ + 1);
  }

 private:
  // Goes to the first own block of `token` or of the tokens after it.
  LAMINA_DEVICE void find_own(const KernelArgs& args, int32_t token) {
    if constexpr (!Shape::kHasSplits) return;
    const int32_t own_end = Shape::at(&Place::own_end), prefix = Shape::at(&Place::prefix);
    const int32_t begin = Shape::at(&Place::split_begin), end = Shape::at(&Place::split_end);
    for (; token < own_end; ++token) {
      const int32_t columns = prefix + dev::load_global(args.work.node_counts + token);
      const int32_t first = prefix / kColumns, last = (columns + kColumns - 1) / kColumns;
      token_ = token;
      block_ = begin > first ? begin : first;
      limit_ = end < last ? end : last;
      if (block_ < limit_) return;
    }
    block_ = limit_ = 0;
  }

  int32_t block_, limit_, token_ = -1;
  int index_ = 0;
};

}  // namespace lamina::paged_attention
