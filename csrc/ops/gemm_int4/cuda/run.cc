#include "ops/gemm_int4/cuda/run.h"

namespace lamina::gemm_int4 {

std::vector<CudaKernel> gemm_int4_kernels();  // CMake writes it from kernels.inc

namespace {

const char* name_of(DType dtype) {
  return dtype == DType::kF32 ? "float32" : dtype == DType::kF16 ? "float16" : "bfloat16";
}

const char* name_of(GroupTensor::Kind kind) {
  using Kind = GroupTensor::Kind;
  return kind == Kind::kU8    ? "uint8"
         : kind == Kind::kF32 ? name_of(DType::kF32)
         : kind == Kind::kF16 ? name_of(DType::kF16)
                              : name_of(DType::kBF16);
}

bool is_of(GroupTensor::Kind kind, DType dtype) {
  return kind == (dtype == DType::kF16 ? GroupTensor::Kind::kF16 : GroupTensor::Kind::kBF16);
}

}  // namespace

const CudaOp& cuda_op() {
  static const CudaOp op{"gemm_int4", 2, 0.5, true, 64, gemm_int4_kernels()};
  return op;
}

Status check_cuda(const Params& params) {
  if (params.a_dtype == DType::kF32)
    return Status::error("gemm_int4: a is float32; on CUDA it must be float16 or bfloat16");
  if (!is_of(params.w_scale.kind, params.a_dtype))
    return Status::error("gemm_int4: w_scale must have the dtype of a, ", name_of(params.a_dtype),
                         ", on CUDA, got ", name_of(params.w_scale.kind));
  const GroupTensor& zero = params.w_zero_point;
  if (zero.is_given() && zero.kind != GroupTensor::Kind::kU8 && !is_of(zero.kind, params.a_dtype))
    return Status::error("gemm_int4: w_zero_point must be uint8 or have the dtype of a, ",
                         name_of(params.a_dtype), ", on CUDA, got ", name_of(zero.kind));
  return Status::ok();
}

Status run_cuda(const Params& params, const CudaPlan& plan, void* workspace, void* stream) {
  if (params.problem.m == 0 || params.problem.n == 0) return Status::ok();
  if (reinterpret_cast<uintptr_t>(params.w) % 16 != 0)
    return Status::error("gemm_int4: w must start at a multiple of 16 bytes");
  return launch_product(plan, params, workspace, &launch_reduce, stream);
}

}  // namespace lamina::gemm_int4
