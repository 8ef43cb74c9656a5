// PTX ISA, "ld", "st", "cp.async", "cp.async.wait_group".
#pragma once

#include "buffer.h"

namespace lamina::test {

// Copies global memory to global memory, directly and, in another order, through shared memory.
template <class V, dev::Cache kCache>
struct LoadStoreKernel : BlockOf<64> {
  struct Args {
    const V* in;
    V* out;
    V* reversed;
  };
  LAMINA_DEVICE static void run(const Args& args) {
    V* const smem = reinterpret_cast<V*>(dev::dynamic_smem());
    const int i = dev::thread_index();
    const V value = dev::load_global<V, kCache>(args.in + i);
    dev::store_global(args.out + i, value);
    dev::store_shared(smem + i, value);
    dev::block_sync();
    dev::store_global(args.reversed + i, dev::load_shared(smem + 63 - i));
  }
};

template <class V, dev::Cache kCache = dev::Cache::kDefault>
void check_load_store() {
  constexpr size_t kBytes = sizeof(V);
  at("words of ", kBytes, " bytes");
  const std::vector<uint8_t> in = distinct_bytes(65 * kBytes);
  DeviceBuffer<uint8_t> gmem_in(in), gmem_out(65 * kBytes), gmem_reversed(65 * kBytes);
  // Data start at the second element, so that bytes and halves lie at odd multiples of their size.
  const auto second = [](DeviceBuffer<uint8_t>& buffer) {
    return reinterpret_cast<V*>(buffer.data() + kBytes);
  };
  run<LoadStoreKernel<V, kCache>>({second(gmem_in), second(gmem_out), second(gmem_reversed)},
                                  {{1, 1, 1}, 64 * static_cast<int>(kBytes)});
  const std::vector<uint8_t> out = gmem_out.read(), reversed = gmem_reversed.read();
  for (size_t i = 1; i < 65; ++i)
    for (size_t byte = 0; byte < kBytes; ++byte) {
      CHECK_EQ(out[i * kBytes + byte], in[i * kBytes + byte]);
      CHECK_EQ(reversed[i * kBytes + byte], in[(65 - i) * kBytes + byte]);
    }
}

TEST(vector_load_store) {
  each_schedule([] {
    check_load_store<uint8_t>();
    check_load_store<int8_t, dev::Cache::kStream>();
    check_load_store<uint16_t>();
    check_load_store<int16_t, dev::Cache::kStream>();
    check_load_store<int32_t>();
    check_load_store<uint32_t, dev::Cache::kStream>();
    check_load_store<uint64_t>();
    check_load_store<dev::U32x2, dev::Cache::kStream>();
    check_load_store<dev::U32x4>();
    check_load_store<dev::U32x4, dev::Cache::kStream>();
  });
}

// Element 0 of a vector is at the lowest address, and so is the lowest byte of a word.
struct ByteOrderKernel : OneWarp {
  struct Args {
    uint8_t* out;    // [16]
    uint32_t* word;  // [1]
  };
  LAMINA_DEVICE static void run(const Args& args) {
    uint8_t* const smem = reinterpret_cast<uint8_t*>(dev::dynamic_smem());
    if (dev::lane() == 0)
      dev::store_shared(reinterpret_cast<dev::U32x4*>(smem),
                        dev::U32x4{{0x03020100u, 0x17161514u, 0x2b2a2928u, 0x3f3e3d3cu}});
    dev::warp_sync();
    if (dev::lane() < 16)
      dev::store_global(args.out + dev::lane(), dev::load_shared(smem + dev::lane()));
    if (dev::lane() == 31)
      dev::store_global(
          args.word, static_cast<uint32_t>(dev::load_shared(reinterpret_cast<uint16_t*>(smem) + 5))
                             << 16 |
                         dev::load_shared(reinterpret_cast<uint16_t*>(smem) + 2));
  }
};

TEST(vector_byte_order) {
  DeviceBuffer<uint8_t> gmem_out(16);
  DeviceBuffer<uint32_t> gmem_word(1);
  run<ByteOrderKernel>({gmem_out.data(), gmem_word.data()}, {{1, 1, 1}, 16});
  const std::vector<uint8_t> out = gmem_out.read();
  for (size_t i = 0; i < 16; ++i) CHECK_EQ(out[i], i % 4 + i / 4 * 20);
  CHECK_EQ(gmem_word.read()[0], 0x2b2a1514u);
}

// Lane l has 64 bytes of shared memory, filled with 0xee. It copies l % (kBytes + 1) bytes to byte 16 and
// all kBytes to byte 32.
template <int kBytes>
struct CpAsyncKernel : OneWarp {
  struct Args {
    const uint8_t* in;  // [lane][32]
    dev::U32x4* out;    // [lane][4]
  };
  LAMINA_DEVICE static void run(const Args& args) {
    const int lane = dev::lane();
    std::byte* const smem = dev::dynamic_smem();
    dev::U32x4* const words = reinterpret_cast<dev::U32x4*>(smem);
    for (int i = 0; i < 4; ++i)
      dev::store_shared(words + lane * 4 + i,
                        dev::U32x4{{0xeeeeeeeeu, 0xeeeeeeeeu, 0xeeeeeeeeu, 0xeeeeeeeeu}});
    dev::block_sync();
    dev::cp_async<kBytes>(smem + lane * 64 + 16, args.in + lane * 32, lane % (kBytes + 1));
    dev::cp_async<kBytes>(smem + lane * 64 + 32, args.in + lane * 32 + 16);
    dev::cp_async_commit();
    dev::cp_async_wait<0>();
    dev::block_sync();
    for (int i = 0; i < 4; ++i) {
      const int word = (31 - lane) * 4 + i;  // another lane's
      dev::store_global(args.out + word, dev::load_shared(words + word));
    }
  }
};

template <int kBytes>
void check_cp_async() {
  const std::vector<uint8_t> in = distinct_bytes(32 * 32);
  DeviceBuffer<uint8_t> gmem_in(in), gmem_out(32 * 64);
  run<CpAsyncKernel<kBytes>>({gmem_in.data(), reinterpret_cast<dev::U32x4*>(gmem_out.data())},
                             {{1, 1, 1}, 32 * 64});
  const std::vector<uint8_t> out = gmem_out.read();
  for (size_t lane = 0; lane < 32; ++lane)
    for (size_t byte = 0; byte < 64; ++byte) {
      const size_t valid = lane % (kBytes + 1);
      unsigned want = 0xee;
      if (byte >= 16 && byte < 16 + kBytes)
        want = byte - 16 < valid ? in[lane * 32 + byte - 16] : 0;
      if (byte >= 32 && byte < 32 + kBytes) want = in[lane * 32 + 16 + byte - 32];
      at("cp_async of ", kBytes, " bytes, valid ", valid, ", byte ", byte);
      CHECK_EQ(out[lane * 64 + byte], want);
    }
}

TEST(vector_cp_async) {
  each_schedule([] {
    check_cp_async<4>();
    check_cp_async<8>();
    check_cp_async<16>();
  });
}

// Groups of one, two, no and one copies. A thread sees its own copies after the wait, without a barrier.
struct CpAsyncGroupsKernel : OneWarp {
  struct Args {
    const uint32_t* in;  // [4][lane]
    uint32_t* out;       // [6][lane]
  };
  LAMINA_DEVICE static void run(const Args& args) {
    const int lane = dev::lane();
    uint32_t* const smem = reinterpret_cast<uint32_t*>(dev::dynamic_smem());
    const auto copy = [&](int i) {
      dev::cp_async<4>(smem + i * 32 + lane, args.in + i * 32 + lane);
    };
    const auto show = [&](int to, int i) {
      dev::store_global(args.out + to * 32 + lane, dev::load_shared(smem + i * 32 + lane));
    };
    copy(0);
    dev::cp_async_commit();
    copy(1);
    copy(2);
    dev::cp_async_commit();
    dev::cp_async_commit();
    copy(3);
    dev::cp_async_commit();
    dev::cp_async_wait<3>();
    show(0, 0);
    dev::cp_async_wait<2>();
    show(1, 1);
    show(2, 2);
    dev::cp_async_wait<1>();  // the empty group
    show(3, 0);
    dev::cp_async_wait<0>();
    show(4, 3);
    dev::cp_async_wait<0>();  // nothing is left
    show(5, 2);
  }
};

TEST(vector_cp_async_groups) {
  each_schedule([] {
    std::vector<uint32_t> in(4 * 32);
    for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<uint32_t>(i * 2654435761u);
    DeviceBuffer<uint32_t> gmem_in(in), gmem_out(6 * 32);
    run<CpAsyncGroupsKernel>({gmem_in.data(), gmem_out.data()}, {{1, 1, 1}, 512});
    const std::vector<uint32_t> out = gmem_out.read();
    const size_t copies[6] = {0, 1, 2, 0, 3, 2};
    for (size_t to = 0; to < 6; ++to)
      for (size_t lane = 0; lane < 32; ++lane) {
        at("output ", to, " lane ", lane);
        CHECK_EQ(out[to * 32 + lane], in[copies[to] * 32 + lane]);
      }
  });
}

}  // namespace lamina::test
