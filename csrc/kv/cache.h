// A paged KV cache: one tensor of keys and one of values, [pages, page, kv_heads, head_dim]. A block table maps the
// slots of a request to pages: slot s is row s % page of page block_table[s / page].
#pragma once

#include <cstdint>

#include "base/numeric.h"

namespace lamina::kv {

inline constexpr int64_t kMaxHeadDim = 256;

enum class CacheDType : int8_t { kF32, kF16, kBF16, kE4M3, kI8 };

constexpr int64_t size_bytes(CacheDType dtype) {
  return dtype == CacheDType::kF32                                ? 4
         : dtype == CacheDType::kE4M3 || dtype == CacheDType::kI8 ? 1
                                                                  : 2;
}
constexpr bool is_quantized(CacheDType dtype) { return size_bytes(dtype) == 1; }

// Scales of quantised elements, with strides in elements: one scale (all strides 0), or one for each page, slot and
// head. Not given: 1.
template <class T>
struct ScalesOf {
  T* data = nullptr;
  int64_t page_stride = 0, slot_stride = 0, head_stride = 0;

  constexpr bool is_given() const { return data != nullptr; }
  constexpr bool is_per_token() const {
    return page_stride != 0 || slot_stride != 0 || head_stride != 0;
  }
  // The scale of all elements, or 1 where there is none or one for each token.
  constexpr float of_all() const { return is_given() && !is_per_token() ? data[0] : 1.0f; }
  constexpr T& at(int64_t page, int64_t slot, int64_t head) const {
    return data[page * page_stride + slot * slot_stride + head * head_stride];
  }
};
using Scales = ScalesOf<const float>;

// Keys or values. Rows of head_dim elements are contiguous; all other strides are free, in elements.
struct Cache {
  void* data = nullptr;
  CacheDType dtype = CacheDType::kF32;
  int64_t pages = 0, page = 1, heads = 0, head_dim = 0;
  int64_t page_stride = 0, slot_stride = 0, head_stride = 0;

  constexpr int64_t offset(int64_t page_index, int64_t slot, int64_t head) const {
    return page_index * page_stride + slot * slot_stride + head * head_stride;
  }
  char* row(int64_t page_index, int64_t slot, int64_t head) const {
    return static_cast<char*>(data) + offset(page_index, slot, head) * size_bytes(dtype);
  }
};

}  // namespace lamina::kv
