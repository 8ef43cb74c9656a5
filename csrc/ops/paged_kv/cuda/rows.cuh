// Rows of head_dim elements, 8 elements a lane: the part of the work that append and gather share.
//
// A row belongs to a power of two of neighbouring lanes, so that shuffles stay within it. A block owns whole tokens.
#pragma once

#include <algorithm>
#include <bit>
#include <climits>
#include <type_traits>

#include "base/int_math.h"
#include "block/runs.cuh"
#include "device/device_info.h"
#include "kv/error_word.cuh"
#include "ops/paged_kv/paged_kv.h"

namespace lamina::paged_kv {

inline constexpr int kRowThreads = 256, kLaneElements = 8;  // head_dim is a multiple of 8

template <class T>
using LaneRun = Run<T, kLaneElements>;

struct RowGrid {
  int lanes = 1;         // of a row
  int token_rows = 0;    // rows of a token
  int block_tokens = 1;  // tokens of a block
  int sharers = 1;       // blocks that share these tokens

  constexpr int rows_a_pass() const { return kRowThreads / lanes; }
};

// A GPU is full with 8 blocks on each SM. Where tokens alone give fewer blocks, several blocks share tokens.
inline RowGrid row_grid_of(int64_t head_dim, int64_t v_head_dim, int64_t token_rows, int64_t tokens,
                           const DeviceInfo& device) {
  const uint64_t lanes = static_cast<uint64_t>(std::max(head_dim, v_head_dim) / kLaneElements);
  RowGrid grid;
  grid.lanes = static_cast<int>(std::bit_ceil(lanes));
  grid.token_rows = static_cast<int>(token_rows);
  grid.block_tokens = std::max(1, grid.rows_a_pass() / grid.token_rows);
  const int64_t blocks = std::max<int64_t>(1, ceil_div(tokens, grid.block_tokens));
  const int64_t passes = ceil_div(token_rows * grid.block_tokens, grid.rows_a_pass());
  grid.sharers = static_cast<int>(std::min(passes, ceil_div(int64_t{8} * device.sm_count, blocks)));
  return grid;
}

// Launches a kernel whose Args are params, grid and the error word. Without tokens it has one block.
template <class Kernel, class Params>
Status launch_rows(const Params& params, const RowGrid& grid, int smem_bytes, void* stream) {
  if (params.tokens > INT_MAX)
    return Status::error(Kernel::kOp, ": tokens = ", params.tokens, "; on CUDA at most ", INT_MAX);
  kv::ErrorWord* error = nullptr;
  if (Status status = kv::error_word(error); !status.is_ok()) return status;
  const int64_t blocks = std::max<int64_t>(1, ceil_div(params.tokens, grid.block_tokens));
  return dev::launch<Kernel>({{static_cast<int>(blocks), grid.sharers, 1}, smem_bytes}, stream,
                             {params, grid, error});
}

// Calls body(token of the block, row of the token) in all threads of the block, as often as some thread has a row;
// token -1 in threads that have none.
template <class Body>
LAMINA_DEVICE void for_rows(const RowGrid& grid, int64_t first, int64_t tokens, const Body& body) {
  const int here = static_cast<int>(std::min<int64_t>(grid.block_tokens, tokens - first));
  const int rows = here * grid.token_rows, pass = grid.rows_a_pass();
  const int mine = dev::thread_index() / grid.lanes;
  for (int begin = dev::block_index().y * pass; begin < rows; begin += grid.sharers * pass) {
    const int row = begin + mine;
    if (row < rows) {
      body(row / grid.token_rows, row % grid.token_rows);
    } else {
      body(-1, 0);
    }
  }
}

template <class T>
LAMINA_DEVICE LaneRun<T> load_run(const T* from) {
  LaneRun<T> run[1];
  load_runs<T, kLaneElements, 1>({from}, kLaneElements, run);
  return run[0];
}

template <class T>
LAMINA_DEVICE void load_as_f32(const T* from, float (&x)[kLaneElements]) {
  const LaneRun<T> run = load_run(from);
#pragma unroll
  for (int e = 0; e < kLaneElements; ++e) x[e] = to_f32(run.value[e]);
}
LAMINA_DEVICE void load_as_f32(const void* row, DType dtype, int64_t j, float (&x)[kLaneElements]) {
  if (dtype == DType::kF32) load_as_f32(static_cast<const float*>(row) + j, x);
  if (dtype == DType::kF16) load_as_f32(static_cast<const F16*>(row) + j, x);
  if (dtype == DType::kBF16) load_as_f32(static_cast<const BF16*>(row) + j, x);
}

// Whether rows of this dtype have the bits of the cache's rows.
template <class Code>
constexpr bool has_bits_of(DType dtype) {
  return (std::is_same_v<Code, float> && dtype == DType::kF32) ||
         (std::is_same_v<Code, F16> && dtype == DType::kF16) ||
         (std::is_same_v<Code, BF16> && dtype == DType::kBF16);
}

// Calls launch(Code{}) with the type of the cache's elements.
template <class Launch>
Status launch_for(kv::CacheDType dtype, const Launch& launch) {
  switch (dtype) {
    case kv::CacheDType::kF32:
      return launch(float{});
    case kv::CacheDType::kF16:
      return launch(F16{});
    case kv::CacheDType::kBF16:
      return launch(BF16{});
    case kv::CacheDType::kE4M3:
      return launch(E4M3{});
    case kv::CacheDType::kI8:
      break;
  }
  return launch(int8_t{});
}

}  // namespace lamina::paged_kv
