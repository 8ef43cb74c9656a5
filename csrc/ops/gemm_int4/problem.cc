#include "ops/gemm_int4/problem.h"

#include <algorithm>

namespace lamina::gemm_int4 {

Status check(const char* op, const Problem& p, int64_t max_k, const char* why) {
  if (p.m < 0 || p.n < 0 || p.k < 0)
    return Status::error(op, ": m = ", p.m, ", n = ", p.n, ", k = ", p.k, "; none may be negative");
  if (p.k > max_k) return Status::error(op, ": k = ", p.k, " must be at most ", max_k, ", ", why);
  if (p.group <= 0 || p.group % kGroupStep != 0)
    return Status::error(op, ": group = ", p.group, "; must be a positive multiple of ", kGroupStep,
                         ", or -1 for all of k");
  if (p.k > kLargestK || !checked_product(p.m, std::max<int64_t>(p.n, 1), 4) ||
      !checked_product(p.m, std::max<int64_t>(p.k, 1), 4) || !int4::packed_bytes(p.n, p.k))
    return Status::error(op, ": m = ", p.m, ", n = ", p.n, ", k = ", p.k,
                         " needs more than 2^63 bytes");
  return Status::ok();
}

Status check(const char* op, const Perm& perm, int64_t k) {
  if (!perm.is_given()) return Status::ok();
  // One comparison of 32 bits: -1 wraps to 0, what is below to more than 2^31. It runs in every call.
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

}  // namespace lamina::gemm_int4
