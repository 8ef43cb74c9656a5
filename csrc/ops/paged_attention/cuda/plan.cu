// paged_attention / plan:   the tiles of a call and their places in the line of visits (work.h)
//
// Algorithm  one block. Offsets that decrease or pass the tokens are replaced by their running maximum, so spans never
//            overlap and cover all tokens. First a thread for each span, then one for each tile; block-wide scans
// Budget     <= 128 regs; 0 spills
// Reference  the running sums of plan.h; tests/ops/test_paged_attention.py sees all kinds of batches
#include "device/device.h"
#include "kv/error_word.cuh"
#include "ops/paged_attention/cuda/plan.h"

namespace lamina::paged_attention {
namespace {

struct PlanTiles {
  struct Args {
    Params p;
    Work work;
    int tile_rows;
    kv::ErrorWord* error;
  };
  static constexpr const char* kName = "paged_attention_plan";
  static constexpr int kThreads = 256, kMinBlocks = 1, kWarps = kThreads / dev::kWarpLanes;
  static constexpr int kSmemBytes = kWarps * 8;

  using Argument = kv::ErrorArgument;
  LAMINA_DEVICE static void report(const Args& args, Argument argument, int64_t value,
                                   int64_t row) {
    kv::report(args.error, kv::ErrorOp::kPagedAttention, argument, value, row);
  }

  LAMINA_DEVICE static int64_t shuffle_up(int64_t value, int delta) {
    const auto bits = static_cast<uint64_t>(value);
    const uint32_t low = dev::shuffle_up(static_cast<uint32_t>(bits), delta);
    const uint32_t high = dev::shuffle_up(static_cast<uint32_t>(bits >> 32), delta);
    return static_cast<int64_t>(static_cast<uint64_t>(high) << 32 | low);
  }

  struct Scan {
    int64_t before, all;  // of the threads before this one, and of all; both with the carry
  };

  // combine: a sum or a maximum of numbers that are not negative.
  LAMINA_DEVICE static Scan scan(int64_t value, int64_t carry, const auto& combine) {
    auto* const of_warps = reinterpret_cast<int64_t*>(dev::dynamic_smem());
    int64_t sum = value;
#pragma unroll
    for (int delta = 1; delta < dev::kWarpLanes; delta *= 2) {
      const int64_t other = shuffle_up(sum, delta);
      if (dev::lane() >= delta) sum = combine(sum, other);
    }
    dev::block_sync();  // all threads have read the values of the scan before
    if (dev::lane() == dev::kWarpLanes - 1) dev::store_shared(of_warps + dev::warp(), sum);
    const int64_t up_to_lane = shuffle_up(sum, 1);
    dev::block_sync();
    Scan result{carry, carry};
    for (int w = 0; w < kWarps; ++w) {
      const int64_t of_warp = dev::load_shared(of_warps + w);
      if (w < dev::warp()) result.before = combine(result.before, of_warp);
      result.all = combine(result.all, of_warp);
    }
    if (dev::lane() > 0) result.before = combine(result.before, up_to_lane);
    return result;
  }

  // Span 0 has the tokens before the first request, the last span those after the last request.
  LAMINA_DEVICE static int64_t offset(const Params& p, int64_t i) {
    return i > p.requests ? p.tokens : int64_t{dev::load_global(p.cu_seqlens_q + i)};
  }

  LAMINA_DEVICE static bool is_good(const Args& args, Span& span) {
    const Params& p = args.p;
    const int32_t b = span.request;
    span.seq_len = dev::load_global(p.seq_lens + b);
    span.tree_len = p.tree_len != nullptr ? dev::load_global(p.tree_len + b) : 0;
    if (span.seq_len < 0 || span.seq_len > p.block_table.max_blocks * p.k.page) {
      report(args, Argument::kSeqLens, span.seq_len, b);
      return false;
    }
    if (span.tree_len < 0 || span.tree_len > std::min(span.q_len, span.seq_len) ||
        span.tree_len > 32 * p.tree_words) {
      report(args, Argument::kTreeLen, span.tree_len, b);
      return false;
    }
    return true;
  }

  LAMINA_DEVICE static Span find_span(const Args& args, int64_t i, int64_t begin, int64_t end) {
    const Params& p = args.p;
    const int64_t given = offset(p, i);
    const bool is_request = i >= 1 && i <= p.requests;
    Span span{0, static_cast<int32_t>(begin), static_cast<int32_t>(end - begin), 0, 0, 0, {}};
    if (given != end || (i == 0 && given != 0) || (i == p.requests && given != p.tokens))
      report(args, Argument::kCuSeqlensQ, given, i);
    if (!is_request || given != end || offset(p, i - 1) != begin) return span;
    span.request = static_cast<int32_t>(i - 1);
    if (!is_good(args, span)) span.seq_len = span.tree_len = 0;
    return span;
  }

