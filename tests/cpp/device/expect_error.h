// For tests of the emulator itself: it must report a planted mistake under every schedule.
#pragma once

#include <functional>
#include <string>

#include "buffer.h"

namespace lamina::test {

constexpr uint64_t kSeeds = 6;

struct Seed {
  explicit Seed(uint64_t seed) { dev::emu::options().seed = seed; }
  ~Seed() { dev::emu::options().seed = 0; }
  Seed(const Seed&) = delete;
  Seed& operator=(const Seed&) = delete;
};

// The message holds `text` and the place of the mistake.
inline void expect_error(const std::function<Status()>& launch, const std::string& text,
                         const std::string& file) {
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    const Seed now(seed);
    const Status status = launch();
    at("seed ", seed, ": ", status.message(), " / expected: ", text);
    CHECK(!status.is_ok());
    CHECK(status.message().find(text) != std::string::npos);
    CHECK(status.message().find(file + ":") != std::string::npos);
  }
}

}  // namespace lamina::test
