#include "device/emu/wgmma_operand.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>

#include "base/numeric.h"
#include "layout/fragment.h"

namespace lamina::dev::emu {
namespace {

// Refuses descriptors whose effect is not documented or has no use.
void check_layout(const MatrixDescriptor& d, bool is_mn_major, int run_bytes, int end,
                  const char* what, Where where) {
  const auto refuse = [&](const std::string& why) { fail(std::string(what) + ": " + why, where); };
  if (d.base_offset != 0)
    refuse("base offset " + std::to_string(d.base_offset) + ", only aligned atoms are supported");
  if (d.swizzle == Swizzle::kNone) return;
  const int run = d.run_bytes(), atom = d.atom_bytes();
  const int used = is_mn_major ? std::min(2 * end, run) : run_bytes;
  const int at = static_cast<int>(d.address) % atom;
  if (at + used > run)
    refuse("starts " + std::to_string(at) + " bytes into an atom of " + std::to_string(run) +
           "-byte runs; the first run must hold " + std::to_string(used));
  if ((is_mn_major || end > MatrixDescriptor::kRuns) && d.stride_bytes % atom != 0)
    refuse("stride of " + std::to_string(d.stride_bytes) + " bytes between atoms of " +
           std::to_string(atom));
  if (is_mn_major && 2 * end > run && d.leading_bytes % atom != 0)
    refuse("leading offset of " + std::to_string(d.leading_bytes) + " bytes between atoms of " +
           std::to_string(atom));
}

int16_t integer(std::byte byte, Element element) {
  return element == Element::kS8 ? static_cast<int16_t>(static_cast<int8_t>(byte))
                                 : static_cast<int16_t>(byte);
}

// Widens the elements of `rows` rows of `ks` halves to double, as [row][k] or, with k_first, as [k][row].
template <class Half>
void widen(const std::byte* bytes, bool is_mn_major, int rows, int ks, bool k_first,
           std::vector<double>& out) {
  out.resize(static_cast<size_t>(rows * ks));
  for (int r = 0; r < rows; ++r)
    for (int k = 0; k < ks; ++k) {
      Half half;
      std::memcpy(&half, bytes + 2 * (is_mn_major ? k * rows + r : r * ks + k), sizeof half);
      out[static_cast<size_t>(k_first ? k * rows + r : r * ks + k)] =
          static_cast<double>(to_f32(half));
    }
}

Dense dense(const std::byte* bytes, bool is_mn_major, int run_bytes, Element element, int rows,
            bool k_first) {
  Dense result;
  if (is_integer(element)) {
    result.integers.resize(static_cast<size_t>(rows * run_bytes));
    std::transform(bytes, bytes + rows * run_bytes, result.integers.begin(),
                   [element](std::byte byte) { return integer(byte, element); });
  } else if (element == Element::kF16) {
    widen<F16>(bytes, is_mn_major, rows, run_bytes / 2, k_first, result.floats);
  } else {
    widen<BF16>(bytes, is_mn_major, rows, run_bytes / 2, k_first, result.floats);
  }
  return result;
}

// sums[16][n] += a[16][kK] * b[n][kK]
template <int kK>
void add_integers(const int16_t* a, const int16_t* b, int n, uint32_t* sums) {
  for (int column = 0; column < n; ++column) {
    const int16_t* const y = b + column * kK;
    // Columns past the last token are common, and all zeros.
    if (std::all_of(y, y + kK, [](int16_t value) { return value == 0; })) continue;
    for (int row = 0; row < kWarpRows; ++row) {
      const int16_t* const x = a + row * kK;
      // With 16-bit factors and a constant length, compilers make pmaddwd of this loop.
      int32_t dot = 0;
      for (int p = 0; p < kK; ++p) dot += x[p] * y[p];
      sums[row * n + column] += static_cast<uint32_t>(dot);
    }
  }
}

// a[16][2 * kRunBytes] with zeros between the elements of a sparse a.
std::vector<int16_t> expand(const std::vector<int16_t>& a, const KeptColumns& columns) {
  std::vector<int16_t> wide(2 * a.size());
  for (size_t row = 0; row < kWarpRows; ++row)
    for (size_t p = 0; p < kRunBytes; ++p)
      wide[row * 2 * kRunBytes + columns[row][p]] = a[row * kRunBytes + p];
  return wide;
}

}  // namespace

SmemTile::SmemTile(uint64_t descriptor, bool is_mn_major, int run_bytes, int first, int count,
                   const char* what, Where where) {
  const MatrixDescriptor d = MatrixDescriptor::decode(descriptor);
  check_layout(d, is_mn_major, run_bytes, first + count, what, where);
  chunks_.reserve(static_cast<size_t>(count * run_bytes / kChunkBytes));
  bytes_.reserve(static_cast<size_t>(count * run_bytes));
  const auto take = [&](uint32_t address) {
    const std::byte* const from = smem_pointer(address, kChunkBytes, what, where);
    check_async_access(from, kChunkBytes, what, where);
    chunks_.push_back(from);
    bytes_.insert(bytes_.end(), from, from + kChunkBytes);
  };
  if (is_mn_major) {
    for (int k = 0; k < run_bytes / 2; ++k)
      for (int byte = 2 * first; byte < 2 * (first + count); byte += kChunkBytes)
        take(d.mn_major(byte, k));
  } else {
    for (int row = first; row < first + count; ++row)
      for (int byte = 0; byte < run_bytes; byte += kChunkBytes) take(d.k_major(row, byte));
  }
}

bool SmemTile::is_unchanged() const {
  for (size_t i = 0; i < chunks_.size(); ++i)
    if (std::memcmp(chunks_[i], bytes_.data() + i * kChunkBytes, kChunkBytes) != 0) return false;
  return true;
}

std::vector<std::byte> rows_of(const FragmentA& values, bool is_integer) {
  std::vector<std::byte> rows(kWarpRows * kRunBytes);
  const int per = is_integer ? 4 : 2, bytes = 4 / per;
  for (int lane = 0; lane < kWarpLanes; ++lane)
    for (int i = 0; i < 4; ++i)
      for (int e = 0; e < per; ++e) {
        const fragment::At at =
            is_integer ? fragment::wgmma_a<4>(lane, i, e) : fragment::wgmma_a<2>(lane, i, e);
        std::memcpy(rows.data() + at.row * kRunBytes + at.column * bytes,
                    reinterpret_cast<const std::byte*>(
                        &values[static_cast<size_t>(lane)][static_cast<size_t>(i)]) +
                        e * bytes,
                    static_cast<size_t>(bytes));
      }
  return rows;
}

Dense dense_a(const std::byte* bytes, bool is_m_major, Element element) {
  return dense(bytes, is_m_major, kRunBytes, element, kWarpRows, false);
}
Dense dense_b(const std::byte* bytes, bool is_n_major, int run_bytes, Element element, int n) {
  return dense(bytes, is_n_major, run_bytes, element, n, true);
}

void multiply_add(const Dense& a, const KeptColumns* columns, const Dense& b, int n,
                  uint32_t* sums) {
  if (!b.integers.empty()) {
    if (columns == nullptr)
      return add_integers<kRunBytes>(a.integers.data(), b.integers.data(), n, sums);
    return add_integers<2 * kRunBytes>(expand(a.integers, *columns).data(), b.integers.data(), n,
                                       sums);
  }
  constexpr int kHalves = kRunBytes / 2;
  double wide[256];
  for (size_t row = 0; row < kWarpRows; ++row, sums += n) {
    for (int column = 0; column < n; ++column)
      wide[column] = static_cast<double>(std::bit_cast<float>(sums[column]));
    for (size_t p = 0; p < kHalves; ++p) {
      const double x = a.floats[row * kHalves + p];
      const int k = columns == nullptr ? static_cast<int>(p) : (*columns)[row][p];
      const double* const y = b.floats.data() + k * n;
      for (int column = 0; column < n; ++column) wide[column] += x * y[column];
    }
    for (int column = 0; column < n; ++column)
      sums[column] = std::bit_cast<uint32_t>(static_cast<float>(wide[column]));
  }
}

uint64_t matrix_descriptor(const MatrixDescriptor& descriptor, Where where) {
  const auto check = [&](const char* field, int64_t value) {
    if (value % 16 != 0 || value < 0 || value >= MatrixDescriptor::kMaxBytes)
      fail(std::string("matrix_descriptor: ") + field + " is " + std::to_string(value) +
               "; multiples of 16 below 2^18 are possible",
           where);
  };
  check("smem_address", descriptor.address);
  check("leading_bytes", descriptor.leading_bytes);
  check("stride_bytes", descriptor.stride_bytes);
  return descriptor.encode();
}

}  // namespace lamina::dev::emu
