// The bridge between torch's stable ABI and lamina's Params: checks whose errors name the argument, and torch's
// thread pool.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "base/broadcast.h"
#include "base/numeric.h"
#include "base/parallel.h"
#include "base/status.h"

// The namespace of the ops: `lamina`, and `lamina_emu` in the test-only library.
#if !defined(LAMINA_NAMESPACE)
#define LAMINA_NAMESPACE lamina
#endif
#define LAMINA_LIBRARY(m) LAMINA_LIBRARY_IN(LAMINA_NAMESPACE, m)
#define LAMINA_LIBRARY_IN(ns, m) STABLE_TORCH_LIBRARY(ns, m)
// The schemas of a file. No argument is named `mode`: opcheck passes a keyword of that name itself.
#define LAMINA_FRAGMENT(m) LAMINA_FRAGMENT_IN(LAMINA_NAMESPACE, m)
#define LAMINA_FRAGMENT_IN(ns, m) STABLE_TORCH_LIBRARY_FRAGMENT(ns, m)
#define LAMINA_IMPL(key, m) LAMINA_IMPL_IN(LAMINA_NAMESPACE, key, m)
#define LAMINA_IMPL_IN(ns, key, m) STABLE_TORCH_LIBRARY_IMPL(ns, key, m)

namespace lamina::interop {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Messages read: "lamina::gemm_int8: a must be 2-D [m, k], got 3-D [1, 2, 3]".
template <class... Parts>
[[noreturn]] void fail(const char* op, const Parts&... parts) {
  std::ostringstream text;
  text << "lamina::" << op << ": ";
  (text << ... << parts);
  throw std::invalid_argument(std::move(text).str());
}

// Checks run in every call and hardly ever fail. A part that is costly to format is therefore formatted in operator<<.
template <class... Parts>
void require(bool condition, const char* op, const Parts&... parts) {
  static_assert((!std::is_same_v<Parts, std::string> && ...),
                "pass the parts of the message, not a finished string");
  if (!condition) fail(op, parts...);
}

// Status messages start with the op's name already. Wrong arguments become a ValueError, device errors a RuntimeError.
inline void raise_if_bad(const Status& status) {
  if (status.is_device_error()) throw std::runtime_error("CUDA: " + status.message());
  if (!status.is_ok()) throw std::invalid_argument("lamina::" + status.message());
}

// Prints "3-D [1, 2, 3]".
struct ShapeText {
  const Tensor& tensor;
};
std::ostream& operator<<(std::ostream& out, const ShapeText& shape);

const char* dtype_text(ScalarType dtype);
DType float_dtype(const char* op, const char* name, ScalarType dtype);

// A tensor argument and its name. The checks raise an error unless the argument is as their name says.
struct Argument {
  const char* op;
  const char* name;
  const Tensor& tensor;

  void has_dtype(ScalarType dtype) const;
  void is_2d(const char* dims) const;                                     // with unit column stride
  void is_vector(const char* size, int64_t count) const;                  // contiguous
  void has_shape(const char* dims, int64_t rows, int64_t columns) const;  // after is_2d
  DType float_dtype() const;                                              // f32, f16 or bf16
  int64_t row_stride() const;              // of a 2-D tensor; 0 if there is no second row
  bool is_broadcast(int64_t count) const;  // one element, or `count` elements
  int64_t broadcast_stride(int64_t count, const char* dims) const;  // an error unless is_broadcast
};

template <class T>
Broadcast<T> broadcast(const Argument& argument, ScalarType dtype, int64_t count,
                       const char* dims) {
  argument.has_dtype(dtype);
  const int64_t stride = argument.broadcast_stride(count, dims);
  return {static_cast<const T*>(argument.tensor.data_ptr()), stride};
}

Tensor new_tensor(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType dtype);

// Memory on the device of `like` for as long as the Workspace lives. For 0 bytes it asks torch for nothing.
class Workspace {
 public:
  Workspace(const Tensor& like, int64_t bytes) {
    if (bytes > 0) memory_ = new_tensor(like, {bytes}, ScalarType::Char);
  }
  void* data() const { return memory_ ? memory_->data_ptr() : nullptr; }

 private:
  std::optional<Tensor> memory_;
};

class TorchParallel final : public Parallel {
 public:
  int threads() const override { return static_cast<int>(torch::stable::get_num_threads()); }
  void run(int64_t count, int64_t grain, void (*body)(void*, int64_t, int64_t),
           void* context) const override {
    torch::stable::parallel_for(0, count, grain,
                                [&](int64_t begin, int64_t end) { body(context, begin, end); });
  }
};

}  // namespace lamina::interop
