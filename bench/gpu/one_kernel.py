"""Runs one CUDA kernel on tiny problems in its own process and prints a verdict: see kernels.py.

    python bench/gpu/one_kernel.py gemm_int8 sm80_m16

kernels.py reads the lines that start with MARK. The checks are those of the tests.
"""

from __future__ import annotations

import faulthandler
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: make `bench` importable, from the checkout
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch

from bench.gpu import target as targets
from bench.gpu.verdicts import (
    CRASHED,
    CUDA_ERROR,
    ILLEGAL_ACCESS,
    NOT_MEANT,
    READY,
    REFUSED,
    RIGHT,
    RUNS,
    WRONG,
    mark,
)
from tests.ops.test_matmul_sparse24 import check_int4_int8
from tests.reference import paged_kv as kv_reference
from tests.reference import quantize as quantize_reference
from tests.reference import rms_norm as rms_norm_reference
from tests.reference import silu_mul as silu_mul_reference
from tests.reference.merge_attention_states import merge_attention_states as merge_reference
from tests.reference.sample import pack_tree_mask
from tests.support import kv_cases
from tests.support.attention_cases import AttentionCase
from tests.support.attention_check import check_attention
from tests.support.cases import GemmCase, generator, grouped
from tests.support.check import check_gemm
from tests.support.compare import assert_equal, assert_within
from tests.support.int4_cases import Int4Case
from tests.support.sample_cases import (
    parameters,
    random_draft,
    random_logits,
    random_settings,
    sample,
    sampled,
    seeds,
    verified,
)
from tests.support.sparse24_cases import at_whole_groups, pruned, random_mask
from tests.support.sparse24_exact import exact

ACCESS_ERRORS = (
    "illegal memory access",
    "misaligned address",
    "illegal instruction",
    "invalid address space",
)
GROUP = 48  # of int4 weights: not a multiple of a tile


def _gemm_int8(backend: Any, m: int, n: int, k: int) -> None:
    inputs = GemmCase("one kernel", m, n, k).inputs(zero_point="token", bias=torch.float32)
    check_gemm(backend, inputs, inputs.accumulated(), (m, n, k))


def _gemm_int8_grouped(backend: Any, m: int, n: int, k: int) -> None:
    inputs = grouped(GemmCase("one kernel", m, n, k), bias=torch.float32)
    check_gemm(backend, inputs, inputs.accumulated(), (m, n, k))


def _gemm_int4(backend: Any, m: int, n: int, k: int) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        case = Int4Case("one kernel", m, n, k, GROUP)
        inputs = case.inputs(zero=torch.uint8, scale=dtype, bias=torch.float32).floats(dtype)
        assert_within(backend.gemm_int4(inputs), inputs.half_product(dtype), dtype, (m, n, k))


def _gemm_int4_int8(backend: Any, m: int, n: int, k: int) -> None:
    inputs = Int4Case("one kernel", m, n, k, GROUP).inputs(zero=torch.float16, a_zero="token")
    assert_equal(backend.gemm_int4_int8(inputs), inputs.expected_bits(inputs.sums()), (m, n, k))


