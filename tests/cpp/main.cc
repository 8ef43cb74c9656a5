// Runs every test, or those whose name contains the first argument.
#include "check.h"

int main(int argc, char** argv) {
  using namespace lamina::test;
  int ran = 0;
  for (const Test& test : tests()) {
    if (argc > 1 && std::strstr(test.name, argv[1]) == nullptr) continue;
    const int before = failures;
    context.clear();
    test.body();
    ++ran;
    std::cout << (failures == before ? "ok    " : "FAIL  ") << test.name << "\n";
  }
  std::cout << ran << " tests, " << failures << " failures\n";
  return failures == 0 && ran > 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
