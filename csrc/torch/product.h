// Functions for the GPU bindings of all products: the plan of a call, and the plan as text.
#pragma once

#include <string>

#include "torch/accelerator.h"
#include "torch/interop.h"

#if defined(LAMINA_WITH_CUDA) || defined(LAMINA_EMULATOR)
#define LAMINA_CUDA_KERNELS
#include "gemm/cuda/plan.h"
#endif

namespace lamina::interop {

#if defined(LAMINA_CUDA_KERNELS)

// The plan of a call, kept by each thread. Raises an error if set_cuda_kernel() forces a kernel that cannot compute
// the call.
gemm::CudaPlan plan_product(const Accelerator& accelerator, const gemm::CudaOp& op,
                            const gemm::Problem& problem, const gemm::KRule& rule, int max_sms,
                            int a_alignment = 16);

// The arguments of explain_<op>_cuda. name: that op, for error messages.
struct DescribedCall {
  const char* name;
  int64_t compute_capability, sm_count;
  std::optional<int64_t> max_sms;
};

// The plan for a checked problem as text; the machine need not have the device. workspace_bytes(plan): the whole
// workspace of a call.
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

// Never called: accelerator_of() refuses every call on a GPU first.
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
