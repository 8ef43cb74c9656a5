// The boxes of slots that TMA loads for paged_attention on sm_90a, where pages and strides allow boxes: the host's part.
//
// A box is 64 elements of so many slots of a page that the page is a multiple of them. The tensor map ends where head_dim and the
// cache end: elements past head_dim and pages that do not exist are zeros.
#pragma once

#include <algorithm>

#include "block/row_alignment.h"
#include "device/device.h"
#include "ops/paged_attention/cuda/run.h"
#include "ops/paged_attention/cuda/sm90a_shape.cuh"

namespace lamina::paged_attention {

struct Sm90aArgs : KernelArgs {
  dev::TensorMap keys, values;  // of boxes
  int box_slots;                // 0: no boxes, and no maps
};

// Whether a tensor map can express the cache.
inline bool allows_boxes(const kv::Cache& cache) {
  const int64_t size = kv::size_bytes(cache.dtype);
  const auto allows = [&](int64_t count, int64_t stride) {
    return row_alignment(cache.data, count, cache.head_dim * size, stride * size) == 16;
  };
  return cache.pages > 0 && allows(cache.page, cache.slot_stride) &&
         allows(cache.heads, cache.head_stride) && allows(cache.pages, cache.page_stride);
}

inline Status make_box_map(const kv::Cache& cache, int slots, dev::TensorMap& map) {
  constexpr int64_t kIndices = int64_t{1} << 31;  // of int32
  const int size = static_cast<int>(kv::size_bytes(cache.dtype));
  // A stride that nothing is apart by is free, but TMA requires a valid one.
  const auto stride_bytes = [&](int64_t count, int64_t stride) {
    return (count > 1 ? stride : cache.head_dim) * size;
  };
  return dev::make_tensor_map(
      {cache.data,
       4,
       size,
       {cache.head_dim, std::min(cache.page, kIndices), cache.heads,
        std::min(cache.pages, kIndices)},
       {0, stride_bytes(cache.page, cache.slot_stride),
        stride_bytes(cache.heads, cache.head_stride), stride_bytes(cache.pages, cache.page_stride)},
       {kBoxElements, slots, 1, 1},
       Swizzle::k128},
      map);
}

// least: slots of a box.
inline Status add_boxes(int least, Sm90aArgs& args) {
  const kv::Cache &k = args.p.k, &v = args.p.v;
  const int64_t slots = std::min<int64_t>(k.page & -k.page, kColumns);
  if (slots < least || !allows_boxes(k) || !allows_boxes(v)) return Status::ok();
  args.box_slots = static_cast<int>(slots);
  if (Status status = make_box_map(k, args.box_slots, args.keys); !status.is_ok()) return status;
  return make_box_map(v, args.box_slots, args.values);
}

}  // namespace lamina::paged_attention
