"""The bugs that tools/mutants.py plants in the CUDA products of packed int4 weights."""

from __future__ import annotations

from dataclasses import replace

from tools.mutant import Mutant

W4A16 = "csrc/ops/gemm_int4"
W4A8 = "csrc/ops/gemm_int4_int8"
SM80 = f"{W4A16}/cuda/sm80.cuh"
DEQUANTIZE = f"{W4A16}/cuda/dequantize.cuh"
GATHER = f"{W4A16}/cuda/gather.cuh"
STAGE_GROUPS = f"{W4A16}/cuda/stage_groups.cuh"
GROUP_ROWS = f"{W4A16}/cuda/group_rows.cuh"
W4A8_SM80 = f"{W4A8}/cuda/sm80.cuh"
W4A8_END = f"{W4A8}/cuda/group_end.cuh"
W4A8_PREPARE = f"{W4A8}/cuda/prepare.cu"

_W4A16_MUTANTS = (
    Mutant("int4 sm80: a step is used one too early", SM80, "<kConfig.stages - 2>", "<kConfig.stages - 1>"),
    Mutant(
        "int4 sm80: no barrier before a stage is used and refilled",
        SM80,
        "dev::block_sync();  // step s has arrived",
        "// step s has arrived",
    ),
    Mutant(
        "int4 sm80: the next tile's copies into a ring that is being read",
        SM80,
        "dev::block_sync();  // the ring is read",
        "{}",
    ),
    Mutant(
        "int4 sm80: splits overlap by a step",
        SM80,
        "split * args.split.steps",
        "split * (args.split.steps - 1)",
    ),
    Mutant("int4 sm80: halves of k swapped", SM80, "lane / 8 % 2;", "1 - lane / 8 % 2;"),
    Mutant("int4 sm80: both halves of 16 tokens the first", SM80, "b[j / 2][j % 2 * 2],", "b[j / 2][0],"),
    Mutant(
        "int4 groups: a group of one slice less",
        STAGE_GROUPS,
        "++row; end += args.group_slices;",
        "++row; end += args.group_slices - 1;",
    ),
    Mutant(
        "int4 groups: a step goes on with the group after",
        STAGE_GROUPS,
        "row = end > begin ? 0 : -1",
        "row = end > begin ? 1 : -1",
    ),
    Mutant("int4 groups: what lies beyond k enters a group", STAGE_GROUPS, "end = INT_MAX;", "{}"),
    Mutant(
        "int4 groups: the last group of a step not loaded",
        STAGE_GROUPS,
        "int count = 1; for",
        "int count = 0; for",
    ),
    Mutant(
        "int4 dequantize: what lies beyond k is a weight",
        DEQUANTIZE,
        "left == 1 ? 0x0000ffffu : 0u",
        "0xffffffffu",
    ),
    Mutant(
        "int4 sm80: groups that end within a tile", SM80, "first >= kSlices &&", "first >= kSlices - 1 &&"
    ),
    Mutant(
        "int4 groups: a step loads from the group before",
        STAGE_GROUPS,
        "next.end <= begin;",
        "next.end < begin;",
    ),
    Mutant("int4 groups: the next pair's scales", STAGE_GROUPS, "pair >> (16 * e)", "pair >> (16 * (1 - e))"),
    Mutant(
        "int4 sm80: rows of the stage before",
        SM80,
        "row_chunk(row, chunk)) * swizzle",
        "row_chunk(row + 1, chunk)) * swizzle",
    ),
    Mutant(
        "int4 dequantize: f16 codes of odd rows not shifted",
        DEQUANTIZE,
        "? 1024.0f : 64.0f",
        "? 1024.0f : 1024.0f",
    ),
    Mutant("int4 dequantize: fractions of zero points lost", DEQUANTIZE, "whole == zero ?", "true ?"),
    Mutant(
        "int4 dequantize: zero points cut off",
        DEQUANTIZE,
        "within + kRound - kRound",
        "static_cast<int>(within)",
    ),
    Mutant(
        "int4 dequantize: zero points beyond the codes",
        DEQUANTIZE,
        "zero > 15.0f ? 15.0f : ",
        "zero > 2000.0f ? 15.0f : ",
    ),
    Mutant(
        "int4 groups: a row of the next block",
        GROUP_ROWS,
        "bytes > 0 ? from + row * group_stride",
        "bytes > 0 ? data + row * group_stride",
    ),
    Mutant(
        "int4 groups: columns apart taken for neighbours",
        GROUP_ROWS,
        "row * group_stride + column * stride;",
        "row * group_stride + column * element_bytes;",
    ),
    Mutant("int4 gather: the features of the first place", GATHER, "perm.data + p + e", "perm.data + e"),
    Mutant(
        "int4 gather: one feature too many", GATHER, "feature >= perm.features", "feature > perm.features"
    ),
    Mutant(
        "int4 plan: kernels of two archs",
        f"{W4A16}/cuda/k_chunks.h",
        "only.empty() ? kernel.arch != newest",
        "only.empty() ? kernel.arch < 80",
    ),
    Mutant(
        "int4 plan: k is split within a k_chunk",
        f"{W4A16}/cuda/k_chunks.h",
        "each * (chunk_k / kernel.step_k),",
        "each * (chunk_k / kernel.step_k) - 1,",
    ),
)

