// The first bad index or scale that a kernel has skipped. The host cannot check the contents of device tensors without
// waiting for the device, so kernels skip a bad index and record it here; the host reads the record when it likes.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"
#include "device/mailbox.h"

namespace lamina::kv {

enum class ErrorOp : int8_t {
  kNone,
  kAppend,
  kGather,
  kCopy,
  kCompact,
  kPagedAttention,
  kPackTreeMask
};

enum class ErrorArgument : int8_t {
  kSlotMapping,
  kPositions,
  kKScale,
  kVScale,
  kCuSeqlensK,
  kCuSeqlensQ,
  kBlockTable,
  kBlockMapping,
  kSeqLens,
  kTreeLen,
  kTreeDepth,
  kAccepted,
  kParents,
};

inline constexpr int32_t kNoColumn = -1;

// One for each device. The thread that changes `code` from 0 owns the record and writes the rest.
struct ErrorWord {
  int32_t code = 0;  // error_code(); 0: no error
  int32_t column = 0;
  int64_t row = 0, value = 0;  // argument[row, column] = value; the bits of a float value
  int64_t unused = 0;
};
static_assert(sizeof(ErrorWord) == sizeof(dev::Mail));

constexpr int32_t error_code(ErrorOp op, ErrorArgument argument) {
  return static_cast<int32_t>(op) << 8 | static_cast<int32_t>(argument);
}

// The current device's word, for kernels.
inline Status error_word(ErrorWord*& word) {
  dev::Mail* address = nullptr;
  Status status = dev::mailbox(address);
  word = reinterpret_cast<ErrorWord*>(address);
  return status;
}

// "append_paged_kv: slot_mapping[3] = 77 must be ..."; empty without an error.
std::string error_text(const ErrorWord& word);

}  // namespace lamina::kv
