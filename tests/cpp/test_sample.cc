// Tests of sample_tokens and verify_draft on every ISA in memory whose guards show a stray byte.
#include <cmath>
#include <vector>

#include "memory.h"
#include "ops/sample/sample.h"
#include "threads.h"

namespace lamina::test {
namespace {

using sample::Flag;
using sample::Sample;
using sample::Verify;

template <class T>
struct Logits {
  int64_t rows, vocab;
  Exact<T> x;
  Exact<int64_t> seed;
  Exact<float> temperature, top_p;
  Exact<int32_t> top_k;

  // Every third row is greedy; the rows have equal logits, -Inf and, the last one, a NaN.
  Logits(int64_t rows, int64_t vocab)
      : rows(rows),
        vocab(vocab),
        x(rows * vocab),
        seed(rows),
        temperature(rows),
        top_p(rows),
        top_k(rows) {
    Random random(static_cast<uint64_t>(vocab));
    for (int64_t i = 0; i < x.count(); ++i)
      x[i] =
          from_f32<T>(random.next() % 9 == 0 ? -HUGE_VALF : static_cast<float>(random.int8()) / 16);
    for (int64_t i = 0; i < rows; ++i) {
      x[i * vocab + vocab / 2] = from_f32<T>(3.0f);
      seed[i] = i;
      temperature[i] = i % 3 == 0 ? 0.0f : 1.5f;
      top_p[i] = i % 2 == 0 ? 1.0f : 0.8f;
      top_k[i] = i % 5 == 0 ? 4 : 0;
    }
    x[x.count() - 1] = from_f32<T>(NAN);
  }

