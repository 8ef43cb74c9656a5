// The interface by which a kernel asks for threads: torch's pool in the extension, a plain loop in the C++ tests.
#pragma once

#include <cstdint>

namespace lamina {

class Parallel {
 public:
  virtual ~Parallel() = default;
  virtual int threads() const = 0;
  // Calls body(context, begin, end) on disjoint ranges that cover [0, count), each at least `grain`
  // long where count allows.
  virtual void run(int64_t count, int64_t grain, void (*body)(void*, int64_t, int64_t),
                   void* context) const = 0;

  template <class Body>
  void for_range(int64_t count, int64_t grain, const Body& body) const {
    run(
        count, grain,
        [](void* context, int64_t begin, int64_t end) {
          (*static_cast<const Body*>(context))(begin, end);
        },
        const_cast<void*>(static_cast<const void*>(&body)));
  }
};

class Serial final : public Parallel {
 public:
  int threads() const override { return 1; }
  void run(int64_t count, int64_t, void (*body)(void*, int64_t, int64_t),
           void* context) const override {
    if (count > 0) body(context, 0, count);
  }
};

}  // namespace lamina
