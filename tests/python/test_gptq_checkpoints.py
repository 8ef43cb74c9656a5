"""Int4Linear.from_gptq: zero points as each writer stores them, layers without a g_idx, scales, devices."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lamina.nn import Int4Linear
from tests.python.test_act_order import checkpoint, load
from tests.python.test_int8_linear import seeded
from tests.support.cases import generator
from tests.support.compare import assert_equal


def zero_points(groups: int, n: int, least: int) -> Tensor:
    """Zero points with every value from `least` to 15; neighbours differ."""
    g = generator(f"zero points {groups} {n} {least}")
    return (torch.randperm(groups * n, generator=g) % (16 - least) + least).reshape(groups, n)


def packed(codes: Tensor) -> Tensor:
    """int64 [groups, n] in 0..15 as int32 [groups, n / 8]."""
    words = np.zeros((codes.shape[0], codes.shape[1] // 8), np.uint64)
    for i in range(8):
        words |= codes[:, i::8].numpy().astype(np.uint64) << np.uint64(4 * i)
    return torch.from_numpy(words.astype(np.uint32).view(np.int32))


def less_one_in_the_word(zero: Tensor) -> Tensor:
    """GPTQModel subtracts from the packed int32, so that a code of 0 borrows from the next one."""
    return torch.from_numpy(packed(zero).numpy() - np.int32(0x11111111))


def less_one_alone(zero: Tensor) -> Tensor:
    """neural-compressor subtracts from each code and masks the result."""
    return packed((zero - 1) % 16)


def less_one_overwriting(zero: Tensor) -> Tensor:
    """AutoGPTQ on x86 converts -1.0 to 2^32 - 1 and shifts it over the codes that follow."""
    words = np.zeros((zero.shape[0], zero.shape[1] // 8), np.uint32)
    codes = ((zero - 1) % 2**32).numpy().astype(np.uint32)
    for i in range(8):
        words |= codes[:, i::8] << np.uint32(4 * i)
    return torch.from_numpy(words.view(np.int32))


def layer_of(zero: Tensor, qzeros: Tensor, group: int = 32, **changed: Any) -> dict[str, Tensor]:
    """A layer whose groups are consecutive, with its exact `weight`."""
    groups, n = zero.shape
    layer = checkpoint(n, groups * group, group, order="plain", symmetric=True)
    rows = layer["g_idx"].long()
    shift = ((zero - 8) * layer["scales"].double())[rows].T
    return {**layer, "qzeros": qzeros, "weight": layer["weight"] - shift, **changed}


def zeros_of(module: Int4Linear) -> Tensor:
    zero = module.weight_zero_point
    return torch.full(module.weight_scale.shape, 8) if zero is None else zero.long()


@pytest.mark.parametrize("borrow", [None, True, False])
@pytest.mark.parametrize("write", [less_one_in_the_word, less_one_alone, less_one_overwriting])
def test_without_a_zero_point_of_0_all_writers_and_readings_agree(write: Any, borrow: bool | None) -> None:
    zero = zero_points(3, 40, least=1)
    layer = layer_of(zero, write(zero))
    module = load(layer, qzeros_borrow=borrow)
    assert_equal(zeros_of(module), zero)
    assert_equal(module.dequantize_weight(), layer["weight"].float())


@pytest.mark.parametrize(
    ("write", "borrow"), [(less_one_in_the_word, True), (less_one_alone, False)], ids=["borrow", "alone"]
)
def test_each_writer_s_zero_points_of_0_are_restored(write: Any, borrow: bool) -> None:
    zero = zero_points(4, 64, least=0)
    assert (zero == 0).any()
    layer = layer_of(zero, write(zero))
    module = load(layer, qzeros_borrow=borrow)
    assert_equal(zeros_of(module), zero)
    assert_equal(module.dequantize_weight(), layer["weight"].float())
    with pytest.raises(ValueError, match="two readings"):
        load(layer)


@pytest.mark.parametrize("write", [less_one_in_the_word, less_one_alone, less_one_overwriting])
def test_a_zero_point_of_0_with_no_code_after_it_reads_the_same(write: Any) -> None:
    zero = zero_points(2, 16, least=1)
    zero[:, 7::8] = 0
    for borrow in (None, True, False):
        assert_equal(zeros_of(load(layer_of(zero, write(zero)), qzeros_borrow=borrow)), zero)


def test_autogptq_on_x86_leaves_zeros_after_a_zero_point_of_0() -> None:
    zero = zero_points(2, 16, least=1)
    zero[1, 10] = 0
    want = zero.clone()
    want[1, 10:] = 0
    assert_equal(zeros_of(load(layer_of(zero, less_one_overwriting(zero)), qzeros_borrow=False)), want)


def test_the_error_shows_both_readings_of_the_first_such_int32() -> None:
    zero = zero_points(3, 24, least=2)
    zero[1, 9], zero[2, 0] = 0, 0
    borrowed, alone = zero[1, 8:16].tolist(), zero[1, 8:16].tolist()
    alone[2] -= 1
    with pytest.raises(ValueError) as caught:
        load(layer_of(zero, less_one_in_the_word(zero)))
    message = str(caught.value)
    assert "qzeros[1, 1], of group 1 and columns 8 to 15" in message
    assert f"{borrowed} if the writer borrowed from the next column (GPTQModel: qzeros_b" in message
    assert f"{alone} if it did not (AutoGPTQ, neural-compressor: qzeros_borrow=False)" in message


def test_no_layer_has_a_zero_point_of_16() -> None:
    """Reads every int32 that repeats one code, including the int32 of 15s."""
    qzeros = packed(torch.arange(16)[:, None].expand(16, 8).contiguous())
    layer = checkpoint(8, 16 * 16, 16, order="plain", symmetric=True) | {"qzeros": qzeros}
    alone = load(layer, qzeros_borrow=False)
    assert_equal(zeros_of(alone), (torch.arange(16)[:, None].expand(16, 8) + 1) % 16)
    borrowed = zeros_of(load(layer, qzeros_borrow=True))
    assert borrowed[15].tolist() == [0, 1, 1, 1, 1, 1, 1, 1]
    as_they_are = load(layer, checkpoint_format="gptq_v2")
    assert_equal(zeros_of(as_they_are), torch.arange(16)[:, None].expand(16, 8))


@pytest.mark.parametrize("given", ["zeros", "none"])
@pytest.mark.parametrize(("k", "group"), [(256, 32), (264, 128), (200, 64), (96, 48), (40, 128)])
def test_layers_without_a_g_idx_have_groups_that_follow_each_other(k: int, group: int, given: str) -> None:
    layer = checkpoint(24, k, group, order="plain")
    g_idx = torch.zeros(k, dtype=torch.int32) if given == "zeros" else None
    module = load(layer | {"g_idx": g_idx})
    assert module.perm is None
    assert_equal(module.dequantize_weight(), layer["weight"].float())
    assert_equal(module(seeded(3, k)), load(layer)(seeded(3, k)))


def test_a_g_idx_of_zeros_with_one_group_is_what_it_says() -> None:
    layer = checkpoint(16, 24, 32, order="plain")
    assert not layer["g_idx"].any()
    assert_equal(load(layer).dequantize_weight(), layer["weight"].float())


@pytest.mark.parametrize("sign", [-1.0, 0.0], ids=["negative", "zero"])
def test_scales_of_any_sign_are_taken_as_the_products_take_them(sign: float) -> None:
    layer = checkpoint(16, 64, 32, order="plain")
    scales = layer["scales"].clone()
    scales[1] *= sign
    weight = layer["weight"].clone()
    weight[:, 32:] *= sign
    module = load(layer | {"scales": scales})
    assert torch.equal(module.dequantize_weight(), weight.float())
    assert torch.equal(module(torch.eye(64)), weight.T.float())  # torch.equal accepts -0.0 for 0.0


GOOD = checkpoint(16, 64, 32, order="plain")
BROKEN = GOOD["scales"].clone()
BROKEN[1, 5] = torch.nan
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "scales NaN": ({"scales": BROKEN}, r"scales holds 1 NaN or Inf, the first at [1, 5] (nan)"),
    "scales Inf": ({"scales": GOOD["scales"] / 0}, r"scales holds 32 NaN or Inf, the first at [0, 0] (inf)"),
    "borrow": ({"qzeros_borrow": "yes"}, "qzeros_borrow = 'yes'; allowed: None, True, False"),
    "borrow as a number": ({"qzeros_borrow": 0}, "qzeros_borrow = 0; allowed: None, True, False"),
    "a slice inside a group": (
        {"qweight": GOOD["qweight"][:1], "g_idx": GOOD["g_idx"][:8]},
        "g_idx is 0 everywhere, so groups are consecutive, but no multiple of 16 divides k = 8 into the 2",
    ),
    "another format": (
        {"qzeros": torch.full_like(GOOD["qzeros"], -0x77777778)},
        'qzeros are 8 throughout, which is how "gptq_v2" stores the zero point of symmetric weights',
    ),
    "no g_idx": (
        {"qweight": GOOD["qweight"][:1], "g_idx": None},
        "g_idx is None, so groups are consecutive, but no multiple of 16 divides k = 8 into the 2 groups",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_named(case: str) -> None:
    changed, message = BAD[case]
    with pytest.raises(ValueError, match="Int4Linear.from_gptq: .*" + re.escape(message)):
        load({**GOOD, **changed})
