#include "ops/gemm_int8/cuda/run.h"

#include "ops/quantize_int8/quantize_int8.h"

namespace lamina::gemm_int8 {

std::vector<CudaKernel> gemm_int8_kernels();  // CMake writes both from kernels.inc
std::vector<CudaKernel> gemm_int8_grouped_kernels();

const CudaOp& cuda_op(bool is_grouped) {
  static const CudaOp plain{"gemm_int8", 1, 1, false, 16, gemm_int8_kernels()};
  static const CudaOp grouped{"gemm_int8", 1, 1, false, 16, gemm_int8_grouped_kernels()};
  return is_grouped ? grouped : plain;
}

Status run_cuda(const Params& params, const CudaPlan& plan, void* workspace, void* stream) {
  if (params.problem.m == 0 || params.problem.n == 0) return Status::ok();
  if (reinterpret_cast<uintptr_t>(params.w) % 16 != 0)
    return Status::error("gemm_int8: w must start at a multiple of 16 bytes");
  return launch_product(plan, params, workspace, &launch_reduce, stream);
}

Status run_quantized_cuda(const QuantizedParams& p, const CudaPlan& plan, void* workspace,
                          void* stream) {
  if (Status status = run_cuda(p.gemm, plan, workspace, stream); !status.is_ok()) return status;
  if (!p.is_static()) return quantize_int8::run_cuda(p.quantize, plan.max_blocks(), stream);
  return p.quantize.m == 0 ? Status::ok()
                           : launch_mark_nan_rows(p.quantize, plan.max_blocks(), stream);
}

}  // namespace lamina::gemm_int8
