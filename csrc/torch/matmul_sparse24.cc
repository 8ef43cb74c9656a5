#include "ops/matmul_sparse24/matmul_sparse24.h"

#include <tuple>
#include <vector>

#include "base/huge_pages.h"
#include "layout/int8_tile.h"
#include "layout/sparse24.h"
#include "layout/sparse24_rows.h"
#include "ops/matmul_sparse24/pack.h"
#include "ops/matmul_sparse24/row_blocks.h"
#include "torch/accelerator.h"
#include "torch/epilogue.h"
#include "torch/int4.h"
#include "torch/int8.h"
#include "torch/interop.h"
#include "torch/ops.h"
#include "torch/product.h"

#if defined(LAMINA_CUDA_KERNELS)
#include "ops/matmul_sparse24/cuda/run.h"
#endif

namespace lamina::interop {
namespace {

// The bits of a packed value of a weight of this dtype; uint8 are int4 codes.
int value_bits(const char* op, const char* name, ScalarType dtype) {
  if (dtype == ScalarType::Byte) return 4;
  if (dtype == ScalarType::Char) return 8;
  if (dtype == ScalarType::Half || dtype == ScalarType::BFloat16) return 16;
  if (dtype == ScalarType::Float) return 32;
  fail(op, name, " must be int8, uint8 (int4 codes), float16, bfloat16 or float32, got ",
       dtype_text(dtype));
}

// The layout of this name; it must be able to hold values of `bits` bits.
const matmul_sparse24::Layout& layout_of(const char* op, const std::string& name, int bits) {
  using matmul_sparse24::kRowsLayout, matmul_sparse24::kTileLayout;
  const matmul_sparse24::Layout& layout = name == kTileLayout.name ? kTileLayout : kRowsLayout;
  require(layout.name == name, op, "layout = \"", name.c_str(), "\"; allowed: \"", kRowsLayout.name,
          "\", \"", kTileLayout.name, "\"");
  require(bits <= layout.most_bits, op, "layout = \"", name.c_str(),
          "\" has no float32 values; allowed: \"", kRowsLayout.name, "\"");
  return layout;
}

void require_packed(const char* op, const char* name, const Tensor& w, int64_t n, int64_t k,
                    int tile_bytes) {
  Argument{op, name, w}.has_dtype(ScalarType::Byte);
  const int64_t tiles_n = sparse24_rows::tiles_n(n), tiles_k = sparse24_rows::tiles_k(k);
  require(w.dim() == 3 && w.size(0) == tiles_n && w.size(1) == tiles_k && w.size(2) == tile_bytes,
          op, name, " must be packed by pack_sparse24 from [n, k] = [", n, ", ", k, "], so 3-D [",
          tiles_n, ", ", tiles_k, ", ", tile_bytes, "], got ", ShapeText{w});
  require(w.is_contiguous(), op, name, " must be contiguous; call .contiguous()");
}

std::tuple<Tensor, Tensor> pack(const Tensor& values, const Tensor& metadata, int64_t k,
                                std::string layout, std::optional<int64_t> group) {
  constexpr const char* kOp = "pack_sparse24";
  const Argument values_arg{kOp, "values", values}, metadata_arg{kOp, "metadata", metadata};
  const int bits = value_bits(kOp, "values", values.scalar_type());
  const matmul_sparse24::Layout& order = layout_of(kOp, layout, bits);
  require(k >= 0 && k % sparse24::kGroupK == 0, kOp, "k = ", k, "; allowed: multiples of 4");
  require(!group || bits == 8, kOp, "group = ", group.value_or(0), "; allowed for int8 only");
  const int64_t n = values.dim() == 2 ? values.size(0) : 0;
  const gemm::Problem problem{0, n, k, int8_group_of(kOp, group)};
  values_arg.is_2d("[n, k / 2]");
  values_arg.has_shape("[n, k / 2]", n, sparse24::values_k(k));
  metadata_arg.has_dtype(ScalarType::Byte);
  metadata_arg.is_2d("[n, ceil(k / 8)]");
  metadata_arg.has_shape("[n, ceil(k / 8)]", n, sparse24::metadata_bytes(k));
  accelerator_of({values_arg, metadata_arg});
  if (bits == 8) raise_if_bad(matmul_sparse24::check_int8(problem));
  const compress_sparse24::Sparse sparse{values.data_ptr(), values_arg.row_stride(),
                                         static_cast<const uint8_t*>(metadata.data_ptr()),
                                         metadata_arg.row_stride()};
  const matmul_sparse24::Shape shape{n, k, bits};
  Tensor data = new_tensor(
      values,
      {sparse24_rows::tiles_n(n), sparse24_rows::tiles_k(k), sparse24_rows::tile_bytes(bits)},
      ScalarType::Byte);
  advise_huge_pages(data.data_ptr(), data.numel());
  raise_if_bad(matmul_sparse24::pack(order, shape, sparse, static_cast<uint8_t*>(data.data_ptr()),
                                     TorchParallel()));
  Tensor sums = bits != 8              ? new_tensor(values, {0}, ScalarType::Int)
                : problem.is_grouped() ? new_tensor(values, {problem.groups(), n}, ScalarType::Int)
                                       : new_tensor(values, {n}, ScalarType::Int);
  if (sums.numel() > 0)
    matmul_sparse24::column_sums(shape, sparse,
                                 problem.is_grouped() ? problem.group : gemm_int8::kMaxK + 1,
                                 static_cast<int32_t*>(sums.data_ptr()), TorchParallel());
  return {data, sums};
}

std::tuple<Tensor, Tensor> unpack(const Tensor& data, int64_t n, int64_t k, std::string layout,
                                  ScalarType dtype) {
  constexpr const char* kOp = "unpack_sparse24";
  require(n >= 0, kOp, "n = ", n, "; may not be negative");
  require(k >= 0 && k % sparse24::kGroupK == 0, kOp, "k = ", k, "; allowed: multiples of 4");
  const int bits = value_bits(kOp, "dtype", dtype);
  const matmul_sparse24::Layout& order = layout_of(kOp, layout, bits);
  require_packed(kOp, "data", data, n, k, sparse24_rows::tile_bytes(bits));
  Tensor values = new_tensor(data, {n, sparse24::values_k(k)}, dtype);
  Tensor metadata = new_tensor(data, {n, sparse24::metadata_bytes(k)}, ScalarType::Byte);
  matmul_sparse24::unpack(order, {n, k, bits}, static_cast<const uint8_t*>(data.data_ptr()),
                          values.data_ptr(), static_cast<uint8_t*>(metadata.data_ptr()),
                          TorchParallel());
  return {values, metadata};
}

// The bytes of a tile of dense rows.
constexpr int dense_bytes(int bits) {
  return sparse24_rows::kTileN * sparse24_rows::kTileK * bits / 8;
}
static_assert(dense_bytes(8) == int8_tile::kTileBytes && dense_bytes(4) == int4::kTileBytes);

// The dense rows of a call's weight, beside the 2:4 rows that `w` has.
struct DenseRows {
  const std::optional<Tensor>& data;  // packed
  const std::vector<int64_t>& bounds;

