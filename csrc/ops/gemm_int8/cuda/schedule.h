// What a launch of a product is expected to cost on a GPU, whatever its weights are. Pure, host-only.
// Kernel: tile_m, tile_n, step_k, blocks_per_sm, smem_bytes, cluster, macs_per_cycle, step_cycles (kernel.h).
#pragma once

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <vector>

#include "base/int_math.h"
#include "device/device_info.h"
#include "ops/gemm_int8/cuda/kernel.h"

namespace lamina::gemm_int8 {

struct Grid {
  int64_t m, n;
};

template <class Kernel>
Grid grid_of(const Kernel& kernel, int64_t m, int64_t n) {
  return {ceil_div(m, kernel.tile_m), round_up(ceil_div(n, kernel.tile_n), kernel.cluster)};
}

// Blocks of the kernel that one SM holds at once; 0 if none fits. CUDA takes 1 KiB of shared memory a block.
template <class Kernel>
int64_t resident_blocks(const Kernel& kernel, const DeviceInfo& device) {
  constexpr int64_t kReserved = 1024;
  const int64_t fit = (device.smem_per_block + kReserved) / (kernel.smem_bytes + kReserved);
  return std::min<int64_t>(fit, kernel.blocks_per_sm);
}

// The part of a plan's key that stands for the forced kernel: 0 if none is forced, another number for each kernel, and
// one number for all names that are not a kernel.
template <class Kernel>
int64_t choice_of(const std::vector<Kernel>& kernels, std::string_view only) {
  if (only.empty()) return 0;
  const auto is_it = [&](const Kernel& kernel) { return only == kernel.name; };
  return std::find_if(kernels.begin(), kernels.end(), is_it) - kernels.begin() + 1;
}

struct CudaWork {
  int64_t m, n;
  double a_bytes, w_bytes;  // of an element
};

// What of the device a launch may use.
struct Share {
  int64_t sms, resident;  // blocks of an SM
  bool is_capped;
};

// Doubles cannot overflow; sizes near 2^63 only need to rank.
template <class Kernel>
double cost(const Kernel& kernel, const CudaWork& work, const Share& share, const Split& split,
            int64_t slabs) {
  // Of an SM; they only rank ways to cut the same work.
  constexpr int64_t kBytesPerCycle = 24;  // its share of DRAM and L2
  // Until the first step of a block is there, and its results are out.
  constexpr int64_t kFillCycles = 1500;
  constexpr int64_t kLaunchCycles = 4000;  // the second launch, about 2 us
  // Of the second launch under a cap: one block an SM has that much under way at most.
  constexpr int64_t kCappedBytesPerCycle = 6;

  const Grid grid = grid_of(kernel, work.m, work.n);
  const int64_t splits = split.count;
  const double blocks =
      static_cast<double>(grid.m) * static_cast<double>(grid.n) * static_cast<double>(splits);
  const int64_t slots = share.sms / kernel.cluster * kernel.cluster * share.resident;
  const double waves = std::max(1.0, blocks / static_cast<double>(slots));
  const double whole_waves =
      blocks > 64.0 * static_cast<double>(slots)
          ? waves
          : static_cast<double>(ceil_div(static_cast<int64_t>(blocks), slots));
  // Blocks that share an SM share its rates; the fullest SM counts.
  const int64_t sharing = std::clamp<int64_t>(
      ceil_div(static_cast<int64_t>(std::min(blocks, 1e9)), share.sms), 1, share.resident);
  const int64_t multiply =
      int64_t{kernel.tile_m} * kernel.tile_n * kernel.step_k / kernel.macs_per_cycle * sharing;
  const int64_t rows = ceil_div(std::min<int64_t>(work.m, kernel.tile_m), kernel.cluster);
  const auto bytes = static_cast<int64_t>(
      (static_cast<double>(rows) * work.a_bytes + kernel.tile_n * work.w_bytes) * kernel.step_k);
  const int64_t load = bytes / kBytesPerCycle * sharing;
  // Neither hides the other wholly.
  const double step = static_cast<double>(std::max(multiply, load) + std::min(multiply, load) / 4 +
                                          kernel.step_cycles);
  const int64_t reduce_rate = share.is_capped ? kCappedBytesPerCycle : kBytesPerCycle;
  const double reduce = splits == 1
                            ? 0
                            : static_cast<double>(kLaunchCycles) +
                                  static_cast<double>(work.m) * static_cast<double>(work.n) *
                                      static_cast<double>(8 * slabs) /
                                      static_cast<double>(share.sms * reduce_rate);
  return whole_waves *
             (static_cast<double>(split.steps) * step + static_cast<double>(kFillCycles)) +
         reduce;
}

}  // namespace lamina::gemm_int8
