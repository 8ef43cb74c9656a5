"""Planted bugs: paged_attention on a GPU."""

from __future__ import annotations

from tools.mutation.mutant import plant

CUDA = "csrc/ops/paged_attention/cuda"
CASES = "tests/ops/test_paged_attention.py tests/ops/test_paged_attention_cuda.py -k emulator or cuda"
EXACT = "tests/ops/test_paged_attention_exact.py tests/ops/test_paged_attention_cuda.py -k emulator or cuda"
TREES = "tests/ops/test_paged_attention_tree.py -k emulator"

MUTANTS = (
    *plant(
        f"{CUDA}/loads.cuh",
        (
            "attention cuda: a stale page",
            "walk_.advance(args_); if (!walk_.is_done()) read_entry();",
            "walk_.advance(args_);",
        ),
        (
            "attention cuda: one column too many",
            "column < Shape::at(&Place::any_high)",
            "column <= Shape::at(&Place::any_high)",
        ),
        ("attention cuda: one page too many", "page >= args_.p.k.pages", "page > args_.p.k.pages"),
        (
            "attention cuda: scales of values for keys",
            "copy_scale(args_.p.k_scale",
            "copy_scale(args_.p.v_scale",
        ),
        (
            "attention cuda: the slot of the page before",
            "slot = next_slot_ - index",
            "slot = next_slot_ - 0",
        ),
        (
            "attention cuda: keys for values",
            "args_.v_copy_bytes, Shape::kValueRowsAt",
            "args_.v_copy_bytes, Shape::kKeyRowsAt",
        ),
        ("attention cuda: the last chunk is always whole", "left < 16 ? left : 16", "16"),
        tests=CASES,
    ),
    *plant(
        f"{CUDA}/rows.cuh",
        (
            "attention cuda: words of the mask swapped",
            "static_cast<uint64_t>(words[1]) << 32 | words[0]",
            "static_cast<uint64_t>(words[0]) << 32 | words[1]",
            CASES,
        ),
        (
            "attention cuda: positions in int32",
            "int64_t{at.prefix} + info.position",
            "at.prefix + info.position",
        ),
        (
            "attention cuda: the window ends a node early",
            "position > node_high) nodes",
            "position >= node_high) nodes",
        ),
        (
            "attention cuda: own columns of other tokens",
            "if (token != walk.token()) return 0;",
            "if (token < 0) return 0;",
        ),
        (
            "attention cuda: nodes twice, shared and own",
            "args.work.has_splits() ? at.prefix / kColumns * kColumns : at.prefix",
            "at.prefix",
        ),
        tests=TREES,
    ),
    *plant(
        f"{CUDA}/softmax.cuh",
        (
            "attention cuda: lost rescale",
            "if (!growth.is_needed) return;",
            "if (dev::any(true)) return;",
        ),
        (
            "attention cuda: weights are not rescaled",
            "state.weights[t][e] = state.weights[t][e] * growth.of[t][e / 2];",
            "",
        ),
        (
            "attention cuda: the maximum of one warp",
            "for (int w = 0; w < Shape::kWarpsN; ++w)",
            "for (int w = 0; w < 1; ++w)",
        ),
        (
            "attention cuda: scales of unseen columns",
            "low == -kInfinity ? 0.0f : low_weight * low_scale",
            "low_weight * low_scale",
            EXACT,
        ),
        (
            "attention cuda: plain tokens see depths",
            "Rows::info(row, RowMember::kToken) < 0 ? slot_position",
            "Rows::info(row, RowMember::kToken) < -9 ? slot_position",
        ),
        tests=CASES,
    ),
    *plant(
        f"{CUDA}/results.cuh",
        ("attention cuda: factors of a merge", "dev::exp2_approx(other.x[half] - reference)", "1.0f"),
        (
            "attention cuda: no key gives NaN",
            "sees_any(args, row) ? NAN : 0.0f",
            "sees_any(args, row) ? NAN : NAN",
        ),
        (
            "attention cuda: only keys of -inf give 0",
            "sees_any(args, row) ? NAN : 0.0f",
            "sees_any(args, row) ? 0.0f : 0.0f",
            EXACT,
        ),
        tests=CASES,
    ),
    *plant(
        f"{CUDA}/pieces.cuh",
        (
            "attention cuda: merge before the last",
            "dev::atomic_add(arrivals, 1) == others",
            "dev::atomic_add(arrivals, 1) + 1 >= others",
        ),
        (
            "attention cuda: a merge without its first",
            "part = first + 1; part <= last",
            "part = first + 2; part <= last",
        ),
        (
            "attention cuda: pieces share memory too early",
            "dev::block_sync();  // all warps have read shared memory",
            "",
        ),
        (
            "attention cuda: splits share the ring too early",
            "Shape::sync();  // all warps have read the ring and the split",
            "",
            EXACT,
        ),
        (
            "attention cuda: the order of a merge",
            "Result::template merge<true>(merged_slot(work, part), state)",
            "Result::template merge<false>(merged_slot(work, part + 1), state)",
            EXACT,
        ),
        tests=CASES,
    ),
    *plant(
        f"{CUDA}/sm80.cuh",
        (
            "attention cuda: a stage too early",
            "dev::cp_async_wait<Shape::kStages - 2>()",
            "dev::cp_async_wait<Shape::kStages - 1>()",
        ),
        (
            "attention cuda: no mask at the end",
            "Shape::at(&Place::all_high) - walk.first_column() < kColumns",
            "Shape::at(&Place::all_high) < 0",
        ),
        tests=CASES,
    ),
    *plant(
        f"{CUDA}/products.cuh",
        (
            "attention cuda: rows of weights swapped",
            "weights[t][n / 2][n % 2 * 2 + half]",
            "weights[t][n / 2][n % 2 * 2 + 1 - half]",
        ),
        ("attention cuda: weights without scales", "scaled ? Shape::kWeightBytes : 0", "0"),
        (
            "attention cuda: elements of bytes swapped",
            "dev::prmt(of_key[0], of_key[1], 0x5140u)",
            "dev::prmt(of_key[0], of_key[1], 0x4150u)",
        ),
        tests=CASES,
    ),
    *plant(
        f"{CUDA}/plan.cu",
        (
            "attention cuda: counters of the call before",
            "dev::store_global(work.arrivals + i, 0);",
            "continue;",
        ),
        ("attention cuda: overlapping spans", "larger(ends.before, mine)", "mine"),
        ("attention cuda: the last token of a tile", "(end - 1) / group).any", "end / group).any"),
        tests=CASES,
    ),
    *plant(
        f"{CUDA}/tree.cu",
        (
            "attention cuda: a node is its own ancestor",
            "node != at.node && mask.sees(node)",
            "mask.sees(node)",
        ),
        (
            "attention cuda: nodes in order of slots",
            "its < depth || (its == depth && other < node)",
            "other < node",
        ),
        tests=TREES,
    ),
    *plant(
        f"{CUDA}/specials.cuh",
        (
            "attention cuda: NaN of unseen values",
            "(low < Shape::at(&Place::all_low) || high > Shape::at(&Place::all_high))",
            "false",
        ),
        ("attention cuda: special values are lost", "sum = sum + special(word, i);", ""),
        tests=EXACT,
    ),
    *plant(
        f"{CUDA}/bytes.cuh",
        ("attention cuda: NaN of e4m3 is 480", "if (is_nan != 0) {", "if (false) {", EXACT),
        tests=CASES,
    ),
)
