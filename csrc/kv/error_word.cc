#include "kv/error_word.h"

#include <bit>
#include <sstream>

namespace lamina::kv {
namespace {

const char* op_name(ErrorOp op) {
  switch (op) {
    case ErrorOp::kAppend:
      return "append_paged_kv";
    case ErrorOp::kGather:
      return "gather_paged_kv";
    case ErrorOp::kCopy:
      return "copy_kv_blocks";
    case ErrorOp::kCompact:
      return "compact_kv";
    case ErrorOp::kPagedAttention:
      return "paged_attention";
    case ErrorOp::kPackTreeMask:
      return "pack_tree_mask";
    case ErrorOp::kNone:
      break;
  }
  return "an op";
}

struct Described {
  const char *name, *allowed;
};

constexpr const char* kScaleRange = "finite and at least 2^-126";
constexpr const char* kOffsets =
    "offsets that begin with 0, never decrease and end with the number of tokens";
constexpr const char* kNodes = "at least 0 and below the nodes of the tree";

Described described(ErrorArgument argument) {
  switch (argument) {
    case ErrorArgument::kSlotMapping:
      return {"slot_mapping", "-1, or at least 0 and below pages * page"};
    case ErrorArgument::kPositions:
      return {"positions", "at least 0 and below the rows of cos"};
    case ErrorArgument::kKScale:
      return {"k_scale", kScaleRange};
    case ErrorArgument::kVScale:
      return {"v_scale", kScaleRange};
    case ErrorArgument::kCuSeqlensK:
      return {"cu_seqlens_k", kOffsets};
    case ErrorArgument::kCuSeqlensQ:
      return {"cu_seqlens_q", kOffsets};
    case ErrorArgument::kBlockTable:
      return {"block_table", "at least 0 and below the pages of the cache"};
    case ErrorArgument::kBlockMapping:
      return {"block_mapping", "at least 0 and below the pages of the cache"};
    case ErrorArgument::kSeqLens:
      return {"seq_lens", "at least 0, with room in block_table"};
    case ErrorArgument::kTreeLen:
      return {"tree_len", "at least 0 and at most the length of the request"};
    case ErrorArgument::kTreeDepth:
      return {"tree_depth", kNodes};
    case ErrorArgument::kAccepted:
      return {"accepted", kNodes};
    case ErrorArgument::kParents:
      return {"parents", "-1 or a node before it in its request"};
  }
  return {"an argument", "allowed"};
}

}  // namespace

std::string error_text(const ErrorWord& word) {
  if (word.code == 0) return {};
  const auto argument = static_cast<ErrorArgument>(word.code & 0xff);
  const auto [name, allowed] = described(argument);
  std::ostringstream text;
  text << op_name(static_cast<ErrorOp>(word.code >> 8)) << ": " << name << "[" << word.row;
  if (word.column != kNoColumn) text << ", " << word.column;
  text << "] = ";
  if (argument == ErrorArgument::kKScale || argument == ErrorArgument::kVScale) {
    text << std::bit_cast<float>(static_cast<int32_t>(word.value));
  } else {
    text << word.value;
  }
  text << " must be " << allowed;
  return text.str();
}

}  // namespace lamina::kv
