// Arguments of the ops on paged KV caches: the caches, their scales, and the tables that say where a request lies.
#pragma once

#include <cstdint>
#include <optional>

#include "kv/block_table.h"
#include "kv/cache.h"
#include "torch/interop.h"

namespace lamina::interop {

// A cache [pages, page, kv_heads, head_dim] with contiguous rows.
kv::Cache cache_of(const Argument& cache);

// The values fit the keys: the same dtype, pages, page and kv_heads. head_dim may differ.
void require_fits(const Argument& k_cache, const Argument& v_cache);

// The scales of a cache: one, or [pages, page, kv_heads] with any strides. Only int8 and float8_e4m3fn have scales.
kv::Scales scales_of(const char* op, const char* name, const std::optional<Tensor>& scale,
                     const kv::Cache& cache, bool required);

// No two elements share memory, as an argument that is written needs.
void require_no_overlap(const Argument& argument);

// An int32 table [requests, max_blocks] with unit column stride.
kv::BlockTable block_table_of(const Argument& table, int64_t requests);

// The elements of a contiguous int32 vector of this length.
const int32_t* int32_vector_of(const Argument& argument, const char* size, int64_t count);

}  // namespace lamina::interop
