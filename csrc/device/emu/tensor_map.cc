// Tensor maps, and the boxes that they cut out of tensors.
#include "device/tensor_map.h"

#include <algorithm>
#include <cstring>

#include "device/emu/async_proxy.h"

namespace lamina::dev {
namespace {

struct Opaque {
  uint64_t magic;
  TensorMapSpec spec;
};
static_assert(sizeof(Opaque) <= sizeof(TensorMap) && alignof(Opaque) <= alignof(TensorMap));
constexpr uint64_t kMagic = 0x74656e736f724d61u;

Status encode_tensor_map(const TensorMapSpec& spec, TensorMap& map) {
  if (Status status = check_tensor_map(spec); !status.is_ok()) return status;
  const Opaque opaque{kMagic, spec};
  std::memcpy(map.opaque, &opaque, sizeof opaque);
  return Status::ok();
}

}  // namespace

Status make_tensor_map(const TensorMapSpec& spec, TensorMap& map) {
  return find_or_encode(spec, map, &encode_tensor_map);
}

namespace emu {
namespace {

constexpr int kChunkBytes = 16;  // a swizzle moves whole chunks

// Calls visit(offset, global pointer, skip, bytes) for each chunk of the box, which lies at `address` of shared
// memory. A chunk is the 16 bytes at `offset` from there; its bytes [skip, skip + bytes) lie in the tensor.
void for_each_chunk(const Box& box, uint32_t address, const auto& visit) {
  const TensorMapSpec& tensor = box.tensor;
  const auto outer = [&](int i) { return i < tensor.rank ? tensor.box[i] : 1; };
  const int64_t size = tensor.element_bytes, row_bytes = tensor.box[0] * size;
  std::byte* const base = static_cast<std::byte*>(const_cast<void*>(tensor.base));
  // The first and last byte of a row of the tensor, counted from the first byte of the box.
  const int64_t first = -box.at[0] * size, last = first + tensor.extent[0] * size;
  uint32_t linear = address;
  for (int i3 = 0; i3 < outer(3); ++i3)
    for (int i2 = 0; i2 < outer(2); ++i2)
      for (int i1 = 0; i1 < outer(1); ++i1) {
        const int inner[kMaxTensorRank] = {0, i1, i2, i3};
        bool is_inside = true;
        int64_t row = 0;
        for (int i = 1; i < tensor.rank; ++i) {
          const int64_t at = int64_t{box.at[i]} + inner[i];
          is_inside &= at >= 0 && at < tensor.extent[i];
          row += at * tensor.stride_bytes[i];
        }
        for (int64_t chunk = 0; chunk < row_bytes; chunk += kChunkBytes, linear += kChunkBytes) {
          const int64_t from = std::clamp<int64_t>(first, chunk, chunk + kChunkBytes);
          const int64_t to = std::clamp<int64_t>(last, from, chunk + kChunkBytes);
          const int64_t bytes = is_inside ? to - from : 0;
          visit(swizzled(tensor.swizzle, linear) - address,
                bytes ? base + row + from - first : nullptr, static_cast<size_t>(from - chunk),
                static_cast<size_t>(bytes));
        }
      }
}

}  // namespace

int Box::bytes() const {
  int count = tensor.element_bytes;
  for (int i = 0; i < tensor.rank; ++i) count *= tensor.box[i];
  return count;
}

void Box::load(std::byte* smem, uint32_t address) const {
  for_each_chunk(*this, address,
                 [&](uint32_t to, const std::byte* from, size_t skip, size_t count) {
                   std::memset(smem + to, 0, kChunkBytes);
                   if (count) std::memcpy(smem + to + skip, from, count);
                 });
}

std::vector<std::span<std::byte>> Box::runs() const {
  std::vector<std::span<std::byte>> runs;
  for_each_chunk(*this, 0, [&](uint32_t, std::byte* at, size_t, size_t count) {
    if (count == 0) return;
    if (!runs.empty() && at == runs.back().data() + runs.back().size()) {
      runs.back() = {runs.back().data(), runs.back().size() + count};
    } else {
      runs.emplace_back(at, count);
    }
  });
  return runs;
}

void Box::store(const std::byte* smem, uint32_t address) const {
  for_each_chunk(*this, address, [&](uint32_t from, std::byte* to, size_t skip, size_t count) {
    if (count) std::memcpy(to, smem + from + skip, count);
  });
}

const TensorMapSpec& tensor_of(const TensorMap& map, int rank, const char* name, Where where) {
  check_access(&map, alignof(TensorMap), name, where);
  const Opaque& opaque = *reinterpret_cast<const Opaque*>(map.opaque);
  if (opaque.magic != kMagic)
    fail(std::string(name) + ": the map was not made by make_tensor_map", where);
  if (opaque.spec.rank != rank)
    fail(std::string(name) + ": the map has rank " + std::to_string(opaque.spec.rank) + ", not " +
             std::to_string(rank),
         where);
  return opaque.spec;
}

}  // namespace emu
}  // namespace lamina::dev
