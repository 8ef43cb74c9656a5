// compress_sparse24: a weight [n, k] with at most two nonzeros in each group of 4 along k  <->  layout/sparse24.h
//
//   decompress(compress(w)) == w, bit for bit; -0.0 becomes 0.0
//
// `fill` is the value of entries that are not kept: 0, or the code of 0 where elements are codes. Without a mask the
// entries that differ from `fill` are kept (NaN and Inf do, -0.0 does not differ from 0); with a mask those that it names.
// A group that keeps fewer than two is completed with `fill`.
// Reference  tests/reference/sparse24.py
#pragma once

#include <cstdint>

#include "base/parallel.h"
#include "base/status.h"
#include "layout/sparse24.h"

namespace lamina::compress_sparse24 {

// The op moves bits: float types differ from integers only in that -0.0 equals 0.
enum class Element : int8_t { kInt8, kFloat16, kFloat32 };  // kFloat16: f16 and bf16

struct Dense {
  const void* data;
  int64_t stride;                 // of rows, in elements
  const uint8_t* mask = nullptr;  // not 0: kept
  int64_t mask_stride = 0;
};

struct Sparse {
  const void* values;
  int64_t values_stride;
  const uint8_t* metadata;
  int64_t metadata_stride;
};

struct Problem {
  Element element;
  int64_t n, k;
  uint32_t fill = 0;  // the bits of an element
};

// values [n, k / 2] and metadata [n, metadata_bytes(k)] are contiguous. More than two kept entries are an error.
Status compress(const Problem& problem, const Dense& w, void* values, uint8_t* metadata,
                const Parallel& parallel);

// w [n, k] is contiguous. A code that layout/sparse24.h does not have is an error.
Status decompress(const Problem& problem, const Sparse& sparse, void* w, const Parallel& parallel);

// The check of decompress alone, for packers of metadata that comes from elsewhere.
Status check_metadata(const char* op, const uint8_t* metadata, int64_t stride, int64_t n, int64_t k,
                      const Parallel& parallel);

}  // namespace lamina::compress_sparse24
