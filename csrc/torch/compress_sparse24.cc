#include "ops/compress_sparse24/compress_sparse24.h"

#include <bit>
#include <cmath>
#include <limits>
#include <tuple>

#include "torch/accelerator.h"
#include "torch/interop.h"

namespace lamina::interop {
namespace {

using compress_sparse24::Element;
using compress_sparse24::Problem;

Element element_of(const Argument& argument) {
  switch (argument.tensor.scalar_type()) {
    case ScalarType::Char:
    case ScalarType::Byte:
      return Element::kInt8;
    case ScalarType::Half:
    case ScalarType::BFloat16:
      return Element::kFloat16;
    case ScalarType::Float:
      return Element::kFloat32;
    default:
      fail(argument.op, argument.name, " must be float32, float16, bfloat16, int8 or uint8, got ",
           dtype_text(argument.tensor.scalar_type()));
  }
}

template <class T>
uint32_t integer_bits(const char* op, double fill) {
  require(fill == std::floor(fill) && fill >= std::numeric_limits<T>::min() &&
              fill <= std::numeric_limits<T>::max(),
          op, "fill = ", fill, "; allowed: integers from ", int{std::numeric_limits<T>::min()},
          " to ", int{std::numeric_limits<T>::max()});
  return static_cast<uint8_t>(static_cast<T>(fill));
}

// The bits of `fill` as an element.
uint32_t fill_bits(const char* op, ScalarType dtype, double fill) {
  if (dtype == ScalarType::Char) return integer_bits<int8_t>(op, fill);
  if (dtype == ScalarType::Byte) return integer_bits<uint8_t>(op, fill);
  const auto value = static_cast<float>(fill == 0 ? 0 : fill);
  require(std::isfinite(value), op, "fill = ", fill, "; allowed: finite numbers");
  if (dtype == ScalarType::Half) return from_f32<F16>(value).bits;
  if (dtype == ScalarType::BFloat16) return from_f32<BF16>(value).bits;
  return std::bit_cast<uint32_t>(value);
}

std::tuple<Tensor, Tensor> compress(const Tensor& w, std::optional<Tensor> mask, double fill) {
  constexpr const char* kOp = "compress_sparse24";
  const Argument w_arg{kOp, "w", w};
  const Element element = element_of(w_arg);
  w_arg.is_2d("[n, k]");
  const int64_t n = w.size(0), k = w.size(1);
  compress_sparse24::Dense dense{w.data_ptr(), w_arg.row_stride()};
  if (mask) {
    const Argument mask_arg{kOp, "mask", *mask};
    mask_arg.has_dtype(ScalarType::Bool);
    mask_arg.is_2d("[n, k]");
    mask_arg.has_shape("[n, k]", n, k);
    accelerator_of({w_arg, mask_arg});
    dense.mask = static_cast<const uint8_t*>(mask->data_ptr());
    dense.mask_stride = mask_arg.row_stride();
  }
  const Problem problem{element, n, k, fill_bits(kOp, w.scalar_type(), fill)};
  Tensor values = new_tensor(w, {n, sparse24::values_k(k)}, w.scalar_type());
  Tensor metadata = new_tensor(w, {n, sparse24::metadata_bytes(k)}, ScalarType::Byte);
  raise_if_bad(compress_sparse24::compress(problem, dense, values.data_ptr(),
                                           static_cast<uint8_t*>(metadata.data_ptr()),
                                           TorchParallel()));
  return {values, metadata};
}

Tensor decompress(const Tensor& values, const Tensor& metadata, int64_t k, double fill) {
  constexpr const char* kOp = "decompress_sparse24";
  const Argument values_arg{kOp, "values", values}, metadata_arg{kOp, "metadata", metadata};
  const Element element = element_of(values_arg);
  require(k >= 0 && k % sparse24::kGroupK == 0, kOp, "k = ", k, "; allowed: multiples of 4");
  const int64_t n = values.dim() == 2 ? values.size(0) : 0;
  values_arg.is_2d("[n, k / 2]");
  values_arg.has_shape("[n, k / 2]", n, sparse24::values_k(k));
  metadata_arg.has_dtype(ScalarType::Byte);
  metadata_arg.is_2d("[n, ceil(k / 8)]");
  metadata_arg.has_shape("[n, ceil(k / 8)]", n, sparse24::metadata_bytes(k));
  accelerator_of({values_arg, metadata_arg});
  const Problem problem{element, n, k, fill_bits(kOp, values.scalar_type(), fill)};
  const compress_sparse24::Sparse sparse{values.data_ptr(), values_arg.row_stride(),
                                         static_cast<const uint8_t*>(metadata.data_ptr()),
                                         metadata_arg.row_stride()};
  Tensor w = new_tensor(values, {n, k}, values.scalar_type());
  raise_if_bad(compress_sparse24::decompress(problem, sparse, w.data_ptr(), TorchParallel()));
  return w;
}

std::tuple<Tensor, Tensor> compress_cuda(const Tensor&, std::optional<Tensor>, double) {
  fail("compress_sparse24", "compresses on the CPU only: move w there, and the result back");
}
Tensor decompress_cuda(const Tensor&, const Tensor&, int64_t, double) {
  fail("decompress_sparse24", "decompresses on the CPU only: move values and metadata there");
}

}  // namespace

LAMINA_FRAGMENT(m) {
  m.def(
      "compress_sparse24(Tensor w, Tensor? mask=None, float fill=0.0) -> (Tensor values, Tensor "
      "metadata)");
  m.def("decompress_sparse24(Tensor values, Tensor metadata, SymInt k, float fill=0.0) -> Tensor");
}
LAMINA_IMPL(CPU, m) {
  m.impl("compress_sparse24", TORCH_BOX(&compress));
  m.impl("decompress_sparse24", TORCH_BOX(&decompress));
}
LAMINA_IMPL(CUDA, m) {
  m.impl("compress_sparse24", TORCH_BOX(&compress_cuda));
  m.impl("decompress_sparse24", TORCH_BOX(&decompress_cuda));
}

}  // namespace lamina::interop
