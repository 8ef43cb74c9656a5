#include "base/row_plan.h"

#include <algorithm>
#include <iomanip>
#include <sstream>

#include "base/int_math.h"

namespace lamina {

int64_t RowPlan::grain_rows(int64_t columns) const {
  return std::max<int64_t>(1, grain_elements / std::max<int64_t>(1, columns));
}

Status RowPlan::check(int64_t m, int64_t columns) const {
  if (m >= 0 && columns >= 0) return Status::ok();
  return Status::error(op, ": m = ", m, ", ", columns_name, " = ", columns,
                       "; none may be negative");
}

Status RowPlan::explain(int64_t m, int64_t columns, const char* kernel, Isa isa, int threads,
                        std::string& text) const {
  if (Status status = check(m, columns); !status.is_ok()) return status;
  const int64_t tasks = std::max<int64_t>(1, ceil_div(m, grain_rows(columns)));
  std::ostringstream out;
  out << std::left << std::setw(14) << op << " m = " << m << ", " << columns_name << " = "
      << columns << "\n"
      << "kernel         " << kernel << ": best of this build for " << isa_name(isa) << "\n"
      << "tasks          " << std::min<int64_t>(threads, tasks) << " on " << threads
      << " threads: a task is at least " << grain_elements << " elements";
  text = out.str();
  return Status::ok();
}

}  // namespace lamina
