// matmul_sparse24_int8, matmul_sparse24_int4_int8 / generic: plain loops, for any CPU.
#include "gemm/cpu/pack_bytes.h"
#include "ops/matmul_sparse24/cpu/int8/int4_nest.h"
#include "ops/matmul_sparse24/cpu/int8/sparse.h"

namespace lamina::matmul_sparse24 {
namespace {

struct Tile {
  using Session = NoSession;
  static constexpr int kTileM = 4, kRowStep = 1;
  static constexpr int kTileN = sparse24_rows::kTileN;
  static constexpr int kOffset = 0;
  static constexpr bool kScales = false;
  static constexpr int strip(int64_t) { return kTileN; }
  static constexpr int tiles_at_once(int64_t) { return 1; }
  static constexpr int packed_bytes(int rows) {
    return rows * sparse24_rows::kTileK;
  }  // [step of 8 k][row][8]

  static void pack(const int8_t* a, int64_t a_stride, int rows, int64_t k, int8_t* packed) {
    pack_groups(a, a_stride, rows, k, uint64_t{0}, packed);
  }

  static void add_sums(const int8_t* values, int32_t* sums) {
    for (int at = 0; at < kStepBytes; ++at) sums[at / sparse24_rows::kStepValues] += values[at];
  }

  static void expand_spans(const uint8_t* from, int64_t spans, int8_t* to, int32_t* sums) {
    for (; spans > 0; --spans, from += kCodeSpanBytes, to += kSpanBytes) {
      std::memcpy(to, from, sparse24_rows::kIndexBytes);
      for (int step = 0; step < sparse24_rows::kSteps; ++step) {
        int8_t* const values = to + sparse24_rows::kIndexBytes + step * kStepBytes;
        for (int at = 0; at < kStepBytes; ++at) {
          const int code =
              from[sparse24_rows::kIndexBytes + step / 2 * kStepBytes + at] >> step % 2 * 4 & 15;
          values[at] = static_cast<int8_t>(code - kSymmetricZeroPoint);
        }
        if (sums) add_sums(values, sums);
      }
    }
  }

  static void multiply(int rows, const int8_t* a, const int8_t* w, int64_t, int, int64_t tiles_k,
                       int32_t* acc, bool accumulate, Prefetch) {
    constexpr int kStepK = sparse24_rows::kStepK, kValues = sparse24_rows::kStepValues;
    if (!accumulate) std::fill_n(acc, rows * kTileN, 0);
    for (int64_t span = 0; span < tiles_k * sparse24_rows::kSpans; ++span, w += kSpanBytes) {
      const auto* const indices = reinterpret_cast<const uint8_t*>(w);
      const int8_t* values = w + sparse24_rows::kIndexBytes;
      for (int step = 0; step < sparse24_rows::kSteps; ++step, values += kStepBytes)
        for (int i = 0; i < rows; ++i, a += kStepK)
          for (int at = 0; at < kStepBytes; ++at) {
            const int index = indices[at] >> 2 * step & 3, group = at % kValues / 2;
            acc[i * kTileN + at / kValues] +=
                a[group * sparse24_rows::kGroupK + index] * values[at];
          }
    }
  }
};

}  // namespace

extern constinit const CpuKernel matmul_sparse24_int8_generic =
    make_kernel<Tile>("matmul_sparse24_int8_generic", Isa::kGeneric, 2);

extern constinit const CpuKernel matmul_sparse24_int4_int8_generic =
    make_int4_kernel<Tile>("matmul_sparse24_int4_int8_generic", Isa::kGeneric, 2);

}  // namespace lamina::matmul_sparse24
