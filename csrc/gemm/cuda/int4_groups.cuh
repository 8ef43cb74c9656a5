// Groups along k in the stages of a ring: loads the rows of scales and zero points that a step touches, and keeps
// track of the group that the products have reached.
#pragma once

#include <algorithm>
#include <climits>

#include "base/int_math.h"
#include "device/device.h"
#include "gemm/cuda/int4_dequantize.cuh"
#include "gemm/cuda/int4_slices.h"
#include "gemm/problem.h"
#include "layout/int4.h"
#include "quant/group_rows.cuh"

namespace lamina::gemm {

// The arguments of a launch that concern groups.
struct GroupArgs {
  GroupRows scales, zeros;  // zeros: only if has_zeros
  bool has_zeros;
  int slices, group_slices;  // slices of kSliceK in k, and in a group
  int whole_slices;          // slices of k without the ragged last one

  static GroupArgs of(const auto& params) {
    const Problem& p = params.problem;
    return {GroupRows::of(params.w_scale, p.groups(), p.n),
            GroupRows::of(params.w_zero_point, p.groups(), p.n),
            params.w_zero_point.is_given(),
            static_cast<int>(ceil_div(p.k, kSliceK)),
            static_cast<int>(std::min<int64_t>(p.group / kSliceK, INT_MAX / 2)),
            static_cast<int>(p.k / kSliceK)};
  }
};

// T: F16 or BF16, the dtype of the scales. A stage has kStageSlices and rows of kColumns output features.
template <class T, int kColumns, int kStageSlices>
struct StageGroups {
  static constexpr int kRowBytes = kColumns * 2;
  static constexpr int kZerosAt = kStageSlices * kRowBytes, kBytes = 2 * kZerosAt;

  // The next group to load.
  struct Next {
    int group, end;  // the slice after its last

    LAMINA_DEVICE static Next at(const GroupArgs& args, int slice) {
      const int group = slice / args.group_slices;
      return {group, (group + 1) * args.group_slices};
    }
  };

  // Starts this thread's copies of the groups in the stage that begins with slice `begin`. thread: the index among
  // kThreads.
  template <int kThreads>
  LAMINA_DEVICE static void load(const GroupArgs& args, Next& next, int begin, int64_t n0,
                                 int64_t n, int thread, std::byte* to) {
    const int end = begin + kStageSlices < args.slices ? begin + kStageSlices : args.slices;
    for (; next.end <= begin; next.end += args.group_slices) ++next.group;
    int count = 1;
    for (int more = next.end; more < end; more += args.group_slices) ++count;
    args.scales.template load<kColumns, kThreads>(next.group, count, n0, n, thread, to);
    if (args.has_zeros)
      args.zeros.template load<kColumns, kThreads>(next.group, count, n0, n, thread, to + kZerosAt);
  }

  // The group that the products of kTiles x 16 features have reached.
  template <int kTiles>
  struct Reached {
    int end;  // the slice after its last
    int row;  // the row of its scales in the stage
    Dequantizer<T> of[kTiles];

    // Sets the position so that the next enter() enters the group of `slice`.
    LAMINA_DEVICE void start(const GroupArgs& args, int slice) {
      end = Next::at(args, slice).end - args.group_slices;
      if (args.has_zeros) return;
#pragma unroll
      for (int i = 0; i < kTiles; ++i)
#pragma unroll
        for (int e = 0; e < 2; ++e) of[i].set_zero(e, T{}, kSymmetricZeroPoint);
    }

    // Call it before the first product of the stage that begins with slice `begin`.
    LAMINA_DEVICE void begin_stage(int begin) { row = end > begin ? 0 : -1; }

    // Advances to the next group; the last group also covers the padding past k. column: this lane's first feature.
    LAMINA_DEVICE void enter(const GroupArgs& args, const std::byte* groups, int column) {
      ++row;
      end += args.group_slices;
      if (end >= args.slices) end = INT_MAX;
      const std::byte* const scales = groups + row * kRowBytes;
      const std::byte* const zeros =
          groups + kZerosAt + row * (kColumns * args.zeros.element_bytes);
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        const int at = column + i * int4::kTileN;
        const uint32_t pair = dev::load_shared(reinterpret_cast<const uint32_t*>(scales + at * 2));
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const T scale{static_cast<uint16_t>(pair >> (16 * e))};
          of[i].set_scale(e, scale);
          if (args.has_zeros) of[i].set_zero(e, scale, zero_at(args, zeros, at + e));
        }
      }
    }
  };

 private:
  // Loads a zero point from the stage.
  LAMINA_DEVICE static float zero_at(const GroupArgs& args, const std::byte* row, int column) {
    if (args.zeros.element_bytes == 1)
      return static_cast<float>(dev::load_shared(reinterpret_cast<const uint8_t*>(row) + column));
    return widened(T{dev::load_shared(reinterpret_cast<const uint16_t*>(row) + column)});
  }
};

}  // namespace lamina::gemm
