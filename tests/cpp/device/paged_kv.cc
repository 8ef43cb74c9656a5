// The CUDA kernels of paged_kv and merge_attention_states on the emulator, with buffers of exactly their size, so that
// AddressSanitizer sees an access beside them. With good indices they give the bytes of the CPU kernels; with garbage they
// stay in their buffers and record an error.
#include "ops/paged_kv/paged_kv.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "check.h"
#include "device/device.h"
#include "kv/error_word.h"
#include "ops/merge_attention_states/merge_attention_states.h"
#include "ops/paged_kv/cuda/launch.h"
#include "paged_cache.h"
#include "threads.h"

namespace lamina::test {
namespace {

using kv::CacheDType;

constexpr DeviceInfo kDevice = {80, 4, 163 << 10, 1 << 20};
constexpr int64_t kPositions = 5;

bool has_error() {
  dev::Mail mail{};
  CHECK(dev::take_mail(mail).is_ok());
  return mail != dev::Mail{};
}

// Random caches and arguments: equal for equal seeds.
struct Arguments {
  Dice dice;
  Room k, v;
  bool is_garbage;
  int64_t tokens, heads, rotary;

  explicit Arguments(uint64_t seed) : dice(seed) {
    const CacheDType dtypes[] = {CacheDType::kF32, CacheDType::kF16, CacheDType::kBF16,
                                 CacheDType::kE4M3, CacheDType::kI8};
    const CacheDType dtype = dice.one_of(dtypes);
    const int64_t pages = dice.between(1, 4), page = dice.between(1, 5);
    heads = dice.between(1, 3);
    const int64_t dim = 8 * dice.between(1, 9);
    k.make(dice, dtype, pages, page, heads, dim);
    v.make(dice, dtype, pages, page, heads, 8 * dice.between(1, 9));
    tokens = std::min(dice.between(0, 6), pages * page);
    rotary = 2 * dice.between(0, dim / 2);
    is_garbage = dice.one_in(3);
  }

  static paged_kv::WrittenScales written(const kv::Scales& scales) {
    return {const_cast<float*>(scales.data), scales.page_stride, scales.slot_stride,
            scales.head_stride};
  }
  template <class Params>
  void read(Params& params) {
    params.k_cache = k.cache, params.v_cache = v.cache;
    if constexpr (std::is_same_v<decltype(params.k_scale), kv::Scales>) {
      params.k_scale = k.scales, params.v_scale = v.scales;
    } else {
      params.k_scale = written(k.scales), params.v_scale = written(v.scales);
    }
  }

