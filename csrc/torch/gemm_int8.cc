#include "ops/gemm_int8/gemm_int8.h"

#include <tuple>

#include "base/huge_pages.h"
#include "layout/int8_tile.h"
#include "ops/gemm_int8/pack.h"
#include "ops/gemm_int8/quantized.h"
#include "torch/accelerator.h"
#include "torch/epilogue.h"
#include "torch/interop.h"
#include "torch/product.h"

#if defined(LAMINA_CUDA_KERNELS)
#include "ops/gemm_int8/cuda/run.h"
#endif

namespace lamina::interop {
namespace {

void require_packed(const char* op, const char* name, const Tensor& w, int64_t n, int64_t k) {
  Argument{op, name, w}.has_dtype(ScalarType::Char);
  require(w.dim() == 5 && w.size(0) == int8_tile::tiles_n(n) &&
              w.size(1) == int8_tile::tiles_k(k) && w.size(2) == int8_tile::kGroups &&
              w.size(3) == int8_tile::kTileN && w.size(4) == int8_tile::kGroupK,
          op, name, " must be packed by pack_int8 from [n, k] = [", n, ", ", k, "], so 5-D [",
          int8_tile::tiles_n(n), ", ", int8_tile::tiles_k(k), ", 16, 16, 4], got ", ShapeText{w});
  require(w.is_contiguous(), op, name, " must be contiguous; call .contiguous()");
}

// The group of a Problem; None means no scales along k.
int64_t group_of(const char* op, std::optional<int64_t> group) {
  require(!group || *group == gemm_int8::kScaleGroup, op, "group = ", group.value_or(0),
          "; allowed: None, ", gemm_int8::kScaleGroup);
  return group.value_or(0);
}

#if defined(LAMINA_CUDA_KERNELS)
// Plans the call and calls launch(plan, workspace).
template <class Launch>
void run_on(const Accelerator& accelerator, const gemm_int8::Params& params, int max_sms,
            const Tensor& like, const Launch& launch) {
  const gemm::Problem& problem = params.problem;
  const gemm::CudaPlan plan =
      plan_product(accelerator, gemm_int8::cuda_op(problem.is_grouped()), problem,
                   gemm_int8::k_rule(problem), max_sms, gemm_int8::a_alignment(params));
  const Workspace workspace(like, plan.partial_bytes(problem));
  raise_if_bad(launch(plan, workspace.data()));
}

void run_on(const Accelerator& accelerator, const gemm_int8::Params& params, int max_sms,
            const Tensor& like) {
  run_on(accelerator, params, max_sms, like, [&](const auto& plan, void* workspace) {
    return gemm_int8::run_cuda(params, plan, workspace, accelerator.stream);
  });
}

void run_on(const Accelerator& accelerator, const gemm_int8::QuantizedParams& params, int max_sms,
            const Tensor& like) {
  run_on(accelerator, params.gemm, max_sms, like, [&](const auto& plan, void* workspace) {
    return gemm_int8::run_quantized_cuda(params, plan, workspace, accelerator.stream);
  });
}

std::string explain_cuda(int64_t m, int64_t n, int64_t k, int64_t compute_capability,
                         int64_t sm_count, std::optional<int64_t> group,
                         std::optional<int64_t> max_sms) {
  constexpr const char* kExplain = "explain_gemm_int8_cuda";
  const gemm::Problem problem{m, n, k, group_of(kExplain, group)};
  raise_if_bad(gemm_int8::check(problem));
  return explain_product({kExplain, compute_capability, sm_count, max_sms},
                         gemm_int8::cuda_op(problem.is_grouped()), problem,
                         gemm_int8::k_rule(problem),
                         [&](const auto& plan) { return plan.partial_bytes(problem); });
}
#endif

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

// The tensors that both products take, in the order of their schemas.
struct Inputs {
  const Tensor &a, &w, &w_sums, &a_scale, &w_scale;
  const std::optional<Tensor>&a_zero_point, &bias, &gate, &residual;
  std::optional<Tensor> out_scale = std::nullopt;  // only of gemm_int8_quantized

