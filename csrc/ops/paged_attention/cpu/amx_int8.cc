// paged_attention / amx_int8: bf16 queries and caches in tiles of 16 rows x 32 keys or elements; the others as without AMX.
#include "base/amx.h"
#include "ops/paged_attention/cpu/avx512.h"
#include "ops/paged_attention/cpu/bf16_product.h"

namespace lamina::paged_attention {
namespace {

struct Amx : Avx512 {
  static constexpr int kMaxRows = 32;
  static constexpr bool kPacksAhead = false;
  static I to_bf16(F a, F b) { return lamina::to_bf16(a, b); }
};

// A product takes 16 dwords of k at a time, so that panels and queries end in zeros up to a multiple of 16. Values are
// interleaved into a panel, because a tile is read from memory.
struct AmxProduct : Bf16Product<Amx> {
  static constexpr int kKeysPerStep = 32;
  static constexpr int kTile = kAmxRows;

  using Bf16Product<Amx>::Bf16Product;
  static int64_t dwords(int64_t dim) { return round_up(dim / 2, kTile); }

  static void multiply_keys(int64_t rows, Operands<Panel> o, Prefetch& prefetch) {
    for (; o.blocks > 0; o.skip_blocks<Amx>(1)) {
      Operands<Panel> part = o;
      for (int64_t left = rows; left > 0; left -= 2 * kTile, part.skip_rows(2 * kTile))
        if (left > kTile) {
          multiply_tiles<2>(left, part, prefetch);
        } else {
          multiply_tiles<1>(left, part, prefetch);
        }
    }
  }
  static void multiply_values(int64_t rows, Operands<Values> o, Prefetch& prefetch) {
    alignas(64) int32_t panel[kMostDwords * Amx::kColumns];
    for (; o.blocks > 0; o.skip_blocks<Amx>(1)) {
      Values values = o.b;
      for (int64_t i = 0; i < o.k; ++i) {
        __m512i both[2];
        values.take<Amx, 2>(both);
        Amx::store_int(panel + i * Amx::kColumns, both[0]);
        Amx::store_int(panel + i * Amx::kColumns + Amx::kLanes, both[1]);
      }
      multiply_keys(rows, {o.a, {panel, 0}, o.c, o.k, 1, true}, prefetch);
    }
  }
  template <class B>
  static int64_t passes(int64_t rows, int64_t k, int64_t blocks) {
    return ceil_div(rows, 2 * kTile) * (k / Prefetch::kSteps) * blocks;
  }

  static constexpr int64_t kMostDwords = (kKeysInPlace + kAlign) / kKeysPerDword;  // of values

 private:
  // Rows 16 kRow to 16 kRow + 15 of the sums, where only `count` rows may be touched.
  template <int kRow, class Body>
  static void with_sums(int64_t rows, const Operands<Panel>& o, bool is_load, const Body& body) {
    const int64_t count = std::min<int64_t>(rows - kRow * kTile, kTile);
    int32_t* c = o.c + kRow * kTile * kRowStride;
    if (count == kTile) return body(c, kRowStride);
    int32_t some[kTile * Amx::kColumns] = {};
    const auto copy = [&](bool out) {
      for (int64_t i = 0; i < count; ++i)
        std::memcpy(out ? c + i * kRowStride : some + i * Amx::kColumns,
                    out ? some + i * Amx::kColumns : c + i * kRowStride,
                    Amx::kColumns * sizeof(int32_t));
    };
    if (is_load) copy(false);
    body(some, Amx::kColumns);
    if (!is_load) copy(true);
  }

  // Sums are tiles 0 to 3, a is 4 and 5, b is 6 and 7: 32 rows x 32 columns at a time.
  template <int kRows>
  static void multiply_tiles(int64_t rows, const Operands<Panel>& o, Prefetch& prefetch) {
    unroll<kRows>([&](auto r) {
      constexpr int kSum = 2 * decltype(r)::value;
      if (!o.accumulate) {
        amx_zero<kSum>();
        amx_zero<kSum + 1>();
        return;
      }
      with_sums<r>(rows, o, true, [](const int32_t* c, int64_t stride) {
        amx_load<kSum>(c, 4 * stride);
        amx_load<kSum + 1>(c + kTile, 4 * stride);
      });
    });
    for (int64_t p = 0; p < o.k; p += kTile) {
      for (int i = 0; i < kTile; i += Prefetch::kSteps) prefetch.pass();
      const int32_t* b = o.b.at + p * Amx::kColumns;
      amx_load<6>(b, 4 * Amx::kColumns);
      amx_load<7>(b + kTile, 4 * Amx::kColumns);
      unroll<kRows>([&](auto r) {
        amx_load<4 + r>(o.a + r * kTile * kRowStride + p, 4 * kRowStride);
        amx_multiply_bf16<2 * r, 4 + r, 6>();
        amx_multiply_bf16<2 * r + 1, 4 + r, 7>();
      });
    }
    unroll<kRows>([&](auto r) {
      constexpr int kSum = 2 * decltype(r)::value;
      with_sums<r>(rows, o, false, [](int32_t* c, int64_t stride) {
        amx_store<kSum>(c, 4 * stride);
        amx_store<kSum + 1>(c + kTile, 4 * stride);
      });
    });
  }
};

void run_part(const Call& call, int64_t part) {
  const Params& p = call.params;
  if (p.k.dtype == kv::CacheDType::kI8) return compute<Avx512, Int8Product<Avx512>>(call, part);
  if (p.k.dtype != kv::CacheDType::kBF16 || p.q_dtype != DType::kBF16)
    return compute<Avx512>(call, part);
  const AmxSession session;
  compute<Amx, AmxProduct>(call, part);
}

}  // namespace

extern constinit const CpuKernel paged_attention_amx_int8 = {"paged_attention_amx_int8",
                                                             Isa::kAmxInt8, &run_part};

}  // namespace lamina::paged_attention
