#include "ops/gemm_int8/quantized.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "gemm/epilogue_maths.h"

namespace lamina::gemm_int8 {
namespace {

// The fewest bytes of q for which waking a thread pays, at about 16 bytes a cycle.
constexpr int64_t kGrainBytes = 256 * 1024;

// Sets a row of q that holds kLost to 0 with scale NaN; the other rows get their static scale.
void mark_nan_rows(const quantize_int8::Params& p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    int8_t* const row = p.q + i * p.k;
    const auto bytes = static_cast<size_t>(p.k);
    const bool is_lost = bytes > 0 && std::memchr(row, static_cast<uint8_t>(kLost), bytes);
    if (is_lost) std::memset(row, 0, bytes);
    p.scale[i] = is_lost ? std::numeric_limits<float>::quiet_NaN() : p.static_scale[i];
  }
}

}  // namespace

int64_t QuantizedParams::workspace_bytes() const {
  return is_static() ? 0 : quantize.m * quantize.k * static_cast<int64_t>(sizeof(float));
}

void QuantizedParams::connect(void* workspace) {
  gemm.out_scale = quantize.static_scale;
  gemm.out = is_static() ? quantize.q : workspace;
  gemm.out_stride = quantize.k;
  gemm.out_dtype = DType::kF32;
  quantize.x = workspace;
  quantize.x_dtype = DType::kF32;
  quantize.x_stride = quantize.k;
}

Status run_quantized(const QuantizedParams& p, const Parallel& parallel) {
  const quantize_int8::Params& quantize = p.quantize;
  if (p.is_static())
    if (Status status = quantize_int8::check_scale("gemm_int8_quantized: out_scale",
                                                   quantize.static_scale, quantize.m);
        !status.is_ok())
      return status;
  if (Status status = run(p.gemm, parallel); !status.is_ok()) return status;
  if (!p.is_static()) return quantize_int8::run(quantize, parallel);
  const int64_t grain = std::max<int64_t>(1, kGrainBytes / std::max<int64_t>(1, quantize.k));
  parallel.for_range(quantize.m, grain,
                     [&](int64_t begin, int64_t end) { mark_nan_rows(quantize, begin, end); });
  return Status::ok();
}

}  // namespace lamina::gemm_int8
