// paged_kv on a CPU: plain loops that the compiler vectorises with each ISA's flags.
//
// A row that changes goes through f32 in a buffer of kMaxHeadDim elements, which stays in L1.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "base/with_type.h"
#include "ops/paged_kv/cpu/kernel.h"
#include "ops/paged_kv/encoding.h"

namespace lamina::paged_kv {
namespace {

template <class T>
const T* element(const void* data, int64_t offset) {
  return static_cast<const T*>(data) + offset;
}

using lamina::with_type;

template <class Body>
void with_type(kv::CacheDType dtype, const Body& body) {
  if (dtype == kv::CacheDType::kF32) body(float{});
  if (dtype == kv::CacheDType::kF16) body(F16{});
  if (dtype == kv::CacheDType::kBF16) body(BF16{});
  if (dtype == kv::CacheDType::kE4M3) body(E4M3{});
  if (dtype == kv::CacheDType::kI8) body(int8_t{});
}

void load(const void* data, DType dtype, int64_t offset, int64_t count, float* row) {
  with_type(dtype, [&]<class In>(In) {
    const In* const x = element<In>(data, offset);
    for (int64_t j = 0; j < count; ++j) row[j] = to_f32(x[j]);
  });
}

template <class Out>
void store(const float* row, int64_t count, Out* out) {
  for (int64_t j = 0; j < count; ++j) out[j] = from_f32<Out>(row[j]);
}

// The cosines and sines of one token.
struct Angles {
  alignas(64) float cos[kv::kMaxHeadDim / 2];
  alignas(64) float sin[kv::kMaxHeadDim / 2];
};

void load_angles(const Rope& rope, int64_t token, Angles& angles) {
  const int64_t position = rope.position(token);
  load(rope.cos, rope.dtype, position * rope.cos_stride, rope.rotary_dim / 2, angles.cos);
  load(rope.sin, rope.dtype, position * rope.sin_stride, rope.rotary_dim / 2, angles.sin);
}

// Rotates the pairs x[i * step] and x[i * step + apart].
template <int64_t kStep>
void rotate_pairs(const Angles& angles, int64_t pairs, int64_t apart, float* x) {
  for (int64_t i = 0; i < pairs; ++i) {
    const float x1 = x[i * kStep], x2 = x[i * kStep + apart];
    x[i * kStep] = x1 * angles.cos[i] - x2 * angles.sin[i];
    x[i * kStep + apart] = x2 * angles.cos[i] + x1 * angles.sin[i];
  }
}

void rotate(const Rope& rope, const Angles& angles, float* x) {
  const int64_t pairs = rope.rotary_dim / 2;
  if (rope.interleaved) {
    rotate_pairs<2>(angles, pairs, 1, x);
  } else {
    rotate_pairs<1>(angles, pairs, pairs, x);
  }
}

float largest_magnitude(const float* row, int64_t count) {
  int32_t largest = 0;
  for (int64_t j = 0; j < count; ++j) {
    const int32_t magnitude = to_bits(row[j]) & 0x7fffffff;
    largest = magnitude > largest ? magnitude : largest;
  }
  return from_bits<float>(largest);
}

template <class Code>
void encode(const float* row, int64_t count, float* scale, bool is_per_token, Code* out) {
  float used = scale == nullptr ? 1.0f : *scale;
  if (is_per_token) {
    *scale = used = scale_of_row<Code>(largest_magnitude(row, count));
    if (used != used) {
      std::memset(out, 0, static_cast<size_t>(count));
      return;
    }
  }
  const Encoder<Code> encoder(used);
  for (int64_t j = 0; j < count; ++j) out[j] = encoder(row[j]);
}

// Stores the rows of one token. Without angles and with equal dtypes they are copied.
void store_token(const Rows<const void*>& from, int64_t token, const Rope* rope,
                 const Angles& angles, const kv::Cache& cache, const WrittenScales& scales,
                 int64_t slot) {
  const int64_t page = slot / cache.page, row_slot = slot % cache.page;
  with_type(cache.dtype, [&]<class Out>(Out) {
    with_type(from.dtype, [&]<class In>(In) {
      for (int64_t h = 0; h < cache.heads; ++h) {
        const In* const x = element<In>(from.data, from.offset(token, h));
        Out* const out = static_cast<Out*>(cache.data) + cache.offset(page, row_slot, h);
        if constexpr (std::is_same_v<In, Out>) {
          if (rope == nullptr) {
            std::memcpy(out, x, static_cast<size_t>(cache.head_dim) * sizeof(In));
            continue;
          }
        }
        alignas(64) float row[kv::kMaxHeadDim];
        for (int64_t j = 0; j < cache.head_dim; ++j) row[j] = to_f32(x[j]);
        if (rope != nullptr) rotate(*rope, angles, row);
        if constexpr (sizeof(Out) == 1) {
          encode(row, cache.head_dim, scales.is_given() ? &scales.at(page, row_slot, h) : nullptr,
                 scales.is_per_token(), out);
        } else {
          store(row, cache.head_dim, out);
        }
      }
    });
  });
}

void append_part(const Append& p, int64_t part, int64_t parts) {
  const Rope* const rope = p.rope.cos == nullptr ? nullptr : &p.rope;
  Angles angles;
  for (int64_t t = 0; t < p.tokens; ++t) {
    const int64_t slot = p.slot_mapping[t];
    if (slot < 0 || part_of(slot, parts) != part) continue;
    if (rope != nullptr) load_angles(*rope, t, angles);
    store_token(p.k, t, rope, angles, p.k_cache, p.k_scale, slot);
    store_token(p.v, t, nullptr, angles, p.v_cache, p.v_scale, slot);
  }
}

void rotate_q(const Append& p, int64_t begin, int64_t end) {
  Angles angles;
  alignas(64) float row[kv::kMaxHeadDim];
  // Elements from rotary_dim on stay as they are.
  const int64_t count = p.rope.rotary_dim;
  for (int64_t t = begin; t < end; ++t) {
    load_angles(p.rope, t, angles);
    for (int64_t h = 0; h < p.q.heads; ++h) {
      const int64_t offset = p.q.offset(t, h);
      load(p.q.data, p.q.dtype, offset, count, row);
      rotate(p.rope, angles, row);
      with_type(p.q.dtype,
                [&]<class T>(T) { store(row, count, static_cast<T*>(p.q.data) + offset); });
    }
  }
}

// Reads the rows of one slot of a request into a contiguous [heads, head_dim].
void load_token(const kv::Cache& cache, const kv::Scales& scales, int64_t page, int64_t slot,
                DType out_dtype, void* to, int64_t token) {
  with_type(cache.dtype, [&]<class In>(In) {
    with_type(out_dtype, [&]<class Out>(Out) {
      for (int64_t h = 0; h < cache.heads; ++h) {
        const In* const x = element<In>(cache.data, cache.offset(page, slot, h));
        Out* const out = static_cast<Out*>(to) + (token * cache.heads + h) * cache.head_dim;
        if constexpr (std::is_same_v<In, Out>) {
          std::memcpy(out, x, static_cast<size_t>(cache.head_dim) * sizeof(In));
        } else {
          const float scale = scales.is_given() ? scales.at(page, slot, h) : 1.0f;
          for (int64_t j = 0; j < cache.head_dim; ++j) out[j] = from_f32<Out>(to_f32(x[j]) * scale);
        }
      }
    });
  });
}

void gather_tokens(const Gather& p, int64_t begin, int64_t end) {
  int64_t request = 0;
  for (int64_t t = begin; t < end; ++t) {
    while (p.cu_seqlens_k[request + 1] <= t) ++request;
    const int64_t s = t - p.cu_seqlens_k[request];
    const int64_t page = p.block_table.row(request)[s / p.k_cache.page], slot = s % p.k_cache.page;
    load_token(p.k_cache, p.k_scale, page, slot, p.out_dtype, p.k, t);
    load_token(p.v_cache, p.v_scale, page, slot, p.out_dtype, p.v, t);
  }
}

constexpr CpuKernel make_kernel(const char* name, Isa isa) {
  return {name, isa, append_part, rotate_q, gather_tokens};
}

}  // namespace
}  // namespace lamina::paged_kv
