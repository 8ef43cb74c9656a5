#include "torch/epilogue.h"

namespace lamina::interop {
namespace {

Activation activation_of(const char* op, const std::optional<std::string>& name) {
  if (!name) return Activation::kNone;
  if (*name == "gelu") return Activation::kGelu;
  if (*name == "gelu_tanh") return Activation::kGeluTanh;
  if (*name == "silu") return Activation::kSilu;
  fail(op, "activation = \"", *name, "\"; allowed: None, \"gelu\", \"gelu_tanh\", \"silu\"");
}

gemm::Operand operand(const Argument& argument, int64_t m, int64_t n) {
  argument.is_2d("[m, n]");
  argument.has_shape("[m, n]", m, n);
  return {argument.tensor.data_ptr(), argument.row_stride(), argument.float_dtype()};
}

}  // namespace

void EpilogueArguments::read(int64_t m, int64_t n, gemm::Epilogue& epilogue) const {
  if (bias) {
    const Argument vector = argument("bias", bias);
    epilogue.bias_dtype = vector.float_dtype();
    vector.is_vector("n", n);
    epilogue.bias = bias->data_ptr();
  }
  epilogue.activation = activation_of(op, activation);
  if (gate) epilogue.gate = operand(argument("gate", gate), m, n);
  if (residual) epilogue.residual = operand(argument("residual", residual), m, n);
}

Tensor new_result(const char* op, const Tensor& a, int64_t n, ScalarType out_dtype,
                  gemm::Epilogue& epilogue) {
  epilogue.out_dtype = float_dtype(op, "out_dtype", out_dtype);
  Tensor out = new_tensor(a, {a.size(0), n}, out_dtype);
  epilogue.out = out.data_ptr();
  epilogue.out_stride = n;
  return out;
}

}  // namespace lamina::interop