  // Checks both; a value has `bits` bits.
  void check(const char* op, const Tensor& w, const gemm::Problem& problem, int bits) const {
    require(data.has_value() != bounds.empty(), op, "dense was ", data ? "given" : "not given",
            " with ", bounds.size(), " entries of dense_rows; allowed: both or neither");
    raise_if_bad(matmul_sparse24::check_row_blocks(op, problem.n, bounds));
    const int64_t count = matmul_sparse24::count_dense_rows(bounds);
    require_packed(op, "w", w, problem.n - count, problem.k, sparse24_rows::tile_bytes(bits));
    if (!data) return;
    require(!problem.is_grouped() || bits == 4, op,
            "w has scales along k (group = 128); dense is allowed with group = None");
    require_packed(op, "dense", *data, count, problem.k, dense_bytes(bits));
    accelerator_of({{op, "w", w}, {op, "dense", *data}});
  }
};

const uint8_t* bytes_of(const Tensor& w) { return static_cast<const uint8_t*>(w.data_ptr()); }

#if defined(LAMINA_CUDA_KERNELS)
template <class Params>
void run_plan(const Accelerator& accelerator, const Params& params, const gemm::CudaPlan& plan,
              int64_t workspace_bytes, const Tensor& like) {
  const Workspace workspace(like, workspace_bytes);
  raise_if_bad(matmul_sparse24::run_cuda(params, plan, workspace.data(), accelerator.stream));
}

void run_on(const Accelerator& accelerator, const matmul_sparse24::Int8Params& params, int max_sms,
            const Tensor& like) {
  const gemm::Problem& problem = params.problem;
  require(!problem.is_grouped(), "matmul_sparse24_int8",
          "w has scales along k (group = 128), for which no CUDA kernel is built; allowed on CUDA: "
          "group = None in pack_sparse24");
  const gemm::CudaPlan plan = plan_product(accelerator, matmul_sparse24::int8_cuda_op(), problem,
                                           matmul_sparse24::int8_k_rule(problem), max_sms,
                                           matmul_sparse24::a_alignment(params));
  run_plan(accelerator, params, plan, plan.partial_bytes(problem), like);
}

void run_on(const Accelerator& accelerator, const matmul_sparse24::Int4Params& params, int max_sms,
            const Tensor& like) {
  raise_if_bad(matmul_sparse24::check_cuda(params));
  const gemm::Problem& problem = params.problem;
  const gemm::CudaPlan plan = plan_product(accelerator, matmul_sparse24::int4_cuda_op(), problem,
                                           matmul_sparse24::float_k_rule(problem), max_sms);
  run_plan(accelerator, params, plan, plan.partial_bytes(problem), like);
}

void run_on(const Accelerator& accelerator, const matmul_sparse24::Int4Int8Params& params,
            int max_sms, const Tensor& like) {
  raise_if_bad(matmul_sparse24::check_cuda(params));
  const gemm::Problem& problem = params.problem;
  const gemm::CudaPlan plan = plan_product(
      accelerator, matmul_sparse24::int4_int8_cuda_op(), problem,
      matmul_sparse24::int4_int8_k_rule(problem, params.w_zero_point.is_given()), max_sms);
  run_plan(accelerator, params, plan, matmul_sparse24::workspace_bytes(params, plan), like);
}

void run_on(const Accelerator& accelerator, const matmul_sparse24::FloatParams& params, int max_sms,
            const Tensor& like) {
  raise_if_bad(matmul_sparse24::check_cuda(params));
  const gemm::Problem& problem = params.problem;
  const gemm::CudaPlan plan = plan_product(accelerator, matmul_sparse24::half_cuda_op(), problem,
                                           matmul_sparse24::float_k_rule(problem), max_sms);
  run_plan(accelerator, params, plan, plan.partial_bytes(problem), like);
}
#endif

// The product of 2:4 rows.
template <class Params>
void compute(const std::optional<Accelerator>& accelerator, const Params& params, int max_sms,
             const Tensor& like) {
  if (accelerator) {
    run_on(*accelerator, params, max_sms, like);
  } else if constexpr (requires { params.floats; }) {
    raise_if_bad(matmul_sparse24::run(params, nullptr, TorchParallel()));  // int8 by now
  } else {
    raise_if_bad(matmul_sparse24::run(params, TorchParallel()));
  }
}

// The product of all rows. Dense: the params of the product of dense rows.
template <class Dense, class Sparse>
void compute_rows(const DenseRows& dense, int bits, const std::optional<Accelerator>& accelerator,
                  const Sparse& params, int max_sms, const Tensor& like) {
  if (!dense.data) return compute(accelerator, params, max_sms, like);
  const gemm::Problem& problem = params.problem;
  const int64_t tiles_k = sparse24_rows::tiles_k(problem.k);
  matmul_sparse24::for_row_blocks(problem.n, dense.bounds, [&](const auto& block) {
    if (block.is_dense) {
      Dense part = matmul_sparse24::params_of<Dense>(params, block);
      part.w = reinterpret_cast<decltype(part.w)>(bytes_of(*dense.data)) +
               block.tile * tiles_k * dense_bytes(bits);
      interop::compute(accelerator, part, max_sms, like);
    } else {
      Sparse part = matmul_sparse24::params_of(params, block);
      part.weight.data += block.tile * tiles_k * sparse24_rows::tile_bytes(bits);
      compute(accelerator, part, max_sms, like);
    }
  });
}

}  // namespace

Tensor multiply_sparse24_int8(const Tensor& a, const Tensor& w, const Tensor& w_sums,
                              const Tensor& a_scale, const Tensor& w_scale,
                              std::optional<Tensor> a_zero_point, std::optional<Tensor> bias,
                              ScalarType out_dtype, std::optional<std::string> activation,
                              std::optional<Tensor> gate, std::optional<Tensor> residual,
                              std::optional<int64_t> max_sms, std::optional<Tensor> dense,
                              std::vector<int64_t> dense_rows) {
  constexpr const char* kOp = "matmul_sparse24_int8";
  const int sms = checked_sms(kOp, max_sms);
  const DenseRows rows{dense, dense_rows};
  const EpilogueArguments then{kOp, a, bias, activation, gate, residual};
  const Int8Inputs inputs{a, w, w_sums, a_scale, w_scale, a_zero_point, then};
  matmul_sparse24::Int8Params params;
  const std::optional<Accelerator> accelerator = read_int8(
      kOp, inputs, params, [&](const char* op, const Tensor& weight, const gemm::Problem& problem) {
        raise_if_bad(matmul_sparse24::check_int8(problem));
        rows.check(op, weight, problem, 8);
      });
  params.weight.data = bytes_of(w);
  Tensor out = new_result(kOp, a, inputs.n(), out_dtype, params);
  compute_rows<gemm_int8::Params>(rows, 8, accelerator, params, sms, a);
  return out;
}

Tensor multiply_sparse24_int4(const Tensor& a, const Tensor& w, const Tensor& w_scale,
                              int64_t group, std::optional<Tensor> w_zero_point,
                              std::optional<Tensor> bias, std::optional<ScalarType> out_dtype,
                              std::optional<std::string> activation, std::optional<Tensor> gate,
                              std::optional<Tensor> residual, std::optional<Tensor> perm,
                              std::optional<int64_t> max_sms, std::optional<Tensor> dense,
                              std::vector<int64_t> dense_rows) {
  constexpr const char* kOp = "matmul_sparse24_int4";
  const int sms = checked_sms(kOp, max_sms);
  const DenseRows rows{dense, dense_rows};
  const EpilogueArguments then{kOp, a, bias, activation, gate, residual};
  const Int4Inputs inputs{a, w, w_scale, group, w_zero_point, perm, then};
  matmul_sparse24::Int4Params params;
  const std::optional<Accelerator> accelerator = read_int4(
      kOp, inputs, params, [&](const char* op, const gemm::Problem& problem, const Tensor& weight) {
        raise_if_bad(matmul_sparse24::check_int4(problem));
        rows.check(op, weight, problem, 4);
      });
  params.weight.data = bytes_of(w);
  Tensor out = new_result(kOp, a, inputs.n(), out_dtype.value_or(a.scalar_type()), params);
  compute_rows<gemm_int4::Params>(rows, 4, accelerator, params, sms, a);
  return out;
}

Tensor multiply_sparse24_int4_int8(const Tensor& a, const Tensor& w, const Tensor& w_scale,
                                   int64_t group, std::optional<Tensor> a_scale,
                                   std::optional<Tensor> w_zero_point,
                                   std::optional<Tensor> a_zero_point, std::optional<Tensor> bias,
                                   ScalarType out_dtype, std::optional<std::string> activation,
                                   std::optional<Tensor> gate, std::optional<Tensor> residual,
                                   std::optional<Tensor> perm, std::optional<int64_t> max_sms,
                                   std::optional<Tensor> dense, std::vector<int64_t> dense_rows) {
  constexpr const char* kOp = "matmul_sparse24_int4_int8";
  const int sms = checked_sms(kOp, max_sms);
  const DenseRows rows{dense, dense_rows};
  const EpilogueArguments then{kOp, a, bias, activation, gate, residual};
  const Int4Inputs inputs{a, w, w_scale, group, w_zero_point, perm, then};
  matmul_sparse24::Int4Int8Params params;
  const std::optional<Accelerator> accelerator =
      read_int4_int8(kOp, inputs, {a_scale, a_zero_point}, params,
                     [&](const char* op, const gemm::Problem& problem, const Tensor& weight) {
                       raise_if_bad(matmul_sparse24::check_int4_int8(problem));
                       rows.check(op, weight, problem, 4);
                     });
  params.weight.data = bytes_of(w);
  Tensor out = new_result(kOp, a, inputs.n(), out_dtype, params);
  const Workspace workspace(a, accelerator ? 0 : gemm_int4_int8::workspace_bytes(params));
  if (!accelerator)  // once for all blocks of rows
    raise_if_bad(gemm_int4_int8::quantize_floats(params, workspace.data(), TorchParallel()));
  compute_rows<gemm_int4_int8::Params>(rows, 4, accelerator, params, sms, a);
  return out;
}

namespace {

Tensor matmul(const Tensor& a, const Tensor& w, int64_t n, std::optional<Tensor> bias,
              std::optional<ScalarType> out_dtype, std::optional<std::string> activation,
              std::optional<Tensor> gate, std::optional<Tensor> residual,
              std::optional<int64_t> max_sms) {
  constexpr const char* kOp = "matmul_sparse24";
  const int sms = checked_sms(kOp, max_sms);
  const Argument a_arg{kOp, "a", a};
  const EpilogueArguments then{kOp, a, bias, activation, gate, residual};
  matmul_sparse24::FloatParams params;
  params.a_dtype = a_arg.float_dtype();
  a_arg.is_2d("[m, k]");
  params.problem = {a.size(0), n, a.size(1)};
  raise_if_bad(matmul_sparse24::check_float(params.problem));
  const int bits = value_bits(kOp, "a", a.scalar_type());
  require_packed(kOp, "w", w, n, a.size(1), sparse24_rows::tile_bytes(bits));
  params.a = a.data_ptr();
  params.a_stride = a_arg.row_stride();
  params.weight.data = bytes_of(w);
  then.read(a.size(0), n, params);
  const std::optional<Accelerator> accelerator =
      accelerator_of({a_arg, {kOp, "w", w}}, then.tensors());
  Tensor out = new_result(kOp, a, n, out_dtype.value_or(a.scalar_type()), params);
  compute(accelerator, params, sms, a);
  return out;
}

std::tuple<Tensor, Tensor> pack_cuda(const Tensor&, const Tensor&, int64_t, std::string,
                                     std::optional<int64_t>) {
  fail("pack_sparse24",
       "packs on the CPU only: move values and metadata there, and the result back");
}
std::tuple<Tensor, Tensor> unpack_cuda(const Tensor&, int64_t, int64_t, std::string, ScalarType) {
  fail("unpack_sparse24", "unpacks on the CPU only: move data there");
}

}  // namespace

LAMINA_FRAGMENT(m) {
  m.def(
      "pack_sparse24(Tensor values, Tensor metadata, SymInt k, str layout, int? group=None) -> "
      "(Tensor data, Tensor column_sums)");
  m.def(
      "unpack_sparse24(Tensor data, SymInt n, SymInt k, str layout, ScalarType dtype) -> (Tensor "
      "values, Tensor metadata)");
  m.def(
      "matmul_sparse24(Tensor a, Tensor w, SymInt n, Tensor? bias=None, ScalarType? "
      "out_dtype=None, "
      "str? activation=None, Tensor? gate=None, Tensor? residual=None, int? max_sms=None) -> "
      "Tensor");
  m.def(
      "matmul_sparse24_int4(Tensor a, Tensor w, Tensor w_scale, int group, Tensor? "
      "w_zero_point=None, Tensor? bias=None, ScalarType? out_dtype=None, str? activation=None, "
      "Tensor? gate=None, Tensor? residual=None, Tensor? perm=None, int? max_sms=None, Tensor? "
      "dense=None, int[] dense_rows=[]) -> Tensor");
  m.def(
      "matmul_sparse24_int4_int8(Tensor a, Tensor w, Tensor w_scale, int group, Tensor? "
      "a_scale=None, Tensor? w_zero_point=None, Tensor? a_zero_point=None, Tensor? bias=None, "
      "ScalarType out_dtype=float, str? activation=None, Tensor? gate=None, Tensor? residual=None, "
      "Tensor? perm=None, int? max_sms=None, Tensor? dense=None, int[] dense_rows=[]) -> Tensor");
  m.def(
      "matmul_sparse24_int8(Tensor a, Tensor w, Tensor w_sums, Tensor a_scale, Tensor w_scale, "
      "Tensor? a_zero_point=None, Tensor? bias=None, ScalarType out_dtype=float, str? "
      "activation=None, Tensor? gate=None, Tensor? residual=None, int? max_sms=None, Tensor? "
      "dense=None, int[] dense_rows=[]) -> Tensor");
}
LAMINA_IMPL(CPU, m) {
  m.impl("pack_sparse24", TORCH_BOX(&pack));
  m.impl("unpack_sparse24", TORCH_BOX(&unpack));
  m.impl("matmul_sparse24", TORCH_BOX(&matmul));
  m.impl("matmul_sparse24_int8", TORCH_BOX(&multiply_sparse24_int8));
  m.impl("matmul_sparse24_int4", TORCH_BOX(&multiply_sparse24_int4));
  m.impl("matmul_sparse24_int4_int8", TORCH_BOX(&multiply_sparse24_int4_int8));
}
LAMINA_IMPL(CUDA, m) {
  m.impl("pack_sparse24", TORCH_BOX(&pack_cuda));
  m.impl("unpack_sparse24", TORCH_BOX(&unpack_cuda));
  m.impl("matmul_sparse24", TORCH_BOX(&matmul));
  m.impl("matmul_sparse24_int8", TORCH_BOX(&multiply_sparse24_int8));
  m.impl("matmul_sparse24_int4", TORCH_BOX(&multiply_sparse24_int4));
  m.impl("matmul_sparse24_int4_int8", TORCH_BOX(&multiply_sparse24_int4_int8));
}

}  // namespace lamina::interop
