// The ops that describe the build, and the module that Python imports. The schemas of the others stand beside them.
#include <Python.h>

#include "base/cpu_features.h"
#include "base/huge_pages.h"
#include "base/memo.h"
#include "device/device_info.h"
#include "gemm/problem.h"
#include "layout/int4.h"
#include "layout/int8_tile.h"
#include "layout/sparse24.h"
#include "layout/sparse24_rows.h"
#include "ops/gemm_int4_int8/gemm_int4_int8.h"
#include "ops/gemm_int8/gemm_int8.h"
#include "torch/interop.h"

namespace lamina::interop {
namespace {

// JSON: the packed layouts by name.
std::string layouts() {
  const auto int4_layout = [](const char* device) {
    std::ostringstream json;
    json << "{\"version\": " << int4::kVersion << ", \"tile_n\": " << int4::kTileN
         << ", \"tile_k\": " << int4::kTileK << ", \"tile_bytes\": " << int4::kTileBytes
         << ", \"device\": \"" << device << "\"}";
    return json.str();
  };
  std::ostringstream json;
  json << "{\"" << sparse24_rows::kName << "\": {\"version\": " << sparse24_rows::kVersion
       << ", \"tile_n\": " << sparse24_rows::kTileN << ", \"tile_k\": " << sparse24_rows::kTileK
       << ", \"block_n\": " << sparse24_rows::kBlockN << "}, \"" << int8_tile::kName
       << "\": {\"version\": " << int8_tile::kVersion << ", \"tile_n\": " << int8_tile::kTileN
       << ", \"tile_k\": " << int8_tile::kTileK << ", \"group_k\": " << int8_tile::kGroupK
       << "}, \"" << int4::kRowsName << "\": " << int4_layout("cpu") << ", \"" << int4::kTileName
       << "\": " << int4_layout("cuda") << ", \"" << sparse24::kName
       << "\": {\"version\": " << sparse24::kVersion << ", \"group_k\": " << sparse24::kGroupK
       << ", \"kept\": " << sparse24::kKept << "}}";
  return json.str();
}

// JSON: the sizes that the ops accept. group: the group size of scales along k. group_step: the group sizes of int4
// weights are multiples of it.
std::string limits() {
  std::ostringstream json;
  json << "{\"gemm_int8\": {\"max_k\": " << gemm_int8::kMaxK
       << ", \"group\": " << gemm_int8::kScaleGroup
       << "}, \"gemm_int4\": {\"max_k\": " << gemm::kLargestK
       << ", \"group_step\": " << gemm::kInt4GroupStep
       << "}, \"gemm_int4_int8\": {\"max_k\": " << gemm_int4_int8::kMaxK << "}}";
  return json.str();
}

std::string build_info() {
  std::ostringstream json;
  json << "{\"version\": \"" << LAMINA_VERSION << "\", \"torch_target\": \"2.11\", \"compiler\": \""
       << LAMINA_COMPILER << "\", \"cuda_compiler\": \"" << LAMINA_CUDA_COMPILER
       << "\", \"cuda_archs\": [" << LAMINA_CUDA_ARCHS << "], \"cpu_isas_built\": [";
  const char* comma = "";
  for (Isa isa : built_isas()) {
    json << comma << '"' << isa_name(isa) << '"';
    comma = ", ";
  }
#if defined(LAMINA_USE_SIMDE)
  json << "], \"has_simde\": true";
#else
  json << "], \"has_simde\": false";
#endif
  json << ", \"layouts\": " << layouts() << ", \"limits\": " << limits() << "}";
  return json.str();
}

// JSON: one object for each device that lamina's own CUDA runtime sees; null if lamina was built without CUDA.
std::string cuda_devices() {
#if defined(LAMINA_WITH_CUDA)
  std::ostringstream json;
  json << "[";
  for (int device = 0; device < device_count(); ++device) {
    DeviceInfo info;
    raise_if_bad(device_info(device, info));
    json << (device ? ", " : "") << "{\"compute_capability\": " << info.compute_capability
         << ", \"sm_count\": " << info.sm_count << ", \"smem_per_block\": " << info.smem_per_block
         << ", \"l2_bytes\": " << info.l2_bytes << "}";
  }
  json << "]";
  return json.str();
#else
  return "null";
#endif
}

// JSON: the number of plans, tensor maps and devices made so far (base/memo.h). A call that repeats adds nothing.
std::string made_on_host() {
  const HostWork& work = host_work();
  std::ostringstream json;
  json << "{\"plans\": " << work.plans << ", \"tensor_maps\": " << work.tensor_maps << "}";
  return json.str();
}

void advise(int64_t address, int64_t bytes) {
  advise_huge_pages(reinterpret_cast<void*>(address), bytes);
}

std::string cpu_isas() {
  std::string names;
  for (Isa isa : available_isas()) names += (names.empty() ? "" : ",") + std::string(isa_name(isa));
  return names;
}

std::string cpu_isa() {
  Isa isa{};
  raise_if_bad(active_isa(isa));
  return std::string(isa_name(isa));
}

std::string set_cpu_isa(std::string name) {
  const std::string previous(isa_setting());
  raise_if_bad(set_isa(name));
  return previous;
}

}  // namespace

LAMINA_LIBRARY(m) {
  m.def("advise_huge_pages(int address, int bytes) -> ()");
  m.def("build_info() -> str");
  m.def("cuda_devices() -> str");
  m.def("host_work() -> str");
  m.def("cpu_isas() -> str");
  m.def("cpu_isa() -> str");
  m.def("set_cpu_isa(str name) -> str");
}

LAMINA_IMPL(CompositeExplicitAutograd, m) {
  m.impl("build_info", TORCH_BOX(&build_info));
  m.impl("cuda_devices", TORCH_BOX(&cuda_devices));
  m.impl("host_work", TORCH_BOX(&made_on_host));
  m.impl("advise_huge_pages", TORCH_BOX(&advise));
  m.impl("cpu_isas", TORCH_BOX(&cpu_isas));
  m.impl("cpu_isa", TORCH_BOX(&cpu_isa));
  m.impl("set_cpu_isa", TORCH_BOX(&set_cpu_isa));
}

}  // namespace lamina::interop

// Importing the module runs the registrations above; it holds nothing itself.
PyMODINIT_FUNC LAMINA_MODULE_INIT(void) {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                                   LAMINA_MODULE_NAME,
                                   nullptr,
                                   -1,
                                   nullptr,
                                   nullptr,
                                   nullptr,
                                   nullptr,
                                   nullptr};
  return PyModule_Create(&definition);
}
