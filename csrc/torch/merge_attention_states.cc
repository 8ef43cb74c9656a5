#include "ops/merge_attention_states/merge_attention_states.h"

#include <tuple>
#include <vector>

#include "torch/accelerator.h"
#include "torch/interop.h"

namespace lamina::interop {
namespace {

constexpr const char* kOp = "merge_attention_states";

#if defined(LAMINA_WITH_CUDA) || defined(LAMINA_EMULATOR)
void run_on(const Accelerator& accelerator, const merge_attention_states::Params& params) {
  raise_if_bad(merge_attention_states::run_cuda(params, accelerator.stream));
}
#else
[[noreturn]] void run_on(const Accelerator&, const merge_attention_states::Params&) {
  fail(kOp, "no CUDA kernel is built");
}
#endif

// The name of a member of a list: "outs[1]".
std::string member(const char* list, size_t index) {
  return std::string(list) + "[" + std::to_string(index) + "]";
}

merge_attention_states::Part part_of(const Argument& out, const Argument& lse,
                                     const Tensor& first) {
  const Tensor &x = out.tensor, &l = lse.tensor;
  require(x.dim() == 3, kOp, out.name, " must be 3-D [tokens, heads, head_dim], got ",
          ShapeText{x});
  (void)out.float_dtype();
  out.has_dtype(first.scalar_type());
  require(x.size(0) == first.size(0) && x.size(1) == first.size(1) && x.size(2) == first.size(2),
          kOp, out.name, " must be of the shape of outs[0], ", ShapeText{first}, ", got ",
          ShapeText{x});
  require(x.numel() == 0 || x.size(2) == 1 || x.stride(2) == 1, kOp, out.name,
          " must have stride 1 in head_dim, got ", x.stride(2), "; call .contiguous()");
  lse.has_dtype(ScalarType::Float);
  require(l.dim() == 2 && l.size(0) == x.size(1) && l.size(1) == x.size(0), kOp, lse.name,
          " must be 2-D [heads, tokens] = [", x.size(1), ", ", x.size(0), "], got ", ShapeText{l});
  return {x.data_ptr(), x.stride(0), x.stride(1), static_cast<const float*>(l.data_ptr()),
          l.stride(0),  l.stride(1)};
}

std::tuple<Tensor, Tensor> merge(std::vector<Tensor> outs, std::vector<Tensor> lses,
                                 std::optional<Tensor> sinks, std::optional<ScalarType> out_dtype) {
  require(!outs.empty(), kOp, "outs must have at least 1 tensor, got 0");
  require(lses.size() == outs.size(), kOp, "lses must have as many tensors as outs, ", outs.size(),
          ", got ", lses.size());
  const Tensor& first = outs[0];
  std::vector<merge_attention_states::Part> parts;
  std::optional<Accelerator> accelerator;
  for (size_t i = 0; i < outs.size(); ++i) {
    const std::string out_name = member("outs", i), lse_name = member("lses", i);
    const Argument out{kOp, out_name.c_str(), outs[i]}, lse{kOp, lse_name.c_str(), lses[i]};
    parts.push_back(part_of(out, lse, first));
    std::optional<Accelerator> found = accelerator_of({{kOp, "outs[0]", first}, out, lse});
    if (!accelerator) accelerator = std::move(found);
  }
  merge_attention_states::Params params;
  params.tokens = first.size(0);
  params.heads = first.size(1);
  params.head_dim = first.size(2);
  params.parts = parts.data();
  params.part_count = static_cast<int64_t>(parts.size());
  params.dtype = float_dtype(kOp, "outs[0]", first.scalar_type());
  if (sinks) {
    const Argument sinks_arg{kOp, "sinks", *sinks};
    sinks_arg.has_dtype(ScalarType::Float);
    sinks_arg.is_vector("heads", params.heads);
    params.sinks = static_cast<const float*>(sinks->data_ptr());
    (void)accelerator_of({{kOp, "outs[0]", first}, sinks_arg});
  }
  const ScalarType dtype = out_dtype.value_or(first.scalar_type());
  params.out_dtype = float_dtype(kOp, "out_dtype", dtype);
  Tensor out = new_tensor(first, {params.tokens, params.heads, params.head_dim}, dtype);
  Tensor lse = new_tensor(first, {params.heads, params.tokens}, ScalarType::Float);
  params.out = out.data_ptr();
  params.lse = static_cast<float*>(lse.data_ptr());
  if (accelerator) {
    run_on(*accelerator, params);
  } else {
    raise_if_bad(merge_attention_states::run(params, TorchParallel()));
  }
  return {out, lse};
}

std::string explain() {
  std::string text;
  raise_if_bad(merge_attention_states::explain(text));
  return text;
}

}  // namespace

LAMINA_FRAGMENT(m) {
  m.def(
      "merge_attention_states(Tensor[] outs, Tensor[] lses, *, Tensor? sinks=None, ScalarType? "
      "out_dtype=None) -> (Tensor out, Tensor lse)");
  m.def("explain_merge_attention_states() -> str");
}
LAMINA_IMPL(CPU, m) { m.impl("merge_attention_states", TORCH_BOX(&merge)); }
LAMINA_IMPL(CUDA, m) { m.impl("merge_attention_states", TORCH_BOX(&merge)); }
LAMINA_IMPL(CompositeExplicitAutograd, m) {
  m.impl("explain_merge_attention_states", TORCH_BOX(&explain));
}

}  // namespace lamina::interop
