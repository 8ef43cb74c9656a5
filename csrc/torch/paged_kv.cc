#include "ops/paged_kv/paged_kv.h"

#include <tuple>

#include "torch/accelerator.h"
#include "torch/interop.h"
#include "torch/kv.h"
#include "torch/ops.h"

#if defined(LAMINA_WITH_CUDA) || defined(LAMINA_EMULATOR)
#include "ops/paged_kv/cuda/launch.h"
#endif

namespace lamina::interop {
namespace {

using paged_kv::WrittenScales;
using OptionalTensor = std::optional<Tensor>;

Status run_on_cpu(const paged_kv::Append& p) { return paged_kv::append(p, TorchParallel()); }
Status run_on_cpu(const paged_kv::Gather& p) { return paged_kv::gather(p, TorchParallel()); }
Status run_on_cpu(const paged_kv::Copy& p) { return paged_kv::copy(p, TorchParallel()); }
Status run_on_cpu(const paged_kv::Compact& p) { return paged_kv::compact(p, TorchParallel()); }

#if defined(LAMINA_WITH_CUDA) || defined(LAMINA_EMULATOR)
Status run_on(const Accelerator& on, const paged_kv::Append& p) {
  return paged_kv::append_cuda(p, on.device, on.stream);
}
Status run_on(const Accelerator& on, const paged_kv::Gather& p) {
  return paged_kv::gather_cuda(p, on.device, on.stream);
}
Status run_on(const Accelerator& on, const paged_kv::Copy& p) {
  return paged_kv::copy_cuda(p, on.stream);
}
Status run_on(const Accelerator& on, const paged_kv::Compact& p) {
  return paged_kv::compact_cuda(p, on.stream);
}
#else
template <class Params>
[[noreturn]] Status run_on(const Accelerator&, const Params&) {
  fail("paged_kv", "no CUDA kernel is built");  // accelerator_of has refused the tensors already
}
#endif

template <class Params>
void run(const std::optional<Accelerator>& accelerator, const Params& params) {
  raise_if_bad(accelerator ? run_on(*accelerator, params) : run_on_cpu(params));
}

// The arguments of one call that are caches. `given` makes an Argument of an optional tensor: k_cache where it is missing.
struct CacheArguments {
  const char* op;
  const Tensor &k, &v;
  const OptionalTensor &k_scales, &v_scales;
  Argument k_cache{op, "k_cache", k}, v_cache{op, "v_cache", v};
  Argument k_scale = given("k_scale", k_scales), v_scale = given("v_scale", v_scales);

  Argument given(const char* name, const OptionalTensor& tensor) const {
    return {op, name, tensor ? *tensor : k};
  }
  template <class Params>
  void read(Params& params) const {
    params.k_cache = cache_of(k_cache);
    params.v_cache = cache_of(v_cache);
    require_fits(k_cache, v_cache);
    read_scales("k_scale", k_scales, params.k_cache, params.k_scale);
    read_scales("v_scale", v_scales, params.v_cache, params.v_scale);
  }
  void require_writable() const {
    require_no_overlap(k_cache);
    require_no_overlap(v_cache);
  }