_W4A8_MUTANTS = (
    Mutant(
        "int4_int8 cuda: a step is used one too early",
        W4A8_SM80,
        "<kConfig.stages - 2>",
        "<kConfig.stages - 1>",
    ),
    Mutant(
        "int4_int8 cuda: no barrier before a stage is used and refilled",
        W4A8_SM80,
        "dev::block_sync();  // step s has arrived",
        "// step s has arrived",
    ),
    Mutant(
        "int4_int8 cuda: rows q and q + 8 swapped",
        W4A8_END,
        "a[1] = first >> 4 & kLow;",
        "a[1] = first & kLow;",
    ),
    Mutant(
        "int4_int8 cuda: a group goes on after an end within the tile",
        W4A8_SM80,
        "slice == 0 && end >= kSlices",
        "end - slice >= kSlices",
    ),
    Mutant(
        "int4_int8 cuda: half a product has the next group's codes",
        W4A8_SM80,
        "is_pair ? codes[i].x[word + 1] : 0,",
        "codes[i].x[word + 1],",
    ),
    Mutant(
        "int4_int8 cuda: splits overlap by a step",
        W4A8_SM80,
        "split * args.split.steps",
        "split * (args.split.steps - 1)",
    ),
    Mutant(
        "int4_int8 cuda: what lies beyond k is no group's",
        W4A8_END,
        "group + 1 == groups ? slices",
        "group + 1 == groups ? slices + 1",
    ),
    Mutant(
        "int4_int8 cuda: zero points of the first tokens",
        W4A8_SM80,
        "const int64_t i = at.m0 + t;",
        "const int64_t i = t;",
    ),
    Mutant("int4_int8 cuda: halves of k swapped", W4A8_SM80, "lane / 8 % 2 : 0)", "1 - lane / 8 % 2 : 0)"),
    Mutant(
        "int4_int8 cuda, groups: scales of the step's first group", W4A8_END, "++index; ++row;", "++index;"
    ),
    Mutant(
        "int4_int8 cuda, groups: sums of codes go on",
        W4A8_END,
        "for (int i = 0; i < kTiles; ++i) codes[i][0] = codes[i][1] = 0;",
        "for (int i = 0; i < kTiles; ++i) codes[i][0] = 0;",
    ),
    Mutant(
        "int4_int8 cuda, groups: codes of one lane of four",
        W4A8_END,
        "step < 4; step *= 2",
        "step < 2; step *= 2",
    ),
    Mutant(
        "int4_int8 cuda, groups: activations of the first group",
        W4A8_END,
        "(first + t / kRowChunks) *",
        "(t / kRowChunks) *",
    ),
    Mutant(
        "int4_int8 cuda, groups: the last four tokens lost",
        W4A8_END,
        "left > 4 ? 4 :",
        "left >= 4 ? 4 : left > 0 ? 0 :",
    ),
    Mutant("int4_int8 cuda, prepare: k in its own order", W4A8_PREPARE, "int4::s8_k(at)", "at"),
    Mutant(
        "int4_int8 cuda, prepare: nothing is 0, not the zero point",
        W4A8_PREPARE,
        "encoder(run.value[e]) : zero",
        "encoder(run.value[e]) : 0",
    ),
    Mutant(
        "int4_int8 cuda, prepare: sums with the zero point",
        W4A8_PREPARE,
        "sum += code - zero;",
        "sum += code;",
    ),
    Mutant(
        "int4_int8 cuda, prepare: a warp's part of a long group",
        W4A8_PREPARE,
        "w < args.team / dev::kWarpLanes",
        "w < 1",
    ),
    Mutant(
        "int4_int8 cuda, prepare: parts overwritten while they are read",
        W4A8_PREPARE,
        "dev::block_sync();  // the parts are read",
        "{}",
    ),
    Mutant(
        "int4_int8 cuda, prepare: the next row's extremes while they are read",
        W4A8_PREPARE,
        "if (i + stride < args.m) dev::block_sync();",
        "",
    ),
    Mutant(
        "int4_int8 cuda: the next tile's copies into a ring that is being read",
        W4A8_SM80,
        "dev::block_sync();  // the ring is read",
        "{}",
    ),
    Mutant(
        "int4_int8 cuda, prepare: one feature too many",
        W4A8_PREPARE,
        "feature >= args.perm.features",
        "feature > args.perm.features",
    ),
    Mutant(
        "int4_int8 cuda, prepare: a wrong feature is nothing", W4A8_PREPARE, "is_wrong |= feature != -1;", ""
    ),
    Mutant(
        "int4_int8 cuda, plan: sums of k_chunks over the activations",
        f"{W4A8}/cuda/plan.cc",
        "split.partials = bytes + PackedActivations::bytes(p);",
        "split.partials = bytes;",
    ),
    Mutant(
        "int4_int8 cuda, plan: partials of a split of one group",
        f"{W4A8}/cuda/kernel.h",
        "return is_one_group(p) ? split.count :",
        "return is_one_group(p) ? split.count - 1 :",
    ),
    Mutant(
        "int4_int8 cuda, reduce: the first column's scale",
        f"{W4A8}/cuda/reduce.cu",
        "e < columns.left ? j + e : j;",
        "j;",
    ),
    Mutant(
        "int4_int8 cuda: parts of a group in the partials of k_chunks",
        W4A8_END,
        "keeps_integers ? split.steps : static_cast<int>(",
        "static_cast<int>(",
    ),
    Mutant(
        "int4_int8 cuda, groups: parts of a group keep the tokens' zero points",
        W4A8_END,
        "if (args.p.a_zero_point.is_given()) correct(at, zero); #pragma unroll",
        "#pragma unroll",
    ),
    Mutant(
        "int4_int8 cuda, epilogue: a token's scale after the bias",
        "csrc/gemm/cuda/epilogue.cuh",
        "sums[e] * token_scale + columns.bias[e]",
        "(sums[e] + columns.bias[e]) * token_scale",
    ),
)

INT4_CUDA_MUTANTS = (
    *(replace(mutant, tests=("tests/ops/test_gemm_int4_cuda.py",)) for mutant in _W4A16_MUTANTS),
    *(replace(mutant, tests=("tests/ops/test_gemm_int4_int8_cuda.py",)) for mutant in _W4A8_MUTANTS),
)
