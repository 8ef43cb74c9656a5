// paged_kv / append:   k_cache[slot, h] = encode(rope(k[t,h])), v_cache[slot, h] = encode(v[t,h]), q[t,h] = rope(q[t,h])
//
// Algorithm  a row of k, v or q has a power of two of lanes. The block has the angles of its tokens in shared memory, and
//            the f32 values of its rows, where a lane finds the other halves of its pairs. Shuffles find the largest value
// Data path  gmem -> regs (f32) -> smem -> regs -> gmem: 8 elements a lane, in accesses of 16 bytes where the rows are
//            aligned. Rows that do not change go from regs to gmem as they are
// Budget     <= 64 regs; 0 spills; requires SASS: LDG, STG, LDS, STS. 0 bank conflicts where rows are stored and read; 2
//            ways where angles are stored, once a block, and where interleaved pairs read them
// Reference  tests/reference/paged_kv.py
#include <cfloat>

#include "ops/paged_kv/cuda/launch.h"
#include "ops/paged_kv/cuda/rows.cuh"
#include "ops/paged_kv/encoding.h"

namespace lamina::paged_kv {
namespace {

// Element j of a row in shared memory. A lane has 8 neighbouring elements, and 9 is odd: lanes hit different banks.
constexpr int padded(int j) { return j + j / kLaneElements; }
constexpr int kLaneFloats = padded(kLaneElements);

template <class Code>
struct AppendRows {
  struct Args {
    Append p;
    RowGrid grid;
    kv::ErrorWord* error;
  };
  static constexpr const char *kName = "append_paged_kv_rows", *kOp = "append_paged_kv";
  static constexpr int kThreads = kRowThreads, kMinBlocks = 4;
  static constexpr bool kIsQuantized = sizeof(Code) == 1;

  // Where a token goes; slot -1: nowhere.
  struct Token {
    int64_t slot, position;
    bool has_angles;
  };

  // One row of k, v or q.
  struct Row {
    const void* from = nullptr;
    DType dtype = DType::kF32;
    void* to = nullptr;      // no row: null
    float* scale = nullptr;  // of a quantised row
    int dim = 0;
    bool is_q = false, is_rotated = false, has_own_scale = false;
  };

  LAMINA_DEVICE static void run(const Args& args) {
    const bool has_rope = args.p.rope.cos != nullptr;
    const int64_t first = int64_t{dev::block_index().x} * args.grid.block_tokens;
    if (has_rope) {
      stage_angles(args, first);
      dev::block_sync();
    }
    for_rows(args.grid, first, args.p.tokens,
             [&](int token, int row) { move_row(args, first, token, row); });
  }

  LAMINA_DEVICE static float* smem_rows() { return reinterpret_cast<float*>(dev::dynamic_smem()); }
  // The cosines of a block's token, and behind them the sines.
  LAMINA_DEVICE static float* smem_angles(const Args& args, int token) {
    const int stride = padded(static_cast<int>(args.p.rope.rotary_dim / 2)) + 1;
    return smem_rows() + kThreads * kLaneFloats + token * 2 * stride;
  }
  static constexpr int smem_bytes(const Append& p, const RowGrid& grid) {
    const int stride = padded(static_cast<int>(p.rope.rotary_dim / 2)) + 1;
    return p.rope.cos == nullptr ? 0
                                 : 4 * (kThreads * kLaneFloats + grid.block_tokens * 2 * stride);
  }

  LAMINA_DEVICE static void report(const Args& args, kv::ErrorArgument argument, int64_t value,
                                   int64_t row) {
    kv::report(args.error, kv::ErrorOp::kAppend, argument, value, row);
  }

  LAMINA_DEVICE static bool is_good_scale(const Args& args, const WrittenScales& scale,
                                          kv::ErrorArgument argument) {
    if (!scale.is_given() || scale.is_per_token()) return true;
    const float value = dev::load_global(scale.data);
    if (value >= FLT_MIN && value <= FLT_MAX) return true;
    report(args, argument, std::bit_cast<int32_t>(value), 0);
    return false;
  }

