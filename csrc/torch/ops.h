// The ops that decoder_layers.cc calls, as their bindings define them: with the arguments of their schemas and with all
// checks.
#pragma once

#include <tuple>
#include <vector>

#include "torch/interop.h"

namespace lamina::interop {

// gemm_int8
Tensor multiply_int8(const Tensor& a, const Tensor& w, const Tensor& w_sums, const Tensor& a_scale,
                     const Tensor& w_scale, std::optional<Tensor> a_zero_point,
                     std::optional<Tensor> bias, ScalarType out_dtype,
                     std::optional<std::string> activation, std::optional<Tensor> gate,
                     std::optional<Tensor> residual, std::optional<int64_t> max_sms);
// gemm_int4
Tensor multiply_int4(const Tensor& a, const Tensor& w, const Tensor& w_scale, int64_t group,
                     std::optional<Tensor> w_zero_point, std::optional<Tensor> bias,
                     std::optional<ScalarType> out_dtype, std::optional<std::string> activation,
                     std::optional<Tensor> gate, std::optional<Tensor> residual,
                     std::optional<Tensor> perm, std::optional<int64_t> max_sms);
// gemm_int4_int8
Tensor multiply_int4_int8(const Tensor& a, const Tensor& w, const Tensor& w_scale, int64_t group,
                          std::optional<Tensor> a_scale, std::optional<Tensor> w_zero_point,
                          std::optional<Tensor> a_zero_point, std::optional<Tensor> bias,
                          ScalarType out_dtype, std::optional<std::string> activation,
                          std::optional<Tensor> gate, std::optional<Tensor> residual,
                          std::optional<Tensor> perm, std::optional<int64_t> max_sms);
// matmul_sparse24_int8
Tensor multiply_sparse24_int8(const Tensor& a, const Tensor& w, const Tensor& w_sums,
                              const Tensor& a_scale, const Tensor& w_scale,
                              std::optional<Tensor> a_zero_point, std::optional<Tensor> bias,
                              ScalarType out_dtype, std::optional<std::string> activation,
                              std::optional<Tensor> gate, std::optional<Tensor> residual,
                              std::optional<int64_t> max_sms, std::optional<Tensor> dense,
                              std::vector<int64_t> dense_rows);
// matmul_sparse24_int4
Tensor multiply_sparse24_int4(const Tensor& a, const Tensor& w, const Tensor& w_scale,
                              int64_t group, std::optional<Tensor> w_zero_point,
                              std::optional<Tensor> bias, std::optional<ScalarType> out_dtype,
                              std::optional<std::string> activation, std::optional<Tensor> gate,
                              std::optional<Tensor> residual, std::optional<Tensor> perm,
                              std::optional<int64_t> max_sms, std::optional<Tensor> dense,
                              std::vector<int64_t> dense_rows);
// matmul_sparse24_int4_int8
Tensor multiply_sparse24_int4_int8(const Tensor& a, const Tensor& w, const Tensor& w_scale,
                                   int64_t group, std::optional<Tensor> a_scale,
                                   std::optional<Tensor> w_zero_point,
                                   std::optional<Tensor> a_zero_point, std::optional<Tensor> bias,
                                   ScalarType out_dtype, std::optional<std::string> activation,
                                   std::optional<Tensor> gate, std::optional<Tensor> residual,
                                   std::optional<Tensor> perm, std::optional<int64_t> max_sms,
                                   std::optional<Tensor> dense, std::vector<int64_t> dense_rows);
// quantize_int8
std::tuple<Tensor, Tensor, Tensor> quantize(const Tensor& x, std::optional<Tensor> scale,
                                            std::optional<Tensor> zero_point, bool symmetric);
// rms_norm, rms_norm_int8
std::tuple<Tensor, Tensor> normalize(const Tensor& x, const Tensor& weight, double eps,
                                     std::optional<Tensor> residual);
std::tuple<Tensor, Tensor, Tensor, Tensor> normalize_to_int8(const Tensor& x, const Tensor& weight,
                                                             double eps,
                                                             std::optional<Tensor> residual,
                                                             bool symmetric);
// silu_mul, silu_mul_int8
Tensor silu_and_multiply(const Tensor& x, std::optional<Tensor> up);
std::tuple<Tensor, Tensor, Tensor> silu_and_multiply_to_int8(const Tensor& x,
                                                             std::optional<Tensor> up,
                                                             bool symmetric);
// append_paged_kv
void append_kv(const Tensor& k, const Tensor& v, const Tensor& k_cache, const Tensor& v_cache,
               const Tensor& slot_mapping, std::optional<Tensor> k_scale,
               std::optional<Tensor> v_scale, std::optional<Tensor> cos, std::optional<Tensor> sin,
               std::optional<Tensor> positions, std::optional<int64_t> rotary_dim, bool interleaved,
               std::optional<Tensor> q);
// paged_attention
std::tuple<Tensor, Tensor> attend(
    const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& block_table,
    const Tensor& seq_lens, const Tensor& cu_seqlens_q, int64_t max_seqlen_q,
    std::optional<double> scale, bool causal, int64_t window_left, int64_t window_right,
    double softcap, std::optional<Tensor> alibi_slopes, std::optional<Tensor> sinks,
    std::optional<Tensor> tree_mask, std::optional<Tensor> tree_len,
    std::optional<Tensor> tree_depth, std::optional<Tensor> k_scale, std::optional<Tensor> v_scale,
    std::optional<ScalarType> out_dtype, bool return_lse, bool batch_invariant);

}  // namespace lamina::interop
