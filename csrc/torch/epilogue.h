// The arguments that say what follows a product's sums, read into its Epilogue.
#pragma once

#include <optional>
#include <string>

#include "gemm/epilogue.h"
#include "torch/interop.h"

namespace lamina::interop {

// Tensors that may be missing; `stand_in`, which never is, is looked at in their place.
struct EpilogueTensors {
  const char* op;
  const Tensor& stand_in;
  const std::optional<Tensor>&bias, &gate, &residual;

  Argument argument(const char* name, const std::optional<Tensor>& tensor) const {
    return {op, name, tensor ? *tensor : stand_in};
  }
  // Their checks, and what of `epilogue` they give.
  void read(int64_t m, int64_t n, const std::optional<std::string>& activation,
            gemm::Epilogue& epilogue) const;
};

}  // namespace lamina::interop
