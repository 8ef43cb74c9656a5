"""lamina.compress: what is swapped, what is left and why, and what the report says."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lamina.compression import SCHEMES, compress
from lamina.nn import Int4Linear, Int8Linear


class Block(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.up = nn.Linear(width, 3 * width)
        self.down = nn.Linear(3 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(torch.relu(self.up(x)))
        return x + y


class Model(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(3))
        self.head = nn.Linear(width, 50, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x)
        return logits


def make_model() -> Model:
    torch.manual_seed(0)
    return Model().eval()


def model_bytes(model: nn.Module) -> int:
    return sum(t.nbytes for t in [*model.parameters(), *model.buffers()])


TOKENS = torch.arange(24).reshape(4, 6)


def reasons(model: nn.Module, **options: object) -> dict[str, str]:
    report = compress(model, **options)  # type: ignore[arg-type]
    return {row.name: row.reason for row in report.skipped}


@pytest.mark.parametrize("scheme", [name for name in SCHEMES if not name.startswith("sparse24")])
def test_swaps_every_linear_and_keeps_the_function(scheme: str) -> None:
    model = make_model()
    with torch.inference_mode():
        before = model(TOKENS)
    report = compress(model, scheme)
    assert len(report.compressed) == len(report.rows) == 7
    assert not any(isinstance(m, nn.Linear) for m in model.modules())
    kind = Int8Linear if scheme.startswith("w8") else Int4Linear
    assert all(isinstance(m, kind) for m in (model.head, model.blocks[0].up, model.blocks[2].down))
    assert model.head.symmetric == (not scheme.endswith("_asymmetric"))
    with torch.inference_mode():
        after = model(TOKENS)
    # Eight bits a value, four layers deep: percents of the largest output, not more; four bits: sixteenfold.
    assert (after - before).abs().max() <= (0.03 if kind is Int8Linear else 0.3) * before.abs().max()


def test_report_agrees_with_the_bytes_there_are() -> None:
    model = make_model()
    before = model_bytes(model)
    planned = compress(model, dry_run=True)
    assert model_bytes(model) == before
    assert isinstance(model.head, nn.Linear)
    report = compress(model)
    assert report.rows == planned.rows
    assert report.model_bytes_before == planned.model_bytes_before == before
    assert report.model_bytes_after == model_bytes(model)
    assert report.bytes_after < report.bytes_before
    up = report.rows[0]
    assert (up.name, up.n, up.k, up.action) == ("blocks.0.up", 96, 32, "compress")
    assert (up.bytes_before, up.bytes_after) == (96 * 33 * 4, 6 * 1024 + 96 * 4 * 3 + 40)


def test_dry_run_works_on_meta() -> None:
    with torch.device("meta"):
        model = Model(4096)
    report = compress(model, dry_run=True)
    assert report.bytes_before / report.bytes_after > 3.9


def test_skip_patterns_and_functions() -> None:
    def is_wide(name: str, module: nn.Module) -> bool:
        return isinstance(module, nn.Linear) and module.in_features > 32

    model = make_model()
    assert reasons(model, skip=["head", is_wide]) == {
        "head": "skip pattern 'head'",
        **{f"blocks.{i}.down": "skip function is_wide" for i in range(3)},
    }
    assert reasons(make_model(), skip="blocks.1.*").keys() == {"blocks.1.up", "blocks.1.down"}
    assert reasons(make_model(), skip=is_wide).keys() == {f"blocks.{i}.down" for i in range(3)}


def test_a_pattern_that_matches_nothing_warns_the_caller() -> None:
    with pytest.warns(UserWarning, match="'lm_head' matches no") as caught:
        compress(make_model(), skip=["lm_head"])
    assert caught[0].filename == __file__


def test_state_dict_round_trip_into_a_fresh_model() -> None:
    model = make_model()
    compress(model, "w8a8_asymmetric")
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    fresh = Model().eval()
    compress(fresh)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    with torch.inference_mode():
        assert torch.equal(fresh(TOKENS), model(TOKENS))


def test_a_module_in_two_places_stays_one() -> None:
    shared = nn.Linear(32, 32)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared), "c": nn.Linear(32, 32)})
    before = model_bytes(model)
    report = compress(model)
    assert [row.name for row in report.rows] == ["a", "c"]
    assert model["a"] is model.get_submodule("b.0")
    assert isinstance(model["a"], Int8Linear)
    assert (report.model_bytes_before, report.model_bytes_after) == (before, model_bytes(model))
    assert reasons(nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)}), skip="b.0").keys() == {"a"}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_weight_of_two_layers_is_packed_once(scheme: str) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    model[1].weight = model[0].weight
    before, planned = model_bytes(model), compress(model, scheme, dry_run=True)
    report = compress(model, scheme)
    first, second = model
    for name in first.weight_buffers:
        assert getattr(first, name) is getattr(second, name)
    assert first.bias is not second.bias
    assert report.rows[1].reason == "tied with 0"
    assert (report.model_bytes_before, report.model_bytes_after) == (before, model_bytes(model))
    assert planned.rows == report.rows


def test_a_bias_of_two_layers_is_counted_and_kept_once() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64), nn.LayerNorm(64))
    model[1].bias = model[0].bias
    model[2].bias = model[3].bias
    # The bias of the last layer stays in the LayerNorm: packing adds a copy.
    before, planned = model_bytes(model), compress(model, dry_run=True)
    report = compress(model)
    first, second, last, norm = model
    assert first.bias is second.bias
    assert last.bias is not norm.bias
    weight, packed, bias = 64 * 64 * 4, 64 * 64 + 64 * 8 + 40, 64 * 4
    assert [row.bytes_before for row in report.rows] == [weight + bias, weight, weight]
    assert [row.bytes_after for row in report.rows] == [packed + bias, packed, packed + bias]
    assert (report.model_bytes_before, report.model_bytes_after) == (before, model_bytes(model))
    assert planned.rows == report.rows


def test_a_bias_shared_with_a_layer_that_is_left_is_counted_there() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    model[1].bias = model[0].bias
    before = model_bytes(model)
    report = compress(model, skip="1")
    assert [row.bytes_before for row in report.rows] == [64 * 64 * 4, 64 * 65 * 4]
    assert (report.model_bytes_before, report.model_bytes_after) == (before, model_bytes(model))


def test_layers_that_would_grow_are_left() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(64, 16), nn.Linear(64, 1, bias=False))
    found = reasons(model)
    assert found == {
        "0": "it would grow from 288 to 1160 bytes: weights are packed in tiles of 16 x 64",
        "2": "it would grow from 256 to 1072 bytes: weights are packed in tiles of 16 x 64",
    }
    assert isinstance(model[1], Int8Linear)
    forced = compress(model, skip_growing=False)
    assert [(row.bytes_before, row.bytes_after) for row in forced.compressed] == [(288, 1160), (256, 1072)]
    assert all(isinstance(layer, Int8Linear) for layer in model)


def test_a_bad_isa_is_no_fault_of_a_layer() -> None:
    code = "import torch, lamina; lamina.compress(torch.nn.Sequential(torch.nn.Linear(64, 64)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "LAMINA_CPU_ISA": "bad"},
        check=False,
    )
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        'ValueError: lamina::LAMINA_CPU_ISA = "bad" is not a CPU ISA; allowed: auto, generic'
    )


def test_a_weight_that_stays_float_elsewhere_is_left() -> None:
    model = make_model()
    model.head.weight = model.embed.weight
    assert reasons(model) == {"head": "its weight is also embed.weight, which stays float"}
    pair = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    pair[1].weight = pair[0].weight
    assert reasons(pair, skip="0") == {
        "0": "skip pattern '0'",
        "1": "its weight is also 0.weight, which stays float",
    }


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("scheme", ["w8a8", "w4a16"])
def test_torch_encoder_and_attention(scheme: str, padded: bool) -> None:
    """MultiheadAttention reads .weight of its projection; torch's fused path reads it of all layers."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    x = torch.randn(2, 7, 32)
    mask = torch.zeros(2, 7, dtype=torch.bool)
    mask[1, 4:] = padded
    with torch.inference_mode():
        before = model(x, src_key_padding_mask=mask)
        report = compress(model, scheme)
        after = model(x, src_key_padding_mask=mask)
    assert {row.reason for row in report.skipped} == {"nn.MultiheadAttention reads its .weight"}
    assert [row.name for row in report.compressed] == [
        f"layers.{i}.linear{j}" for i in (0, 1) for j in (1, 2)
    ]
    assert (after - before)[~mask].abs().max() < (0.1 if scheme == "w8a8" else 0.5)


