// Reads the arguments of a product's epilogue into its Epilogue.
#pragma once

#include <optional>
#include <string>

#include "gemm/epilogue.h"
#include "torch/interop.h"

namespace lamina::interop {

// The tensors of the epilogue, each of which may be missing. `stand_in` is always given and replaces missing tensors in
// checks of the device.
struct EpilogueTensors {
  const char* op;
  const Tensor& stand_in;
  const std::optional<Tensor>&bias, &gate, &residual;

  Argument argument(const char* name, const std::optional<Tensor>& tensor) const {
    return {op, name, tensor ? *tensor : stand_in};
  }
  // Checks the tensors and the activation, and sets their members of `epilogue`.
  void read(int64_t m, int64_t n, const std::optional<std::string>& activation,
            gemm::Epilogue& epilogue) const;
};

// The result [m, n] of a product of `a`, to which the epilogue then points.
Tensor new_result(const char* op, const Tensor& a, int64_t n, ScalarType out_dtype,
                  gemm::Epilogue& epilogue);

}  // namespace lamina::interop
