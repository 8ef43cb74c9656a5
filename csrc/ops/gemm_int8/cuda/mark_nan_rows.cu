// gemm_int8 / mark_nan_rows:   a row of q that holds kLost becomes 0 with scale NaN; other rows get their static scale
//
// Algorithm  a block owns a row at a time and searches it for the byte, 16 bytes a load where the row is aligned
// Budget     <= 40 regs; 0 spills; reads one byte an output, mostly from L2, which still holds q
// Reference  tests/reference/quantize.py
#include <algorithm>
#include <cfloat>
#include <limits>

#include "block/reduce.cuh"
#include "device/device.h"
#include "gemm/epilogue_maths.h"
#include "ops/gemm_int8/cuda/run.h"

namespace lamina::gemm_int8 {
namespace {

struct MarkNanRows {
  struct Args {
    quantize_int8::Params p;
  };
  static constexpr const char* kName = "gemm_int8_mark_nan_rows";
  static constexpr int kThreads = 256, kMinBlocks = 6, kWarps = kThreads / dev::kWarpLanes;
  static constexpr int kSmemBytes = kWarps * static_cast<int>(sizeof(int32_t));

  // The xor turns kLost into 0; the rest is the usual test for a zero byte.
  LAMINA_DEVICE static bool holds_lost(uint32_t bytes) {
    const uint32_t zeroed = bytes ^ 0x01010101u * static_cast<uint8_t>(kLost);
    return ((zeroed - 0x01010101u) & ~zeroed & 0x80808080u) != 0;
  }

  // Whether this thread's part of the row holds kLost.
  LAMINA_DEVICE static bool find_lost(const int8_t* row, int64_t n) {
    constexpr int64_t kWord = sizeof(dev::U32x4);
    const int64_t in_words = reinterpret_cast<uintptr_t>(row) % kWord == 0 ? n / kWord * kWord : 0;
    bool is_lost = false;
    for (int64_t j = dev::thread_index() * kWord; j < in_words; j += kThreads * kWord) {
      const dev::U32x4 word = dev::load_global(reinterpret_cast<const dev::U32x4*>(row + j));
#pragma unroll
      for (int e = 0; e < 4; ++e) is_lost |= holds_lost(word.x[e]);
    }
    for (int64_t j = in_words + dev::thread_index(); j < n; j += kThreads)
      is_lost |= dev::load_global(row + j) == kLost;
    return is_lost;
  }

  LAMINA_DEVICE static void run(const Args& args) {
    const int64_t stride = dev::grid_size().x;
    for (int64_t i = dev::block_index().x; i < args.p.m; i += stride) {
      mark_row(args.p, i);
      if (i + stride < args.p.m) dev::block_sync();  // all threads have read the warps' results
    }
  }

  LAMINA_DEVICE static void mark_row(const quantize_int8::Params& p, int64_t i) {
    int8_t* const row = p.q + i * p.k;
    const float scale = p.static_scale[i];
    // The host cannot check the value of a static scale before the launch, so the kernel does.
    const bool is_lost = any_of_block<kWarps>(find_lost(row, p.k),
                                              reinterpret_cast<int32_t*>(dev::dynamic_smem())) ||
                         !(scale >= FLT_MIN && scale <= FLT_MAX);
    if (is_lost)
      for (int64_t j = dev::thread_index(); j < p.k; j += kThreads)
        dev::store_global(row + j, int8_t{0});
    if (dev::thread_index() == 0)
      dev::store_global(p.scale + i, is_lost ? std::numeric_limits<float>::quiet_NaN() : scale);
  }
};

}  // namespace

Status launch_mark_nan_rows(const quantize_int8::Params& params, int max_blocks, void* stream) {
  const int64_t blocks = std::min<int64_t>(params.m, max_blocks);
  return dev::launch<MarkNanRows>({{static_cast<int>(blocks), 1, 1}, MarkNanRows::kSmemBytes},
                                  stream, {params});
}

}  // namespace lamina::gemm_int8
