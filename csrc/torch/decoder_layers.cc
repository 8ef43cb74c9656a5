// decoder_layers: the ops of decoder layers of Llama, called one after another from C++. The result and the cache have
// the bits of these ops called from Python, whose time between the ops is saved.
#include <algorithm>
#include <array>
#include <tuple>
#include <utility>
#include <vector>

#include "torch/interop.h"
#include "torch/ops.h"

namespace lamina::interop {
namespace {

constexpr const char* kOp = "decoder_layers";

using OptionalTensor = std::optional<Tensor>;
const std::vector<int64_t> kNoRows;  // that are dense in a 2:4 weight

// Rows of floats, or of int8 with the scales of quantize_int8.
struct Activations {
  Tensor rows;
  OptionalTensor scale, zero_point;
};

Activations int8_activations(Tensor q, Tensor scale, Tensor zero_point, bool symmetric) {
  return {std::move(q), std::move(scale),
          symmetric ? std::nullopt : OptionalTensor(std::move(zero_point))};
}

// The next numbers of `products` and the next tensors of `weights`.
struct Reader {
  const std::vector<int64_t>& products;
  const std::vector<Tensor>& weights;
  size_t number = 0, tensor = 0;

  int64_t next_number() { return products[number++]; }
  const Tensor& next_tensor() {
    require(tensor < weights.size(), kOp, "weights has ", weights.size(),
            " tensors; products names more");
    return weights[tensor++];
  }
};

// A linear layer: a product with its packed weight. It is described by
//   products  kind, group, and the sum of 1 for zero points, 2 for a bias, 4 for a perm
//   weights   w, w_sums if it is int8, w_scale, and then what there is of zero points, bias and perm
class Linear {
 public:
  // kSparse24 + one of the others: with a 2:4 weight.
  enum Kind : int64_t { kW8A8, kW8A8Asymmetric, kW4A8, kW4A16, kSparse24 };

  explicit Linear(Reader& from) : kind_(from.next_number()), group_(from.next_number()) {
    require(kind_ >= 0 && kind_ < 2 * kSparse24, kOp, "products[", from.number - 2, "] = ", kind_,
            "; must be 0 to 7");
    is_sparse_ = kind_ >= kSparse24;
    kind_ %= kSparse24;
    const int64_t given = from.next_number();
    require(given >= 0 && given <= 7, kOp, "products[", from.number - 1, "] = ", given,
            "; must be 0 to 7");
    for (int i = 0; i < (is_w8() ? 3 : 2); ++i) w_.push_back(from.next_tensor());
    if (given & 1) zero_point_ = from.next_tensor();
    if (given & 2) bias_ = from.next_tensor();
    if (given & 4) perm_ = from.next_tensor();
  }

  bool takes_int8() const { return kind_ != kW4A16; }
  bool is_symmetric() const { return kind_ != kW8A8Asymmetric; }

  // The product of `a` plus `residual`. Floats are quantised here where the product multiplies int8.
  Tensor operator()(Activations a, ScalarType dtype, const OptionalTensor& residual) const {
    if (is_w8()) {
      if (!a.scale) {
        auto [q, scale, zero_point] = quantize(a.rows, std::nullopt, std::nullopt, is_symmetric());
        a = int8_activations(q, scale, zero_point, is_symmetric());
      }
      const auto multiply = [&](auto op, auto... dense) {
        return op(a.rows, w_[0], w_[1], *a.scale, w_[2], a.zero_point, bias_, dtype, std::nullopt,
                  std::nullopt, residual, std::nullopt, dense...);
      };
      return is_sparse_ ? multiply(multiply_sparse24_int8, std::nullopt, kNoRows)
                        : multiply(multiply_int8);
    }
    if (kind_ == kW4A8) {
      const auto multiply = [&](auto op, auto... dense) {
        return op(a.rows, w_[0], w_[1], group_, a.scale, zero_point_, a.zero_point, bias_, dtype,
                  std::nullopt, std::nullopt, residual, perm_, std::nullopt, dense...);
      };
      return is_sparse_ ? multiply(multiply_sparse24_int4_int8, std::nullopt, kNoRows)
                        : multiply(multiply_int4_int8);
    }
    const auto multiply = [&](auto op, auto... dense) {
      return op(a.rows, w_[0], w_[1], group_, zero_point_, bias_, dtype, std::nullopt, std::nullopt,
                residual, perm_, std::nullopt, dense...);
    };
    return is_sparse_ ? multiply(multiply_sparse24_int4, std::nullopt, kNoRows)
                      : multiply(multiply_int4);
  }

