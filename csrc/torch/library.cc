// Every schema of lamina, the ops that describe the build, and the module that Python imports.
#include <Python.h>

#include "base/cpu_features.h"
#include "base/huge_pages.h"
#include "base/memo.h"
#include "device/device_info.h"
#include "gemm/problem.h"
#include "layout/int4.h"
#include "layout/int8_tile.h"
#include "layout/sparse24.h"
#include "layout/sparse24_rows.h"
#include "ops/gemm_int4_int8/gemm_int4_int8.h"
#include "ops/gemm_int8/gemm_int8.h"
#include "torch/interop.h"

namespace lamina::interop {
namespace {

// JSON: the packed layouts by name.
std::string layouts() {
  const auto int4_layout = [](const char* device) {
    std::ostringstream json;
    json << "{\"version\": " << int4::kVersion << ", \"tile_n\": " << int4::kTileN
         << ", \"tile_k\": " << int4::kTileK << ", \"tile_bytes\": " << int4::kTileBytes
         << ", \"device\": \"" << device << "\"}";
    return json.str();
  };
  std::ostringstream json;
  json << "{\"" << sparse24_rows::kName << "\": {\"version\": " << sparse24_rows::kVersion
       << ", \"tile_n\": " << sparse24_rows::kTileN << ", \"tile_k\": " << sparse24_rows::kTileK
       << ", \"block_n\": " << sparse24_rows::kBlockN << "}, \"" << int8_tile::kName
       << "\": {\"version\": " << int8_tile::kVersion << ", \"tile_n\": " << int8_tile::kTileN
       << ", \"tile_k\": " << int8_tile::kTileK << ", \"group_k\": " << int8_tile::kGroupK
       << "}, \"" << int4::kRowsName << "\": " << int4_layout("cpu") << ", \"" << int4::kTileName
       << "\": " << int4_layout("cuda") << ", \"" << sparse24::kName
       << "\": {\"version\": " << sparse24::kVersion << ", \"group_k\": " << sparse24::kGroupK
       << ", \"kept\": " << sparse24::kKept << "}}";
  return json.str();
}

// JSON: the sizes that the ops accept. group: the group size of scales along k. group_step: the group sizes of int4
// weights are multiples of it.
std::string limits() {
  std::ostringstream json;
  json << "{\"gemm_int8\": {\"max_k\": " << gemm_int8::kMaxK
       << ", \"group\": " << gemm_int8::kScaleGroup
       << "}, \"gemm_int4\": {\"max_k\": " << gemm::kLargestK
       << ", \"group_step\": " << gemm::kInt4GroupStep
       << "}, \"gemm_int4_int8\": {\"max_k\": " << gemm_int4_int8::kMaxK << "}}";
  return json.str();
}

std::string build_info() {
  std::ostringstream json;
  json << "{\"version\": \"" << LAMINA_VERSION << "\", \"torch_target\": \"2.11\", \"compiler\": \""
       << LAMINA_COMPILER << "\", \"cuda_compiler\": \"" << LAMINA_CUDA_COMPILER
       << "\", \"cuda_archs\": [" << LAMINA_CUDA_ARCHS << "], \"cpu_isas_built\": [";
  const char* comma = "";
  for (Isa isa : built_isas()) {
    json << comma << '"' << isa_name(isa) << '"';
    comma = ", ";
  }
#if defined(LAMINA_USE_SIMDE)
  json << "], \"has_simde\": true";
#else
  json << "], \"has_simde\": false";
#endif
  json << ", \"layouts\": " << layouts() << ", \"limits\": " << limits() << "}";
  return json.str();
}

// JSON: one object for each device that lamina's own CUDA runtime sees; null if lamina was built without CUDA.
std::string cuda_devices() {
#if defined(LAMINA_WITH_CUDA)
  std::ostringstream json;
  json << "[";
  for (int device = 0; device < device_count(); ++device) {
    DeviceInfo info;
    raise_if_bad(device_info(device, info));
    json << (device ? ", " : "") << "{\"compute_capability\": " << info.compute_capability
         << ", \"sm_count\": " << info.sm_count << ", \"smem_per_block\": " << info.smem_per_block
         << ", \"l2_bytes\": " << info.l2_bytes << "}";
  }
  json << "]";
  return json.str();
#else
  return "null";
#endif
}

// JSON: the number of plans, tensor maps and devices made so far (base/memo.h). A call that repeats adds nothing.
std::string made_on_host() {
  const HostWork& work = host_work();
  std::ostringstream json;
  json << "{\"plans\": " << work.plans << ", \"tensor_maps\": " << work.tensor_maps << "}";
  return json.str();
}

void advise(int64_t address, int64_t bytes) {
  advise_huge_pages(reinterpret_cast<void*>(address), bytes);
}

std::string cpu_isas() {
  std::string names;
  for (Isa isa : available_isas()) names += (names.empty() ? "" : ",") + std::string(isa_name(isa));
  return names;
}

std::string cpu_isa() {
  Isa isa{};
  raise_if_bad(active_isa(isa));
  return std::string(isa_name(isa));
}

std::string set_cpu_isa(std::string name) {
  const std::string previous(isa_setting());
  raise_if_bad(set_isa(name));
  return previous;
}

}  // namespace

// No argument is named `mode`: opcheck passes a keyword of that name itself.
LAMINA_LIBRARY(m) {
  m.def(
      "quantize_int8(Tensor x, Tensor? scale=None, Tensor? zero_point=None, bool symmetric=True) "
      "-> (Tensor q, Tensor scale, Tensor zero_point)");
  m.def(
      "rms_norm(Tensor x, Tensor weight, float eps=1e-06, Tensor? residual=None) -> (Tensor out, "
      "Tensor new_residual)");
  m.def(
      "rms_norm_int8(Tensor x, Tensor weight, float eps=1e-06, Tensor? residual=None, bool "
      "symmetric=True) -> (Tensor q, Tensor scale, Tensor zero_point, Tensor new_residual)");
  m.def("silu_mul(Tensor x, Tensor? up=None) -> Tensor");
  m.def(
      "silu_mul_int8(Tensor x, Tensor? up=None, bool symmetric=True) -> (Tensor q, Tensor scale, "
      "Tensor zero_point)");
  m.def("pack_int8(Tensor w, int? group=None) -> (Tensor data, Tensor column_sums)");
  m.def("unpack_int8(Tensor data, SymInt n, SymInt k) -> Tensor");
  m.def("pack_int4(Tensor q, str layout, Tensor? perm=None) -> Tensor");
  m.def("unpack_int4(Tensor data, SymInt n, SymInt k, str layout) -> Tensor");
  m.def(
      "compress_sparse24(Tensor w, Tensor? mask=None, float fill=0.0) -> (Tensor values, Tensor "
      "metadata)");
  m.def("decompress_sparse24(Tensor values, Tensor metadata, SymInt k, float fill=0.0) -> Tensor");
  m.def("import_sparse24_metadata(Tensor metadata, str order, SymInt n, SymInt k) -> Tensor");
  m.def("import_marlin24(Tensor weight_packed, SymInt bits) -> Tensor");
  m.def(
      "gemm_int8(Tensor a, Tensor w, Tensor w_sums, Tensor a_scale, Tensor w_scale, Tensor? "
      "a_zero_point=None, "
      "Tensor? bias=None, ScalarType out_dtype=float, str? activation=None, Tensor? gate=None, "
      "Tensor? residual=None, int? max_sms=None) -> Tensor");
  m.def(
      "gemm_int8_quantized(Tensor a, Tensor w, Tensor w_sums, Tensor a_scale, Tensor w_scale, "
      "Tensor? a_zero_point=None, Tensor? bias=None, str? activation=None, Tensor? gate=None, "
      "Tensor? residual=None, Tensor? out_scale=None, bool symmetric=True, int? max_sms=None) "
      "-> (Tensor q, Tensor scale, Tensor zero_point)");
  m.def(
      "gemm_int4(Tensor a, Tensor w, Tensor w_scale, int group, Tensor? w_zero_point=None, Tensor? "
      "bias=None, ScalarType? out_dtype=None, str? activation=None, Tensor? gate=None, Tensor? "
      "residual=None, Tensor? perm=None, int? max_sms=None) -> Tensor");
  m.def("explain_gemm_int4(int m, int n, int k, int? group=None, bool bf16=False) -> str");
  m.def(
      "explain_gemm_int4_cuda(int m, int n, int k, int compute_capability, int sm_count, int? "
      "group=None, int? max_sms=None) -> str");
  m.def(
      "gemm_int4_int8(Tensor a, Tensor w, Tensor w_scale, int group, Tensor? a_scale=None, Tensor? "
      "w_zero_point=None, Tensor? a_zero_point=None, Tensor? bias=None, ScalarType "
      "out_dtype=float, str? activation=None, Tensor? gate=None, Tensor? residual=None, Tensor? "
      "perm=None, int? max_sms=None) -> Tensor");
  m.def("explain_gemm_int4_int8(int m, int n, int k, int? group=None) -> str");
  m.def(
      "explain_gemm_int4_int8_cuda(int m, int n, int k, int compute_capability, int sm_count, int? "
      "group=None, int? max_sms=None) -> str");
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
  m.def(
      "merge_attention_states(Tensor[] outs, Tensor[] lses, *, Tensor? sinks=None, ScalarType? "
      "out_dtype=None) -> (Tensor out, Tensor lse)");
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
  m.def(
      "decoder_layers(Tensor x, Tensor[] norms, float[] eps, Tensor[] weights, int[] products, "
      "Tensor(a!)[] k_caches, Tensor(b!)[] v_caches, Tensor(c!)[] k_scales, Tensor(d!)[] v_scales, "
      "Tensor slot_mapping, Tensor block_table, Tensor seq_lens, Tensor cu_seqlens_q, Tensor cos, "
      "Tensor sin, Tensor positions, *, SymInt heads, SymInt max_seqlen_q, float? scale=None, bool "
      "causal=True, SymInt window_left=-1, SymInt window_right=-1, float softcap=0.0, Tensor? "
      "tree_mask=None, Tensor? tree_len=None, Tensor? tree_depth=None) -> Tensor");
  m.def("explain_sample(int m, int vocab) -> str");
  m.def("advise_huge_pages(int address, int bytes) -> ()");
  m.def(
      "explain_paged_attention(int batch, int q_len, int context, int heads, int kv_heads) -> str");
  m.def("explain_paged_kv() -> str");
  m.def("explain_merge_attention_states() -> str");
  m.def("explain_quantize_int8(int m, int k) -> str");
  m.def("explain_rms_norm(int m, int n) -> str");
  m.def("explain_silu_mul(int m, int n) -> str");
  m.def(
      "pack_sparse24(Tensor values, Tensor metadata, SymInt k, str layout, int? group=None) -> "
      "(Tensor data, Tensor column_sums)");
  m.def(
      "unpack_sparse24(Tensor data, SymInt n, SymInt k, str layout, ScalarType dtype) -> (Tensor "
      "values, Tensor metadata)");
  m.def(
      "matmul_sparse24(Tensor a, Tensor w, SymInt n, Tensor? bias=None, ScalarType? "
      "out_dtype=None, "
      "str? activation=None, Tensor? gate=None, Tensor? residual=None, int? max_sms=None) -> "
      "Tensor");
  m.def(
      "matmul_sparse24_int4(Tensor a, Tensor w, Tensor w_scale, int group, Tensor? "
      "w_zero_point=None, Tensor? bias=None, ScalarType? out_dtype=None, str? activation=None, "
      "Tensor? gate=None, Tensor? residual=None, Tensor? perm=None, int? max_sms=None, Tensor? "
      "dense=None, int[] dense_rows=[]) -> Tensor");
  m.def(
      "matmul_sparse24_int4_int8(Tensor a, Tensor w, Tensor w_scale, int group, Tensor? "
      "a_scale=None, Tensor? w_zero_point=None, Tensor? a_zero_point=None, Tensor? bias=None, "
      "ScalarType out_dtype=float, str? activation=None, Tensor? gate=None, Tensor? residual=None, "
      "Tensor? perm=None, int? max_sms=None, Tensor? dense=None, int[] dense_rows=[]) -> Tensor");
  m.def(
      "matmul_sparse24_int8(Tensor a, Tensor w, Tensor w_sums, Tensor a_scale, Tensor w_scale, "
      "Tensor? a_zero_point=None, Tensor? bias=None, ScalarType out_dtype=float, str? "
      "activation=None, Tensor? gate=None, Tensor? residual=None, int? max_sms=None, Tensor? "
      "dense=None, int[] dense_rows=[]) -> Tensor");
  m.def("explain_matmul_sparse24(int m, int n, int k) -> str");
  m.def("explain_matmul_sparse24_int8(int m, int n, int k, int? group=None) -> str");
  m.def("explain_matmul_sparse24_int4(int m, int n, int k, int? group=None) -> str");
  m.def("explain_matmul_sparse24_int4_int8(int m, int n, int k, int? group=None) -> str");
  m.def(
      "explain_matmul_sparse24_cuda(int m, int n, int k, int compute_capability, int sm_count, "
      "int? max_sms=None) -> str");
  m.def(
      "explain_matmul_sparse24_int8_cuda(int m, int n, int k, int compute_capability, int "
      "sm_count, int? max_sms=None) -> str");
  m.def(
      "explain_matmul_sparse24_int4_cuda(int m, int n, int k, int compute_capability, int "
      "sm_count, int? group=None, int? max_sms=None) -> str");
  m.def(
      "explain_matmul_sparse24_int4_int8_cuda(int m, int n, int k, int compute_capability, int "
      "sm_count, int? group=None, int? max_sms=None) -> str");
  m.def("explain_gemm_int8(int m, int n, int k, int? group=None) -> str");
  m.def(
      "explain_gemm_int8_cuda(int m, int n, int k, int compute_capability, int sm_count, int? "
      "group=None, int? max_sms=None) -> str");
  m.def("build_info() -> str");
  m.def("cuda_devices() -> str");
  m.def("host_work() -> str");
  m.def("cpu_isas() -> str");
  m.def("cpu_isa() -> str");
  m.def("set_cpu_isa(str name) -> str");
}

LAMINA_IMPL(CompositeExplicitAutograd, m) {
  m.impl("build_info", TORCH_BOX(&build_info));
  m.impl("cuda_devices", TORCH_BOX(&cuda_devices));
  m.impl("host_work", TORCH_BOX(&made_on_host));
  m.impl("advise_huge_pages", TORCH_BOX(&advise));
  m.impl("cpu_isas", TORCH_BOX(&cpu_isas));
  m.impl("cpu_isa", TORCH_BOX(&cpu_isa));
  m.impl("set_cpu_isa", TORCH_BOX(&set_cpu_isa));
}

}  // namespace lamina::interop

// Importing the module runs the registrations above; it holds nothing itself.
PyMODINIT_FUNC LAMINA_MODULE_INIT(void) {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                                   LAMINA_MODULE_NAME,
                                   nullptr,
                                   -1,
                                   nullptr,
                                   nullptr,
                                   nullptr,
                                   nullptr,
                                   nullptr};
  return PyModule_Create(&definition);
}
