#include "ops/matmul_sparse24/cuda/run.h"

#include <algorithm>

#include "gemm/cuda/half_dtypes.h"

namespace lamina::matmul_sparse24 {

// CMake writes them from kernels.inc.
std::vector<CudaKernel> matmul_sparse24_kernels();
std::vector<CudaKernel> matmul_sparse24_int4_kernels();
std::vector<CudaKernel> matmul_sparse24_int4_int8_kernels();
std::vector<CudaKernel> matmul_sparse24_int8_kernels();

namespace {

constexpr double bytes_of_weight(int bits) {
  return sparse24_tile::tile_bytes(bits) /
         static_cast<double>(sparse24_tile::kTileN * sparse24_tile::kTileK);
}

Status check_weight(const CudaPlan& plan, const void* w) {
  if (reinterpret_cast<uintptr_t>(w) % 16 == 0) return Status::ok();
  return Status::error(plan.kernel.name, ": w must start at a multiple of 16 bytes");
}

Status run_half(const HalfParams& params, const CudaPlan& plan, void* workspace, void* stream) {
  if (params.problem.m == 0 || params.problem.n == 0) return Status::ok();
  if (Status status = check_weight(plan, params.w); !status.is_ok()) return status;
  return launch_product(plan, params, workspace, &launch_float_reduce, stream);
}

}  // namespace

const CudaOp& half_cuda_op() {
  static const CudaOp op{"matmul_sparse24",        2, bytes_of_weight(16), true, 64,
                         matmul_sparse24_kernels()};
  return op;
}

const CudaOp& int4_cuda_op() {
  static const CudaOp op{"matmul_sparse24_int4",        2, bytes_of_weight(4), true, 64,
                         matmul_sparse24_int4_kernels()};
  return op;
}

const CudaOp& int8_cuda_op() {
  static const CudaOp op{"matmul_sparse24_int8",        1, bytes_of_weight(8), false, 16,
                         matmul_sparse24_int8_kernels()};
  return op;
}

const CudaOp& int4_int8_cuda_op() {
  static const CudaOp op{"matmul_sparse24_int4_int8",        1, bytes_of_weight(4), true, 64,
                         matmul_sparse24_int4_int8_kernels()};
  return op;
}

Status check_cuda(const Int4Params& params) {
  return check_halves("matmul_sparse24_int4", params.a_dtype, params.w_scale, params.w_zero_point);
}

Status check_cuda(const Int4Int8Params& params) {
  // 16 times the sums fit int32: 255 * 8 * 16 * 2^16 < 2^31, of which a group keeps half.
  constexpr int64_t kMost = int64_t{1} << 17;
  const Problem& p = params.problem;
  if (std::min(p.group, p.k) <= kMost) return Status::ok();
  return Status::error("matmul_sparse24_int4_int8: group = ", std::min(p.group, p.k),
                       "; on CUDA it may be at most ", kMost);
}

Status check_cuda(const FloatParams& params) {
  return check_half("matmul_sparse24", params.a_dtype);
}

Status run_cuda(const Int8Params& params, const CudaPlan& plan, void* workspace, void* stream) {
  if (params.problem.m == 0 || params.problem.n == 0) return Status::ok();
  Int8Params then = params;
  then.w = reinterpret_cast<const int8_t*>(params.weight.data);
  if (Status status = check_weight(plan, then.w); !status.is_ok()) return status;
  return launch_product(plan, then, workspace, &launch_int8_reduce, stream);
}

Status run_cuda(const Int4Params& params, const CudaPlan& plan, void* workspace, void* stream) {
  HalfParams then = params;
  then.w = params.weight.data;
  return run_half(then, plan, workspace, stream);
}

Status run_cuda(const FloatParams& params, const CudaPlan& plan, void* workspace, void* stream) {
  HalfParams then;
  static_cast<Epilogue&>(then) = params;
  then.problem = params.problem;
  then.a = params.a;
  then.a_dtype = params.a_dtype;
  then.a_stride = params.a_stride;
  then.w = params.weight.data;
  return run_half(then, plan, workspace, stream);
}

int64_t workspace_bytes(const Int4Int8Params& params, const CudaPlan& plan) {
  return PackedActivations::bytes(params.problem) + plan.partial_bytes(params.problem);
}

Status run_cuda(const Int4Int8Params& params, const CudaPlan& plan, void* workspace, void* stream) {
  const Problem& p = params.problem;
  if (p.m == 0 || p.n == 0) return Status::ok();
  if (Status status = check_weight(plan, params.weight.data); !status.is_ok()) return status;
  auto* const bytes = static_cast<std::byte*>(workspace);
  const PackedActivations packed = PackedActivations::at(bytes, p);
  Int4Int8Operands then = Int4Int8Operands::of(params, packed);
  then.w = params.weight.data;
  if (Status status = launch_pack_activations(params, packed, plan.max_blocks(), stream);
      !status.is_ok())
    return status;
  return launch_product(plan, then, bytes + PackedActivations::bytes(p), &launch_int4_int8_reduce,
                        stream);
}

}  // namespace lamina::matmul_sparse24
