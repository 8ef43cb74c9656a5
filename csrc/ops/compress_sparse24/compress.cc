#include <algorithm>

#include "base/first.h"
#include "ops/compress_sparse24/compress_sparse24.h"

namespace lamina::compress_sparse24 {
namespace {

using sparse24::code_at;
using sparse24::kEmptyCode;
using sparse24::kGroupK;
using sparse24::kKept;
using sparse24::kNoCode;

Status check(const char* op, int64_t n, int64_t k) {
  if (n < 0 || k < 0)
    return Status::error(op, ": n = ", n, ", k = ", k, "; neither may be negative");
  if (k % kGroupK != 0)
    return Status::error(op, ": k = ", k, "; allowed: multiples of ", kGroupK,
                         ", as groups of 4 input features share a code");
  if (!checked_product(n, std::max<int64_t>(k, 1), 4))
    return Status::error(op, ": n = ", n, ", k = ", k, " needs more than 2^63 bytes");
  return Status::ok();
}

// Threads get whole rows, and enough of them to be worth a thread.
template <class Body>
void for_rows(int64_t n, int64_t k, const Parallel& parallel, const Body& body) {
  constexpr int64_t kElements = 1 << 15;
  parallel.for_range(n, kElements / std::max<int64_t>(k, 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) body(row);
  });
}

// Calls body(pointer to an unsigned integer as wide as the element, the bits of an element that tell it from `fill`).
template <class Body>
void with_bits(const Problem& p, const Body& body) {
  switch (p.element) {
    case Element::kInt8:
      return body(uint8_t{}, uint8_t{0xff});
    case Element::kFloat16:
      return body(uint16_t{}, static_cast<uint16_t>(p.fill == 0 ? 0x7fff : 0xffff));
    case Element::kFloat32:
      return body(uint32_t{}, p.fill == 0 ? 0x7fffffffu : 0xffffffffu);
  }
}

template <class Bits>
int kept_by_value(const Bits* group, Bits compared, Bits fill) {
  int kept = 0;
  for (int i = 0; i < kGroupK; ++i) kept |= int{(group[i] & compared) != fill} << i;
  return kept;
}

int kept_by_mask(const uint8_t* group) {
  int kept = 0;
  for (int i = 0; i < kGroupK; ++i) kept |= int{group[i] != 0} << i;
  return kept;
}

// The error for group `at`, counted over all rows.
Status too_many(const Problem& p, const Dense& w, int64_t at, int kept) {
  const int64_t row = at / sparse24::groups(p.k), group = at % sparse24::groups(p.k);
  int count = 0;
  for (int i = 0; i < kGroupK; ++i) count += kept >> i & 1;
  return Status::error("compress_sparse24: ", w.mask ? "mask" : "w", " has ", count,
                       w.mask        ? " kept entries"
                       : p.fill == 0 ? " nonzeros"
                                     : " entries beside fill",
                       " in row ", row, ", group ", group, " (k = ", group * kGroupK, " to ",
                       group * kGroupK + kGroupK - 1, "); allowed: at most ", kKept);
}

template <class Bits>
Status compress_bits(const Problem& p, const Dense& w, Bits compared, Bits* values,
                     uint8_t* metadata, const Parallel& parallel) {
  const int64_t groups = sparse24::groups(p.k), bytes = sparse24::metadata_bytes(p.k);
  const auto fill = static_cast<Bits>(p.fill);
  const auto kept_of = [&](int64_t row, int64_t g) {
    if (w.mask) return kept_by_mask(w.mask + row * w.mask_stride + g * kGroupK);
    const auto* const from = static_cast<const Bits*>(w.data) + row * w.stride;
    return kept_by_value(from + g * kGroupK, compared, fill);
  };
  First wrong;
  for_rows(p.n, p.k, parallel, [&](int64_t row) {
    const auto* from = static_cast<const Bits*>(w.data) + row * w.stride;
    Bits* to = values + row * groups * kKept;
    uint8_t* const codes = metadata + row * bytes;
    std::fill_n(codes, bytes, uint8_t{0});
    for (int64_t g = 0; g < groups; ++g, from += kGroupK, to += kKept) {
      const int kept = kept_of(row, g), code = sparse24::kCodes[static_cast<size_t>(kept)];
      if (code == kNoCode) return wrong.report(row * groups + g);
      const int i0 = sparse24::first(code), i1 = sparse24::second(code);
      to[0] = kept >> i0 & 1 ? from[i0] : fill;
      to[1] = kept >> i1 & 1 ? from[i1] : fill;
      codes[g / 2] |= static_cast<uint8_t>(code << (g % 2 * 4));
    }
    if (groups % 2 == 1) codes[groups / 2] |= kEmptyCode << 4;
  });
  if (!wrong.is_found()) return Status::ok();
  const int64_t at = wrong.index();
  return too_many(p, w, at, kept_of(at / groups, at % groups));
}

Status wrong_code(const char* op, const uint8_t* metadata, int64_t stride, int64_t k, int64_t at) {
  const int64_t row = at / sparse24::groups(k), group = at % sparse24::groups(k);
  const int code = code_at(metadata + row * stride, group);
  return Status::error(op, ": metadata of row ", row, ", group ", group, " keeps the entries ",
                       sparse24::first(code), " and ", sparse24::second(code),
                       " of the group; allowed: two different entries in rising order");
}

template <class Bits>
Status decompress_bits(const Problem& p, const Sparse& sparse, Bits* w, const Parallel& parallel) {
  const int64_t groups = sparse24::groups(p.k);
  First wrong;
  for_rows(p.n, p.k, parallel, [&](int64_t row) {
    const auto* from = static_cast<const Bits*>(sparse.values) + row * sparse.values_stride;
    const uint8_t* const codes = sparse.metadata + row * sparse.metadata_stride;
    Bits* to = w + row * p.k;
    std::fill_n(to, p.k, static_cast<Bits>(p.fill));
    for (int64_t g = 0; g < groups; ++g, from += kKept, to += kGroupK) {
      const int code = code_at(codes, g);
      if (!sparse24::is_code(code)) return wrong.report(row * groups + g);
      to[sparse24::first(code)] = from[0];
      to[sparse24::second(code)] = from[1];
    }
  });
  if (!wrong.is_found()) return Status::ok();
  return wrong_code("decompress_sparse24", sparse.metadata, sparse.metadata_stride, p.k,
                    wrong.index());
}

}  // namespace

