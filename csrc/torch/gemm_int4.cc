#include "base/huge_pages.h"
#include "layout/int4_tile.h"
#include "ops/gemm_int4/pack.h"
#include "torch/interop.h"

namespace lamina::interop {
namespace {

int4::Layout layout_of(const char* op, const std::string& name) {
  int4::Layout layout = nullptr;
  raise_if_bad(gemm_int4::layout_of(op, name, layout));
  return layout;
}

Tensor pack(const Tensor& q, std::string layout) {
  constexpr const char* kOp = "pack_int4";
  const Argument q_arg{kOp, "q", q};
  q_arg.has_dtype(ScalarType::Byte);
  q_arg.is_2d("[n, k]");
  const int4::Layout place = layout_of(kOp, layout);
  const int64_t n = q.size(0), k = q.size(1);
  Tensor data =
      new_tensor(q, {int4::tiles_n(n), int4::tiles_k(k), int4::kTileBytes}, ScalarType::Byte);
  advise_huge_pages(data.data_ptr(), data.numel());
  raise_if_bad(gemm_int4::pack(static_cast<const uint8_t*>(q.data_ptr()), n, k, q_arg.row_stride(),
                               place, static_cast<uint8_t*>(data.data_ptr()), TorchParallel()));
  return data;
}

Tensor unpack(const Tensor& data, int64_t n, int64_t k, std::string layout) {
  constexpr const char* kOp = "unpack_int4";
  require(n >= 0 && k >= 0, kOp, "n = ", n, ", k = ", k, "; neither may be negative");
  Argument{kOp, "data", data}.has_dtype(ScalarType::Byte);
  const int4::Layout place = layout_of(kOp, layout);
  require(data.dim() == 3 && data.size(0) == int4::tiles_n(n) && data.size(1) == int4::tiles_k(k) &&
              data.size(2) == int4::kTileBytes,
          kOp, "data must be packed by pack_int4 from [n, k] = [", n, ", ", k, "], so 3-D [",
          int4::tiles_n(n), ", ", int4::tiles_k(k), ", 512], got ", shape_text(data));
  require(data.is_contiguous(), kOp, "data must be contiguous; call .contiguous()");
  Tensor q = new_tensor(data, {n, k}, ScalarType::Byte);
  raise_if_bad(gemm_int4::unpack(static_cast<const uint8_t*>(data.data_ptr()), n, k, place,
                                 static_cast<uint8_t*>(q.data_ptr()), TorchParallel()));
  return q;
}

Tensor pack_cuda(const Tensor&, std::string) {
  fail("pack_int4", "packs on the CPU only: move q there, and the packed weight back");
}
Tensor unpack_cuda(const Tensor&, int64_t, int64_t, std::string) {
  fail("unpack_int4", "unpacks on the CPU only: move data there");
}

}  // namespace

LAMINA_IMPL(CPU, m) {
  m.impl("pack_int4", TORCH_BOX(&pack));
  m.impl("unpack_int4", TORCH_BOX(&unpack));
}
LAMINA_IMPL(CUDA, m) {
  m.impl("pack_int4", TORCH_BOX(&pack_cuda));
  m.impl("unpack_int4", TORCH_BOX(&unpack_cuda));
}

}  // namespace lamina::interop
