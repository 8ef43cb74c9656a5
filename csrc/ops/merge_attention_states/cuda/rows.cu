// merge_attention_states / rows:   out[t,h] = sum_p w_p * out_p[t,h], w_p = exp(lse_p - M) / d; lse[h,t] as in merge_attention_states.h
//
// Algorithm  a row (one token and head) has a power of two of lanes. They compute the weights of its parts, one part a
//            lane, and exchange them through shared memory; every lane then adds 8 neighbouring elements of all parts
// Data path  gmem -> regs (f32) -> gmem: 8 elements a lane, in accesses of 16 bytes where the rows are aligned, 4 parts of
//            a lane in flight
// Budget     <= 96 regs; 0 spills; smem <= 32 KiB; requires SASS: LDG, STG, LDS, STS, SHFL
// Reference  tests/reference/merge_attention_states.py
#include <algorithm>
#include <bit>
#include <climits>

#include "base/int_math.h"
#include "block/runs.cuh"
#include "ops/merge_attention_states/merge_attention_states.h"
#include "ops/merge_attention_states/weights.h"

namespace lamina::merge_attention_states {
namespace {

constexpr int kLaneElements = 8, kInFlight = 4;

template <class In>
struct MergeRows {
  struct Args {
    Params p;  // its list of parts is `part`
    Part part[kMaxCudaParts];
    int lanes;  // of a row
  };
  static constexpr const char* kName = "merge_attention_states_rows";
  static constexpr int kThreads = 128, kMinBlocks = 5;
  using LaneRun = Run<In, kLaneElements>;

  // The weights of a block take at most 128 rows x 64 parts x 4 bytes = 32 KiB.
  static constexpr int smem_bytes(int lanes, int64_t parts) {
    return kThreads / lanes * static_cast<int>(parts) * static_cast<int>(sizeof(float));
  }

  LAMINA_DEVICE static void run(const Args& args) {
    const int64_t rows = args.p.tokens * args.p.heads;
    const int pass = kThreads / args.lanes, mine = dev::thread_index() / args.lanes;
    const int64_t row = int64_t{dev::block_index().x} * pass + mine;
    // Lanes without a row repeat the last one, because all lanes of a warp take part in shuffles.
    merge_row(args, std::min(row, rows - 1), row < rows);
  }

  LAMINA_DEVICE static float load_lse(const Args& args, int part, int64_t token, int64_t head) {
    const Part& p = args.part[part];
    return dev::load_global(p.lse + head * p.lse_head_stride + token * p.lse_token_stride);
  }

  // Stores exp(lse_p - base) of the row's parts in shared memory and returns their sum, in order.
  LAMINA_DEVICE static float exponentials(const Args& args, int64_t token, int64_t head, float base,
                                          float* weights) {
    const int parts = static_cast<int>(args.p.part_count);
    for (int p = dev::thread_index() % args.lanes; p < parts; p += args.lanes)
      dev::store_shared(weights + p, exp_of_difference(load_lse(args, p, token, head), base));
    dev::warp_sync();
    float sum = 0.0f;
    for (int p = 0; p < parts; ++p) sum += dev::load_shared(weights + p);
    return sum;
  }

  LAMINA_DEVICE static void merge_row(const Args& args, int64_t row, bool is_there) {
    const Params& p = args.p;
    const int64_t token = row / p.heads, head = row % p.heads;
    const int parts = static_cast<int>(p.part_count), lane = dev::thread_index() % args.lanes;
    float* const weights =
        reinterpret_cast<float*>(dev::dynamic_smem()) + dev::thread_index() / args.lanes * parts;
    float largest = kEmpty;
    for (int i = lane; i < parts; i += args.lanes)
      largest = larger(largest, load_lse(args, i, token, head));
    for (int step = args.lanes / 2; step > 0; step /= 2)
      largest = larger(largest, dev::shuffle_xor(largest, step));
    float sum = exponentials(args, token, head, largest, weights);
    const bool is_empty = largest == kEmpty;
    const float lse = is_empty ? kEmpty : largest + log_of_sum(sum);
    if (p.sinks != nullptr) {
      const float sink = dev::load_global(p.sinks + head);
      const float base = larger(largest, sink);
      dev::warp_sync();  // all lanes have read the weights of the first sum
      if (dev::any(sink > largest)) {
        const float other =
            exponentials(args, token, head, sink > largest ? sink : largest, weights);
        sum = other;
      }
      sum += exp_of_difference(sink, base);
    }
    if (!is_there) return;
    if (lane == 0) dev::store_global(p.lse + head * p.tokens + token, lse);
    for (int64_t j = int64_t{lane} * kLaneElements; j < p.head_dim;
         j += int64_t{args.lanes} * kLaneElements)
      add_parts(args, token, head, j, is_empty, sum, weights);
  }