  // Returns the number of tiles.
  LAMINA_DEVICE static int64_t plan_spans(const Args& args) {
    const Params& p = args.p;
    const int64_t group = p.heads / p.kv_heads;
    const auto larger = [](int64_t a, int64_t b) { return a > b ? a : b; };
    const auto sum = [](int64_t a, int64_t b) { return a + b; };
    int64_t end = 0, tiles = 0;
    for (int64_t base = 0; base < args.work.spans; base += kThreads) {
      const int64_t i = base + dev::thread_index();
      const bool is_there = i < args.work.spans;
      int64_t mine = is_there ? offset(p, i) : 0;
      mine = mine < 0 ? 0 : mine > p.tokens ? p.tokens : mine;
      const Scan ends = scan(mine, end, larger);
      Span span{};
      if (is_there) span = find_span(args, i, ends.before, larger(ends.before, mine));
      const Scan counts = scan(ceil_div(span.q_len * group, args.tile_rows), tiles, sum);
      span.first_tile = static_cast<int32_t>(counts.before);
      if (is_there) store(args.work.span + i, span);
      end = ends.all;
      tiles = counts.all;
    }
    return tiles;
  }

  // The last span that begins at or before the tile and has tiles.
  LAMINA_DEVICE static Span span_of(const Work& work, int64_t tile) {
    int64_t low = 0, high = work.spans;
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (dev::load_global(&work.span[middle].first_tile) <= tile ? low : high) = middle;
    }
    return load(work.span + low);
  }

  LAMINA_DEVICE static Tile find_tile(const Args& args, int64_t index) {
    const Params& p = args.p;
    const Span span = span_of(args.work, index);
    const int64_t group = p.heads / p.kv_heads, rows = span.q_len * group;
    const int64_t row = (index - span.first_tile) * args.tile_rows;
    const int64_t end = row + args.tile_rows < rows ? row + args.tile_rows : rows;
    Tile tile{span.request,
              span.token,
              span.q_len,
              span.seq_len,
              span.tree_len,
              static_cast<int32_t>(row),
              0,
              0,
              0,
              0};
    const ColumnRange any = tile_columns(p, tile, row / group, (end - 1) / group).any;
    if (any.is_empty()) return tile;
    tile.first_block = static_cast<int32_t>(any.low / kColumns);
    if (args.work.has_splits())  // visits are whole splits
      tile.first_block -= tile.first_block % args.work.split_blocks;
    tile.blocks = static_cast<int32_t>(ceil_div(any.high, kColumns) - tile.first_block);
    return tile;
  }

  template <class T>
  LAMINA_DEVICE static T load(const T* from) {
    constexpr int kWords = sizeof(T) / 16;
    struct Words {
      dev::U32x4 word[kWords];
    } words;
#pragma unroll
    for (int w = 0; w < kWords; ++w)
      words.word[w] = dev::load_global(reinterpret_cast<const dev::U32x4*>(from) + w);
    return std::bit_cast<T>(words);
  }
  template <class T>
  LAMINA_DEVICE static void store(T* to, const T& value) {
    constexpr int kWords = sizeof(T) / 16;
    struct Words {
      dev::U32x4 word[kWords];
    };
    const Words words = std::bit_cast<Words>(value);
#pragma unroll
    for (int w = 0; w < kWords; ++w)
      dev::store_global(reinterpret_cast<dev::U32x4*>(to) + w, words.word[w]);
  }

  LAMINA_DEVICE static void run(const Args& args) {
    dev::launch_dependents();
    const Work& work = args.work;
    for (int i = dev::thread_index(); i < work.parts; i += kThreads)
      dev::store_global(work.arrivals + i, 0);
    const int64_t tiles = plan_spans(args);
    dev::block_sync();  // the spans are written
    int64_t visits = 0;
    for (int64_t base = 0; base < tiles; base += kThreads) {
      const int64_t i = base + dev::thread_index();
      Tile tile{};
      if (i < tiles) tile = find_tile(args, i);
      const int64_t chunks = visits_of(work, tile);
      const Scan place =
          scan(i < tiles ? chunks : 0, visits, [](int64_t a, int64_t b) { return a + b; });
      tile.visit = place.before;
      if (i < tiles) store(work.tile + i, tile);
      visits = place.all;
    }
    if (dev::thread_index() == 0)
      store(work.header, header_of(work, visits * args.p.kv_heads, tiles, visits));
  }

  // Fewer parts than there may be where each would have little to do: another part of a tile costs a merge.
  LAMINA_DEVICE static Header header_of(const Work& work, int64_t visits, int64_t tiles,
                                        int64_t head_visits) {
    const int64_t most = ceil_div(visits, work.least_visits);
    const int64_t parts = most < work.parts ? most : work.parts;
    return {head_visits,
            visits / parts,
            static_cast<int32_t>(parts),
            static_cast<int32_t>(visits % parts),
            static_cast<int32_t>(tiles),
            0};
  }
};

}  // namespace

Status launch_plan(const Params& params, const Work& work, int tile_rows, kv::ErrorWord* error,
                   void* stream) {
  return dev::launch<PlanTiles>({{1, 1, 1}, PlanTiles::kSmemBytes}, stream,
                                {params, work, tile_rows, error});
}

}  // namespace lamina::paged_attention
