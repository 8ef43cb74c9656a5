// The CUDA kernels of matmul_sparse24 on the emulator, with buffers of exactly their size, so that AddressSanitizer sees an
// access beside them. Values are small enough for every sum to be exact; tests/ops has more values.
#include "ops/matmul_sparse24/matmul_sparse24.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "base/int_math.h"
#include "check.h"
#include "device/device.h"
#include "layout/sparse24.h"
#include "operand.h"
#include "ops/matmul_sparse24/cuda/run.h"
#include "ops/matmul_sparse24/pack.h"
#include "threads.h"

namespace lamina::test {
namespace {

using gemm::CudaPlan, gemm::Problem;

constexpr int kSms = 3;

struct Case {
  int64_t m, n, k, group, pad;  // pad: elements between rows of a; group: of codes
  bool has_zeros, has_perm;
  int splits;
};

// A 2:4 weight in the reference order, and where each kept value lies.
struct SparseWeight {
  int64_t n, k;
  int bits;
  Random random;
  Exact<uint8_t> metadata, values, packed;
  std::vector<float> value;    // [n, k / 2]
  std::vector<int64_t> place;  // [n, k / 2], along k

  SparseWeight(int64_t rows, int64_t columns, int value_bits, DType dtype, uint64_t seed)
      : n(rows),
        k(columns),
        bits(value_bits),
        random(seed),
        metadata(n * sparse24::metadata_bytes(k)),
        values(n * k / 2 * std::max(bits / 8, 1)),
        packed(*sparse24_tile::packed_bytes(n, k, bits)) {
    constexpr int kCodes[] = {0x4, 0x8, 0xC, 0x9, 0xD, 0xE};
    std::memset(metadata.data(), 0xee, static_cast<size_t>(metadata.count()));
    for (int64_t row = 0; row < n; ++row)
      for (int64_t g = 0; g < k / 4; ++g) {
        const int code = kCodes[random.next() % 6];
        uint8_t& byte = metadata[row * sparse24::metadata_bytes(k) + g / 2];
        byte = static_cast<uint8_t>((byte & (g % 2 ? 0x0f : 0xf0)) | code << (g % 2 * 4));
        for (int at : {sparse24::first(code), sparse24::second(code)}) {
          place.push_back(g * 4 + at);
          put_value(dtype);
        }
      }
    const matmul_sparse24::Sparse sparse{values.data(), k / 2, metadata.data(),
                                         sparse24::metadata_bytes(k)};
    CHECK(
        pack(matmul_sparse24::kTileLayout, {n, k, bits}, sparse, packed.data(), Serial()).is_ok());
  }

