"""The bugs that tools/mutants.py plants in what calls find again: mostly a key that leaves something out."""

from __future__ import annotations

from tools.mutant import Mutant

MEMO = "csrc/base/memo.h"
INT8 = "csrc/ops/gemm_int8"
INT4 = "csrc/ops/gemm_int4"
INT4_INT8 = "csrc/ops/gemm_int4_int8"
DEVICE = "csrc/device/device_info.h"
MAP = "csrc/device/tensor_map.h"


def _bug(name: str, file: str, old: str, new: str) -> Mutant:
    return Mutant(f"host: {name}", file, old, new, ("tests/ops/test_host_work.py",))


def _without(what: str, file: str, key: str, part: str) -> Mutant:
    """memo_key(key), but for one of its parts."""
    left = [each for each in key.split(", ") if each != part]
    return _bug(f"{what} is not in the key", file, f"memo_key({key})", f"memo_key({', '.join(left)})")


_INT8_PROBLEM = "m, n, k, is_grouped"
_INT4_PROBLEM = "m, n, k, group"
_DEVICE = "compute_capability, sm_count, smem_per_block, l2_bytes"
_MAP = "base, rank, element_bytes, extent, stride_bytes, box, swizzle"
_CPU = "key_of(p), key_of(cpu), threads"
_CHOICE = "choice_of(cuda_kernels(), only))"
_MATCH = "set.hashes[way] == hash && set.keys[way] == key"

HOST_MUTANTS = (
    _without("m of int8", f"{INT8}/plan.h", _INT8_PROBLEM, "m"),
    _without("is_grouped", f"{INT8}/plan.h", _INT8_PROBLEM, "is_grouped"),
    _without("m of int4", f"{INT4}/plan.h", _INT4_PROBLEM, "m"),
    _without("group", f"{INT4}/plan.h", _INT4_PROBLEM, "group"),
    _without("compute capability", DEVICE, _DEVICE, "compute_capability"),
    _without("SM count", DEVICE, _DEVICE, "sm_count"),
    _without("a map's address", MAP, _MAP, "base"),
    _without("a map's extent", MAP, _MAP, "extent"),
    _without("a map's stride", MAP, _MAP, "stride_bytes"),
    _without("a map's box", MAP, _MAP, "box"),
    _without("threads of int8", f"{INT8}/plan.cc", _CPU, "threads"),
    _without("threads of int4", f"{INT4}/plan.cc", f"&kernels, {_CPU}", "threads"),
    _bug(
        "int8's cap is not in the key",
        f"{INT8}/cuda/plan.cc",
        "a_alignment, max_sms, choice",
        "a_alignment, choice",
    ),
    _bug(
        "a's alignment is not in the key",
        f"{INT8}/cuda/plan.cc",
        "a_alignment, max_sms, choice",
        "max_sms, choice",
    ),
    _bug("int8's forced kernel is not in the key", f"{INT8}/cuda/plan.cc", _CHOICE, "0)"),
    _bug(
        "W4A16's cap is not in the key", f"{INT4}/cuda/plan.cc", "key_of(device), max_sms,", "key_of(device),"
    ),
    _bug("W4A16's forced kernel is not in the key", f"{INT4}/cuda/plan.cc", f"gemm_int8::{_CHOICE}", "0)"),
    _bug(
        "W4A8's cap is not in the key",
        f"{INT4_INT8}/cuda/plan.cc",
        "key_of(device), max_sms,",
        "key_of(device),",
    ),
    _bug(
        "W4A8's forced kernel is not in the key", f"{INT4_INT8}/cuda/plan.cc", f"gemm_int8::{_CHOICE}", "0)"
    ),
    _bug(
        "the first kernel, forced, is any",
        f"{INT8}/cuda/schedule.h",
        "kernels.begin() + 1;",
        "kernels.begin();",
    ),
    _bug("threads share a table", f"{INT8}/cuda/plan.cc", "static thread_local Memo", "static Memo"),
    _bug("any key of a set is found", MEMO, _MATCH, "set.hashes[way] != 0"),
    _bug("nothing is found again", MEMO, _MATCH, "false"),
    _bug("the value of another place", MEMO, "return &set.values[way];", "return &set.values[0];"),
)
