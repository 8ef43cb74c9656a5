#include "ops/sample/sample.h"

#include <tuple>

#include "torch/accelerator.h"
#include "torch/interop.h"
#include "torch/kv.h"

namespace lamina::interop {
namespace {

using sample::Target;
using OptionalTensor = std::optional<Tensor>;

#if defined(LAMINA_WITH_CUDA) || defined(LAMINA_EMULATOR)
template <class Params>
Status run_on(const Accelerator& accelerator, const Params& params) {
  return sample::run_cuda(params, accelerator.stream);
}
#else
template <class Params>
[[noreturn]] Status run_on(const Accelerator&, const Params&) {
  fail("sample", "no CUDA kernel is built");  // accelerator_of has refused the tensors already
}
#endif

// The arguments that both ops share. A parameter has one element, or one for each row or request.
struct TargetArguments {
  const char* op;
  const Tensor& logits;
  const OptionalTensor &temperature, &top_k, &top_p, &min_p;
  const Tensor &seed, &offset;
  Argument logits_arg{op, "logits", logits};
  Argument temperature_arg = given("temperature", temperature), top_k_arg = given("top_k", top_k);
  Argument top_p_arg = given("top_p", top_p), min_p_arg = given("min_p", min_p);
  Argument seed_arg{op, "seed", seed}, offset_arg{op, "offset", offset};

  Argument given(const char* name, const OptionalTensor& tensor) const {
    return {op, name, tensor ? *tensor : logits};
  }

  Target read_logits() const {
    Target target;
    logits_arg.is_2d("[m, vocab]");
    target.dtype = logits_arg.float_dtype();
    target.rows = logits.size(0);
    target.vocab = logits.size(1);
    target.logits = logits.data_ptr();
    target.stride = logits_arg.row_stride();
    raise_if_bad(sample::check(op, target));
    return target;
  }

