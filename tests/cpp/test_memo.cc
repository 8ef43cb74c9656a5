// Tests of Memo: keys that differ in any part are different, memory is bounded, each thread has its own table.
#include <thread>

#include "base/memo.h"
#include "check.h"

namespace lamina::test {
namespace {

using Pair = MemoKey<2>;

Pair pair_of(int i) { return memo_key(i, 1 - i); }

TEST(a_memo_finds_what_it_keeps_and_nothing_else) {
  std::atomic<int64_t> made{0};
  Memo<3, int, 2> memo(made);
  const MemoKey<3> key = {1, 2, 3};
  CHECK(memo.find(key) == nullptr);
  CHECK_EQ(memo.keep(key, 7), 7);
  for (size_t word = 0; word < key.size(); ++word)
    for (int bit = 0; bit < 64; ++bit) {
      at("word ", word, " bit ", bit);
      MemoKey<3> other = key;
      other[word] ^= uint64_t{1} << bit;
      CHECK(memo.find(other) == nullptr);
    }
  CHECK(memo.find(key) != nullptr && *memo.find(key) == 7);
  CHECK(memo.find({0, 0, 0}) == nullptr);  // the key of an empty place
  CHECK_EQ(made.load(), 1);
}

// For any first word there is a second word that gives the same hash.
TEST(keys_of_one_hash_do_not_take_each_others_value) {
  using Pairs = Memo<2, int, 2>;
  constexpr uint64_t kFactor = 0x9e3779b97f4a7c15u;
  const Pair first = {1, 2};
  std::atomic<int64_t> made{0};
  Pairs memo(made);
  memo.keep(first, 1);
  for (uint64_t word = 2; word < 10; ++word) {
    const Pair other = {word,
                        first[1] ^ std::rotl(first[0] * kFactor, 5) ^ std::rotl(word * kFactor, 5)};
    CHECK(Pairs::hash_of(other) == Pairs::hash_of(first));
    CHECK(memo.find(other) == nullptr);
  }
  const Pair other = {5, first[1] ^ std::rotl(kFactor, 5) ^ std::rotl(5 * kFactor, 5)};
  memo.keep(other, 5);
  CHECK(*memo.find(first) == 1 && *memo.find(other) == 5);
}

TEST(a_full_memo_forgets_the_oldest) {
  constexpr int kCount = 1000;
  std::atomic<int64_t> made{0};
  Memo<2, int, 2> memo(made);
  for (int i = 0; i < kCount; ++i) {
    at("key ", i);
    memo.keep(pair_of(i), i);
    int found = 0, oldest = i;
    for (int j = std::max(0, i - 100); j <= i; ++j)
      if (const int* value = memo.find(pair_of(j))) {
        CHECK_EQ(*value, j);
        oldest = std::min(oldest, j);
        ++found;
      }
    // There are 8 places. The hash decides the set of a key, and spreads keys well enough over the two sets.
    CHECK(found <= 8 && (i < 60 || (found == 8 && oldest > i - 60)));
    CHECK(memo.find(pair_of(i)) != nullptr);
  }
  CHECK_EQ(made.load(), kCount);
}

TEST(every_set_of_a_memo_is_used) {
  constexpr int kSets = 64, kPlaces = kSets * 4;
  std::atomic<int64_t> made{0};
  Memo<4, int, kSets> memo(made);
  // Keys like those of plans: small numbers, of which one changes.
  for (size_t word = 0; word < 4; ++word) {
    const auto key_of = [&](uint64_t i) {
      MemoKey<4> key = {16, 4096, 4096, 80};
      key[word] += i;
      return key;
    };
    for (int i = 0; i < 8 * kPlaces; ++i) memo.keep(key_of(static_cast<uint64_t>(i)), i);
    int found = 0;
    for (int i = 0; i < 8 * kPlaces; ++i)
      found += memo.find(key_of(static_cast<uint64_t>(i))) != nullptr;
    at("word ", word, ": ", found, " are found");
    CHECK_EQ(found, kPlaces);
  }
}

TEST(a_thread_knows_what_it_made_itself) {
  std::atomic<int64_t> made{0};
  const auto look_up = [&made](int i) {
    static thread_local Memo<1, int, 2> memo(made);
    const auto key = memo_key(i);
    if (const int* found = memo.find(key)) return *found;
    return memo.keep(key, i * i);
  };
  for (int thread = 1; thread <= 3; ++thread) {
    std::thread([&] {
      for (int i : {5, 6, 5, 6}) CHECK_EQ(look_up(i), i * i);
    }).join();
    CHECK_EQ(made.load(), 2 * thread);
  }
}

TEST(a_memo_key_has_all_of_its_parts) {
  enum class Kind : int8_t { kA, kB };
  const int16_t rows[2][2] = {{1, 2}, {3, -4}};
  const int x = 0;
  const auto key = memo_key(-1, true, Kind::kB, &x, rows, memo_key(7u, INT64_MIN));
  const MemoKey<10> want = {
      ~uint64_t{0},     1, 1, reinterpret_cast<uintptr_t>(&x), 1, 2, 3, ~uint64_t{0} - 3, 7,
      uint64_t{1} << 63};
  CHECK(key == want);
}

}  // namespace
}  // namespace lamina::test