  sample::Target target(DType dtype) {
    sample::Target t;
    t.logits = x.data(), t.dtype = dtype, t.rows = rows, t.vocab = vocab, t.stride = vocab;
    t.temperature = {temperature.data(), 1}, t.top_p = {top_p.data(), 1};
    t.top_k = {top_k.data(), 1};
    t.seed = t.offset = {seed.data(), 1};
    return t;
  }
};

// The result of the first ISA is the one that the others must give.
template <class T>
void check_sample(int64_t vocab, DType dtype, const Parallel& parallel,
                  std::vector<int32_t>& wanted) {
  constexpr int64_t kRows = 13;
  Logits<T> logits(kRows, vocab);
  Guarded<int32_t> tokens(kRows), flags(kRows);
  CHECK(sample::run(Sample{logits.target(dtype), tokens.data(), flags.data()}, parallel).is_ok());
  for (int64_t i = 0; i < kRows; ++i) {
    CHECK_EQ(flags[i], static_cast<int32_t>(i + 1 < kRows ? Flag::kNone : Flag::kNotFinite));
    CHECK(tokens[i] >= 0 && tokens[i] < vocab);
    if (logits.temperature[i] == 0.0f && i + 1 < kRows)
      for (int64_t j = 0; j < vocab; ++j) {
        const float best = to_f32(logits.x[i * vocab + tokens[i]]),
                    x = to_f32(logits.x[i * vocab + j]);
        CHECK(j < tokens[i] ? x < best : x <= best);
      }
  }
  CHECK_EQ(tokens[kRows - 1], 0);
  CHECK(tokens.guards_are_intact() && flags.guards_are_intact());
  const std::vector<int32_t> got(tokens.data(), tokens.data() + kRows);
  if (wanted.empty()) wanted = got;
  CHECK(got == wanted);
}

TEST(samples_the_same_on_every_isa) {
  for (int64_t vocab : {1, 7, 255, 256, 257, 1500}) {
    std::vector<int32_t> f32, f16, bf16;
    for_each_isa([&](Isa isa) {
      at(isa_name(isa), " vocab ", vocab);
      check_sample<float>(vocab, DType::kF32, Serial(), f32);
      check_sample<F16>(vocab, DType::kF16, Backwards(2), f16);
      check_sample<BF16>(vocab, DType::kBF16, Threads(3), bf16);
    });
  }
}

TEST(verifies_the_same_on_every_isa) {
  constexpr int64_t kRequests = 3, kRows = 12, kMost = 5, kVocab = 300;
  Exact<int32_t> offsets(kRequests + 1), parents(kRows), drafts(kRows);
  Exact<float> q(kRows * kVocab);
  Random random(7);
  for (int64_t r = 0; r <= kRequests; ++r) offsets[r] = static_cast<int32_t>(4 * r);
  for (int64_t i = 0; i < kRows; ++i) {
    parents[i] = static_cast<int32_t>(i % 4) - 1 - (i % 4 == 3);
    drafts[i] = static_cast<int32_t>(random.next() % kVocab);
  }
  for (int64_t i = 0; i < q.count(); ++i) q[i] = static_cast<float>(random.next() % 100) / 5000;
  std::vector<int32_t> wanted;
  for_each_isa([&](Isa isa) {
    at(isa_name(isa));
    Logits<float> logits(kRows, kVocab);
    Guarded<int32_t> tokens(kRequests * kMost), accepted(kRequests * kMost);
    Guarded<int32_t> count(kRequests), bonus(kRequests), flags(kRequests);
    Verify v;
    v.target = logits.target(DType::kF32);
    v.draft_tokens = {drafts.data(), nullptr};
    v.requests = kRequests, v.max_len = kMost;
    v.cu_seqlens = offsets.data(), v.parents = parents.data();
    v.draft_probs = q.data(), v.draft_stride = kVocab;
    v.tokens = tokens.data(), v.accepted = accepted.data();
    v.count = count.data(), v.bonus = bonus.data(), v.flags = flags.data();
    CHECK(sample::run(v, Threads(2)).is_ok());
    std::vector<int32_t> got(tokens.data(), tokens.data() + kRequests * kMost);
    got.insert(got.end(), accepted.data(), accepted.data() + kRequests * kMost);
    for (int64_t r = 0; r < kRequests; ++r) {
      CHECK(count[r] >= 0 && count[r] < 4 && accepted[r * kMost] == 0);
      CHECK_EQ(tokens[r * kMost + count[r]], bonus[r]);
      CHECK_EQ(tokens[r * kMost + count[r] + 1], -1);
    }
    CHECK(tokens.guards_are_intact() && accepted.guards_are_intact());
    CHECK(count.guards_are_intact() && bonus.guards_are_intact() && flags.guards_are_intact());
    if (wanted.empty()) wanted = got;
    CHECK(got == wanted);
  });
}

TEST(packs_a_tree_into_words_that_it_needs_alone) {
  constexpr int64_t kNodes = 40;
  Exact<int32_t> parents(kNodes), offsets(2);
  for (int32_t i = 0; i < kNodes; ++i) parents[i] = i - 1;
  offsets[0] = 0, offsets[1] = kNodes;
  Guarded<int32_t> mask(kNodes * 2), len(1), depth(kNodes);
  CHECK(sample::run(sample::TreeMask{kNodes, 1, kNodes, parents.data(), offsets.data(), mask.data(),
                                     len.data(), depth.data()})
            .is_ok());
  for (int32_t i = 0; i < kNodes; ++i) {
    CHECK_EQ(depth[i], i);
    CHECK_EQ(static_cast<uint32_t>(mask[2 * i]), i < 31 ? (2u << i) - 1 : ~0u);
    CHECK_EQ(static_cast<uint32_t>(mask[2 * i + 1]), i < 32 ? 0u : (2u << (i - 32)) - 1);
  }
  CHECK_EQ(len[0], kNodes);
  CHECK(mask.guards_are_intact() && len.guards_are_intact() && depth.guards_are_intact());
  parents[5] = 5;
  CHECK(!sample::run(sample::TreeMask{kNodes, 1, kNodes, parents.data(), offsets.data(),
                                      mask.data(), len.data(), depth.data()})
             .is_ok());
}

}  // namespace
}  // namespace lamina::test
