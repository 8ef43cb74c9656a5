// The sizes of a matrix product, out[m, n] = a[m, k] * w[n, k]^T, and the checks that all products share.
#pragma once

#include <cstdint>

#include "base/int_math.h"
#include "base/memo_key.h"
#include "base/status.h"

namespace lamina::gemm {

struct CpuOp;   // gemm/cpu/plan.h
struct CudaOp;  // gemm/cuda/plan.h

struct Problem {
  int64_t m = 0;      // tokens
  int64_t n = 0;      // output features
  int64_t k = 0;      // input features
  int64_t group = 0;  // input features that share a scale; 0: no scales along k
  // Activations are bf16, and bf16 holds the weights without their scales exactly. Only CPU plans depend on it.
  bool is_bf16 = false;

  constexpr bool is_grouped() const { return group != 0; }
  constexpr int64_t groups() const { return is_grouped() ? ceil_div(k, group) : 1; }
};

inline auto key_of(const Problem& problem) {
  const auto& [m, n, k, group, is_bf16] = problem;
  return memo_key(m, n, k, group, is_bf16);
}

// An error unless no size is negative, k <= max_k, and no matrix has more than 2^63 bytes. why: the reason for max_k,
// which ends the error message.
Status check(const char* op, const Problem& problem, int64_t max_k, const char* why);

// The same check for int4 weights, which always have groups.
inline constexpr int kInt4GroupStep = 16;               // every group size is a multiple of it
inline constexpr int64_t kLargestK = int64_t{1} << 48;  // panel sizes must fit int64
inline constexpr int kSymmetricZeroPoint = 8;           // of int4 codes without zero points
Status check_int4(const char* op, const Problem& problem, int64_t max_k, const char* why);

}  // namespace lamina::gemm
