// Reads the arguments of a product's epilogue into its Epilogue.
#pragma once

#include <array>
#include <optional>
#include <string>

#include "gemm/epilogue.h"
#include "torch/interop.h"

namespace lamina::interop {

// The arguments of the epilogue, each of which may be missing. `stand_in` is always given and replaces missing tensors in
// checks of the device.
struct EpilogueArguments {
  const char* op;
  const Tensor& stand_in;
  const std::optional<Tensor>& bias;
  const std::optional<std::string>& activation;
  const std::optional<Tensor>&gate, &residual;

  Argument argument(const char* name, const std::optional<Tensor>& tensor) const {
    return {op, name, tensor ? *tensor : stand_in};
  }
  // The tensors, for the check of the device.
  std::array<Argument, 3> tensors() const {
    return {argument("bias", bias), argument("gate", gate), argument("residual", residual)};
  }
  // Checks the arguments and sets their members of `epilogue`.
  void read(int64_t m, int64_t n, gemm::Epilogue& epilogue) const;
};

// The result [m, n] of a product of `a`, to which the epilogue then points.
Tensor new_result(const char* op, const Tensor& a, int64_t n, ScalarType out_dtype,
                  gemm::Epilogue& epilogue);

}  // namespace lamina::interop
