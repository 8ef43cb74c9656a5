// paged_attention / amx_int8: bf16 queries and caches in tiles of 16 rows x 32 keys or elements; the others as without AMX.
#include "base/amx.h"
#include "ops/paged_attention/cpu/avx512.h"
#include "ops/paged_attention/cpu/bf16_product.h"

namespace lamina::paged_attention {
namespace {

struct Amx : Avx512 {
  static constexpr int kMaxRows = 32;
};

// A product takes 16 dwords of k at a time, so that panels and queries end in zeros up to a multiple of 16.
struct AmxProduct : Bf16Product<Amx> {
  static constexpr int kKeysPerStep = 32;
  static constexpr int kTile = kAmxRows;

  explicit AmxProduct(kv::CacheDType dtype) : Bf16Product<Amx>(dtype) {
    pack_keys = [](const char* const* rows, int count, int64_t dim, int32_t* panel,
                   Prefetch& prefetch) {
      paged_attention::pack_keys<Amx, BF16, true>(rows, count, dim, panel, prefetch);
      fill(panel, dim / 2, Amx::kColumns);
    };
    pack_values = [](const char* const* rows, int count, int64_t dim, int32_t* panel,
                     Prefetch& prefetch) {
      interleave_values<Amx, kKeysPerDword>(rows, count, dim, panel, prefetch);
      fill(panel, (count + 1) / 2, round_up(dim, kValueColumns));
    };
  }
  static int64_t dwords(int64_t dim) { return round_up(dim / 2, kTile); }

  static void fill(int32_t* panel, int64_t rows, int64_t columns) {
    std::fill(panel + rows * columns, panel + round_up(rows, kTile) * columns, 0);
  }

  // Sums are tiles 0 to 3, a is 4 and 5, b is 6 and 7: 32 rows x 32 columns at a time.
  static void multiply(int64_t rows, Operands o, Prefetch& prefetch) {
    for (; o.blocks > 0; o.skip_blocks(1, Amx::kColumns)) {
      Operands part = o;
      for (int64_t left = rows; left > 0; left -= 2 * kTile, part.skip_rows(2 * kTile))
        if (left > kTile) {
          multiply_tiles<2>(left, part, prefetch);
        } else {
          multiply_tiles<1>(left, part, prefetch);
        }
    }
  }
  static int64_t passes(int64_t rows, int64_t k, int64_t blocks) {
    return ceil_div(rows, 2 * kTile) * (k / Prefetch::kSteps) * blocks;
  }

 private:
  // Rows 16 kRow to 16 kRow + 15 of the sums, where only `count` rows may be touched.
  template <int kRow, class Body>
  static void with_sums(int64_t rows, const Operands& o, bool is_load, const Body& body) {
    const int64_t count = std::min<int64_t>(rows - kRow * kTile, kTile);
    int32_t* c = o.c + kRow * kTile * o.c_stride;
    if (count == kTile) return body(c, o.c_stride);
    int32_t some[kTile * Amx::kColumns] = {};
    const auto copy = [&](bool out) {
      for (int64_t i = 0; i < count; ++i)
        std::memcpy(out ? c + i * o.c_stride : some + i * Amx::kColumns,
                    out ? some + i * Amx::kColumns : c + i * o.c_stride,
                    Amx::kColumns * sizeof(int32_t));
    };
    if (is_load) copy(false);
    body(some, Amx::kColumns);
    if (!is_load) copy(true);
  }

  template <int kRows>
  static void multiply_tiles(int64_t rows, const Operands& o, Prefetch& prefetch) {
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
      const int32_t* b = o.b + p * o.b_stride;
      amx_load<6>(b, 4 * o.b_stride);
      amx_load<7>(b + kTile, 4 * o.b_stride);
      unroll<kRows>([&](auto r) {
        amx_load<4 + r>(o.a + r * kTile * o.a_stride + p, 4 * o.a_stride);
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

}  // namespace

CpuKernel paged_attention_amx_int8() {
  return {"paged_attention_amx_int8", Isa::kAmxInt8, [](const Call& call, int64_t part) {
            const Params& p = call.params;
            if (p.k.dtype == kv::CacheDType::kI8)
              return compute<Avx512, Int8Product<Avx512>>(call, part);
            if (p.k.dtype != kv::CacheDType::kBF16 || p.q_dtype != DType::kBF16)
              return compute<Avx512>(call, part);
            const AmxSession session;
            compute<Amx, AmxProduct>(call, part);
          }};
}

}  // namespace lamina::paged_attention