  void read_parameters(Target& target, int64_t count, const char* dims) const {
    const auto read = [&](auto& to, const Argument& from, bool is_given, ScalarType dtype) {
      using Value = std::remove_const_t<std::remove_pointer_t<decltype(to.data)>>;
      if (is_given) to = broadcast<Value>(from, dtype, count, dims);
    };
    read(target.temperature, temperature_arg, temperature.has_value(), ScalarType::Float);
    read(target.top_k, top_k_arg, top_k.has_value(), ScalarType::Int);
    read(target.top_p, top_p_arg, top_p.has_value(), ScalarType::Float);
    read(target.min_p, min_p_arg, min_p.has_value(), ScalarType::Float);
    read(target.seed, seed_arg, true, ScalarType::Long);
    read(target.offset, offset_arg, true, ScalarType::Long);
  }
};

template <class Params>
void run(const std::optional<Accelerator>& accelerator, const Params& params) {
  raise_if_bad(accelerator ? run_on(*accelerator, params) : sample::run(params, TorchParallel()));
}

std::tuple<Tensor, Tensor> sample_tokens(const Tensor& logits, OptionalTensor temperature,
                                         OptionalTensor top_k, OptionalTensor top_p,
                                         OptionalTensor min_p, const Tensor& seed,
                                         const Tensor& offset) {
  const TargetArguments given{"sample_tokens", logits, temperature, top_k,
                              top_p,           min_p,  seed,        offset};
  sample::Sample params;
  params.target = given.read_logits();
  const int64_t m = params.target.rows;
  given.read_parameters(params.target, m, "[m]");
  const auto accelerator =
      accelerator_of({given.logits_arg, given.temperature_arg, given.top_k_arg, given.top_p_arg,
                      given.min_p_arg, given.seed_arg, given.offset_arg});
  Tensor tokens = new_tensor(logits, {m}, ScalarType::Int);
  Tensor flags = new_tensor(logits, {m}, ScalarType::Int);
  params.tokens = static_cast<int32_t*>(tokens.data_ptr());
  params.flags = static_cast<int32_t*>(flags.data_ptr());
  run(accelerator, params);
  return {tokens, flags};
}

sample::Ids ids_of(const Argument& ids, int64_t rows) {
  const ScalarType dtype = ids.tensor.scalar_type();
  require(dtype == ScalarType::Int || dtype == ScalarType::Long, ids.op, ids.name,
          " must be int32 or int64, got ", dtype_text(dtype));
  ids.is_vector("rows of logits", rows);
  const void* const data = ids.tensor.data_ptr();
  if (dtype == ScalarType::Int) return {static_cast<const int32_t*>(data), nullptr};
  return {nullptr, static_cast<const int64_t*>(data)};
}

// The requests that int32 offsets [requests + 1] make.
int64_t requests_of(const Argument& offsets) {
  const Tensor& t = offsets.tensor;
  offsets.has_dtype(ScalarType::Int);
  require(t.dim() == 1 && t.size(0) >= 1, offsets.op, offsets.name,
          " must be 1-D [requests + 1], got ", ShapeText{t});
  require(t.is_contiguous(), offsets.op, offsets.name, " must be contiguous; call .contiguous()");
  return t.size(0) - 1;
}

int64_t checked_max_len(const char* op, int64_t max_seqlen_q) {
  require(max_seqlen_q >= 1 && max_seqlen_q <= INT32_MAX, op, "max_seqlen_q = ", max_seqlen_q,
          " must be at least 1 and below 2^31");
  return max_seqlen_q;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> verify_draft(
    const Tensor& logits, const Tensor& draft_tokens, const Tensor& cu_seqlens_q,
    int64_t max_seqlen_q, OptionalTensor parents, OptionalTensor draft_probs,
    OptionalTensor temperature, OptionalTensor top_k, OptionalTensor top_p, OptionalTensor min_p,
    const Tensor& seed, const Tensor& offset) {
  constexpr const char* kOp = "verify_draft";
  const TargetArguments given{kOp, logits, temperature, top_k, top_p, min_p, seed, offset};
  const Argument drafts{kOp, "draft_tokens", draft_tokens};
  const Argument offsets{kOp, "cu_seqlens_q", cu_seqlens_q};
  const Argument parents_arg = given.given("parents", parents);
  const Argument probs_arg = given.given("draft_probs", draft_probs);
  sample::Verify params;
  params.target = given.read_logits();
  const int64_t rows = params.target.rows, vocab = params.target.vocab;
  params.draft_tokens = ids_of(drafts, rows);
  params.requests = requests_of(offsets);
  params.cu_seqlens = static_cast<const int32_t*>(cu_seqlens_q.data_ptr());
  params.max_len = checked_max_len(kOp, max_seqlen_q);
  if (parents) params.parents = int32_vector_of(parents_arg, "rows of logits", rows);
  if (draft_probs) {
    probs_arg.has_dtype(ScalarType::Float);
    probs_arg.is_2d("[m, vocab]");
    probs_arg.has_shape("[m, vocab]", rows, vocab);
    params.draft_probs = static_cast<const float*>(draft_probs->data_ptr());
    params.draft_stride = probs_arg.row_stride();
  }
  given.read_parameters(params.target, params.requests, "[requests]");
  const auto accelerator = accelerator_of(
      {given.logits_arg, drafts, offsets, parents_arg, probs_arg, given.temperature_arg,
       given.top_k_arg, given.top_p_arg, given.min_p_arg, given.seed_arg, given.offset_arg});
  const int64_t requests = params.requests;
  Tensor tokens = new_tensor(logits, {requests, params.max_len}, ScalarType::Int);
  Tensor accepted = new_tensor(logits, {requests, params.max_len}, ScalarType::Int);
  Tensor count = new_tensor(logits, {requests}, ScalarType::Int);
  Tensor bonus = new_tensor(logits, {requests}, ScalarType::Int);
  Tensor flags = new_tensor(logits, {requests}, ScalarType::Int);
  params.tokens = static_cast<int32_t*>(tokens.data_ptr());
  params.accepted = static_cast<int32_t*>(accepted.data_ptr());
  params.count = static_cast<int32_t*>(count.data_ptr());
  params.bonus = static_cast<int32_t*>(bonus.data_ptr());
  params.flags = static_cast<int32_t*>(flags.data_ptr());
  run(accelerator, params);
  return {tokens, count, bonus, accepted, flags};
}

std::tuple<Tensor, Tensor, Tensor> pack_tree_mask(const Tensor& parents, const Tensor& cu_seqlens_q,
                                                  int64_t max_seqlen_q) {
  constexpr const char* kOp = "pack_tree_mask";
  const Argument nodes{kOp, "parents", parents}, offsets{kOp, "cu_seqlens_q", cu_seqlens_q};
  sample::TreeMask params;
  nodes.has_dtype(ScalarType::Int);
  require(parents.dim() == 1, kOp, "parents must be 1-D [tokens], got ", ShapeText{parents});
  params.rows = parents.size(0);
  params.parents = int32_vector_of(nodes, "tokens", params.rows);
  params.requests = requests_of(offsets);
  params.cu_seqlens = static_cast<const int32_t*>(cu_seqlens_q.data_ptr());
  params.max_len = checked_max_len(kOp, max_seqlen_q);
  const auto accelerator = accelerator_of({nodes, offsets});
  const int64_t words = sample::words_of(params.max_len);
  Tensor mask = new_tensor(parents, {params.rows, words}, ScalarType::Int);
  Tensor len = new_tensor(parents, {params.requests}, ScalarType::Int);
  Tensor depth = new_tensor(parents, {params.rows}, ScalarType::Int);
  params.mask = static_cast<int32_t*>(mask.data_ptr());
  params.len = static_cast<int32_t*>(len.data_ptr());
  params.depth = static_cast<int32_t*>(depth.data_ptr());
  raise_if_bad(accelerator ? run_on(*accelerator, params) : sample::run(params));
  return {mask, len, depth};
}

std::string explain(int64_t m, int64_t vocab) {
  std::string text;
  raise_if_bad(sample::explain(m, vocab, TorchParallel().threads(), text));
  return text;
}

template <class Implementations>
void implement(Implementations& m) {
  m.impl("sample_tokens", TORCH_BOX(&sample_tokens));
  m.impl("verify_draft", TORCH_BOX(&verify_draft));
  m.impl("pack_tree_mask", TORCH_BOX(&pack_tree_mask));
}

}  // namespace

LAMINA_FRAGMENT(m) {
  m.def(
      "sample_tokens(Tensor logits, Tensor? temperature=None, Tensor? top_k=None, Tensor? "
      "top_p=None, Tensor? min_p=None, *, Tensor seed, Tensor offset) -> (Tensor tokens, Tensor "
      "flags)");
  m.def(
      "verify_draft(Tensor logits, Tensor draft_tokens, Tensor cu_seqlens_q, SymInt max_seqlen_q, "
      "*, Tensor? parents=None, Tensor? draft_probs=None, Tensor? temperature=None, Tensor? "
      "top_k=None, Tensor? top_p=None, Tensor? min_p=None, Tensor seed, Tensor offset) -> (Tensor "
      "tokens, Tensor num_accepted, Tensor bonus, Tensor accepted, Tensor flags)");
  m.def(
      "pack_tree_mask(Tensor parents, Tensor cu_seqlens_q, SymInt max_seqlen_q) -> (Tensor "
      "tree_mask, Tensor tree_len, Tensor tree_depth)");
  m.def("explain_sample(int m, int vocab) -> str");
}
LAMINA_IMPL(CPU, m) { implement(m); }
LAMINA_IMPL(CUDA, m) { implement(m); }
LAMINA_IMPL(CompositeExplicitAutograd, m) { m.impl("explain_sample", TORCH_BOX(&explain)); }

}  // namespace lamina::interop
