// The weights of a strip of columns, and how they are multiplied. Each ISA compiles its own copy: gemm/cpu/int8_nest.h
// says why.
#pragma once

#include <cstdint>

namespace lamina::gemm {
namespace {

// Weights in the order of Product, the microkernel that reads them. The columns of one strip are of one Product; the
// strips of a product may differ.
template <class Product>
struct WeightsOf {
  const uint8_t* at;
};

}  // namespace
}  // namespace lamina::gemm
