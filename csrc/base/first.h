// The least of the indices that several threads report, so that an error names the same place whatever thread found it.
#pragma once

#include <atomic>
#include <cstdint>

namespace lamina {

class First {
 public:
  void report(int64_t index) {
    int64_t before = index_;
    while (index < before && !index_.compare_exchange_weak(before, index)) {
    }
  }
  bool is_found() const { return index_ != kNone; }
  int64_t index() const { return index_; }

 private:
  static constexpr int64_t kNone = INT64_MAX;
  std::atomic<int64_t> index_ = kNone;
};

}  // namespace lamina
