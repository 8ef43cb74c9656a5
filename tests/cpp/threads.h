// Parallel implementations that run tasks as a real pool may: in many ranges in reverse order, and on true threads.
#pragma once

#include <algorithm>
#include <thread>
#include <vector>

#include "base/parallel.h"

namespace lamina::test {

class Backwards final : public Parallel {
 public:
  explicit Backwards(int threads) : threads_(threads) {}
  int threads() const override { return threads_; }
  void run(int64_t count, int64_t, void (*body)(void*, int64_t, int64_t),
           void* context) const override {
    for (int64_t i = count - 1; i >= 0; --i) body(context, i, i + 1);
  }

 private:
  int threads_;
};

class Threads final : public Parallel {
 public:
  explicit Threads(int threads) : threads_(threads) {}
  int threads() const override { return threads_; }
  void run(int64_t count, int64_t, void (*body)(void*, int64_t, int64_t),
           void* context) const override {
    std::vector<std::thread> workers;
    const int64_t each = (count + threads_ - 1) / threads_;
    for (int64_t begin = 0; begin < count; begin += each)
      workers.emplace_back(body, context, begin, std::min(begin + each, count));
    for (std::thread& worker : workers) worker.join();
  }

 private:
  int threads_;
};

}  // namespace lamina::test
