// emulator: how CUDA kernels run on the host, and what was counted meanwhile.
#include "device/emu/executor.h"
#include "probe.h"

namespace lamina::probe {
namespace {

using dev::emu::Report;
using dev::emu::Site;

void set_device(int compute_capability, int sm_count) {
  dev::emu::device() = typical_device(compute_capability, sm_count);
}

void set_options(uint64_t seed, int resident_blocks, bool count_accesses, bool runs_kernels) {
  dev::emu::options() = {seed, resident_blocks, count_accesses, runs_kernels};
}

Report take_report() {
  const Report report = dev::emu::report();
  dev::emu::reset_report();
  return report;
}

}  // namespace

void add_emulator(py::module_& module) {
  py::module_ emulator = module.def_submodule("emulator");
  py::class_<Site>(emulator, "Site")
      .def_readonly("function", &Site::function)
      .def_readonly("file", &Site::file)
      .def_readonly("line", &Site::line)
      .def_readonly("accesses", &Site::accesses)
      .def_readonly("wavefronts", &Site::wavefronts)
      .def_readonly("fewest", &Site::fewest)
      .def("__repr__", [](const Site& site) {
        return site.function + " at " + site.file + ":" + std::to_string(site.line) + ", " +
               std::to_string(site.wavefronts) + " wavefronts, " + std::to_string(site.fewest) +
               " needed";
      });
  py::class_<Report>(emulator, "Report")
      .def_readonly("launches", &Report::launches)
      .def_readonly("blocks", &Report::blocks)
      .def_readonly("most_blocks", &Report::most_blocks)
      .def_readonly("switches", &Report::switches)
      .def_readonly("sites", &Report::sites);
  emulator.def("set_device", &set_device, py::arg("compute_capability"), py::arg("sm_count"),
               "The device that torch.ops.lamina_emu takes tensors to be on; (0, 0): the CPU.");
  emulator.def("has_device", [] { return dev::emu::device().compute_capability > 0; });
  emulator.def("set_options", &set_options, py::arg("seed") = 0, py::arg("resident_blocks") = 1,
               py::arg("count_accesses") = false, py::arg("runs_kernels") = true,
               "How the next launches of this thread run: csrc/device/emu/executor.h.");
  emulator.def("take_report", &take_report, "What this thread ran since the last call.");
}

}  // namespace lamina::probe
