// Emulates device/mailbox.cu: the mailbox is host memory.
#include "device/mailbox.h"

#include <utility>

namespace lamina::dev {
namespace {

Mail words{};

}  // namespace

Status mailbox(Mail*& address) {
  address = &words;
  return Status::ok();
}

Status take_mail(Mail& mail) {
  mail = std::exchange(words, Mail{});
  return Status::ok();
}

}  // namespace lamina::dev