 private:
  bool is_w8() const { return kind_ == kW8A8 || kind_ == kW8A8Asymmetric; }

  int64_t kind_, group_;
  bool is_sparse_;
  std::vector<Tensor> w_;
  OptionalTensor zero_point_, bias_, perm_;
};

// The norm of x as `next` takes it.
Activations normalized(const Tensor& x, const Tensor& weight, double eps, const Linear& next) {
  if (!next.takes_int8()) return {std::get<0>(normalize(x, weight, eps, std::nullopt)), {}, {}};
  auto [q, scale, zero_point, unused] =
      normalize_to_int8(x, weight, eps, std::nullopt, next.is_symmetric());
  return int8_activations(q, scale, zero_point, next.is_symmetric());
}

// silu(gate) * up as `next` takes it.
Activations gated(const Tensor& gate_up, const Linear& next) {
  if (!next.takes_int8()) return {silu_and_multiply(gate_up, std::nullopt), {}, {}};
  auto [q, scale, zero_point] =
      silu_and_multiply_to_int8(gate_up, std::nullopt, next.is_symmetric());
  return int8_activations(q, scale, zero_point, next.is_symmetric());
}

template <size_t kDims>
Tensor view_of(const Tensor& x, const std::array<int64_t, kDims>& sizes,
               const std::array<int64_t, kDims>& strides, int64_t offset) {
  AtenTensorHandle handle = nullptr;
  const bool is_made =
      aoti_torch__reinterpret_tensor(x.get(), kDims, sizes.data(), strides.data(),
                                     x.storage_offset() + offset, &handle) == AOTI_TORCH_SUCCESS;
  require(is_made, kOp, "torch made no view of the rows");
  return Tensor(handle);
}

// The arguments that the layers of a call share.
struct Call {
  const Tensor &slot_mapping, &block_table, &seq_lens, &cu_seqlens_q, &cos, &sin, &positions;
  int64_t heads, max_seqlen_q;
  std::optional<double> scale;
  bool causal;
  int64_t window_left, window_right;
  double softcap;
  OptionalTensor tree_mask, tree_len, tree_depth;
};

struct Layer {
  const Tensor &attention_norm, &mlp_norm;
  double attention_eps, mlp_eps;
  Linear qkv, o, gate_up, down;
  const Tensor &k_cache, &v_cache;
  OptionalTensor k_scale, v_scale;