  int64_t m() const { return a.size(0); }
  int64_t n() const { return w_sums.dim() == 2 ? w_sums.size(1) : w_sums.numel(); }
};

// Checks all inputs and fills all Params but the outputs. Returns the device of the call.
std::optional<Accelerator> read_inputs(const char* op, const Inputs& in,
                                       const std::optional<std::string>& activation,
                                       gemm_int8::Params& params) {
  const Argument a{op, "a", in.a}, w{op, "w", in.w}, w_sums{op, "w_sums", in.w_sums};
  const Argument a_scale{op, "a_scale", in.a_scale}, w_scale{op, "w_scale", in.w_scale};
  const EpilogueTensors then{op, in.a, in.bias, in.gate, in.residual};
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
  require_packed(op, "w", in.w, n, k);
  std::optional<Accelerator> accelerator = accelerator_of(
      {a, w, w_sums, a_scale, w_scale, zero_point, then.argument("bias", in.bias),
       then.argument("gate", in.gate), then.argument("residual", in.residual), out_scale});

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
  then.read(m, n, activation, params);
  if (in.out_scale)
    params.out_scale = broadcast<float>(out_scale, ScalarType::Float, m, "[m] or [m, 1] with m");
  return accelerator;
}

Tensor gemm(const Tensor& a, const Tensor& w, const Tensor& w_sums, const Tensor& a_scale,
            const Tensor& w_scale, std::optional<Tensor> a_zero_point, std::optional<Tensor> bias,
            ScalarType out_dtype, std::optional<std::string> activation, std::optional<Tensor> gate,
            std::optional<Tensor> residual, std::optional<int64_t> max_sms) {
  constexpr const char* kOp = "gemm_int8";
  const int sms = checked_sms(kOp, max_sms);
  const Inputs inputs{a, w, w_sums, a_scale, w_scale, a_zero_point, bias, gate, residual};
  gemm_int8::Params params;
  const std::optional<Accelerator> accelerator = read_inputs(kOp, inputs, activation, params);
  params.out_dtype = float_dtype(kOp, "out_dtype", out_dtype);
  Tensor out = new_tensor(a, {inputs.m(), inputs.n()}, out_dtype);
  params.out = out.data_ptr();
  params.out_stride = inputs.n();
  if (accelerator) {
    run_on(*accelerator, params, sms, a);
  } else {
    raise_if_bad(gemm_int8::run(params, TorchParallel()));
  }
  return out;
}

std::tuple<Tensor, Tensor, Tensor> gemm_quantized(
    const Tensor& a, const Tensor& w, const Tensor& w_sums, const Tensor& a_scale,
    const Tensor& w_scale, std::optional<Tensor> a_zero_point, std::optional<Tensor> bias,
    std::optional<std::string> activation, std::optional<Tensor> gate,
    std::optional<Tensor> residual, std::optional<Tensor> out_scale, bool symmetric,
    std::optional<int64_t> max_sms) {
  constexpr const char* kOp = "gemm_int8_quantized";
  const int sms = checked_sms(kOp, max_sms);
  const Inputs inputs{a,    w,    w_sums,   a_scale,  w_scale, a_zero_point,
                      bias, gate, residual, out_scale};
  gemm_int8::QuantizedParams params;
  const std::optional<Accelerator> accelerator = read_inputs(kOp, inputs, activation, params.gemm);
  require(!out_scale || symmetric, kOp,
          "out_scale was given; it is allowed only with symmetric = True");
  const int64_t m = inputs.m(), n = inputs.n();
  Tensor q = new_tensor(a, {m, n}, ScalarType::Char);
  Tensor scale = new_tensor(a, {m, 1}, ScalarType::Float);
  Tensor zero_point = new_tensor(a, {symmetric ? 0 : m, 1}, ScalarType::Char);
  params.quantize.m = m;
  params.quantize.k = n;
  params.quantize.symmetric = symmetric;
  params.quantize.static_scale = params.gemm.out_scale;
  params.quantize.q = static_cast<int8_t*>(q.data_ptr());
  params.quantize.scale = static_cast<float*>(scale.data_ptr());
  params.quantize.zero_point = static_cast<int8_t*>(zero_point.data_ptr());
  const Workspace workspace(a, params.workspace_bytes());
  params.connect(workspace.data());
  if (accelerator) {
    run_on(*accelerator, params, sms, a);
  } else {
    raise_if_bad(gemm_int8::run_quantized(params, TorchParallel()));
  }
  return {q, scale, zero_point};
}

std::tuple<Tensor, Tensor> pack(const Tensor& w, std::optional<int64_t> group) {
  const Argument w_arg{"pack_int8", "w", w};
  w_arg.has_dtype(ScalarType::Char);
  w_arg.is_2d("[n, k]");
  const int64_t n = w.size(0), k = w.size(1);
  const gemm::Problem problem{0, n, k, group_of("pack_int8", group)};
  Tensor data = new_tensor(w,
                           {int8_tile::tiles_n(n), int8_tile::tiles_k(k), int8_tile::kGroups,
                            int8_tile::kTileN, int8_tile::kGroupK},
                           ScalarType::Char);
  Tensor sums = problem.is_grouped() ? new_tensor(w, {problem.groups(), n}, ScalarType::Int)
                                     : new_tensor(w, {n}, ScalarType::Int);
  advise_huge_pages(data.data_ptr(), data.numel());  // one byte each
  raise_if_bad(gemm_int8::pack(static_cast<const int8_t*>(w.data_ptr()), problem,
                               w_arg.row_stride(), static_cast<int8_t*>(data.data_ptr()),
                               static_cast<int32_t*>(sums.data_ptr()), TorchParallel()));
  return {data, sums};
}

Tensor unpack(const Tensor& data, int64_t n, int64_t k) {
  require(n >= 0 && k >= 0, "unpack_int8", "n = ", n, ", k = ", k, "; neither may be negative");
  require_packed("unpack_int8", "data", data, n, k);
  Tensor w = new_tensor(data, {n, k}, ScalarType::Char);
  raise_if_bad(gemm_int8::unpack(static_cast<const int8_t*>(data.data_ptr()), n, k,
                                 static_cast<int8_t*>(w.data_ptr()), TorchParallel()));
  return w;
}

std::tuple<Tensor, Tensor> pack_cuda(const Tensor&, std::optional<int64_t>) {
  fail("pack_int8", "packs on the CPU only: move w there, and the packed weight back");
}
Tensor unpack_cuda(const Tensor&, int64_t, int64_t) {
  fail("unpack_int8", "unpacks on the CPU only: move data there");
}

std::string explain(int64_t m, int64_t n, int64_t k, std::optional<int64_t> group) {
  std::string text;
  const gemm::Problem problem{m, n, k, group_of("explain_gemm_int8", group)};
  raise_if_bad(gemm_int8::explain(problem, TorchParallel().threads(), text));
  return text;
}

}  // namespace

LAMINA_IMPL(CPU, m) {
  m.impl("gemm_int8", TORCH_BOX(&gemm));
  m.impl("gemm_int8_quantized", TORCH_BOX(&gemm_quantized));
  m.impl("pack_int8", TORCH_BOX(&pack));
  m.impl("unpack_int8", TORCH_BOX(&unpack));
}
LAMINA_IMPL(CUDA, m) {
  m.impl("gemm_int8", TORCH_BOX(&gemm));
  m.impl("gemm_int8_quantized", TORCH_BOX(&gemm_quantized));
  m.impl("pack_int8", TORCH_BOX(&pack_cuda));
  m.impl("unpack_int8", TORCH_BOX(&unpack_cuda));
}
LAMINA_IMPL(CompositeExplicitAutograd, m) {
  m.impl("explain_gemm_int8", TORCH_BOX(&explain));
  m.impl("explain_gemm_int8_cuda", TORCH_BOX(&explain_cuda));
}

}  // namespace lamina::interop