 private:
  void read_scales(const char* name, const OptionalTensor& given_scale, const kv::Cache& cache,
                   kv::Scales& scales) const {
    scales = scales_of(op, name, given_scale, cache, cache.dtype == kv::CacheDType::kI8);
  }
  void read_scales(const char* name, const OptionalTensor& given_scale, const kv::Cache& cache,
                   WrittenScales& scales) const {
    kv::Scales read;
    read_scales(name, given_scale, cache, read);
    if (!read.is_given()) return;
    const bool is_cache_shaped = given_scale->dim() == 3 && given_scale->numel() != 1;
    if (is_cache_shaped || read.is_per_token()) require_no_overlap({op, name, *given_scale});
    scales = {const_cast<float*>(read.data), read.page_stride, read.slot_stride, read.head_stride};
  }
};

// Rows [tokens, heads, head_dim] of floats.
template <class Pointer>
paged_kv::Rows<Pointer> rows_of(const Argument& x, const char* dims) {
  require(x.tensor.dim() == 3, x.op, x.name, " must be 3-D ", dims, ", got ", ShapeText{x.tensor});
  const DType dtype = x.float_dtype();
  require(x.tensor.numel() == 0 || x.tensor.size(2) == 1 || x.tensor.stride(2) == 1, x.op, x.name,
          " must have stride 1 in head_dim, got ", x.tensor.stride(2), "; call .contiguous()");
  return {x.tensor.data_ptr(), dtype, x.tensor.size(1), x.tensor.size(2), x.tensor.stride(0),
          x.tensor.stride(1)};
}

void require_rows(const Argument& x, int64_t tokens, int64_t heads, int64_t head_dim) {
  require(x.tensor.size(0) == tokens && x.tensor.size(1) == heads && x.tensor.size(2) == head_dim,
          x.op, x.name, " must be 3-D [", tokens, ", ", heads, ", ", head_dim,
          "] like its cache and the other tokens, got ", ShapeText{x.tensor});
}

paged_kv::Rope rope_of(const Argument& cos, const Argument& sin, const Argument& positions,
                       int64_t tokens, int64_t head_dim, std::optional<int64_t> rotary_dim,
                       bool interleaved) {
  const char* const op = cos.op;
  paged_kv::Rope rope;
  cos.is_2d("[positions, rotary_dim / 2]");
  sin.is_2d("[positions, rotary_dim / 2]");
  rope.dtype = cos.float_dtype();
  sin.has_dtype(cos.tensor.scalar_type());
  rope.positions = cos.tensor.size(0);
  rope.rotary_dim = rotary_dim.value_or(2 * cos.tensor.size(1));
  require(rope.rotary_dim >= 0 && rope.rotary_dim <= head_dim && rope.rotary_dim % 2 == 0, op,
          "rotary_dim = ", rope.rotary_dim,
          " must be even, at least 0 and at most head_dim = ", head_dim);
  cos.has_shape("[positions, rotary_dim / 2]", rope.positions, rope.rotary_dim / 2);
  sin.has_shape("[positions, rotary_dim / 2]", rope.positions, rope.rotary_dim / 2);
  rope.cos = cos.tensor.data_ptr();
  rope.sin = sin.tensor.data_ptr();
  rope.cos_stride = cos.row_stride();
  rope.sin_stride = sin.row_stride();
  rope.interleaved = interleaved;
  const ScalarType dtype = positions.tensor.scalar_type();
  require(dtype == ScalarType::Int || dtype == ScalarType::Long, op,
          "positions must be int32 or int64, got ", dtype_text(dtype));
  positions.is_vector("tokens", tokens);
  const void* const data = positions.tensor.data_ptr();
  if (dtype == ScalarType::Int) {
    rope.position32 = static_cast<const int32_t*>(data);
  } else {
    rope.position64 = static_cast<const int64_t*>(data);
  }
  return rope;
}

}  // namespace

void append_kv(const Tensor& k, const Tensor& v, const Tensor& k_cache, const Tensor& v_cache,
               const Tensor& slot_mapping, OptionalTensor k_scale, OptionalTensor v_scale,
               OptionalTensor cos, OptionalTensor sin, OptionalTensor positions,
               std::optional<int64_t> rotary_dim, bool interleaved, OptionalTensor q) {
  constexpr const char* kOp = "append_paged_kv";
  const CacheArguments caches{kOp, k_cache, v_cache, k_scale, v_scale};
  const Argument k_arg{kOp, "k", k}, v_arg{kOp, "v", v}, slots{kOp, "slot_mapping", slot_mapping};
  const Argument q_arg = caches.given("q", q);
  paged_kv::Append params;
  params.k = rows_of<const void*>(k_arg, "[tokens, kv_heads, head_dim]");
  params.v = rows_of<const void*>(v_arg, "[tokens, kv_heads, head_dim]");
  params.tokens = k.size(0);
  caches.read(params);
  caches.require_writable();
  require_rows(k_arg, params.tokens, params.k_cache.heads, params.k_cache.head_dim);
  require_rows(v_arg, params.tokens, params.v_cache.heads, params.v_cache.head_dim);
  slots.has_dtype(ScalarType::Long);
  slots.is_vector("tokens", params.tokens);
  params.slot_mapping = static_cast<const int64_t*>(slot_mapping.data_ptr());
  const int given = cos.has_value() + sin.has_value() + positions.has_value();
  require(given == 0 || given == 3, kOp, cos ? (sin ? "positions" : "sin") : "cos",
          " is missing; rope needs cos, sin and positions");
  require(given == 3 || (!q && !rotary_dim && !interleaved), kOp,
          q            ? "q"
          : rotary_dim ? "rotary_dim"
                       : "interleaved",
          " was given; it is allowed only with cos, sin and positions");
  const Argument cos_arg = caches.given("cos", cos), sin_arg = caches.given("sin", sin),
                 positions_arg = caches.given("positions", positions);
  if (given == 3)
    params.rope = rope_of(cos_arg, sin_arg, positions_arg, params.tokens, params.k.head_dim,
                          rotary_dim, interleaved);
  if (q) {
    params.q = rows_of<void*>(q_arg, "[tokens, heads, head_dim]");
    require(q->size(0) == params.tokens && q->size(2) == params.k.head_dim, kOp,
            "q must be 3-D [tokens, heads, head_dim] = [", params.tokens, ", any, ",
            params.k.head_dim, "], got ", ShapeText{*q});
    require_no_overlap(q_arg);
  }
  run(accelerator_of({caches.k_cache, caches.v_cache, caches.k_scale, caches.v_scale, k_arg, v_arg,
                      slots, cos_arg, sin_arg, positions_arg, q_arg}),
      params);
}

namespace {

std::tuple<Tensor, Tensor> gather(const Tensor& k_cache, const Tensor& v_cache,
                                  const Tensor& block_table, const Tensor& cu_seqlens_k,
                                  int64_t tokens, OptionalTensor k_scale, OptionalTensor v_scale,
                                  std::optional<ScalarType> out_dtype) {
  constexpr const char* kOp = "gather_paged_kv";
  const CacheArguments caches{kOp, k_cache, v_cache, k_scale, v_scale};
  const Argument table{kOp, "block_table", block_table}, offsets{kOp, "cu_seqlens_k", cu_seqlens_k};
  paged_kv::Gather params;
  caches.read(params);
  table.is_2d("[requests, max_blocks]");
  params.block_table = block_table_of(table, block_table.size(0));
  params.cu_seqlens_k = int32_vector_of(offsets, "requests + 1", block_table.size(0) + 1);
  require(tokens >= 0, kOp, "tokens = ", tokens, " must not be negative");
  params.tokens = tokens;
  const ScalarType dtype = out_dtype.value_or(
      kv::is_quantized(params.k_cache.dtype) ? ScalarType::Float : k_cache.scalar_type());
  params.out_dtype = float_dtype(kOp, "out_dtype", dtype);
  const std::optional<Accelerator> accelerator = accelerator_of(
      {caches.k_cache, caches.v_cache, caches.k_scale, caches.v_scale, table, offsets});
  Tensor k = new_tensor(k_cache, {tokens, params.k_cache.heads, params.k_cache.head_dim}, dtype);
  Tensor v = new_tensor(k_cache, {tokens, params.v_cache.heads, params.v_cache.head_dim}, dtype);
  params.k = k.data_ptr();
  params.v = v.data_ptr();
  run(accelerator, params);
  return {k, v};
}

void copy(const Tensor& k_cache, const Tensor& v_cache, const Tensor& block_mapping,
          OptionalTensor k_scale, OptionalTensor v_scale) {
  constexpr const char* kOp = "copy_kv_blocks";
  const CacheArguments caches{kOp, k_cache, v_cache, k_scale, v_scale};
  const Argument mapping{kOp, "block_mapping", block_mapping};
  paged_kv::Copy params;
  caches.read(params);
  caches.require_writable();
  mapping.has_dtype(ScalarType::Long);
  mapping.is_2d("[n, 2]");
  params.pairs = block_mapping.size(0);
  mapping.has_shape("[n, 2]", params.pairs, 2);
  params.block_mapping = static_cast<const int64_t*>(block_mapping.data_ptr());
  params.pair_stride = mapping.row_stride();
  run(accelerator_of({caches.k_cache, caches.v_cache, caches.k_scale, caches.v_scale, mapping}),
      params);
}

void compact(const Tensor& k_cache, const Tensor& v_cache, const Tensor& block_table,
             const Tensor& seq_lens, const Tensor& tree_len, const Tensor& accepted,
             OptionalTensor k_scale, OptionalTensor v_scale) {
  constexpr const char* kOp = "compact_kv";
  const CacheArguments caches{kOp, k_cache, v_cache, k_scale, v_scale};
  const Argument table{kOp, "block_table", block_table}, lens{kOp, "seq_lens", seq_lens},
      trees{kOp, "tree_len", tree_len}, nodes{kOp, "accepted", accepted};
  paged_kv::Compact params;
  caches.read(params);
  caches.require_writable();
  table.is_2d("[requests, max_blocks]");
  const int64_t requests = block_table.size(0);
  params.block_table = block_table_of(table, requests);
  params.seq_lens = int32_vector_of(lens, "requests", requests);
  params.tree_len = int32_vector_of(trees, "requests", requests);
  nodes.has_dtype(ScalarType::Int);
  nodes.is_2d("[requests, max_accepted]");
  params.max_accepted = accepted.size(1);
  nodes.has_shape("[requests, max_accepted]", requests, params.max_accepted);
  params.accepted = static_cast<const int32_t*>(accepted.data_ptr());
  params.accepted_stride = nodes.row_stride();
  run(accelerator_of({caches.k_cache, caches.v_cache, caches.k_scale, caches.v_scale, table, lens,
                      trees, nodes}),
      params);
}

std::string explain() {
  std::string text;
  raise_if_bad(paged_kv::explain(text));
  return text;
}

template <class Implementations>
void implement(Implementations& m) {
  m.impl("append_paged_kv", TORCH_BOX(&append_kv));
  m.impl("gather_paged_kv", TORCH_BOX(&gather));
  m.impl("copy_kv_blocks", TORCH_BOX(&copy));
  m.impl("compact_kv", TORCH_BOX(&compact));
}

}  // namespace

LAMINA_FRAGMENT(m) {
  m.def(
      "append_paged_kv(Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor "
      "slot_mapping, *, Tensor(c!)? k_scale=None, Tensor(d!)? v_scale=None, Tensor? cos=None, "
      "Tensor? sin=None, Tensor? positions=None, SymInt? rotary_dim=None, bool interleaved=False, "
      "Tensor(e!)? q=None) -> ()");
  m.def(
      "gather_paged_kv(Tensor k_cache, Tensor v_cache, Tensor block_table, Tensor cu_seqlens_k, "
      "SymInt tokens, *, Tensor? k_scale=None, Tensor? v_scale=None, ScalarType? out_dtype=None) "
      "-> "
      "(Tensor k, Tensor v)");
  m.def(
      "copy_kv_blocks(Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor block_mapping, *, Tensor(c!)? "
      "k_scale=None, Tensor(d!)? v_scale=None) -> ()");
  m.def(
      "compact_kv(Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor block_table, Tensor seq_lens, "
      "Tensor "
      "tree_len, Tensor accepted, *, Tensor(c!)? k_scale=None, Tensor(d!)? v_scale=None) -> ()");
  m.def("explain_paged_kv() -> str");
}
LAMINA_IMPL(CPU, m) { implement(m); }
LAMINA_IMPL(CUDA, m) { implement(m); }
LAMINA_IMPL(CompositeExplicitAutograd, m) { m.impl("explain_paged_kv", TORCH_BOX(&explain)); }

}  // namespace lamina::interop
