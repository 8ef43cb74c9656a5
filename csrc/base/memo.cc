#include "base/memo.h"

namespace lamina {
namespace {

constinit HostWork work;

}  // namespace

HostWork& host_work() { return work; }

}  // namespace lamina