 private:
  // Codes 0 to 15, all bytes, or quarters from -8 to 7.75.
  void put_value(DType dtype) {
    const int64_t i = static_cast<int64_t>(value.size());
    if (bits == 4) {
      values[i] = static_cast<uint8_t>(random.next() % 16);
      value.push_back(values[i]);
    } else if (bits == 8) {
      const int8_t byte = random.int8();
      std::memcpy(values.data() + i, &byte, 1);
      value.push_back(byte);
    } else {
      value.push_back(static_cast<float>(random.int8() / 4) / 4.0f);
      put(dtype, values.data() + 2 * i, value.back());
    }
  }
};

CudaPlan plan_of(const gemm::CudaKernel& kernel, const Problem& p, int splits, int64_t chunk_k) {
  CudaPlan plan;
  plan.kernel = kernel;
  plan.sms = kSms;
  plan.is_capped = p.k % 8 == 0;
  const int64_t each_steps = chunk_k > 0 ? chunk_k / kernel.step_k : 1;
  const int64_t steps = std::max<int64_t>(1, ceil_div(p.k, kernel.step_k));
  const int64_t each = std::min(round_up(ceil_div(steps, splits), each_steps), steps);
  plan.split = {static_cast<int>(ceil_div(steps, each)), static_cast<int>(each)};
  if (plan.split.count > 1) plan.partials = chunk_k > 0 ? ceil_div(p.k, chunk_k) : plan.split.count;
  return plan;
}

// Runs the plan with a workspace of its size, and compares out, with gaps between its rows, to want(i, j).
template <class Params>
void check_run(Params& params, const CudaPlan& plan, const auto& want) {
  const Problem& p = params.problem;
  const int64_t stride = p.n + 3;
  Guarded<float> out(p.m * stride);
  params.out = out.data();
  params.out_stride = stride;
  params.out_dtype = DType::kF32;
  int64_t bytes = plan.partial_bytes(p);
  if constexpr (std::is_same_v<Params, matmul_sparse24::Int4Int8Params>)
    bytes = matmul_sparse24::workspace_bytes(params, plan);
  Exact<uint8_t> workspace(bytes);
  std::memset(workspace.data(), 0xf9, static_cast<size_t>(workspace.count()));
  const Status status = matmul_sparse24::run_cuda(params, plan, workspace.data(), nullptr);
  at(plan.kernel.name, " ", p.m, " x ", p.n, " x ", p.k, ", splits ", plan.split.count, ": ",
     status.message());
  CHECK(status.is_ok());
  int wrong = 0;
  for (int64_t i = 0; i < p.m; ++i) {
    for (int64_t j = 0; j < p.n; ++j) wrong += out[i * stride + j] != want(i, j);
    for (int64_t j = p.n; j < stride; ++j) wrong += !std::isnan(out[i * stride + j]);
  }
  CHECK_EQ(wrong, 0);
  CHECK(out.guards_are_intact());
}

void check_int8(const gemm::CudaKernel& kernel, const Case& c) {
  SparseWeight w(c.n, c.k, 8, DType::kF32, static_cast<uint64_t>(c.m * 131 + c.n * 17 + c.k));
  Random& random = w.random;
  Exact<int8_t> a((c.m - 1) * (c.k + c.pad) + c.k), a_zero(c.m);
  Exact<float> a_scale(c.m), w_scale(c.n);
  Exact<int32_t> sums(c.n);
  for (int64_t i = 0; i < a.count(); ++i) a[i] = random.int8();
  for (int64_t i = 0; i < c.m; ++i) {
    a_zero[i] = random.int8();
    a_scale[i] = random.scale();
  }
  for (int64_t j = 0; j < c.n; ++j) {
    w_scale[j] = random.scale();
    sums[j] = 0;
    for (int64_t q = 0; q < c.k / 2; ++q)
      sums[j] += static_cast<int32_t>(w.value[static_cast<size_t>(j * c.k / 2 + q)]);
  }
  Followed then(c.m, c.n, c.k, random);
  matmul_sparse24::Int8Params params;
  params.problem = {c.m, c.n, c.k};
  params.a = a.data();
  params.a_stride = c.k + c.pad;
  params.weight.data = w.packed.data();
  params.w_sums = sums.data();
  params.a_scale = {a_scale.data(), 1};
  params.w_scale = {w_scale.data(), 1};
  if (c.has_zeros) params.a_zero_point = {a_zero.data(), 1};
  then.give(params);
  if (matmul_sparse24::a_alignment(params) < kernel.a_alignment) return;
  check_run(params, plan_of(kernel, params.problem, c.splits, 0), [&](int64_t i, int64_t j) {
    int64_t sum = 0;
    for (int64_t q = 0; q < c.k / 2; ++q) {
      const auto at = static_cast<size_t>(j * c.k / 2 + q);
      sum += (a[i * (c.k + c.pad) + w.place[at]] - (c.has_zeros ? a_zero[i] : 0)) *
             static_cast<int64_t>(w.value[at]);
    }
    return then.after(static_cast<float>(sum) * a_scale[i] * w_scale[j], i, j);
  });
}

// Activations from -3 to 3 and scales that are powers of two: all sums are exact. bits: 4 for codes, or 16.
void check_floats(const gemm::CudaKernel& kernel, int bits, DType dtype, Case c) {
  c.has_perm &= bits == 4;
  SparseWeight w(c.n, c.k, bits, dtype, static_cast<uint64_t>(c.m * 131 + c.n * 17 + c.k));
  Random& random = w.random;
  const int64_t features = c.has_perm ? c.k + 3 : c.k, stride = features + c.pad;
  const Problem p{c.m, c.n, c.k, bits == 4 ? c.group : 0};
  Exact<uint8_t> a(((c.m - 1) * stride + features) * 2), scales(p.groups() * c.n * 2),
      zeros(p.groups() * c.n);
  std::vector<float> a_value, scale;
  for (int64_t i = 0; i < a.count() / 2; ++i) {
    a_value.push_back(static_cast<float>(random.next() % 7) - 3);
    put(dtype, a.data() + 2 * i, a_value.back());
  }
  for (int64_t i = 0; i < zeros.count(); ++i) {
    zeros[i] = static_cast<uint8_t>(random.next() % 16);
    scale.push_back(i % 3 == 0 ? -0x1p-3f : 0x1p-4f);
    put(dtype, scales.data() + 2 * i, scale.back());
  }
  Exact<int32_t> perm(c.has_perm ? c.k : 0);
  for (int64_t i = 0; i < perm.count(); ++i)
    perm[i] = static_cast<int32_t>(random.next() % static_cast<uint32_t>(features + 1)) - 1;
  Followed then(c.m, c.n, c.k, random);
  const auto kind = dtype == DType::kF16 ? GroupTensor::Kind::kF16 : GroupTensor::Kind::kBF16;
  const auto check = [&](auto& params) {
    params.problem = p;
    params.a = a.data();
    params.a_dtype = dtype;
    params.a_stride = stride;
    params.weight.data = w.packed.data();
    then.give(params);
    check_run(params, plan_of(kernel, p, c.splits, gemm::kChunkK), [&](int64_t i, int64_t j) {
      float sum = 0;
      for (int64_t q = 0; q < c.k / 2; ++q) {
        const auto at = static_cast<size_t>(j * c.k / 2 + q);
        const int64_t to = w.place[at], from = c.has_perm ? perm[to] : to;
        if (from < 0) continue;
        float value = w.value[at];
        if (bits == 4) {
          const int64_t g = to / c.group * c.n + j;
          value = (value - static_cast<float>(c.has_zeros ? zeros[g] : 8)) *
                  scale[static_cast<size_t>(g)];
        }
        sum += a_value[static_cast<size_t>(i * stride + from)] * value;
      }
      return then.after(sum, i, j);
    });
  };
  if (bits == 4) {
    matmul_sparse24::Int4Params params;
    params.w_scale = {scales.data(), kind, c.n, 1};
    if (c.has_zeros) params.w_zero_point = {zeros.data(), GroupTensor::Kind::kU8, c.n, 1};
    if (c.has_perm) params.perm = {perm.data(), features};
    check(params);
  } else {
    matmul_sparse24::FloatParams params;
    check(params);
  }
}

// Activations from -3 to 3, zero points from -2 to 2, scales that are powers of two.
void check_int4_int8(const gemm::CudaKernel& kernel, const Case& c) {
  SparseWeight w(c.n, c.k, 4, DType::kF32, static_cast<uint64_t>(c.m * 131 + c.n * 17 + c.k));
  Random& random = w.random;
  const int64_t features = c.has_perm ? c.k + 3 : c.k, stride = features + c.pad;
  const Problem p{c.m, c.n, c.k, c.group};
  Exact<int8_t> a((c.m - 1) * stride + features), a_zero(c.m);
  Exact<float> a_scale(c.m), scales(p.groups() * c.n);
  Exact<uint8_t> zeros(p.groups() * c.n);
  Exact<int32_t> perm(c.has_perm ? c.k : 0);
  for (int64_t i = 0; i < a.count(); ++i) a[i] = static_cast<int8_t>(random.next() % 7 - 3);
  for (int64_t i = 0; i < c.m; ++i) {
    a_zero[i] = static_cast<int8_t>(random.next() % 5 - 2);
    a_scale[i] = std::ldexp(1.0f, static_cast<int>(random.next() % 3) - 1);
  }
  for (int64_t i = 0; i < scales.count(); ++i) {
    scales[i] = i % 3 == 0 ? -0x1p-3f : 0x1p-4f;
    zeros[i] = static_cast<uint8_t>(random.next() % 16);
  }
  for (int64_t i = 0; i < perm.count(); ++i)
    perm[i] = static_cast<int32_t>(random.next() % static_cast<uint32_t>(features + 1)) - 1;
  Followed then(c.m, c.n, c.k, random);
  const bool has_a_zero = (c.m + c.n) % 2 == 0;
  matmul_sparse24::Int4Int8Params params;
  params.problem = p;
  params.a = a.data();
  params.a_stride = stride;
  params.a_scale = {a_scale.data(), 1};
  if (has_a_zero) params.a_zero_point = {a_zero.data(), 1};
  params.weight.data = w.packed.data();
  params.w_scale = {scales.data(), GroupTensor::Kind::kF32, c.n, 1};
  if (c.has_zeros) params.w_zero_point = {zeros.data(), GroupTensor::Kind::kU8, c.n, 1};
  if (c.has_perm) params.perm = {perm.data(), features};
  then.give(params);
  const gemm::KRule rule = matmul_sparse24::int4_int8_k_rule(p, c.has_zeros);
  CudaPlan plan = plan_of(kernel, p, c.splits, rule.chunk_k);
  if (plan.split.count > 1)
    plan.partials = rule.one_each ? ceil_div(c.k, rule.chunk_k) : plan.split.count;
  check_run(params, plan, [&](int64_t i, int64_t j) {
    float sum = 0;
    for (int64_t q = 0; q < c.k / 2; ++q) {
      const auto at = static_cast<size_t>(j * c.k / 2 + q);
      const int64_t to = w.place[at], from = c.has_perm ? perm[to] : to, g = to / c.group * c.n + j;
      if (from < 0) continue;
      const float less = w.value[at] - static_cast<float>(c.has_zeros ? zeros[g] : 8);
      sum += static_cast<float>(a[i * stride + from] - (has_a_zero ? a_zero[i] : 0)) * less *
             scales[g];
    }
    return then.after(sum * a_scale[i], i, j);
  });
}

// Ragged on every axis; rows of a for copies of 16, 4, 2 and 1 bytes; groups that end within a tile, within a product and
// within a stage; k chunks and splits.
const Case kCases[] = {
    {1, 1, 4, 16, 0, false, false, 1},       {7, 24, 64, 16, 0, true, false, 1},
    {17, 35, 76, 32, 4, false, false, 1},    {2, 70, 128, 48, 16, true, false, 1},
    {65, 17, 132, 64, 12, true, true, 1},    {5, 130, 320, 128, 3, false, false, 2},
    {18, 40, 1348, 80, 12, true, false, 2},  {130, 33, 192, 208, 0, false, true, 1},
    {3, 20, 2052, 2064, 0, false, false, 2}, {9, 20, 2052, 2064, 4, true, false, 2},
};

TEST(matmul_sparse24_on_the_emulator_stays_in_its_buffers) {
  dev::emu::options() = {};
  for (const Case& c : kCases) {
    for (const gemm::CudaKernel& kernel : matmul_sparse24::int8_cuda_op().kernels)
      check_int8(kernel, c);
    for (const gemm::CudaKernel& kernel : matmul_sparse24::int4_int8_cuda_op().kernels)
      check_int4_int8(kernel, c);
    const DType dtype = c.m % 2 ? DType::kF16 : DType::kBF16;
    for (const gemm::CudaKernel& kernel : matmul_sparse24::int4_cuda_op().kernels)
      check_floats(kernel, 4, dtype, c);
    for (const gemm::CudaKernel& kernel : matmul_sparse24::half_cuda_op().kernels)
      check_floats(kernel, 16, dtype, c);
  }
}

}  // namespace
}  // namespace lamina::test
