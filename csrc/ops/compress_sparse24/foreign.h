// 2:4 weights in the orders of layout/sparse24_foreign.h  ->  layout/sparse24.h
#pragma once

#include <cstdint>
#include <string_view>

#include "base/parallel.h"
#include "base/status.h"

namespace lamina::compress_sparse24 {

// How an order keeps metadata: its name, the bytes of a word, and the multiples that n and k must be.
struct Order {
  std::string_view name;
  int word_bytes;
  int n_step, k_step;
};

// Finds an order by its name; the error of `op` names all.
Status order_of(const char* op, std::string_view name, const Order*& order);

// Checks n and k against the steps of the order.
Status check(const char* op, const Order& order, int64_t n, int64_t k);

// n and k have passed the check. words: word_bytes each, as many as metadata has bytes, but for cutlass_pairs twice as many
// bytes. metadata: n rows of sparse24::metadata_bytes(k). A group that does not keep two different entries, in rising
// order, is an error.
Status import_metadata(const char* op, const Order& order, const void* words, int64_t n, int64_t k,
                       uint8_t* metadata, const Parallel& parallel);

// The kept codes of marlin-24, of 4 or 8 bits, n a multiple of 64, k of 32: codes [n, k / 2], a byte each.
Status import_marlin24(const int32_t* words, int bits, int64_t n, int64_t k, uint8_t* codes,
                       const Parallel& parallel);

}  // namespace lamina::compress_sparse24
