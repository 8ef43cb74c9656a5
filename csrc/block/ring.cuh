// A ring of stages in shared memory: producers fill the stages, consumers read them.
#pragma once

#include "device/device.h"

namespace lamina {

// A position in a ring: the stage, and the parity of its barriers. The parity flips after each round.
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
