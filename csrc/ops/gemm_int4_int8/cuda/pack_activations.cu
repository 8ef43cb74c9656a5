// gemm_int4_int8 / pack_activations: gemm/cuda/pack_activations.cuh.
#include "gemm/cuda/pack_activations.cuh"
#include "ops/gemm_int4_int8/cuda/run.h"

namespace lamina::gemm_int4_int8 {

Status launch_pack_activations(const Params& params, const PackedActivations& to, int max_blocks,
                               void* stream) {
  return gemm::launch_pack_activations<false>(params, to, max_blocks, stream);
}

}  // namespace lamina::gemm_int4_int8
