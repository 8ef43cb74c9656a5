// Tests of paged_kv: value type e4m3, and every op in memory whose guards show a stray byte.
#include <cmath>

#include "memory.h"
#include "ops/paged_kv/cpu/kernel.h"
#include "ops/paged_kv/paged_kv.h"
#include "threads.h"

namespace lamina::test {
namespace {

// The value of an e4m3 code by its definition.
double e4m3_value(int code) {
  const double sign = code >= 128 ? -1 : 1;
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  if (exponent == 0) return sign * std::ldexp(mantissa, -9);
  return sign * std::ldexp(8 + mantissa, exponent - 10);
}

TEST(e4m3_converts_by_definition) {
  for (int code = 0; code < 256; ++code) {
    at("code ", code);
    const float wide = to_f32(E4M3{static_cast<uint8_t>(code)});
    if ((code & 127) == 127) {
      CHECK(std::isnan(wide));
      CHECK_EQ(from_f32<E4M3>(wide).bits & 127, 127);
      continue;
    }
    CHECK_EQ(static_cast<double>(wide), e4m3_value(code));
    CHECK_EQ(from_f32<E4M3>(wide).bits, code);
    // The next magnitude, also past the largest one, whose code means NaN.
    const auto middle = static_cast<float>((e4m3_value(code) + e4m3_value(code + 1)) / 2);
    CHECK_EQ(from_f32<E4M3>(std::nextafter(middle, 0.0f)).bits, code);
    CHECK_EQ(from_f32<E4M3>(middle).bits, code + (code & 1));
    CHECK_EQ(from_f32<E4M3>(std::nextafter(middle, std::copysign(HUGE_VALF, middle))).bits,
             code + 1);
  }
  CHECK_EQ(from_f32<E4M3>(HUGE_VALF).bits, 127);
  CHECK_EQ(from_f32<E4M3>(-0x1p-149f).bits, 128);
}

TEST(parts_of_slots_are_even_also_for_slots_that_differ_by_pages) {
  for (int64_t step : {1, 16, 64, 4096})
    for (int64_t parts : {1, 2, 7, 64}) {
      std::vector<int> tokens(static_cast<size_t>(parts));
      for (int64_t i = 0; i < 100 * parts; ++i)
        ++tokens[static_cast<size_t>(paged_kv::part_of(5 + i * step, parts))];
      for (int count : tokens) CHECK(count > 50 && count < 200);
    }
}

constexpr int64_t kPages = 3, kPage = 4, kHeads = 2, kDim = 8, kRows = kPages * kPage * kHeads;

template <class T>
kv::Cache cache_of(T* data, kv::CacheDType dtype) {
  return {data, dtype, kPages, kPage, kHeads, kDim, kPage * kHeads * kDim, kHeads * kDim, kDim};
}

paged_kv::WrittenScales scales_of(float* data) { return {data, kPage * kHeads, kHeads, 1}; }

TEST(append_and_gather_stay_in_their_rows) {
  for_each_isa([](Isa isa) {
    at(isa_name(isa));
    for (const Parallel* parallel :
         {static_cast<const Parallel*>(new Serial), static_cast<const Parallel*>(new Threads(3))}) {
      const int64_t tokens = 5;
      Exact<float> k(tokens * kHeads * kDim), v(tokens * kHeads * kDim);
      for (int64_t i = 0; i < k.count(); ++i) k[i] = static_cast<float>(i % 19 - 9), v[i] = -k[i];
      Exact<int64_t> slots(tokens);
      const int64_t given[] = {11, 0, -1, 5, 0};
      std::copy(given, given + tokens, slots.data());
      Guarded<int8_t> k_rows(kRows * kDim), v_rows(kRows * kDim);
      Guarded<float> k_scales(kRows), v_scales(kRows);
      paged_kv::Append append;
      append.tokens = tokens;
      append.k = {k.data(), DType::kF32, kHeads, kDim, kHeads * kDim, kDim};
      append.v = {v.data(), DType::kF32, kHeads, kDim, kHeads * kDim, kDim};
      append.k_cache = cache_of(k_rows.data(), kv::CacheDType::kI8);
      append.v_cache = cache_of(v_rows.data(), kv::CacheDType::kI8);
      append.slot_mapping = slots.data();
      append.k_scale = scales_of(k_scales.data());
      append.v_scale = scales_of(v_scales.data());
      CHECK(paged_kv::append(append, *parallel).is_ok());
      for (int64_t row = 0; row < kRows; ++row) {
        const bool is_written = row / kHeads == 11 || row / kHeads == 0 || row / kHeads == 5;
        CHECK_EQ(!std::isnan(k_scales[row]), is_written);
        CHECK_EQ(!std::isnan(v_scales[row]), is_written);
      }
      CHECK(k_rows.guards_are_intact() && v_rows.guards_are_intact());
      CHECK(k_scales.guards_are_intact() && v_scales.guards_are_intact());

      Exact<int32_t> table(4), offsets(3);
      const int32_t blocks[] = {0, 1, 2, -7}, ends[] = {0, 6, 10};
      std::copy(blocks, blocks + 4, table.data());
      std::copy(ends, ends + 3, offsets.data());
      Guarded<float> k_out(10 * kHeads * kDim), v_out(10 * kHeads * kDim);
      paged_kv::Gather gather;
      gather.tokens = 10;
      gather.k_cache = append.k_cache, gather.v_cache = append.v_cache;
      gather.block_table = {table.data(), 2, 2, 2};
      gather.cu_seqlens_k = offsets.data();
      gather.k_scale = {k_scales.data(), kPage * kHeads, kHeads, 1};
      gather.v_scale = {v_scales.data(), kPage * kHeads, kHeads, 1};
      gather.k = k_out.data(), gather.v = v_out.data();
      CHECK(paged_kv::gather(gather, *parallel).is_ok());
      // Slot 5 has token 3, slot 0 the later of tokens 1 and 4, and slot 11 of page 2 is the last of the second request.
      const int64_t token_of[][2] = {{5, 3}, {0, 4}, {9, 0}};
      for (const auto& [out, token] : token_of)
        for (int64_t i = 0; i < kHeads * kDim; ++i) {
          const float want = k[token * kHeads * kDim + i];
          CHECK(std::fabs(k_out[out * kHeads * kDim + i] - want) <= 9 / 254.0f * 1.001f);
          CHECK_EQ(v_out[out * kHeads * kDim + i], -k_out[out * kHeads * kDim + i]);
        }
      CHECK(std::isnan(k_out[kHeads * kDim]));
      CHECK(k_out.guards_are_intact() && v_out.guards_are_intact());
      delete parallel;
    }
  });
}

TEST(pages_and_nodes_move_within_their_cache) {
  Guarded<uint16_t> k_rows(kRows * kDim), v_rows(kRows * kDim);
  for (int64_t i = 0; i < kRows * kDim; ++i)
    k_rows[i] = static_cast<uint16_t>(i), v_rows[i] = static_cast<uint16_t>(i + 1000);
  const kv::Cache k = cache_of(k_rows.data(), kv::CacheDType::kF16),
                  v = cache_of(v_rows.data(), kv::CacheDType::kF16);
  const auto row = [](int64_t slot) { return slot * kHeads * kDim; };
  Exact<int64_t> pairs(2);
  pairs[0] = 0, pairs[1] = 2;
  paged_kv::Copy copy{k, v, {}, {}, pairs.data(), 1, 2};
  CHECK(paged_kv::copy(copy, Backwards(2)).is_ok());
  for (int64_t i = 0; i < kPage * kHeads * kDim; ++i) {
    CHECK_EQ(k_rows[row(8) + i], i);
    CHECK_EQ(v_rows[row(8) + i], i + 1000);
  }
  pairs[1] = 3;
  CHECK(!paged_kv::copy(copy, Serial()).is_ok());

  Exact<int32_t> table(2), length(1), nodes(1), path(4);
  table[0] = 0, table[1] = 1, length[0] = 8, nodes[0] = 6;
  for (int i = 0; i < 4; ++i) path[i] = 4 - i;  // 4 3 2 1
  paged_kv::Compact compact{
      k, v, {}, {}, {table.data(), 2, 1, 2}, length.data(), nodes.data(), path.data(), 4, 4};
  CHECK(paged_kv::compact(compact, Serial()).is_ok());
  const int64_t from[] = {0, 1, 6, 5, 4, 3, 6, 7};
  for (int64_t slot = 0; slot < 8; ++slot)
    for (int64_t i = 0; i < kHeads * kDim; ++i)
      CHECK_EQ(k_rows[row(slot) + i], row(from[slot]) + i);
  CHECK(k_rows.guards_are_intact() && v_rows.guards_are_intact());
}

// pages * page and max_blocks * page are 2^80, which is 0 in 64 bits.
TEST(more_slots_than_int64_counts) {
  constexpr int64_t kMany = int64_t{1} << 40;
  Exact<float> rows(8);
  for (int64_t i = 0; i < 8; ++i) rows[i] = static_cast<float>(i);
  Guarded<float> k_rows(3 * 8), v_rows(3 * 8), k_out(3 * 8), v_out(3 * 8);
  Exact<int64_t> slots(1);
  paged_kv::Append append;
  append.tokens = 1;
  append.k = append.v = {rows.data(), DType::kF32, 1, 8, 8, 8};
  append.k_cache = {k_rows.data(), kv::CacheDType::kF32, kMany, kMany, 1, 8, 0, 8, 8};
  append.v_cache = {v_rows.data(), kv::CacheDType::kF32, kMany, kMany, 1, 8, 0, 8, 8};
  append.slot_mapping = slots.data();
  slots[0] = 2;
  CHECK(paged_kv::append(append, Serial()).is_ok());
  slots[0] = -2;
  CHECK(!paged_kv::append(append, Serial()).is_ok());

  Exact<int32_t> block(1), ends(2);
  block[0] = 0, ends[0] = 0, ends[1] = 3;
  paged_kv::Gather gather;
  gather.tokens = 3;
  gather.k_cache = append.k_cache, gather.v_cache = append.v_cache;
  gather.block_table = {block.data(), 1, 1, kMany};
  gather.cu_seqlens_k = ends.data();
  gather.k = k_out.data(), gather.v = v_out.data();
  CHECK(paged_kv::gather(gather, Serial()).is_ok());
  for (int64_t i = 0; i < 8; ++i) CHECK(k_out[2 * 8 + i] == rows[i] && v_out[2 * 8 + i] == rows[i]);
  CHECK(k_out.guards_are_intact() && v_out.guards_are_intact());
  CHECK(k_rows.guards_are_intact() && v_rows.guards_are_intact());
}

// Pages lie gigabytes apart.
TEST(pages_beyond_2_to_31_elements) {
  const int64_t stride = (int64_t{1} << 31) + 8;
  Sparse memory(2 * (stride + 64));
  if (!memory.is_mapped()) return;
  Exact<float> rows(8);
  for (int64_t i = 0; i < 8; ++i) rows[i] = static_cast<float>(i);
  Exact<int64_t> slots(1), pairs(2);
  slots[0] = 1, pairs[0] = 1, pairs[1] = 0;
  const kv::Cache cache{memory.as<char>(), kv::CacheDType::kF16, 2, 1, 1, 8, stride, 8, 8};
  Guarded<uint16_t> values(16);
  const kv::Cache v{values.data(), kv::CacheDType::kF16, 2, 1, 1, 8, 8, 8, 8};
  paged_kv::Append append;
  append.tokens = 1;
  append.k = append.v = {rows.data(), DType::kF32, 1, 8, 8, 8};
  append.k_cache = cache, append.v_cache = v;
  append.slot_mapping = slots.data();
  CHECK(paged_kv::append(append, Serial()).is_ok());
  const auto* const far = memory.as<F16>() + stride;
  for (int64_t i = 0; i < 8; ++i) CHECK_EQ(to_f32(far[i]), rows[i]);
  CHECK(paged_kv::copy({cache, v, {}, {}, pairs.data(), 1, 2}, Serial()).is_ok());
  for (int64_t i = 0; i < 8; ++i) CHECK_EQ(to_f32(memory.as<F16>()[i]), rows[i]);
  CHECK(values.guards_are_intact());
}

}  // namespace
}  // namespace lamina::test
