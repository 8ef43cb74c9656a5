// The 64-bit descriptor that tells wgmma where a matrix lies in shared memory, and the address of each element that
// follows from it. PTX ISA, "Matrix Descriptor Format" and "Shared Memory Matrix Layout" of wgmma.
//
// A matrix is made of atoms. An atom is 8 runs of 16, 32, 64 or 128 bytes, depending on the swizzle. K-major: a run
// is a row of A or a column of B, and one instruction takes 32 bytes of it. MN-major: a run is one k.
#pragma once

#include <cstdint>

#include "layout/swizzle.h"

namespace lamina {

struct MatrixDescriptor {
  uint32_t address = 0;   // in the shared window; address and offsets are multiples of 16
  int leading_bytes = 0;  // K-major: to the next 16 bytes of k if not swizzled, else unused.
                          // MN-major: to the atom of the next rows; if not swizzled, the next 8 k
  int stride_bytes = 0;   // K-major: to the atom of the next 8 rows.
                          // MN-major: to the atom of the next 8 k; if not swizzled, 8 rows
  Swizzle swizzle = Swizzle::kNone;
  // Bits 7 to 9 of the address where the swizzle's pattern starts: 0 where atoms are aligned.
  int base_offset = 0;

  static constexpr int kRuns = 8;                  // runs of an atom
  static constexpr uint32_t kMaxBytes = 1u << 18;  // 14 bits, in units of 16 bytes

  constexpr uint64_t encode() const {
    return field(address / 16, 14, 0) | field(static_cast<uint32_t>(leading_bytes) / 16, 14, 16) |
           field(static_cast<uint32_t>(stride_bytes) / 16, 14, 32) |
           field(static_cast<uint32_t>(base_offset), 3, 49) |
           field((4u - static_cast<uint32_t>(swizzle)) % 4, 2, 62);
  }

  static constexpr MatrixDescriptor decode(uint64_t bits) {
    const auto part = [bits](int width, int at) {
      return static_cast<uint32_t>(bits >> at) & ((1u << width) - 1);
    };
    return {part(14, 0) * 16, static_cast<int>(part(14, 16) * 16),
            static_cast<int>(part(14, 32) * 16), static_cast<Swizzle>((4u - part(2, 62)) % 4),
            static_cast<int>(part(3, 49))};
  }

  constexpr int run_bytes() const { return 16 << static_cast<int>(swizzle); }
  constexpr int atom_bytes() const { return kRuns * run_bytes(); }

  // K-major: the address of byte `byte` of k, 0 to 31, of a row of A or a column of B.
  constexpr uint32_t k_major(int row, int byte) const {
    const int chunk = byte / 16;
    return place(row / kRuns * stride_bytes + row % kRuns * run_bytes() + byte % 16 +
                 chunk * (swizzle == Swizzle::kNone ? leading_bytes : 16));
  }

  // MN-major: the address of byte `byte` of the rows of A or columns of B, which lie side by side, for one k.
  constexpr uint32_t mn_major(int byte, int k) const {
    const bool is_plain = swizzle == Swizzle::kNone;
    return place(byte / run_bytes() * (is_plain ? stride_bytes : leading_bytes) +
                 k / kRuns * (is_plain ? leading_bytes : stride_bytes) + k % kRuns * run_bytes() +
                 byte % run_bytes());
  }

 private:
  static constexpr uint64_t field(uint32_t value, int width, int at) {
    return static_cast<uint64_t>(value & ((1u << width) - 1)) << at;
  }
  // The swizzle permutes the address and not the offset, so atoms must be aligned to their size.
  constexpr uint32_t place(int offset) const {
    return swizzled(swizzle, address + static_cast<uint32_t>(offset));
  }
};

// The descriptor of the matrix that lies `bytes` further on, for the next k of a swizzled atom. bytes: a multiple of
// 16.
constexpr uint64_t advance_descriptor(uint64_t descriptor, int bytes) {
  const uint32_t low = static_cast<uint32_t>(descriptor) + static_cast<uint32_t>(bytes / 16);
  return descriptor >> 32 << 32 | low;  // one addition; the address never carries
}

namespace proof {

// The elements of a K-major or MN-major tile fill two atoms, and no byte is used twice.
template <Swizzle kSwizzle, bool kMnMajor>
constexpr bool fills_two_atoms() {
  MatrixDescriptor d{1024, 128, 0, kSwizzle, 0};
  d.stride_bytes = kSwizzle == Swizzle::kNone ? 2 * d.atom_bytes() : d.atom_bytes();
  const int runs_at_once = kMnMajor ? d.run_bytes() : 32;  // bytes along the run
  bool seen[2048] = {};
  for (int run = 0; run < 16; ++run)
    for (int byte = 0; byte < runs_at_once; ++byte) {
      const uint32_t at = (kMnMajor ? d.mn_major(byte, run) : d.k_major(run, byte)) - 1024;
      if (at >= 2048 || seen[at]) return false;
      seen[at] = true;
    }
  return true;
}
static_assert(fills_two_atoms<Swizzle::kNone, false>() && fills_two_atoms<Swizzle::kNone, true>());
static_assert(fills_two_atoms<Swizzle::k32, false>() && fills_two_atoms<Swizzle::k32, true>());
static_assert(fills_two_atoms<Swizzle::k64, false>() && fills_two_atoms<Swizzle::k64, true>());
static_assert(fills_two_atoms<Swizzle::k128, false>() && fills_two_atoms<Swizzle::k128, true>());

constexpr bool decodes(const MatrixDescriptor& d) {
  const MatrixDescriptor e = MatrixDescriptor::decode(d.encode());
  return e.address == d.address && e.leading_bytes == d.leading_bytes &&
         e.stride_bytes == d.stride_bytes && e.swizzle == d.swizzle &&
         e.base_offset == d.base_offset;
}
static_assert(decodes({0x3fff0, 16, 1024, Swizzle::k128, 0}));
static_assert(decodes({1024, 0x3fff0, 0x3fff0, Swizzle::kNone, 0}));
static_assert(decodes({2048, 0, 512, Swizzle::k64, 5}) && decodes({0, 32, 256, Swizzle::k32, 7}));
static_assert(MatrixDescriptor{1024, 16, 1024, Swizzle::k128, 0}.encode() >> 62 == 1 &&
              MatrixDescriptor{1024, 16, 512, Swizzle::k64, 0}.encode() >> 62 == 2 &&
              MatrixDescriptor{1024, 16, 256, Swizzle::k32, 0}.encode() >> 62 == 3);

}  // namespace proof
}  // namespace lamina
