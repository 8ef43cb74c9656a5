// gemm_int4_int8 / generic: plain loops, for any CPU.
#include "gemm/cpu/pack_bytes.h"
#include "ops/gemm_int4_int8/cpu/body.h"

namespace lamina::gemm_int4_int8 {
namespace {

struct Tile {
  using Session = NoSession;
  static constexpr int kTileM = 4, kRowStep = 1, kTileN = int4::kTileN;
  static constexpr bool kScales = false, kUnpacks = false, kTakesSigned = false;
  static constexpr int kGroupStep = kInt4GroupStep;
  static constexpr int packed_rows(int rows) { return rows; }
  static constexpr int64_t packed_at(int rows, int64_t k) { return k * rows; }
  static constexpr int tiles_at_once(int64_t) { return 1; }

  static void pack(const int8_t* a, int64_t a_stride, int rows, int64_t k, int8_t* packed) {
    pack_bytes(a, a_stride, rows, k, 0, packed);
  }

  template <Codes>
  static void multiply(const Step& step) {
    const Piece& piece = *step.pieces;
    if (piece.begins)
      for (int i = 0; i < step.rows; ++i) std::fill_n(step.acc + i * kTileN, kTileN, 0);
    const int8_t *a = step.a, *w = step.w;
    for (int f = 0; f < piece.fours; ++f, w += kTileN * int8_tile::kGroupK)
      for (int i = 0; i < step.rows; ++i, a += int8_tile::kGroupK)
        for (int j = 0; j < kTileN; ++j) {
          const int8_t* const column = w + j * int8_tile::kGroupK;
          step.acc[i * kTileN + j] +=
              a[0] * column[0] + a[1] * column[1] + a[2] * column[2] + a[3] * column[3];
        }
  }
};

}  // namespace

extern constinit const CpuKernel gemm_int4_int8_generic =
    make_kernel<Tile>("gemm_int4_int8_generic", Isa::kGeneric, 2);

}  // namespace lamina::gemm_int4_int8
