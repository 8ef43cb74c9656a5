"""lamina.compress on layers that share memory: as one tensor, as several, or as parts of one storage."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lamina.compression import CompressionReport, compress
from lamina.compression.memory import ByteSet, region, shared_bytes, storage_key
from lamina.nn import Int8Linear


def bytes_of(model: nn.Module) -> int:
    """The number of distinct addresses of all bytes."""
    found: set[int] = set()
    for tensor in [*model.parameters(), *model.buffers()]:
        size = tensor.element_size()
        places = torch.arange(tensor.untyped_storage().nbytes() // size, dtype=torch.int64)
        touched = places.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).flatten()
        base = tensor.untyped_storage().data_ptr()
        found.update(base + place * size + at for place in touched.tolist() for at in range(size))
    return len(found)


def rows_of(report: CompressionReport) -> dict[str, tuple[str, str]]:
    return {row.name: (row.action, row.reason) for row in report.rows}


def check_bytes(model: nn.Module, **options: object) -> CompressionReport:
    """Compresses the model and compares the sizes in the report with a count of its bytes."""
    before, planned = bytes_of(model), compress(model, dry_run=True, **options)  # type: ignore[arg-type]
    report = compress(model, **options)  # type: ignore[arg-type]
    assert planned.rows == report.rows
    assert (report.model_bytes_before, report.model_bytes_after) == (before, bytes_of(model))
    return report


def by_assignment(embedding: nn.Embedding, head: nn.Linear) -> None:
    head.load_state_dict({"weight": embedding.weight.detach()}, assign=True)


def by_data(embedding: nn.Embedding, head: nn.Linear) -> None:
    head.weight.data = embedding.weight.data


def by_new_parameter(embedding: nn.Embedding, head: nn.Linear) -> None:
    head.weight = nn.Parameter(embedding.weight.detach()[:])


def by_array(embedding: nn.Embedding, head: nn.Linear) -> None:
    """The two weights have different storages over the same memory."""
    head.weight = nn.Parameter(torch.from_numpy(embedding.weight.detach().numpy()))


@pytest.mark.parametrize("tie", [by_assignment, by_data, by_new_parameter, by_array])
def test_a_head_tied_to_its_embedding_by_memory_is_left(tie: Callable[..., None]) -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(64, 64), "head": nn.Linear(64, 64, bias=False)})
    tie(model["embed"], model["head"])
    assert model["head"].weight is not model["embed"].weight
    report = check_bytes(model)
    assert rows_of(report) == {"head": ("skip", "its weight is also embed.weight, which stays float")}
    assert report.model_bytes_before == 64 * 64 * 4
    assert isinstance(model["head"], nn.Linear)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_two_layers_of_the_same_memory_are_packed_once(device: str) -> None:
    with torch.device(device):
        model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    model[1].weight = nn.Parameter(model[0].weight.detach().view(64, 64))
    report = compress(model)
    assert rows_of(report) == {"0": ("compress", ""), "1": ("compress", "tied with 0")}
    assert model[0].weight_packed is model[1].weight_packed
    assert report.model_bytes_before == 4 * (64 * 64 + 64 + 64)
    assert report.model_bytes_after == sum(buffer.nbytes for buffer in model.buffers())


def fused(parts: int = 3) -> tuple[Tensor, nn.Sequential]:
    """Layers whose weights are rows of one tensor."""
    torch.manual_seed(3)
    whole = torch.randn(parts * 64, 64)
    model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(parts)))
    for i, layer in enumerate(model):
        layer.weight = nn.Parameter(whole[i * 64 : (i + 1) * 64])
    return whole, model


def test_views_of_one_tensor_that_do_not_overlap_are_layers_like_others() -> None:
    whole, model = fused()
    report = check_bytes(model)
    assert rows_of(report) == {name: ("compress", "") for name in "012"}
    assert report.model_bytes_before == whole.nbytes
    assert torch.equal(model[1].weight_packed, compress_one(whole[64:128]).weight_packed)


def compress_one(weight: Tensor) -> Int8Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight)
    return Int8Linear.from_linear(linear)


def test_a_view_that_is_left_keeps_the_storage_of_the_others_and_they_say_so() -> None:
    _, model = fused()
    report = check_bytes(model, skip="2")
    note = "its float memory is not freed: 2.weight is a view of the same storage"
    assert rows_of(report) == {
        "0": ("compress", note),
        "1": ("compress", note),
        "2": ("skip", "skip pattern '2'"),
    }


@pytest.mark.parametrize("as_parameter", [True, False], ids=["parameter", "attribute"])
def test_parts_of_a_tensor_that_stays_float_stay_too(as_parameter: bool) -> None:
    whole, model = fused()
    model.qkv = nn.Parameter(whole) if as_parameter else whole
    report = check_bytes(model)
    reason = "its weight shares memory with qkv, which stays float"
    assert rows_of(report) == {name: ("skip", reason) for name in "012"}
    assert report.model_bytes_before == whole.nbytes


def test_overlapping_layers_are_packed_one_by_one_and_say_so() -> None:
    whole, model = fused()
    both = nn.Linear(64, 128, bias=False)
    both.weight = nn.Parameter(whole[:128])
    model.append(both)
    report = check_bytes(model)
    assert rows_of(report)["3"] == ("compress", "its weight overlaps that of 0; each is packed by itself")
    assert report.model_bytes_before == whole.nbytes
    assert [row.bytes_before for row in report.rows] == [64 * 64 * 4] * 3 + [0]
    assert torch.equal(model[3].weight_packed, compress_one(whole[:128]).weight_packed)


def test_a_layer_that_stays_takes_along_what_it_overlaps_however_far() -> None:
    """c stays, so b stays, which overlaps c, so a stays, which overlaps b; a and c do not overlap."""
    whole = torch.randn(256, 64)
    model = nn.ModuleDict({name: nn.Linear(64, 128, bias=False) for name in "abc"})
    for name, begin in (("a", 0), ("b", 64), ("c", 128)):
        model[name].weight = nn.Parameter(whole[begin : begin + 128])
    report = check_bytes(model, skip="c")
    assert rows_of(report) == {
        "a": ("skip", "its weight shares memory with b.weight, which stays float"),
        "b": ("skip", "its weight shares memory with c.weight, which stays float"),
        "c": ("skip", "skip pattern 'c'"),
    }


def test_columns_of_one_tensor_are_counted_exactly() -> None:
    """Slices along k, as in a tensor-parallel layer, are not contiguous bytes; the last two overlap."""
    whole = torch.randn(48, 192)
    model = nn.ModuleDict({name: nn.Linear(64, 48, bias=False) for name in "abc"})
    for name, begin in (("a", 0), ("b", 64), ("c", 100)):
        model[name].weight = nn.Parameter(whole[:, begin : begin + 64])
    report = check_bytes(model)
    assert [row.bytes_before for row in report.rows] == [48 * 64 * 4, 48 * 64 * 4, 48 * 36 * 4]
    assert [row.reason for row in report.rows] == [
        "", "", "its weight overlaps that of b; each is packed by itself"
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_empty_layers_are_not_tied() -> None:
    model = nn.Sequential(nn.Linear(64, 0), nn.Linear(64, 0))
    compress(model, skip_growing=False)
    assert model[0].weight_packed is not model[1].weight_packed


BASE = torch.arange(4096, dtype=torch.float32)
VIEWS = {
    "all": BASE.view(64, 64),
    "transposed": BASE.view(64, 64).t(),
    "expanded": BASE[:64].expand(64, 64),
    "every other": BASE[::2],
    "odd columns": BASE.view(64, 64)[:, 1::2],
    "overlapping rows": BASE.as_strided((100, 30), (7, 1)),
    "blocks": BASE.view(16, 16, 16)[2:9, 3:8, 4:6],
    "one": BASE[77],
    "as integers": BASE.view(torch.int16)[5:11],
    "none": BASE[:0],
}


def touched(view: Tensor) -> set[int]:
    size = view.element_size()
    places = torch.arange(BASE.nbytes // size)
    at = places.as_strided(view.shape, view.stride(), view.storage_offset()).flatten().tolist()
    return {place * size + byte for place in at for byte in range(size)}


@pytest.mark.parametrize("name", VIEWS)
def test_bytes_of_views_are_counted_one_by_one(name: str) -> None:
    view = VIEWS[name]
    for other in VIEWS.values():
        held = ByteSet([other])
        assert held.total == len(touched(other))
        assert held.add(view) == len(touched(view) - touched(other))
        assert shared_bytes(view, other) == len(touched(view) & touched(other))
        assert ByteSet([other]).touches(view) == bool(touched(view) & touched(other))
    every = ByteSet(VIEWS.values())
    assert every.total == BASE.nbytes
    assert every.add(view) == 0


def test_what_has_no_storage_is_told_by_its_object() -> None:
    sparse, lazy = torch.eye(3).to_sparse(), nn.LazyLinear(3).weight
    for tensor in (sparse, lazy):
        held = ByteSet([tensor])
        assert held.total == (12 if tensor is sparse else 0)
        assert held.add(tensor) == 0
        assert storage_key(tensor) != storage_key(torch.empty(0))
    assert region(BASE[:4]) == region(BASE[:4]) != region(BASE[4:8])
    assert region(torch.ones(4)) != region(torch.ones(4, device="meta"))
    assert region(BASE[:4]) != region(BASE[:4].view(torch.int32))  # the same bytes, and other values
