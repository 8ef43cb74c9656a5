#include "torch/product.h"

#if defined(LAMINA_CUDA_KERNELS)
namespace lamina::interop {

gemm::CudaPlan plan_product(const Accelerator& accelerator, const gemm::CudaOp& op,
                            const gemm::Problem& problem, const gemm::KRule& rule, int max_sms,
                            int a_alignment) {
  const DeviceInfo& device = accelerator.device;
  raise_if_bad(gemm::check_cuda(op.name, problem, device));
  const gemm::Limits limits{a_alignment, max_sms, accelerator.kernel};
  const gemm::CudaPlan plan = gemm::known_plan_cuda(op, problem, rule, device, limits);
  require(plan.kernel.launch != nullptr, "set_cuda_kernel", "name = \"", accelerator.kernel,
          "\": no CUDA kernel of this name for compute capability ", device.compute_capability,
          ", an a whose rows start at multiples of ", a_alignment, " bytes, and ", plan.sms,
          plan.sms == 1 ? " SM" : " SMs", ", ", problem.is_grouped() ? "with" : "without",
          " scales along k");
  return plan;
}

}  // namespace lamina::interop
#endif