  // The numbers from 0 to count - 1 in random order, and any numbers where the arguments are garbage.
  template <class T>
  void shuffle(Exact<T>& numbers, int64_t count) {
    std::vector<T> all(static_cast<size_t>(count));
    std::iota(all.begin(), all.end(), T{0});
    for (int64_t i = count - 1; i > 0; --i)
      std::swap(all[static_cast<size_t>(i)], all[static_cast<size_t>(dice.between(0, i))]);
    for (int64_t i = 0; i < numbers.count(); ++i)
      numbers[i] = is_garbage && dice.one_in(3)
                       ? static_cast<T>(count + dice.between(0, 1) * 1000 + i)
                       : all[static_cast<size_t>(i % count)];
  }
};

void check_same(Room& got, Room& want) {
  for (int64_t i = 0; i < got.elements->count(); ++i)
    CHECK_EQ((*got.elements)[i], (*want.elements)[i]);
  if (got.scale_elements == nullptr) return;
  for (int64_t i = 0; i < got.scale_elements->count(); ++i)
    CHECK_EQ((*got.scale_elements)[i], (*want.scale_elements)[i]);
}

// run(arguments, on the GPU) for equal arguments; with garbage on the GPU alone.
template <class Run>
void check_op(uint64_t seed, const Run& run) {
  at("seed ", seed);
  Arguments got(seed), want(seed);
  run(got, true);
  const bool is_bad = has_error();
  if (got.is_garbage) return;
  CHECK(!is_bad);
  run(want, false);
  check_same(got.k, want.k);
  check_same(got.v, want.v);
}

void append(Arguments& a, bool on_gpu) {
  const int64_t dim = a.k.cache.head_dim, v_dim = a.v.cache.head_dim, q_heads = 2;
  Exact<float> k(a.tokens * a.heads * dim), v(a.tokens * a.heads * v_dim);
  Exact<float> q(a.tokens * q_heads * dim);
  for (Exact<float>* rows : {&k, &v, &q})
    for (int64_t i = 0; i < rows->count(); ++i) (*rows)[i] = a.dice.value();
  Exact<float> cos(kPositions * (a.rotary / 2)), sin(kPositions * (a.rotary / 2));
  for (int64_t i = 0; i < cos.count(); ++i) cos[i] = a.dice.value(), sin[i] = a.dice.value();
  Exact<int64_t> slots(a.tokens);
  Exact<int32_t> positions(a.tokens);
  a.shuffle(slots, a.k.cache.pages * a.k.cache.page);
  a.shuffle(positions, kPositions);
  paged_kv::Append p;
  a.read(p);
  p.tokens = a.tokens;
  p.k = {k.data(), DType::kF32, a.heads, dim, a.heads * dim, dim};
  p.v = {v.data(), DType::kF32, a.heads, v_dim, a.heads * v_dim, v_dim};
  p.slot_mapping = slots.data();
  p.rope = {cos.data(), sin.data(), DType::kF32,      a.rotary / 2,     a.rotary / 2,
            kPositions, a.rotary,   a.dice.one_in(2), positions.data(), nullptr};
  p.q = {q.data(), DType::kF32, q_heads, dim, q_heads * dim, dim};
  CHECK((on_gpu ? paged_kv::append_cuda(p, kDevice, nullptr) : paged_kv::append(p, Serial()))
            .is_ok());
}

void gather(Arguments& a, bool on_gpu) {
  Exact<int32_t> table(a.k.cache.pages), offsets(2);
  a.shuffle(table, a.k.cache.pages);
  offsets[0] = 0, offsets[1] = static_cast<int32_t>(a.tokens);
  Exact<float> k(a.tokens * a.heads * a.k.cache.head_dim);
  Exact<float> v(a.tokens * a.heads * a.v.cache.head_dim);
  paged_kv::Gather p;
  a.read(p);
  p.tokens = a.tokens;
  p.block_table = {table.data(), table.count(), 1, table.count()};
  p.cu_seqlens_k = offsets.data();
  p.k = k.data(), p.v = v.data();
  CHECK((on_gpu ? paged_kv::gather_cuda(p, kDevice, nullptr) : paged_kv::gather(p, Serial()))
            .is_ok());
}

void copy(Arguments& a, bool on_gpu) {
  Exact<int64_t> mapping(a.k.cache.pages / 2 * 2);
  a.shuffle(mapping, a.k.cache.pages);
  paged_kv::Copy p;
  a.read(p);
  p.block_mapping = mapping.data();
  p.pairs = mapping.count() / 2, p.pair_stride = 2;
  CHECK((on_gpu ? paged_kv::copy_cuda(p, nullptr) : paged_kv::copy(p, Serial())).is_ok());
}

void compact(Arguments& a, bool on_gpu) {
  const int64_t room = a.k.cache.pages * a.k.cache.page, nodes = a.dice.between(1, room);
  Exact<int32_t> table(a.k.cache.pages), length(1), tree(1), accepted(a.dice.between(1, nodes));
  a.shuffle(table, a.k.cache.pages);
  a.shuffle(accepted, nodes);
  length[0] = static_cast<int32_t>(a.dice.between(nodes, room)),
  tree[0] = static_cast<int32_t>(nodes);
  paged_kv::Compact p;
  a.read(p);
  p.block_table = {table.data(), table.count(), 1, table.count()};
  p.seq_lens = length.data(), p.tree_len = tree.data(), p.accepted = accepted.data();
  p.accepted_stride = p.max_accepted = accepted.count();
  CHECK((on_gpu ? paged_kv::compact_cuda(p, nullptr) : paged_kv::compact(p, Serial())).is_ok());
}

TEST(paged_kv_on_the_emulator_stays_in_its_buffers) {
  dev::emu::options() = {};
  (void)has_error();
  for (uint64_t seed = 0; seed < 150; ++seed) {
    dev::emu::options().seed = seed;
    check_op(seed, append);
    check_op(seed, gather);
    check_op(seed, copy);
    check_op(seed, compact);
  }
}

TEST(merge_attention_states_on_the_emulator_stays_in_its_buffers) {
  dev::emu::options() = {};
  for (int64_t dim : {1, 8, 20, 300})
    for (int64_t parts : {1, 3, 40}) {
      at("head_dim ", dim, ", parts ", parts);
      const int64_t tokens = 3, heads = 2, rows = tokens * heads;
      Dice dice(static_cast<uint64_t>(100 * dim + parts));
      std::vector<Exact<float>> outs, lses;
      std::vector<merge_attention_states::Part> given;
      for (int64_t i = 0; i < parts; ++i) {
        outs.emplace_back(rows * dim), lses.emplace_back(rows);
        for (int64_t j = 0; j < rows * dim; ++j) outs.back()[j] = dice.value();
        for (int64_t j = 0; j < rows; ++j) lses.back()[j] = dice.value();
        given.push_back({outs.back().data(), heads * dim, dim, lses.back().data(), tokens, 1});
      }
      Exact<float> got(rows * dim), want(rows * dim), got_lse(rows), want_lse(rows);
      merge_attention_states::Params p{tokens,      heads,         dim,     given.data(),
                                       parts,       DType::kF32,   nullptr, got.data(),
                                       DType::kF32, got_lse.data()};
      CHECK(merge_attention_states::run_cuda(p, nullptr).is_ok());
      p.out = want.data(), p.lse = want_lse.data();
      CHECK(merge_attention_states::run(p, Serial()).is_ok());
      for (int64_t i = 0; i < rows * dim; ++i) CHECK_EQ(got[i], want[i]);
      for (int64_t i = 0; i < rows; ++i) CHECK_EQ(got_lse[i], want_lse[i]);
    }
}

}  // namespace
}  // namespace lamina::test
