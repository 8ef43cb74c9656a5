// The end of a group of int4 codes on CUDA: the sums of the group are exact integers; they are scaled and added
// to the k chunk. Each ring stage holds, behind its tiles, the scales, zero points and token sums of the groups that
// end in the stage.
#pragma once

#include <algorithm>
#include <bit>
#include <climits>

#include "device/device.h"
#include "gemm/cuda/int4_int8.h"
#include "gemm/cuda/int4_slices.h"
#include "gemm/epilogue_maths.h"
#include "quant/group_rows.cuh"

namespace lamina::gemm {

// The arguments of a launch that concern groups.
struct GroupEndArgs {
  GroupRows scales, zeros;  // zeros: only if w_zero_point is given
  int64_t sums_stride;
  int chunk_steps;                   // tiles of k in a k chunk
  int groups, slices, group_slices;  // slices of kSliceK: in all tiles, in a group
  bool keeps_integers;               // k is split within the only group; no block then ends a group

  static GroupEndArgs of(const Int4Int8Operands& params, const Split& split) {
    const Problem& p = params.problem;
    const bool keeps_integers = is_one_group(p) && split.count > 1;
    return {GroupRows::of(params.w_scale, p.groups(), p.n),
            GroupRows::of(params.w_zero_point, p.groups(), p.n),
            PackedActivations::sums_stride(p),
            keeps_integers ? split.steps : static_cast<int>(chunk_k(p.group) / int4::kTileK),
            static_cast<int>(p.groups()),
            static_cast<int>(int4::tiles_k(p.k)) * kSlices,
            static_cast<int>(std::min<int64_t>(p.group, kMostGroupK) / kSliceK),
            keeps_integers};
  }

  LAMINA_DEVICE int of_slice(int slice) const { return slice / group_slices; }

  // The slice after the last slice of a group; the last group also covers the padding past k. INT_MAX past the last
  // group.
  LAMINA_DEVICE int end_of(int group) const {
    if (keeps_integers) return INT_MAX;
    return group + 1 < groups ? (group + 1) * group_slices : group + 1 == groups ? slices : INT_MAX;
  }

  // The number of groups from `group` on that end at slice `end` or before.
  LAMINA_DEVICE int count_ends(int group, int end) const {
    int count = 0;
    while (end_of(group + count) <= end) ++count;
    return count;
  }
};

// The sums that are 16 times those of codes minus 8, of 2:4 weights. The activations that a feature keeps are not those
// of another, so with zero points their sum is a product of its own.
enum class Codes { kDense, kSparse, kSparseWithZeros };

// A lane's part of a warp's sums over kTiles x 16 features x kTokenGroups x 8 tokens, in the order of mma and wgmma.
// Unless kClears, the first product of a group must overwrite the sums.
template <int kBlockM, int kBlockN, int kMostGroups, int kTiles, int kTokenGroups,
          bool kClears = true, Codes kCodes = Codes::kDense>
struct GroupEnd {
  static constexpr bool kIsDense = kCodes == Codes::kDense;
  static constexpr bool kSumsKept = kCodes == Codes::kSparseWithZeros;

  // In a stage, for kMostGroups groups: scales and zero points of up to 4 bytes each, and the sums of the tokens.
  static constexpr int kZerosAt = kMostGroups * kBlockN * 4, kSumsAt = 2 * kZerosAt;
  static constexpr int kStageBytes = kSumsAt + (kIsDense ? kMostGroups * kBlockM * 4 : 0);

  int32_t sums[kTiles][kTokenGroups][4];
  float k_chunk[kTiles][kTokenGroups][4];
  // With kSumsKept: sums of the activations that a feature keeps.
  int32_t kept[kSumsKept ? kTiles : 1][kSumsKept ? kTokenGroups : 1][4];
  int32_t codes[kTiles][2];  // sums of a lane's codes for both rows, if a_zero_point is given
  int index;                 // the group
  int row;                   // the row of its scales in the stage
  int slices;                // of the group so far, counted for kSumsKept
  bool is_new;               // the group has no product yet

  LAMINA_DEVICE void begin(int group) {
    index = group;
    is_new = true;
    slices = 0;
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      codes[i][0] = codes[i][1] = 0;
#pragma unroll
      for (int j = 0; j < kTokenGroups; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          sums[i][j][e] = 0;
          if constexpr (kSumsKept) kept[i][j][e] = 0;
        }
    }
  }

