"""Planted bugs: base."""

from __future__ import annotations

from tools.mutation.mutant import Mutant

HOST_WORK = ("tests/ops/test_host_work.py",)

MUTANTS = (
    Mutant(
        "host: any key of a set is found",
        "csrc/base/memo.h",
        "set.hashes[way] == hash && set.keys[way] == key",
        "set.hashes[way] != 0",
        HOST_WORK,
    ),
    Mutant(
        "host: no key is found again",
        "csrc/base/memo.h",
        "set.hashes[way] == hash && set.keys[way] == key",
        "false",
        HOST_WORK,
    ),
    Mutant(
        "host: the value of another place",
        "csrc/base/memo.h",
        "return &set.values[way];",
        "return &set.values[0];",
        HOST_WORK,
    ),
    Mutant(
        "bf16: truncated instead of rounded",
        "csrc/base/numeric.h",
        "(bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16",
        "bits >> 16",
    ),
    Mutant(
        "f16: overflow wraps",
        "csrc/base/numeric.h",
        "magnitude >= 0x47800000u ? overflow",
        "magnitude > 0x7f800000u ? overflow",
    ),
    Mutant(
        "f16: subnormals flushed",
        "csrc/base/numeric.h",
        "(magnitude < 0x0400u ? subnormal : normal)",
        "(magnitude < 0x0400u ? subnormal & 0u : normal)",
    ),
    Mutant(
        "scratch: a request a little larger gets the old block",
        "csrc/base/scratch.cc",
        "if (bytes > size)",
        "if (bytes > size + 2048)",
        ("tests/ops/test_gemm_int8.py", "-k", "avx2 or avx512_vnni"),
    ),
    Mutant(
        "tasks: the last task of a range is not taken",
        "csrc/base/work_stealing.h",
        "if (begin == end) return -1;",
        "if (begin + 1 >= end) return -1;",
    ),
    Mutant(
        "host: compute capability is not in the key",
        "csrc/device/device_info.h",
        "memo_key(compute_capability, sm_count, smem_per_block, l2_bytes)",
        "memo_key(sm_count, smem_per_block, l2_bytes)",
        HOST_WORK,
    ),
    Mutant(
        "host: SM count is not in the key",
        "csrc/device/device_info.h",
        "memo_key(compute_capability, sm_count, smem_per_block, l2_bytes)",
        "memo_key(compute_capability, smem_per_block, l2_bytes)",
        HOST_WORK,
    ),
    Mutant(
        "host: a map's address is not in the key",
        "csrc/device/tensor_map.h",
        "memo_key(base, rank, element_bytes, extent, stride_bytes, box, swizzle)",
        "memo_key(rank, element_bytes, extent, stride_bytes, box, swizzle)",
        HOST_WORK,
    ),
    Mutant(
        "host: a map's extent is not in the key",
        "csrc/device/tensor_map.h",
        "memo_key(base, rank, element_bytes, extent, stride_bytes, box, swizzle)",
        "memo_key(base, rank, element_bytes, stride_bytes, box, swizzle)",
        HOST_WORK,
    ),
    Mutant(
        "host: a map's stride is not in the key",
        "csrc/device/tensor_map.h",
        "memo_key(base, rank, element_bytes, extent, stride_bytes, box, swizzle)",
        "memo_key(base, rank, element_bytes, extent, box, swizzle)",
        HOST_WORK,
    ),
    Mutant(
        "host: a map's box is not in the key",
        "csrc/device/tensor_map.h",
        "memo_key(base, rank, element_bytes, extent, stride_bytes, box, swizzle)",
        "memo_key(base, rank, element_bytes, extent, stride_bytes, swizzle)",
        HOST_WORK,
    ),
    Mutant(
        "int4_rows: halves swapped",
        "csrc/layout/int4.h",
        "k / 4 % 2 * 4}",
        "(1 - k / 4 % 2) * 4}",
        ("tests/ops/test_pack_int4.py",),
    ),
    Mutant(
        "int4_tile: rows swapped",
        "csrc/layout/int4.h",
        "code = row_of(n) / 8 +",
        "code = 1 - row_of(n) / 8 +",
        ("tests/ops/test_pack_int4.py",),
    ),
)
