#include "torch/interop.h"

#include <algorithm>
#include <array>

#include "base/int_math.h"

#if defined(LAMINA_EMULATOR)
#include <cstring>

#include "device/emu/executor.h"
#endif

namespace lamina::interop {

std::ostream& operator<<(std::ostream& out, const ShapeText& shape) {
  const Tensor& tensor = shape.tensor;
  out << tensor.dim() << "-D [";
  for (int64_t i = 0; i < tensor.dim(); ++i) out << (i ? ", " : "") << tensor.size(i);
  return out << "]";
}

const char* dtype_text(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Float8_e4m3fn:
      return "float8_e4m3fn";
    case ScalarType::Float8_e5m2:
      return "float8_e5m2";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Bool:
      return "bool";
    default:
      return "another dtype";
  }
}

void Argument::has_dtype(ScalarType dtype) const {
  require(tensor.scalar_type() == dtype, op, name, " must be ", dtype_text(dtype), ", got ",
          dtype_text(tensor.scalar_type()));
}

void Argument::is_2d(const char* dims) const {
  require(tensor.dim() == 2, op, name, " must be 2-D ", dims, ", got ", ShapeText{tensor});
  // The column stride matters only if there are two columns.
  require(tensor.numel() == 0 || tensor.size(1) <= 1 || tensor.stride(1) == 1, op, name,
          " must have column stride 1, got ", tensor.stride(1), "; call .contiguous()");
}

void Argument::is_vector(const char* size, int64_t count) const {
  require(tensor.dim() == 1 && tensor.size(0) == count, op, name, " must be 1-D [", size, "] with ",
          size, " = ", count, ", got ", ShapeText{tensor});
  require(tensor.is_contiguous(), op, name, " must be contiguous; call .contiguous()");
}

void Argument::has_shape(const char* dims, int64_t rows, int64_t columns) const {
  require(tensor.size(0) == rows && tensor.size(1) == columns, op, name, " must be 2-D ", dims,
          " = [", rows, ", ", columns, "], got ", ShapeText{tensor});
}

int64_t Argument::row_stride() const { return tensor.size(0) <= 1 ? 0 : tensor.stride(0); }

bool Argument::is_broadcast(int64_t count) const {
  const int64_t numel = tensor.numel();
  const bool is_vector = tensor.dim() <= 1 || (tensor.dim() == 2 && tensor.size(1) == 1);
  return numel == 1 || (is_vector && numel == count);
}

int64_t Argument::broadcast_stride(int64_t count, const char* dims) const {
  require(is_broadcast(count), op, name, " must have 1 element or be ", dims, " = ", count,
          ", got ", ShapeText{tensor});
  return tensor.numel() == 1 || tensor.dim() == 0 ? 0 : tensor.stride(0);
}

DType Argument::float_dtype() const { return interop::float_dtype(op, name, tensor.scalar_type()); }

DType float_dtype(const char* op, const char* name, ScalarType dtype) {
  if (dtype == ScalarType::Float) return DType::kF32;
  if (dtype == ScalarType::Half) return DType::kF16;
  if (dtype == ScalarType::BFloat16) return DType::kBF16;
  fail(op, name, " must be float32, float16 or bfloat16, got ", dtype_text(dtype));
}

// Calls aoti_torch_empty_strided, because torch::stable::new_empty looks its operator up by name in every call: this
// saves 3 us a tensor.
Tensor new_tensor(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType dtype) {
  std::array<int64_t, 8> strides{};
  std::optional<int64_t> stride = 1;
  for (size_t i = sizes.size(); i-- > 0 && stride;) {
    strides[i] = *stride;
    stride = checked_product(*stride, std::max<int64_t>(sizes.begin()[i], 1));
  }
  const auto device = like.device();
  AtenTensorHandle handle = nullptr;
  const bool is_made =
      stride && aoti_torch_empty_strided(
                    static_cast<int64_t>(sizes.size()), sizes.begin(), strides.data(),
                    torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)),
                    torch::stable::detail::to<int32_t>(torch::stable::detail::from(device.type())),
                    device.index(), &handle) == AOTI_TORCH_SUCCESS;
  if (is_made) {
    Tensor made(handle);
#if defined(LAMINA_EMULATOR)
    // Outputs start poisoned, like the emulator's shared memory, so that a forgotten write shows.
    if (dev::emu::options().runs_kernels && made.numel() > 0)
      std::memset(made.data_ptr(), dev::emu::poison(),
                  static_cast<size_t>(made.numel()) * made.element_size());
#endif
    return made;
  }
  std::ostringstream text;
  text << "out of memory: lamina asked for a tensor of shape [";
  for (size_t i = 0; i < sizes.size(); ++i) text << (i ? ", " : "") << sizes.begin()[i];
  text << "]";
  throw std::runtime_error(std::move(text).str());
}

}  // namespace lamina::interop
