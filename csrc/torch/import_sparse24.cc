#include "layout/sparse24.h"
#include "ops/compress_sparse24/foreign.h"
#include "torch/interop.h"

namespace lamina::interop {
namespace {

// The dtype in which a library keeps words of so many bytes.
ScalarType word_dtype(int bytes) {
  return bytes == 1 ? ScalarType::Byte : bytes == 2 ? ScalarType::Short : ScalarType::Int;
}

Tensor import_metadata(const Tensor& metadata, std::string order_name, int64_t n, int64_t k) {
  constexpr const char* kOp = "import_sparse24_metadata";
  const compress_sparse24::Order* order = nullptr;
  raise_if_bad(compress_sparse24::order_of(kOp, order_name, order));
  raise_if_bad(compress_sparse24::check(kOp, *order, n, k));
  const int64_t bytes = sparse24::metadata_bytes(k);
  // 1:2 takes a nibble for each of the two pairs of a group.
  const int64_t words =
      order->name == "cutlass_pairs" ? n * (k / 8) : n * bytes / order->word_bytes;
  Argument{kOp, "metadata", metadata}.has_dtype(word_dtype(order->word_bytes));
  require(metadata.numel() == words, kOp, "metadata must have ", words, " elements for [n, k] = [",
          n, ", ", k, "], got ", ShapeText{metadata});
  require(metadata.is_contiguous(), kOp, "metadata must be contiguous; call .contiguous()");
  Tensor out = new_tensor(metadata, {n, bytes}, ScalarType::Byte);
  raise_if_bad(compress_sparse24::import_metadata(kOp, *order, metadata.data_ptr(), n, k,
                                                  static_cast<uint8_t*>(out.data_ptr()),
                                                  TorchParallel()));
  return out;
}

Tensor import_marlin24(const Tensor& weight_packed, int64_t bits) {
  constexpr const char* kOp = "import_marlin24";
  const Argument argument{kOp, "weight_packed", weight_packed};
  argument.has_dtype(ScalarType::Int);
  argument.is_2d("[k / 32, n * bits / 2]");
  require(weight_packed.is_contiguous(), kOp,
          "weight_packed must be contiguous; call .contiguous()");
  require(bits == 4 || bits == 8, kOp, "bits = ", bits, "; allowed: 4, 8");
  const int64_t k = weight_packed.size(0) * 32, n = weight_packed.size(1) * 2 / bits;
  require(weight_packed.size(1) % (64 * bits / 2) == 0, kOp,
          "weight_packed must be [k / 32, n * bits / 2] with n a multiple of 64, got ",
          ShapeText{weight_packed});
  Tensor codes = new_tensor(weight_packed, {n, sparse24::values_k(k)}, ScalarType::Byte);
  raise_if_bad(compress_sparse24::import_marlin24(
      static_cast<const int32_t*>(weight_packed.data_ptr()), static_cast<int>(bits), n, k,
      static_cast<uint8_t*>(codes.data_ptr()), TorchParallel()));
  return codes;
}

Tensor import_metadata_cuda(const Tensor&, std::string, int64_t, int64_t) {
  fail("import_sparse24_metadata", "imports on the CPU only: move metadata there");
}
Tensor import_marlin24_cuda(const Tensor&, int64_t) {
  fail("import_marlin24", "imports on the CPU only: move weight_packed there");
}

}  // namespace

LAMINA_FRAGMENT(m) {
  m.def("import_sparse24_metadata(Tensor metadata, str order, SymInt n, SymInt k) -> Tensor");
  m.def("import_marlin24(Tensor weight_packed, SymInt bits) -> Tensor");
}
LAMINA_IMPL(CPU, m) {
  m.impl("import_sparse24_metadata", TORCH_BOX(&import_metadata));
  m.impl("import_marlin24", TORCH_BOX(&import_marlin24));
}
LAMINA_IMPL(CUDA, m) {
  m.impl("import_sparse24_metadata", TORCH_BOX(&import_metadata_cuda));
  m.impl("import_marlin24", TORCH_BOX(&import_marlin24_cuda));
}

}  // namespace lamina::interop
