// Emulates ptx/warpgroup.cuh. Any lane may be elected: PTX does not promise the first.
#pragma once

#include "device/emu/index.h"

namespace lamina::dev {

inline bool elect_one(emu::Where where = emu::Where::current()) {
  emu::meet(kFullWarp, "elect_one", where, nullptr, [](const auto&) {});
  return lane() == static_cast<int>(emu::options().seed * 11 % kWarpLanes);
}

constexpr bool is_register_count(int count) {
  return count >= 24 && count <= 256 && count % 8 == 0;
}

// The emulator does not count registers; it only checks that whole warps call.
template <int kRegisters>
void raise_registers(emu::Where where = emu::Where::current()) {
  static_assert(is_register_count(kRegisters), "a multiple of 8 from 24 to 256");
  emu::meet(kFullWarp, "raise_registers", where, nullptr, [](const auto&) {});
}
template <int kRegisters>
void lower_registers(emu::Where where = emu::Where::current()) {
  static_assert(is_register_count(kRegisters), "a multiple of 8 from 24 to 256");
  emu::meet(kFullWarp, "lower_registers", where, nullptr, [](const auto&) {});
}

}  // namespace lamina::dev
