// paged_kv / compact:   slot prefix + i = slot prefix + accepted[r,i] of request r, prefix = seq_lens[r] - tree_len[r]
//
// Algorithm  a block moves some columns of all accepted rows of one request, head and tensor. The columns of all rows
//            are in shared memory before the first is written, so paths in any order may overlap in any way
// Data path  gmem -> smem [accepted][columns] -> gmem, 16 bytes an access where the rows are aligned
// Budget     <= 64 regs; 0 spills; smem <= 48 KiB; requires SASS: LDG, STS, LDS, STG, BAR
// Reference  tests/reference/paged_kv.py
#include <algorithm>
#include <climits>

#include "base/int_math.h"
#include "block/reduce.cuh"
#include "kv/error_word.cuh"
#include "ops/paged_kv/cuda/chunks.cuh"
#include "ops/paged_kv/cuda/launch.h"

namespace lamina::paged_kv {
namespace {

struct CompactRows {
  struct Args {
    MovedTensors tensors;
    int copy_bytes[4];
    Compact p;
    int slice_chunks, slices;  // chunks of a row that a block moves; blocks that share a row
    kv::ErrorWord* error;
  };
  static constexpr const char* kName = "compact_kv_rows";
  static constexpr int kThreads = 128, kMinBlocks = 4, kWarps = kThreads / dev::kWarpLanes;
  static constexpr int kReduceBytes = 2 * kWarps * static_cast<int>(sizeof(int32_t));
  static_assert(kReduceBytes % kChunkBytes == 0 &&
                kReduceBytes + kMaxAccepted * kChunkBytes <= 48 * 1024);

  // A request whose lengths are right, and its accepted nodes.
  struct Request {
    int64_t index, prefix, nodes;
    int count;
  };
  struct Move {
    std::byte *from, *to;
    bool is_there;
  };

  LAMINA_DEVICE static void run(const Args& args) {
    const int of_request = static_cast<int>(args.tensors.heads) * args.slices;
    const int part = dev::block_index().x % of_request;
    const Request request = find_request(args, dev::block_index().x / of_request);
    move_columns(args, request, part / args.slices, part % args.slices);
  }

  LAMINA_DEVICE static void report(const Args& args, kv::ErrorArgument argument, int64_t value,
                                   int64_t row, int32_t column = kv::kNoColumn) {
    kv::report(args.error, kv::ErrorOp::kCompact, argument, value, row, column);
  }

  LAMINA_DEVICE static Request find_request(const Args& args, int r) {
    const Compact& p = args.p;
    const int32_t length = dev::load_global(p.seq_lens + r);
    const int32_t nodes = dev::load_global(p.tree_len + r);
    int32_t count = static_cast<int32_t>(p.max_accepted), ignored = 0;
    for (int i = dev::thread_index(); i < p.max_accepted; i += kThreads)
      if (dev::load_global(p.accepted + r * p.accepted_stride + i) == -1)
        count = std::min(count, i);
    extremes_of_block<kWarps>(count, ignored, reinterpret_cast<int32_t*>(dev::dynamic_smem()));
    const bool is_long =
        length < 0 || ceil_div(length, args.tensors.page) > p.block_table.max_blocks;
    const bool is_bad = is_long || nodes < 0 || nodes > length;
    if (is_bad && dev::thread_index() == 0)
      report(args, is_long ? kv::ErrorArgument::kSeqLens : kv::ErrorArgument::kTreeLen,
             is_long ? length : nodes, r);
    return {r, int64_t{length} - nodes, nodes, is_bad ? 0 : count};
  }

  // The page of a slot, or -1.
  LAMINA_DEVICE static int64_t find_page(const Args& args, int64_t r, int64_t block) {
    const int32_t page = dev::load_global(args.p.block_table.row(r) + block);
    if (page >= 0 && page < args.tensors.pages) return page;
    report(args, kv::ErrorArgument::kBlockTable, page, r, static_cast<int32_t>(block));
    return -1;
  }

