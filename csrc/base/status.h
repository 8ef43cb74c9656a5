// The outcome of every check, plan and launch below the torch binding. The binding turns a bad Status into an
// exception; the code below the binding throws nothing but std::bad_alloc.
#pragma once

#include <string>
#include <type_traits>
#include <utility>

namespace lamina {

std::string text_of(double number);        // with six digits
std::string text_of(const void* address);  // in hexadecimal

// Appends a number, a character or text. <sstream> would take a third of the time of compiling the headers.
template <class Part>
void append_text(std::string& text, const Part& part) {
  if constexpr (std::is_floating_point_v<Part> || std::is_same_v<Part, const void*>) {
    text += text_of(part);
  } else if constexpr (std::is_integral_v<Part> && !std::is_same_v<Part, char>) {
    text += std::to_string(part);
  } else {
    text += part;
  }
}

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
    Status status;
    status.kind_ = kind;
    (append_text(status.message_, parts), ...);
    return status;
  }

  Kind kind_ = Kind::kOk;
  std::string message_;
};

}  // namespace lamina
