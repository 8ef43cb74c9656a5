// The part that products on sm_80 share if the rows of their mma are output features: weights of int4, and 2:4 weights.
// gemm/cuda/sm80_pipe.cuh feeds it.
//
// Algorithm  weights are the 16 rows of an mma and tokens its columns, so a few tokens waste little. A warp keeps its
//            weights in registers
// Features   lanes with lane / 4 == q hold two neighbouring features of each 16, as rows q and q + 8 of an mma
#pragma once

#include "device/device.h"
#include "gemm/cuda/k_chunk.cuh"
#include "gemm/cuda/sm80_pipe.cuh"
#include "gemm/cuda/store_rows.cuh"

namespace lamina::gemm {

// kBlockBytes: shared memory behind the ring, for the kernel's own use. kHasChunks: sums end with k chunks.
template <Sm80Shape kShape, class Scaler, int kBlockBytes = 0, bool kHasChunks = true>
struct Sm80Features : Sm80Pipe<kShape> {
  using Pipe = Sm80Pipe<kShape>;
  using Place = typename Pipe::Place;

  // A warp computes kTiles x 16 features of kWarpTokens tokens, in groups of 8 tokens: the columns of an mma.
  static constexpr int kWarpTokens = kShape.block_m / kShape.warps_m;
  static constexpr int kTiles = kShape.block_n / kShape.warps_n / int4::kTileN;
  static constexpr int kTokenGroups = kWarpTokens / 8;
  static_assert(kTokenGroups * 8 * kShape.warps_m == kShape.block_m && kTokenGroups % 2 == 0);
  static_assert(kTiles * int4::kTileN * kShape.warps_n == kShape.block_n && kShape.warps_k == 1);
  using Codes = dev::U32x4[kTiles];
  using Tokens = uint32_t[kTokenGroups / 2][4];  // two registers for each 8 tokens
  using WideTokens = uint32_t[kTokenGroups][4];  // four, of an mma.sp
  using Sums = float[kTiles][kTokenGroups][4];

  // Behind the ring and kBlockBytes lies each warp's total of k chunks. When the warp stores, its rows replace the total.
  using Rows = StoreRows<kWarpTokens, Scaler>;
  static constexpr int kWords = kTiles * kTokenGroups;  // words of four sums
  static constexpr int kWarpBytes = kHasChunks ? kWords * dev::kWarpLanes * 16 : Rows::kBytes;
  static constexpr int kWarpsAt = Pipe::kRingBytes + kBlockBytes;
  static constexpr int kSmemBytes = kWarpsAt + Pipe::kWarps * kWarpBytes;
  static_assert(Rows::kBytes <= kWarpBytes && kWarpsAt % 16 == 0);

  LAMINA_DEVICE static std::byte* warp_bytes() {
    return dev::dynamic_smem() + kWarpsAt + dev::warp() * kWarpBytes;
  }

  // Loads this lane's codes of the warp's features from tile t of a step; tiles count along k.
  LAMINA_DEVICE static void load_codes(const Place& at, const std::byte* stage, int t,
                                       Codes& codes) {
#pragma unroll
    for (int i = 0; i < kTiles; ++i)
      codes[i] = dev::load_shared(
          reinterpret_cast<const dev::U32x4*>(tile_at(at, stage, i, t) + dev::lane() * 16));
  }

  // Loads the warp's tokens as operands b of mmas, four registers for 16 tokens. This lane gives ldmatrix the address of
  // chunk `chunk` of one row.
  LAMINA_DEVICE static void load_tokens(const Place& at, const std::byte* stage, int chunk,
                                        Tokens& tokens) {
    const int lane = dev::lane();
#pragma unroll
    for (int j = 0; j < kTokenGroups / 2; ++j) {
      const int row = at.warp_m * kWarpTokens + j * 16 + lane / 16 * 8 + lane % 8;
      dev::ldmatrix(tokens[j], stage + Pipe::chunk_at(row, chunk));
    }
  }

  // Loads the warp's tokens as operands b of mma.sp: four chunks from `chunk` on.
  LAMINA_DEVICE static void load_tokens(const Place& at, const std::byte* stage, int chunk,
                                        WideTokens& tokens) {
    const int lane = dev::lane();
#pragma unroll
    for (int j = 0; j < kTokenGroups; ++j) {
      const int row = at.warp_m * kWarpTokens + j * 8 + lane % 8;
      dev::ldmatrix(tokens[j], stage + Pipe::chunk_at(row, chunk + lane / 8));
    }
  }

  // Tile t along k of the warp's i-th column of tiles.
  LAMINA_DEVICE static const std::byte* tile_at(const Place& at, const std::byte* stage, int i,
                                                int t) {
    return stage + Pipe::kBytesA +
           ((at.warp_n * kTiles + i) * kShape.step_tiles + t) * kShape.tile_bytes;
  }

  // Ends each k chunk of a warp after `steps` steps.
  LAMINA_DEVICE static auto k_chunk_end(Sums& sums, int steps) {
    return KChunkEnd<kWords, dev::kWarpLanes>{
        &sums[0][0][0], reinterpret_cast<dev::U32x4*>(warp_bytes()) + dev::lane(), steps};
  }

  // Stores the sums to the partial sum of a k chunk (kToPartial), or through the epilogue to out.
  template <bool kToPartial>
  LAMINA_DEVICE static void store(const auto& args, const Place& at, int64_t partial,
                                  const auto& sums) {
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      const int64_t n0 = at.n0 + (at.warp_n * kTiles + i) * int4::kTileN;
      Rows::template store<kToPartial>(args.p, args.split,
                                       {at.m0 + at.warp_m * kWarpTokens, n0, partial}, warp_bytes(),
                                       dev::lane() / 4, sums[i]);
    }
  }
};

}  // namespace lamina::gemm
