#include "ops/gemm_int4/pack.h"

#include <algorithm>
#include <array>

#include "base/first.h"

namespace lamina::gemm_int4 {
namespace {

using int4::kTileBytes;
using int4::kTileK;
using int4::kTileN;

// A table of all places of a layout, so that packing looks places up.
using Places = std::array<std::array<int4::Place, kTileK>, kTileN>;

Places places_of(int4::Layout layout) {
  Places places{};
  for (int n = 0; n < kTileN; ++n)
    for (int k = 0; k < kTileK; ++k)
      places[static_cast<size_t>(n)][static_cast<size_t>(k)] = layout(n, k);
  return places;
}

Status check(int64_t n, int64_t k) {
  if (n < 0 || k < 0)
    return Status::error("int4: n = ", n, ", k = ", k, "; neither may be negative");
  if (!int4::packed_bytes(n, k) || !checked_product(n, std::max<int64_t>(k, 1)))
    return Status::error("int4: n = ", n, ", k = ", k, " needs more than 2^63 bytes");
  return Status::ok();
}

// A tile's weights: rows [row, row + rows) x k [first, first + count).
struct Part {
  int64_t row, rows, first, count;
};

// Calls body(part, the part's tile in `data`) for every tile.
template <class Byte, class Body>
void for_tiles(Byte* data, int64_t n, int64_t k, const Parallel& parallel, const Body& body) {
  const int64_t tiles_k = int4::tiles_k(k);
  parallel.for_range(int4::tiles_n(n), 1, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin * tiles_k; tile < end * tiles_k; ++tile) {
      const int64_t row = tile / tiles_k * kTileN, first = tile % tiles_k * kTileK;
      body(Part{row, std::min<int64_t>(kTileN, n - row), first,
                std::min<int64_t>(kTileK, k - first)},
           data + tile * kTileBytes);
    }
  });
}

void gather(const uint8_t* row, const int32_t* perm, int64_t count, uint8_t* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = perm[i] < 0 ? uint8_t{0} : row[perm[i]];
}

}  // namespace

Status layout_of(const char* op, std::string_view name, int4::Layout& layout) {
  if (name != int4::kTileName && name != int4::kRowsName)
    return Status::error(op, ": layout = \"", name, "\"; allowed: \"", int4::kTileName, "\", \"",
                         int4::kRowsName, "\"");
  layout = name == int4::kTileName ? int4::tile_place : int4::rows_place;
  return Status::ok();
}

Status pack(const uint8_t* q, int64_t n, int64_t k, int64_t stride, int4::Layout layout,
            uint8_t* data, const Parallel& parallel, const Perm& perm) {
  if (Status status = check(n, k); !status.is_ok()) return status;
  if (Status status = check("pack_int4", perm, k); !status.is_ok()) return status;
  const Places places = places_of(layout);
  First wrong;  // the first row with a code beyond 15
  for_tiles(data, n, k, parallel, [&](const Part& part, uint8_t* tile) {
    std::fill_n(tile, kTileBytes, uint8_t{0});
    for (int64_t i = 0; i < part.rows; ++i) {
      const uint8_t* from = q + (part.row + i) * stride + (perm.is_given() ? 0 : part.first);
      std::array<uint8_t, kTileK> named;
      if (perm.is_given()) {
        gather(from, perm.data + part.first, part.count, named.data());
        from = named.data();
      }
      const auto& place = places[static_cast<size_t>(i)];
      uint8_t seen = 0;
      for (size_t p = 0; p < static_cast<size_t>(part.count); ++p) {
        seen |= from[p];
        tile[place[p].byte] |= static_cast<uint8_t>(from[p] << place[p].shift);
      }
      if (seen > 15) wrong.report(part.row + i);
    }
  });
  if (wrong.is_found()) {
    const int64_t row = wrong.index();
    const uint8_t* const from = q + row * stride;
    const auto feature = [&](int64_t p) { return perm.is_given() ? perm.data[p] : p; };
    int64_t at = 0;
    while (feature(at) < 0 || from[feature(at)] <= 15) ++at;
    const int64_t p = feature(at);
    return Status::error("pack_int4: q[", row, ", ", p, "] = ", int{from[p]}, "; allowed: 0 to 15");
  }
  return Status::ok();
}

Status unpack(const uint8_t* data, int64_t n, int64_t k, int4::Layout layout, uint8_t* q,
              const Parallel& parallel) {
  if (Status status = check(n, k); !status.is_ok()) return status;
  const Places places = places_of(layout);
  for_tiles(data, n, k, parallel, [&](const Part& part, const uint8_t* tile) {
    for (int64_t i = 0; i < part.rows; ++i) {
      uint8_t* const to = q + (part.row + i) * k + part.first;
      const auto& place = places[static_cast<size_t>(i)];
      for (size_t p = 0; p < static_cast<size_t>(part.count); ++p)
        to[p] = static_cast<uint8_t>(tile[place[p].byte] >> place[p].shift & 15);
    }
  });
  return Status::ok();
}

}  // namespace lamina::gemm_int4