  Tensor operator()(const Tensor& x, const Call& call) const {
    const ScalarType dtype = x.scalar_type();
    const int64_t kv_heads = k_cache.size(2), dim = k_cache.size(3), v_dim = v_cache.size(3);
    const Tensor rows = qkv(normalized(x, attention_norm, attention_eps, qkv), dtype, std::nullopt);
    const int64_t tokens = rows.size(0), width = rows.size(1), heads = std::min(call.heads, width);
    const int64_t keys = heads * dim, values = keys + kv_heads * dim;
    require(width == values + kv_heads * v_dim, kOp, "the first product of a layer has ", width,
            " columns; must be ", values + kv_heads * v_dim, ", those of ", call.heads,
            " heads of queries and ", kv_heads, " of k_caches and v_caches");
    const auto part = [&](int64_t count, int64_t size, int64_t offset) {
      return view_of<3>(rows, {tokens, count, size}, {width, size, 1}, offset);
    };
    const Tensor q = part(heads, dim, 0);
    append_kv(part(kv_heads, dim, keys), part(kv_heads, v_dim, values), k_cache, v_cache,
              call.slot_mapping, k_scale, v_scale, call.cos, call.sin, call.positions, std::nullopt,
              false, q);
    const Tensor attended = std::get<0>(
        attend(q, k_cache, v_cache, call.block_table, call.seq_lens, call.cu_seqlens_q,
               call.max_seqlen_q, call.scale, call.causal, call.window_left, call.window_right,
               call.softcap, std::nullopt, std::nullopt, call.tree_mask, call.tree_len,
               call.tree_depth, k_scale, v_scale, std::nullopt, false, false));
    const Tensor flat = view_of<2>(attended, {tokens, heads * v_dim}, {heads * v_dim, 1}, 0);
    const Tensor middle = o({flat, {}, {}}, dtype, x);
    const Tensor both =
        gate_up(normalized(middle, mlp_norm, mlp_eps, gate_up), dtype, std::nullopt);
    return down(gated(both, down), dtype, middle);
  }
};

void require_count(const char* name, size_t count, size_t wanted) {
  require(count == wanted, kOp, name, " has ", count, " elements; must have ", wanted,
          " for this number of k_caches");
}

Tensor run(const Tensor& x, std::vector<Tensor> norms, std::vector<double> eps,
           std::vector<Tensor> weights, std::vector<int64_t> products, std::vector<Tensor> k_caches,
           std::vector<Tensor> v_caches, std::vector<Tensor> k_scales, std::vector<Tensor> v_scales,
           const Tensor& slot_mapping, const Tensor& block_table, const Tensor& seq_lens,
           const Tensor& cu_seqlens_q, const Tensor& cos, const Tensor& sin,
           const Tensor& positions, int64_t heads, int64_t max_seqlen_q,
           std::optional<double> scale, bool causal, int64_t window_left, int64_t window_right,
           double softcap, OptionalTensor tree_mask, OptionalTensor tree_len,
           OptionalTensor tree_depth) {
  const size_t layers = k_caches.size();
  require(layers > 0, kOp, "k_caches has 0 elements; must have one for each layer");
  require_count("norms", norms.size(), 2 * layers);
  require_count("eps", eps.size(), 2 * layers);
  require_count("products", products.size(), 12 * layers);
  require_count("v_caches", v_caches.size(), layers);
  for (const auto* scales : {&k_scales, &v_scales})
    if (!scales->empty())
      require_count(scales == &k_scales ? "k_scales" : "v_scales", scales->size(), layers);
  require(heads > 0, kOp, "heads = ", heads, "; must be at least 1");
  for (const auto* caches : {&k_caches, &v_caches})
    for (const Tensor& cache : *caches)
      require(cache.dim() == 4, kOp, caches == &k_caches ? "k_caches" : "v_caches",
              " must be 4-D [pages, page, kv_heads, head_dim], got ", ShapeText{cache});
  const Call call{slot_mapping, block_table, seq_lens,     cu_seqlens_q, cos,       sin,
                  positions,    heads,       max_seqlen_q, scale,        causal,    window_left,
                  window_right, softcap,     tree_mask,    tree_len,     tree_depth};
  const auto scale_of = [](const std::vector<Tensor>& scales, size_t i) {
    return scales.empty() ? std::nullopt : OptionalTensor(scales[i]);
  };
  Reader reader{products, weights};
  std::vector<Layer> read;
  for (size_t i = 0; i < layers; ++i)
    read.push_back({norms[2 * i], norms[2 * i + 1], eps[2 * i], eps[2 * i + 1], Linear(reader),
                    Linear(reader), Linear(reader), Linear(reader), k_caches[i], v_caches[i],
                    scale_of(k_scales, i), scale_of(v_scales, i)});
  require(reader.tensor == weights.size(), kOp, "weights has ", weights.size(),
          " tensors; products names ", reader.tensor);
  Tensor out = x;
  for (const Layer& layer : read) out = layer(out, call);
  return out;
}

}  // namespace

LAMINA_FRAGMENT(m) {
  m.def(
      "decoder_layers(Tensor x, Tensor[] norms, float[] eps, Tensor[] weights, int[] products, "
      "Tensor(a!)[] k_caches, Tensor(b!)[] v_caches, Tensor(c!)[] k_scales, Tensor(d!)[] v_scales, "
      "Tensor slot_mapping, Tensor block_table, Tensor seq_lens, Tensor cu_seqlens_q, Tensor cos, "
      "Tensor sin, Tensor positions, *, SymInt heads, SymInt max_seqlen_q, float? scale=None, bool "
      "causal=True, SymInt window_left=-1, SymInt window_right=-1, float softcap=0.0, Tensor? "
      "tree_mask=None, Tensor? tree_len=None, Tensor? tree_depth=None) -> Tensor");
}
LAMINA_IMPL(CPU, m) { m.impl("decoder_layers", TORCH_BOX(&run)); }
LAMINA_IMPL(CUDA, m) { m.impl("decoder_layers", TORCH_BOX(&run)); }

}  // namespace lamina::interop