  // Starts this thread's copies for groups [first, first + count). thread: the index among kThreads.
  template <int kThreads>
  LAMINA_DEVICE static void load(const auto& args, int64_t m0, int64_t n0, int first, int count,
                                 int thread, std::byte* to) {
    const Int4Int8Operands& p = args.p;
    const GroupEndArgs& groups = args.groups;
    groups.scales.template load<kBlockN, kThreads>(first, count, n0, p.problem.n, thread, to);
    if (p.w_zero_point.is_given())
      groups.zeros.template load<kBlockN, kThreads>(first, count, n0, p.problem.n, thread,
                                                    to + kZerosAt);
    if constexpr (!kIsDense) return;
    constexpr int kRowChunks = kBlockM / 4;
    for (int t = thread; t < count * kRowChunks; t += kThreads) {
      const int64_t token = m0 + t % kRowChunks * 4, left = p.problem.m - token;
      const int valid = left < 0 ? 0 : left > 4 ? 4 : static_cast<int>(left);
      dev::cp_async<16>(
          to + kSumsAt + t * 16,
          valid > 0 ? p.a_sums + (first + t / kRowChunks) * groups.sums_stride + token : p.a_sums,
          valid * 4);
    }
  }

  // Copies the zero points of the block's tokens to zero[kBlockM]; thread: the index among kThreads threads.
  template <int kThreads>
  LAMINA_DEVICE static void keep_zero_points(const Int4Int8Operands& p, int64_t m0, int thread,
                                             int32_t* zero) {
    if (!p.a_zero_point.is_given()) return;
    for (int t = thread; t < kBlockM; t += kThreads) {
      const int64_t i = m0 + t;
      dev::store_shared(zero + t, i < p.problem.m ? int32_t{p.a_zero_point[i]} : 0);
    }
  }

  // Expands the codes of two slices, 16 rows x 32 k, to bytes, for a lane's rows q and q + 8 in turn.
  LAMINA_DEVICE static void unpack(uint32_t first, uint32_t second, uint32_t (&a)[4]) {
    constexpr uint32_t kLow = 0x0f0f0f0f;
    a[0] = first & kLow;
    a[1] = first >> 4 & kLow;
    a[2] = second & kLow;
    a[3] = second >> 4 & kLow;
  }

  // Adds the codes of a product's operand a to the code sums.
  LAMINA_DEVICE void add_codes(int tile, const uint32_t (&a)[4]) {
    constexpr uint32_t kOnes = 0x01010101;
#pragma unroll
    for (int r = 0; r < 2; ++r)
      codes[tile][r] = dev::dot4_s8(a[r], kOnes, dev::dot4_s8(a[r + 2], kOnes, codes[tile][r]));
  }

