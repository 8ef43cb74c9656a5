// Runs every test, or only the tests whose name contains the first argument.
#include "check.h"

int main(int argc, char** argv) {
  using namespace lamina::test;
  int ran = 0;
  std::setbuf(stdout, nullptr);  // so that the last name in the output is the test that hangs
  for (const Test& test : tests()) {
    if (argc > 1 && std::strstr(test.name, argv[1]) == nullptr) continue;
    const int before = failures;
    context.clear();
    std::printf("%s: ", test.name);
    test.body();
    ++ran;
    std::printf(failures == before ? "ok\n" : "FAIL\n");
  }
  std::printf("%d tests, %d failures\n", ran, failures);
  return failures == 0 && ran > 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
