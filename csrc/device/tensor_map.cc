#include "device/tensor_map.h"

#include <cstdint>

#include "base/memo.h"

namespace lamina::dev {
namespace {

auto key_of(const TensorMapSpec& spec) {
  const auto& [base, rank, element_bytes, extent, stride_bytes, box, swizzle] = spec;
  return memo_key(base, rank, element_bytes, extent, stride_bytes, box, swizzle);
}

}  // namespace

Status check_tensor_map(const TensorMapSpec& spec) {
  constexpr int64_t kMaxExtent = int64_t{1} << 32, kMaxStride = int64_t{1} << 40;
  constexpr int kMaxBox = 256, kAlignment = 16;
  if (reinterpret_cast<uintptr_t>(spec.base) % kAlignment != 0 || !spec.base)
    return Status::error("tensor map: base = ", spec.base, " must be a multiple of ", kAlignment,
                         ", not null");
  if (spec.rank < 2 || spec.rank > kMaxTensorRank)
    return Status::error("tensor map: rank = ", spec.rank, " must be 2 to ", kMaxTensorRank);
  if (spec.element_bytes != 1 && spec.element_bytes != 2 && spec.element_bytes != 4)
    return Status::error("tensor map: element_bytes = ", spec.element_bytes, " must be 1, 2 or 4");
  for (int i = 0; i < spec.rank; ++i) {
    if (spec.extent[i] < 1 || spec.extent[i] > kMaxExtent)
      return Status::error("tensor map: extent[", i, "] = ", spec.extent[i], " must be 1 to 2^32");
    if (i > 0 && (spec.stride_bytes[i] < 0 || spec.stride_bytes[i] >= kMaxStride ||
                  spec.stride_bytes[i] % kAlignment != 0))
      return Status::error("tensor map: stride_bytes[", i, "] = ", spec.stride_bytes[i],
                           " must be a multiple of ", kAlignment, " below 2^40");
    if (spec.box[i] < 1 || spec.box[i] > kMaxBox)
      return Status::error("tensor map: box[", i, "] = ", spec.box[i], " must be 1 to ", kMaxBox);
  }
  // The driver may accept rows that overlap, but its documentation does not say so.
  const int64_t tensor_row_bytes = spec.extent[0] * spec.element_bytes;
  for (int i = 1; i < spec.rank; ++i)
    if (spec.stride_bytes[i] < tensor_row_bytes)
      return Status::error("tensor map: stride_bytes[", i, "] = ", spec.stride_bytes[i],
                           " must be at least the ", tensor_row_bytes, " bytes of a row");
  const int row_bytes = spec.box[0] * spec.element_bytes, span = swizzle_bytes(spec.swizzle);
  if (row_bytes % kAlignment != 0)
    return Status::error("tensor map: box[0] = ", spec.box[0], " elements are ", row_bytes,
                         " bytes; a multiple of ", kAlignment, " is possible");
  // The driver accepts shorter rows too, but its documentation does not say how far apart such rows then lie.
  if (span != 0 && row_bytes != span)
    return Status::error("tensor map: box[0] = ", spec.box[0], " elements are ", row_bytes,
                         " bytes; with a swizzle of ", span, " bytes they must be as many");
  return Status::ok();
}

Status find_or_encode(const TensorMapSpec& spec, TensorMap& map,
                      Status (*encode)(const TensorMapSpec&, TensorMap&)) {
  const auto key = key_of(spec);
  // Room for 2048 maps, about 600 KB: one for each weight of a large model, and for the activations between them.
  static thread_local Memo<key.size(), TensorMap, 512> known(host_work().tensor_maps);
  if (const TensorMap* found = known.find(key)) {
    map = *found;
    return Status::ok();
  }
  if (Status status = encode(spec, map); !status.is_ok()) return status;
  known.keep(key, map);
  return Status::ok();
}

}  // namespace lamina::dev
