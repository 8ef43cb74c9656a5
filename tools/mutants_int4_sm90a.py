"""The bugs that tools/mutants.py plants in the int4 products for sm_90a."""

from __future__ import annotations

from dataclasses import replace

from tools.mutant import Mutant

W4A16 = "csrc/ops/gemm_int4"
SM90A = f"{W4A16}/cuda/sm90a.cuh"
PIPE = f"{W4A16}/cuda/sm90a_pipe.cuh"
W4A8_SM90A = "csrc/ops/gemm_int4_int8/cuda/sm90a.cuh"

_W4A16_MUTANTS = (
    Mutant(
        "int4 sm90a: a stage is used before its copies are there",
        PIPE,
        "dev::mbarrier_wait(&barriers().full[cursor.stage], cursor.parity);",
        "",
    ),
    Mutant(
        "int4 sm90a: TMA fills a stage while it is in use",
        PIPE,
        "counts as done. dev::mbarrier_wait(&barriers().empty[cursor.stage], cursor.parity ^ 1);",
        "",
    ),
    Mutant(
        "int4 sm90a: threads fill a stage while it is in use",
        PIPE,
        "dev::mbarrier_wait(&barriers().empty[cursor.stage], cursor.parity ^ 1); copies",
        "copies",
    ),
    Mutant(
        "int4 sm90a: copies count a stage too early",
        PIPE,
        "dev::cp_async_wait<kAhead>();",
        "dev::cp_async_wait<kAhead + 1>();",
    ),
    Mutant("int4 sm90a: the last copies are not waited for", PIPE, "dev::cp_async_wait<0>();", ""),
    Mutant(
        "int4 sm90a: copied rows without a fence",
        PIPE,
        "if (args.copies_a()) dev::fence_proxy_async();",
        "",
    ),
    Mutant(
        "int4 sm90a: copied rows with another swizzle",
        SM90A,
        "swizzled(Pipe::kSwizzle, at)",
        "at",
    ),
    Mutant(
        "int4 sm90a: bytes that threads copy are expected",
        PIPE,
        "kBytesW + (args.copies_a() ? 0 : kBytesA)",
        "kBytesW + kBytesA",
    ),
    Mutant(
        "int4 sm90a: all rows of a stage in its first 64 k",
        PIPE,
        "stage_at(cursor.stage) + t * kTileBytesA + part",
        "stage_at(cursor.stage) + part",
    ),
    Mutant(
        "int4 sm90a: weights overwritten two products too early",
        SM90A,
        "dev::wgmma_wait<kSlices / 2 - 1>();",
        "dev::wgmma_wait<kSlices / 2>();",
    ),
    Mutant(
        "int4 sm90a: no fence between weights and products",
        SM90A,
        "dev::wgmma_fence(); #pragma unroll for (int s = two;",
        "for (int s = two;",
    ),
    Mutant(
        "int4 sm90a: no fence between weights and products of an edge",
        SM90A,
        "dev::wgmma_fence(); #pragma unroll for (int s = 0;",
        "for (int s = 0;",
    ),
    Mutant(
        "int4 sm90a: sums used before they are done",
        SM90A,
        "dev::wgmma_wait<0>(); dev::wgmma_fence_registers(sums);",
        "dev::wgmma_fence_registers(sums);",
    ),
    Mutant(
        "int4 sm90a: weights of an edge overwritten under its products",
        SM90A,
        "dev::wgmma_commit(); dev::wgmma_wait<0>();",
        "dev::wgmma_commit();",
    ),
    Mutant(
        "int4 sm90a: a stage is given back while its products are under way",
        SM90A,
        "if (t == 0 && s > begin) Pipe::release(before);",
        "if (t == 0) Pipe::release(cursor.stage);",
    ),
    Mutant(
        "int4 sm90a: the last stage of a k_chunk is never given back",
        SM90A,
        "dev::wgmma_fence_registers(sums); Pipe::release(before);",
        "dev::wgmma_fence_registers(sums);",
    ),
    Mutant(
        "int4 sm90a: the second product of a tile starts at the first's k",
        SM90A,
        "advance_descriptor(tokens, s * kSliceK * 2)",
        "advance_descriptor(tokens, s / 2 * 2 * kSliceK * 2)",
    ),
    Mutant(
        "int4 sm90a: eight rows of tokens too close",
        PIPE,
        "kSwizzleGroupBytes = 8 * kRowBytes",
        "kSwizzleGroupBytes = 4 * kRowBytes",
    ),
    Mutant("int4 sm90a: a stage goes on counting rows of groups", SM90A, "group.begin_stage(first);", ""),
    Mutant("int4 sm90a: groups that end within a tile", SM90A, "group.end - slice >= kSlices &&", ""),
    Mutant(
        "int4 sm90a: k that ends within a tile",
        SM90A,
        "slice + kSlices <= args.groups.whole_slices",
        "true",
    ),
    Mutant("int4 sm90a: what lies beyond k is multiplied", SM90A, "if (t > 0 && s + t >= end) break;", ""),
    Mutant(
        "int4 sm90a: a block leaves while others still write to it",
        PIPE,
        "if constexpr (kCluster > 1) gemm_int8::sync_cluster<kCluster>();",
        "",
    ),
)

