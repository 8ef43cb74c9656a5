// The CPU instruction sets that this machine runs, and the one that lamina uses.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "base/memo_key.h"
#include "base/status.h"

namespace lamina {

// Ascending: each ISA implies all ISAs before it, so a kernel written for one ISA runs on every later ISA.
enum class Isa : int { kGeneric, kAvx2, kAvx512Vnni, kAvx512Bf16, kAmxInt8 };
inline constexpr int kIsaCount = 5;

std::string_view isa_name(Isa isa);
std::optional<Isa> isa_from_name(std::string_view name);

// The ISAs that have kernels in this build, ascending.
const std::vector<Isa>& built_isas();

// Those that this process can execute too. AMX counts only once the operating system has granted the process its tile
// state. A build with LAMINA_USE_SIMDE adds SIMDe's.
const std::vector<Isa>& available_isas();

// The ISA in use: the last of available_isas(), unless LAMINA_CPU_ISA (read once) or set_isa names another one. An
// unknown or unavailable LAMINA_CPU_ISA is an error at the first use; there is no fallback.
Status active_isa(Isa& isa);
Status set_isa(std::string_view name);  // "auto" returns to the default
std::string_view isa_setting();         // the last argument of set_isa: "auto" or a name

// The facts about the CPU that planners use.
struct CpuInfo {
  Isa isa = Isa::kGeneric;
  int64_t l2_bytes = 0;
};
Status cpu_info(CpuInfo& info);

inline auto key_of(const CpuInfo& cpu) {
  const auto& [isa, l2_bytes] = cpu;
  return memo_key(isa, l2_bytes);
}

}  // namespace lamina
