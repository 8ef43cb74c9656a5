#include "ops/paged_attention/cuda/run.h"

#include <bit>

#include "base/memo.h"
#include "block/row_alignment.h"
#include "ops/paged_attention/cuda/plan.h"

namespace lamina::paged_attention {

std::vector<CudaKernel> paged_attention_kernels();  // CMake writes it from kernels.inc

namespace {

constexpr int64_t kAlignment = 16;  // of the parts of the workspace

const char* name_of(kv::CacheDType dtype) {
  switch (dtype) {
    case kv::CacheDType::kF32:
      return "float32";
    case kv::CacheDType::kF16:
      return "float16";
    case kv::CacheDType::kBF16:
      return "bfloat16";
    case kv::CacheDType::kE4M3:
      return "float8_e4m3fn";
    case kv::CacheDType::kI8:
      return "int8";
  }
  return "";
}

Elements elements_of(kv::CacheDType dtype) {
  return dtype == kv::CacheDType::kI8     ? Elements::kInt8
         : dtype == kv::CacheDType::kE4M3 ? Elements::kE4M3
                                          : Elements::kHalf;
}

// Bytes of one copy of rows with these strides, in elements of `size` bytes.
int copy_bytes(const void* data, int64_t size, std::initializer_list<int64_t> strides) {
  auto low = reinterpret_cast<uintptr_t>(data) | 16;
  for (int64_t stride : strides) low |= static_cast<uint64_t>(stride * size);
  return copy_bytes_of(static_cast<int>(low & ~(low - 1)));
}
int copy_bytes(const kv::Cache& cache) {
  return copy_bytes(cache.data, kv::size_bytes(cache.dtype),
                    {cache.page_stride, cache.slot_stride, cache.head_stride, cache.head_dim});
}

void set_value_distance(const kv::Cache& k, const kv::Cache& v, KernelArgs& args) {
  args.values_match = k.page_stride == v.page_stride && k.slot_stride == v.slot_stride &&
                      k.head_stride == v.head_stride;
  args.value_distance = static_cast<int64_t>(reinterpret_cast<uintptr_t>(v.data) -
                                             reinterpret_cast<uintptr_t>(k.data));
}

// A kernel is called this, or the name is the beginning of its name up to a "_".
bool is_called(std::string_view kernel, std::string_view name) {
  return kernel.substr(0, name.size()) == name &&
         (kernel.size() == name.size() || name.empty() || kernel[name.size()] == '_');
}

// mma.sync is assumed to run at half the rate of wgmma: a tile of 128 rows of sm90a then costs as much as one of 64 rows
// of sm80. Calls with fewer rows a request use sm80.
constexpr int64_t kLeastRowsOfSm90a = 64;

// Whether a kernel is better than the other, for a call with `needed` rows a request.
bool is_better(const CudaKernel& kernel, const CudaKernel& other, int64_t needed) {
  if (kernel.dim != other.dim) return kernel.dim < other.dim;
  if (kernel.arch != other.arch) return kernel.arch > other.arch;
  const bool holds = kernel.rows >= needed, other_holds = other.rows >= needed;
  if (holds != other_holds) return holds;
  return holds ? kernel.rows < other.rows : kernel.rows > other.rows;
}

bool can_run(const CudaKernel& kernel, const Sizes& sizes, const DeviceInfo& device) {
  const bool is_for_device = kernel.arch == 90 ? device.compute_capability == 90
                                               : device.compute_capability >= kernel.arch;
  // wgmma adds in another order than mma: kernels of one arch compute all tiles of a call that is invariant to its batch.
  return is_for_device && kernel.smem_bytes <= device.smem_per_block &&
         kernel.cache == elements_of(sizes.cache) && !(sizes.batch_invariant && kernel.arch == 90);
}

CudaKernel choose(const Sizes& sizes, const DeviceInfo& device, std::string_view only) {
  const int64_t dim = std::max(sizes.head_dim, sizes.v_head_dim);
  const int64_t needed =
      std::min(sizes.max_seqlen_q, sizes.tokens) * (sizes.heads / sizes.kv_heads);
  CudaKernel chosen{};
  for (const CudaKernel& kernel : cuda_kernels()) {
    if (!can_run(kernel, sizes, device) || kernel.dim < dim || !is_called(kernel.name, only) ||
        (kernel.arch == 90 && only.empty() && needed < kLeastRowsOfSm90a))
      continue;
    if (chosen.launch == nullptr || is_better(kernel, chosen, needed)) chosen = kernel;
  }
  return chosen;
}

// Bit i: kernel i is called so.
uint64_t choice_of(std::string_view only) {
  if (only.empty()) return ~uint64_t{0};
  const std::vector<CudaKernel>& kernels = cuda_kernels();
  uint64_t choice = 0;
  for (size_t i = 0; i < kernels.size(); ++i)
    choice |= static_cast<uint64_t>(is_called(kernels[i].name, only)) << i;
  return choice;
}

// Takes pieces of a workspace one after the other.
struct Pieces {
  int64_t bytes = 0;
  std::byte* base = nullptr;

