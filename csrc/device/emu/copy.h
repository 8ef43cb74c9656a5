// Emulates ptx/copy.cuh. A cp.async poisons its destination when it is issued, and delivers when a thread waits for
// it, never earlier. It reads its source at the delivery or, on other seeds, when it is issued.
#pragma once

#include <cstring>
#include <type_traits>

#include "device/emu/index.h"
#include "device/emu/memory.h"
#include "layout/fragment.h"

namespace lamina::dev {

template <int kBytes>
void cp_async(void* smem, const void* gmem, int valid_bytes = kBytes,
              emu::Where where = emu::Where::current()) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  emu::check_access(smem, kBytes, "cp_async to", where);
  // The source of a cp.async must be aligned too, even if no byte of it is read.
  emu::check_access(gmem, kBytes, "cp_async from", where);
  if (valid_bytes < 0 || valid_bytes > kBytes)
    emu::fail("cp_async: valid_bytes = " + std::to_string(valid_bytes), where);
  emu::note_shared_access(smem, kBytes, "cp_async", where);
  emu::start_copy(
      {static_cast<std::byte*>(smem), static_cast<const std::byte*>(gmem), kBytes, valid_bytes, {}},
      where);
}

inline void cp_async_commit() { emu::commit_copies(); }

template <int kPending>
void cp_async_wait() {
  emu::finish_copies(kPending);
}

namespace emu {

template <int kCount, bool kTrans>
void ldmatrix(uint32_t (&d)[kCount], const void* smem_row, const char* name, Where where) {
  static_assert(kCount == 1 || kCount == 2 || kCount == 4);
  struct Arguments {
    uint32_t* d;
    const void* row;
  } mine{d, smem_row};
  // Lanes from 8 * kCount on pass addresses that are not used. Each other lane counts as the reader of its row.
  if (lane() < 8 * kCount) read_shared(smem_row, 16, name, where);
  meet(kFullWarp, name, where, &mine, [&](const Lanes& lanes) {
    const auto at = [&](int lane) {
      return static_cast<Arguments*>(lanes[static_cast<size_t>(lane)]);
    };
    for (int matrix = 0; matrix < kCount; ++matrix) {
      const void* rows[8];
      for (int row = 0; row < 8; ++row) rows[row] = at(8 * matrix + row)->row;
      note_shared_rows(rows, 8, 16, name, where);
      for (int lane = 0; lane < kWarpLanes; ++lane) {
        uint16_t halves[2];
        for (int e = 0; e < 2; ++e) {
          const fragment::At element =
              kTrans ? fragment::ldmatrix_trans(lane, e) : fragment::ldmatrix(lane, e);
          std::memcpy(&halves[e],
                      static_cast<const std::byte*>(rows[element.row]) + 2 * element.column, 2);
        }
        std::memcpy(&at(lane)->d[matrix], halves, 4);
      }
    }
  });
}

template <int kCount, bool kTrans>
void stmatrix(void* smem_row, const uint32_t (&d)[kCount], const char* name, Where where) {
  static_assert(kCount == 1 || kCount == 2 || kCount == 4);
  struct Arguments {
    void* row;
    const uint32_t* d;
  } mine{smem_row, d};
  if (lane() < 8 * kCount) write_shared(smem_row, 16, name, where);
  meet(kFullWarp, name, where, &mine, [&](const Lanes& lanes) {
    const auto at = [&](int lane) {
      return static_cast<Arguments*>(lanes[static_cast<size_t>(lane)]);
    };
    for (int matrix = 0; matrix < kCount; ++matrix) {
      const void* rows[8];
      for (int row = 0; row < 8; ++row) rows[row] = at(8 * matrix + row)->row;
      note_shared_rows(rows, 8, 16, name, where);
      for (int lane = 0; lane < kWarpLanes; ++lane)
        for (int e = 0; e < 2; ++e) {
          const fragment::At element =
              kTrans ? fragment::ldmatrix_trans(lane, e) : fragment::ldmatrix(lane, e);
          const uint16_t half = static_cast<uint16_t>(at(lane)->d[matrix] >> (16 * e));
          std::memcpy(
              static_cast<std::byte*>(at(8 * matrix + element.row)->row) + 2 * element.column,
              &half, 2);
        }
    }
  });
}

template <class V>
constexpr bool kIsWord =
    std::is_trivially_copyable_v<V> &&
    (sizeof(V) == 1 || sizeof(V) == 2 || sizeof(V) == 4 || sizeof(V) == 8 || sizeof(V) == 16);

}  // namespace emu

template <int kCount>
void ldmatrix(uint32_t (&d)[kCount], const void* smem_row,
              emu::Where where = emu::Where::current()) {
  emu::ldmatrix<kCount, false>(d, smem_row, "ldmatrix", where);
}
template <int kCount>
void ldmatrix_trans(uint32_t (&d)[kCount], const void* smem_row,
                    emu::Where where = emu::Where::current()) {
  emu::ldmatrix<kCount, true>(d, smem_row, "ldmatrix_trans", where);
}
template <int kCount>
void stmatrix(void* smem_row, const uint32_t (&d)[kCount],
              emu::Where where = emu::Where::current()) {
  emu::stmatrix<kCount, false>(smem_row, d, "stmatrix", where);
}
template <int kCount>
void stmatrix_trans(void* smem_row, const uint32_t (&d)[kCount],
                    emu::Where where = emu::Where::current()) {
  emu::stmatrix<kCount, true>(smem_row, d, "stmatrix_trans", where);
}

template <class V, Cache kCache = Cache::kDefault>
V load_global(const V* from, emu::Where where = emu::Where::current()) {
  static_assert(emu::kIsWord<V>);
  emu::read_global(from, sizeof(V), "load_global", where);
  return *from;
}
template <class V>
void store_global(V* to, V value, emu::Where where = emu::Where::current()) {
  static_assert(emu::kIsWord<V>);
  emu::write_global(to, sizeof(V), "store_global", where);
  *to = value;
}
template <class V>
V load_shared(const V* from, emu::Where where = emu::Where::current()) {
  static_assert(emu::kIsWord<V>);
  emu::read_shared(from, sizeof(V), "load_shared", where);
  emu::note_shared_access(from, sizeof(V), "load_shared", where);
  return *from;
}
template <class V>
void store_shared(V* to, V value, emu::Where where = emu::Where::current()) {
  static_assert(emu::kIsWord<V>);
  emu::write_shared(to, sizeof(V), "store_shared", where);
  emu::note_shared_access(to, sizeof(V), "store_shared", where);
  *to = value;
}

}  // namespace lamina::dev
