// paged_kv on a GPU. No function waits for the device or reads a tensor there, so all may be captured in a CUDA graph.
// Kernels skip bad indices and record the first one: kv/error_word.h.
#pragma once

#include "base/status.h"
#include "device/device_info.h"
#include "ops/paged_kv/paged_kv.h"

namespace lamina::paged_kv {

// With two tokens of one slot, either is stored, or a mixture of both.
Status append_cuda(const Append& params, const DeviceInfo& device, void* stream);
// Tokens of bad pages, and of no request, are zeros.
Status gather_cuda(const Gather& params, const DeviceInfo& device, void* stream);
// If a destination is another pair's source or destination, its contents are undefined.
Status copy_cuda(const Copy& params, void* stream);
// For max_accepted <= kMaxAccepted: 48 KiB of shared memory hold 16 bytes of every accepted row.
inline constexpr int64_t kMaxAccepted = 3000;
Status compact_cuda(const Compact& params, void* stream);

}  // namespace lamina::paged_kv
