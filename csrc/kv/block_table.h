// The block table of a batch, and the checks of indices that an engine gives.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "kv/cache.h"

namespace lamina::kv {

// [requests, max_blocks]: entry b of a request is the page of its slots b * page to (b + 1) * page - 1. Entries past the
// length of the request are never read.
struct BlockTable {
  const int32_t* data = nullptr;
  int64_t stride = 0, requests = 0, max_blocks = 0;

  constexpr const int32_t* row(int64_t request) const { return data + request * stride; }
};

// An error unless slots `begin` to `end` - 1 of the request are in the table and on pages of the cache. `length_name`
// names the argument that gives the length `end`.
Status check_slots(const char* op, const BlockTable& table, int64_t request, int64_t begin,
                   int64_t end, const Cache& cache, const char* length_name);

// An error unless offsets [requests + 1] begin with 0, never decrease and end with `total`.
Status check_offsets(const char* op, const char* name, const int32_t* offsets, int64_t requests,
                     int64_t total);

}  // namespace lamina::kv