  // A token with a bad slot or scale is not stored; a token with a bad position is not rotated either.
  LAMINA_DEVICE static Token find_token(const Args& args, int64_t t) {
    const Append& p = args.p;
    Token token{dev::load_global(p.slot_mapping + t), 0, false};
    if (token.slot < -1 || token.slot >= p.k_cache.pages * p.k_cache.page) {
      report(args, kv::ErrorArgument::kSlotMapping, token.slot, t);
      token.slot = -1;
    }
    if constexpr (kIsQuantized) {
      if (!is_good_scale(args, p.k_scale, kv::ErrorArgument::kKScale) ||
          !is_good_scale(args, p.v_scale, kv::ErrorArgument::kVScale))
        token.slot = -1;
    }
    if (p.rope.cos == nullptr || (token.slot < 0 && p.q.data == nullptr)) return token;
    token.position = p.rope.position32 != nullptr ? dev::load_global(p.rope.position32 + t)
                                                  : dev::load_global(p.rope.position64 + t);
    token.has_angles = token.position >= 0 && token.position < p.rope.positions;
    if (!token.has_angles) {
      report(args, kv::ErrorArgument::kPositions, token.position, t);
      token.slot = -1;
    }
    return token;
  }

  template <class T>
  LAMINA_DEVICE static float load_angle(const void* table, int64_t offset) {
    return to_f32(dev::load_global(static_cast<const T*>(table) + offset));
  }
  LAMINA_DEVICE static float load_angle(const void* table, DType dtype, int64_t offset) {
    if (dtype == DType::kF32) return load_angle<float>(table, offset);
    return dtype == DType::kF16 ? load_angle<F16>(table, offset) : load_angle<BF16>(table, offset);
  }

  LAMINA_DEVICE static void stage_angles(const Args& args, int64_t first) {
    const Rope& rope = args.p.rope;
    const int pairs = static_cast<int>(rope.rotary_dim / 2);
    const int64_t here = std::min<int64_t>(args.grid.block_tokens, args.p.tokens - first);
    for (int i = dev::thread_index(); i < pairs * here; i += kThreads) {
      const int token = i / pairs, pair = i % pairs;
      const Token found = find_token(args, first + token);
      if (!found.has_angles) continue;
      float* const cos = smem_angles(args, token);
      dev::store_shared(cos + padded(pair),
                        load_angle(rope.cos, rope.dtype, found.position * rope.cos_stride + pair));
      dev::store_shared(cos + padded(pairs) + 1 + padded(pair),
                        load_angle(rope.sin, rope.dtype, found.position * rope.sin_stride + pair));
    }
  }

  LAMINA_DEVICE static Row find_row(const Args& args, int64_t t, int row) {
    const Append& p = args.p;
    const int heads = static_cast<int>(p.k_cache.heads);
    const Token token = find_token(args, t);
    const auto at = [&](const auto& rows, int head) {
      return static_cast<const std::byte*>(rows.data) +
             rows.offset(t, head) * size_bytes(rows.dtype);
    };
    if (row >= 2 * heads) {
      if (!token.has_angles) return {};
      const std::byte* const q = at(p.q, row - 2 * heads);
      return {
          q,    p.q.dtype, const_cast<std::byte*>(q), nullptr, static_cast<int>(p.q.head_dim), true,
          true, false};
    }
    if (token.slot < 0) return {};
    const bool is_k = row < heads;
    const int head = is_k ? row : row - heads;
    const Rows<const void*>& from = is_k ? p.k : p.v;
    const kv::Cache& cache = is_k ? p.k_cache : p.v_cache;
    const WrittenScales& scales = is_k ? p.k_scale : p.v_scale;
    const int64_t page = token.slot / cache.page, slot = token.slot % cache.page;
    return {at(from, head),
            from.dtype,
            static_cast<Code*>(cache.data) + cache.offset(page, slot, head),
            scales.is_given() ? &scales.at(page, slot, head) : nullptr,
            static_cast<int>(cache.head_dim),
            false,
            is_k && token.has_angles,
            scales.is_per_token()};
  }

