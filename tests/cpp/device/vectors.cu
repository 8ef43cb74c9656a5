// The vectors as a program for a GPU:
//   nvcc -std=c++20 -arch=native --expt-relaxed-constexpr -Icsrc -Itests/cpp
//     tests/cpp/device/vectors.cu
#include "vectors.cc"

int main() {
  using namespace lamina::test;
  for (const Test& test : tests()) {
    const int before = failures;
    context.clear();
    test.body();
    if (failures > before) std::cout << "FAIL  " << test.name << "\n";
  }
  if (failures == 0) std::cout << tests().size() << " vectors pass\n";
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
