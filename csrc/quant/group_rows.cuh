// Copies rows of scales or zero points, [groups, n], into shared memory without conversion: 1, 2 or 4 bytes an element.
#pragma once

#include <bit>

#include "base/int_math.h"
#include "block/row_alignment.h"
#include "device/device.h"
#include "quant/group_tensor.h"

namespace lamina {

struct GroupRows {
  const std::byte* data;
  int64_t group_stride, stride;  // bytes between groups, between columns
  int element_bytes;             // 1, 2 or 4
  bool is_aligned;               // copies of 16 bytes are possible

  static GroupRows of(const GroupTensor& from, int64_t groups, int64_t n) {
    const int bytes = from.element_bytes();
    const int64_t group_stride = from.group_stride * bytes, stride = from.stride * bytes;
    const bool is_dense = from.stride == 1 || n <= 1;
    return {static_cast<const std::byte*>(from.data), group_stride, stride, bytes,
            is_dense && row_alignment(from.data, groups, n * bytes, group_stride) == 16};
  }

  // Starts this thread's part of the copy of groups [first, first + count), columns [n0, n0 + kColumns), to
  // to[group][kColumns]. Columns from n on become 0. thread: the index among the kThreads threads that call this
  // function.
  template <int kColumns, int kThreads>
  LAMINA_DEVICE void load(int first, int count, int64_t n0, int64_t n, int thread,
                          std::byte* to) const {
    const std::byte* const from = data + first * group_stride + n0 * stride;
    const int left = n - n0 < kColumns ? static_cast<int>(n - n0) : kColumns;
    if (is_aligned) {
      static_assert(std::has_single_bit(unsigned{kColumns}) && kColumns >= 16);
      const int row_bytes = kColumns * element_bytes, valid = left * element_bytes;
      const int shift =
          std::countr_zero(unsigned{kColumns}) + element_bytes / 2;  // log2(row_bytes)
      for (int t = thread; t * 16 < count * row_bytes; t += kThreads) {
        const int row = t * 16 >> shift, at = t * 16 & (row_bytes - 1);
        const int bytes = valid - at < 0 ? 0 : valid - at > 16 ? 16 : valid - at;
        dev::cp_async<16>(to + t * 16, bytes > 0 ? from + row * group_stride + at : data, bytes);
      }
    } else {
#pragma unroll 1
      for (int t = thread; t < count * kColumns; t += kThreads) {
        const int row = t / kColumns, column = t % kColumns;
        const std::byte* const at = from + row * group_stride + column * stride;
        const bool is_there = column < left;
        if (element_bytes == 1) {
          copy_element<uint8_t>(to, t, at, is_there);
        } else if (element_bytes == 2) {
          copy_element<uint16_t>(to, t, at, is_there);
        } else {
          copy_element<uint32_t>(to, t, at, is_there);
        }
      }
    }
  }

 private:
  template <class Bits>
  LAMINA_DEVICE static void copy_element(std::byte* to, int i, const std::byte* from,
                                         bool is_there) {
    dev::store_shared(reinterpret_cast<Bits*>(to) + i,
                      is_there ? dev::load_global(reinterpret_cast<const Bits*>(from)) : Bits{0});
  }
};

}  // namespace lamina