  template <class T>
  T* take(int64_t count) {
    const int64_t at = bytes;
    bytes += round_up(count * static_cast<int64_t>(sizeof(T)), kAlignment);
    return reinterpret_cast<T*>(base + at);
  }
};

// Sets the addresses of the work; returns the bytes of the workspace.
int64_t place(Work& work, void* workspace) {
  Pieces pieces{0, static_cast<std::byte*>(workspace)};
  work.header = pieces.take<Header>(1);
  work.span = pieces.take<Span>(work.spans);
  work.tile = pieces.take<Tile>(work.max_tiles);
  work.arrivals = pieces.take<int32_t>(work.parts);
  work.partials = pieces.take<float>(int64_t{work.parts} * work.slots_per_part * work.slot_floats);
  work.depths = pieces.take<int32_t>(work.depth_count);
  work.node_counts = pieces.take<int32_t>(work.max_nodes > 0 ? work.tokens : 0);
  work.nodes = pieces.take<int32_t>(work.tokens * work.max_nodes);
  return pieces.bytes;
}

// Splits for a call that is invariant to its batch. splits: the most of a tile.
void plan_splits(const Sizes& sizes, int64_t splits, Work& work) {
  const auto levels_of = [](int64_t leaves) {
    return static_cast<int32_t>(std::bit_width(static_cast<uint64_t>(leaves)));
  };
  work.split_blocks = work.visit_blocks = kSplitBlocks;
  work.least_visits = 1;
  const int64_t visits = work.max_tiles * sizes.kv_heads * splits;
  work.piece_levels = levels_of(std::min(ceil_div(visits, work.parts), splits));
  work.tile_levels = levels_of(splits) + 1;
  work.slots_per_part = 4 * work.piece_levels + work.tile_levels;
  if (sizes.has_tree) work.max_nodes = 32 * sizes.tree_words;
}

// tiles: of a block of threads, at most. Kernels of sm90a compute so much for each key that keys should come from L2: their
// blocks do small parts, of the same heads at a time.
int32_t parts_per_block(const CudaKernel& kernel, int64_t tiles) {
  return kernel.arch == 90 ? static_cast<int32_t>(std::clamp<int64_t>(tiles, 1, 8)) : 1;
}

}  // namespace

const std::vector<CudaKernel>& cuda_kernels() {
  static const std::vector<CudaKernel> kernels = paged_attention_kernels();
  return kernels;
}

Status check_cuda(const Params& params, const DeviceInfo& device) {
  constexpr const char* kOp = "paged_attention: ";
  if (device.compute_capability < 80)
    return Status::error(kOp, "q is on a GPU of compute capability ", device.compute_capability,
                         "; 80 and newer are possible");
  if (params.tokens * (params.heads / params.kv_heads) > INT32_MAX)
    return Status::error(kOp, "q has ", params.tokens, " tokens and ", params.heads,
                         " heads; on CUDA at most ", INT32_MAX, " rows for each head of k_cache");
  if (params.q_dtype == DType::kF32)
    return Status::error(kOp, "q is float32; on CUDA it must be float16 or bfloat16");
  const kv::CacheDType q_dtype =
      params.q_dtype == DType::kF16 ? kv::CacheDType::kF16 : kv::CacheDType::kBF16;
  if (!kv::is_quantized(params.k.dtype) && params.k.dtype != q_dtype)
    return Status::error(kOp, "k_cache is ", name_of(params.k.dtype), "; on CUDA it must be ",
                         name_of(q_dtype), " like q, int8 or float8_e4m3fn");
  return Status::ok();
}

Sizes sizes_of(const Params& p) {
  return {p.tokens,
          p.heads,
          p.kv_heads,
          p.head_dim,
          p.v_head_dim,
          p.requests,
          p.max_seqlen_q,
          p.k.page,
          p.block_table.max_blocks,
          p.tree_words,
          p.k.dtype,
          p.batch_invariant,
          p.tree_mask != nullptr,
          p.tree_depth != nullptr,
          p.alibi_slopes != nullptr || p.window_left >= 0 || p.window_right >= 0};
}

CudaPlan plan_cuda(const Sizes& sizes, const DeviceInfo& device, std::string_view only) {
  CudaPlan plan;
  plan.kernel = choose(sizes, device, only);
  if (plan.kernel.launch == nullptr) return plan;
  const int64_t group = sizes.heads / sizes.kv_heads;
  Work& work = plan.work;
  work.spans = sizes.requests + 2;
  // Each span may end with a tile that is not full.
  work.max_tiles = sizes.tokens * group / plan.kernel.rows + work.spans;
  const int64_t blocks = ceil_div(sizes.max_blocks * sizes.page, kColumns);
  const int64_t per_sm = std::clamp<int64_t>(
      device.smem_per_block / (plan.kernel.smem_bytes + 1024), 1, plan.kernel.blocks_per_sm);
  const int64_t visits = work.max_tiles * sizes.kv_heads * std::max<int64_t>(blocks, 1);
  work.blocks = static_cast<int32_t>(std::min(device.sm_count * per_sm, visits));
  work.parts =
      work.blocks * parts_per_block(plan.kernel, work.max_tiles * sizes.kv_heads / work.blocks);
  work.slot_floats = plan.kernel.slot_floats;
  work.tokens = sizes.tokens;
  if (sizes.batch_invariant)
    plan_splits(sizes, std::max<int64_t>(ceil_div(blocks, kSplitBlocks), 1), work);
  plan.needs_depths = sizes.has_tree && (sizes.has_biases || sizes.batch_invariant);
  if (plan.needs_depths && !sizes.has_depths) work.depth_count = sizes.tokens;
  plan.overlaps = device.compute_capability >= 90;
  plan.workspace_bytes = place(work, nullptr);
  return plan;
}

CudaPlan known_plan_cuda(const Sizes& sizes, const DeviceInfo& device, std::string_view only) {
  const auto& [tokens, heads, kv_heads, head_dim, v_head_dim, requests, max_seqlen_q, page,
               max_blocks, tree_words, cache, batch_invariant, has_tree, has_depths, has_biases] =
      sizes;
  const auto key = memo_key(tokens, heads, kv_heads, head_dim, v_head_dim, requests, max_seqlen_q,
                            page, max_blocks, tree_words, cache, batch_invariant, has_tree,
                            has_depths, has_biases, key_of(device), choice_of(only));
  static thread_local Memo<key.size(), CudaPlan, 64> known(host_work().plans);
  if (const CudaPlan* found = known.find(key)) return *found;
  return known.keep(key, plan_cuda(sizes, device, only));
}

Status run_cuda(const Params& params, const CudaPlan& plan, void* workspace, void* stream) {
  if (params.tokens == 0) return Status::ok();
  KernelArgs args{};
  args.p = params;
  args.work = plan.work;
  args.overlaps = plan.overlaps;
  place(args.work, workspace);
  if (Status status = kv::error_word(args.error); !status.is_ok()) return status;
  args.page = Divisor(static_cast<int32_t>(std::min<int64_t>(params.k.page, INT32_MAX)));
  args.group = static_cast<int32_t>(params.heads / params.kv_heads);
  args.q_copy_bytes = copy_bytes(params.q, 2, {params.q_token_stride, params.q_head_stride});
  args.k_copy_bytes = copy_bytes(params.k);
  args.v_copy_bytes = copy_bytes(params.v);
  set_value_distance(params.k, params.v, args);
  if (plan.needs_depths)
    args.depths = params.tree_depth != nullptr ? params.tree_depth : args.work.depths;
  if (Status status = launch_plan(params, args.work, plan.kernel.rows, args.error, stream);
      !status.is_ok())
    return status;
  if (args.work.depth_count > 0)
    if (Status status = launch_depths(params, args.work, stream); !status.is_ok()) return status;
  if (args.work.max_nodes > 0)
    if (Status status = launch_nodes(params, args.work, args.depths, stream); !status.is_ok())
      return status;
  return plan.kernel.launch(args, stream);
}

}  // namespace lamina::paged_attention
