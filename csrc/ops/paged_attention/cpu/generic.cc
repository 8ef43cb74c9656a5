// paged_attention / generic: arrays of eight, for any CPU.
#include <bit>

#include "ops/paged_attention/cpu/body.h"

namespace lamina::paged_attention {
namespace {

struct Generic {
  static constexpr int kLanes = 8, kColumns = 16, kMaxRows = 4;
  static constexpr bool kPacksAhead = false;
  struct F {
    float at[kLanes];
  };
  struct I {
    int32_t at[kLanes];
  };

  template <class Result, class Body>
  static Result each(const Body& body) {
    Result result;
    for (int i = 0; i < kLanes; ++i) result.at[i] = body(i);
    return result;
  }
  template <class Body>
  static F floats(const Body& body) {
    return each<F>(body);
  }
  template <class Body>
  static I ints(const Body& body) {
    return each<I>([&](int i) { return static_cast<int32_t>(body(i)); });
  }

  static F load(const float* from) {
    return floats([&](int i) { return from[i]; });
  }
  static I load_int(const void* from) {
    I x;
    std::memcpy(x.at, from, sizeof x.at);
    return x;
  }
  static void store(float* to, const F& x) { std::memcpy(to, x.at, sizeof x.at); }
  static void store_int(int32_t* to, const I& x) { std::memcpy(to, x.at, sizeof x.at); }
  static F set(float x) {
    return floats([&](int) { return x; });
  }
  static I set_int(int32_t x) {
    return ints([&](int) { return x; });
  }
  static float first(const F& x) { return x.at[0]; }
  static F add(const F& a, const F& b) {
    return floats([&](int i) { return a.at[i] + b.at[i]; });
  }
  static I add(const I& a, const I& b) {
    return ints(
        [&](int i) { return static_cast<uint32_t>(a.at[i]) + static_cast<uint32_t>(b.at[i]); });
  }
  static F sub(const F& a, const F& b) {
    return floats([&](int i) { return a.at[i] - b.at[i]; });
  }
  static F mul(const F& a, const F& b) {
    return floats([&](int i) { return a.at[i] * b.at[i]; });
  }
  static F div(const F& a, const F& b) {
    return floats([&](int i) { return a.at[i] / b.at[i]; });
  }
  static F fma(const F& a, const F& b, const F& c) {
    return floats([&](int i) { return std::fma(a.at[i], b.at[i], c.at[i]); });
  }
  static F max(const F& a, const F& b) {
    return floats([&](int i) { return a.at[i] > b.at[i] ? a.at[i] : b.at[i]; });
  }
  static F if_less(const F& a, const F& b, const F& yes, const F& no) {
    return floats([&](int i) { return a.at[i] < b.at[i] ? yes.at[i] : no.at[i]; });
  }
  static F keep_lanes(const F& x, int64_t low, int64_t high, float other) {
    return floats([&](int i) { return i >= low && i < high ? x.at[i] : other; });
  }
  static F as_float(const I& x) { return std::bit_cast<F>(x); }
  static I as_int(const F& x) { return std::bit_cast<I>(x); }
  static F to_floats(const I& x) {
    return floats([&](int i) { return static_cast<float>(x.at[i]); });
  }
  template <int kBits>
  static I shift_left(const I& x) {
    return ints([&](int i) { return static_cast<uint32_t>(x.at[i]) << kBits; });
  }
  template <int kBits>
  static I shift_right(const I& x) {
    return ints([&](int i) { return static_cast<uint32_t>(x.at[i]) >> kBits; });
  }
  template <int kBits>
  static I shift_right_signed(const I& x) {
    return ints([&](int i) { return x.at[i] >> kBits; });
  }
  static I bit_and(const I& a, const I& b) {
    return ints([&](int i) { return a.at[i] & b.at[i]; });
  }
  static I bit_or(const I& a, const I& b) {
    return ints([&](int i) { return a.at[i] | b.at[i]; });
  }
  template <int kBytes>
  static I widen(const void* from) {
    const char* bytes = static_cast<const char*>(from);
    return ints([&](int i) {
      uint32_t x = 0;
      std::memcpy(&x, bytes + i * kBytes, kBytes);
      return x;
    });
  }
  static F from_f16(const I& x) {
    return floats([&](int i) { return to_f32(F16{static_cast<uint16_t>(x.at[i])}); });
  }
  static void transpose(I (&rows)[8]) {
    for (int i = 0; i < kLanes; ++i)
      for (int j = 0; j < i; ++j) std::swap(rows[i].at[j], rows[j].at[i]);
  }
  template <int kVector>
  static void store_transposed(int32_t* to, int64_t stride, I x) {
    store_int(to + kVector * stride, x);
  }
};

}  // namespace

extern constinit const CpuKernel paged_attention_generic = {"paged_attention_generic",
                                                            Isa::kGeneric, &compute<Generic>};

}  // namespace lamina::paged_attention
