// check -> plan -> compute
#include "gemm/cpu/plan.h"
#include "layout/sparse24_rows.h"
#include "ops/matmul_sparse24/matmul_sparse24.h"

namespace lamina::matmul_sparse24 {

#define LAMINA_CPU_KERNEL(op, isa, value, min_m) CpuKernel op##_##isa(int64_t);
#define LAMINA_CUDA_KERNEL(...)
#include "ops/matmul_sparse24/kernels.inc"
#undef LAMINA_CPU_KERNEL

namespace {

// The kernels of one op, which are named <op>_<isa>, and the bytes of one weight of `bits` bits.
CpuOp op_of(const char* name, int bits) {
  constexpr double kWeights = sparse24_rows::kTileN * sparse24_rows::kTileK;
  CpuOp op{name, sparse24_rows::tile_bytes(bits) / kWeights, {}};
  const CpuKernel all[] = {
#define LAMINA_CPU_KERNEL(op, isa, value, min_m) op##_##isa(min_m),
#include "ops/matmul_sparse24/kernels.inc"
#undef LAMINA_CPU_KERNEL
#undef LAMINA_CUDA_KERNEL
  };
  for (const CpuKernel& kernel : all)
    if (kernel.name == std::string(name) + "_" + std::string(isa_name(kernel.isa)))
      op.kernels.push_back(kernel);
  return op;
}

}  // namespace

const CpuOp& int8_op() {
  static const CpuOp op = op_of("matmul_sparse24_int8", 8);
  return op;
}

Status check_int8(const Problem& problem) {
  if (problem.k % sparse24_rows::kGroupK != 0)
    return Status::error("matmul_sparse24_int8: k = ", problem.k, "; must be a multiple of 4");
  return gemm::check("matmul_sparse24_int8", problem, gemm_int8::kMaxK,
                     "the most for which int32 column sums are exact");
}

Status run(const Int8Params& params, const Parallel& parallel) {
  if (Status status = check_int8(params.problem); !status.is_ok()) return status;
  return gemm::run(int8_op(), params, parallel);
}

Status explain(std::string_view weight, const Problem& problem, int threads, std::string& text) {
  if (weight != "int8")
    return Status::error("explain_matmul_sparse24: weight = \"", weight, "\"; allowed: \"int8\"");
  if (Status status = check_int8(problem); !status.is_ok()) return status;
  return gemm::explain(int8_op(), problem, threads, text);
}

}  // namespace lamina::matmul_sparse24
