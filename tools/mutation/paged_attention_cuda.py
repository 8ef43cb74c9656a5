"""Planted bugs: paged_attention on a GPU."""

from __future__ import annotations

from tools.mutation.mutant import plant

CUDA = "csrc/ops/paged_attention/cuda"
CASES = "tests/ops/test_paged_attention.py tests/ops/test_paged_attention_cuda.py -k emulator or cuda"
EXACT = "tests/ops/test_paged_attention_exact.py tests/ops/test_paged_attention_cuda.py -k emulator or cuda"
TREES = "tests/ops/test_paged_attention_tree.py -k emulator"
SM90A = "tests/ops/test_paged_attention_cuda.py -k sm90a"
NEWER = "tests/ops/test_paged_attention_cuda.py -k newer"
CHOICE = "tests/ops/test_paged_attention_cuda.py -k smallest_tile"
ROWS_32 = "tests/ops/test_paged_attention.py tests/ops/test_paged_attention_cuda.py -k sm80_r32"

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
            "&p.k_scale.at(at.page, at.slot, head), bytes",
            "&p.v_scale.at(at.page, at.slot, head), bytes",
        ),
        ("attention cuda: values at the distance of others", "if (!args_.values_match)", "if (false)"),
        ("attention cuda: rows of the first lanes", "there_ >> own_row", "there_"),
        (
            "attention cuda: addresses change under their readers",
            "dev::warp_sync(); // all lanes have read the addresses of the block before",
            "",
        ),
        (
            "attention cuda: the slot of the page before",
            "next_slot_ - index",
            "next_slot_ - 0",
        ),
        (
            "attention cuda: keys for values",
            "args_.v_copy_bytes, Shape::kValueRowsAt",
            "args_.v_copy_bytes, Shape::kKeyRowsAt",
        ),
        ("attention cuda: the last chunk is always whole", "rest < 16 ? rest : 16", "16"),
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
            "attention cuda: the word of a neighbour",
            "args.p.tree_mask + token * args.p.tree_mask_stride + word + w",
            "args.p.tree_mask + token * args.p.tree_mask_stride + (word + w > 0 ? word + w - 1 : 0)",
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
            ";",
        ),
        (
            "attention cuda: the maximum of one warp",
            "for (int w = 0; w < Shape::kWarpsN; ++w)",
            "for (int w = 0; w < 1; ++w)",
        ),
        (
            "attention cuda: scales of unseen columns",
            "low == -kInfinity ? 0.0f : low_weight * scale[0]",
            "low_weight * scale[0]",
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
            "sees_any(args, row)) return 0.0f;",
            "sees_any(args, row)) return NAN;",
        ),
        (
            "attention cuda: only keys of -inf give 0",
            "sum == 0.0f && !TileRows<Shape>::sees_any(args, row)",
            "sum == 0.0f",
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
            "part == Shape::at(&Place::first_part) ? 1 : 0",
            "part == Shape::at(&Place::first_part) ? 0 : 1",
        ),
        ("attention cuda: parts of other blocks", "part += work.blocks;", "part += work.blocks + 1;", SM90A),
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
        tests=CASES,
    ),
    *plant(
        f"{CUDA}/results.cuh",
        (
            "attention cuda: the last slots of a merge",
            "part <= Shape::at(&Place::last_part)",
            "part < Shape::at(&Place::last_part)",
        ),
        tests=CASES,
    ),
    *plant(
        f"{CUDA}/split_tree.cuh",
        (
            "attention cuda: the order of a merge",
            "Result::template merge<true>(slot(work, part, area, {node.level, node.index - 1}), state);",
            "Result::template merge<false>(slot(work, part, area, {node.level, node.index - 1}), state);",
        ),
        (
            "attention cuda: halves of another piece",
            "node.is_right() && Node{node.level, node.index - 1}.begin() >= begin",
            "node.is_right() && Node{node.level, node.index - 1}.begin() >= 0",
        ),
        (
            "attention cuda: halves that the tile lacks",
            "if (node.begin() > tile_split) Result",
            "if (node.begin() > 0) Result",
        ),
        (
            "attention cuda: a node is lost",
            "if (top.level >= 0) Result::store(state, stacked(work, top.level));",
            "",
        ),
        ("attention cuda: the first nodes are lost", "level < work.tile_levels", "level < 0"),
        tests=EXACT,
    ),
    *plant(
        f"{CUDA}/sm80.cuh",
        ("attention cuda: the plan is read too early", "dev::wait_for_previous();", "", NEWER),
        (
            "attention cuda: warps without rows load nothing",
            "ring.template wait_and_refill<true>(loads);",
            "if (has_rows) ring.template wait_and_refill<true>(loads);",
        ),
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
            "attention cuda: infinity with the weights of a quarter of the columns",
            "word |= dev::shuffle_xor(word, 1);",
            "",
            EXACT,
        ),
        (
            "attention cuda: infinity with the weights of the first columns",
            "Shape::row_of(tile, half), n);",
            "Shape::row_of(tile, half), 0);",
            EXACT,
        ),
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
        (
            "attention cuda: the columns of the first token of a tile",
            "(end - 1) / group).any",
            "row / group).any",
        ),
        tests=CASES,
    ),
    *plant(
        f"{CUDA}/tree.cu",
        (
            "attention cuda: a node is its own ancestor",
            "if (at.node / 32 == first / 32) word &= ~(1u << at.node % 32);",
            "",
        ),
        ("attention cuda: nodes past the tree", "nodes - first >= 32 ? bits", "true ? bits"),
        (
            "attention cuda: depths of the first 32 nodes",
            "const Seen others = seen(first);",
            "const Seen others = seen(0);",
        ),
        (
            "attention cuda: nodes in order of slots",
            "its < own.depth || (its == own.depth && first + lane < node)",
            "first + lane < node",
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
        ("attention cuda: special values are lost", "sum = sum + special(word, i) * factor;", ""),
        (
            "attention cuda: infinity without weight",
            "weightless >> column & 1 ? 0.0f",
            "weightless >> column & 1 ? 1.0f",
        ),
        tests=EXACT,
    ),
    *plant(
        f"{CUDA}/bytes.cuh",
        (
            "attention cuda: NaN of e4m3 is 480",
            "dev::prmt(nans, 0, kSpreadSigns[i])",
            "nans & 0u",
            "tests/ops/test_paged_attention_cuda.py -k nan_of_float8",
        ),
        ("attention cuda: integers without their bias", "0xc000c000u", "0x80008000u"),
        (
            "attention cuda: halves of e4m3 swapped",
            "e4m3x2_to_bf16x2(word >> 16 * i)",
            "e4m3x2_to_bf16x2(word >> 16 * (1 - i))",
            NEWER,
        ),
        tests=CASES,
    ),
    *plant(
        f"{CUDA}/run.cc",
        (
            "attention cuda: 32 rows do not fit a tile of 32",
            "holds = kernel.rows >= needed, other_holds = other.rows >= needed",
            "holds = kernel.rows > needed, other_holds = other.rows > needed",
        ),
        (
            "attention cuda: 32 rows in the largest tile",
            "holds ? kernel.rows < other.rows",
            "holds ? kernel.rows > other.rows",
        ),
        tests=CHOICE,
    ),
    *plant(
        f"{CUDA}/shape.cuh",
        (
            "attention cuda: of 32 rows the first 16 twice",
            "return warp_m() * kWarpRows + tile * 16",
            "return (kRows == 32 ? 0 : warp_m() * kWarpRows) + tile * 16",
        ),
        (
            "attention cuda: of 32 rows the last 16 have no warps",
            "dev::any(warp_m() * kWarpRows < Sm80Shape::at(&Place::rows))",
            "dev::any(warp_m() * kRows < Sm80Shape::at(&Place::rows))",
        ),
        tests=ROWS_32,
    ),
    *plant(
        f"{CUDA}/softmax.cuh",
        (
            "attention cuda: of 32 rows maxima lie on those of 16",
            "warp_n * Shape::kRows + Shape::row_of(t, half)",
            "warp_n * 16 + Shape::row_of(t, half)",
        ),
        tests=ROWS_32,
    ),
)
