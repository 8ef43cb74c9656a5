// Tests of the packers: they stay within their memory, every weight has one place, padding is zero.
#include "base/parallel.h"
#include "layout/int8_tile.h"
#include "memory.h"
#include "ops/gemm_int4/pack.h"
#include "ops/gemm_int8/gemm_int8.h"
#include "ops/gemm_int8/pack.h"
#include "threads.h"

namespace lamina::test {
namespace {

// The place of a weight by the formula in layout/int8_tile.h, written independently of that file.
int64_t place(int64_t n, int64_t k, int64_t tiles_k) {
  int64_t at = n / 16;
  at = at * tiles_k + k / 64;
  at = at * 16 + k % 64 / 4;
  at = at * 16 + n % 16;
  return at * 4 + k % 4;
}

TEST(pack_places_every_weight_and_zeroes_the_rest) {
  Random random(1);
  for (const auto& [n, k] :
       {std::pair<int64_t, int64_t>{1, 1}, {16, 64}, {17, 65}, {5, 130}, {33, 3}, {48, 128}}) {
    for (int64_t extra : {0, 1, 63}) {
      at(n, " x ", k, " + ", extra);
      const int64_t stride = k + extra;
      Exact<int8_t> w((n - 1) * stride + k);
      for (int64_t i = 0; i < w.count(); ++i) w[i] = random.int8();
      const int64_t bytes = *int8_tile::packed_bytes(n, k);
      Guarded<int8_t> data(bytes);
      Guarded<int32_t> sums(n);
      CHECK(gemm_int8::pack(w.data(), {0, n, k}, stride, data.data(), sums.data(), Backwards(3))
                .is_ok());
      std::vector<int8_t> want(static_cast<size_t>(bytes), 0);
      for (int64_t i = 0; i < n; ++i) {
        int64_t sum = 0;
        for (int64_t p = 0; p < k; ++p) {
          want[static_cast<size_t>(place(i, p, int8_tile::tiles_k(k)))] = w[i * stride + p];
          sum += w[i * stride + p];
        }
        CHECK_EQ(sums[i], sum);
      }
      CHECK(std::memcmp(data.data(), want.data(), want.size()) == 0);
      CHECK(data.guards_are_intact() && sums.guards_are_intact());

      Guarded<int8_t> back(n * k);
      CHECK(gemm_int8::unpack(data.data(), n, k, back.data(), Backwards(2)).is_ok());
      for (int64_t i = 0; i < n; ++i)
        for (int64_t p = 0; p < k; ++p) CHECK_EQ(back[i * k + p], w[i * stride + p]);
      CHECK(back.guards_are_intact());
    }
  }
}

TEST(pack_of_nothing_touches_nothing) {
  Guarded<int8_t> data(0);
  Guarded<int32_t> sums(20);
  CHECK(gemm_int8::pack(nullptr, {0, 0, 70}, 70, data.data(), sums.data(), Serial()).is_ok());
  CHECK_EQ(sums[0], -1);
  CHECK(gemm_int8::pack(nullptr, {0, 20, 0}, 0, data.data(), sums.data(), Serial()).is_ok());
  for (int64_t i = 0; i < 20; ++i) CHECK_EQ(sums[i], 0);
  CHECK(gemm_int8::unpack(data.data(), 20, 0, nullptr, Serial()).is_ok());
  CHECK(data.guards_are_intact() && sums.guards_are_intact());
}

TEST(pack_refuses_what_cannot_be) {
  CHECK(!gemm_int8::pack(nullptr, {0, 1, gemm_int8::kMaxK + 1}, 0, nullptr, nullptr, Serial())
             .is_ok());
  CHECK(!gemm_int8::pack(nullptr, {0, INT64_MAX, 64}, 64, nullptr, nullptr, Serial()).is_ok());
  CHECK(!gemm_int8::unpack(nullptr, -1, 64, nullptr, Serial()).is_ok());
}

TEST(int4_is_packed_within_its_memory_and_back) {
  Random random(3);
  for (const char* name : {"int4_tile", "int4_rows"})
    for (const auto& [n, k] :
         {std::pair<int64_t, int64_t>{1, 1}, {16, 64}, {17, 65}, {5, 130}, {48, 128}, {0, 70}}) {
      at(name, " ", n, " x ", k);
      int4::Layout layout = nullptr;
      CHECK(gemm_int4::layout_of("test", name, layout).is_ok());
      const int64_t stride = k + 3;
      Exact<uint8_t> q(n == 0 ? 0 : (n - 1) * stride + k);
      for (int64_t i = 0; i < q.count(); ++i) q[i] = static_cast<uint8_t>(random.next() % 16);
      Guarded<uint8_t> data(*int4::packed_bytes(n, k)), back(n * k);
      CHECK(gemm_int4::pack(q.data(), n, k, stride, layout, data.data(), Backwards(3)).is_ok());
      CHECK(gemm_int4::unpack(data.data(), n, k, layout, back.data(), Backwards(2)).is_ok());
      for (int64_t i = 0; i < n; ++i)
        for (int64_t p = 0; p < k; ++p) CHECK_EQ(back[i * k + p], q[i * stride + p]);
      CHECK(data.guards_are_intact() && back.guards_are_intact());
    }
  CHECK(!gemm_int4::pack(nullptr, INT64_MAX, 64, 64, int4::tile_place, nullptr, Serial()).is_ok());
  CHECK(!gemm_int4::unpack(nullptr, 1, -1, int4::rows_place, nullptr, Serial()).is_ok());
}

// 2^18 + 3 columns of 16384 weights are 4 GiB packed; only the last three columns are touched.
TEST(weights_beyond_2_to_31_bytes) {
  const int64_t k = 16384, stride = (int64_t{1} << 31) + 5;
  Sparse w(2 * stride + k);
  if (!w.is_mapped()) return;
  int8_t* const rows = w.as<int8_t>();
  Random random(2);
  for (int64_t i = 0; i < 3; ++i)
    for (int64_t p = 0; p < k; ++p) rows[i * stride + p] = random.int8();
  Guarded<int8_t> data(*int8_tile::packed_bytes(3, k));
  Guarded<int32_t> sums(3);
  CHECK(gemm_int8::pack(rows, {0, 3, k}, stride, data.data(), sums.data(), Serial()).is_ok());
  for (int64_t i = 0; i < 3; ++i)
    for (int64_t p = 0; p < k; p += 97) CHECK_EQ(data[place(i, p, k / 64)], rows[i * stride + p]);
}

}  // namespace
}  // namespace lamina::test
