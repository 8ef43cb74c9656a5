// check -> plan -> compute
#include "base/built_isas.h"
#include "gemm/cpu/plan.h"
#include "layout/sparse24_rows.h"
#include "ops/matmul_sparse24/matmul_sparse24.h"

namespace lamina::matmul_sparse24 {

#define LAMINA_CPU_KERNEL(op, isa, value, min_m) \
  LAMINA_IF_BUILT(isa, extern const CpuKernel op##_##isa;)
#define LAMINA_CUDA_KERNEL(...)
#include "ops/matmul_sparse24/kernels.inc"
#undef LAMINA_CPU_KERNEL

namespace {

// The kernels of one op, which are named <op>_<isa>, and the bytes of one weight of `bits` bits.
CpuOp op_of(const char* name, int bits) {
  constexpr double kWeights = sparse24_rows::kTileN * sparse24_rows::kTileK;
  CpuOp op{name, sparse24_rows::tile_bytes(bits) / kWeights, {}};
  const CpuKernel all[] = {
#define LAMINA_CPU_KERNEL(op, isa, value, min_m) \
  LAMINA_IF_BUILT(isa, with_min_m(op##_##isa, min_m), )
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

const CpuOp& int4_op() {
  static const CpuOp op = op_of("matmul_sparse24_int4", 4);
  return op;
}

const CpuOp& int4_int8_op() {
  static const CpuOp op = op_of("matmul_sparse24_int4_int8", 4);
  return op;
}

const CpuOp& float_op() {
  static const CpuOp op = op_of("matmul_sparse24", 16);
  return op;
}

namespace {

Status check_k(const char* op, const Problem& problem) {
  if (problem.k % sparse24_rows::kGroupK == 0) return Status::ok();
  return Status::error(op, ": k = ", problem.k, "; must be a multiple of 4");
}

}  // namespace

Status check_int8(const Problem& problem) {
  constexpr const char* kOp = "matmul_sparse24_int8";
  if (Status status = check_k(kOp, problem); !status.is_ok()) return status;
  return gemm::check(kOp, problem, gemm_int8::kMaxK,
                     "the most for which int32 column sums are exact");
}

Status check_int4(const Problem& problem) {
  constexpr const char* kOp = "matmul_sparse24_int4";
  if (Status status = check_k(kOp, problem); !status.is_ok()) return status;
  return gemm::check_int4(kOp, problem, INT64_MAX, "");
}

Status check_int4_int8(const Problem& problem) {
  constexpr const char* kOp = "matmul_sparse24_int4_int8";
  if (Status status = check_k(kOp, problem); !status.is_ok()) return status;
  return gemm::check_int4(kOp, problem, gemm_int4_int8::kMaxK,
                          "the most for which the int32 sums of a group are exact");
}

Status check_float(const Problem& problem) {
  constexpr const char* kOp = "matmul_sparse24";
  if (Status status = check_k(kOp, problem); !status.is_ok()) return status;
  return gemm::check(kOp, problem, kLargestK, "the most for which sizes fit int64");
}

Status run(const Int8Params& params, const Parallel& parallel) {
  if (Status status = check_int8(params.problem); !status.is_ok()) return status;
  return gemm::run(int8_op(), params, parallel);
}

Status run(const Int4Params& params, const Parallel& parallel) {
  if (Status status = check_int4(params.problem); !status.is_ok()) return status;
  if (Status status = check("matmul_sparse24_int4", params.perm, params.problem.k); !status.is_ok())
    return status;
  return gemm::run(int4_op(), params, parallel);
}

Status run(const Int4Int8Params& given, void* workspace, const Parallel& parallel) {
  Int4Int8Params params = given;
  const Problem& p = params.problem;
  if (Status status = check_int4_int8(p); !status.is_ok()) return status;
  if (Status status = check("matmul_sparse24_int4_int8", params.perm, p.k); !status.is_ok())
    return status;
  if (Status status = gemm_int4_int8::quantize_floats(params, workspace, parallel); !status.is_ok())
    return status;
  return gemm::run(int4_int8_op(), params, parallel);
}

Status run(const FloatParams& params, const Parallel& parallel) {
  if (Status status = check_float(params.problem); !status.is_ok()) return status;
  return gemm::run(float_op(), params, parallel);
}

Status explain(std::string_view op, const Problem& problem, int threads, std::string& text) {
  struct Known {
    const CpuOp& op;
    Status (*check)(const Problem&);
  };
  for (const Known& known :
       {Known{int8_op(), check_int8}, Known{int4_op(), check_int4},
        Known{int4_int8_op(), check_int4_int8}, Known{float_op(), check_float}})
    if (op == known.op.name) {
      if (Status status = known.check(problem); !status.is_ok()) return status;
      return gemm::explain(known.op, problem, threads, text);
    }
  return Status::error("explain_matmul_sparse24: op = \"", op,
                       "\"; allowed: \"matmul_sparse24\", \"matmul_sparse24_int8\", "
                       "\"matmul_sparse24_int4\", \"matmul_sparse24_int4_int8\"");
}

}  // namespace lamina::matmul_sparse24
