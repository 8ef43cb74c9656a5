// int4 codes [n, k], a byte each  <->  layout/int4.h
#pragma once

#include <cstdint>
#include <string_view>

#include "base/parallel.h"
#include "base/status.h"
#include "layout/int4.h"
#include "quant/perm.h"

namespace lamina::gemm_int4 {

// Finds a layout by its name; the error of `op` names both layouts.
Status layout_of(const char* op, std::string_view name, int4::Layout& layout);

// q: n rows of k codes, `stride` elements apart; a code beyond 15 is an error. data: int4::packed_bytes(n, k). With
// perm, rows have perm.features codes, and perm picks k of them; a packed place without a feature becomes 0.
Status pack(const uint8_t* q, int64_t n, int64_t k, int64_t stride, int4::Layout layout,
            uint8_t* data, const Parallel& parallel, const Perm& perm = {});

// The inverse: q becomes n contiguous rows of k codes.
Status unpack(const uint8_t* data, int64_t n, int64_t k, int4::Layout layout, uint8_t* q,
              const Parallel& parallel);

}  // namespace lamina::gemm_int4
