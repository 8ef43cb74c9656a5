// The checks that all ops on packed int4 weights share.
#pragma once

#include <algorithm>
#include <functional>
#include <optional>

#include "gemm/problem.h"
#include "layout/int4.h"
#include "ops/gemm_int4/gemm_int4.h"
#include "ops/gemm_int4_int8/gemm_int4_int8.h"
#include "quant/group_tensor.h"
#include "quant/perm.h"
#include "torch/accelerator.h"
#include "torch/epilogue.h"
#include "torch/interop.h"

namespace lamina::interop {

inline void require_packed_int4(const char* op, const char* name, const Tensor& data, int64_t n,
                                int64_t k) {
  Argument{op, name, data}.has_dtype(ScalarType::Byte);
  require(data.dim() == 3 && data.size(0) == int4::tiles_n(n) && data.size(1) == int4::tiles_k(k) &&
              data.size(2) == int4::kTileBytes,
          op, name, " must be packed by pack_int4 from [n, k] = [", n, ", ", k, "], so 3-D [",
          int4::tiles_n(n), ", ", int4::tiles_k(k), ", 512], got ", ShapeText{data});
  require(data.is_contiguous(), op, name, " must be contiguous; call .contiguous()");
}

// The group size of a Problem. -1, k and larger groups all mean one group over k. For a k that fails its check any
// size will do.
inline int64_t group_of(int64_t group, int64_t k) {
  constexpr int64_t kStep = gemm::kInt4GroupStep;
  if (k < 0 || k > gemm::kLargestK) return kStep;
  const bool is_all = group == -1 || (group == k && k > 0) || (group > k && group % kStep == 0);
  return is_all ? round_up(std::max<int64_t>(k, 1), kStep) : group;
}

// Reads a perm over `of` input features. The op checks the entries.
inline Perm read_perm(const char* op, const std::optional<Tensor>& perm, int64_t of) {
  if (!perm) return {};
  const Argument argument{op, "perm", *perm};
  argument.has_dtype(ScalarType::Int);
  argument.is_vector("k", perm->numel());
  return {static_cast<const int32_t*>(perm->data_ptr()), of};
}

inline GroupTensor read_groups(const Argument& argument, const gemm::Problem& p, bool may_be_u8) {
  const Tensor& tensor = argument.tensor;
  const int64_t groups = p.groups();
  require(tensor.dim() == 2 && tensor.size(0) == groups && tensor.size(1) == p.n, argument.op,
          argument.name, " must be 2-D [ceil(k / group), n] = [", groups, ", ", p.n, "], got ",
          ShapeText{tensor});
  GroupTensor read{tensor.data_ptr(), GroupTensor::Kind::kU8, tensor.stride(0), tensor.stride(1)};
  const ScalarType dtype = tensor.scalar_type();
  if (may_be_u8 && dtype == ScalarType::Byte) return read;
  if (dtype == ScalarType::Float) {
    read.kind = GroupTensor::Kind::kF32;
  } else if (dtype == ScalarType::Half) {
    read.kind = GroupTensor::Kind::kF16;
  } else if (dtype == ScalarType::BFloat16) {
    read.kind = GroupTensor::Kind::kBF16;
  } else {
    fail(argument.op, argument.name, " must be ", may_be_u8 ? "uint8, " : "",
         "float32, float16 or bfloat16, got ", dtype_text(dtype));
  }
  return read;
}

// The arguments that all products of int4 weights take.
struct Int4Inputs {
  const Tensor &a, &w, &w_scale;
  int64_t group;
  const std::optional<Tensor>&w_zero_point, &perm;
  const EpilogueArguments& then;

  int64_t n() const { return w_scale.size(1); }
};

// Checks the sizes, and that w is packed for the problem.
using RequirePackedInt4 =
    std::function<void(const char* op, const gemm::Problem& problem, const Tensor& w)>;

// Checks all inputs and fills all Params but the output. Returns the device of the call.
std::optional<Accelerator> read_int4(const char* op, const Int4Inputs& in,
                                     gemm_int4::Params& params,
                                     const RequirePackedInt4& require_packed);

// Scales and zero points of int8 activations, which products of int4 weights may take.
struct ActivationScales {
  const std::optional<Tensor>&scale, &zero_point;
};

// The same as read_int4 for int8 activations, and for floats that the call quantises.
std::optional<Accelerator> read_int4_int8(const char* op, const Int4Inputs& in,
                                          const ActivationScales& of_a,
                                          gemm_int4_int8::Params& params,
                                          const RequirePackedInt4& require_packed);

// gemm_int4 and gemm_int4_int8 on the device of a call. like: a tensor there.
void compute(const std::optional<Accelerator>& accelerator, const gemm_int4::Params& params,
             int max_sms, const Tensor& like);
void compute(const std::optional<Accelerator>& accelerator, const gemm_int4_int8::Params& params,
             int max_sms, const Tensor& like);

}  // namespace lamina::interop
