// A few words of memory on each device that kernels write and the host reads when it likes. The memory is a part of the
// module: it is zero at first, and no call allocates it. The first call may load the module, also while a CUDA graph is
// captured: it relaxes the mode of the capture meanwhile. Not yet shown on hardware.
#pragma once

#include <array>
#include <cstdint>

#include "base/status.h"

namespace lamina::dev {

using Mail = std::array<int64_t, 4>;

// The address of the current device's mailbox, for kernels.
Status mailbox(Mail*& address);

// Waits for all work of the current device, reads its mailbox and empties it. A record of
// work that other threads launch meanwhile may be lost.
Status take_mail(Mail& mail);

}  // namespace lamina::dev
