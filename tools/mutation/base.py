"""Bugs to plant in csrc/base, csrc/device and csrc/layout."""

from __future__ import annotations

from tools.mutation.mutant import plant

MUTANTS = (
    *plant(
        "csrc/base/memo.h",
        (
            "host: any key of a set is found",
            "set.hashes[way] == hash && set.keys[way] == key",
            "set.hashes[way] != 0",
        ),
        ("host: no key is found again", "set.hashes[way] == hash && set.keys[way] == key", "false"),
        ("host: the value of another place", "return &set.values[way];", "return &set.values[0];"),
        tests="tests/ops/test_host_work.py",
    ),
    *plant(
        "csrc/base/numeric.h",
        ("bf16: truncated instead of rounded", "(bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16", "bits >> 16"),
        ("f16: overflow wraps", "magnitude >= 0x47800000u ? overflow", "magnitude > 0x7f800000u ? overflow"),
        (
            "f16: subnormals flushed",
            "(magnitude < 0x0400u ? subnormal : normal)",
            "(magnitude < 0x0400u ? subnormal & 0u : normal)",
        ),
    ),
    *plant(
        "csrc/base/scratch.cc",
        (
            "scratch: a request a little larger gets the old block",
            "if (bytes > size)",
            "if (bytes > size + 2048)",
        ),
        tests="tests/ops/test_gemm_int8.py -k avx2 or avx512_vnni",
    ),
    *plant(
        "csrc/base/work_stealing.h",
        (
            "tasks: the last task of a range is not taken",
            "if (begin == end) return -1;",
            "if (begin + 1 >= end) return -1;",
        ),
    ),
    *plant(
        "csrc/device/device_info.h",
        (
            "host: compute capability is not in the key",
            "memo_key(compute_capability, sm_count, smem_per_block, l2_bytes)",
            "memo_key(sm_count, smem_per_block, l2_bytes)",
        ),
        (
            "host: SM count is not in the key",
            "memo_key(compute_capability, sm_count, smem_per_block, l2_bytes)",
            "memo_key(compute_capability, smem_per_block, l2_bytes)",
        ),
        tests="tests/ops/test_host_work.py",
    ),
    *plant(
        "csrc/device/tensor_map.cc",
        (
            "host: a map's address is not in the key",
            "memo_key(base, rank, element_bytes, extent, stride_bytes, box, swizzle)",
            "memo_key(rank, element_bytes, extent, stride_bytes, box, swizzle)",
        ),
        (
            "host: a map's extent is not in the key",
            "memo_key(base, rank, element_bytes, extent, stride_bytes, box, swizzle)",
            "memo_key(base, rank, element_bytes, stride_bytes, box, swizzle)",
        ),
        (
            "host: a map's stride is not in the key",
            "memo_key(base, rank, element_bytes, extent, stride_bytes, box, swizzle)",
            "memo_key(base, rank, element_bytes, extent, box, swizzle)",
        ),
        (
            "host: a map's box is not in the key",
            "memo_key(base, rank, element_bytes, extent, stride_bytes, box, swizzle)",
            "memo_key(base, rank, element_bytes, extent, stride_bytes, swizzle)",
        ),
        tests="tests/ops/test_host_work.py",
    ),
    *plant(
        "csrc/layout/int4.h",
        ("int4_rows: halves swapped", "k / 4 % 2 * 4}", "(1 - k / 4 % 2) * 4}"),
        ("int4_tile: rows swapped", "code = row_of(n) / 8 +", "code = 1 - row_of(n) / 8 +"),
        tests="tests/ops/test_pack_int4.py",
    ),
)
