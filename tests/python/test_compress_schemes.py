"""lamina.compress with schemes for some layers: mappings, heads, dtypes of scales, texts, advice."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lamina
from lamina.nn import Int4Linear, Int8Linear


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(64, 128)
        self.down = nn.Linear(128, 64, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(torch.relu(self.up(x)))
        return x + y


class Lm(nn.Module):
    """A language model whose head has the weight of the embedding, as transformers builds it."""

    class Config:
        tie_word_embeddings = True

    def __init__(self) -> None:
        super().__init__()
        self.config = self.Config()
        self.config.tie_word_embeddings = True
        self.all_tied_weights_keys = {"head.weight": "embed.weight"}
        self.embed = nn.Embedding(96, 64)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(64, 96, bias=False)
        self.head.weight = self.embed.weight

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x)
        return logits


@pytest.fixture
def model() -> Lm:
    torch.manual_seed(11)
    return Lm().eval()


IDS = torch.arange(24).view(2, 12)


def schemes_of(report: lamina.CompressionReport) -> dict[str, str]:
    return {row.name: row.scheme for row in report.rows}


def test_the_first_pattern_that_matches_counts(model: Lm) -> None:
    report = lamina.compress(model, {"blocks.1.*": "w4a16", "*.up": "w8a8", "*.down": "w4a8"}, group=32)
    assert schemes_of(report) == {
        "blocks.0.up": "w8a8", "blocks.0.down": "w4a8", "blocks.1.up": "w4a16", "blocks.1.down": "w4a16",
        "head": "",
    }  # fmt: skip
    assert report.skipped[0].reason == "no pattern of the mapping of schemes matches it"
    assert isinstance(model.blocks[0].up, Int8Linear) and model.blocks[0].down.activations == "int8"
    assert model.blocks[1].up.activations == "float" and model.blocks[1].up.group == 32
    assert report.scheme == "w4a16, w8a8, w4a8"
    assert "compress w8a8" in str(report) and "compress w4a16" in str(report)


def test_each_layer_is_what_its_scheme_alone_makes(model: Lm) -> None:
    names = ("up", "down")
    alone = nn.ModuleDict(
        {name: nn.Sequential(copy.deepcopy(getattr(model.blocks[0], name))) for name in names}
    )
    lamina.compress(model, {"*.up": "w8a8", "*": "w4a16"}, group=16)
    lamina.compress(alone["up"], "w8a8")
    lamina.compress(alone["down"], "w4a16", group=16)
    for name in names:
        got, want = getattr(model.blocks[0], name).state_dict(), alone[name][0].state_dict()
        assert got.keys() == want.keys()
        assert all(torch.equal(got[key], want[key]) for key in got), name


def test_a_tied_head_is_packed_on_request_only(model: Lm) -> None:
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(2))
    exact = model.head(x).detach()
    kept = lamina.compress(model, "w8a8")
    assert "embed.weight, which stays float" in kept.skipped[0].reason
    assert model.config.tie_word_embeddings and model.all_tied_weights_keys

    before = sum(t.nbytes for t in {id(t): t for t in [*model.parameters(), *model.buffers()]}.values())
    report = lamina.compress(model, "w8a8", head="w8a8")
    (row,) = report.compressed
    assert (row.name, row.reason) == ("head", "untied from embed.weight, which stays float")
    assert row.bytes_before == 0  # the embedding keeps these bytes
    assert isinstance(model.head, Int8Linear) and isinstance(model.embed.weight, nn.Parameter)
    assert not model.config.tie_word_embeddings and model.all_tied_weights_keys == {}
    assert report.model_bytes_after == before + model.head.nbytes
    with torch.inference_mode():
        assert (model.head(x) - exact).abs().max() < 0.03 * exact.abs().max()


@pytest.mark.parametrize(
    ("scheme", "options"),
    [
        ({"head": "w8a8", "*": "w4a8"}, {}),
        ({"*": "w4a8", "head": "w8a8"}, {"head": "w8a8"}),
        ("w4a8", {"head": "w8a8"}),
    ],
)
def test_ways_to_name_the_head(model: Lm, scheme: Any, options: dict[str, str]) -> None:
    lamina.compress(model, scheme, group=32, **options)
    assert isinstance(model.head, Int8Linear)
    assert all(isinstance(block.up, Int4Linear) for block in model.blocks)


def test_a_catch_all_leaves_a_tied_head(model: Lm) -> None:
    report = lamina.compress(model, {"*": "w4a8"}, group=32)
    assert [row.name for row in report.skipped] == ["head"]
    assert isinstance(model.head, nn.Linear)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("calibrated", [False, True])
def test_scales_have_the_dtype_that_was_asked_for(model: Lm, dtype: torch.dtype, calibrated: bool) -> None:
    options = {"calibration": [IDS]} if calibrated else {}
    report = lamina.compress(model, "w4a16", group=32, scale_dtype=dtype, **options)  # type: ignore[arg-type]
    layer = model.blocks[0].up
    assert layer.weight_scale.dtype is dtype
    assert layer.weight_dtype is torch.float32
    assert report.rows[0].bytes_after == layer.nbytes  # the plan counts the smaller scales


@pytest.mark.parametrize("dtype", [None, torch.uint8, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("calibrated", [False, True])
def test_zero_points_have_the_dtype_that_was_asked_for(
    model: Lm, dtype: torch.dtype | None, calibrated: bool
) -> None:
    schemes = {"*.up": "w4a16_asymmetric", "*.down": "w4a8"}
    options: dict[str, Any] = {"calibration": [IDS]} if calibrated else {}
    report = lamina.compress(
        model, schemes, group=32, scale_dtype=torch.float16, zero_point_dtype=dtype, **options
    )
    layer = model.blocks[0].up
    assert layer.weight_zero_point.dtype is (dtype or torch.uint8)
    assert model.blocks[0].down.weight_zero_point is None
    assert report.rows[0].bytes_after == layer.nbytes  # the plan counts zero points of this dtype


def test_zero_points_of_a_2_to_4_scheme_are_integers(model: Lm) -> None:
    lamina.compress(model, "sparse24-w4a16_asymmetric", group=32, dense="*.down", dense_rows=True)
    for layer in (model.blocks[0].up, model.blocks[0].down):
        assert layer.weight_zero_point.dtype is torch.uint8


class Tokenizer:
    """Letters to numbers."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(self, text: str, **options: Any) -> dict[str, Tensor]:
        self.calls.append(options)
        return {"input_ids": torch.tensor([[ord(letter) % 96 for letter in text]])}


