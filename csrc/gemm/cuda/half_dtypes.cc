#include "gemm/cuda/half_dtypes.h"

namespace lamina::gemm {
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

Status check_half(const char* op, DType a) {
  if (a != DType::kF32) return Status::ok();
  return Status::error(op, ": a is float32; on CUDA it must be float16 or bfloat16");
}

Status check_halves(const char* op, DType a, const GroupTensor& scale, const GroupTensor& zero) {
  if (Status status = check_half(op, a); !status.is_ok()) return status;
  if (!is_of(scale.kind, a))
    return Status::error(op, ": w_scale must have the dtype of a, ", name_of(a), ", on CUDA, got ",
                         name_of(scale.kind));
  if (zero.is_given() && zero.kind != GroupTensor::Kind::kU8 && !is_of(zero.kind, a))
    return Status::error(op, ": w_zero_point must be uint8 or have the dtype of a, ", name_of(a),
                         ", on CUDA, got ", name_of(zero.kind));
  return Status::ok();
}

}  // namespace lamina::gemm
