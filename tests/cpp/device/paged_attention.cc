// The CUDA kernels of paged_attention on the emulator with random arguments, right and wrong, in buffers and a workspace of
// exactly their size, so that AddressSanitizer sees an access beside them. Right arguments give the results of a plain loop.
#include "ops/paged_attention/paged_attention.h"

#include "attention_problem.h"
#include "base/memo.h"
#include "device/device.h"
#include "ops/paged_attention/cuda/run.h"

namespace lamina::test {
namespace {

using paged_attention::CudaPlan;
using paged_attention::Sizes;

TEST(paged_attention_of_random_arguments_on_a_gpu) {
  constexpr int64_t kCalls = 400;
  const std::string_view kernels[] = {"",
                                      "paged_attention_sm80_r16",
                                      "paged_attention_sm80_r32",
                                      "paged_attention_sm80_r64",
                                      "paged_attention_sm80_r128",
                                      "paged_attention_sm90a"};
  int64_t ran = 0, right = 0;
  for (int64_t i = 0; i < kCalls; ++i) {
    AttentionProblem problem(static_cast<uint64_t>(i));
    Params& params = problem.params();
    params.batch_invariant = i / 24 % 3 == 0;
    const DeviceInfo device = typical_device(i % 2 == 0 ? 80 : 90, static_cast<int>(1 + i % 4));
    if (!paged_attention::check_cuda(params, device).is_ok()) continue;
    const CudaPlan plan = paged_attention::plan_cuda(paged_attention::sizes_of(params), device,
                                                     kernels[static_cast<size_t>(i / 4 % 6)]);
    if (plan.kernel.launch == nullptr) continue;
    at("problem ", i, ", ", plan.kernel.name);
    dev::emu::device() = device;
    dev::emu::options().seed = static_cast<uint64_t>(i);
    Exact<char> workspace(plan.workspace_bytes);
    std::fill_n(workspace.data(), workspace.count(), char{0x7f});
    CHECK(paged_attention::run_cuda(params, plan, workspace.data(), nullptr).is_ok());
    dev::Mail mail{};
    CHECK(dev::take_mail(mail).is_ok());
    ++ran;
    if (problem.verdict() != AttentionProblem::Verdict::kRight) continue;
    CHECK(mail == dev::Mail{});
    problem.check_results({0x1p-6, 2e-2});
    ++right;
  }
  dev::emu::options().seed = 0;
  dev::emu::device() = {};
  CHECK(ran > kCalls / 8);
  CHECK(right > ran / 3 && right < ran);
}

constexpr DeviceInfo kH200 = typical_device(90, 132);

// Llama-3.2-1B: requests that decode from contexts of up to 128K keys.
Sizes decode_of(int64_t requests) {
  return {.tokens = requests,
          .heads = 32,
          .kv_heads = 8,
          .head_dim = 64,
          .v_head_dim = 64,
          .requests = requests,
          .max_seqlen_q = 1,
          .page = 16,
          .max_blocks = 8192,
          .tree_words = 0,
          .cache = kv::CacheDType::kBF16,
          .batch_invariant = true,
          .has_tree = false,
          .has_depths = false,
          .has_biases = false};
}

TEST(paged_attention_cuts_every_tile_into_a_bounded_workspace) {
  for (int64_t requests : {1, 32, 256, 4096}) {
    at(requests, " requests");
    Sizes sizes = decode_of(requests);
    const CudaPlan plan = paged_attention::plan_cuda(sizes, kH200, "");
    CHECK_EQ(plan.work.visit_blocks, plan.work.split_blocks);
    CHECK(plan.workspace_bytes < int64_t{180} << 20);
    sizes.batch_invariant = false;
    CHECK(paged_attention::plan_cuda(sizes, kH200, "").workspace_bytes < int64_t{16} << 20);
  }
}

TEST(paged_attention_plans_once_for_the_same_sizes) {
  const auto plans_of = [](const Sizes& sizes, const DeviceInfo& device, std::string_view only) {
    const int64_t before = host_work().plans;
    (void)paged_attention::known_plan_cuda(sizes, device, only);
    return host_work().plans - before;
  };
  const Sizes sizes = decode_of(33);
  CHECK_EQ(plans_of(sizes, kH200, ""), 1);
  CHECK_EQ(plans_of(sizes, kH200, ""), 0);
  CHECK_EQ(plans_of(sizes, kH200, "paged_attention_sm80_r64"), 1);
  CHECK_EQ(plans_of(sizes, typical_device(80, 108), ""), 1);
  Sizes other = sizes;
  other.max_seqlen_q = 16;
  CHECK_EQ(plans_of(other, kH200, ""), 1);
  CHECK(std::string_view(paged_attention::known_plan_cuda(other, kH200, "").kernel.name) ==
        "paged_attention_sm80_r64_d64");
}

}  // namespace
}  // namespace lamina::test
