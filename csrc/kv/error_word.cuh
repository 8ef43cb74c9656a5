// The device's side of kv/error_word.h.
#pragma once

#include "device/device.h"
#include "kv/error_word.h"

namespace lamina::kv {

// Records argument[row, column] = value, unless an error is recorded already. Any number of threads may report.
LAMINA_DEVICE void report(ErrorWord* word, ErrorOp op, ErrorArgument argument, int64_t value,
                          int64_t row, int32_t column = kNoColumn) {
  if (dev::atomic_cas(&word->code, 0, error_code(op, argument)) != 0) return;
  dev::store_global(&word->column, column);
  dev::store_global(&word->row, row);
  dev::store_global(&word->value, value);
}

}  // namespace lamina::kv
