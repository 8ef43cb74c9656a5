#include "kv/block_table.h"

#include "base/int_math.h"

namespace lamina::kv {

Status check_slots(const char* op, const BlockTable& table, int64_t request, int64_t begin,
                   int64_t end, const Cache& cache, const char* length_name) {
  if (ceil_div(end, cache.page) > table.max_blocks)
    return Status::error(op, ": ", length_name, " gives request ", request, " a length of ", end,
                         "; block_table has room for max_blocks = ", table.max_blocks,
                         " pages of page = ", cache.page, " slots");
  if (begin == end) return Status::ok();
  const int32_t* const blocks = table.row(request);
  for (int64_t b = begin / cache.page; b < ceil_div(end, cache.page); ++b)
    if (blocks[b] < 0 || blocks[b] >= cache.pages)
      return Status::error(op, ": block_table[", request, ", ", b, "] = ", blocks[b],
                           " must be at least 0 and below pages = ", cache.pages);
  return Status::ok();
}

Status check_offsets(const char* op, const char* name, const int32_t* offsets, int64_t requests,
                     int64_t total) {
  if (offsets[0] != 0) return Status::error(op, ": ", name, "[0] = ", offsets[0], " must be 0");
  for (int64_t i = 0; i < requests; ++i)
    if (offsets[i + 1] < offsets[i])
      return Status::error(op, ": ", name, "[", i + 1, "] = ", offsets[i + 1],
                           " must not be below ", name, "[", i, "] = ", offsets[i]);
  if (offsets[requests] != total)
    return Status::error(op, ": ", name, "[", requests, "] = ", offsets[requests],
                         " must be the number of tokens, ", total);
  return Status::ok();
}

}  // namespace lamina::kv
