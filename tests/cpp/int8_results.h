// The outputs of ops that end with the int8 quantiser.
#pragma once

#include "memory.h"
#include "quant/int8_rows.h"

namespace lamina::test {

// In memory whose guards show a stray byte.
struct Int8Results {
  bool symmetric;
  Guarded<int8_t> q, zero_point;
  Guarded<float> scale;

  Int8Results(int64_t m, int64_t n, bool symmetric)
      : symmetric(symmetric), q(m * n), zero_point(symmetric ? 0 : m), scale(m) {}

  Int8Rows rows() { return {symmetric, q.data(), scale.data(), zero_point.data()}; }
  bool guards_are_intact() const {
    return q.guards_are_intact() && zero_point.guards_are_intact() && scale.guards_are_intact();
  }
};

// The same bits; every NaN is alike.
inline void check_same(Int8Results& got, Int8Results& want, int64_t m, int64_t n) {
  for (int64_t i = 0; i < m * n; ++i) CHECK_EQ(got.q[i], want.q[i]);
  for (int64_t i = 0; i < m; ++i) {
    CHECK(got.scale[i] == want.scale[i] ||
          (got.scale[i] != got.scale[i] && want.scale[i] != want.scale[i]));
    if (!got.symmetric) CHECK_EQ(got.zero_point[i], want.zero_point[i]);
  }
  CHECK(got.guards_are_intact() && want.guards_are_intact());
}

}  // namespace lamina::test
