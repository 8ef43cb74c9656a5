// The keys of Memo (base/memo.h), which must hold everything that the memorised function reads. Take a struct apart with a
// structured binding: it stops compiling when the struct gets another field.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace lamina {

template <size_t kWords>
using MemoKey = std::array<uint64_t, kWords>;

namespace detail {

template <class Part>
inline constexpr size_t kMemoWords = 1;
template <class T, size_t kCount>
inline constexpr size_t kMemoWords<T[kCount]> = kCount * kMemoWords<T>;
template <class T, size_t kCount>
inline constexpr size_t kMemoWords<std::array<T, kCount>> = kCount * kMemoWords<T>;

template <class Part>
void put_memo_words(const Part& part, uint64_t*& to) {
  if constexpr (std::is_pointer_v<Part>) {
    *to++ = reinterpret_cast<uintptr_t>(part);
  } else if constexpr (std::is_class_v<Part> || std::is_array_v<Part>) {
    for (const auto& each : part) put_memo_words(each, to);
  } else {
    // Equal floats may differ in their bits, and no NaN equals itself.
    static_assert(std::is_integral_v<Part> || std::is_enum_v<Part>,
                  "not an integer, enum or pointer");
    *to++ = static_cast<uint64_t>(part);
  }
}

}  // namespace detail

// Makes a key of integers, enums, pointers, arrays of these and other keys, one word for each element.
template <class... Parts>
MemoKey<(detail::kMemoWords<Parts> + ...)> memo_key(const Parts&... parts) {
  MemoKey<(detail::kMemoWords<Parts> + ...)> key;
  uint64_t* to = key.data();
  (detail::put_memo_words(parts, to), ...);
  return key;
}

}  // namespace lamina
