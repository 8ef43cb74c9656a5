// A product on a GPU, for the bindings of all products: its plan, its workspace, its plan as text.
#pragma once

#include <string>

#include "torch/accelerator.h"
#include "torch/interop.h"

#if defined(LAMINA_WITH_CUDA) || defined(LAMINA_TWIN)
#define LAMINA_CUDA_KERNELS
#include "gemm/cuda/plan.h"
#endif

namespace lamina::interop {

#if defined(LAMINA_CUDA_KERNELS)

// The plan of a call, made once a thread. Raises an error where the kernel that set_cuda_kernel() names cannot compute it.
gemm::CudaPlan plan_product(const Accelerator& accelerator, const gemm::CudaOp& op,
                            const gemm::Problem& problem, const gemm::KRule& rule, int max_sms,
                            int a_alignment = 16);

// The arguments of explain_<op>_cuda. `name` is that op, for its errors.
struct DescribedCall {
  const char* name;
  int64_t compute_capability, sm_count;
  std::optional<int64_t> max_sms;
};

// The plan for a checked problem on a device that need not be here, as text. workspace_bytes(plan): all that a call needs.
template <class WorkspaceBytes>
std::string explain_product(const DescribedCall& call, const gemm::CudaOp& op,
                            const gemm::Problem& problem, const gemm::KRule& rule,
                            const WorkspaceBytes& workspace_bytes) {
  gemm::Limits limits;
  limits.max_sms = checked_sms(call.name, call.max_sms);
  const DeviceInfo device = described_device(call.name, call.compute_capability, call.sm_count);
  raise_if_bad(gemm::check_cuda(op.name, problem, device));
  const gemm::CudaPlan plan = gemm::plan_cuda(op, problem, rule, device, limits);
  return plan.describe(op, problem, device, workspace_bytes(plan));
}

#else

// accelerator_of() has refused every call on a GPU before.
template <class... Arguments>
[[noreturn]] void run_on(const Accelerator&, const Arguments&...) {
  fail("lamina", "no CUDA kernel is built");
}
inline std::string explain_cuda(int64_t, int64_t, int64_t, int64_t, int64_t, std::optional<int64_t>,
                                std::optional<int64_t>) {
  fail("explain", "no CUDA kernel is built");
}

#endif

}  // namespace lamina::interop
