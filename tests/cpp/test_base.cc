// Tests of csrc/base: checked integer maths, value types, CPU features, work stealing.
#include <atomic>
#include <cfloat>
#include <cmath>
#include <limits>
#include <vector>

#include "base/int_math.h"
#include "base/numeric.h"
#include "base/work_stealing.h"
#include "check.h"
#include "threads.h"

namespace lamina::test {
namespace {

TEST(ceil_div_and_round_up) {
  for (int64_t value = 0; value < 200; ++value)
    for (int64_t divisor = 1; divisor < 70; ++divisor) {
      int64_t want = 0;
      while (want * divisor < value) ++want;
      CHECK_EQ(ceil_div(value, divisor), want);
      CHECK_EQ(round_up(value, divisor), want * divisor);
    }
  CHECK_EQ(ceil_div(INT64_MAX, 16), INT64_MAX / 16 + 1);
}

TEST(checked_product_stops_at_2_to_63) {
  CHECK_EQ(checked_product(3, 4).value_or(-1), 12);
  CHECK_EQ(checked_product(0, INT64_MAX).value_or(-1), 0);
  CHECK_EQ(checked_product(INT64_MAX, 0).value_or(-1), 0);
  CHECK_EQ(checked_product(INT64_MAX, 1).value_or(-1), INT64_MAX);
  CHECK(!checked_product(INT64_MAX, 2));
  CHECK(!checked_product(int64_t{1} << 32, int64_t{1} << 31));
  CHECK_EQ(checked_product((int64_t{1} << 32) - 1, int64_t{1} << 31).value_or(-1),
           ((int64_t{1} << 32) - 1) << 31);
  CHECK(!checked_product(int64_t{1} << 21, int64_t{1} << 21, int64_t{1} << 21));
  CHECK_EQ(checked_product(int64_t{1} << 21, int64_t{1} << 21, int64_t{1} << 20).value_or(-1),
           int64_t{1} << 62);
  CHECK(!checked_product(int64_t{1} << 40, int64_t{1} << 40,
                         0));  // the order of factors is the order of checks
}

// The value of an f16 or bf16 bit pattern by its definition.
double value_of(uint32_t bits, int exponent_bits, int mantissa_bits) {
  const double sign = bits >> 15 ? -1.0 : 1.0;
  const int exponent = static_cast<int>(bits >> mantissa_bits & ((1u << exponent_bits) - 1));
  const double mantissa = bits & ((1u << mantissa_bits) - 1);
  const int bias = (1 << (exponent_bits - 1)) - 1;
  if (exponent == (1 << exponent_bits) - 1)
    return mantissa == 0 ? sign * std::numeric_limits<double>::infinity()
                         : std::numeric_limits<double>::quiet_NaN();
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign * std::ldexp(1 + std::ldexp(mantissa, -mantissa_bits), exponent - bias);
}

template <class T>
void check_conversions(int exponent_bits, int mantissa_bits) {
  const uint32_t infinity = ((1u << exponent_bits) - 1) << mantissa_bits;
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    at("bits ", bits);
    const float wide = to_f32(T{static_cast<uint16_t>(bits)});
    const double want = value_of(bits, exponent_bits, mantissa_bits);
    if (std::isnan(want)) {
      CHECK(std::isnan(wide));
      CHECK(std::isnan(to_f32(from_f32<T>(wide))));
      continue;
    }
    CHECK_EQ(static_cast<double>(wide), want);
    CHECK_EQ(from_f32<T>(wide).bits, bits);
    if ((bits & 0x7fff) >= infinity) continue;
    // Rounding between a value and the next magnitude: numbers below the middle go down, the middle goes to even,
    // numbers above it go up. The next magnitude after the largest finite value is 2^(largest exponent + 1).
    const double step =
        (bits & 0x7fff) + 1 == infinity
            ? std::fabs(want) - std::fabs(value_of(bits - 1, exponent_bits, mantissa_bits))
            : std::fabs(value_of(bits + 1, exponent_bits, mantissa_bits)) - std::fabs(want);
    const float middle =
        static_cast<float>(std::copysign(std::fabs(want) + step / 2, bits >> 15 ? -1.0 : 1.0));
    CHECK_EQ(from_f32<T>(std::nextafter(middle, 0.0f)).bits, bits);
    CHECK_EQ(from_f32<T>(middle).bits, bits + (bits & 1));
    CHECK_EQ(from_f32<T>(std::nextafter(middle, std::copysign(HUGE_VALF, middle))).bits, bits + 1);
  }
}

TEST(f16_converts_by_definition) { check_conversions<F16>(5, 10); }
TEST(bf16_converts_by_definition) { check_conversions<BF16>(8, 7); }

TEST(far_values_overflow_and_underflow) {
  CHECK_EQ(from_f32<F16>(FLT_MAX).bits, 0x7c00);
  CHECK_EQ(from_f32<F16>(-1e30f).bits, 0xfc00);
  CHECK_EQ(from_f32<F16>(FLT_MIN).bits, 0);
  CHECK_EQ(from_f32<F16>(-0x1p-149f).bits, 0x8000);
  CHECK_EQ(from_f32<BF16>(FLT_MAX).bits, 0x7f80);
  CHECK_EQ(from_f32<BF16>(-0x1p-149f).bits, 0x8000);
}

TEST(every_task_runs_once_whoever_takes_it) {
  for (int64_t count : {0, 1, 2, 7, 64, 1000})
    for (int64_t workers : {1, 2, 3, 8, 70}) {
      at(count, " tasks, ", workers, " workers");
      const auto counts = [&](const Parallel& parallel) {
        WorkStealing tasks(count, workers);
        std::vector<std::atomic<int>> runs(static_cast<size_t>(count));
        parallel.for_range(workers, 1, [&](int64_t begin, int64_t end) {
          for (int64_t worker = begin; worker < end; ++worker)
            tasks.run(worker, [&](int64_t task) { ++runs[static_cast<size_t>(task)]; });
        });
        for (const std::atomic<int>& run : runs) CHECK_EQ(run.load(), 1);
      };
      counts(Serial());
      counts(Backwards(3));
      counts(Threads(3));
    }
}

TEST(a_worker_takes_its_own_tasks_in_order_then_others_from_the_back) {
  WorkStealing tasks(7, 2);
  std::vector<int64_t> order;
  tasks.run(1, [&](int64_t task) { order.push_back(task); });
  CHECK(order == std::vector<int64_t>({4, 5, 6, 3, 2, 1, 0}));
}

TEST(isas_have_names_and_can_be_forced) {
  for (int i = 0; i < kIsaCount; ++i) {
    const Isa isa = static_cast<Isa>(i);
    CHECK(isa_from_name(isa_name(isa)) == isa);
  }
  CHECK(!isa_from_name("avx9000"));
  CHECK(!isa_from_name(""));
  CHECK(!available_isas().empty());
  CHECK(available_isas().front() == Isa::kGeneric);
  for_each_isa([](Isa isa) {
    Isa active{};
    CHECK(active_isa(active).is_ok());
    CHECK(active == isa);
  });
  Isa active{};
  CHECK(active_isa(active).is_ok());
  CHECK(active == available_isas().back());
  const Status refused = set_isa("avx9000");
  CHECK(!refused.is_ok());
  CHECK(refused.message().find("avx9000") != std::string::npos);
  CHECK(active_isa(active).is_ok() && active == available_isas().back());
}

}  // namespace
}  // namespace lamina::test
