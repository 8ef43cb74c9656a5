// The plan of an op on a CPU whose rows are independent: the threads share the rows evenly, and a task has a least size.
#pragma once

#include <cstdint>
#include <string>

#include "base/cpu_features.h"
#include "base/status.h"

namespace lamina {

struct RowPlan {
  const char* op;
  const char* columns_name;  // in messages
  int64_t grain_elements;    // the fewest elements for which waking a thread pays

  // The rows of the smallest task.
  int64_t grain_rows(int64_t columns) const;
  Status check(int64_t m, int64_t columns) const;
  // text: what the call of these extents runs.
  Status explain(int64_t m, int64_t columns, const char* kernel, Isa isa, int threads,
                 std::string& text) const;
};

}  // namespace lamina