  // Ends the group: adds its scaled sums to the k chunk. zero: the zero points of the block's tokens, if given.
  LAMINA_DEVICE void end(const auto& args, const auto& at, const std::byte* stage,
                         const int32_t* zero) {
    if (args.p.a_zero_point.is_given()) correct(at, zero);
    const bool has_zeros = args.p.w_zero_point.is_given();
    float scale[kTiles][2], minus_zero[kTiles][2] = {};
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      const int column = (at.warp_n * kTiles + i) * int4::kTileN + dev::lane() / 4 * 2;
      load_pair(args.p.w_scale.kind, stage, row * kBlockN + column, scale[i]);
      if (!has_zeros) continue;
      load_pair(args.p.w_zero_point.kind, stage + kZerosAt, row * kBlockN + column, minus_zero[i]);
#pragma unroll
      for (int r = 0; r < 2; ++r) minus_zero[i][r] = -minus_zero[i][r];
    }
    const auto add = [&](int i, int j, int e, int32_t acc, int32_t a_sum, bool has_zeros_here) {
      k_chunk[i][j][e] = add_group(acc, a_sum, has_zeros_here, minus_zero[i][e / 2],
                                   scale[i][e / 2], k_chunk[i][j][e]);
      if constexpr (kClears) sums[i][j][e] = 0;
    };
    if constexpr (kIsDense) {
      const auto* const a_sums = reinterpret_cast<const int32_t*>(stage + kSumsAt) + row * kBlockM;
      const auto add_all = [&](bool has_zeros_here) {
        for_tokens(at, a_sums, [&](int i, int j, int e, int32_t a_sum) {
          add(i, j, e, sums[i][j][e], a_sum, has_zeros_here);
        });
      };
      if (has_zeros) {
        add_all(true);
      } else {
        add_all(false);
      }
    } else {
      for_sums([&](int i, int j, int e) {
        const int32_t less = less_eight(sums[i][j][e]);
        if constexpr (kSumsKept) {
          const int32_t a_sum = kept[i][j][e];
          add(i, j, e, less + kSymmetricZeroPoint * a_sum, a_sum, true);
          if constexpr (kClears) kept[i][j][e] = 0;
        } else {
          add(i, j, e, less, 0, false);
        }
      });
    }
    ++index;
    ++row;
    is_new = true;
    slices = 0;
  }

  // Leaves the unscaled sums of a part of the only group in k_chunk, for the reduction.
  LAMINA_DEVICE void keep_integers(const auto& args, const auto& at, const int32_t* zero) {
    if (args.p.a_zero_point.is_given()) correct(at, zero);
    for_sums([&](int i, int j, int e) {
      k_chunk[i][j][e] = std::bit_cast<float>(kIsDense ? sums[i][j][e] : less_eight(sums[i][j][e]));
    });
  }

 private:
  LAMINA_DEVICE static void for_sums(const auto& body) {
#pragma unroll
    for (int i = 0; i < kTiles; ++i)
#pragma unroll
      for (int j = 0; j < kTokenGroups; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) body(i, j, e);
  }

  // The sum over codes minus 8, from 16 times that sum.
  LAMINA_DEVICE static int32_t less_eight(int32_t sum) { return sum >> 4; }

  // Calls body(i, j, e, value of the token of sums[i][j][e]). values: one value for each token of the block.
  LAMINA_DEVICE static void for_tokens(const auto& at, const int32_t* values, const auto& body) {
#pragma unroll
    for (int j = 0; j < kTokenGroups; ++j) {
      const int token = (at.warp_m * kTokenGroups + j) * 8 + dev::lane() % 4 * 2;
      const auto pair = dev::load_shared(reinterpret_cast<const dev::U32x2*>(values + token));
#pragma unroll
      for (int i = 0; i < kTiles; ++i)
#pragma unroll
        for (int e = 0; e < 4; ++e) body(i, j, e, static_cast<int32_t>(pair.x[e % 2]));
    }
  }

  // Subtracts the effect of the tokens' zero points from the sums, and clears the code sums.
  LAMINA_DEVICE void correct(const auto& at, const int32_t* zero) {
#pragma unroll
    for (int i = 0; i < kTiles; ++i) add_lanes(codes[i]);
    for_tokens(at, zero, [&](int i, int j, int e, int32_t token_zero) {
      sums[i][j][e] = lamina::gemm::correct(sums[i][j][e], token_zero, codes[i][e / 2]);
      if constexpr (kSumsKept)
        kept[i][j][e] = lamina::gemm::correct(kept[i][j][e], token_zero, slices * kSliceK / 2);
    });
#pragma unroll
    for (int i = 0; i < kTiles; ++i) codes[i][0] = codes[i][1] = 0;
  }

  // Adds up the four lanes that share the rows of an mma.
  LAMINA_DEVICE static void add_lanes(int32_t (&sum)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int step = 1; step < 4; step *= 2) sum[r] += dev::shuffle_xor(sum[r], step);
  }

  // Loads two neighbouring elements of a row and converts them to f32; `at` is even.
  LAMINA_DEVICE static void load_pair(GroupTensor::Kind kind, const std::byte* from, int at,
                                      float (&to)[2]) {
    if (kind == GroupTensor::Kind::kF32) {
      const auto pair = dev::load_shared(reinterpret_cast<const dev::U32x2*>(from + at * 4));
#pragma unroll
      for (int e = 0; e < 2; ++e) to[e] = std::bit_cast<float>(pair.x[e]);
    } else if (kind == GroupTensor::Kind::kU8) {
      const auto pair = dev::load_shared(reinterpret_cast<const uint16_t*>(from + at));
#pragma unroll
      for (int e = 0; e < 2; ++e) to[e] = static_cast<float>(pair >> (8 * e) & 0xff);
    } else {
      const auto pair = dev::load_shared(reinterpret_cast<const uint32_t*>(from + at * 2));
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const auto bits = static_cast<uint16_t>(pair >> (16 * e));
        to[e] = kind == GroupTensor::Kind::kF16 ? dev::f16_to_f32(bits) : dev::bf16_to_f32(bits);
      }
    }
  }
};

}  // namespace lamina::gemm
