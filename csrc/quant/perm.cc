#include "quant/perm.h"

#include <algorithm>

namespace lamina {

Status check(const char* op, const Perm& perm, int64_t k) {
  if (!perm.is_given()) return Status::ok();
  // One unsigned comparison an entry, because every call on a CPU runs this loop: -1 wraps to 0, smaller values to more
  // than 2^31.
  const auto most = static_cast<uint32_t>(std::min(perm.features, int64_t{1} << 31));
  const auto is_wrong = [most](int32_t feature) {
    return static_cast<uint32_t>(feature) + 1 > most;
  };
  uint32_t wrong = 0;
  for (int64_t p = 0; p < k; ++p) wrong |= static_cast<uint32_t>(is_wrong(perm.data[p]));
  if (wrong == 0) return Status::ok();
  const int64_t p = std::find_if(perm.data, perm.data + k, is_wrong) - perm.data;
  return Status::error(op, ": perm[", p, "] = ", perm.data[p], "; allowed: -1 to ",
                       perm.features - 1);
}

}  // namespace lamina
