// gemm_int8 / generic: plain loops, for any CPU.
#include "gemm/cpu/pack_bytes.h"
#include "ops/gemm_int8/cpu/dense.h"

namespace lamina::gemm_int8 {
namespace {

struct Tile {
  using Session = NoSession;
  static constexpr int kTileM = 4, kRowStep = 1;
  static constexpr int kTileN = int8_tile::kTileN;
  static constexpr int kOffset = 0;
  static constexpr int strip(int64_t) { return kTileN; }
  static constexpr int tiles_at_once(int64_t) { return 1; }
  static constexpr int packed_bytes(int rows) {
    return rows * int8_tile::kTileK;
  }  // [group of 4 k][row][4]

  static void pack(const int8_t* a, int64_t a_stride, int rows, int64_t k, int8_t* packed) {
    pack_bytes(a, a_stride, rows, k, 0, packed);
  }

  static void multiply(int rows, const int8_t* a, const int8_t* w, int64_t, int, int64_t tiles_k,
                       int32_t* acc, bool accumulate, Prefetch) {
    if (!accumulate) std::fill_n(acc, rows * kTileN, 0);
    for (int64_t g = 0; g < tiles_k * int8_tile::kGroups; ++g, w += kTileN * int8_tile::kGroupK)
      for (int i = 0; i < rows; ++i, a += int8_tile::kGroupK)
        for (int j = 0; j < kTileN; ++j) {
          const int8_t* const column = w + j * int8_tile::kGroupK;
          acc[i * kTileN + j] +=
              a[0] * column[0] + a[1] * column[1] + a[2] * column[2] + a[3] * column[3];
        }
  }
};

}  // namespace

extern constinit const CpuKernel gemm_int8_generic =
    make_kernel<Tile>("gemm_int8_generic", Isa::kGeneric, 2);

}  // namespace lamina::gemm_int8
