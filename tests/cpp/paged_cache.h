// Random arguments for the ops on paged caches, and caches in buffers that end with their last row.
#pragma once

#include <limits>
#include <memory>

#include "kv/cache.h"
#include "memory.h"

namespace lamina::test {

inline constexpr int32_t kLargest = std::numeric_limits<int32_t>::max();
inline constexpr int32_t kSmallest = std::numeric_limits<int32_t>::min();

class Dice {
 public:
  explicit Dice(uint64_t seed) : random_(seed) {}
  int64_t between(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(random_.next()) % (high - low + 1);
  }
  bool one_in(int64_t n) { return between(1, n) == 1; }
  template <class T, size_t n>
  T one_of(const T (&values)[n]) {
    return values[between(0, n - 1)];
  }
  float value() { return static_cast<float>(between(-16, 16)) / 8.0f; }
  int32_t garbage() {
    const int32_t values[] = {-1, kLargest, kSmallest, 1000, 7, 1, 0};
    return one_of(values);
  }

 private:
  Random random_;
};

constexpr kv::CacheDType as_cache(DType dtype) {
  using kv::CacheDType;
  return dtype == DType::kF32   ? CacheDType::kF32
         : dtype == DType::kF16 ? CacheDType::kF16
                                : CacheDType::kBF16;
}

inline float read(kv::CacheDType dtype, const char* from) {
  using kv::CacheDType;
  const auto as = [&](auto x) {
    std::memcpy(&x, from, sizeof x);
    return to_f32(x);
  };
  switch (dtype) {
    case CacheDType::kF32:
      return as(float{});
    case CacheDType::kF16:
      return as(F16{});
    case CacheDType::kBF16:
      return as(BF16{});
    case CacheDType::kE4M3:
      return as(E4M3{});
    case CacheDType::kI8:
      return static_cast<float>(static_cast<int8_t>(*from));
  }
  return 0.0f;
}

inline void write(kv::CacheDType dtype, char* to, float value) {
  using kv::CacheDType;
  const auto as = [&](auto x) { std::memcpy(to, &x, sizeof x); };
  switch (dtype) {
    case CacheDType::kF32:
      return as(value);
    case CacheDType::kF16:
      return as(from_f32<F16>(value));
    case CacheDType::kBF16:
      return as(from_f32<BF16>(value));
    case CacheDType::kE4M3:
      return as(from_f32<E4M3>(value));
    case CacheDType::kI8:
      return as(static_cast<int8_t>(value * 8));
  }
}

// A cache in a buffer that ends with its last row, and the scales of its elements.
struct Room {
  std::unique_ptr<Exact<char>> elements;
  std::unique_ptr<Exact<float>> scale_elements;
  kv::Cache cache;
  kv::Scales scales;

  void make(Dice& dice, kv::CacheDType dtype, int64_t pages, int64_t page, int64_t heads,
            int64_t dim) {
    cache.dtype = dtype;
    cache.pages = pages, cache.page = page, cache.heads = heads, cache.head_dim = dim;
    const int64_t pad = dice.one_in(2) ? 0 : dice.between(1, 9);
    if (dice.one_in(2)) {
      cache.head_stride = dim + pad;
      cache.slot_stride = heads * cache.head_stride + pad;
      cache.page_stride = page * cache.slot_stride + pad;
    } else {
      cache.slot_stride = dim + pad;
      cache.head_stride = page * cache.slot_stride + pad;
      cache.page_stride = heads * cache.head_stride + pad;
    }
    const int64_t count = pages == 0 ? 0 : cache.offset(pages - 1, page - 1, heads - 1) + dim;
    const int64_t bytes = kv::size_bytes(dtype);
    elements = std::make_unique<Exact<char>>(count * bytes);
    for (int64_t i = 0; i < count; ++i) write(dtype, elements->data() + i * bytes, dice.value());
    cache.data = elements->data();
    if (dtype != kv::CacheDType::kI8 && (dtype != kv::CacheDType::kE4M3 || dice.one_in(2))) return;
    const bool is_one = dice.one_in(2);
    if (!is_one) {
      scales.head_stride = dice.between(1, 2);
      scales.slot_stride = heads * scales.head_stride;
      scales.page_stride = page * scales.slot_stride;
    }
    const int64_t last = is_one ? 0
                         : pages > 0
                             ? (pages - 1) * scales.page_stride + (page - 1) * scales.slot_stride +
                                   (heads - 1) * scales.head_stride
                             : -1;
    scale_elements = std::make_unique<Exact<float>>(last + 1);
    for (int64_t i = 0; i <= last; ++i)
      (*scale_elements)[i] = static_cast<float>(dice.between(1, 8)) / 32.0f;
    scales.data = scale_elements->data();
  }

  double at(int64_t page, int64_t slot, int64_t head, int64_t i) const {
    const float element =
        read(cache.dtype, cache.row(page, slot, head) + i * kv::size_bytes(cache.dtype));
    return double{element} * (scales.is_given() ? scales.at(page, slot, head) : 1.0f);
  }
};

}  // namespace lamina::test
