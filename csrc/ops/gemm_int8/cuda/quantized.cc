#include "ops/gemm_int8/cuda/quantized.h"

#include "ops/quantize_int8/cuda/launch.h"

namespace lamina::gemm_int8 {

Status run_quantized_cuda(const QuantizedParams& p, const CudaPlan& plan, void* workspace,
                          void* stream) {
  if (Status status = run_cuda(p.gemm, plan, workspace, stream); !status.is_ok()) return status;
  if (!p.is_static()) return quantize_int8::run_cuda(p.quantize, plan.max_blocks(), stream);
  return p.quantize.m == 0 ? Status::ok() : launch_settle(p.quantize, plan.max_blocks(), stream);
}

}  // namespace lamina::gemm_int8