  // The lane's elements of the result. A part whose weight is 0 is not read.
  LAMINA_DEVICE static void add_parts(const Args& args, int64_t token, int64_t head, int64_t j,
                                      bool is_empty, float sum, const float* weights) {
    const Params& p = args.p;
    const int parts = static_cast<int>(p.part_count);
    // -0 is the neutral element: -0 + x = x, also for x = -0.
    float total[kLaneElements];
#pragma unroll
    for (int e = 0; e < kLaneElements; ++e) total[e] = is_empty ? 0.0f : -0.0f;
    for (int first = 0; first < parts && !is_empty; first += kInFlight) {
      float weight[kInFlight];
      LaneRun run[kInFlight];
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        weight[i] = first + i < parts ? dev::load_shared(weights + first + i) / sum : 0.0f;
        if (weight[i] != 0.0f) run[i] = load_part(args.part[first + i], token, head, j, p.head_dim);
      }
#pragma unroll
      for (int i = 0; i < kInFlight; ++i)
        if (weight[i] != 0.0f)
#pragma unroll
          for (int e = 0; e < kLaneElements; ++e) total[e] += weight[i] * to_f32(run[i].value[e]);
    }
    store_rounded(total, p.head_dim - j, p.out_dtype, p.out,
                  (token * p.heads + head) * p.head_dim + j);
  }

  LAMINA_DEVICE static LaneRun load_part(const Part& part, int64_t token, int64_t head, int64_t j,
                                         int64_t head_dim) {
    LaneRun run[1];
    load_runs<In, kLaneElements, 1>(
        {static_cast<const In*>(part.out) + token * part.out_token_stride +
         head * part.out_head_stride + j},
        head_dim - j, run);
    return run[0];
  }
};

template <class In>
Status launch_as(const Params& params, void* stream) {
  using Kernel = MergeRows<In>;
  typename Kernel::Args args{params, {}, 1};
  std::copy_n(params.parts, params.part_count, args.part);
  const int64_t chunks = std::clamp<int64_t>(ceil_div(params.head_dim, kLaneElements), 1, 32);
  args.lanes = static_cast<int>(std::bit_ceil(static_cast<uint64_t>(chunks)));
  const int64_t blocks = ceil_div(params.tokens * params.heads, Kernel::kThreads / args.lanes);
  if (blocks > INT_MAX)
    return Status::error("merge_attention_states: tokens * heads = ", params.tokens * params.heads,
                         "; on CUDA at most ", INT_MAX);
  return dev::launch<Kernel>(
      {{static_cast<int>(blocks), 1, 1}, Kernel::smem_bytes(args.lanes, params.part_count)}, stream,
      args);
}

}  // namespace

Status run_cuda(const Params& params, void* stream) {
  if (params.part_count > kMaxCudaParts)
    return Status::error("merge_attention_states: outs has ", params.part_count,
                         " tensors; on CUDA at most ", kMaxCudaParts);
  if (params.tokens * params.heads == 0) return Status::ok();
  if (params.dtype == DType::kF32) return launch_as<float>(params, stream);
  if (params.dtype == DType::kF16) return launch_as<F16>(params, stream);
  return launch_as<BF16>(params, stream);
}

}  // namespace lamina::merge_attention_states
