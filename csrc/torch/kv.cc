#include "torch/kv.h"

#include <algorithm>
#include <array>

#include "base/int_math.h"

namespace lamina::interop {
namespace {

std::optional<kv::CacheDType> cache_dtype(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return kv::CacheDType::kF32;
    case ScalarType::Half:
      return kv::CacheDType::kF16;
    case ScalarType::BFloat16:
      return kv::CacheDType::kBF16;
    case ScalarType::Float8_e4m3fn:
      return kv::CacheDType::kE4M3;
    case ScalarType::Char:
      return kv::CacheDType::kI8;
    default:
      return std::nullopt;
  }
}

}  // namespace

kv::Cache cache_of(const Argument& cache) {
  const auto& [op, name, t] = cache;
  require(t.dim() == 4, op, name, " must be 4-D [pages, page, kv_heads, head_dim], got ",
          ShapeText{t});
  const std::optional<kv::CacheDType> dtype = cache_dtype(t.scalar_type());
  require(dtype.has_value(), op, name,
          " must be float32, float16, bfloat16, float8_e4m3fn or int8, got ",
          dtype_text(t.scalar_type()));
  const int64_t head_dim = t.size(3);
  require(t.size(1) >= 1 && t.size(2) >= 1, op, name,
          " must have page >= 1 and kv_heads >= 1, got ", ShapeText{t});
  require(head_dim <= kv::kMaxHeadDim, op, name, " has head_dim = ", head_dim, "; at most ",
          kv::kMaxHeadDim, " is allowed, so the caches of MLA models are not");
  require(head_dim >= 8 && head_dim % 8 == 0, op, name, " has head_dim = ", head_dim,
          "; multiples of 8 from 8 to ", kv::kMaxHeadDim, " are allowed");
  require(t.numel() == 0 || t.stride(3) == 1, op, name, " must have stride 1 in head_dim, got ",
          t.stride(3));
  return {t.data_ptr(), *dtype,      t.size(0),   t.size(1),  t.size(2),
          head_dim,     t.stride(0), t.stride(1), t.stride(2)};
}

void require_fits(const Argument& k_cache, const Argument& v_cache) {
  const Tensor &k = k_cache.tensor, &v = v_cache.tensor;
  require(k.scalar_type() == v.scalar_type(), k_cache.op, v_cache.name, " must be ",
          dtype_text(k.scalar_type()), " like ", k_cache.name, ", got ",
          dtype_text(v.scalar_type()));
  require(k.size(0) == v.size(0) && k.size(1) == v.size(1) && k.size(2) == v.size(2), k_cache.op,
          v_cache.name, " must be 4-D [", k.size(0), ", ", k.size(1), ", ", k.size(2),
          ", head_dim] like ", k_cache.name, ", got ", ShapeText{v});
}

kv::Scales scales_of(const char* op, const char* name, const std::optional<Tensor>& scale,
                     const kv::Cache& cache, bool required) {
  require(scale || !required, op, name, " is missing; an int8 cache needs it");
  if (!scale) return {};
  require(kv::is_quantized(cache.dtype), op, name,
          " was given; only caches of int8 and float8_e4m3fn have scales");
  Argument{op, name, *scale}.has_dtype(ScalarType::Float);
  const auto* const data = static_cast<const float*>(scale->data_ptr());
  const bool is_per_token = scale->dim() == 3 && scale->size(0) == cache.pages &&
                            scale->size(1) == cache.page && scale->size(2) == cache.heads;
  require(is_per_token || scale->numel() == 1, op, name,
          " must have 1 element or be 3-D [pages, page, kv_heads] = [", cache.pages, ", ",
          cache.page, ", ", cache.heads, "], got ", ShapeText{*scale});
  if (!is_per_token) return {data, 0, 0, 0};
  // The index of an extent of 1 is always 0, and any stride will do. With 1 the scales stay recognisable as per token.
  const auto stride = [&](int64_t i) { return scale->size(i) == 1 ? 1 : scale->stride(i); };
  return {data, stride(0), stride(1), stride(2)};
}

void require_no_overlap(const Argument& argument) {
  const Tensor& t = argument.tensor;
  std::array<std::pair<int64_t, int64_t>, 4> extents{};  // stride and size
  int64_t count = 0;
  for (int64_t i = 0; i < t.dim(); ++i)
    if (t.size(i) != 1) extents[static_cast<size_t>(count++)] = {t.stride(i), t.size(i)};
  std::sort(extents.begin(), extents.begin() + count);
  // Each stride must pass all elements that the smaller strides reach.
  int64_t reach = 0;
  for (int64_t i = 0; i < count && t.numel() > 0; ++i) {
    const auto [stride, size] = extents[static_cast<size_t>(i)];
    require(stride > reach, argument.op, argument.name,
            " is written, and elements of it share memory: stride ", stride, " must be above ",
            reach);
    reach += stride * (size - 1);
  }
}

kv::BlockTable block_table_of(const Argument& table, int64_t requests) {
  table.has_dtype(ScalarType::Int);
  table.is_2d("[requests, max_blocks]");
  const int64_t max_blocks = table.tensor.size(1);
  table.has_shape("[requests, max_blocks]", requests, max_blocks);
  return {static_cast<const int32_t*>(table.tensor.data_ptr()), table.row_stride(), requests,
          max_blocks};
}

const int32_t* int32_vector_of(const Argument& argument, const char* size, int64_t count) {
  argument.has_dtype(ScalarType::Int);
  argument.is_vector(size, count);
  return static_cast<const int32_t*>(argument.tensor.data_ptr());
}

}  // namespace lamina::interop
