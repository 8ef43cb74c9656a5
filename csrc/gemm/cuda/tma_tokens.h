// The tensor map of the rows of a, one for each token.
#pragma once

#include "base/int_math.h"
#include "device/device.h"
#include "layout/swizzle.h"

namespace lamina::gemm {

// Sizes in elements of `bytes` bytes. TMA fills zeros past the edges.
struct Tokens {
  const void* a;
  int bytes;
  int64_t columns, rows, stride;
};

inline Status make_token_map(const Tokens& tokens, int box_columns, int box_rows, Swizzle swizzle,
                             dev::TensorMap& map) {
  // The stride of a single row is free, but TMA requires a valid one.
  const int64_t stride =
      tokens.rows > 1 ? tokens.stride * tokens.bytes : round_up(tokens.columns * tokens.bytes, 16);
  return dev::make_tensor_map({tokens.a,
                               2,
                               tokens.bytes,
                               {tokens.columns, tokens.rows},
                               {0, stride},
                               {box_columns, box_rows},
                               swizzle},
                              map);
}

}  // namespace lamina::gemm
