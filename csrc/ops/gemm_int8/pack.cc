#include "ops/gemm_int8/pack.h"

#include <algorithm>
#include <cstring>

#include "base/int_math.h"
#include "layout/int8_tile.h"

namespace lamina::gemm_int8 {
namespace {

using int8_tile::kGroupK;
using int8_tile::kTileBytes;
using int8_tile::kTileK;
using int8_tile::kTileN;

// Calls body(row of w, k range begin, end, the bytes of both in `data`) for each row of each tile. The 4-byte groups
// of one row in one tile lie kTileN groups apart.
template <class Byte, class Body>
void for_tile_rows(Byte* data, int64_t n, int64_t k, int64_t tile_begin, int64_t tile_end,
                   const Body& body) {
  const int64_t tiles_k = int8_tile::tiles_k(k);
  for (int64_t row = tile_begin * kTileN; row < std::min(n, tile_end * kTileN); ++row)
    for (int64_t begin = 0; begin < k; begin += kTileK)
      body(row, begin, std::min(begin + kTileK, k), data + int8_tile::offset(row, begin, tiles_k));
}

}  // namespace

Status pack(const int8_t* w, const Problem& problem, int64_t stride, int8_t* data, int32_t* sums,
            const Parallel& parallel) {
  if (Status status = check(problem); !status.is_ok()) return status;
  const int64_t n = problem.n, k = problem.k, tiles_k = int8_tile::tiles_k(k);
  const int64_t groups = problem.is_grouped() ? problem.groups() : 1;
  const int64_t group_k = problem.is_grouped() ? kScaleGroup : kMaxK;
  parallel.for_range(int8_tile::tiles_n(n), 1, [&](int64_t tile_begin, int64_t tile_end) {
    std::fill(data + tile_begin * tiles_k * kTileBytes, data + tile_end * tiles_k * kTileBytes,
              int8_t{0});
    for (int64_t g = 0; g < groups; ++g)
      std::fill(sums + g * n + tile_begin * kTileN, sums + g * n + std::min(n, tile_end * kTileN),
                0);
    for_tile_rows(data, n, k, tile_begin, tile_end,
                  [&](int64_t row, int64_t begin, int64_t end, int8_t* out) {
                    const int8_t* const in = w + row * stride;
                    int32_t sum = 0;
                    for (int64_t p = begin; p < end; p += kGroupK, out += kTileN * kGroupK) {
                      const int64_t count = std::min<int64_t>(kGroupK, end - p);
                      std::memcpy(out, in + p, static_cast<size_t>(count));
                      for (int64_t q = 0; q < count; ++q) sum += in[p + q];
                    }
                    sums[begin / group_k * n + row] += sum;
                  });
  });
  return Status::ok();
}

Status unpack(const int8_t* data, int64_t n, int64_t k, int8_t* w, const Parallel& parallel) {
  if (Status status = check(Problem{0, n, k}); !status.is_ok()) return status;
  parallel.for_range(int8_tile::tiles_n(n), 1, [&](int64_t tile_begin, int64_t tile_end) {
    for_tile_rows(data, n, k, tile_begin, tile_end,
                  [&](int64_t row, int64_t begin, int64_t end, const int8_t* in) {
                    for (int64_t p = begin; p < end; p += kGroupK, in += kTileN * kGroupK)
                      std::memcpy(w + row * k + p, in,
                                  static_cast<size_t>(std::min<int64_t>(kGroupK, end - p)));
                  });
  });
  return Status::ok();
}

}  // namespace lamina::gemm_int8
