// Products and conversions of the two 16-bit types.
#pragma once

#include "base/numeric.h"
#include "device/device.h"

namespace lamina::paged_attention {

template <class T>
struct Half;

template <>
struct Half<F16> {
  static constexpr uint32_t kOnes = 0x3c003c00u;
  // Weights are up to 2^kWeightExponent, so that those down to 2^-28 of the largest keep all bits.
  static constexpr float kWeightExponent = 14.0f;
  LAMINA_DEVICE static uint32_t pack(float low, float high) { return dev::f32_to_f16x2(low, high); }
  LAMINA_DEVICE static void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                     uint32_t b1) {
    dev::mma_m16n8k16_f16(d, a, {b0, b1});
  }
};

template <>
struct Half<BF16> {
  static constexpr uint32_t kOnes = 0x3f803f80u;
  static constexpr float kWeightExponent = 0.0f;
  LAMINA_DEVICE static uint32_t pack(float low, float high) {
    return dev::f32_to_bf16x2(low, high);
  }
  LAMINA_DEVICE static void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                     uint32_t b1) {
    dev::mma_m16n8k16_bf16(d, a, {b0, b1});
  }
};

}  // namespace lamina::paged_attention
