// A weight [n, k] with blocks of dense rows among its 2:4 rows. Its packed 2:4 rows follow each other, and so do its
// packed dense rows. A block is computed like a weight of its own, whose operands and result are part of those of the
// whole weight.
#pragma once

#include <cstddef>
#include <span>

#include "base/status.h"
#include "layout/sparse24_rows.h"
#include "ops/matmul_sparse24/matmul_sparse24.h"

namespace lamina::matmul_sparse24 {

// Rows begin..end, all dense or all 2:4. tile: the number of the first among the packed tiles of 16 rows of its kind.
struct RowBlock {
  int64_t begin, end;
  bool is_dense;
  int64_t tile;
};

// bounds: the begin and the end of each dense block, in order. A block begins at a multiple of 64, which is a strip of
// the widest CPU kernel, and ends at one or at n.
inline Status check_row_blocks(const char* op, int64_t n, std::span<const int64_t> bounds) {
  constexpr int kBlockN = sparse24_rows::kBlockN;
  int64_t least = 0;
  for (size_t i = 0; i < bounds.size(); ++i) {
    const int64_t at = bounds[i];
    const bool is_cut = at % kBlockN != 0 && !(i % 2 == 1 && at == n);
    if (at < least || at > n || is_cut)
      return Status::error(op, ": dense_rows[", i, "] = ", at, "; must be from ", least, " to ", n,
                           " and a multiple of ", kBlockN, ", or n where a block ends");
    least = at + 1 - static_cast<int64_t>(i % 2);
  }
  if (bounds.size() % 2 == 0) return Status::ok();
  return Status::error(op, ": dense_rows has ", bounds.size(),
                       " entries; must have a begin and an end of each block");
}

constexpr int64_t count_dense_rows(std::span<const int64_t> bounds) {
  int64_t count = 0;
  for (size_t i = 0; i + 1 < bounds.size(); i += 2) count += bounds[i + 1] - bounds[i];
  return count;
}

// Calls body(block) for the blocks of 2:4 and of dense rows, in the order of the rows.
template <class Body>
void for_row_blocks(int64_t n, std::span<const int64_t> bounds, const Body& body) {
  int64_t tiles[2] = {}, begin = 0;
  for (size_t i = 0; i <= bounds.size(); ++i) {
    const int64_t end = i < bounds.size() ? bounds[i] : n;
    const bool is_dense = i % 2 == 1;
    if (begin < end) body(RowBlock{begin, end, is_dense, tiles[is_dense]});
    tiles[is_dense] += sparse24_rows::tiles_n(end - begin);
    begin = end;
  }
}

// Moves an operand to output feature j, if the operand is given.
inline void advance(Operand& operand, int64_t j) {
  if (operand.is_given())
    operand.data = static_cast<const std::byte*>(operand.data) + j * size_bytes(operand.dtype);
}
inline void advance(Broadcast<float>& scale, int64_t j) { scale.data += j * scale.stride; }
inline void advance(GroupTensor& groups, int64_t j) {
  if (groups.is_given())
    groups.data =
        static_cast<const std::byte*>(groups.data) + j * groups.stride * groups.element_bytes();
}

// The params of the rows of a block, but for the weight, which stays that of all rows. out is not int8.
template <class Params>
Params params_of(Params params, const RowBlock& block) {
  const int64_t j = block.begin;
  params.problem.n = block.end - j;
  Operand bias{params.bias, 0, params.bias_dtype};
  advance(bias, j);
  params.bias = bias.data;
  advance(params.gate, j);
  advance(params.residual, j);
  params.out = static_cast<std::byte*>(params.out) + j * size_bytes(params.out_dtype);
  advance(params.w_scale, j);
  if constexpr (requires { params.w_sums; }) params.w_sums += j;
  if constexpr (requires { params.w_zero_point; }) advance(params.w_zero_point, j);
  return params;
}

}  // namespace lamina::matmul_sparse24