  LAMINA_DEVICE static void move_row(const Args& args, int64_t first, int token, int index) {
    const int j = dev::thread_index() % args.grid.lanes * kLaneElements;
    Row row;
    if (token >= 0) row = find_row(args, first + token, index);
    if (j >= row.dim) row = {};
    float x[kLaneElements] = {};
    const bool is_there = row.to != nullptr;
    const bool is_copied = !row.is_rotated && has_bits_of<Code>(row.dtype);
    if (is_there && !is_copied) load_as_f32(row.from, row.dtype, j, x);
    if (args.p.rope.cos != nullptr) rotate(args, row, smem_angles(args, std::max(token, 0)), j, x);
    float scale = 1.0f;
    if constexpr (kIsQuantized) scale = find_scale(args, row, j, x);
    if (!is_there) return;
    if (row.is_q) {
      store_rounded(x, args.p.rope.rotary_dim - j, row.dtype, row.to, j);
      return;
    }
    Code* const to = static_cast<Code*>(row.to) + j;
    if constexpr (kIsQuantized) {
      store_run(to, encode(x, scale), kLaneElements);
    } else if (is_copied) {
      store_run(to, load_run(static_cast<const Code*>(row.from) + j), kLaneElements);
    } else {
      store_rounded<Code>(x, kLaneElements, row.to, j);
    }
  }

  // Rotates the pairs of the row in which this lane has an element. All lanes of the warp call it.
  LAMINA_DEVICE static void rotate(const Args& args, const Row& row, const float* cos, int j,
                                   float (&x)[kLaneElements]) {
    const int pairs = static_cast<int>(args.p.rope.rotary_dim / 2);
    const float* const sin = cos + padded(pairs) + 1;
    float* const mine = smem_rows() + dev::thread_index() * kLaneFloats;
    float* const smem_row = mine - padded(j);
    if (row.is_rotated)
#pragma unroll
      for (int e = 0; e < kLaneElements; ++e) dev::store_shared(mine + e, x[e]);
    dev::warp_sync();
    if (row.is_rotated)
#pragma unroll
      for (int e = 0; e < kLaneElements; ++e) {
        const int element = j + e;
        if (element >= 2 * pairs) break;
        const bool is_first = args.p.rope.interleaved ? e % 2 == 0 : element < pairs;
        const int apart = args.p.rope.interleaved ? 1 : pairs;
        const int other = is_first ? element + apart : element - apart;
        const int pair = args.p.rope.interleaved ? element / 2 : is_first ? element : other;
        const float across =
            dev::load_shared(smem_row + padded(other)) * dev::load_shared(sin + padded(pair));
        const float along = x[e] * dev::load_shared(cos + padded(pair));
        x[e] = is_first ? along - across : along + across;
      }
    dev::warp_sync();  // all lanes have read the row before the next row is written
  }

  // The scale with which the row is encoded, NaN if the row has no code. All lanes of the warp call it.
  LAMINA_DEVICE static float find_scale(const Args& args, const Row& row, int j,
                                        const float (&x)[kLaneElements]) {
    int32_t largest = 0;
#pragma unroll
    for (int e = 0; e < kLaneElements; ++e) largest = std::max(largest, to_bits(x[e]) & 0x7fffffff);
    for (int step = args.grid.lanes / 2; step > 0; step /= 2)
      largest = std::max(largest, dev::shuffle_xor(largest, step));
    if (row.scale == nullptr) return 1.0f;
    if (!row.has_own_scale) return dev::load_global(row.scale);
    const float scale = scale_of_row<Code>(from_bits<float>(largest));
    if (j == 0) dev::store_global(row.scale, scale);
    return scale;
  }

  // A row whose scale is NaN has no codes and gets zeros.
  LAMINA_DEVICE static LaneRun<Code> encode(const float (&x)[kLaneElements], float scale) {
    LaneRun<Code> run{};
    if (scale != scale) return run;
    const Encoder<Code> encoder(scale);
#pragma unroll
    for (int e = 0; e < kLaneElements; ++e) run.value[e] = encoder(x[e]);
    return run;
  }
};

}  // namespace

Status append_cuda(const Append& params, const DeviceInfo& device, void* stream) {
  const int64_t q_heads = params.q.data == nullptr ? 0 : params.q.heads;
  const int64_t token_rows = 2 * params.k_cache.heads + q_heads;
  if (params.tokens == 0 || token_rows == 0) return Status::ok();
  const RowGrid grid = row_grid_of(params.k_cache.head_dim, params.v_cache.head_dim, token_rows,
                                   params.tokens, device);
  return launch_for(params.k_cache.dtype, [&]<class Code>(Code) {
    using Kernel = AppendRows<Code>;
    return launch_rows<Kernel>(params, grid, Kernel::smem_bytes(params, grid), stream);
  });
}

}  // namespace lamina::paged_kv
