#include "base/cpu_features.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <string>
#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#endif

#include "base/built_isas.h"

namespace lamina {
namespace {

constexpr std::array<std::string_view, kIsaCount> kNames = {"generic", "avx2", "avx512_vnni",
                                                            "avx512_bf16", "amx_int8"};
constexpr int kAuto = -1;

#if defined(__x86_64__) && !defined(LAMINA_USE_SIMDE)
// Linux keeps AMX tile data off until the process asks for it (5.16 and newer, Documentation/arch/x86/xstate.rst).
bool request_amx_permission() {
#if defined(__linux__)
  constexpr long kArchReqXcompPerm = 0x1023;
  constexpr long kXfeatureTileData = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureTileData) == 0;
#else
  return false;
#endif
}

// Intel SDM vol. 2, CPUID leaf 7 subleaf 0, EDX: bit 22 AMX-BF16, bit 24 AMX-TILE, bit 25 AMX-INT8. All processors have
// all three or none.
bool cpu_has_amx() {
#if defined(__linux__)
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  return (edx >> 22 & 1u) && (edx >> 24 & 1u) && (edx >> 25 & 1u);
#else
  return false;
#endif
}
#endif

bool can_run(Isa isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  switch (isa) {
    case Isa::kGeneric:
      return true;
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("f16c");
#if defined(LAMINA_USE_SIMDE)
    case Isa::kAvx512Vnni:
    case Isa::kAvx512Bf16:
    case Isa::kAmxInt8:
      return can_run(Isa::kAvx2);
#else
    case Isa::kAvx512Vnni:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512vnni");
    case Isa::kAvx512Bf16:
      return can_run(Isa::kAvx512Vnni) && __builtin_cpu_supports("avx512bf16");
    case Isa::kAmxInt8:
      return can_run(Isa::kAvx512Bf16) && cpu_has_amx() && request_amx_permission();
#endif
  }
  return false;
#else
  return isa == Isa::kGeneric;
#endif
}

std::string available_names() {
  std::string names;
  for (Isa isa : available_isas())
    names += (names.empty() ? "" : ", ") + std::string(isa_name(isa));
  return names;
}

Status find_available(std::string_view source, std::string_view name, int& setting) {
  if (name == "auto" || name.empty()) {
    setting = kAuto;
    return Status::ok();
  }
  const std::optional<Isa> isa = isa_from_name(name);
  const auto is_in = [isa](const std::vector<Isa>& isas) {
    return isa && std::find(isas.begin(), isas.end(), *isa) != isas.end();
  };
  if (is_in(available_isas())) {
    setting = static_cast<int>(*isa);
    return Status::ok();
  }
  return Status::error(source, " = \"", name, "\" is ",
                       !isa                  ? "not a CPU ISA"
                       : is_in(built_isas()) ? "not available on this machine"
                                             : "not in this build",
                       "; allowed: auto, ", available_names());
}

struct Setting {
  Status status = Status::ok();
  std::atomic<int> isa{kAuto};
  Setting() {
    const char* name = std::getenv("LAMINA_CPU_ISA");
    int value = kAuto;
    if (name != nullptr) status = find_available("LAMINA_CPU_ISA", name, value);
    isa = value;
  }
};

Setting& setting() {
  static Setting instance;
  return instance;
}

}  // namespace

std::string_view isa_name(Isa isa) { return kNames[static_cast<size_t>(isa)]; }

std::optional<Isa> isa_from_name(std::string_view name) {
  for (size_t i = 0; i < kNames.size(); ++i)
    if (kNames[i] == name) return static_cast<Isa>(i);
  return std::nullopt;
}

const std::vector<Isa>& built_isas() {
  static const std::vector<Isa> isas = [] {
    std::vector<Isa> built;
    LAMINA_IF_BUILT(generic, built.push_back(Isa::kGeneric);)
    LAMINA_IF_BUILT(avx2, built.push_back(Isa::kAvx2);)
    LAMINA_IF_BUILT(avx512_vnni, built.push_back(Isa::kAvx512Vnni);)
    LAMINA_IF_BUILT(avx512_bf16, built.push_back(Isa::kAvx512Bf16);)
    LAMINA_IF_BUILT(amx_int8, built.push_back(Isa::kAmxInt8);)
    return built;
  }();
  return isas;
}

const std::vector<Isa>& available_isas() {
  static const std::vector<Isa> isas = [] {
    std::vector<Isa> found;
    for (Isa isa : built_isas())
      if (can_run(isa)) found.push_back(isa);
    return found;
  }();
  return isas;
}

Status active_isa(Isa& isa) {
  if (!setting().status.is_ok()) return setting().status;
  if (available_isas().empty())
    return Status::error(
        "lamina was built for the CPU of another machine; build it here: make build");
  const int value = setting().isa.load(std::memory_order_relaxed);
  isa = value == kAuto ? available_isas().back() : static_cast<Isa>(value);
  return Status::ok();
}

Status set_isa(std::string_view name) {
  int value = kAuto;
  const Status status = find_available("set_cpu_isa: name", name, value);
  if (status.is_ok()) {
    setting().status = Status::ok();
    setting().isa.store(value, std::memory_order_relaxed);
  }
  return status;
}

std::string_view isa_setting() {
  const int value = setting().isa.load(std::memory_order_relaxed);
  return value == kAuto ? "auto" : isa_name(static_cast<Isa>(value));
}

Status cpu_info(CpuInfo& info) {
  static const int64_t l2_bytes = [] {
    constexpr int64_t kUnknown = 512 * 1024;
#if defined(_SC_LEVEL2_CACHE_SIZE)
    const long found = sysconf(_SC_LEVEL2_CACHE_SIZE);
    return found > 0 ? static_cast<int64_t>(found) : kUnknown;
#else
    return kUnknown;
#endif
  }();
  info.l2_bytes = l2_bytes;
  return active_isa(info.isa);
}

}  // namespace lamina
