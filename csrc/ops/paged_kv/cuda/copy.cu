// paged_kv / copy:   page block_mapping[i,1] = page block_mapping[i,0], of keys, values and their scales
//
// Algorithm  a page is a few runs of contiguous bytes; a block copies a part of the chunks of one page of one tensor
// Data path  gmem -> regs -> gmem, 16 bytes an access where the runs are aligned, 4 loads of a thread in flight
// Budget     <= 64 regs; 0 spills; requires SASS: LDG, STG
// Reference  tests/reference/paged_kv.py
#include <algorithm>
#include <climits>

#include "base/int_math.h"
#include "kv/error_word.cuh"
#include "ops/paged_kv/cuda/chunks.cuh"
#include "ops/paged_kv/cuda/launch.h"

namespace lamina::paged_kv {
namespace {

// A tensor whose pages are copied.
struct Copied {
  Moved moved;
  Runs runs;
  int copy_bytes;
};

struct CopyPages {
  struct Args {
    Copied tensor[4];
    const int64_t* block_mapping;
    int64_t pair_stride, pages;
    int parts;  // blocks that share a page
    kv::ErrorWord* error;
  };
  static constexpr const char* kName = "copy_kv_blocks_rows";
  static constexpr int kThreads = 256, kMinBlocks = 4;
  static constexpr int kInFlight = 4;
  static constexpr int kPartChunks = kThreads * kInFlight;

  LAMINA_DEVICE static void run(const Args& args) {
    const Copied& copied = args.tensor[dev::block_index().y];
    const int pair = dev::block_index().x / args.parts, part = dev::block_index().x % args.parts;
    const int64_t from = checked_page(args, pair, 0), to = checked_page(args, pair, 1);
    if (from >= 0 && to >= 0)
      copy_part(copied, copied.moved.row(from, 0, 0), copied.moved.row(to, 0, 0), part);
  }

  // A page of the mapping, or -1.
  LAMINA_DEVICE static int64_t checked_page(const Args& args, int64_t pair, int side) {
    const int64_t page = dev::load_global(args.block_mapping + pair * args.pair_stride + side);
    if (page >= 0 && page < args.pages) return page;
    if (dev::thread_index() == 0)
      kv::report(args.error, kv::ErrorOp::kCopy, kv::ErrorArgument::kBlockMapping, page, pair,
                 side);
    return -1;
  }

  LAMINA_DEVICE static void copy_part(const Copied& copied, const std::byte* from, std::byte* to,
                                      int part) {
    const Runs& runs = copied.runs;
    const int run_chunks = static_cast<int>(ceil_div(runs.bytes, kChunkBytes));
    const int inner = static_cast<int>(runs.inner.count);
    const int chunks = run_chunks * inner * static_cast<int>(runs.outer.count);
    const int begin = part * kPartChunks + dev::thread_index();
    if (begin >= chunks) return;
    int64_t offset[kInFlight];
    int bytes[kInFlight];
    dev::U32x4 chunk[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int c = begin + i * kThreads, run = c / run_chunks, column = c % run_chunks;
      bytes[i] = c < chunks ? chunk_bytes(runs.bytes, column) : 0;
      offset[i] = run / inner * runs.outer.stride + run % inner * runs.inner.stride +
                  int64_t{column} * kChunkBytes;
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i)
      if (bytes[i] > 0) chunk[i] = load_chunk(copied.copy_bytes, from + offset[i], bytes[i]);
#pragma unroll
    for (int i = 0; i < kInFlight; ++i)
      if (bytes[i] > 0) store_chunk(copied.copy_bytes, to + offset[i], chunk[i], bytes[i]);
  }
};

}  // namespace

Status copy_cuda(const Copy& params, void* stream) {
  const MovedTensors tensors = moved_tensors(params);
  CopyPages::Args args{};
  int64_t most_chunks = 0;
  for (int i = 0; i < tensors.count; ++i) {
    const Moved& moved = tensors.tensor[i];
    const Runs runs = runs_of(moved, tensors.page, tensors.heads);
    args.tensor[i] = {moved, runs, copy_bytes_of(moved, runs.bytes)};
    most_chunks = std::max(most_chunks,
                           ceil_div(runs.bytes, kChunkBytes) * runs.inner.count * runs.outer.count);
  }
  if (params.pairs == 0 || most_chunks == 0) return Status::ok();
  const int64_t parts = ceil_div(most_chunks, CopyPages::kPartChunks);
  if (most_chunks > INT_MAX - CopyPages::kPartChunks || params.pairs > INT_MAX / parts)
    return Status::error("copy_kv_blocks: n = ", params.pairs, " pages of ", most_chunks,
                         " chunks of 16 bytes; on CUDA fewer than 2^31 blocks of ",
                         CopyPages::kPartChunks, " chunks");
  args.block_mapping = params.block_mapping;
  args.pair_stride = params.pair_stride;
  args.pages = tensors.pages;
  args.parts = static_cast<int>(parts);
  if (Status status = kv::error_word(args.error); !status.is_ok()) return status;
  return dev::launch<CopyPages>({{static_cast<int>(params.pairs * parts), tensors.count, 1}, 0},
                                stream, args);
}

}  // namespace lamina::paged_kv
