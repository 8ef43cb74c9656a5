// The weights of a strip and the record of a kernel, for all kernels of gemm_int4. Each ISA compiles its own copy:
// gemm/cpu/int8_nest.h says why.
#pragma once

#include "gemm/cpu/float_nest.h"
#include "layout/int4.h"
#include "ops/gemm_int4/gemm_int4.h"

namespace lamina::gemm_int4 {
namespace {

// A line of int4_rows: 8 k of 16 columns.
inline constexpr int kLineBytes = 64, kLineK = 8;

constexpr const uint8_t* line_at(const uint8_t* tile, int64_t k) {
  return tile + k / kLineK * kLineBytes;
}

// Product with weights in the order of int4_rows.
template <class Product>
struct Dense : Product {
  static constexpr int kWeightBytes = int4::kTileBytes, kStreamBytes = kLineBytes;
  static constexpr int kLineK = gemm_int4::kLineK, kPackK = 1;
  static constexpr bool kHasScales = true;
  static void with_weights(const Params& p, int64_t n0, const auto& body) {
    body(WeightsOf<Dense>{p.w + n0 / int4::kTileN * int4::tiles_k(p.problem.k) * kWeightBytes});
  }
};

template <class Product>
constexpr CpuKernel make_kernel(const char* name, Isa isa, int macs_per_cycle) {
  return float_kernel<Params, Dense<Product>>(name, isa, macs_per_cycle);
}

}  // namespace
}  // namespace lamina::gemm_int4
