#include "ops/compress_sparse24/foreign.h"

#include <array>
#include <cstring>

#include "base/first.h"
#include "layout/sparse24_foreign.h"
#include "ops/compress_sparse24/compress_sparse24.h"

namespace lamina::compress_sparse24 {
namespace {

using sparse24::kGroupK;
using sparse24::kKept;

// Words of 1 byte are a bitmask, one bit an entry; cutlass_pairs has words of two pairs of f32 (1:2).
constexpr std::array kOrders{
    Order{"cutlass_16", 2, 32, 32},    Order{"cutlass_8", 4, 16, 64},
    Order{"cutlass_pairs", 2, 32, 16}, Order{"cusparselt_16", 2, 128, 128},
    Order{"marlin", 2, 64, 32},        Order{"bitmask", 1, 1, kGroupK},
};

sparse24::WordPlace place_of(const Order& order) {
  if (order.name == "cutlass_8") return sparse24::cutlass_place<16>;
  if (order.name == "cusparselt_16") return sparse24::cusparselt_place;
  if (order.name == "marlin") return sparse24::marlin_place;
  return sparse24::cutlass_place<32>;
}

// Moves the words of each row; a word has the order of bytes of metadata.
void gather_words(const Order& order, const uint8_t* words, int64_t n, int64_t k, uint8_t* metadata,
                  const Parallel& parallel) {
  const sparse24::WordPlace place = place_of(order);
  const int64_t bytes = sparse24::metadata_bytes(k), size = order.word_bytes;
  parallel.for_range(n, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t column = 0; column < bytes / size; ++column)
        std::memcpy(metadata + row * bytes + column * size, words + place(row, column, n) * size,
                    static_cast<size_t>(size));
  });
}

// A nibble of a pair is 0x4 for its first entry and 0xE for its second; two pairs are a group. `bad` for another nibble.
constexpr int kBadCode = 0;
int code_of_pairs(int byte) {
  const auto second = [](int nibble) { return nibble == 0xE ? 1 : nibble == 0x4 ? 0 : -1; };
  const int i0 = second(byte & 15), i1 = second(byte >> 4);
  return i0 < 0 || i1 < 0 ? kBadCode : sparse24::code_of(i0, 2 + i1);
}

void gather_pairs(const uint8_t* words, int64_t n, int64_t k, uint8_t* metadata,
                  const Parallel& parallel) {
  const int64_t groups = sparse24::groups(k), bytes = sparse24::metadata_bytes(k);
  parallel.for_range(n, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t word = sparse24::cutlass_place<32>(row, g / 2, n);
        const int code = code_of_pairs(words[word * 2 + g % 2]);
        uint8_t& byte = metadata[row * bytes + g / 2];
        byte = static_cast<uint8_t>(g % 2 == 0 ? code : byte | code << 4);
      }
  });
}

Status import_bitmask(const char* op, const uint8_t* mask, int64_t n, int64_t k, uint8_t* metadata,
                      const Parallel& parallel) {
  const int64_t groups = sparse24::groups(k), bytes = sparse24::metadata_bytes(k);
  const auto kept_of = [&](int64_t row, int64_t g) {
    return mask[row * bytes + g / 2] >> (g % 2 * kGroupK) & 15;
  };
  const auto count = [](int kept) {
    return (kept & 1) + (kept >> 1 & 1) + (kept >> 2 & 1) + (kept >> 3);
  };
  First wrong;
  parallel.for_range(n, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t g = 0; g < 2 * bytes; ++g) {
        const int kept = g < groups ? kept_of(row, g) : 0;
        if (g < groups && count(kept) != kKept) {
          wrong.report(row * groups + g);
          continue;
        }
        const int code = sparse24::kCodes[static_cast<size_t>(kept)];
        uint8_t& byte = metadata[row * bytes + g / 2];
        byte = static_cast<uint8_t>(g % 2 == 0 ? code : byte | code << 4);
      }
  });
  if (!wrong.is_found()) return Status::ok();
  const int64_t row = wrong.index() / groups, group = wrong.index() % groups;
  return Status::error(op, ": bitmask of row ", row, ", group ", group, " keeps ",
                       count(kept_of(row, group)), " entries; allowed: ", kKept);
}

}  // namespace

Status order_of(const char* op, std::string_view name, const Order*& order) {
  std::string names;
  for (const Order& known : kOrders) {
    if (known.name == name) {
      order = &known;
      return Status::ok();
    }
    names.append(names.empty() ? "\"" : ", \"").append(known.name).append("\"");
  }
  return Status::error(op, ": order = \"", name, "\"; allowed: ", names);
}

Status check(const char* op, const Order& order, int64_t n, int64_t k) {
  if (n < 0 || n % order.n_step != 0)
    return Status::error(op, ": n = ", n, "; allowed: multiples of ", order.n_step, " in order ",
                         order.name);
  if (k < 0 || k % order.k_step != 0)
    return Status::error(op, ": k = ", k, "; allowed: multiples of ", order.k_step, " in order ",
                         order.name);
  return Status::ok();
}

Status import_metadata(const char* op, const Order& order, const void* words, int64_t n, int64_t k,
                       uint8_t* metadata, const Parallel& parallel) {
  const auto* const from = static_cast<const uint8_t*>(words);
  if (order.word_bytes == 1) return import_bitmask(op, from, n, k, metadata, parallel);
  if (order.name == "cutlass_pairs")
    gather_pairs(from, n, k, metadata, parallel);
  else
    gather_words(order, from, n, k, metadata, parallel);
  return check_metadata(op, metadata, sparse24::metadata_bytes(k), n, k, parallel);
}

Status import_marlin24(const int32_t* words, int bits, int64_t n, int64_t k, uint8_t* codes,
                       const Parallel& parallel) {
  using namespace sparse24::marlin24;
  constexpr const char* kOp = "import_marlin24";
  if (bits != 4 && bits != 8) return Status::error(kOp, ": bits = ", bits, "; allowed: 4, 8");
  if (n < 0 || n % kTileN != 0)
    return Status::error(kOp, ": n = ", n, "; allowed: multiples of ", kTileN);
  if (k < 0 || k % (kKept * kTileK) != 0)
    return Status::error(kOp, ": k = ", k, "; allowed: multiples of ", kKept * kTileK);
  const int64_t kept = sparse24::values_k(k), tiles_k = kept / kTileK, tiles_n = n / kTileN;
  const int per_word = 32 / bits;
  std::array<At, kTile> places;
  for (int e = 0; e < kTile; ++e) places[static_cast<size_t>(e)] = at(e, bits);
  parallel.for_range(tiles_n, 1, [&](int64_t begin, int64_t end) {
    for (int64_t tile_n = begin; tile_n < end; ++tile_n)
      for (int64_t tile_k = 0; tile_k < tiles_k; ++tile_k) {
        const int32_t* const tile = words + (tile_k * tiles_n + tile_n) * (kTile / per_word);
        uint8_t* const to = codes + tile_n * kTileN * kept + tile_k * kTileK;
        for (int e = 0; e < kTile; ++e) {
          const At place = places[static_cast<size_t>(e)];
          const uint32_t word = static_cast<uint32_t>(tile[e / per_word]) >> (e % per_word * bits);
          to[place.n * kept + place.k] = static_cast<uint8_t>(word & ((1u << bits) - 1));
        }
      }
  });
  return Status::ok();
}

}  // namespace lamina::compress_sparse24
