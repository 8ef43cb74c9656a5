// The outcome of every check, plan and launch below the torch binding. The binding turns a bad one
// into an exception; nothing below it throws, but for std::bad_alloc.
#pragma once

#include <sstream>
#include <string>
#include <utility>

namespace lamina {

class [[nodiscard]] Status {
 public:
  static Status ok() { return Status(); }

  // error("gemm_int8: k = ", k, " must be ...") reads like the message it makes.
  template <class... Parts>
  static Status error(const Parts&... parts) {
    std::ostringstream text;
    (text << ... << parts);
    Status status;
    status.failed_ = true;
    status.message_ = std::move(text).str();
    return status;
  }

  bool is_ok() const { return !failed_; }
  const std::string& message() const { return message_; }

 private:
  bool failed_ = false;
  std::string message_;
};

}  // namespace lamina