def test_texts_calibrate_like_their_tokens(model: Lm) -> None:
    texts, tokenizer = ["the cat sat", "on the mat and slept"], Tokenizer()
    batches = [tokenizer(text) for text in texts]
    twin = Lm()
    twin.load_state_dict(model.state_dict())
    lamina.compress(model, "w4a16", group=32, calibration=texts, tokenizer=tokenizer)
    lamina.compress(twin, "w4a16", group=32, calibration=batches)
    nearest = Int4Linear.from_linear(Lm().blocks[0].up, group=32)
    for name, tensor in twin.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert not torch.equal(model.blocks[0].up.weight_packed, nearest.weight_packed)
    assert tokenizer.calls[-1] == {"return_tensors": "pt", "truncation": True, "max_length": 2048}


def test_only_int4_layers_of_a_mapping_are_calibrated(model: Lm) -> None:
    plain = Lm()
    plain.load_state_dict(model.state_dict())
    lamina.compress(model, {"*.up": "w8a8", "*.down": "w4a16"}, group=32, calibration=[IDS])
    lamina.compress(plain, {"*.up": "w8a8", "*.down": "w4a16"}, group=32)
    assert torch.equal(model.blocks[0].up.weight_packed, plain.blocks[0].up.weight_packed)
    assert not torch.equal(model.blocks[0].down.weight_packed, plain.blocks[0].down.weight_packed)