def test_layers_that_are_not_plain_are_left() -> None:
    class Special(nn.Linear):
        pass

    hooked, replaced = nn.Linear(4, 4), nn.Linear(4, 4)
    hooked.register_forward_hook(lambda *_: None)
    replaced.forward = lambda input: input  # type: ignore[method-assign]
    model = nn.ModuleDict(
        {
            "special": Special(4, 4),
            "lazy": nn.LazyLinear(4),
            "normed": parametrizations.weight_norm(nn.Linear(4, 4)),
            "hooked": hooked,
            "replaced": replaced,
            "f64": nn.Linear(4, 4, dtype=torch.float64),
        }
    )
    found = reasons(model)
    assert "Special is a subclass" in found["special"]
    assert "LazyLinear is a subclass" in found["lazy"]
    assert "parametrized" in found["normed"]
    assert "hooks" in found["hooked"]
    assert "replaced" in found["replaced"]
    assert "float64" in found["f64"]


def test_a_nan_is_named_and_nothing_is_changed() -> None:
    model = make_model()
    with torch.no_grad():
        model.get_parameter("blocks.2.down.weight")[5, 7] = torch.nan
    with pytest.raises(ValueError, match=r"weight of layer 'blocks\.2\.down' holds 1 NaN or Inf.*\[5, 7\]"):
        compress(model)
    assert not any(isinstance(m, Int8Linear) for m in model.modules())
    assert len(compress(model, skip="blocks.2.down").compressed) == 6


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"itself an nn\.Linear.*Int8Linear\.from_linear"):
        compress(nn.Linear(3, 3))
    with pytest.raises(ValueError, match=r"must be one of w8a8, w8a8_asymmetric, w4a16, .*, got 'w4'"):
        compress(make_model(), "w4")
    with pytest.raises(ValueError, match="group was given with scheme w8a8; allowed with w4a16, w4a16_asym"):
        compress(make_model(), group=128)
    with pytest.raises(ValueError, match="calibration was given with scheme w8a8; allowed with w4a16"):
        compress(make_model(), calibration=[TOKENS])
    with pytest.raises(ValueError, match="compress: group = 24; must be a positive multiple of 16, or -1"):
        compress(make_model(), "w4a16", group=24)
    with pytest.raises(TypeError, match=r"group must be an int or None, got float 32\.0"):
        compress(make_model(), "w4a16", group=32.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"torch\.nn\.Module, got dict"):
        compress({})  # type: ignore[arg-type]


def test_a_second_time_finds_nothing() -> None:
    model = make_model()
    compress(model)
    report = compress(model)
    assert report.rows == ()
    assert report.summary() == f"w8a8: the model, {model_bytes(model) / 1000:.2f} kB, has no linear layers"


def test_report_as_text_and_table() -> None:
    report = compress(make_model(), skip="head", dry_run=True)
    text = str(report)
    assert "blocks.*.up" in text
    assert "skip pattern 'head'" in text
    assert "would compress 6 of 7 linear layers" in text
    assert json.loads(json.dumps(report.as_dict()))["rows"][6]["action"] == "skip"
    console = pytest.importorskip("rich.console").Console(width=120, file=io.StringIO())
    console.print(report)
    assert "blocks.*.down" in console.file.getvalue()


def test_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    assert len(compress(make_model(), progress=True).compressed) == 7
    assert len(compress(make_model()).compressed) == 7
    assert capsys.readouterr().out == ""


def test_import_is_light() -> None:
    code = (
        "import sys, lamina, lamina.nn, lamina.compression\n"
        "print([name for name in ('transformers', 'rich', 'click', 'cuda') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
