// gemm_int4 / pack:   codes [n,k], a byte each  <->  layout/int4.h
//
// Algorithm  when packing, a thread owns one word of a tile, eight codes; when unpacking, one code
// Layouts    q [n,k] row-major, any row stride; data [n/16][k/64][512 bytes], of either layout
// Data path  gmem -> regs -> gmem, no shared memory: the cache lines that the lanes of a warp share stay in L1
// Budget     regs <= 32; 0 spills
// Requires   no alignment
// Source     own. Reference: tests/reference/layout.py
#include <algorithm>

#include "base/int_math.h"
#include "device/device.h"
#include "ops/gemm_int4/cuda/pack.h"

namespace lamina::gemm_int4 {
namespace {

constexpr int kThreads = 256, kBlocks = 1 << 16;
constexpr int kTileWords = int4::kTileBytes / 4;

// Calls body(i) for all i < count, each on one thread.
LAMINA_DEVICE void for_each(int64_t count, const auto& body) {
  const int64_t stride = static_cast<int64_t>(dev::grid_size().x) * kThreads;
  const int64_t first = static_cast<int64_t>(dev::block_index().x) * kThreads + dev::thread_index();
  for (int64_t i = first; i < count; i += stride) body(i);
}

template <class Kernel>
Status launch(int64_t count, void* stream, const typename Kernel::Args& args) {
  if (count == 0) return Status::ok();
  const int64_t blocks = std::min<int64_t>(ceil_div(count, kThreads), kBlocks);
  return dev::launch<Kernel>({{static_cast<int>(blocks), 1, 1}, 0}, stream, args);
}

template <int4::Inverse kAt>
struct Pack {
  static constexpr const char* kName = "pack_int4";
  static constexpr int kThreads = gemm_int4::kThreads, kMinBlocks = 1;

  struct Args {
    const uint8_t* q;
    int64_t n, k, stride, tiles_k, words;
    uint32_t* data;
    Perm perm;
  };

  // The code of feature p of a row; 0 past the edges, where perm has no feature, and where an index in perm is out of
  // range.
  LAMINA_DEVICE static uint32_t code(const Args& args, int64_t row, int64_t p) {
    if (row >= args.n || p >= args.k) return 0;
    if (args.perm.is_given()) {
      p = dev::load_global(args.perm.data + p);
      if (p < 0 || p >= args.perm.features) return 0;
    }
    return dev::load_global(args.q + row * args.stride + p) & 0xf;
  }

  LAMINA_DEVICE static void run(const Args& args) {
    for_each(args.words, [&](int64_t word) {
      const int64_t tile = word / kTileWords;
      const int64_t row = tile / args.tiles_k * int4::kTileN,
                    p = tile % args.tiles_k * int4::kTileK;
      uint32_t codes = 0;
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        const int4::At at = kAt(static_cast<int>(word % kTileWords) * 4 + c / 2, c % 2 * 4);
        codes |= code(args, row + at.n, p + at.k) << (4 * c);
      }
      dev::store_global(args.data + word, codes);
    });
  }
};

template <int4::Layout kPlace>
struct Unpack {
  static constexpr const char* kName = "unpack_int4";
  static constexpr int kThreads = gemm_int4::kThreads, kMinBlocks = 1;

  struct Args {
    const uint8_t* data;
    int64_t k, tiles_k, codes;
    uint8_t* q;
  };

  LAMINA_DEVICE static void run(const Args& args) {
    for_each(args.codes, [&](int64_t i) {
      const int64_t row = i / args.k, p = i % args.k;
      const int4::Place at =
          kPlace(static_cast<int>(row % int4::kTileN), static_cast<int>(p % int4::kTileK));
      const int64_t tile = row / int4::kTileN * args.tiles_k + p / int4::kTileK;
      const uint32_t two = dev::load_global(args.data + tile * int4::kTileBytes + at.byte);
      dev::store_global(args.q + i, static_cast<uint8_t>(two >> at.shift & 0xf));
    });
  }
};

}  // namespace

Status launch_pack(const uint8_t* q, int64_t n, int64_t k, int64_t stride, int4::Layout layout,
                   uint8_t* data, const Perm& perm, void* stream) {
  const int64_t tiles_k = int4::tiles_k(k), words = int4::tiles_n(n) * tiles_k * kTileWords;
  const auto start = [&]<class Kernel>(Kernel) {
    return launch<Kernel>(
        words, stream, {q, n, k, stride, tiles_k, words, reinterpret_cast<uint32_t*>(data), perm});
  };
  return layout == int4::tile_place ? start(Pack<int4::tile_at>()) : start(Pack<int4::rows_at>());
}

Status launch_unpack(const uint8_t* data, int64_t n, int64_t k, int4::Layout layout, uint8_t* q,
                     void* stream) {
  const auto start = [&]<class Kernel>(Kernel) {
    return launch<Kernel>(n * k, stream, {data, k, int4::tiles_k(k), n * k, q});
  };
  return layout == int4::tile_place ? start(Unpack<int4::tile_place>())
                                    : start(Unpack<int4::rows_place>());
}

}  // namespace lamina::gemm_int4
