// A minimal test harness: TEST(name) { CHECK(...); CHECK_EQ(...); }, run by main.cc.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "base/cpu_features.h"
#include "base/status.h"

namespace lamina::test {

struct Test {
  const char* name;
  void (*body)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

struct Registration {
  Registration(const char* name, void (*body)()) { tests().push_back({name, body}); }
};

inline int failures = 0;
inline std::string context;  // the current case of a loop, printed with a failure

inline void fail(const char* file, int line, const std::string& what) {
  ++failures;
  if (failures <= 20)
    std::fprintf(stderr, "%s:%d: %s%s%s\n", file, line, what.c_str(),
                 context.empty() ? "" : "  at ", context.c_str());
}

template <class A, class B>
void check_equal(const A& got, const B& want, const char* text, const char* file, int line) {
  if (got == want) return;
  std::string what = text;
  append_text(what += ": got ", +got);
  append_text(what += ", expected ", +want);
  fail(file, line, what);
}

template <class... Parts>
void at(const Parts&... parts) {
  context.clear();
  (append_text(context, parts), ...);
}

// Calls body once for every ISA that this build can execute here, with that ISA forced.
void for_each_isa(const auto& body) {
  for (Isa isa : available_isas()) {
    if (!set_isa(isa_name(isa)).is_ok())
      fail(__FILE__, __LINE__, "set_isa refuses an available ISA");
    body(isa);
  }
  (void)set_isa("auto");
}

}  // namespace lamina::test

#define TEST(name)                                                                   \
  static void test_##name();                                                         \
  static const ::lamina::test::Registration registration_##name{#name, test_##name}; \
  static void test_##name()
#define CHECK(condition) \
  ((condition) ? void()  \
               : ::lamina::test::fail(__FILE__, __LINE__, "CHECK(" #condition ") is false"))
#define CHECK_EQ(got, want) ::lamina::test::check_equal((got), (want), #got, __FILE__, __LINE__)
