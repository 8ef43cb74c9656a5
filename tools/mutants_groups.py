"""The bugs that tools/mutants.py plants in what scales along k need."""

from __future__ import annotations

from dataclasses import replace

from tools.mutant import Mutant

GEMM = "csrc/ops/gemm_int8"
BODY = f"{GEMM}/cpu/body.h"
SEGMENT = f"{GEMM}/cuda/k_chunk.cuh"
SM80_GROUPS = f"{GEMM}/cuda/sm80_groups.cuh"
SM90A_GROUPS = f"{GEMM}/cuda/sm90a_groups.cuh"

_MUTANTS = (
    Mutant("groups: the last k_chunk forgotten", BODY, "|| g + 1 == p.problem.groups()", ""),
    Mutant("groups: one k_chunk", BODY, "begins = g % kChunkGroups == 0", "begins = g == 0"),
    Mutant(
        "groups: rows by the first scales", BODY, "a_scale = p.a_scale_of(g)", "a_scale = p.a_scale_of(0)"
    ),
    Mutant(
        "groups: columns by the first scales", BODY, "w_scale = p.w_scale_of(g)", "w_scale = p.w_scale_of(0)"
    ),
    Mutant("groups: the first column sums", BODY, "p.w_sums[g * p.problem.n + n0 + j]", "p.w_sums[n0 + j]"),
    Mutant("groups: packed together", BODY, "p.problem.is_grouped ? kScaleGroup : std::max", "std::max"),
    Mutant(
        "groups: rounded twice",
        f"{GEMM}/epilogue.h",
        "std::fma(static_cast<float>(acc) * a_scale, w_scale, k_chunk)",
        "static_cast<float>(acc) * a_scale * w_scale + k_chunk",
    ),
    Mutant(
        "groups: scales multiplied with each other first",
        f"{GEMM}/epilogue.h",
        "std::fma(static_cast<float>(acc) * a_scale, w_scale, k_chunk)",
        "std::fma(static_cast<float>(acc), a_scale * w_scale, k_chunk)",
    ),
    Mutant("pack: sums of two groups", f"{GEMM}/pack.cc", "begin / group_k * n", "begin / (2 * group_k) * n"),
    Mutant(
        "plan: k is split within a k_chunk",
        f"{GEMM}/cuda/plan.cc",
        "p.is_grouped ? kChunkGroups * kScaleGroup / kernel.step_k : 1",
        "1",
    ),
    Mutant("k_chunk: total not taken up", SEGMENT, "done > steps", "done > 2 * steps"),
    Mutant("k_chunk: into the next partial", SEGMENT, "(done - 1) / steps", "done / steps"),
    Mutant("k_chunk: does not start from nothing", SEGMENT, "clear(kNoSum);", ""),
    Mutant("k_chunk: the last step ends none", SEGMENT, "&& !is_last", ""),
    Mutant(
        "sm80 groups: scales of the step before",
        f"{GEMM}/cuda/sm80.cuh",
        "Scales::load(p, step,",
        "Scales::load(p, step > 0 ? step - 1 : 0,",
    ),
    Mutant("sm80 groups: sums go on into the next group", SM80_GROUPS, "sum = 0;", ""),
    Mutant("sm80 groups: neighbours' scales", SM80_GROUPS, "w_scale.value[e]", "w_scale.value[e ^ 1]"),
    Mutant("sm80 groups: upper rows' zero points", SM80_GROUPS, "zero_point[r][half],", "zero_point[r][0],"),
    Mutant(
        "sm90a groups: scales into a stage in use",
        SM90A_GROUPS,
        "dev::mbarrier_wait(&Kernel::barriers().empty[cursor.stage], cursor.parity ^ 1);",
        "",
    ),
    Mutant(
        "sm90a groups: a lane arrives before the others' scales",
        SM90A_GROUPS,
        "dev::warp_sync();  // the lane that arrives",
        "// the lane that arrives",
    ),
    Mutant(
        "sm90a groups: a stage released before its scales are read",
        SM90A_GROUPS,
        "dev::wgmma_wait<0>();",
        "dev::wgmma_wait<0>(); Kernel::release(cursor.stage);",
    ),
    Mutant("sm90a groups: sums go on into the next group", SM90A_GROUPS, "h > 0);", "true);"),
    Mutant(
        "sm90a groups: sums read under a product",
        SM90A_GROUPS,
        "dev::wgmma_wait<0>();",
        "dev::wgmma_wait<1>();",
    ),
    Mutant("sm90a groups: even tokens' zero points", SM90A_GROUPS, "zero_point.x[i % 2]", "zero_point.x[0]"),
    Mutant(
        "sm90a groups: features in the order of q",
        SM90A_GROUPS,
        "2 * Kernel::lane_pair(dev::lane() / 4)",
        "2 * (dev::lane() / 4)",
    ),
)

GROUP_MUTANTS = tuple(replace(mutant, tests=("tests/ops/test_gemm_int8_groups.py",)) for mutant in _MUTANTS)
