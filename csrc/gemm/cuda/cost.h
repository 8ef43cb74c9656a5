// The expected cost of a product on a GPU, in cycles. It only ranks kernels and ways to split k. Pure, host-only.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/int_math.h"
#include "device/device_info.h"
#include "gemm/cuda/kernel.h"

namespace lamina::gemm {

struct BlockGrid {
  int64_t m, n;
};

inline BlockGrid grid_of(const CudaKernel& kernel, int64_t m, int64_t n) {
  return {ceil_div(m, kernel.tile_m), round_up(ceil_div(n, kernel.tile_n), kernel.cluster)};
}

// Blocks of the kernel that one SM holds at once; 0 if none fits. CUDA reserves 1 KiB of shared memory for each block.
inline int64_t resident_blocks(const CudaKernel& kernel, const DeviceInfo& device) {
  constexpr int64_t kReserved = 1024;
  const int64_t fit = (device.smem_per_block + kReserved) / (kernel.smem_bytes + kReserved);
  return std::min<int64_t>(fit, kernel.blocks_per_sm);
}

struct CudaWork {
  int64_t m, n;
  double a_bytes, w_bytes;  // bytes of one element
};

// The part of a device that a launch may use.
struct SmBudget {
  int64_t sms, resident;  // resident: blocks that one SM holds at once
  bool is_capped;
};

// Doubles cannot overflow, and sizes near 2^63 need only a rank.
inline double cost(const CudaKernel& kernel, const CudaWork& work, const SmBudget& budget,
                   const Split& split, int64_t partials) {
  constexpr int64_t kBytesPerCycle = 24;  // an SM's share of DRAM and L2
  constexpr int64_t kFillCycles = 1500;  // a block waits for its first step, and stores its results
  constexpr int64_t kLaunchCycles = 4000;  // the second launch, about 2 us
  // The rate of the second launch under a cap: one block an SM has too few loads in flight for more.
  constexpr int64_t kCappedBytesPerCycle = 6;

  const BlockGrid grid = grid_of(kernel, work.m, work.n);
  const int64_t splits = split.count;
  const double blocks =
      static_cast<double>(grid.m) * static_cast<double>(grid.n) * static_cast<double>(splits);
  const int64_t slots = budget.sms / kernel.cluster * kernel.cluster * budget.resident;
  const double waves = std::max(1.0, blocks / static_cast<double>(slots));
  const double whole_waves =
      blocks > 64.0 * static_cast<double>(slots)
          ? waves
          : static_cast<double>(ceil_div(static_cast<int64_t>(blocks), slots));
  // Blocks that share an SM share its rates; the fullest SM counts.
  const int64_t sharing = std::clamp<int64_t>(
      ceil_div(static_cast<int64_t>(std::min(blocks, 1e9)), budget.sms), 1, budget.resident);
  const int64_t multiply =
      int64_t{kernel.tile_m} * kernel.tile_n * kernel.step_k / kernel.macs_per_cycle * sharing;
  const int64_t rows = ceil_div(std::min<int64_t>(work.m, kernel.tile_m), kernel.cluster);
  const auto bytes = static_cast<int64_t>(
      (static_cast<double>(rows) * work.a_bytes + kernel.tile_n * work.w_bytes) * kernel.step_k);
  const int64_t load = bytes / kBytesPerCycle * sharing;
  // Loads and multiplies overlap, but neither hides the other wholly.
  const double step = static_cast<double>(std::max(multiply, load) + std::min(multiply, load) / 4 +
                                          kernel.step_cycles);
  const int64_t reduce_rate = budget.is_capped ? kCappedBytesPerCycle : kBytesPerCycle;
  const double reduce = splits == 1
                            ? 0
                            : static_cast<double>(kLaunchCycles) +
                                  static_cast<double>(work.m) * static_cast<double>(work.n) *
                                      static_cast<double>(8 * partials) /
                                      static_cast<double>(budget.sms * reduce_rate);
  return whole_waves *
             (static_cast<double>(split.steps) * step + static_cast<double>(kFillCycles)) +
         reduce;
}

}  // namespace lamina::gemm
