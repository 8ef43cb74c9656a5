// Float operands of the epilogue in memory of exactly their size, of any dtype.
#pragma once

#include <cstring>

#include "base/numeric.h"
#include "gemm/epilogue.h"
#include "memory.h"

namespace lamina::test {

template <class T>
void put_as(uint8_t* to, float value) {
  const T rounded = from_f32<T>(value);
  std::memcpy(to, &rounded, sizeof rounded);
}

inline void put(DType dtype, uint8_t* to, float value) {
  if (dtype == DType::kF32) return put_as<float>(to, value);
  if (dtype == DType::kF16) return put_as<F16>(to, value);
  put_as<BF16>(to, value);
}

// [rows, columns] with `pad` elements between rows. Values are quarters from -8 to 7.75, exact in every dtype.
class FloatRows {
 public:
  FloatRows(DType dtype, int64_t rows, int64_t columns, int64_t pad, Random& random)
      : dtype_(dtype),
        stride_(columns + pad),
        bytes_(rows == 0 ? 0 : ((rows - 1) * stride_ + columns) * size_bytes(dtype)) {
    for (int64_t at = 0; at < bytes_.count(); at += size_bytes(dtype))
      put(dtype, bytes_.data() + at, static_cast<float>(random.int8() / 4) / 4.0f);
  }

  float at(int64_t row, int64_t column) {
    const uint8_t* const from = bytes_.data() + (row * stride_ + column) * size_bytes(dtype_);
    float wide;
    uint16_t half;
    if (dtype_ == DType::kF32) return std::memcpy(&wide, from, sizeof wide), wide;
    std::memcpy(&half, from, sizeof half);
    return dtype_ == DType::kF16 ? to_f32(F16{half}) : to_f32(BF16{half});
  }

  const void* data() { return bytes_.data(); }
  DType dtype() const { return dtype_; }
  gemm::Operand operand() { return {bytes_.data(), stride_, dtype_}; }

 private:
  DType dtype_;
  int64_t stride_;
  Exact<uint8_t> bytes_;
};

// All operands of the epilogue of [m, n]: bias, gate and residual. Dtypes and strides change with m, n and `seed`.
struct Followed {
  FloatRows bias, gate, residual;

  Followed(int64_t m, int64_t n, int64_t seed, Random& random)
      : bias(dtype_of(seed), 1, n, 0, random),
        gate(dtype_of(seed + 1), m, n, (m + n) % 3, random),
        residual(dtype_of(seed + 2), m, n, (m + seed) % 2 * (8 - n % 8), random) {}

  void give(gemm::Epilogue& epilogue) {
    epilogue.bias = bias.data();
    epilogue.bias_dtype = bias.dtype();
    epilogue.gate = gate.operand();
    epilogue.residual = residual.operand();
  }

  float after(float scaled, int64_t i, int64_t j) {
    return (scaled + bias.at(0, j)) * gate.at(i, j) + residual.at(i, j);
  }

 private:
  static DType dtype_of(int64_t i) {
    return i % 3 == 0 ? DType::kF32 : i % 3 == 1 ? DType::kF16 : DType::kBF16;
  }
};

}  // namespace lamina::test
