"""Bugs to plant in the CUDA kernels of paged_kv and merge_attention_states, and in the device error word."""

from __future__ import annotations

from tools.mutation.mutant import plant

FOLDER, MERGE = "csrc/ops/paged_kv/cuda", "csrc/ops/merge_attention_states"
APPEND = "tests/ops/test_paged_kv.py tests/ops/test_paged_kv_cuda.py tests/ops/test_paged_kv_schedules.py"
MOVES = "tests/ops/test_paged_kv_move.py tests/ops/test_paged_kv_cuda.py tests/ops/test_paged_kv_schedules.py"

MUTANTS = (
    *plant(
        f"{FOLDER}/append.cu",
        ("paged cuda, append: rope turns back", "is_first ? along - across", "is_first ? along + across"),
        (
            "paged cuda, append: pairs of halves of the head",
            "args.p.rope.interleaved ? 1 : pairs;",
            "args.p.rope.interleaved ? 1 : row.dim / 2;",
        ),
        (
            "paged cuda, append: interleaved pairs of the neighbour",
            "is_first ? element + apart : element - apart",
            "is_first ? element + apart : element - apart + (args.p.rope.interleaved ? 2 : 0)",
        ),
        ("paged cuda, append: the sine of the next pair", "sin + padded(pair)", "sin + padded(pair + 1)"),
        ("paged cuda, append: v is rotated", "is_k && token.has_angles", "token.has_angles"),
        (
            "paged cuda, append: angles used before all are there",
            "stage_angles(args, first); dev::block_sync();",
            "stage_angles(args, first);",
        ),
        (
            "paged cuda, append: partners read before they are there",
            "dev::store_shared(mine + e, x[e]); dev::warp_sync();",
            "dev::store_shared(mine + e, x[e]);",
        ),
        (
            "paged cuda, append: the next row overwrites partners",
            "dev::warp_sync();  // all lanes have read the row before the next row is written",
            "",
        ),
        ("paged cuda, append: scale of head 0", "&scales.at(page, slot, head)", "&scales.at(page, slot, 0)"),
        (
            "paged cuda, append: the largest of a part of the row",
            "int step = args.grid.lanes / 2; step > 0",
            "int step = args.grid.lanes / 2; step > 1",
        ),
        (
            "paged cuda, append: half of a quantised run is stored",
            "store_run(to, encode(x, scale), kLaneElements)",
            "store_run(to, encode(x, scale), kLaneElements / 2)",
        ),
        (
            "paged cuda, append: q behind rotary_dim is overwritten",
            "args.p.rope.rotary_dim - j, row.dtype",
            "args.p.rope.rotary_dim - j + 2, row.dtype",
        ),
        (
            "paged cuda, append: the slot behind the cache",
            "token.slot >= p.k_cache.pages * p.k_cache.page",
            "token.slot > p.k_cache.pages * p.k_cache.page",
        ),
        ("paged cuda, append: slot -2 is no error", "token.slot < -1 ||", "token.slot < -2 ||"),
        (
            "paged cuda, append: the position behind the angles",
            "token.position < p.rope.positions",
            "token.position <= p.rope.positions",
        ),
        (
            "paged cuda, append: a token of a bad position is stored",
            "token.position, t); token.slot = -1;",
            "token.position, t);",
        ),
        ("paged cuda, append: any positive scale", "value >= FLT_MIN && value", "value > 0 && value"),
        (
            "paged cuda, append: v_scale is not checked",
            "|| !is_good_scale(args, p.v_scale, kv::ErrorArgument::kVScale)",
            "",
        ),
        tests=f"{APPEND} -k emulator",
    ),
    *plant(
        f"{FOLDER}/rows.cuh",
        ("paged cuda: lanes for keys alone", "std::max(head_dim, v_head_dim)", "head_dim"),
        ("paged cuda: every block does all rows", "begin += grid.sharers * pass", "begin += pass"),
        ("paged cuda: the last pass is lost", "begin < rows; begin", "begin + pass <= rows; begin"),
        tests=f"{APPEND} -k emulator",
    ),
    *plant(
        f"{FOLDER}/gather.cu",
        ("paged cuda, gather: the token before a request", "<= token ? low : high", "< token ? low : high"),
        ("paged cuda, gather: a token behind the last", "|| token >= end", "|| token > end"),
        (
            "paged cuda, gather: a block behind the table",
            "block >= table.max_blocks",
            "block > table.max_blocks",
        ),
        (
            "paged cuda, gather: the page behind the cache",
            "page >= args.p.k_cache.pages",
            "page > args.p.k_cache.pages",
        ),
        (
            "paged cuda, gather: a bad page is not zeros",
            "place.page < 0 ? LaneRun<Code>{} : load_run(from)",
            "load_run(from)",
        ),
        ("paged cuda, gather: scale of head 0", "place.slot, head));", "place.slot, 0));"),
        ("paged cuda, gather: offsets are not checked", "check_offsets(args);", "{}"),
        tests=f"{APPEND} -k emulator",
    ),
    *plant(
        f"{FOLDER}/copy.cu",
        (
            "paged cuda, copy: scales stay",
            "args.tensor[dev::block_index().y];",
            "args.tensor[dev::block_index().y % 2];",
        ),
        (
            "paged cuda, copy: the last chunk stays",
            "c < chunks ? chunk_bytes",
            "c + 1 < chunks ? chunk_bytes",
        ),
        ("paged cuda, copy: the page behind the cache", "page < args.pages", "page <= args.pages"),
        (
            "paged cuda, copy: all blocks copy one part",
            "int begin = part * kPartChunks",
            "int begin = 0 * part",
        ),
        (
            "paged cuda, copy: the last part of a page is left out",
            "parts = ceil_div(most_chunks, CopyPages::kPartChunks);",
            "parts = std::max<int64_t>(1, most_chunks / CopyPages::kPartChunks);",
        ),
        (
            "paged cuda, copy: runs of one head",
            "run / inner * runs.outer.stride",
            "run / inner * runs.inner.stride",
        ),
        tests=f"{MOVES} -k emulator",
    ),
    *plant(
        f"{FOLDER}/compact.cu",
        (
            "paged cuda, compact: rows are written while others are read",
            "dev::block_sync();  // every row has been read before one is written",
            "",
        ),
        (
            "paged cuda, compact: the -1 counts",
            "count = std::min(count, i);",
            "count = std::min(count, i + 1);",
        ),
        ("paged cuda, compact: all blocks move one slice", "slice * args.slice_chunks;", "0 * slice;"),
        (
            "paged cuda, compact: head 0",
            "moved.row(to_page, to % size, head)",
            "moved.row(to_page, to % size, 0)",
        ),
        ("paged cuda, compact: more nodes than the tree has", "|| i >= request.nodes", ""),
        (
            "paged cuda, compact: a node behind the tree",
            "node >= request.nodes ||",
            "node > request.nodes ||",
        ),
        ("paged cuda, compact: a bad length moves rows", "is_bad ? 0 : count", "count"),
        ("paged cuda, compact: a tree longer than its request", "nodes < 0 || nodes > length", "nodes < 0"),
        (
            "paged cuda, compact: the page behind the cache",
            "page < args.tensors.pages",
            "page <= args.tensors.pages",
        ),
        ("paged cuda, compact: nodes counted from slot 0", "to = request.prefix + i;", "to = i;"),
        tests=f"{MOVES} -k emulator",
    ),
    *plant(
        "csrc/block/row_copy.cuh",
        (
            "paged cuda: 4-byte stores past the row",
            "if (4 * w < valid) dev::store_global",
            "dev::store_global",
        ),
        (
            "paged cuda: single bytes past the row",
            "if (b < valid) dev::store_global(to",
            "dev::store_global(to",
        ),
        ("paged cuda: bytes of a chunk in another order", ">> (8 * (b % 4))", ">> (8 * (b % 2))"),
        tests=f"{MOVES} -k emulator",
    ),
    *plant(
        "csrc/kv/error_word.cuh",
        (
            "error word: the last error is kept",
            "if (dev::atomic_cas(&word->code, 0, error_code(op, argument)) != 0) return;",
            "dev::atomic_cas(&word->code, 0, error_code(op, argument));",
        ),
        ("error word: the column is lost", "dev::store_global(&word->column, column);", ""),
        ("error word: the row is lost", "dev::store_global(&word->row, row);", ""),
        tests="tests/ops/test_paged_kv_cuda.py -k emulator",
    ),
    *plant(
        "csrc/device/emu/mailbox.cc",
        ("error word: never cleared", "std::exchange(words, Mail{})", "words"),
        tests="tests/ops/test_paged_kv_cuda.py -k emulator",
    ),
    *plant(
        f"{MERGE}/cuda/rows.cu",
        (
            "paged cuda, merge: weights read before they are there",
            "base)); dev::warp_sync();",
            "base));",
        ),
        (
            "paged cuda, merge: a sink above all lses is taken for one below",
            "sink > largest ? sink : largest, weights",
            "largest, weights",
        ),
        (
            "paged cuda, merge: the second sum overwrites what others read",
            "dev::warp_sync();  // all lanes have read the weights of the first sum",
            "",
        ),
        (
            "paged cuda, merge: a part is left out",
            "p < parts; p += args.lanes)",
            "p + 1 < parts; p += args.lanes)",
        ),
        ("paged cuda, merge: -0 becomes 0", "is_empty ? 0.0f : -0.0f", "0.0f"),
        (
            "paged cuda, merge: the largest of half the lanes",
            "args.lanes / 2; step > 0",
            "args.lanes / 2; step > 1",
        ),
        (
            "paged cuda, merge: a part of weight 0 is read",
            "if (weight[i] != 0.0f) #pragma unroll",
            "#pragma unroll",
        ),
        (
            "paged cuda, merge: lse of another head",
            "head * p.tokens + token, lse",
            "token * p.heads + head, lse",
        ),
        ("paged cuda, merge: the row behind the last is stored", "if (!is_there) return;", ""),
        tests="tests/ops/test_merge_attention_states.py -k emulator",
    ),
    *plant(
        f"{MERGE}/weights.h",
        ("merge: a term of log is wrong", "p * square + 1.0 / 3.0", "p * square + 1.0 / 3.01"),
        ("merge: a NaN is not the largest", "b > a || b != b ? b : a", "b > a ? b : a"),
        ("merge: exp of a distance past the table", "magnitude(z, kExpEnd)", "magnitude(z, 3.0f * kExpEnd)"),
        tests="tests/ops/test_merge_attention_states.py",
    ),
)
