// gemm_int8 / sm80 with scales along k: loads the scales of a ring step, and scales the step's sums.
//
// Algorithm  a ring step is a group. Its sums are exact integers; they are scaled and added to the k chunk in
//            registers. The end of a k chunk: gemm/cuda/k_chunk.cuh
// Data path  scales -cp.async-> smem, behind the stage's tiles -> regs; sums s32 -> f32
#pragma once

#include "device/device.h"
#include "gemm/cuda/epilogue.cuh"
#include "gemm/cuda/k_chunk.cuh"
#include "ops/gemm_int8/gemm_int8.h"

namespace lamina::gemm_int8 {

// The scales of one group in shared memory, 0 past the edges of m and n.
template <int kRows, int kColumns>
struct Sm80Scales {
  float w_scale[kColumns];
  int32_t w_sum[kColumns];
  float a_scale[kRows];

  // Starts the copies, four bytes each: scales may have any strides.
  LAMINA_DEVICE static void load(const Params& p, int64_t group, int64_t m0, int64_t n0,
                                 int threads, Sm80Scales& to) {
    const Broadcast<float> w_scale = p.w_scale_of(group), a_scale = p.a_scale_of(group);
    const bool has_zero = p.a_zero_point.is_given();
    for (int t = dev::thread_index(); t < kColumns; t += threads) {
      const int bytes = n0 + t < p.problem.n ? 4 : 0;
      const int64_t j = bytes > 0 ? n0 + t : 0;
      dev::cp_async<4>(&to.w_scale[t], w_scale.data + j * w_scale.stride, bytes);
      if (has_zero) dev::cp_async<4>(&to.w_sum[t], p.w_sums + group * p.problem.n + j, bytes);
    }
    for (int t = dev::thread_index(); t < kRows; t += threads) {
      const int bytes = m0 + t < p.problem.m ? 4 : 0;
      const int64_t i = bytes > 0 ? m0 + t : 0;
      dev::cp_async<4>(&to.a_scale[t], a_scale.data + i * a_scale.stride, bytes);
    }
  }
};

// A lane's part of a k chunk, in the order of the mma's sums. Kernel: Sm80<...>
template <class Kernel, bool kIsGrouped>
struct Sm80Groups {
  LAMINA_DEVICE Sm80Groups(const auto&, const auto&) {}
};

template <class Kernel>
struct Sm80Groups<Kernel, true> {
  using Sums = typename Kernel::Sums;
  static constexpr int kRowTiles = Kernel::kRowTiles, kColumnGroups = Kernel::kColumnGroups;
  static constexpr int kWords = kRowTiles * kColumnGroups * Kernel::kMmasPerGroup;  // of 16 bytes

  float k_chunk[kRowTiles][kColumnGroups][Kernel::kMmasPerGroup][4];
  int32_t zero_point[kRowTiles][2];

  LAMINA_DEVICE Sm80Groups(const Params& p, const auto& at) {
    k_chunk_end().clear(empty_sum(p.problem.groups()));
    for_rows([&](int r, int half, int row) {
      const int64_t i = at.m0 + at.warp_m * Kernel::kWarpM + row;
      zero_point[r][half] = p.a_zero_point.is_given() && i < p.problem.m ? p.a_zero_point[i] : 0;
    });
  }

  // Adds the sums of a step to the k chunk. Where k is not split, k_chunk holds the total over k after the last step.
  LAMINA_DEVICE void add_step(const auto& args, const auto& at, int step, const auto& scales,
                              Sums& sums) {
    add_sums(scales, args.p.a_zero_point.is_given(), at, sums);
    k_chunk_end()(args.split, step + 1, at.is_last(step), [&](int64_t partial) {
      Kernel::template store<true>(args, at, partial, k_chunk);
    });
  }

 private:
  // Scales the sums, adds them to the k chunk, and clears them.
  LAMINA_DEVICE void add_sums(const auto& scales, bool has_zero, const auto& at, Sums& sums) {
    float a_scale[kRowTiles][2];
    for_rows([&](int r, int half, int row) {
      a_scale[r][half] = dev::load_shared(&scales.a_scale[at.warp_m * Kernel::kWarpM + row]);
    });
#pragma unroll
    for (int c = 0; c < kColumnGroups; ++c) {
      const int j =
          at.warp_n * Kernel::kWarpN + c * Kernel::kGroupN + dev::lane() % 4 * Kernel::kLaneColumns;
      if (has_zero) {
        const auto w_sum = eight(&scales.w_sum[j]);
        for_octets([&](int r, int half, int e) {
          int32_t& sum = sums[r][c][e % 4][half * 2 + e / 4];
          sum = correct(sum, zero_point[r][half], w_sum.value[e]);
        });
      }
      const auto w_scale = eight(&scales.w_scale[j]);
      for_octets([&](int r, int half, int e) {
        int32_t& sum = sums[r][c][e % 4][half * 2 + e / 4];
        float& chain = k_chunk[r][c][e % 4][half * 2 + e / 4];
        chain = add_group(sum, a_scale[r][half], w_scale.value[e], chain);
        sum = 0;
      });
    }
  }

  LAMINA_DEVICE auto k_chunk_end() {
    return KChunkEnd<kWords, Kernel::kThreads>{
        &k_chunk[0][0][0][0],
        reinterpret_cast<dev::U32x4*>(dev::dynamic_smem() + Kernel::Pipe::kRingBytes) +
            dev::thread_index(),
        kChunkGroups};
  }

  // Calls body(row tile, half of the row tile, row within the warp's rows).
  LAMINA_DEVICE static void for_rows(const auto& body) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        body(r, half, r * Kernel::kMmaM + half * 8 + dev::lane() / 4);
  }
  LAMINA_DEVICE static void for_octets(const auto& body) {
    for_rows([&](int r, int half, int) {
#pragma unroll
      for (int e = 0; e < Kernel::kLaneColumns; ++e) body(r, half, e);
    });
  }

  template <class T>
  LAMINA_DEVICE static Run<T, 8> eight(const T* from) {
    struct Words {
      dev::U32x4 word[2];
    };
    const auto* const words = reinterpret_cast<const dev::U32x4*>(from);
    return std::bit_cast<Run<T, 8>>(Words{{dev::load_shared(words), dev::load_shared(words + 1)}});
  }
};

}  // namespace lamina::gemm_int8
