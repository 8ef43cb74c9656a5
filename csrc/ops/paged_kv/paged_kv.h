// paged_kv: moves rows of keys and values into, out of and within a paged cache. A row is one token of one KV head.
//
// append   k_cache[slot_mapping[t], h] = encode(rope(k[t,h])),  v_cache[slot_mapping[t], h] = encode(v[t,h])
// gather   k[t,h] = decode(k_cache[slot j of request r, h]) for the tokens t = cu_seqlens_k[r] + j; v likewise
// copy     page block_mapping[i,1] = page block_mapping[i,0]
// compact  slot prefix + i = slot prefix + accepted[r,i] of request r, with prefix = seq_lens[r] - tree_len[r]
//
// Slots      Slot s of the whole cache is row s % page of page s / page. A token with slot -1 is not stored. If several
//            tokens have one slot, a CPU stores the last one; on CUDA the contents of the slot are undefined.
// Encoding   f32, f16, bf16: rounded to nearest even. int8 and e4m3 with one scale: clamp(x * (1 / scale)) to +-127 or
//            +-448, rounded to nearest even; a NaN becomes 0 in int8 and stays NaN in e4m3. int8 and e4m3 with scales
//            per token and head: scale = max(max|x| / 127 or 448, FLT_MIN) of the row is stored too; a row with a NaN or
//            an Inf has no such form and gets zeros and scale = NaN.
// Decoding   value * scale in f32, rounded once.
// Rope       y1 = x1 * cos - x2 * sin, y2 = x2 * cos + x1 * sin in f32; each product and each sum is rounded. The pairs
//            (x1, x2) are x[i] and x[i + rotary_dim / 2], or x[2i] and x[2i + 1] if interleaved. Elements from
//            rotary_dim on stay. The f32 result is encoded, so it is rounded once more.
// Order      compact reads all rows of a request and head before it writes one. All instruction sets and CUDA give the
//            same bits.
// Indices    A CPU checks every index before anything is written, and that destinations of copy are no other pair's source
//            or destination. On CUDA a bad index is skipped and recorded (kv/error_word.h, cuda/launch.h), and the contents
//            of a page that copy both reads and writes, or writes twice, are undefined.
// Reference  tests/reference/paged_kv.py
#pragma once

#include <cstdint>
#include <string>

#include "base/numeric.h"
#include "base/parallel.h"
#include "base/status.h"
#include "kv/block_table.h"
#include "kv/cache.h"

namespace lamina::paged_kv {

using WrittenScales = kv::ScalesOf<float>;

// Rows [tokens, heads, head_dim] with unit stride in head_dim.
template <class Pointer>
struct Rows {
  Pointer data = nullptr;
  DType dtype = DType::kF32;
  int64_t heads = 0, head_dim = 0;
  int64_t token_stride = 0, head_stride = 0;

  constexpr int64_t offset(int64_t token, int64_t head) const {
    return token * token_stride + head * head_stride;
  }
};

struct Rope {
  const void* cos = nullptr;  // [positions, rotary_dim / 2]; not given: no rotation
  const void* sin = nullptr;
  DType dtype = DType::kF32;
  int64_t cos_stride = 0, sin_stride = 0;
  int64_t positions = 0, rotary_dim = 0;
  bool interleaved = false;
  const int32_t* position32 = nullptr;  // [tokens], one of the two
  const int64_t* position64 = nullptr;

  constexpr int64_t position(int64_t token) const {
    return position32 != nullptr ? position32[token] : position64[token];
  }
};

struct Append {
  int64_t tokens = 0;
  Rows<const void*> k, v;
  kv::Cache k_cache, v_cache;
  const int64_t* slot_mapping = nullptr;  // [tokens]
  WrittenScales k_scale, v_scale;         // one scale is read, scales per token are written
  Rope rope;
  Rows<void*> q;  // rotated in place; no data: none
};

struct Gather {
  int64_t tokens = 0;
  kv::Cache k_cache, v_cache;
  kv::BlockTable block_table;
  const int32_t* cu_seqlens_k = nullptr;  // [requests + 1]
  kv::Scales k_scale, v_scale;
  void *k = nullptr, *v = nullptr;  // [tokens, heads, head_dim] contiguous
  DType out_dtype = DType::kF32;
};

struct Copy {
  kv::Cache k_cache, v_cache;
  WrittenScales k_scale, v_scale;          // one scale stays as it is
  const int64_t* block_mapping = nullptr;  // [pairs, 2]: source, destination
  int64_t pairs = 0, pair_stride = 0;
};

struct Compact {
  kv::Cache k_cache, v_cache;
  WrittenScales k_scale, v_scale;  // one scale stays as it is
  kv::BlockTable block_table;
  const int32_t* seq_lens = nullptr;  // [requests], with the tree
  const int32_t* tree_len = nullptr;  // [requests]
  const int32_t* accepted = nullptr;  // [requests, max_accepted]; the first -1 ends a list
  int64_t accepted_stride = 0, max_accepted = 0;
};

Status append(const Append& params, const Parallel& parallel);
Status gather(const Gather& params, const Parallel& parallel);
Status copy(const Copy& params, const Parallel& parallel);
Status compact(const Compact& params, const Parallel& parallel);

// The kernel that append and gather run here.
Status explain(std::string& text);

}  // namespace lamina::paged_kv
