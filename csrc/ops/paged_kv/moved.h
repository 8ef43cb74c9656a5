// The tensors that copy and compact move as bytes: keys, values, and their scales if there is one for each row.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "ops/paged_kv/paged_kv.h"

namespace lamina::paged_kv {

// One row for each page, slot and head. Strides are in bytes.
struct Moved {
  std::byte* data = nullptr;
  int64_t page_stride = 0, slot_stride = 0, head_stride = 0, row_bytes = 0;

  constexpr std::byte* row(int64_t page, int64_t slot, int64_t head) const {
    return data + page * page_stride + slot * slot_stride + head * head_stride;
  }
};

struct MovedTensors {
  Moved tensor[4];
  int count = 0;
  int64_t pages = 0, page = 0, heads = 0;

  const Moved* begin() const { return tensor; }
  const Moved* end() const { return tensor + count; }
};

template <class Params>
MovedTensors moved_tensors(const Params& p) {
  MovedTensors moved;
  moved.pages = p.k_cache.pages;
  moved.page = p.k_cache.page;
  moved.heads = p.k_cache.heads;
  const auto add = [&](void* data, int64_t size, int64_t row, const auto& strides) {
    moved.tensor[moved.count++] = {static_cast<std::byte*>(data), strides.page_stride * size,
                                   strides.slot_stride * size, strides.head_stride * size,
                                   row * size};
  };
  for (const kv::Cache* cache : {&p.k_cache, &p.v_cache})
    add(cache->data, kv::size_bytes(cache->dtype), cache->head_dim, *cache);
  for (const WrittenScales* scales : {&p.k_scale, &p.v_scale})
    if (scales->is_per_token()) add(scales->data, sizeof(float), 1, *scales);
  return moved;
}

// A page as runs of contiguous bytes: `outer` times `inner` runs with these strides.
struct Runs {
  struct Extent {
    int64_t stride, count;
  };
  Extent outer, inner;
  int64_t bytes;
};

inline Runs runs_of(const Moved& moved, int64_t page, int64_t heads) {
  Runs runs{{moved.slot_stride, page}, {moved.head_stride, heads}, moved.row_bytes};
  if (runs.outer.stride < runs.inner.stride) std::swap(runs.outer, runs.inner);
  for (Runs::Extent* extent : {&runs.inner, &runs.outer}) {
    if (extent->count > 1 && extent->stride != runs.bytes) break;
    runs.bytes *= extent->count;
    extent->count = 1;
  }
  return runs;
}

}  // namespace lamina::paged_kv
