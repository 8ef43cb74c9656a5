#include "gemm/problem.h"

#include <algorithm>

#include "layout/int4.h"
#include "layout/int8_tile.h"

namespace lamina::gemm {
namespace {

Status too_large(const char* op, const Problem& p) {
  return Status::error(op, ": m = ", p.m, ", n = ", p.n, ", k = ", p.k,
                       " needs more than 2^63 bytes");
}

}  // namespace

Status check(const char* op, const Problem& p, int64_t max_k, const char* why) {
  if (p.m < 0 || p.n < 0 || p.k < 0)
    return Status::error(op, ": m = ", p.m, ", n = ", p.n, ", k = ", p.k, "; none may be negative");
  if (p.k > max_k) return Status::error(op, ": k = ", p.k, " must be at most ", max_k, ", ", why);
  if (!checked_product(p.m, std::max<int64_t>(p.n, 1), 4) ||
      !checked_product(p.m, std::max<int64_t>(p.k, 1), 4) || !int8_tile::packed_bytes(p.n, p.k))
    return too_large(op, p);
  return Status::ok();
}

Status check_int4(const char* op, const Problem& p, int64_t max_k, const char* why) {
  if (Status status = check(op, p, max_k, why); !status.is_ok()) return status;
  if (p.group <= 0 || p.group % kInt4GroupStep != 0)
    return Status::error(op, ": group = ", p.group, "; must be a positive multiple of ",
                         kInt4GroupStep, ", or -1 for all of k");
  return p.k > kLargestK ? too_large(op, p) : Status::ok();
}

}  // namespace lamina::gemm
