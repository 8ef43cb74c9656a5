// Memory that shows stray accesses: guard zones around a poisoned body. Also sparse mappings for offsets beyond 2^31.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <memory>

#include "check.h"

namespace lamina::test {

inline constexpr uint8_t kGuard = 0xa5;
inline constexpr uint8_t kPoison = 0xff;  // NaN in f32, f16 and bf16; -1 in integers
inline constexpr size_t kGuardBytes = 4096;

// `count` values of T between guard zones. Both are filled, so an unwritten output is a NaN.
template <class T>
class Guarded {
 public:
  explicit Guarded(int64_t count)
      : size_(static_cast<size_t>(count) * sizeof(T)), bytes_(size_ + 2 * kGuardBytes, kGuard) {
    std::memset(data(), kPoison, size_);
  }
  T* data() { return reinterpret_cast<T*>(bytes_.data() + kGuardBytes); }
  T& operator[](int64_t i) { return data()[i]; }
  bool guards_are_intact() const {
    const auto is_guard = [](uint8_t byte) { return byte == kGuard; };
    return std::all_of(bytes_.begin(), bytes_.begin() + kGuardBytes, is_guard) &&
           std::all_of(bytes_.end() - kGuardBytes, bytes_.end(), is_guard);
  }

 private:
  size_t size_;
  std::vector<uint8_t> bytes_;
};

// Exactly `count` values on the heap, so that AddressSanitizer sees a read of one byte too many.
template <class T>
class Exact {
 public:
  explicit Exact(int64_t count) : data_(new T[static_cast<size_t>(count)]), count_(count) {}
  T* data() { return data_.get(); }
  T& operator[](int64_t i) { return data_[static_cast<size_t>(i)]; }
  int64_t count() const { return count_; }

 private:
  std::unique_ptr<T[]> data_;
  int64_t count_;
};

// Zeroed address space. Only touched pages take memory.
class Sparse {
 public:
  explicit Sparse(int64_t bytes)
      : size_(static_cast<size_t>(bytes)),
        data_(mmap(nullptr, size_, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {
    if (data_ == MAP_FAILED) {
      std::fprintf(stderr, "skipped: no %lld bytes of address space\n",
                   static_cast<long long>(bytes));
      data_ = nullptr;
    }
  }
  ~Sparse() {
    if (data_ != nullptr) munmap(data_, size_);
  }
  Sparse(const Sparse&) = delete;
  Sparse& operator=(const Sparse&) = delete;
  bool is_mapped() const { return data_ != nullptr; }
  template <class T>
  T* as() {
    return static_cast<T*>(data_);
  }

 private:
  size_t size_;
  void* data_;
};

// A small generator whose sequence is the same everywhere, unlike std::uniform_int_distribution.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2 + 1) {}
  uint32_t next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state_ >> 33);
  }
  int8_t int8() { return static_cast<int8_t>(next() >> 7); }
  float scale() { return 0.001f + static_cast<float>(next() % 1000) * 1e-5f; }

 private:
  uint64_t state_;
};

}  // namespace lamina::test
