// A ring of stages in shared memory, filled by producers and read by consumers.
#pragma once

#include "device/device.h"

namespace lamina {

// The position in a ring: a stage, and the parity of its barriers, which flips each time round.
template <int kStages>
struct RingCursor {
  int stage = 0, parity = 0;

  LAMINA_DEVICE void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

}  // namespace lamina
