// ../pack.h on a device.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "layout/int4.h"
#include "quant/perm.h"

namespace lamina::gemm_int4 {

// The host cannot look at codes: of one beyond 15 the low four bits are kept.
Status launch_pack(const uint8_t* q, int64_t n, int64_t k, int64_t stride, int4::Layout layout,
                   uint8_t* data, const Perm& perm, void* stream);

Status launch_unpack(const uint8_t* data, int64_t n, int64_t k, int4::Layout layout, uint8_t* q,
                     void* stream);

}  // namespace lamina::gemm_int4