@pytest.mark.parametrize(
    ("scheme", "options", "has_advice"),
    [
        ("w4a16", {}, True),
        ("w4a8", {"group": -1}, True),
        ({"*.up": "w8a8", "*.down": "w4a8"}, {}, True),
        ("w4a16", {"group": 32}, False),
        ("w4a16", {"calibration": [IDS]}, False),
        ("w8a8", {}, False),
    ],
)
def test_small_models_get_an_advice_on_the_group(
    model: Lm, scheme: Any, options: dict[str, Any], has_advice: bool
) -> None:
    report = lamina.compress(model, scheme, **options)
    assert bool(report.advice) is has_advice
    assert ("group=32 costs less" in str(report)) is has_advice
    assert report.as_dict()["advice"] == list(report.advice)


def test_large_models_get_no_advice() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(40_000, 40_000))
    assert not lamina.compress(model, "w4a16", dry_run=True).advice


def bad_arguments() -> Iterator[tuple[Any, dict[str, Any], str]]:
    yield {}, {}, r"scheme must map name patterns to schemes, got \{\}"
    yield {"*": "w3"}, {}, r"scheme\['\*'\] must be one of w8a8, .*, got 'w3'"
    yield {"*": "w8a8"}, {"group": 32}, r"group was given with scheme w8a8; allowed with w4a16"
    yield "w8a8", {"scale_dtype": torch.float16}, "scale_dtype was given with scheme w8a8; allowed with w4a16"
    yield (
        "w4a16",
        {"scale_dtype": torch.int8},
        "scale_dtype must be float32, float16 or bfloat16, got torch.int8",
    )
    yield (
        "w4a16",
        {"zero_point_dtype": torch.float16},
        "zero_point_dtype was given with scheme w4a16; allowed with w4a16_asymmetric, w4a8_asymmetric",
    )
    yield (
        {"*": "sparse24-w4a8_asymmetric"},
        {"zero_point_dtype": torch.float16},
        "zero_point_dtype was given with scheme sparse24-w4a8_asymmetric; allowed with w4a16_asymmetric",
    )
    yield (
        "w4a8_asymmetric",
        {"zero_point_dtype": torch.int8},
        "zero_point_dtype must be uint8, float32, float16 or bfloat16, got torch.int8",
    )
    yield "w8a8", {"head": "w9"}, "head must be one of w8a8, .*, got 'w9'"
    yield {"*": "sparse24-w8a8"}, {"sparse24_fraction": 0.5}, "was given with scheme sparse24-w8a8"
    yield {"*": "w8a8"}, {"calibration": [IDS]}, "calibration was given with scheme w8a8; allowed with"


@pytest.mark.parametrize(("scheme", "options", "message"), list(bad_arguments()))
def test_bad_arguments_are_named(model: Lm, scheme: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lamina.compress(model, scheme, **options)
    assert isinstance(model.blocks[0].up, nn.Linear)


def test_a_model_without_a_head_is_named(model: Lm) -> None:
    with pytest.raises(ValueError, match=r"get_output_embeddings\(\) of the model gives none"):
        lamina.compress(model.blocks, "w8a8", head="w8a8")
    lamina.compress(model, "w8a8", head="w8a8")
    with pytest.raises(ValueError, match=r"gives Int8Linear, not an nn\.Linear"):
        lamina.compress(model, "w8a8", head="w8a8")


def test_texts_and_tokenizers_go_together(model: Lm) -> None:
    with pytest.raises(TypeError, match="got str; texts need tokenizer="):
        lamina.compress(model, "w4a16", calibration=["a text"])
    for given in ("a text", [IDS], None):
        with pytest.raises(TypeError, match="calibration must be a sequence of texts"):
            lamina.compress(model, "w4a16", calibration=given, tokenizer=Tokenizer())  # type: ignore[arg-type]


def test_a_pattern_that_matches_no_layer_warns(model: Lm) -> None:
    with pytest.warns(UserWarning, match=r"scheme pattern '\*\.gate' matches no nn\.Linear"):
        lamina.compress(model, {"*.gate": "w8a8", "*": "w4a8"}, group=32)
