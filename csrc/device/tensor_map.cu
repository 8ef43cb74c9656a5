// make_tensor_map by cuTensorMapEncodeTiled. Emulator: emu/tensor_map.cc
#include <cuda.h>
#include <cuda_runtime_api.h>

#include "device/tensor_map.h"

namespace lamina::dev {
namespace {

static_assert(sizeof(CUtensorMap) == sizeof(TensorMap));

// Asks the runtime for the driver's function, so that lamina does not link the driver. CUDA 12.0 (12000) introduced it.
decltype(&cuTensorMapEncodeTiled) tensor_map_encoder() {
  static const auto encoder = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found{};
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry,
                                                               12000, cudaEnableDefault, &found);
    if (error != cudaSuccess || found != cudaDriverEntryPointSuccess) {
      (void)cudaGetLastError();
      entry = nullptr;
    }
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry);
  }();
  return encoder;
}

CUtensorMapDataType tensor_map_type(int element_bytes) {
  return element_bytes == 1   ? CU_TENSOR_MAP_DATA_TYPE_UINT8
         : element_bytes == 2 ? CU_TENSOR_MAP_DATA_TYPE_UINT16
                              : CU_TENSOR_MAP_DATA_TYPE_UINT32;
}

CUtensorMapSwizzle tensor_map_swizzle(Swizzle swizzle) {
  switch (swizzle) {
    case Swizzle::k32:
      return CU_TENSOR_MAP_SWIZZLE_32B;
    case Swizzle::k64:
      return CU_TENSOR_MAP_SWIZZLE_64B;
    case Swizzle::k128:
      return CU_TENSOR_MAP_SWIZZLE_128B;
    default:
      return CU_TENSOR_MAP_SWIZZLE_NONE;
  }
}

Status encode_tensor_map(const TensorMapSpec& spec, TensorMap& map) {
  if (Status status = check_tensor_map(spec); !status.is_ok()) return status;
  const auto encode = tensor_map_encoder();
  if (!encode)
    return Status::device_error(
        "tensor map: this driver has no cuTensorMapEncodeTiled: CUDA 12.0 has it");
  cuuint64_t extent[kMaxTensorRank], stride[kMaxTensorRank];
  cuuint32_t box[kMaxTensorRank], element_stride[kMaxTensorRank];
  for (int i = 0; i < spec.rank; ++i) {
    extent[i] = static_cast<cuuint64_t>(spec.extent[i]);
    if (i > 0) stride[i - 1] = static_cast<cuuint64_t>(spec.stride_bytes[i]);
    box[i] = static_cast<cuuint32_t>(spec.box[i]);
    element_stride[i] = 1;
  }
  static_assert(alignof(TensorMap) >= alignof(CUtensorMap));
  const auto try_encode = [&] {
    return encode(reinterpret_cast<CUtensorMap*>(&map), tensor_map_type(spec.element_bytes),
                  static_cast<cuuint32_t>(spec.rank), const_cast<void*>(spec.base), extent, stride,
                  box, element_stride, CU_TENSOR_MAP_INTERLEAVE_NONE,
                  tensor_map_swizzle(spec.swizzle), CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  };
  CUresult result = try_encode();
  // A driver call may need a context, and a thread that has not used the CUDA runtime yet has none.
  if (result == CUDA_ERROR_INVALID_CONTEXT || result == CUDA_ERROR_NOT_INITIALIZED) {
    (void)cudaFree(nullptr);
    result = try_encode();
  }
  if (result != CUDA_SUCCESS)
    return Status::device_error("tensor map: cuTensorMapEncodeTiled: CUDA error ",
                                static_cast<int>(result));
  return Status::ok();
}

}  // namespace

Status make_tensor_map(const TensorMapSpec& spec, TensorMap& map) {
  return find_or_encode(spec, map, &encode_tensor_map);
}

}  // namespace lamina::dev
