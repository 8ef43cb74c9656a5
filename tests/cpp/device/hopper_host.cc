// The refusals of the host half of TMA, overlapping launches, and the internal checks of the emulator.
#include <string>

#include "buffer.h"

namespace lamina::test {
namespace {

dev::TensorMapSpec good_spec() {
  dev::TensorMapSpec spec;
  spec.base = reinterpret_cast<const void*>(uintptr_t{4096});
  spec.rank = 3;
  spec.element_bytes = 2;
  const int64_t extent[3] = {int64_t{1} << 32, 70, 5},
                stride_bytes[3] = {0, int64_t{1} << 33, (int64_t{1} << 40) - 16};
  const int box[3] = {64, 256, 1};
  std::copy_n(extent, 3, spec.extent);
  std::copy_n(stride_bytes, 3, spec.stride_bytes);
  std::copy_n(box, 3, spec.box);
  spec.swizzle = dev::Swizzle::k128;
  return spec;
}

TEST(tensor_map_errors_name_field_value_and_allowed) {
  dev::TensorMap map;
  CHECK(dev::make_tensor_map(good_spec(), map).is_ok());
  const auto refuses = [&](const std::function<void(dev::TensorMapSpec&)>& spoil,
                           const std::string& message) {
    dev::TensorMapSpec spec = good_spec();
    spoil(spec);
    const Status status = dev::make_tensor_map(spec, map);
    at(message, " / got: ", status.message());
    CHECK(!status.is_ok() && status.message() == "tensor map: " + message);
  };
  using Spec = dev::TensorMapSpec;
  refuses([](Spec& s) { s.base = reinterpret_cast<const void*>(uintptr_t{4104}); },
          "base = 0x1008 must be a multiple of 16, not null");
  refuses([](Spec& s) { s.base = nullptr; }, "base = 0 must be a multiple of 16, not null");
  refuses([](Spec& s) { s.rank = 1; }, "rank = 1 must be 2 to 4");
  refuses([](Spec& s) { s.rank = 5; }, "rank = 5 must be 2 to 4");
  refuses([](Spec& s) { s.element_bytes = 8; }, "element_bytes = 8 must be 1, 2 or 4");
  refuses([](Spec& s) { s.extent[1] = 0; }, "extent[1] = 0 must be 1 to 2^32");
  refuses([](Spec& s) { s.extent[0] += 1; }, "extent[0] = 4294967297 must be 1 to 2^32");
  refuses([](Spec& s) { s.stride_bytes[1] = 24; },
          "stride_bytes[1] = 24 must be a multiple of 16 below 2^40");
  refuses([](Spec& s) { s.stride_bytes[2] = int64_t{1} << 40; },
          "stride_bytes[2] = 1099511627776 must be a multiple of 16 below 2^40");
  refuses([](Spec& s) { s.stride_bytes[2] = -16; },
          "stride_bytes[2] = -16 must be a multiple of 16 below 2^40");
  refuses([](Spec& s) { s.stride_bytes[1] -= 16; },
          "stride_bytes[1] = 8589934576 must be at least the 8589934592 bytes of a row");
  refuses([](Spec& s) { s.box[1] = 257; }, "box[1] = 257 must be 1 to 256");
  refuses([](Spec& s) { s.box[2] = 0; }, "box[2] = 0 must be 1 to 256");
  refuses([](Spec& s) { s.box[0] = 12; },
          "box[0] = 12 elements are 24 bytes; a multiple of 16 is possible");
  refuses([](Spec& s) { s.box[0] = 128; },
          "box[0] = 128 elements are 256 bytes; with a swizzle of 128 bytes they must be as many");
}

struct Idle : BlockOf<32> {
  struct Args {
    bool waits;
  };
  LAMINA_DEVICE static void run(const Args& args) {
    if (args.waits) dev::wait_for_previous();
  }
};

TEST(launch_refuses_bad_clusters) {
  for (const auto& [grid_x, cluster] : {std::pair{6, 4}, {8, 0}, {16, 16}, {4, -1}}) {
    dev::LaunchShape shape{{grid_x, 1, 1}};
    shape.cluster = cluster;
    const Status status = dev::launch<Idle>(shape, nullptr, {false});
    at(status.message());
    CHECK(!status.is_ok() && status.message().find("vector: clusters of ") == 0);
  }
}

TEST(emulator_reports_a_kernel_that_overlaps_and_never_waits) {
  dev::LaunchShape shape{{2, 1, 1}};
  shape.overlaps_previous = true;
  CHECK(dev::launch<Idle>(shape, nullptr, {true}).is_ok());
  const Status status = dev::launch<Idle>(shape, nullptr, {false});
  CHECK(!status.is_ok() && status.message().find("wait_for_previous") != std::string::npos);
}

// Thread 0 writes a word, or thread 32 reads it. Then a thread that has waited passes its knowledge to the others.
struct WordKernel : BlockOf<64> {
  struct Args {
    int32_t* word;
    bool writes;
    int waiting_thread;
  };
  LAMINA_DEVICE static void run(const Args& args) {
    dev::launch_dependents();
    if (dev::thread_index() == args.waiting_thread) dev::wait_for_previous();
    if (args.waiting_thread < 32) dev::block_sync();
    if (args.writes && dev::thread_index() == 0) dev::store_global(args.word, 1);
    if (!args.writes && dev::thread_index() == 32) dev::load_global(args.word);
    if (args.waiting_thread >= 32) dev::block_sync();
  }
};

TEST(emulator_finds_races_with_launches_before) {
  int32_t word = 0;
  const auto launch = [&](bool writes, bool overlaps, int waiting_thread) {
    dev::LaunchShape shape{{1, 1, 1}};
    shape.overlaps_previous = overlaps;
    return dev::launch<WordKernel>(shape, nullptr, {&word, writes, waiting_thread});
  };
  const auto races = [](const Status& status) {
    at(status.message());
    return status.message().find("by a launch before at hopper_host.cc") != std::string::npos;
  };
  CHECK(launch(true, false, 0).is_ok());
  CHECK(launch(false, true, 0).is_ok());  // known through the barrier
  CHECK(races(launch(false, true, 33)));  // reads a word written two launches ago
  CHECK(launch(true, false, 0).is_ok());
  CHECK(races(launch(true, true, 40)));    // writes a written word
  CHECK(launch(false, false, 0).is_ok());  // reads a word of a launch that it does not overlap
  CHECK(races(launch(true, true, 40)));    // writes a word that was read
}

// smem_pointer and check_async_access, the base of instructions that read shared memory by address.
struct AddressKernel : BlockOf<32> {
  struct Args {
    uint32_t address;  // the address of 16 bytes to look up
    bool fences;
    uint32_t* out;
  };
  LAMINA_DEVICE static void run(const Args& args) {
    const auto where = dev::emu::Where::current();
    uint32_t* const smem = reinterpret_cast<uint32_t*>(dev::dynamic_smem());
    dev::store_shared(smem + dev::lane(), 7u * static_cast<uint32_t>(dev::lane()));
    if (args.fences) dev::fence_proxy_async();
    dev::warp_sync();
    if (dev::lane() != 0) return;
    const std::byte* const at = dev::emu::smem_pointer(args.address, 16, "reader", where);
    dev::emu::check_async_access(at, 16, "reader", where);
    CHECK_EQ(dev::smem_address(at), args.address);
    std::memcpy(args.out, at, 4);
  }
};

TEST(emulator_checks_shared_memory_by_address) {
  uint32_t out = 0;
  const auto launch = [&](uint32_t address, bool fences) {
    return dev::launch<AddressKernel>({{1, 1, 1}, 128}, nullptr, {address, fences, &out});
  };
  CHECK(launch(dev::kSmemBase + 64, true).is_ok());
  CHECK_EQ(out, 7u * 16);
  for (uint32_t address : {0u, dev::kSmemBase - 16, dev::kSmemBase + 120, 0xfffffff0u}) {
    const Status status = launch(address, true);
    CHECK(!status.is_ok() && status.message().find("reader: 16 bytes from") != std::string::npos);
  }
  const Status status = launch(dev::kSmemBase + 64, false);
  CHECK(!status.is_ok() && status.message().find("reader: thread 16 wrote") != std::string::npos);
}

}  // namespace
}  // namespace lamina::test
