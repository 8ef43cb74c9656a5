#include "torch/int4.h"

namespace lamina::interop {

namespace {

// Checks the sizes and reads what all products of int4 weights share; `a` is 2-D by now.
template <class Params>
void read_weight(const char* op, const Int4Inputs& in, Params& params,
                 const RequirePackedInt4& require_packed) {
  require(in.w_scale.dim() == 2, op, "w_scale must be 2-D [ceil(k / group), n], got ",
          ShapeText{in.w_scale});
  params.perm = read_perm(op, in.perm, in.a.size(1));
  const int64_t k = in.perm ? in.perm->numel() : in.a.size(1);
  params.problem = {in.a.size(0), in.n(), k, group_of(in.group, k)};
  require_packed(op, params.problem, in.w);
  params.w = static_cast<const uint8_t*>(in.w.data_ptr());
  params.w_scale = read_groups({op, "w_scale", in.w_scale}, params.problem, false);
  if (in.w_zero_point)
    params.w_zero_point = read_groups({op, "w_zero_point", *in.w_zero_point}, params.problem, true);
}

}  // namespace

std::optional<Accelerator> read_int4(const char* op, const Int4Inputs& in,
                                     gemm_int4::Params& params,
                                     const RequirePackedInt4& require_packed) {
  const EpilogueArguments& then = in.then;
  const Argument a{op, "a", in.a};
  params.a_dtype = a.float_dtype();
  a.is_2d("[m, k]");
  read_weight(op, in, params, require_packed);
  params.a = in.a.data_ptr();
  params.a_stride = a.row_stride();
  then.read(params.problem.m, params.problem.n, params);
  return accelerator_of({a,
                         {op, "w", in.w},
                         {op, "w_scale", in.w_scale},
                         then.argument("w_zero_point", in.w_zero_point),
                         then.argument("perm", in.perm)},
                        then.tensors());
}

std::optional<Accelerator> read_int4_int8(const char* op, const Int4Inputs& in,
                                          const ActivationScales& of_a,
                                          gemm_int4_int8::Params& params,
                                          const RequirePackedInt4& require_packed) {
  const EpilogueArguments& then = in.then;
  const Argument a{op, "a", in.a};
  if (of_a.scale) {
    a.has_dtype(ScalarType::Char);
  } else {
    require(in.a.scalar_type() != ScalarType::Char, op, "a_scale is missing; an int8 a needs one");
    params.has_floats = true;
    params.floats_dtype = a.float_dtype();
    require(!of_a.zero_point, op, "a_zero_point was given; it is allowed only with a_scale");
  }
  a.is_2d("[m, k]");
  read_weight(op, in, params, require_packed);
  const int64_t m = params.problem.m;
  if (of_a.scale)
    params.a_scale = broadcast<float>({op, "a_scale", *of_a.scale}, ScalarType::Float, m,
                                      "[m] or [m, 1] with m");
  if (of_a.zero_point)
    params.a_zero_point = broadcast<int8_t>({op, "a_zero_point", *of_a.zero_point},
                                            ScalarType::Char, m, "[m] or [m, 1] with m");
  then.read(m, params.problem.n, params);
  params.a_stride = a.row_stride();
  if (of_a.scale) {
    params.a = static_cast<const int8_t*>(in.a.data_ptr());
  } else {
    params.floats = in.a.data_ptr();
  }
  return accelerator_of({a,
                         {op, "w", in.w},
                         {op, "w_scale", in.w_scale},
                         then.argument("a_scale", of_a.scale),
                         then.argument("w_zero_point", in.w_zero_point),
                         then.argument("a_zero_point", of_a.zero_point),
                         then.argument("perm", in.perm)},
                        then.tensors());
}

}  // namespace lamina::interop
