// The parts of the module lamina/_probe, one for each file.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>

#include "base/status.h"

namespace lamina::probe {

namespace py = pybind11;

void add_emulator(py::module_& module);
void add_layouts(py::module_& module);
void add_plans(py::module_& module);
void add_schedules(py::module_& module);

// ValueError in Python.
inline void raise_if_bad(const Status& status) {
  if (!status.is_ok()) throw std::invalid_argument(status.message());
}

}  // namespace lamina::probe
