// The products of a warpgroup with wgmma: queries times keys, and weights times values.
#pragma once

#include "ops/paged_attention/cuda/products.cuh"
#include "ops/paged_attention/cuda/sm90a_shape.cuh"

namespace lamina::paged_attention {

template <class Shape>
struct Sm90aProducts {
  using T = typename Shape::T;
  using W = typename Shape::W;
  using State = typename Shape::State;
  using Registers = Products<Shape>;  // the fragments of a warp of wgmma are those of mma
  using Queries = typename Registers::Queries;
  using Scores = typename Registers::Scores;
  using Weights = typename Registers::Weights;
  static constexpr int kSlices = Shape::kDim / 16, kSliceBytes = 32;
  static constexpr int kBoxSlices = Shape::kRunBytes / kSliceBytes;

  // Tiles of 8 columns in the order of wgmma's registers.
  template <int kTiles>
  LAMINA_DEVICE static float (&flat(float (&tiles)[1][kTiles][4]))
      [kTiles * 4] { return reinterpret_cast<float (&)[kTiles * 4]>(tiles); }

  LAMINA_DEVICE static uint64_t descriptor(int at, int leading_bytes) {
    // The compiler would keep the descriptors of all slices of queries in registers, which the sums need: it may not know
    // that the address is the same for all blocks of columns.
    uint32_t address[1] = {dev::smem_address(Shape::smem(at))};
    dev::wgmma_fence_registers(address);
    return dev::matrix_descriptor(address[0], leading_bytes, Shape::kAtomBytes, Shape::kSwizzle);
  }

  // The queries' registers; those of larger head_dims stay in shared memory.
  LAMINA_DEVICE static void load_queries(Queries& queries) {
    if constexpr (Shape::kKeepsQueries) {
      Registers::load_queries(queries);
#pragma unroll
      for (int s = 0; s < kSlices; ++s) dev::wgmma_fence_registers(queries.slice[s].of[0]);
    }
  }

  // Starts scores = queries * keys^T, summed in the order of head_dim, as a group of wgmmas.
  LAMINA_DEVICE static void start_keys(int stage, const Queries& queries, Scores& scores) {
    auto& sums = flat(scores);
    const int warpgroup = Shape::warp_m() / Shape::kWarpgroupWarps;
    const uint64_t keys = descriptor(stage * Shape::kTileBytes, 0);
    const uint64_t rows =
        descriptor(Shape::kQueriesAt + warpgroup * Shape::kWarpgroupRows * Shape::kRunBytes, 0);
    dev::wgmma_fence_registers(sums);
    dev::wgmma_fence();
#pragma unroll
    for (int s = 0; s < kSlices; ++s) {
      const int at = s % kBoxSlices * kSliceBytes;
      const uint64_t b = advance_descriptor(keys, s / kBoxSlices * Shape::kBoxBytes + at);
      if constexpr (Shape::kKeepsQueries) {
        multiply<T, kColumns, false>(sums, queries.slice[s].of[0], b, s > 0);
      } else {
        const uint64_t a = advance_descriptor(rows, s / kBoxSlices * Shape::kQueryBoxBytes + at);
        multiply<T, kColumns, false>(sums, a, b, s > 0);
      }
    }
    dev::wgmma_commit();
  }

  // Weights of 16 bits, in the order of wgmma's operand a. Not while wgmmas are in flight: their registers are inputs of wgmmas.
  LAMINA_DEVICE static void round(const Scores& scores, Weights& weights) {
#pragma unroll
    for (int n = 0; n < Shape::kTilesColumn; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        weights[0][n / 2][n % 2 * 2 + half] =
            Half<W>::pack(scores[0][n][half * 2], scores[0][n][half * 2 + 1]);
  }

  // Starts state += weights * values, in the order of columns, as a group of wgmmas.
  LAMINA_DEVICE static void start_values(int stage, Weights& weights, State& state) {
    auto& sums = flat(state.values);
    const uint64_t values = descriptor(stage * Shape::kTileBytes, Shape::kBoxBytes);
    dev::wgmma_fence_registers(sums);
#pragma unroll
    for (int s = 0; s < kColumns / 16; ++s) dev::wgmma_fence_registers(weights[0][s]);
    dev::wgmma_fence();
#pragma unroll
    for (int s = 0; s < kColumns / 16; ++s)
      multiply<W, Shape::kDim, true>(sums, weights[0][s],
                                     advance_descriptor(values, s * 2 * Shape::kAtomBytes), true);
    dev::wgmma_commit();
  }

 private:
  template <class Element, int kN, bool kIsNMajor>
  LAMINA_DEVICE static void multiply(float (&sums)[kN / 2], const auto& a, uint64_t b,
                                     bool accumulate) {
    if constexpr (std::is_same_v<Element, F16>) {
      dev::wgmma_m64k16_f16<kN, false, kIsNMajor>(sums, a, b, accumulate);
    } else {
      dev::wgmma_m64k16_bf16<kN, false, kIsNMajor>(sums, a, b, accumulate);
    }
  }
};

}  // namespace lamina::paged_attention
