"""compress_sparse24 against the order written out by groups, and decompress_sparse24 as its inverse."""

from __future__ import annotations

import importlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lamina
from tests.reference import sparse24 as reference
from tests.support.backends import emu_ops
from tests.support.compare import assert_equal
from tests.support.memory import fenced
from tests.support.sparse24_cases import DTYPES, KEPT, SHAPES, bits, random_mask, sparse_weight

DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def assert_same_bits(got: torch.Tensor, want: torch.Tensor, label: object = "") -> None:
    """NaNs keep their payload, and 0.0 is not -0.0."""
    assert got.dtype == want.dtype
    assert_equal(torch.from_numpy(bits(got)), bits(want), label)


@DTYPE
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_order_is_the_documented_one(shape: tuple[int, int], dtype: torch.dtype) -> None:
    w = sparse_weight(*shape, dtype)
    values, metadata = torch.ops.lamina.compress_sparse24(w)
    want_values, want_metadata = reference.compress_sparse24(bits(w))
    assert_equal(torch.from_numpy(bits(values)), want_values)
    assert_equal(metadata, want_metadata)
    assert_same_bits(torch.ops.lamina.decompress_sparse24(values, metadata, shape[1]), w)


@DTYPE
def test_every_group_that_keeps_at_most_two(dtype: torch.dtype) -> None:
    w = torch.zeros(1, 4 * len(KEPT), dtype=dtype)
    for group, kept in enumerate(KEPT):
        for i in kept:
            w[0, 4 * group + i] = 10 * group + i + 1
    sparse = lamina.compress_sparse24(w)
    codes = [int(sparse.metadata[0, g // 2]) >> (4 * (g % 2)) & 15 for g in range(12)]
    #               none  0    1    2    3    01   02   03   12   13   23   half a byte without a group
    assert codes == [0xE, 0x8, 0x9, 0xE, 0xE, 0x4, 0x8, 0xC, 0x9, 0xD, 0xE, 0xE]
    assert_equal(sparse.decompress(), w)


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_minus_zero_is_zero_and_nan_and_infinity_are_kept(dtype: torch.dtype) -> None:
    nan, inf = float("nan"), float("inf")
    w = torch.tensor([[-0.0, 1, -0.0, 2, nan, -0.0, inf, 0, -0.0, -0.0, -0.0, -0.0, -0.0, 0, 0, -inf]]).to(
        dtype
    )
    sparse = lamina.compress_sparse24(w)
    assert_equal(sparse.values, torch.tensor([[1, 2, nan, inf, 0, 0, 0, -inf]]).to(dtype))
    assert sparse.metadata.tolist() == [[0x8D, 0xEE]]
    assert_equal(sparse.decompress(), w.where(w != 0, torch.zeros((), dtype=dtype)))


@DTYPE
def test_a_mask_keeps_zeros_and_drops_nonzeros(dtype: torch.dtype) -> None:
    n, k = 9, 44
    w = sparse_weight(n, k, dtype)
    mask = random_mask(n, k, few=0.3)
    for fill in (0, 8):
        sparse = lamina.compress_sparse24(w, mask, fill)
        one = torch.tensor(fill).to(dtype)
        want = reference.compress_sparse24(bits(w), mask.numpy(), bits(one.view(1))[0])
        assert_equal(torch.from_numpy(bits(sparse.values)), want[0])
        assert_equal(sparse.metadata, want[1])
        assert_same_bits(sparse.decompress(fill), w.where(mask, one))


def test_codes_whose_zero_is_eight() -> None:
    """The symmetric int4 code 8 is the weight 0: groups that keep one code are completed with it."""
    q = torch.full((3, 16), 8, dtype=torch.uint8)
    q[0, 1], q[0, 3], q[1, 4], q[2, 15] = 0, 15, 3, 9
    sparse = lamina.compress_sparse24(q, fill=8)
    assert_equal(sparse.decompress(8), q)
    assert sparse.values[1].tolist() == [8, 8, 3, 8, 8, 8, 8, 8]
    minus = (q.to(torch.int8) - 16).contiguous()
    assert_equal(lamina.compress_sparse24(minus, fill=-8).decompress(-8), minus)


@given(
    rows=st.lists(st.lists(st.sampled_from(KEPT), min_size=5, max_size=5), max_size=4),
    dtype=st.sampled_from(DTYPES),
    spare=st.integers(0, 3),
)
def test_any_mask_comes_back(rows: list[list[tuple[int, ...]]], dtype: torch.dtype, spare: int) -> None:
    """Any choice of at most two a group, in rows of any stride; operands end where no page is mapped."""
    mask = torch.zeros(len(rows), 20, dtype=torch.bool)
    for row, groups in enumerate(rows):
        for group, kept in enumerate(groups):
            mask[row, [4 * group + i for i in kept]] = True
    wide = torch.full((len(rows), 20 + spare), 3).to(dtype)
    wide[:, :20] = torch.where(mask, 5, 0).to(dtype)
    w = fenced(wide[:, :20])
    values, metadata = torch.ops.lamina.compress_sparse24(w)
    masked = torch.ops.lamina.compress_sparse24(w, fenced(mask))
    assert_equal(metadata, reference.compress_sparse24(bits(wide[:, :20]))[1])
    assert_same_bits(masked[0], values)
    assert_equal(masked[1], metadata)
    got = torch.ops.lamina.decompress_sparse24(fenced(values), fenced(metadata), 20)
    assert_same_bits(got, wide[:, :20])


@DTYPE
def test_any_row_stride(dtype: torch.dtype) -> None:
    n, k = 6, 28
    w, mask = sparse_weight(n, k, dtype), random_mask(n, k)
    wide, wide_mask = torch.full((n, k + 5), 7).to(dtype), torch.ones(n, k + 3, dtype=torch.bool)
    wide[:, :k], wide_mask[:, :k] = w, mask
    for masked in (None, mask):
        strided = None if masked is None else wide_mask[:, :k]
        want = torch.ops.lamina.compress_sparse24(w, masked)
        for got, right in zip(torch.ops.lamina.compress_sparse24(wide[:, :k], strided), want, strict=True):
            assert_same_bits(got, right)
    values, metadata = torch.ops.lamina.compress_sparse24(w)
    padded, codes = torch.full((n, k), 7).to(dtype), torch.zeros(n, 9, dtype=torch.uint8)
    padded[:, : k // 2], codes[:, :4] = values, metadata
    assert_same_bits(torch.ops.lamina.decompress_sparse24(padded[:, : k // 2], codes[:, :4], k), w)


@pytest.mark.usefixtures("restore_threads")
def test_independent_of_the_thread_count() -> None:
    """The rows are long enough for a thread each."""
    w = sparse_weight(40, 33_000, torch.int8)
    want = torch.ops.lamina.compress_sparse24(w)
    for threads in (1, 3, 16):
        torch.set_num_threads(threads)
        for got, right in zip(torch.ops.lamina.compress_sparse24(w), want, strict=True):
            assert_equal(got, right, f"{threads} threads")
        assert_equal(torch.ops.lamina.decompress_sparse24(*want, w.shape[1]), w, f"{threads} threads")


@pytest.mark.usefixtures("restore_threads")
def test_the_first_group_that_keeps_too_much_is_named() -> None:
    n, k = 64, 33_000
    w = sparse_weight(n, k, torch.float16, few=0.0)
    w[23, 3000:3004], w[23, 32_000:32_003], w[60, :8] = 1, 1, 1
    mask = w != 0
    mask[0] = mask[1]
    for threads in (1, 4):
        torch.set_num_threads(threads)
        with pytest.raises(
            ValueError, match=r"w has 4 nonzeros in row 23, group 750 \(k = 3000 to 3003\); .*most 2"
        ):
            lamina.compress_sparse24(w)
        with pytest.raises(ValueError, match="mask has 4 kept entries in row 23, group 750 "):
            lamina.compress_sparse24(w, mask)
    w[23, 3000] = 0
    with pytest.raises(ValueError, match="w has 3 nonzeros in row 23, group 750 "):
        lamina.compress_sparse24(w)
    with pytest.raises(ValueError, match="w has 4 entries beside fill in row 0, group 0 "):
        lamina.compress_sparse24(w, fill=5)


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("code", [c for c in range(16) if c not in reference.PAIRS])
def test_foreign_metadata_is_checked(code: int) -> None:
    """Unordered and equal indices; of two wrong groups the first is named, whatever thread finds it."""
    n, k = 64, 33_000
    values, metadata = torch.ops.lamina.compress_sparse24(sparse_weight(n, k, torch.int8))
    metadata[40, 9] = 0
    metadata[40, 8] = metadata[40, 8] & 15 | code << 4
    for threads in (1, 4):
        torch.set_num_threads(threads)
        with pytest.raises(
            ValueError, match=f"row 40, group 17 keeps the entries {code & 3} and {code >> 2} of"
        ):
            lamina.Sparse24(values, metadata, n, k).decompress()


def test_metadata_past_the_last_group_is_not_read() -> None:
    sparse = lamina.compress_sparse24(sparse_weight(5, 12, torch.int8))
    sparse.metadata[:, 1] &= 15
    assert_equal(sparse.decompress(), sparse_weight(5, 12, torch.int8))


def test_compressed_weight_object() -> None:
    w = sparse_weight(5, 40, torch.bfloat16)
    sparse = lamina.compress_sparse24(w)
    assert (sparse.n, sparse.k, sparse.dtype, sparse.device.type) == (5, 40, torch.bfloat16, "cpu")
    assert sparse.nbytes == 5 * 20 * 2 + 5 * 5
    assert_equal(sparse.to("cpu").values, sparse.values)
    assert (lamina.Sparse24.FORMAT, lamina.Sparse24.VERSION) == ("sparse24", 1)


@DTYPE
def test_is_sparse24(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("lamina.ops.compress_sparse24")
    monkeypatch.setattr(module, "_CHUNK", 100)  # three rows at a time
    w = sparse_weight(11, 32, dtype)
    assert lamina.is_sparse24(w)
    assert not lamina.is_sparse24(w[:, :30])
    assert lamina.is_sparse24(w[:0])
    w[10, 29:32] = 1
    assert not lamina.is_sparse24(w)
    assert lamina.is_sparse24(w[:10])
    with pytest.raises(ValueError, match="w must have values, got a tensor of the meta device"):
        lamina.is_sparse24(w.to("meta"))


def test_the_emulated_library_compresses_the_same() -> None:
    ops = emu_ops()
    if ops is None:
        pytest.skip("the emulated library is not built")
    w = sparse_weight(9, 36, torch.float16)
    want = torch.ops.lamina.compress_sparse24(w)
    for got, right in zip(ops.compress_sparse24(w), want, strict=True):
        assert_same_bits(got, right)
    assert_same_bits(ops.decompress_sparse24(*want, 36), w)


@DTYPE
def test_torch_s_own_conversion_gives_the_same(dtype: torch.dtype) -> None:
    """torch.sparse._semi_structured_conversions, whose metadata is only in another order."""
    conversions = pytest.importorskip("torch.sparse._semi_structured_conversions")
    if dtype in (torch.uint8, torch.float32):
        pytest.skip("torch converts no uint8; its float32 is 1:2")
    n, k = 64, 128
    w = sparse_weight(n, k, dtype)
    w = w.where(w == w, torch.ones((), dtype=dtype))  # torch's gathers keep no payload of NaN
    values, _ = conversions.sparse_semi_structured_from_dense_cutlass(w)
    assert_same_bits(lamina.compress_sparse24(w).values, values)
