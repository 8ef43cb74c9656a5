"""Planted bugs: paged_kv, merge_attention_states, the checks of block tables and PagedCache."""

from __future__ import annotations

from tools.mutation.mutant import Mutant

BODY, RUN, MOVE, MOVED, ENCODING = (
    f"csrc/ops/paged_kv/{file}" for file in ("cpu/body.h", "run.cc", "move.cc", "moved.h", "encoding.h")
)
MERGE = "csrc/ops/merge_attention_states"
APPEND = ("tests/ops/test_paged_kv.py",)
MOVES = ("tests/ops/test_paged_kv_move.py",)
MERGES = ("tests/ops/test_merge_attention_states.py",)
CACHE = ("tests/python/test_kv.py",)
ERRORS = ("tests/ops/test_errors.py", "-k", "paged_kv or copy_kv or compact_kv")
BAD_TABLES = ("tests/ops/test_errors.py", "-k", "paged_attention")
BAD_INDICES = ("tests/ops/test_paged_attention_indices.py",)

MUTANTS = (
    Mutant(
        "kv: a page as large as their number",
        "csrc/kv/block_table.cc",
        "blocks[b] >= cache.pages",
        "blocks[b] > cache.pages",
        BAD_TABLES,
    ),
    Mutant(
        "kv: the last page is not checked",
        "csrc/kv/block_table.cc",
        "b < ceil_div(end, cache.page)",
        "b < end / cache.page",
        BAD_INDICES,
    ),
    Mutant(
        "kv: offsets may decrease",
        "csrc/kv/block_table.cc",
        "offsets[i + 1] < offsets[i]",
        "offsets[i + 1] < 0",
        BAD_TABLES,
    ),
    Mutant(
        "append: the rotation turns back", BODY, "x1 * angles.cos[i] - x2", "x1 * angles.cos[i] + x2", APPEND
    ),
    Mutant(
        "append: halves of the head, not of rotary_dim",
        BODY,
        "rotate_pairs<1>(angles, pairs, pairs, x)",
        "rotate_pairs<1>(angles, pairs, kv::kMaxHeadDim / 4, x)",
        APPEND,
    ),
    Mutant(
        "append: v is rotated too", BODY, "store_token(p.v, t, nullptr,", "store_token(p.v, t, rope,", APPEND
    ),
    Mutant(
        "append: sine of position 0",
        BODY,
        "position * rope.sin_stride",
        "0 * rope.sin_stride",
        APPEND,
    ),
    Mutant(
        "append: first element not searched",
        BODY,
        "int64_t j = 0; j < count; ++j) { const int32_t magnitude",
        "int64_t j = 1; j < count; ++j) { const int32_t magnitude",
        APPEND,
    ),
    Mutant("append: e4m3 scaled as int8", ENCODING, "? 127.0f : 448.0f", "? 127.0f : 127.0f", APPEND),
    Mutant(
        "append: e4m3 overflows to NaN",
        ENCODING,
        "from_f32<E4M3>(clamp(x * inverse_, -kLargestCode<E4M3>, kLargestCode<E4M3>))",
        "from_f32<E4M3>(x * inverse_)",
        APPEND,
    ),
    Mutant(
        "append: NaN in int8 becomes 127",
        ENCODING,
        "x != x ? int8_t{0} : quantizer_(x)",
        "quantizer_(x)",
        APPEND,
    ),
    Mutant(
        "append: a row with Inf keeps its scale",
        ENCODING,
        "largest <= FLT_MAX ?",
        "largest == largest ?",
        APPEND,
    ),
    Mutant(
        "append: q rotated for stored tokens only",
        BODY,
        "load_angles(p.rope, t, angles); for (int64_t h = 0; h < p.q.heads; ++h)",
        "load_angles(p.rope, t, angles); for (int64_t h = 0; h < p.q.heads && p.slot_mapping[t] >= 0; ++h)",
        APPEND,
    ),
    Mutant(
        "append: threads share the tokens, not the slots",
        BODY,
        "part_of(slot, parts) != part",
        "t * parts / p.tokens != part",
        (*APPEND, "-k", "the_last_is_stored"),
    ),
    Mutant("append: slot past the cache", RUN, "slot >= slots", "slot > slots", ERRORS),
    Mutant(
        "append: position past the table",
        RUN,
        "position >= p.rope.positions",
        "position > p.rope.positions",
        ERRORS,
    ),
    Mutant("append: negative scale", RUN, "*scale.data >= FLT_MIN &&", "*scale.data >= -FLT_MAX &&", ERRORS),
    Mutant(
        "gather: scale of the first slot",
        BODY,
        "scales.is_given() ? scales.at(page, slot, h)",
        "scales.is_given() ? scales.at(page, 0, h)",
        APPEND,
    ),
    Mutant(
        "gather: request of the token before",
        BODY,
        "p.cu_seqlens_k[request + 1] <= t",
        "p.cu_seqlens_k[request + 1] < t",
        APPEND,
    ),
    Mutant(
        "block table: the last block is not checked",
        "csrc/kv/block_table.cc",
        "b < ceil_div(end, cache.page); ++b",
        "b < end / cache.page; ++b",
        ("tests/ops/test_errors.py", "tests/ops/test_paged_kv.py", "-k", "gather or fuzz"),
    ),
    Mutant(
        "cache: heads of a padded cache copied as one run",
        MOVED,
        "extent->count > 1 && extent->stride != runs.bytes",
        "extent->count > 1 && extent->stride < runs.bytes",
        MOVES,
    ),
    Mutant("copy, compact: scales stay", MOVED, "if (scales->is_per_token()) add", "if (false) add", MOVES),
    Mutant(
        "copy: a source may be overwritten",
        MOVE,
        "target != targets.end() && target->first == source",
        "target != targets.end() && target->first == source && target->second < i",
        (*MOVES, *ERRORS),
    ),
    Mutant(
        "compact: nodes counted from slot 0",
        MOVE,
        "to.push_back(place(prefix + i));",
        "to.push_back(place(i));",
        MOVES,
    ),
    Mutant(
        "compact: more nodes than the tree has", MOVE, "if (count > nodes)", "if (count > nodes + 1)", ERRORS
    ),
    Mutant(
        "merge: the sink counts in lse",
        f"{MERGE}/run.cc",
        "const float lse = largest + log_of_sum(sum);",
        "const float lse = largest + log_of_sum(sum + (sink ? exp_of_difference(*sink, largest) : 0.0f));",
        MERGES,
    ),
    Mutant(
        "merge: weights overflow for a large sink",
        f"{MERGE}/run.cc",
        "if (*sink > largest) sum",
        "if (false) sum",
        MERGES,
    ),
    Mutant(
        "merge: an empty part is read", f"{MERGE}/cpu/body.h", "if (weights[i] == 0.0f) continue;", "", MERGES
    ),
    Mutant("merge: -0 becomes 0", f"{MERGE}/cpu/body.h", "sum[j] = -0.0f;", "sum[j] = 0.0f;", MERGES),
    Mutant(
        "merge: second block of a long row",
        f"{MERGE}/cpu/body.h",
        "head * part.out_head_stride + begin;",
        "head * part.out_head_stride;",
        MERGES,
    ),
    Mutant(
        "e4m3: subnormal codes",
        "csrc/base/numeric.h",
        "magnitude < 8 ? subnormal : normal",
        "magnitude < 7 ? subnormal : normal",
        APPEND,
    ),
    Mutant(
        "e4m3: rounds half up",
        "csrc/base/numeric.h",
        "0x7ffffu + ((magnitude >> 20) & 1u)",
        "0x80000u",
        APPEND,
    ),
    Mutant(
        "PagedCache: a shared page is written",
        "python/lamina/kv.py",
        "self._shared[page] - copies[page] > 1",
        "False",
        CACHE,
    ),
    Mutant(
        "PagedCache: every holder copies the shared page",
        "python/lamina/kv.py",
        "self._shared[page] - copies[page] > 1",
        "self._shared[page] > 1",
        CACHE,
    ),
    Mutant(
        "PagedCache: pages to copy are not counted",
        "python/lamina/kv.py",
        "if grown + len(copied) > len(self._free):",
        "if grown > len(self._free):",
        CACHE,
    ),
    Mutant(
        "PagedCache: truncate keeps a page",
        "python/lamina/kv.py",
        "kept = -(-length // self.page)",
        "kept = length // self.page + 1",
        CACHE,
    ),
    Mutant(
        "PagedCache: scales of the first layer",
        "python/lamina/kv.py",
        '"k_scale": self.k_scale[layer]',
        '"k_scale": self.k_scale[0]',
        CACHE,
    ),
)
