// The weights of the products on f16 and bf16: 2:4 values as they are, or int4 codes that become values in registers.
#pragma once

#include <type_traits>

#include "base/numeric.h"
#include "gemm/cuda/int4_groups.cuh"
#include "ops/matmul_sparse24/cuda/run.h"
#include "ops/matmul_sparse24/cuda/weights.cuh"

namespace lamina::matmul_sparse24 {

inline constexpr int kProductK = 32;                                 // k of one mma.sp or wgmma.sp
inline constexpr int kProducts = sparse24_tile::kTileK / kProductK;  // of a tile

// Scales and zero points of 16-bit values: none. The members are those of StageGroups (gemm/cuda/int4_groups.cuh).
struct NoGroups {
  static constexpr int kBytes = 0;
  struct Next {
    LAMINA_DEVICE static Next at(const GroupArgs&, int) { return {}; }
  };
  template <int kThreads>
  LAMINA_DEVICE static void load(const GroupArgs&, Next&, int, int64_t, int64_t, int, std::byte*) {}
  template <int kTiles>
  struct Reached {
    LAMINA_DEVICE void start(const GroupArgs&, int) {}
    LAMINA_DEVICE void begin_stage(int) {}
  };
};

// kBits: 4 for codes, 16 for values. T_: F16 or BF16, the dtype of a.
template <int kBits_, class T_>
struct FloatWeights {
  static constexpr int kBits = kBits_, kTileBytes = sparse24_tile::tile_bytes(kBits);
  static constexpr bool kHasGroups = kBits == 4;
  static constexpr const char* kOp = kHasGroups ? "matmul_sparse24_int4" : "matmul_sparse24";
  using T = T_;
  using Params = HalfParams;

  template <int kColumns, int kStageSlices>
  using Groups = std::conditional_t<kHasGroups, StageGroups<T, kColumns, kStageSlices>, NoGroups>;

  static GroupArgs group_args(const HalfParams& params) {
    if constexpr (kHasGroups) return GroupArgs::of(params);
    return {};
  }
};

// Sets the weights from the `valid`-th of 32 k on to 0; valid is a multiple of 4. Past k scales are arbitrary, and weights
// may be Inf or NaN.
LAMINA_DEVICE void mask_weights(uint32_t (&a)[4], int valid) {
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (dev::lane() % 4 * 4 + i / 2 * 16 >= valid) a[i] = 0;
}

// sums[16,8] += a[16,32] * b[32,8]
template <class T, int kProduct>
LAMINA_DEVICE void multiply(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[4],
                            uint32_t metadata) {
  if constexpr (std::is_same_v<T, F16>) {
    dev::mma_sparse_m16n8k32_f16<kProduct>(sums, a, b, metadata);
  } else {
    dev::mma_sparse_m16n8k32_bf16<kProduct>(sums, a, b, metadata);
  }
}

}  // namespace lamina::matmul_sparse24
