"""On wgmma paged_attention widens caches of one byte an element in shared memory, once for all rows."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from tests.ops.test_paged_attention_exact import repaged
from tests.support.attention_cases import AttentionCase, AttentionInputs
from tests.support.attention_check import attend, check_attention, emulated
from tests.support.backends import NO_PROBE, probe
from tests.support.compare import assert_equal

pytestmark = pytest.mark.skipif(probe() is None, reason=NO_PROBE)
KERNEL = emulated("sm90a_r128")
CACHES = pytest.mark.parametrize("cache", ["int8_tensor", "int8_token", "e4m3", "e4m3_token"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
# More blocks of columns than tiles of bytes; rows of both math warpgroups; pieces that end in blocks.
BATCH = ((70, 900), (0, 9), (3, 80), (40, 230))


def case_of(cache: str, dtype: torch.dtype = torch.bfloat16, **options: Any) -> AttentionCase:
    return AttentionCase(
        **{"batch": BATCH, "heads": (1, 2), "page": 16, **options}, q_dtype=dtype, cache=cache
    )


@DTYPES
@CACHES
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_many_rounds_of_the_ring(head_dim: int, cache: str, dtype: torch.dtype) -> None:
    """Unused slots and pages are NaN or, of int8, have scales of NaN."""
    case = case_of(cache, dtype, head_dim=head_dim)
    check_attention(KERNEL, (inputs := case.inputs()), inputs.expected(), case)


@CACHES
@pytest.mark.parametrize("seed", range(1, 5))
def test_schedules(seed: int, cache: str) -> None:
    """A block of threads has many pieces; in long ones and in some of few blocks of columns."""
    window = (650, 0) if seed % 2 else (-1, -1)
    inputs = case_of(cache, window=window, causal=bool(seed % 2), head_dim=40 * seed - 24).inputs()
    kernel = dataclasses.replace(KERNEL, seed=seed, sms=seed)
    first = check_attention(kernel, inputs, inputs.expected())
    again = attend(dataclasses.replace(kernel, seed=seed + 10), inputs)
    for got, want in zip(again, first, strict=True):
        assert_equal(got, want, "another schedule")


@CACHES
def test_pages_change_no_bit(cache: str) -> None:
    inputs = case_of(cache, batch=((40, 150), (66, 66)), page=7, softcap=2.5).inputs()
    want = check_attention(KERNEL, inputs, inputs.expected())
    for page_size in (1, 8, 16, 17, 128):
        given = repaged(inputs, page_size)
        for got, wanted in zip(attend(KERNEL, given), want, strict=True):
            assert_equal(got, wanted, f"pages of {page_size}")


@CACHES
@pytest.mark.parametrize("layout", ["hnd", "interleaved", "padded"])
def test_layouts(layout: str, cache: str) -> None:
    """Rows that begin at multiples of 16 bytes, and anywhere."""
    for head_dim, v_head_dim in ((72, 64), (64, 8), (128, 0)):
        case = case_of(
            cache, batch=((33, 90),), heads=(2, 2), layout=layout, head_dim=head_dim, v_head_dim=v_head_dim
        )
        check_attention(KERNEL, (inputs := case.inputs()), inputs.expected(), case)


@DTYPES
@pytest.mark.parametrize("cache", ["int8_tensor", "int8_token", "e4m3"])
def test_every_code_of_an_element(cache: str, dtype: torch.dtype) -> None:
    """Each token sees one key, so its result is the value, and lse is the score of one element of the key."""
    case = AttentionCase(
        ((256, 256),), dtype, cache, heads=(1, 1), page=16, window=(0, 0), out_dtype=torch.float32
    )
    inputs = dataclasses.replace(case.inputs(), scale=1.0)
    q = torch.zeros_like(inputs.q)
    k, v = (torch.zeros_like(t.view(torch.uint8)) for t in (inputs.k_cache, inputs.v_cache))
    for code in range(256):
        page, row = inputs.slot(0, code)
        q[code, 0, code % 64] = 1
        k[page, row, 0, code % 64] = code
        v[page, row, 0] = (torch.arange(64) + 64 * (code % 4)).byte()
    stored = inputs.k_cache.dtype
    out, lse = attend(KERNEL, inputs.replace(q=q, k_cache=k.view(stored), v_cache=v.view(stored)))

    def scales(scale: torch.Tensor | None) -> torch.Tensor:
        if scale is None or scale.numel() == 1:
            return torch.ones(256) if scale is None else scale.expand(256)
        return torch.stack([scale[inputs.slot(0, code)][0] for code in range(256)])

    codes = torch.arange(256).byte().view(stored).float()
    close: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-6, "equal_nan": True}
    scores = codes * scales(inputs.k_scale)
    torch.testing.assert_close(lse[0], scores, **close)
    scale = scales(inputs.v_scale)
    if cache == "int8_token":  # it multiplies the weight, which is rounded
        scale = scale.bfloat16().float()
    want = codes.reshape(4, 64).repeat(64, 1) * scale[:, None]
    want[scores.isnan()] = torch.nan
    torch.testing.assert_close(out[:, 0], want, **close)


@pytest.mark.parametrize("tensor", ["k_scale", "v_scale"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("cache", ["int8_token", "e4m3_token"])
def test_scales_of_later_tokens_may_be_anything(cache: str, value: float, tensor: str) -> None:
    """Token j of 70 has a scale of NaN or Inf: tokens before it keep their bits."""
    inputs = case_of(cache, batch=((70, 150),), out_dtype=torch.float32).inputs()
    want, _ = attend(KERNEL, inputs)
    for j in (1, 40, 69):
        scale = getattr(inputs, tensor).clone()
        scale[inputs.slot(0, 80 + j)] = value
        given = inputs.replace(**{tensor: scale})
        out, _ = check_attention(KERNEL, given, given.expected(), f"{j}")
        assert_equal(out[:j], want[:j], f"{j}")
        assert not out[j:].isfinite().all()


@CACHES
@pytest.mark.parametrize("index", [-1, -(2**31), 2**31 - 1, None])
def test_a_stray_page_is_zeros_and_an_error(index: int | None, cache: str) -> None:
    inputs = case_of(cache, batch=((40, 150), (3, 80))).inputs()
    table = inputs.block_table.clone()
    table[0, 1] = len(inputs.k_cache) if index is None else index
    got = attend(KERNEL, inputs.replace(block_table=table))
    assert KERNEL.take_error().startswith(f"paged_attention: block_table[0, 1] = {int(table[0, 1])} must be")
    zeros = inputs.replace(
        **{name: getattr(inputs, name).clone() for name in ("k_cache", "v_cache")},
    )
    for t in (zeros.k_cache, zeros.v_cache):
        t.view(torch.uint8)[inputs.block_table[0, 1]] = 0
    for mine, other in zip(got, attend(KERNEL, zeros), strict=True):
        assert_equal(mine, other)


def with_page_first(inputs: AttentionInputs, page: int) -> AttentionInputs:
    """The same requests, where this page and page 0 change places."""
    order = torch.arange(len(inputs.k_cache))
    order[[0, page]] = order[[page, 0]]

    def moved(t: torch.Tensor | None) -> torch.Tensor | None:
        if t is None or len(t) != len(order):
            return t
        return t.view(torch.uint8)[order].view(t.dtype) if t.dtype.itemsize == 1 else t[order]

    table = inputs.block_table
    return inputs.replace(
        block_table=torch.where(table == 0, page, torch.where(table == page, 0, table)).int(),
        **{name: moved(getattr(inputs, name)) for name in ("k_cache", "v_cache", "k_scale", "v_scale")},
    )


@pytest.mark.parametrize("cache", ["int8_token", "e4m3_token"])
def test_scales_of_the_first_page_do_not_reach_a_stray_page(cache: str) -> None:
    """The scales of page 0, where nothing else lies, are NaN."""
    inputs = case_of(cache, batch=((40, 150),)).inputs()
    inputs = with_page_first(inputs, int(inputs.block_table[0, 1]))
    assert inputs.block_table[0, 1] == 0 and inputs.k_scale is not None and inputs.v_scale is not None
    inputs.block_table[0, 1] = -1
    inputs.k_scale[0] = inputs.v_scale[0] = math.nan
    out, lse = attend(KERNEL, inputs)
    assert KERNEL.take_error().startswith("paged_attention: block_table[0, 1] = -1 must be")
    assert out.isfinite().all() and lse.isfinite().all()


def with_other_scales(inputs: AttentionInputs) -> AttentionInputs:
    """Scales that differ by powers of two from column to column."""
    k_scale, v_scale = inputs.k_scale, inputs.v_scale
    assert k_scale is not None and v_scale is not None
    return inputs.replace(
        k_scale=k_scale * 2.0 ** torch.randint(-3, 3, k_scale.shape),
        v_scale=v_scale * 2.0 ** torch.randint(-8, 8, v_scale.shape),
    )


@DTYPES
@pytest.mark.parametrize("cache", ["int8_token", "e4m3_token"])
def test_neighbours_have_scales_of_other_magnitudes(cache: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    inputs = with_other_scales(case_of(cache, dtype, batch=((70, 300),)).inputs())
    check_attention(KERNEL, inputs, inputs.expected())
    negative = dataclasses.replace(inputs, scale=-0.3)
    check_attention(KERNEL, negative, negative.expected())
