#include "base/memo.h"

namespace lamina {

HostWork& host_work() {
  static HostWork work;
  return work;
}

}  // namespace lamina
