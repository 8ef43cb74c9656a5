#include <cuda_runtime_api.h>

#include <atomic>

#include "device/mailbox.h"

namespace lamina::dev {
namespace {

__device__ int64_t mailbox_words[std::tuple_size_v<Mail>];

constexpr int kMaxDevices = 64;

// The address of the words on the current device. The first question loads the module, which the default mode of a capture
// refuses: by then no work of the capture depends on it.
cudaError_t find_words(void*& address) {
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  if (cudaError_t error = cudaThreadExchangeStreamCaptureMode(&mode); error != cudaSuccess)
    return error;
  const cudaError_t found = cudaGetSymbolAddress(&address, mailbox_words);
  const cudaError_t restored = cudaThreadExchangeStreamCaptureMode(&mode);
  return found != cudaSuccess ? found : restored;
}

Status failed(cudaError_t error) {
  (void)cudaGetLastError();  // clears the error, which the Status reports
  return Status::device_error("mailbox: ", cudaGetErrorString(error));
}

}  // namespace

Status mailbox(Mail*& address) {
  static std::array<std::atomic<Mail*>, kMaxDevices> known{};
  int device = 0;
  if (cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return failed(error);
  if (device >= kMaxDevices) return failed(cudaErrorInvalidDevice);
  std::atomic<Mail*>& kept = known[static_cast<size_t>(device)];
  address = kept.load(std::memory_order_acquire);
  if (address != nullptr) return Status::ok();
  void* found = nullptr;
  if (cudaError_t error = find_words(found); error != cudaSuccess) return failed(error);
  address = static_cast<Mail*>(found);
  kept.store(address, std::memory_order_release);
  return Status::ok();
}

Status take_mail(Mail& mail) {
  Mail* address = nullptr;
  if (Status status = mailbox(address); !status.is_ok()) return status;
  if (cudaError_t error = cudaDeviceSynchronize(); error != cudaSuccess) return failed(error);
  if (cudaError_t error = cudaMemcpy(mail.data(), address, sizeof(Mail), cudaMemcpyDeviceToHost);
      error != cudaSuccess)
    return failed(error);
  if (mail == Mail{}) return Status::ok();
  if (cudaError_t error = cudaMemset(address, 0, sizeof(Mail)); error != cudaSuccess)
    return failed(error);
  const cudaError_t error = cudaStreamSynchronize(nullptr);
  return error == cudaSuccess ? Status::ok() : failed(error);
}

}  // namespace lamina::dev
