// pack() and unpack() of ops/gemm_int4/pack.h on a GPU.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "layout/int4.h"
#include "quant/perm.h"

namespace lamina::gemm_int4 {

// The host cannot check codes in GPU memory, so a code beyond 15 keeps its low four bits.
Status launch_pack(const uint8_t* q, int64_t n, int64_t k, int64_t stride, int4::Layout layout,
                   uint8_t* data, const Perm& perm, void* stream);

Status launch_unpack(const uint8_t* data, int64_t n, int64_t k, int4::Layout layout, uint8_t* q,
                     void* stream);

}  // namespace lamina::gemm_int4