Status compress(const Problem& problem, const Dense& w, void* values, uint8_t* metadata,
                const Parallel& parallel) {
  Status status = check("compress_sparse24", problem.n, problem.k);
  if (!status.is_ok()) return status;
  with_bits(problem, [&](auto bits, auto compared) {
    status = compress_bits(problem, w, compared, static_cast<decltype(bits)*>(values), metadata,
                           parallel);
  });
  return status;
}

Status decompress(const Problem& problem, const Sparse& sparse, void* w, const Parallel& parallel) {
  Status status = check("decompress_sparse24", problem.n, problem.k);
  if (!status.is_ok()) return status;
  with_bits(problem, [&](auto bits, auto) {
    status = decompress_bits(problem, sparse, static_cast<decltype(bits)*>(w), parallel);
  });
  return status;
}

Status check_metadata(const char* op, const uint8_t* metadata, int64_t stride, int64_t n, int64_t k,
                      const Parallel& parallel) {
  if (Status status = check(op, n, k); !status.is_ok()) return status;
  const int64_t groups = sparse24::groups(k);
  First wrong;
  for_rows(n, k, parallel, [&](int64_t row) {
    for (int64_t g = 0; g < groups; ++g)
      if (!sparse24::is_code(code_at(metadata + row * stride, g)))
        return wrong.report(row * groups + g);
  });
  return wrong.is_found() ? wrong_code(op, metadata, stride, k, wrong.index()) : Status::ok();
}

}  // namespace lamina::compress_sparse24
