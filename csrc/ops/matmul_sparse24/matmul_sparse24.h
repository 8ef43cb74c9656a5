// matmul_sparse24: products with a 2:4 weight, of which each group of four input features keeps two. A weight that is
// not kept takes no part in any sum: it is 0, and NaN or Inf in its activation does not matter.
//
//   matmul_sparse24_int8   gemm_int8 (ops/gemm_int8/gemm_int8.h) of the weight with zeros in place: the same formula,
//                          scales, epilogue and bits
//
// Weights    layout/sparse24_rows.h on a CPU. Blocks of 64 output features are 2:4 or dense; a dense block has the
//            order of the dense op (int8: layout/int8_tile.h)
// Reference  tests/reference/sparse24.py
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/parallel.h"
#include "base/status.h"
#include "ops/gemm_int8/gemm_int8.h"

namespace lamina::matmul_sparse24 {

using namespace gemm;

// A packed weight. Where all blocks are 2:4, block_offset is nullptr and the blocks follow each other.
struct Weight {
  const uint8_t* data = nullptr;
  const int64_t* block_offset =
      nullptr;  // [blocks + 1] in bytes; the size of a block tells its kind
};

struct Int8Params : gemm_int8::Params {  // but w, which is not used
  Weight weight;
};

Status check_int8(const Problem& problem);
Status run(const Int8Params& params, const Parallel& parallel);

// Describes the plan of matmul_sparse24_<weight> on this machine in `text`; weight: "int8".
Status explain(std::string_view weight, const Problem& problem, int threads, std::string& text);

// Every CPU kernel of matmul_sparse24_<weight> in this build.
const CpuOp& int8_op();

}  // namespace lamina::matmul_sparse24
