#include "torch/int8.h"

namespace lamina::interop {
namespace {

// Reads scales along k. along: the dimension of m or n in the tensor; the other dimension is the groups.
void read_group_scales(const Argument& argument, int along, int64_t count, int64_t groups,
                       const char* dims, Broadcast<float>& scale, int64_t& group_stride) {
  const Tensor& tensor = argument.tensor;
  argument.has_dtype(ScalarType::Float);
  if (tensor.dim() == 2 && tensor.size(along) == count && tensor.size(1 - along) == groups) {
    scale = {static_cast<const float*>(tensor.data_ptr()), tensor.stride(along)};
    group_stride = tensor.stride(1 - along);
    return;
  }
  require(argument.is_broadcast(count), argument.op, argument.name, " must be ", dims, " = [",
          along == 0 ? count : groups, ", ", along == 0 ? groups : count,
          "], have 1 element, or be a vector of ", count, ", got ", ShapeText{tensor});
  scale = {static_cast<const float*>(tensor.data_ptr()), argument.broadcast_stride(count, "")};
}

}  // namespace

int64_t int8_group_of(const char* op, std::optional<int64_t> group) {
  require(!group || *group == gemm_int8::kScaleGroup, op, "group = ", group.value_or(0),
          "; allowed: None, ", gemm_int8::kScaleGroup);
  return group.value_or(0);
}

std::optional<Accelerator> read_int8(const char* op, const Int8Inputs& in,
                                     gemm_int8::Params& params,
                                     const RequirePacked& require_packed) {
  const Argument a{op, "a", in.a}, w{op, "w", in.w}, w_sums{op, "w_sums", in.w_sums};
  const Argument a_scale{op, "a_scale", in.a_scale}, w_scale{op, "w_scale", in.w_scale};
  const EpilogueArguments& then = in.then;
  const Argument zero_point = then.argument("a_zero_point", in.a_zero_point);
  const Argument out_scale = then.argument("out_scale", in.out_scale);

  a.has_dtype(ScalarType::Char);
  a.is_2d("[m, k]");
  const int64_t m = in.m(), n = in.n(), k = in.a.size(1);
  w_sums.has_dtype(ScalarType::Int);
  params.problem = {m, n, k, in.w_sums.dim() == 2 ? gemm_int8::kScaleGroup : 0};
  const int64_t groups = params.problem.groups();
  if (params.problem.is_grouped()) {
    w_sums.has_shape("[ceil(k / 128), n]", groups, n);
    require(in.w_sums.is_contiguous(), op, "w_sums must be contiguous; call .contiguous()");
  } else {
    w_sums.is_vector("n", n);
  }
  require_packed(op, in.w, params.problem);
  std::optional<Accelerator> accelerator =
      accelerator_of({a, w, w_sums, a_scale, w_scale, zero_point, out_scale}, then.tensors());

  params.a = static_cast<const int8_t*>(in.a.data_ptr());
  params.a_stride = a.row_stride();
  params.w = static_cast<const int8_t*>(in.w.data_ptr());
  params.w_sums = static_cast<const int32_t*>(in.w_sums.data_ptr());
  if (params.problem.is_grouped()) {
    read_group_scales(a_scale, 0, m, groups, "[m, ceil(k / 128)]", params.a_scale,
                      params.a_scale_group);
    read_group_scales(w_scale, 1, n, groups, "[ceil(k / 128), n]", params.w_scale,
                      params.w_scale_group);
  } else {
    params.a_scale = broadcast<float>(a_scale, ScalarType::Float, m, "[m] or [m, 1] with m");
    params.w_scale = broadcast<float>(w_scale, ScalarType::Float, n, "[n] or [n, 1] with n");
  }
  if (in.a_zero_point)
    params.a_zero_point =
        broadcast<int8_t>(zero_point, ScalarType::Char, m, "[m] or [m, 1] with m");
  then.read(m, n, params);
  if (in.out_scale)
    params.out_scale = broadcast<float>(out_scale, ScalarType::Float, m, "[m] or [m, 1] with m");
  return accelerator;
}

}  // namespace lamina::interop
