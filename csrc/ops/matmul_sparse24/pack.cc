#include "ops/matmul_sparse24/pack.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "base/first.h"
#include "layout/sparse24.h"

namespace lamina::matmul_sparse24 {
namespace {

using sparse24::Place;
using sparse24_rows::kGroupK;
using sparse24_rows::kTileK;
using sparse24_rows::kTileN;
constexpr int kGroups = kTileK / kGroupK, kKept = 2;

// The places of one group of a tile, so that packing looks places up.
struct Group {
  Place index[kKept], value[kKept];
};
using Places = std::array<std::array<Group, kGroups>, kTileN>;

Places places_of(const Layout& layout, int bits) {
  Places places{};
  for (int n = 0; n < kTileN; ++n)
    for (int g = 0; g < kGroups; ++g)
      for (int kept = 0; kept < kKept; ++kept) {
        Group& group = places[static_cast<size_t>(n)][static_cast<size_t>(g)];
        group.index[kept] = layout.index_place(n, g, kept, bits);
        group.value[kept] = layout.value_place(n, g, kept, bits);
      }
  return places;
}

// Calls body(row, group of the row, the tile's bytes, the group's places) for every group of every row.
template <class Byte, class Body>
void for_groups(const Layout& layout, const Shape& shape, Byte* data, const Parallel& parallel,
                const Body& body) {
  const Places places = places_of(layout, shape.bits);
  const int64_t tiles_k = sparse24_rows::tiles_k(shape.k), groups = shape.k / kGroupK;
  const int64_t tile_bytes = sparse24_rows::tile_bytes(shape.bits);
  parallel.for_range(sparse24_rows::tiles_n(shape.n), 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin * kTileN; row < std::min(shape.n, end * kTileN); ++row) {
      const auto& of_row = places[static_cast<size_t>(row % kTileN)];
      Byte* const tiles = data + row / kTileN * tiles_k * tile_bytes;
      for (int64_t g = 0; g < groups; ++g)
        body(row, g, tiles + g / kGroups * tile_bytes, of_row[static_cast<size_t>(g % kGroups)]);
    }
  });
}

const uint8_t* row_of(const Shape& shape, const Sparse& sparse, int64_t row) {
  const int64_t bytes = std::max(shape.bits / 8, 1);
  return static_cast<const uint8_t*>(sparse.values) + row * sparse.values_stride * bytes;
}

void put(uint8_t* tile, const Place& place, int mask, int value) {
  uint8_t& byte = tile[place.byte];
  byte = static_cast<uint8_t>((byte & ~(mask << place.shift)) | value << place.shift);
}

// A tile of padding.
std::vector<uint8_t> empty_tile(const Layout& layout, int bits) {
  std::vector<uint8_t> tile(static_cast<size_t>(sparse24_rows::tile_bytes(bits)));
  for (const auto& row : places_of(layout, bits))
    for (const Group& group : row) {
      put(tile.data(), group.index[0], 3, sparse24::first(layout.padding));
      put(tile.data(), group.index[1], 3, sparse24::second(layout.padding));
    }
  return tile;
}

}  // namespace

Status pack(const Layout& layout, const Shape& shape, const Sparse& sparse, uint8_t* data,
            const Parallel& parallel) {
  if (Status status = compress_sparse24::check_metadata(
          "pack_sparse24", sparse.metadata, sparse.metadata_stride, shape.n, shape.k, parallel);
      !status.is_ok())
    return status;
  const std::vector<uint8_t> empty = empty_tile(layout, shape.bits);
  const auto tile_bytes = static_cast<int64_t>(empty.size());
  const int64_t tiles = sparse24_rows::tiles_n(shape.n) * sparse24_rows::tiles_k(shape.k);
  parallel.for_range(tiles, 64, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile)
      std::copy(empty.begin(), empty.end(), data + tile * tile_bytes);
  });
  First wrong;
  for_groups(
      layout, shape, data, parallel, [&](int64_t row, int64_t g, uint8_t* tile, const Group& to) {
        const int code = sparse24::code_at(sparse.metadata + row * sparse.metadata_stride, g);
        put(tile, to.index[0], 3, sparse24::first(code));
        put(tile, to.index[1], 3, sparse24::second(code));
        const uint8_t* const values = row_of(shape, sparse, row);
        const int64_t each = std::max(shape.bits / 8, 1);
        for (int kept = 0; kept < kKept; ++kept) {
          const int64_t at = g * kKept + kept;
          if (shape.bits != 4) {
            std::memcpy(tile + to.value[kept].byte, values + at * each, static_cast<size_t>(each));
          } else if (values[at] > 15) {
            wrong.report(row * (shape.k / 2) + at);
          } else {
            put(tile, to.value[kept], 15, values[at]);
          }
        }
      });
  if (!wrong.is_found()) return Status::ok();
  const int64_t row = wrong.index() / (shape.k / 2), at = wrong.index() % (shape.k / 2);
  return Status::error("pack_sparse24: values[", row, ", ", at,
                       "] = ", int{row_of(shape, sparse, row)[at]}, "; allowed: 0 to 15");
}

void column_sums(const Shape& shape, const Sparse& sparse, int64_t group, int32_t* sums,
                 const Parallel& parallel) {
  const int64_t count = shape.k / 2, each = group / 2;
  constexpr int64_t kGrain = 64;
  parallel.for_range(shape.n, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const auto* const values = reinterpret_cast<const int8_t*>(row_of(shape, sparse, row));
      for (int64_t first = 0, g = 0; first == 0 || first < count; first += each, ++g) {
        int32_t sum = 0;
        for (int64_t i = first; i < std::min(count, first + each); ++i) sum += values[i];
        sums[g * shape.n + row] = sum;
      }
    }
  });
}

void unpack(const Layout& layout, const Shape& shape, const uint8_t* data, void* values,
            uint8_t* metadata, const Parallel& parallel) {
  const int64_t code_bytes = sparse24::metadata_bytes(shape.k), groups = shape.k / kGroupK;
  const int64_t each = std::max(shape.bits / 8, 1);
  auto* const out = static_cast<uint8_t*>(values);
  std::fill_n(metadata, shape.n * code_bytes, uint8_t{0});
  for_groups(layout, shape, data, parallel,
             [&](int64_t row, int64_t g, const uint8_t* tile, const Group& at) {
               const auto index = [&](int kept) {
                 return tile[at.index[kept].byte] >> at.index[kept].shift & 3;
               };
               uint8_t* const codes = metadata + row * code_bytes + g / 2;
               *codes |= static_cast<uint8_t>(sparse24::code_of(index(0), index(1)) << (g % 2 * 4));
               if (g + 1 == groups && groups % 2 == 1) *codes |= sparse24::kEmptyCode << 4;
               for (int kept = 0; kept < kKept; ++kept) {
                 const Place& place = at.value[kept];
                 uint8_t* const to = out + (row * (shape.k / 2) + g * kKept + kept) * each;
                 if (shape.bits == 4) {
                   *to = tile[place.byte] >> place.shift & 15;
                 } else {
                   std::memcpy(to, tile + place.byte, static_cast<size_t>(each));
                 }
               }
             });
}

}  // namespace lamina::matmul_sparse24
