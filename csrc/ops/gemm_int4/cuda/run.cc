#include "ops/gemm_int4/cuda/run.h"

#include "gemm/cuda/half_dtypes.h"

namespace lamina::gemm_int4 {

std::vector<CudaKernel> gemm_int4_kernels();  // CMake writes it from kernels.inc

const CudaOp& cuda_op() {
  static const CudaOp op{"gemm_int4", 2, 0.5, true, 64, gemm_int4_kernels()};
  return op;
}

Status check_cuda(const Params& params) {
  return check_halves("gemm_int4", params.a_dtype, params.w_scale, params.w_zero_point);
}

Status run_cuda(const Params& params, const CudaPlan& plan, void* workspace, void* stream) {
  if (params.problem.m == 0 || params.problem.n == 0) return Status::ok();
  if (reinterpret_cast<uintptr_t>(params.w) % 16 != 0)
    return Status::error("gemm_int4: w must start at a multiple of 16 bytes");
  return launch_product(plan, params, workspace, &launch_reduce, stream);
}

}  // namespace lamina::gemm_int4
