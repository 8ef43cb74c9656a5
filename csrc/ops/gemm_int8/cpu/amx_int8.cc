// gemm_int8 / amx_int8: the microkernel is gemm/cpu/amx_product.h.
#include "gemm/cpu/amx_product.h"
#include "ops/gemm_int8/cpu/dense.h"

namespace lamina::gemm_int8 {
namespace {

struct Tile : AmxProduct {
  static constexpr int kOffset = 0;
};

}  // namespace

extern constinit const CpuKernel gemm_int8_amx_int8 =
    make_kernel<Tile>("gemm_int8_amx_int8", Isa::kAmxInt8, 1024);

}  // namespace lamina::gemm_int8
