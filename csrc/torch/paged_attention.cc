#include "ops/paged_attention/paged_attention.h"

#include <cfloat>
#include <cmath>
#include <tuple>

#include "torch/accelerator.h"
#include "torch/interop.h"
#include "torch/kv.h"
#include "torch/ops.h"

#if defined(LAMINA_WITH_CUDA) || defined(LAMINA_EMULATOR)
#include "ops/paged_attention/cuda/run.h"
#endif

namespace lamina::interop {
namespace {

constexpr const char* kOp = "paged_attention";

// Elements of a tensor of this shape, with unit stride in the last dimension.
void require_rows(const Argument& argument) {
  const Tensor& t = argument.tensor;
  const int64_t last = t.dim() - 1;
  require(t.numel() == 0 || t.size(last) <= 1 || t.stride(last) == 1, kOp, argument.name,
          " must have stride 1 in its last dimension, got ", t.stride(last),
          "; call .contiguous()");
}

void set_queries(const Argument& q, paged_attention::Params& params) {
  const Tensor& t = q.tensor;
  require(t.dim() == 3, kOp, "q must be 3-D [tokens, heads, head_dim], got ", ShapeText{t});
  params.q_dtype = q.float_dtype();
  require_rows(q);
  params.q = t.data_ptr();
  params.tokens = t.size(0);
  params.heads = t.size(1);
  params.head_dim = t.size(2);
  params.q_token_stride = t.stride(0);
  params.q_head_stride = t.stride(1);
}

void check_heads(const paged_attention::Params& params) {
  const int64_t heads = params.heads, kv_heads = params.k.heads;
  require(params.head_dim == params.k.head_dim, kOp, "q has head_dim = ", params.head_dim,
          "; must be ", params.k.head_dim, " like k_cache");
  require(heads > 0 && heads % kv_heads == 0 && heads / kv_heads <= paged_attention::kMaxGroup, kOp,
          "q has ", heads, " heads; must be a multiple of the ", kv_heads,
          " heads of k_cache, at most ", paged_attention::kMaxGroup, " times as many");
}

int64_t window_of(const char* name, int64_t window) {
  require(window >= -1, kOp, name, " = ", window, "; must be at least 0, or -1 for no limit");
  return window;
}

void set_tree(const std::optional<Tensor>& mask, const std::optional<Tensor>& len,
              const std::optional<Tensor>& depth, paged_attention::Params& params) {
  require(mask.has_value() == len.has_value(), kOp, mask ? "tree_len" : "tree_mask",
          " is missing; tree_mask and tree_len go together");
  require(!depth || mask, kOp, "tree_depth was given; it is allowed only with tree_mask");
  if (!mask) return;
  const Argument mask_arg{kOp, "tree_mask", *mask};
  mask_arg.has_dtype(ScalarType::Int);
  mask_arg.is_2d("[tokens, words]");
  mask_arg.has_shape("[tokens, words]", params.tokens, mask->size(1));
  params.tree_mask = static_cast<const int32_t*>(mask->data_ptr());
  params.tree_mask_stride = mask_arg.row_stride();
  params.tree_words = mask->size(1);
  params.tree_len = int32_vector_of({kOp, "tree_len", *len}, "requests", params.requests);
  if (depth)
    params.tree_depth = int32_vector_of({kOp, "tree_depth", *depth}, "tokens", params.tokens);
}

void set_biases(const std::optional<Tensor>& slopes, const std::optional<Tensor>& sinks,
                paged_attention::Params& params) {
  if (slopes) {
    const Argument slopes_arg{kOp, "alibi_slopes", *slopes};
    slopes_arg.has_dtype(ScalarType::Float);
    if (slopes->dim() == 2) {
      slopes_arg.is_2d("[requests, heads]");
      slopes_arg.has_shape("[requests, heads]", params.requests, params.heads);
      params.alibi_request_stride = slopes_arg.row_stride();
    } else {
      slopes_arg.is_vector("heads", params.heads);
    }
    params.alibi_slopes = static_cast<const float*>(slopes->data_ptr());
  }
  if (sinks) {
    const Argument sinks_arg{kOp, "sinks", *sinks};
    sinks_arg.has_dtype(ScalarType::Float);
    sinks_arg.is_vector("heads", params.heads);
    params.sinks = static_cast<const float*>(sinks->data_ptr());
  }
}

#if defined(LAMINA_WITH_CUDA) || defined(LAMINA_EMULATOR)
void run_on(const Accelerator& accelerator, const paged_attention::Params& params,
            const Tensor& like) {
  const paged_attention::CudaPlan plan = paged_attention::known_plan_cuda(
      paged_attention::sizes_of(params), accelerator.device, accelerator.kernel);
  require(plan.kernel.launch != nullptr, "set_cuda_kernel", "name = \"", accelerator.kernel,
          "\": no CUDA kernel of this name for compute capability ",
          accelerator.device.compute_capability, ", head_dim = ", params.head_dim,
          ", v_head_dim = ", params.v_head_dim, " and this cache");
  const Workspace workspace(like, plan.workspace_bytes);
  raise_if_bad(paged_attention::run_cuda(params, plan, workspace.data(), accelerator.stream));
}
#else
[[noreturn]] void run_on(const Accelerator&, const paged_attention::Params&, const Tensor&) {
  fail(kOp, "no CUDA kernel is built");
}
#endif

}  // namespace

std::tuple<Tensor, Tensor> attend(
    const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& block_table,
    const Tensor& seq_lens, const Tensor& cu_seqlens_q, int64_t max_seqlen_q,
    std::optional<double> scale, bool causal, int64_t window_left, int64_t window_right,
    double softcap, std::optional<Tensor> alibi_slopes, std::optional<Tensor> sinks,
    std::optional<Tensor> tree_mask, std::optional<Tensor> tree_len,
    std::optional<Tensor> tree_depth, std::optional<Tensor> k_scale, std::optional<Tensor> v_scale,
    std::optional<ScalarType> out_dtype, bool return_lse, bool batch_invariant) {
  const auto argument = [&](const char* name, const std::optional<Tensor>& t) {
    return Argument{kOp, name, t ? *t : q};
  };
  const Argument q_arg{kOp, "q", q}, k_arg{kOp, "k_cache", k_cache}, v_arg{kOp, "v_cache", v_cache};
  const Argument seq_lens_arg{kOp, "seq_lens", seq_lens};
  paged_attention::Params params;
  set_queries(q_arg, params);
  params.k = cache_of(k_arg);
  params.v = cache_of(v_arg);
  require_fits(k_arg, v_arg);
  params.kv_heads = params.k.heads;
  params.v_head_dim = params.v.head_dim;
  check_heads(params);
  require(seq_lens.dim() == 1, kOp, "seq_lens must be 1-D [requests], got ", ShapeText{seq_lens});
  params.requests = seq_lens.size(0);
  params.block_table = block_table_of({kOp, "block_table", block_table}, params.requests);
  params.seq_lens = int32_vector_of(seq_lens_arg, "requests", params.requests);
  params.cu_seqlens_q =
      int32_vector_of({kOp, "cu_seqlens_q", cu_seqlens_q}, "requests + 1", params.requests + 1);
  require(max_seqlen_q >= 0, kOp, "max_seqlen_q = ", max_seqlen_q, "; must not be negative");
  params.max_seqlen_q = max_seqlen_q;
  params.scale =
      static_cast<float>(scale.value_or(1.0 / std::sqrt(static_cast<double>(params.head_dim))));
  params.causal = causal;
  params.batch_invariant = batch_invariant;
  params.window_left = window_of("window_left", window_left);
  params.window_right = window_of("window_right", window_right);
  require(softcap == 0.0 || (softcap >= FLT_MIN && softcap <= FLT_MAX), kOp, "softcap = ", softcap,
          "; must be 0, which means none, or at least ", FLT_MIN, " and finite in f32");
  params.softcap = static_cast<float>(softcap);
  set_biases(alibi_slopes, sinks, params);
  set_tree(tree_mask, tree_len, tree_depth, params);
  const bool is_int8 = params.k.dtype == kv::CacheDType::kI8;
  params.k_scale = scales_of(kOp, "k_scale", k_scale, params.k, is_int8);
  params.v_scale = scales_of(kOp, "v_scale", v_scale, params.v, is_int8);
  const std::optional<Accelerator> accelerator =
      accelerator_of({q_arg,
                      k_arg,
                      v_arg,
                      {kOp, "block_table", block_table},
                      seq_lens_arg,
                      {kOp, "cu_seqlens_q", cu_seqlens_q},
                      argument("alibi_slopes", alibi_slopes),
                      argument("sinks", sinks),
                      argument("tree_mask", tree_mask),
                      argument("tree_len", tree_len),
                      argument("tree_depth", tree_depth),
                      argument("k_scale", k_scale),
                      argument("v_scale", v_scale)});
#if defined(LAMINA_WITH_CUDA) || defined(LAMINA_EMULATOR)
  if (accelerator) raise_if_bad(paged_attention::check_cuda(params, accelerator->device));
#endif

  const ScalarType dtype = out_dtype.value_or(q.scalar_type());
  params.out_dtype = float_dtype(kOp, "out_dtype", dtype);
  Tensor out = new_tensor(q, {params.tokens, params.heads, params.v_head_dim}, dtype);
  Tensor lse = new_tensor(q, {params.heads, return_lse ? params.tokens : 0}, ScalarType::Float);
  params.out = out.data_ptr();
  params.lse = return_lse ? static_cast<float*>(lse.data_ptr()) : nullptr;
  if (accelerator) {
    run_on(*accelerator, params, q);
  } else {
    raise_if_bad(paged_attention::run(params, TorchParallel()));
  }
  return {out, lse};
}

namespace {

std::string explain(int64_t batch, int64_t q_len, int64_t context, int64_t heads,
                    int64_t kv_heads) {
  std::string text;
  raise_if_bad(paged_attention::explain(batch, q_len, context, heads, kv_heads,
                                        TorchParallel().threads(), text));
  return text;
}

}  // namespace

LAMINA_FRAGMENT(m) {
  m.def(
      "paged_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor block_table, Tensor "
      "seq_lens, "
      "Tensor cu_seqlens_q, *, SymInt max_seqlen_q, float? scale=None, bool causal=True, SymInt "
      "window_left=-1, SymInt window_right=-1, float softcap=0.0, Tensor? alibi_slopes=None, "
      "Tensor? "
      "sinks=None, Tensor? tree_mask=None, Tensor? tree_len=None, Tensor? tree_depth=None, Tensor? "
      "k_scale=None, Tensor? v_scale=None, ScalarType? out_dtype=None, bool return_lse=False, bool "
      "batch_invariant=False) -> (Tensor out, Tensor lse)");
  m.def(
      "explain_paged_attention(int batch, int q_len, int context, int heads, int kv_heads) -> str");
}
LAMINA_IMPL(CPU, m) { m.impl("paged_attention", TORCH_BOX(&attend)); }
LAMINA_IMPL(CompositeExplicitAutograd, m) {
  m.impl("explain_paged_attention", TORCH_BOX(&explain));
}
LAMINA_IMPL(CUDA, m) { m.impl("paged_attention", TORCH_BOX(&attend)); }

}  // namespace lamina::interop