def _sparse24(backend: Any, m: int, n: int, k: int) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        inputs = exact(m, n, -(-k // 4) * 4, GROUP, dtype, has_codes=False)
        assert_equal(inputs.run(backend), inputs.want(), (m, n, k))


def _sparse24_int4(backend: Any, m: int, n: int, k: int) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        inputs = exact(m, n, -(-k // 4) * 4, GROUP, dtype, has_codes=True, has_zeros=dtype == torch.float16)
        assert_equal(inputs.run(backend), inputs.want(), (m, n, k))


def _sparse24_int4_int8(backend: Any, m: int, n: int, k: int) -> None:
    for zero in (None, torch.uint8):
        case = Int4Case("one kernel", m, n, -(-k // 4) * 4, GROUP)
        inputs = case.inputs(zero=zero, a_zero="token")
        check_int4_int8(backend, inputs, random_mask(*inputs.q.shape), torch.float32)


def _sparse24_int8(backend: Any, m: int, n: int, k: int) -> None:
    case = at_whole_groups(GemmCase("one kernel", m, n, k))
    inputs = pruned(case.inputs(zero_point="token", bias=torch.float32))
    want = inputs.expected_bits(inputs.accumulated(), torch.float32)
    assert_equal(backend.matmul_sparse24_int8(inputs), want, (m, n, k))


def _quantize_int8(backend: Any, m: int, n: int, k: int) -> None:
    x = torch.randn(m, k, generator=generator("one kernel"))
    want = quantize_reference.quantize_int8(x.numpy(), None, None, symmetric=False)
    _assert_quantized(backend.quantize(x, None, None, False), want, (m, k))


def _assert_quantized(got: Any, want: quantize_reference.Quantized, label: object) -> None:
    for name, part in zip(want._fields, got, strict=False):  # rms_norm_int8 has a fourth result
        assert_equal(part, getattr(want, name), f"{name} {label}")


def _rms_norm(backend: Any, m: int, n: int, k: int) -> None:
    x, residual = torch.randn(2, m, k, generator=generator("one kernel")).bfloat16()
    weight, z = torch.linspace(0.5, 2, k).bfloat16(), rms_norm_reference.add(x, residual)
    out, added = backend.run("rms_norm", x, weight, 1e-5, residual)
    assert_equal(out, rms_norm_reference.rms_norm_steps(z, weight, 1e-5), f"out {(m, k)}")
    assert_equal(added, z, f"new residual {(m, k)}")
    want = rms_norm_reference.rms_norm_int8(z, weight, 1e-5, False)
    _assert_quantized(backend.run("rms_norm_int8", x, weight, 1e-5, residual, False), want, (m, k))


def _silu_mul(backend: Any, m: int, n: int, k: int) -> None:
    gate, up = torch.randn(2, m, k, generator=generator("one kernel")).bfloat16()
    (out,) = backend.run("silu_mul", gate, up)
    assert_equal(out, silu_mul_reference.silu_mul_steps(gate, up), f"out {(m, k)}")
    want = silu_mul_reference.silu_mul_int8(gate, up, False)
    _assert_quantized(backend.run("silu_mul_int8", gate, up, False), want, (m, k))


def _head_dim(k: int) -> int:
    return 8 * (1 + k % 32)


def _paged_kv(backend: Any, m: int, n: int, k: int) -> None:
    """Appends m tokens with rope, reads them, copies a page and compacts a tree of the last tokens."""
    heads, dim, pages = 1 + n % 4, _head_dim(k), -(-m // 4) + 1
    table, slots = torch.arange(pages)[None].int(), torch.arange(m)
    places = list(kv_reference.slots(table.tolist(), [m], 4))
    k_rows, v_rows, q = (kv_cases.rows(m, heads, dim, torch.bfloat16, name) for name in "kvq")
    rope = kv_cases.angles(m, dim // 2, torch.float32)
    path = torch.tensor([[3, 1, 4, -1]], dtype=torch.int32)
    for dtype in (torch.bfloat16, torch.int8):
        case = kv_cases.caches("hnd", pages, 4, heads, (dim, dim), dtype, kv_cases.scales_of(dtype)[-1])
        want, got_q, want_q = case.clone(), q.clone(), q.clone()
        kv_reference.append_paged_kv(
            k_rows, v_rows, want.k, want.v, slots.tolist(), want.k_scale, want.v_scale, rope, slots.tolist(),
            False, want_q,
        )  # fmt: skip
        shared = {"k_cache": case.k, "v_cache": case.v, **case.scales}
        kv_cases.run(
            backend, "append_paged_kv", k=k_rows, v=v_rows, slot_mapping=slots, cos=rope[0], sin=rope[1],
            positions=slots, q=got_q, **shared,
        )  # fmt: skip
        read = kv_cases.run(
            backend, "gather_paged_kv", block_table=table, cu_seqlens_k=torch.tensor([0, m]).int(), tokens=m,
            out_dtype=torch.float32, **shared,
        )  # fmt: skip
        rows = kv_reference.gather_paged_kv(want.k, want.v, places, want.k_scale, want.v_scale)
        kv_cases.run(backend, "copy_kv_blocks", block_mapping=torch.tensor([[0, pages - 1]]), **shared)
        kv_reference.copy_kv_blocks(want.tensors, [(0, pages - 1)])
        kv_cases.run(
            backend, "compact_kv", block_table=table, seq_lens=torch.tensor([m]).int(),
            tree_len=torch.tensor([5]).int(), accepted=path, **shared,
        )  # fmt: skip
        kv_reference.compact_kv(want.tensors, table.tolist(), [m], [5], [[3, 1, 4]])
        assert_equal(got_q, want_q, f"q {dtype}")
        for a, b in zip(read, rows, strict=True):
            assert_equal(a, b, f"gather {dtype}")
        for a, b in zip(case.tensors, want.tensors, strict=True):
            assert_equal(a.contiguous(), b, f"cache {dtype}")


def _merge_attention_states(backend: Any, m: int, n: int, k: int) -> None:
    g = generator("one kernel")
    shape = (m, 1 + n % 4, _head_dim(k))
    outs = [torch.randn(*shape, generator=g).bfloat16() for _ in range(3)]
    lses = [torch.randn(shape[1], m, generator=g) * 9 for _ in range(3)]
    lses[1][:, 0] = -torch.inf
    want, want_lse = merge_reference(
        [o.double().numpy() for o in outs], [s.double().numpy() for s in lses], None, "bfloat16"
    )
    with backend.active() as ops:
        out, lse = ops.merge_attention_states(
            [backend.place(o) for o in outs], [backend.place(s) for s in lses]
        )
    assert_within(out.cpu(), want, torch.bfloat16, "out")
    assert_within(lse.cpu(), want_lse, torch.float32, "lse")


def _paged_attention(backend: Any, m: int, n: int, k: int) -> None:
    _, dim, cache = re.findall(r"_r(\d+)_d(\d+)_?(\w*)$", backend.isa)[0]
    for dtype, half in ((torch.float16, "f16"), (torch.bfloat16, "bf16")):
        stored = {"": half, "int8": "int8_token", "e4m3": "e4m3_token"}[cache]
        lens = ((m % 24 + 1, k % 200 + 40), (1, n))
        inputs = AttentionCase(lens, dtype, stored, head_dim=int(dim), page=16, tree="random").inputs()
        check_attention(backend, inputs, inputs.expected(), (m, n, k))


def _sample(backend: Any, m: int, n: int, k: int) -> None:
    for tree, q in ((False, False), (True, True)):
        settings = random_settings("one kernel", 4)
        draft = random_draft("one kernel", (1, m % 7 + 1, 0, 5), n + k, settings, tree=tree, q=q)
        got = [t.tolist() for t in draft.run(backend)]
        assert got == verified(draft), f"verify_draft {(m, n, k)}"
    settings = random_settings("one kernel rows", min(m, 16))
    logits = random_logits("one kernel", len(settings), n + k, torch.bfloat16)
    given, (seed, offset) = parameters(settings), seeds("one kernel", len(settings))
    tokens = [t.tolist() for t in sample(backend, logits, given, seed, offset)]
    assert tokens == sampled(logits, given, seed, offset), f"sample_tokens {(m, n, k)}"
    nodes = min(m, 100)
    parents = torch.arange(-1, nodes - 1, dtype=torch.int32)
    mask = backend.run("pack_tree_mask", parents, torch.tensor([0, nodes], dtype=torch.int32), nodes)[0]
    assert_equal(mask, torch.from_numpy(pack_tree_mask(parents.tolist(), -(-nodes // 32))[0]))


CHECKS: dict[str, Callable[[Any, int, int, int], None]] = {
    "gemm_int4": _gemm_int4,
    "gemm_int4_int8": _gemm_int4_int8,
    "gemm_int8": _gemm_int8,
    "gemm_int8_grouped": _gemm_int8_grouped,
    "matmul_sparse24": _sparse24,
    "matmul_sparse24_int4": _sparse24_int4,
    "matmul_sparse24_int4_int8": _sparse24_int4_int8,
    "matmul_sparse24_int8": _sparse24_int8,
    "merge_attention_states": _merge_attention_states,
    "paged_attention": _paged_attention,
    "paged_kv": _paged_kv,
    "quantize_int8": _quantize_int8,
    "rms_norm": _rms_norm,
    "sample": _sample,
    "silu_mul": _silu_mul,
}


def verdict_of(error: Exception) -> str:
    """The verdict on a kernel whose check raised this exception."""
    text = str(error)
    if isinstance(error, AssertionError):
        return WRONG
    if any(known in text for known in ACCESS_ERRORS):
        return ILLEGAL_ACCESS
    if isinstance(error, RuntimeError) and re.search(
        r"\bCUDA( error)?: ", text
    ):  # both lamina and torch write this in their messages
        return CUDA_ERROR
    return REFUSED if isinstance(error, (RuntimeError, ValueError, NotImplementedError)) else CRASHED


def check(op: str, kernel: str) -> tuple[str, str]:
    """The verdict and its explanation."""
    target = targets.load()
    backend = target.backend(op, kernel)
    if why := target.refusal(backend):
        return NOT_MEANT, why
    try:
        for problem in target.problems:
            print(mark(RUNS, "m, n, k = {}, {}, {}".format(*problem)), flush=True)
            CHECKS[op](backend, *problem)
        alive = target.is_alive()
    except Exception as error:  # the row reports every kind of error
        return verdict_of(error), "; ".join(str(error).split("\n")[:2]).strip() or type(error).__name__
    return (RIGHT, "") if alive else (CUDA_ERROR, "the CUDA context is lost after the last problem")


def main() -> int:
    faulthandler.enable()
    op, kernel = sys.argv[1:]
    targets.load().is_alive()  # makes the CUDA context, which takes seconds where several processes start
    print(mark(READY), flush=True)
    verdict, detail = check(op, kernel)
    print(mark(verdict, detail), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
