// paged_kv / gather:   k[t,h] = decode(k_cache[slot j of request r, h]), t = cu_seqlens_k[r] + j; v likewise
//
// Algorithm  a row has a power of two of lanes; they find the request of their token by bisection
// Data path  gmem -> regs (f32) -> gmem: 8 elements a lane, in accesses of 16 bytes where the rows are aligned
// Budget     <= 64 regs; 0 spills; requires SASS: LDG, STG
// Reference  tests/reference/paged_kv.py
#include "ops/paged_kv/cuda/launch.h"
#include "ops/paged_kv/cuda/rows.cuh"

namespace lamina::paged_kv {
namespace {

LAMINA_DEVICE float decode(int8_t code) { return static_cast<float>(code); }
template <class Code>
LAMINA_DEVICE float decode(Code code) {
  return to_f32(code);
}

template <class Code>
struct GatherRows {
  struct Args {
    Gather p;
    RowGrid grid;
    kv::ErrorWord* error;
  };
  static constexpr const char *kName = "gather_paged_kv_rows", *kOp = "gather_paged_kv";
  static constexpr int kThreads = kRowThreads, kMinBlocks = 4;

  LAMINA_DEVICE static void run(const Args& args) {
    if (dev::block_index().x == 0 && dev::block_index().y == 0) check_offsets(args);
    const int64_t first = int64_t{dev::block_index().x} * args.grid.block_tokens;
    for_rows(args.grid, first, args.p.tokens, [&](int token, int row) {
      if (token >= 0) move_row(args, first + token, row);
    });
  }

  LAMINA_DEVICE static void report(const Args& args, kv::ErrorArgument argument, int64_t value,
                                   int64_t row, int32_t column = kv::kNoColumn) {
    kv::report(args.error, kv::ErrorOp::kGather, argument, value, row, column);
  }

  LAMINA_DEVICE static void check_offsets(const Args& args) {
    const int64_t requests = args.p.block_table.requests;
    for (int64_t i = dev::thread_index(); i <= requests; i += kThreads) {
      const int32_t offset = dev::load_global(args.p.cu_seqlens_k + i);
      const bool is_bad =
          i == 0 ? offset != 0 : offset < dev::load_global(args.p.cu_seqlens_k + i - 1);
      if (is_bad || (i == requests && offset != args.p.tokens))
        report(args, kv::ErrorArgument::kCuSeqlensK, offset, i);
    }
  }

  // Page and slot of a token; page -1 if an index is bad.
  struct Place {
    int64_t page, slot;
  };
  LAMINA_DEVICE static Place find_place(const Args& args, int64_t token) {
    const kv::BlockTable& table = args.p.block_table;
    // The last offset that is at most `token`; with bad offsets, any.
    int64_t low = 0, high = table.requests;
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (dev::load_global(args.p.cu_seqlens_k + middle) <= token ? low : high) = middle;
    }
    if (table.requests == 0) return {-1, 0};
    const int64_t begin = dev::load_global(args.p.cu_seqlens_k + low);
    const int64_t end = dev::load_global(args.p.cu_seqlens_k + low + 1);
    if (token < begin || token >= end) return {-1, 0};
    const int64_t slot = token - begin, block = slot / args.p.k_cache.page;
    if (block >= table.max_blocks) {
      report(args, kv::ErrorArgument::kCuSeqlensK, end, low + 1);
      return {-1, 0};
    }
    const int32_t page = dev::load_global(table.row(low) + block);
    if (page < 0 || page >= args.p.k_cache.pages) {
      report(args, kv::ErrorArgument::kBlockTable, page, low, static_cast<int32_t>(block));
      return {-1, 0};
    }
    return {page, slot % args.p.k_cache.page};
  }

  LAMINA_DEVICE static void move_row(const Args& args, int64_t token, int row) {
    const Gather& p = args.p;
    const int heads = static_cast<int>(p.k_cache.heads);
    const bool is_k = row < heads;
    const kv::Cache& cache = is_k ? p.k_cache : p.v_cache;
    const kv::Scales& scales = is_k ? p.k_scale : p.v_scale;
    const int head = is_k ? row : row - heads;
    const int j = dev::thread_index() % args.grid.lanes * kLaneElements;
    if (j >= cache.head_dim) return;
    const int64_t to = (token * heads + head) * cache.head_dim + j;
    void* const out = is_k ? p.k : p.v;
    const Place place = find_place(args, token);
    const Code* const from = static_cast<const Code*>(cache.data) +
                             (place.page < 0 ? 0 : cache.offset(place.page, place.slot, head) + j);
    if (has_bits_of<Code>(p.out_dtype)) {
      const LaneRun<Code> run = place.page < 0 ? LaneRun<Code>{} : load_run(from);
      store_run(static_cast<Code*>(out) + to, run, kLaneElements);
      return;
    }
    float x[kLaneElements] = {};
    if (place.page >= 0) {
      float scale = 1.0f;
      if (scales.is_given()) scale = dev::load_global(&scales.at(place.page, place.slot, head));
      const LaneRun<Code> run = load_run(from);
#pragma unroll
      for (int e = 0; e < kLaneElements; ++e) x[e] = decode(run.value[e]) * scale;
    }
    store_rounded(x, kLaneElements, p.out_dtype, out, to);
  }
};

}  // namespace

Status gather_cuda(const Gather& params, const DeviceInfo& device, void* stream) {
  const kv::Cache &k = params.k_cache, &v = params.v_cache;
  if (k.heads == 0) return Status::ok();
  const RowGrid grid = row_grid_of(k.head_dim, v.head_dim, 2 * k.heads, params.tokens, device);
  return launch_for(k.dtype, [&]<class Code>(Code) {
    return launch_rows<GatherRows<Code>>(params, grid, 0, stream);
  });
}

}  // namespace lamina::paged_kv
