// matmul_sparse24_int4_int8 / pack_activations: gemm/cuda/pack_activations.cuh, in the order for 2:4 weights.
#include "gemm/cuda/pack_activations.cuh"
#include "ops/matmul_sparse24/cuda/run.h"

namespace lamina::matmul_sparse24 {

Status launch_pack_activations(const Int4Int8Params& params, const PackedActivations& to,
                               int max_blocks, void* stream) {
  return gemm::launch_pack_activations<true>(params, to, max_blocks, stream);
}

}  // namespace lamina::matmul_sparse24