_W4A8_MUTANTS = (
    Mutant(
        "int4_int8 sm90a: weights overwritten a product too early",
        W4A8_SM90A,
        "dev::wgmma_wait<kProducts - 1>();",
        "dev::wgmma_wait<kProducts>();",
    ),
    Mutant("int4_int8 sm90a: no fence between codes and product", W4A8_SM90A, "dev::wgmma_fence();", ""),
    Mutant(
        "int4_int8 sm90a: codes overwritten under a product",
        W4A8_SM90A,
        "group, own); dev::wgmma_wait<0>();",
        "group, own);",
    ),
    Mutant(
        "int4_int8 sm90a: the second half of a product as the first",
        W4A8_SM90A,
        "is_second ? 0 : codes.x[0], is_second ? codes.x[0]",
        "codes.x[0], is_second ? 0",
    ),
    Mutant(
        "int4_int8 sm90a: a group ends before its products do",
        W4A8_SM90A,
        "dev::wgmma_wait<0>(); dev::wgmma_fence_registers(sums_of(group)); group.end",
        "group.end",
    ),
    Mutant(
        "int4_int8 sm90a: integers kept before products end",
        W4A8_SM90A,
        "dev::wgmma_wait<0>(); dev::wgmma_fence_registers(sums_of(group)); if",
        "if",
    ),
    Mutant(
        "int4_int8 sm90a: half a product has the next group's codes",
        W4A8_SM90A,
        "is_whole ? codes.x[1] : 0,",
        "codes.x[1],",
    ),
    Mutant("int4_int8 sm90a: groups that end within a product", W4A8_SM90A, "end >= s + 2;", "end >= s + 1;"),
    Mutant(
        "int4_int8 sm90a: the first half of a tile twice",
        W4A8_SM90A,
        "tokens, h * 32)",
        "tokens, h / 2 * 32)",
    ),
    Mutant("int4_int8 sm90a: a stage goes on counting rows of groups", W4A8_SM90A, "group.row = 0;", ""),
    Mutant("int4_int8 sm90a: tiles of the next split", W4A8_SM90A, "&& s + t < tile.steps;", ";"),
    Mutant(
        "int4_int8 sm90a: the last stage is never given back",
        W4A8_SM90A,
        "if (tile.steps > 0) Pipe::release(before);",
        "",
    ),
    Mutant(
        "int4_int8 sm90a: a stage is given back while its products are under way",
        W4A8_SM90A,
        "if (t == 0 && s > 0) Pipe::release(before);",
        "if (t == 0) Pipe::release(cursor.stage);",
    ),
    Mutant("int4_int8 sm90a: sums go on into the next group", W4A8_SM90A, "!group.is_new);", "true);"),
    Mutant(
        "int4_int8 sm90a: only the last product of a group",
        W4A8_SM90A,
        "group.is_new = false;",
        "",
    ),
    Mutant(
        "int4_int8 sm90a: zero points of the first tokens",
        W4A8_SM90A,
        "if (!args.p.a_zero_point.is_given()) return;",
        "if (!args.p.a_zero_point.is_given() || tile.m0 > 0) return;",
    ),
    Mutant(
        "int4_int8 sm90a: groups of the split's first",
        W4A8_SM90A,
        "group += count;",
        "",
    ),
    Mutant(
        "int4_int8 sm90a: activations asked for before they are there",
        PIPE,
        "dev::wait_for_previous(); for_stages",
        "for_stages",
    ),
    Mutant(
        "int4_int8 sm90a: scales read before they are there",
        PIPE,
        "dev::wait_for_previous(); Kernel::consume",
        "Kernel::consume",
    ),
    Mutant(
        "int4_int8 sm90a: sums copied before they are there",
        PIPE,
        "if (warp > kMathWarps) { dev::wait_for_previous();",
        "if (warp > kMathWarps) {",
    ),
    Mutant(
        "int4_int8 sm90a: more early weights than stages",
        PIPE,
        "if (early == kShape.stages) return false;",
        "if (early > kShape.stages) return false;",
    ),
    Mutant(
        "int4_int8 sm90a: early weights asked for again",
        PIPE,
        "load_w(tile, step, cursor); ++early;",
        "load_w(tile, step, cursor);",
    ),
    Mutant(
        "int4_int8: partial sums added before they are there",
        "csrc/gemm/cuda/reduce.cuh",
        "dev::wait_for_previous();",
        "",
    ),
)

INT4_SM90A_MUTANTS = (
    *(replace(mutant, tests=("tests/ops/test_gemm_int4_cuda.py",)) for mutant in _W4A16_MUTANTS),
    *(replace(mutant, tests=("tests/ops/test_gemm_int4_int8_cuda.py",)) for mutant in _W4A8_MUTANTS),
)
