"""2:4 weights of torch and compressed-tensors against packers written from their descriptions."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import lamina
from lamina.integrations import sparse24
from tests.reference import sparse24_formats as formats
from tests.support.cases import generator
from tests.support.compare import assert_equal
from tests.support.sparse24_cases import sparse_weight

conversions = pytest.importorskip("torch.sparse._semi_structured_conversions")


def numbers(n: int, k: int, dtype: torch.dtype) -> torch.Tensor:
    """A 2:4 weight without NaN, because torch's gathers need not keep them bit for bit."""
    w = sparse_weight(n, k, dtype)
    return w.where(w == w, torch.ones((), dtype=dtype))


def assert_same(got: lamina.Sparse24, want: lamina.Sparse24) -> None:
    assert (got.n, got.k) == (want.n, want.k)
    assert_equal(got.metadata, want.metadata)
    assert_equal(got.values, want.values)


def torch_cutlass(w: torch.Tensor) -> Any:
    """SparseSemiStructuredTensorCUTLASS as from_dense makes it; from_dense itself needs a GPU."""
    packed, meta = conversions.sparse_semi_structured_from_dense_cutlass(w)
    kind = torch.sparse.SparseSemiStructuredTensorCUTLASS
    return kind(w.shape, packed, meta, None, None, None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("shape", [(32, 64), (64, 128), (160, 192)], ids=str)
def test_torch_in_cutlass_order(shape: tuple[int, int], dtype: torch.dtype) -> None:
    w = numbers(*shape, dtype)
    assert_same(sparse24.from_torch(torch_cutlass(w)), lamina.compress_sparse24(w))


@pytest.mark.parametrize("shape", [(32, 16), (64, 48), (96, 160)], ids=str)
def test_torch_pairs_of_f32(shape: tuple[int, int]) -> None:
    """torch keeps one of each two float32."""
    w = torch.randn(*shape, generator=generator("pairs"))
    second = torch.rand(shape[0], shape[1] // 2, generator=generator("second")) < 0.5
    w[:, ::2][second], w[:, 1::2][~second] = 0, 0
    w[3, :8] = 0
    got = sparse24.from_torch(torch_cutlass(w))
    assert_equal(got.decompress(), w)
    meta = torch_cutlass(w).meta
    meta.view(torch.uint8).view(-1)[0] = 0x45
    with pytest.raises(ValueError, match="metadata of row 0, group 0 keeps"):
        torch.ops.lamina.import_sparse24_metadata(meta, "cutlass_pairs", *shape)


@pytest.mark.parametrize("shape", [(128, 128), (256, 128), (128, 384), (384, 256)], ids=str)
def test_torch_in_cusparselt_order(shape: tuple[int, int]) -> None:
    n, k = shape
    want = lamina.compress_sparse24(numbers(n, k, torch.float16))
    words = torch.from_numpy(formats.cusparselt_metadata(want.metadata.numpy(), k))
    packed = torch.cat([want.values.flatten(), words.view(torch.float16)])
    assert_same(sparse24.from_cusparselt(packed, n, k), want)
    kind = torch.sparse.SparseSemiStructuredTensorCUSPARSELT
    assert_same(sparse24.from_torch(kind(torch.Size(shape), packed, None, None, None, None)), want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("shape", [(0, 8), (1, 4), (5, 20), (33, 64)], ids=str)
def test_bitmask(shape: tuple[int, int], dtype: torch.dtype) -> None:
    n, k = shape
    want = lamina.compress_sparse24(numbers(n, k, dtype))
    mask = torch.from_numpy(formats.bitmask(want.metadata.numpy(), k))
    assert_same(sparse24.from_bitmask(want.values, mask, n, k), want)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [128, None])
@pytest.mark.parametrize("shape", [(64, 128), (64, 256), (128, 384), (192, 640)], ids=str)
def test_marlin24(shape: tuple[int, int], group: int | None, bits: int) -> None:
    n, k = shape
    g = generator(f"marlin {n} {k} {bits}")
    zero, dtype = (8, torch.uint8) if bits == 4 else (0, torch.int8)
    w = sparse_weight(n, k, torch.int8)
    w = w if bits == 8 else torch.where(w == 0, 8, w.to(torch.uint8) % 16)
    want = lamina.compress_sparse24(w, fill=zero)
    assert want.dtype == dtype
    codes = want.values.numpy() if bits == 4 else (want.values.numpy().astype(np.int16) + 128)
    scale = torch.rand(k // 128 if group else 1, n, generator=g).half()
    is_grouped = group is not None and group < k // 2  # the kept half of k: pack_scales_24 of marlin_24.py
    got = sparse24.from_marlin24(
        torch.from_numpy(formats.marlin_codes(codes, bits)),
        torch.from_numpy(formats.marlin_scales(scale.numpy(), is_grouped)),
        torch.from_numpy(formats.marlin_metadata(want.metadata.numpy(), k)),
        bits,
        group,
    )
    assert_same(got.weight, want)
    assert_equal(got.scale, scale)
    assert got.group == (group or k)
    assert_equal(got.weight.decompress(zero), w)


def numbered_codes(n: int, k: int, bits: int) -> torch.Tensor:
    """2:4 integers of so many bits, all from their places."""
    row, column, top = torch.arange(n)[:, None], torch.arange(k), 1 << (bits - 1)
    q = (row * 31 + column * 17 + row * column * 7) % (2 * top - 1) - (top - 1)
    first = (row + column // 4 * 3) % 4
    second = (first + 1 + row * (column // 4) % 3) % 4
    kept = (column % 4 == first) | (column % 4 == second)
    return torch.where(kept, q.where(q != 0, 1), 0)


@pytest.mark.parametrize(
    ("n", "k", "bits", "group", "weight_hash", "scale_hash", "meta_hash"),
    [
        (64, 384, 4, 128, "a7e5c327449a907f", "531e3f17a7ce420f", "8b716bbdafa0fe68"),
        (64, 256, 4, 128, "47c9e84ab6507db8", "f8965c01dce00563", "798c11ea9e26167d"),
        (128, 256, 8, 128, "ea691105913d08db", "2c0002124906f2ef", "a2e103cea1ff4f88"),
        (64, 512, 8, None, "9520e973f5650d91", "06fcb3206bcf322e", "e72dc5e0ee85a943"),
    ],
)
def test_the_reference_packs_as_compressed_tensors(
    n: int, k: int, bits: int, group: int | None, weight_hash: str, scale_hash: str, meta_hash: str
) -> None:
    """The hashes are of what Marlin24Compressor of compressed-tensors 0.12.2 made of the same weights."""
    zero, size = 1 << (bits - 1), group or k
    sparse = lamina.compress_sparse24((numbered_codes(n, k, bits) + zero).to(torch.uint8), fill=zero)
    scale = (1 + torch.arange(n * (k // size)) % 13).reshape(n, k // size).half() / 64
    for made, want in (
        (formats.marlin_codes(sparse.values.numpy(), bits), weight_hash),
        (formats.marlin_scales(scale.T.contiguous().numpy(), size < k // 2), scale_hash),
        (formats.marlin_metadata(sparse.metadata.numpy(), k), meta_hash),
    ):
        assert hashlib.sha256(np.ascontiguousarray(made).tobytes()).hexdigest()[:16] == want


@pytest.mark.parametrize("order", ["cutlass_16", "cutlass_8", "cusparselt_16", "marlin"])
@pytest.mark.parametrize("code", [0x0, 0x5, 0xA, 0xF, 0x1, 0x2, 0x3, 0x6, 0x7, 0xB])
def test_wrong_metadata_is_named_by_row_and_group(order: str, code: int) -> None:
    """Unordered and equal indices in one place of a weight of empty groups."""
    n, k = 128, 128
    words = torch.full((n * k // 8,), 0xEE, dtype=torch.uint8)
    words[37] = code | 0xE0
    dtype = torch.int32 if order == "cutlass_8" else torch.int16
    with pytest.raises(
        ValueError, match=rf"metadata of row \d+, group \d+ keeps the entries {code & 3} and {code >> 2}"
    ):
        torch.ops.lamina.import_sparse24_metadata(words.view(dtype), order, n, k)


def test_a_bitmask_that_keeps_more_or_less_is_named() -> None:
    mask = torch.full((9, 3), 0x33, dtype=torch.uint8)
    mask[8, 0], mask[6, 2] = 0x37, 0x73
    with pytest.raises(ValueError, match="bitmask of row 6, group 5 keeps 3 entries; allowed: 2"):
        sparse24.from_bitmask(torch.zeros(9, 12), mask, 9, 24)
    mask[6, 2] = 0x13
    with pytest.raises(ValueError, match="bitmask of row 6, group 5 keeps 1 entries; allowed: 2"):
        sparse24.from_bitmask(torch.zeros(9, 12), mask, 9, 24)
    mask[6, 2] = 0xF3  # past the last group
    mask[8, 0] = 0x33
    sparse24.from_bitmask(torch.zeros(9, 10), mask, 9, 20)


def test_unknown_orders_are_refused_by_name() -> None:
    half, packed = torch.zeros(128, 72).half(), torch.zeros(64 * 72).half()
    for call, text in (
        (lambda: sparse24.from_cusparselt(half.to(torch.int8), 128, 128), "torch.int8, .*described only for"),
        (lambda: sparse24.from_cusparselt(packed, 64, 128), r"\[64, 128\]; cuSPARSELt's order .*to_dense"),
        (lambda: sparse24.from_cusparselt(half[:, 1:], 128, 128), "9088 elements"),
        (lambda: sparse24.from_torch(torch.zeros(4, 4)), "w must be a SparseSemi.*, got Tensor"),
        (lambda: sparse24.from_torch(None), "w must be a SparseSemi.*, got NoneType"),
        (lambda: sparse24.from_cusparselt(half, -128, -128), "n = -128; must be at least 0"),
        (lambda: sparse24.from_bitmask(half, half.byte(), 128, -4), "k = -4; must be at least 0"),
        (
            lambda: torch.ops.lamina.import_sparse24_metadata(half.short(), "gptq", 4, 4),
            'order = "gptq"; allowed: "cut',
        ),
    ):
        with pytest.raises(ValueError, match=text):
            call()
    transposed = SimpleNamespace(shape=(32, 64), dtype=torch.half, packed=None, meta=None)
    transposed = type("SparseSemiStructuredTensorCUTLASS", (SimpleNamespace,), {})(**vars(transposed))
    with pytest.raises(ValueError, match=r"w\.packed is None: the tensor holds only its transpose"):
        sparse24.from_torch(transposed)
    good = (torch.zeros(4, 128).int(), torch.zeros(1, 64).half(), torch.full((4, 128), -0x1112).short())
    sparse24.from_marlin24(*good, 4, 128)
    for change, text in (
        ({0: torch.zeros(4, 130).int()}, "n a multiple of 64"),
        ({1: torch.zeros(2, 64).half()}, r"scale_packed must be \[1, 64\]"),
        ({2: torch.zeros(4, 64).short()}, r"meta must be \[4, 128\]"),
        ({3: 2}, "bits = 2; allowed: 4, 8"),
        ({4: 64}, "group = 64; allowed: None, 128"),
        ({0: good[0].to("meta")}, "weight_packed must be a dense tensor with values"),
        ({1: good[1].float()}, "scale_packed must be of float16, got torch.float32"),
        ({1: good[1].to_sparse()}, "scale_packed must be a dense tensor with values"),
        ({2: good[2].int()}, "meta must be of int16, got torch.int32"),
        ({2: torch.zeros(4, 128).short()}, "from_marlin24: meta of row 0, group 0 keeps the entries 0 and 0"),
        ({3: "4"}, "bits must be an int, got str '4'"),
        ({4: 128.0}, "group must be an int or None, got float 128.0"),
    ):
        given = [change.get(i, value) for i, value in enumerate((*good, 4, 128))]
        with pytest.raises((ValueError, TypeError), match=text):
            sparse24.from_marlin24(*given)


def cutlass(**changed: Any) -> Any:
    """A weight [64, 128] of torch's class with other parts."""
    w = torch_cutlass(numbers(64, 128, torch.float16))
    parts = {"shape": (64, 128), "dtype": torch.half, "packed": w.packed, "meta": w.meta} | changed
    return type("SparseSemiStructuredTensorCUTLASS", (SimpleNamespace,), {})(**parts)


def test_parts_of_another_shape_or_dtype_are_named() -> None:
    good = cutlass()
    sparse24.from_torch(good)
    values, mask = torch.zeros(8, 64), torch.full((8, 16), 0x33, dtype=torch.uint8)
    sparse24.from_bitmask(values, mask, 8, 128)
    half = torch.zeros(128, 144).half()
    for call, text in (
        (lambda: sparse24.from_torch(cutlass(meta=good.meta.t().contiguous())), r"w\.meta must be \[64, 8\]"),
        (lambda: sparse24.from_torch(cutlass(meta=good.meta.view(64, 4, 2))), r"got \[64, 4, 2\]"),
        (lambda: sparse24.from_torch(cutlass(meta=good.meta.int())), r"w\.meta must be of int16, got"),
        (lambda: sparse24.from_torch(cutlass(packed=good.packed[:, 1:])), r"w\.packed must be \[64, 64\]"),
        (lambda: sparse24.from_torch(cutlass(shape=(8192,))), r"w must be 2-D \[n, k\], got 1-D \[8192\]"),
        (lambda: sparse24.from_bitmask(values, mask.t().contiguous(), 8, 128), r"bitmask must be \[8, 16\]"),
        (lambda: sparse24.from_bitmask(values, mask.int(), 8, 128), "bitmask must be of uint8"),
        (lambda: sparse24.from_bitmask(values.double(), mask, 8, 128), "compressed must be of float32, "),
        (lambda: sparse24.from_bitmask(values[:, 1:], mask, 8, 128), r"compressed must be \[8, 64\]"),
        (
            lambda: sparse24.from_cusparselt(half, 256, 128),
            r"packed of .*\[128, 144\], \[n, k\] = \[256, 128\]",
        ),
        (lambda: sparse24.from_cusparselt(half.to_sparse(), 128, 256), "packed must be a dense tensor"),
    ):
        with pytest.raises(ValueError, match=text):
            call()
