#include "probe.h"

PYBIND11_MODULE(_probe, module) {
  using namespace lamina::probe;
  module.doc() =
      "What lamina decides on the host, and the controls of the CUDA emulator: for tests.";
  add_emulator(module);
  add_layouts(module);
  add_plans(module);
  add_schedules(module);
}
