// The base of the golden vectors: memory that a kernel can reach, and launches that wait for the kernel. With nvcc
// they use the GPU, else the emulator.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#include "check.h"
#include "device/device.h"

namespace lamina::test {

#if defined(__CUDACC__)

inline void must(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "CUDA: %s\n", cudaGetErrorString(error));
  std::exit(EXIT_FAILURE);
}

class Memory {
 public:
  explicit Memory(size_t bytes) : bytes_(bytes) { must(cudaMalloc(&at_, bytes)); }
  ~Memory() { (void)cudaFree(at_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  std::byte* at() { return static_cast<std::byte*>(at_); }
  void write(const std::byte* from) { must(cudaMemcpy(at_, from, bytes_, cudaMemcpyDefault)); }
  void read(std::byte* to) const { must(cudaMemcpy(to, at_, bytes_, cudaMemcpyDefault)); }

 private:
  size_t bytes_;
  void* at_ = nullptr;
};

inline Status wait(const char* kernel) {
  const cudaError_t error = cudaDeviceSynchronize();
  return error == cudaSuccess ? Status::ok()
                              : Status::error(kernel, ": ", cudaGetErrorString(error));
}

// On a GPU there is one schedule, the GPU's own.
inline void each_schedule(const std::function<void()>& body) { body(); }

struct ResidentBlocks {
  explicit ResidentBlocks(int) {}  // a GPU holds all blocks of the vectors at once
};

#else

class Memory {
 public:
  explicit Memory(size_t bytes) : bytes_(bytes) {}
  std::byte* at() { return bytes_.data(); }
  void write(const std::byte* from) { std::copy_n(from, bytes_.size(), bytes_.data()); }
  void read(std::byte* to) const { std::copy(bytes_.begin(), bytes_.end(), to); }

 private:
  std::vector<std::byte> bytes_;
};

inline Status wait(const char*) { return Status::ok(); }

// Calls body under several orders of warps and both poisons.
inline void each_schedule(const std::function<void()>& body) {
  for (uint64_t seed = 0; seed < 4; ++seed) {
    dev::emu::options().seed = seed;
    body();
  }
  dev::emu::options().seed = 0;
}

// Sets the number of resident blocks, for kernels whose blocks wait for each other.
struct ResidentBlocks {
  explicit ResidentBlocks(int count) { dev::emu::options().resident_blocks = count; }
  ~ResidentBlocks() { dev::emu::options().resident_blocks = 1; }
  ResidentBlocks(const ResidentBlocks&) = delete;
  ResidentBlocks& operator=(const ResidentBlocks&) = delete;
};

#endif

// Elements between two guard zones. read() checks that the guard zones are unchanged.
template <class T>
class DeviceBuffer {
 public:
  explicit DeviceBuffer(const std::vector<T>& values) : DeviceBuffer(values.size()) {
    if (count_ > 0) std::memcpy(host_.data() + kGuardBytes, values.data(), count_ * sizeof(T));
    memory_.write(host_.data());
  }
  // `count` elements without a particular value.
  explicit DeviceBuffer(size_t count)
      : count_(count), host_(count * sizeof(T) + 2 * kGuardBytes, kGuard), memory_(host_.size()) {
    memory_.write(host_.data());
  }

  T* data() { return reinterpret_cast<T*>(memory_.at() + kGuardBytes); }

  std::vector<T> read() {
    memory_.read(host_.data());
    const auto is_guard = [](std::byte byte) { return byte == kGuard; };
    CHECK(std::all_of(host_.begin(), host_.begin() + kGuardBytes, is_guard));
    CHECK(std::all_of(host_.end() - kGuardBytes, host_.end(), is_guard));
    std::vector<T> values(count_);
    if (count_ > 0) std::memcpy(values.data(), host_.data() + kGuardBytes, count_ * sizeof(T));
    return values;
  }

 private:
  static constexpr ptrdiff_t kGuardBytes = 64;
  static constexpr std::byte kGuard{0xa5};

  size_t count_;
  std::vector<std::byte> host_;
  Memory memory_;
};

// Bytes in which no eight neighbours repeat.
inline std::vector<uint8_t> distinct_bytes(size_t count) {
  std::vector<uint8_t> bytes(count);
  for (size_t i = 0; i < count; ++i) bytes[i] = static_cast<uint8_t>(i * 89 + (i >> 8) * 31 + 17);
  return bytes;
}

// The members that most kernels of the vectors share.
template <int kCount>
struct BlockOf {
  static constexpr const char* kName = "vector";
  static constexpr int kThreads = kCount, kMinBlocks = 1;
};
using OneWarp = BlockOf<dev::kWarpLanes>;

template <class Kernel>
void run(const typename Kernel::Args& args, const dev::LaunchShape& shape = {}) {
  const Status launched = dev::launch<Kernel>(shape, nullptr, args);
  const Status status = launched.is_ok() ? wait(Kernel::kName) : launched;
  if (!status.is_ok()) fail(__FILE__, __LINE__, status.message());
}

}  // namespace lamina::test
