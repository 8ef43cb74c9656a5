// Tests of the plans and tensor maps that calls on CUDA reuse; tests/probe has more of plans. A hit makes nothing, a change
// of any input makes a new map, and a reused map equals a new one.
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "base/memo.h"
#include "check.h"
#include "device/device.h"
#include "ops/gemm_int8/cuda/run.h"

namespace lamina::test {
namespace {

// The number of plans that `body` makes, and of maps.
int64_t plans_of(const std::function<void()>& body) {
  const int64_t before = host_work().plans;
  body();
  return host_work().plans - before;
}

int64_t maps_of(const std::function<void()>& body) {
  const int64_t before = host_work().tensor_maps;
  body();
  return host_work().tensor_maps - before;
}

TEST(known_plans_are_of_a_thread_and_survive_a_fork) {
  const gemm::Problem problem{16, 1234, 4096};
  const DeviceInfo device = typical_device(90, 132);
  const auto known = [&] {
    return gemm::known_plan_cuda(gemm_int8::cuda_op(false), problem, gemm_int8::k_rule(problem),
                                 device, {})
        .cycles;
  };
  const double cycles = known();
  CHECK_EQ(plans_of([&] { std::thread([&] { CHECK(known() == cycles); }).join(); }), 1);
  const pid_t child = fork();
  if (child == 0) _exit(plans_of([&] { (void)known(); }) == 0 && known() == cycles ? 0 : 1);
  int status = -1;
  CHECK(child > 0 && waitpid(child, &status, 0) == child);
  CHECK_EQ(status, 0);
}

dev::TensorMapSpec some_spec() {
  return {reinterpret_cast<const void*>(uintptr_t{1} << 20),
          3,
          2,
          {100, 70, 5, 1},
          {0, 512, 1 << 20, 1 << 22},
          {64, 8, 2, 1},
          dev::Swizzle::k128};
}

TEST(known_tensor_maps_are_those_that_would_be_made) {
  using Spec = dev::TensorMapSpec;
  const std::vector<std::function<void(Spec&)>> changes = {
      [](Spec& s) { s.base = reinterpret_cast<const void*>((uintptr_t{1} << 20) + 16); },
      [](Spec& s) { s.rank = 2; },
      [](Spec& s) { s.rank = 4; },
      [](Spec& s) { s.element_bytes = 4, s.swizzle = dev::Swizzle::kNone; },
      [](Spec& s) { s.element_bytes = 1, s.swizzle = dev::Swizzle::k64; },
      [](Spec& s) { s.extent[0] = 99; },
      [](Spec& s) { s.extent[1] = 71; },
      [](Spec& s) { s.extent[2] = 6; },
      [](Spec& s) { s.rank = 4, s.extent[3] = 2; },
      [](Spec& s) { s.stride_bytes[1] = 528; },
      [](Spec& s) { s.stride_bytes[2] = 1 << 21; },
      [](Spec& s) { s.rank = 4, s.stride_bytes[3] = 1 << 23; },
      [](Spec& s) { s.box[0] = 32, s.swizzle = dev::Swizzle::k64; },
      [](Spec& s) { s.box[1] = 9; },
      [](Spec& s) { s.box[2] = 3; },
      [](Spec& s) { s.rank = 4, s.box[3] = 2; },
      [](Spec& s) { s.swizzle = dev::Swizzle::kNone; },
  };
  dev::TensorMap base, map;
  CHECK(dev::make_tensor_map(some_spec(), base).is_ok());
  CHECK_EQ(maps_of([&] { CHECK(dev::make_tensor_map(some_spec(), map).is_ok()); }), 0);
  CHECK(std::memcmp(&base, &map, sizeof map) == 0);
  for (size_t i = 0; i < changes.size(); ++i) {
    at("change ", i);
    Spec spec = some_spec();
    changes[i](spec);
    CHECK_EQ(maps_of([&] { CHECK(dev::make_tensor_map(spec, map).is_ok()); }), 1);
    CHECK(std::memcmp(&base, &map, sizeof map) != 0);
    dev::TensorMap again;
    CHECK_EQ(maps_of([&] { CHECK(dev::make_tensor_map(spec, again).is_ok()); }), 0);
    CHECK(std::memcmp(&again, &map, sizeof map) == 0);
  }
}

TEST(what_is_no_tensor_map_is_refused_each_time) {
  dev::TensorMapSpec spec = some_spec();
  spec.extent[0] = 0;
  dev::TensorMap map;
  for (int time = 0; time < 2; ++time)
    CHECK_EQ(maps_of([&] { CHECK(!dev::make_tensor_map(spec, map).is_ok()); }), 0);
}

}  // namespace
}  // namespace lamina::test
