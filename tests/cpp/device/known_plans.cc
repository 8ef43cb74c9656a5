// Tests of the plans and tensor maps that calls on CUDA reuse. A hit makes nothing, a change of any input makes a new
// plan or map, and a reused plan or map equals a new one.
#include <sys/wait.h>
#include <unistd.h>

#include <climits>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "base/memo.h"
#include "check.h"
#include "device/device.h"
#include "ops/gemm_int4/cuda/run.h"
#include "ops/gemm_int4_int8/cuda/run.h"
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

// The arguments of the planner for one op; `describe` prints every field of a plan.
struct Call {
  gemm::Problem problem{16, 4096, 4096, 128};
  DeviceInfo device = typical_device(90, 132);
  gemm::Limits limits;
};

struct Int8 : Call {
  Int8() { problem.group = 0; }
  const gemm::CudaOp& op() const { return gemm_int8::cuda_op(problem.is_grouped()); }
  gemm::KRule rule() const { return gemm_int8::k_rule(problem); }
};
struct W4A16 : Call {
  const gemm::CudaOp& op() const { return gemm_int4::cuda_op(); }
  gemm::KRule rule() const { return gemm_int4::k_rule(problem); }
};
struct W4A8 : Call {
  const gemm::CudaOp& op() const { return gemm_int4_int8::cuda_op(); }
  gemm::KRule rule() const { return gemm_int4_int8::k_rule(problem); }
};

std::string text(const auto& call, const gemm::CudaPlan& plan) {
  if (!plan.kernel.launch) return "none";
  return plan.describe(call.op(), call.problem, call.device, plan.partial_bytes(call.problem));
}
std::string made(const auto& c) {
  return text(c, plan_cuda(c.op(), c.problem, c.rule(), c.device, c.limits));
}
std::string known(const auto& c) {
  return text(c, known_plan_cuda(c.op(), c.problem, c.rule(), c.device, c.limits));
}

template <class Call>
std::vector<std::function<void(Call&)>> changes() {
  return {
      [](Call& c) { c.problem.m = 4096; },
      [](Call& c) { c.problem.n = 576; },
      [](Call& c) { c.problem.k = 576; },
      [](Call& c) { c.device.compute_capability = 80; },
      [](Call& c) { c.device.sm_count = 20; },
      [](Call& c) { c.device.smem_per_block = 99 << 10; },
      [](Call& c) { c.device.l2_bytes += 1; },
      [](Call& c) { c.limits.max_sms = 7; },
      [](Call& c) { c.limits.only = "no kernel"; },
  };
}

// Applies each change alone, then all of them again.
template <class Call>
void check_plans(std::vector<std::function<void(Call&)>> all) {
  const Call base;
  CHECK(known(base) == made(base));
  for (size_t i = 0; i < all.size(); ++i) {
    at("change ", i);
    Call changed;
    all[i](changed);
    CHECK_EQ(plans_of([&] { CHECK(known(changed) == made(changed)); }), 1);
    CHECK_EQ(plans_of([&] { CHECK(known(base) == made(base)); }), 0);
  }
  for (const auto& change : all) {
    Call changed;
    change(changed);
    CHECK_EQ(plans_of([&] { CHECK(known(changed) == made(changed)); }), 0);
  }
}

TEST(known_plans_of_gemm_int8_are_those_that_would_be_made) {
  auto all = changes<Int8>();
  all.push_back([](Int8& c) { c.problem.group = gemm_int8::kScaleGroup; });
  all.push_back([](Int8& c) { c.limits.a_alignment = 4; });
  for (const gemm::CudaKernel& kernel : gemm_int8::cuda_op(false).kernels)
    all.push_back([&](Int8& c) { c.limits.only = kernel.name; });
  check_plans(all);
}

TEST(known_plans_of_gemm_int4_are_those_that_would_be_made) {
  auto all = changes<W4A16>();
  all.push_back([](W4A16& c) { c.problem.group = 32; });
  for (const gemm::CudaKernel& kernel : gemm_int4::cuda_op().kernels)
    all.push_back([&](W4A16& c) { c.limits.only = kernel.name; });
  check_plans(all);
}

TEST(known_plans_of_gemm_int4_int8_are_those_that_would_be_made) {
  auto all = changes<W4A8>();
  all.push_back([](W4A8& c) { c.problem.group = 32; });
  for (const gemm::CudaKernel& kernel : gemm_int4_int8::cuda_op().kernels)
    all.push_back([&](W4A8& c) { c.limits.only = kernel.name; });
  check_plans(all);
}

// Any name that no kernel has leaves no kernel to choose.
TEST(unknown_kernels_share_a_plan) {
  Int8 call;
  call.limits.only = "nobody";
  CHECK(known(call) == "none");
  call.limits.only = "somebody";
  CHECK_EQ(plans_of([&] { CHECK(known(call) == "none"); }), 0);
}

TEST(known_plans_are_of_a_thread_and_survive_a_fork) {
  Int8 call;
  call.problem.n = 1234;
  const std::string plan = known(call);
  CHECK_EQ(plans_of([&] { std::thread([&] { CHECK(known(call) == plan); }).join(); }), 1);
  const pid_t child = fork();
  if (child == 0) _exit(plans_of([&] { (void)known(call); }) == 0 && known(call) == plan ? 0 : 1);
  int status = -1;
  CHECK(child > 0 && waitpid(child, &status, 0) == child);
  CHECK_EQ(status, 0);
}

dev::TensorMapSpec some_spec() {
  return {reinterpret_cast<const void*>(uintptr_t{1} << 20),
          3,
          2,
          {100, 70, 5, 1},
          {0, 256, 1 << 20, 1 << 22},
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
      [](Spec& s) { s.stride_bytes[1] = 272; },
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