  // Where row i moves. A row stays if its node or its pages are bad, or if it is in place.
  LAMINA_DEVICE static Move find_move(const Args& args, const Moved& moved, const Request& request,
                                      int64_t head, int i) {
    const Compact& p = args.p;
    const int32_t node = dev::load_global(p.accepted + request.index * p.accepted_stride + i);
    if (node < 0 || node >= request.nodes || i >= request.nodes) {
      report(args, kv::ErrorArgument::kAccepted, node, request.index, i);
      return {};
    }
    if (node == i) return {};
    const int64_t size = args.tensors.page, from = request.prefix + node, to = request.prefix + i;
    const int64_t from_page = find_page(args, request.index, from / size);
    const int64_t to_page = find_page(args, request.index, to / size);
    if (from_page < 0 || to_page < 0) return {};
    return {moved.row(from_page, from % size, head), moved.row(to_page, to % size, head), true};
  }

  LAMINA_DEVICE static void move_columns(const Args& args, const Request& request, int64_t head,
                                         int slice) {
    const Moved& moved = args.tensors.tensor[dev::block_index().y];
    const int copy_bytes = args.copy_bytes[dev::block_index().y];
    const int first = slice * args.slice_chunks;
    const int row_chunks = static_cast<int>(ceil_div(moved.row_bytes, kChunkBytes));
    const int chunks = std::min(args.slice_chunks, row_chunks - first);
    auto* const smem = reinterpret_cast<dev::U32x4*>(dev::dynamic_smem() + kReduceBytes);
    const auto for_chunks = [&](const auto& body) {
      for (int c = dev::thread_index(); c < request.count * chunks; c += kThreads) {
        const int column = first + c % chunks;
        const Move move = find_move(args, moved, request, head, c / chunks);
        if (move.is_there)
          body(smem + c, move, column * kChunkBytes, chunk_bytes(moved.row_bytes, column));
      }
    };
    for_chunks([&](dev::U32x4* chunk, const Move& move, int offset, int bytes) {
      dev::store_shared(chunk, load_chunk(copy_bytes, move.from + offset, bytes));
    });
    dev::block_sync();  // every row has been read before one is written
    for_chunks([&](dev::U32x4* chunk, const Move& move, int offset, int bytes) {
      store_chunk(copy_bytes, move.to + offset, dev::load_shared(chunk), bytes);
    });
  }
};

}  // namespace

Status compact_cuda(const Compact& params, void* stream) {
  if (params.max_accepted > kMaxAccepted)
    return Status::error("compact_kv: accepted has max_accepted = ", params.max_accepted,
                         " columns; on CUDA at most ", kMaxAccepted);
  CompactRows::Args args{moved_tensors(params), {}, params, 0, 0, nullptr};
  int64_t most_chunks = 0;
  for (int i = 0; i < args.tensors.count; ++i) {
    const Moved& moved = args.tensors.tensor[i];
    args.copy_bytes[i] = copy_bytes_of(moved, moved.row_bytes);
    most_chunks = std::max(most_chunks, ceil_div(moved.row_bytes, kChunkBytes));
  }
  const int64_t requests = params.block_table.requests;
  if (requests == 0 || args.tensors.heads == 0 || params.max_accepted == 0) return Status::ok();
  args.slice_chunks = static_cast<int>(std::min(most_chunks, kMaxAccepted / params.max_accepted));
  args.slices = static_cast<int>(ceil_div(most_chunks, args.slice_chunks));
  if (Status status = kv::error_word(args.error); !status.is_ok()) return status;
  const int64_t smem_bytes =
      CompactRows::kReduceBytes + params.max_accepted * args.slice_chunks * kChunkBytes;
  const int64_t blocks = requests * args.tensors.heads * args.slices;
  if (blocks > INT_MAX)
    return Status::error("compact_kv: requests * kv_heads = ", requests * args.tensors.heads,
                         "; on CUDA at most ", INT_MAX / args.slices);
  return dev::launch<CompactRows>(
      {{static_cast<int>(blocks), args.tensors.count, 1}, static_cast<int>(smem_bytes)}, stream,
      args);
}

}  // namespace lamina::paged_kv
