// The arguments that all products of int8 activations and int8 weights share.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "ops/gemm_int8/gemm_int8.h"
#include "torch/accelerator.h"
#include "torch/epilogue.h"
#include "torch/interop.h"

namespace lamina::interop {

// The group of a Problem; None means no scales along k.
int64_t int8_group_of(const char* op, std::optional<int64_t> group);

// The arguments that these products take.
struct Int8Inputs {
  const Tensor &a, &w, &w_sums, &a_scale, &w_scale;
  const std::optional<Tensor>& a_zero_point;
  const EpilogueArguments& then;
  std::optional<Tensor> out_scale = std::nullopt;  // only of gemm_int8_quantized

  int64_t m() const { return a.size(0); }
  int64_t n() const { return w_sums.dim() == 2 ? w_sums.size(1) : w_sums.numel(); }
};

// Checks that w is packed for the problem.
using RequirePacked =
    std::function<void(const char* op, const Tensor& w, const gemm::Problem& problem)>;

// Checks all inputs and fills all Params but the outputs. Returns the device of the call.
std::optional<Accelerator> read_int8(const char* op, const Int8Inputs& in,
                                     gemm_int8::Params& params,
                                     const RequirePacked& require_packed);

// gemm_int8 on the device of a call. like: a tensor there.
void compute(const std::optional<Accelerator>& accelerator, const gemm_int8::Params& params,
             int max_sms, const Tensor& like);

}  // namespace lamina::interop
