// The outcome of every check, plan and launch below the torch binding. The binding turns a bad Status into an
// exception; the code below the binding throws nothing but std::bad_alloc.
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
    return failed(Kind::kArgument, parts...);
  }
  // An error of the device or its driver. It does not depend on the arguments, and an earlier launch may have caused
  // it.
  template <class... Parts>
  static Status device_error(const Parts&... parts) {
    return failed(Kind::kDevice, parts...);
  }

  bool is_ok() const { return kind_ == Kind::kOk; }
  bool is_device_error() const { return kind_ == Kind::kDevice; }
  const std::string& message() const { return message_; }

 private:
  enum class Kind { kOk, kArgument, kDevice };

  template <class... Parts>
  static Status failed(Kind kind, const Parts&... parts) {
    std::ostringstream text;
    (text << ... << parts);
    Status status;
    status.kind_ = kind;
    status.message_ = std::move(text).str();
    return status;
  }

  Kind kind_ = Kind::kOk;
  std::string message_;
};

}  // namespace lamina
