"""Bugs to plant in csrc/ops/sample."""

from __future__ import annotations

from tools.mutation.mutant import plant

SAMPLE = "tests/ops/test_sample.py -k not emulator"
VERIFY = "tests/ops/test_verify_draft.py -k not emulator"
EMULATED = "tests/ops/test_sample.py tests/ops/test_verify_draft.py -k emulator"

MUTANTS = (
    *plant(
        "csrc/ops/sample/cpu/row.h",
        ("sample: the threshold passes a mass that is enough", "of_digit[digit] < target", "of_digit[digit] <= target"),
        ("sample: top_p is forgotten after top_k", "if (k > 0 && s.has_top_p())", "if (k < 0 && s.has_top_p())"),
        ("sample: a negative NaN is not seen", "largest_ >= kInf || smallest < kMinusInf", "largest_ >= kInf"),
        ("sample: a draw does not count the blocks that it passes", "left -= sum; continue;", "continue;"),
        ("sample: the sums of the row before", "d_ = {}; has_block_sums_ = false;", "d_ = {};"),
        tests=SAMPLE,
    ),
    *plant(
        "csrc/ops/sample/weights.h",
        ("sample: -0 is below 0", "std::bit_cast<int32_t>(x + 0.0f)", "std::bit_cast<int32_t>(x)", SAMPLE),
        ("verify: a negative draft probability", "return q >= 0.0f && q <= kLargestDraftProb;", "return q <= kLargestDraftProb;"),
        ("verify: a certain draft is drawn for", "if (p == 0 || above >= under) return p != 0;", "if (p == 0) return false;"),
        tests=VERIFY,
    ),
    *plant(
        "csrc/ops/sample/walk.h",
        ("verify: one stream for drafts and for what replaces them", "against_q ? kAgainstDraft : kToken", "kToken"),
        ("verify: the same offset at every depth", "static_cast<uint64_t>(settings.offset) + 1", "static_cast<uint64_t>(settings.offset)"),
        ("verify: the id behind the vocabulary", "draft >= v.target.vocab", "draft > v.target.vocab"),
        ("verify: the last of equal children", "child < span.count && next < 0 && flag", "child < span.count && flag"),
        tests=VERIFY,
    ),
    *plant(
        "csrc/ops/sample/cpu/body.h",
        ("verify: a rejected draft stays in q", "q_[token] = 0; if (sum == 0)", "if (sum == 0)"),
        ("verify: p of the node before", "is_stored_ = false; const Flag flag", "const Flag flag"),
        tests=VERIFY,
    ),
    *plant(
        "csrc/ops/sample/tree_mask.cc",
        ("tree: the words of the parent alone", "row[(i - begin) / 32] |=", "row[0] |=", "tests/ops/test_pack_tree_mask.py -k not emulator"),
    ),
    *plant(
        "csrc/ops/sample/cuda/row.cuh",
        ("rows: sums overwrite those being read", "dev::block_sync();  // all threads have read the sums of the call before", "{}"),
        ("rows: extremes overwrite those being read", "dev::block_sync();  // all threads have read the extremes of the call before", "{}"),
        ("rows: the prefix sum of half a warp", "step < dev::kWarpLanes; step *= 2", "step < dev::kWarpLanes / 2; step *= 2"),
        tests=EMULATED,
    ),
    *plant(
        "csrc/ops/sample/cuda/verify.cu",
        ("requests: levels overwrite those being read", "dev::block_sync();  // all threads have read the levels", "{}"),
        ("requests: a rejected draft stays in q", "if (is_it) w.q = 0;", "{}"),
        tests=EMULATED,
    ),
    *plant(
        "csrc/ops/sample/cuda/tree_mask.cu",
        ("requests: a bad tree has a length", "is_bad ? 0 : span.count", "span.count", "tests/ops/test_pack_tree_mask.py -k emulator"),
    ),
    *plant(
        "python/lamina/speculate/closed_loop.py",
        ("closed loop: losses are not counted", "self.lost += step.draft_s", "self.lost += 0 * step.draft_s"),
        ("closed loop: gains count as losses", "- plain * sum(", "+ 0 * plain * sum("),
        ("closed loop: no budget", "or self.lost > self.budget", "or self.lost > 1e9 + self.budget"),
        ("closed loop: drafting costs nothing", "seconds += self.drafting.estimate(width)", "seconds += 0"),
        tests="tests/python/test_speculate_drafts.py",
    ),
)  # fmt: skip
