// The weights of a strip and the record of a kernel, for all kernels of gemm_int8. Each ISA compiles its own copy:
// gemm/cpu/int8_nest.h says why.
#pragma once

#include "gemm/cpu/int8_nest.h"
#include "ops/gemm_int8/gemm_int8.h"

namespace lamina::gemm_int8 {
namespace {

// Product with weights in the order of int8_tile.
template <class Product>
struct Dense : Product {
  static constexpr int kWeightBytes = int8_tile::kTileBytes;
  static void with_weights(const Params& p, int64_t n0, int64_t tiles_k, const auto& body) {
    body(WeightsOf<Dense>{reinterpret_cast<const uint8_t*>(p.w) +
                          n0 / int8_tile::kTileN * tiles_k * kWeightBytes});
  }
};

template <class Product>
constexpr CpuKernel make_kernel(const char* name, Isa isa, int macs_per_cycle) {
  using Tile = Dense<Product>;
  return cpu_kernel<Int8Nest<Params, Tile>, Tile, Params>(name, isa, macs_per_cycle);
}

}  // namespace
}  // namespace lamina::gemm_int8
