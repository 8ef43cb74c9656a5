// Shares tasks 0 .. count - 1 out to workers. Each worker owns a contiguous range and takes tasks from its front;
// when the range is empty, the worker steals from the back of the other ranges. Neighbouring tasks thus mostly run
// one after the other on one core, whose cache keeps their common data and which can prefetch the next task. A core
// that is slower or busy loses tasks to the others.
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

namespace lamina {

class WorkStealing {
 public:
  WorkStealing(int64_t count, int64_t workers) : ranges_(static_cast<size_t>(workers)) {
    const int64_t each = count / workers, longer = count % workers;
    int64_t begin = 0;
    for (int64_t i = 0; i < workers; ++i) {
      Range& range = ranges_[static_cast<size_t>(i)];
      range.begin = begin;
      range.end = begin += each + (i < longer);
    }
  }

  // Calls body(task) for every task that this worker gets.
  template <class Body>
  void run(int64_t worker, const Body& body) {
    const int64_t workers = static_cast<int64_t>(ranges_.size());
    for (int64_t i = 0; i < workers; ++i) {
      Range& range = ranges_[static_cast<size_t>((worker + i) % workers)];
      for (int64_t task; (task = range.take(i == 0)) >= 0;) body(task);
    }
  }

 private:
  struct alignas(64) Range {  // each range has its own cache line
    std::mutex mutex;
    int64_t begin = 0, end = 0;

    int64_t take(bool front) {  // -1 if the range is empty
      const std::lock_guard<std::mutex> lock(mutex);
      if (begin == end) return -1;
      return front ? begin++ : --end;
    }
  };

  std::vector<Range> ranges_;
};

}  // namespace lamina
