"""lamina.compress to int4: groups, bytes, and calibration."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lamina.compression import SCHEMES, compress
from lamina.nn import Int4Linear
from lamina.quant import gptq, hessian
from tests.python.test_compress import Model, make_model, model_bytes


@pytest.mark.parametrize(("group", "groups"), [(None, 1), (16, 8), (48, 3), (-1, 1)])
@pytest.mark.parametrize("scheme", [name for name in SCHEMES if name.startswith("w4")])
def test_int4_report_agrees_with_the_bytes_there_are(scheme: str, group: int | None, groups: int) -> None:
    """Scales and zero points are counted, scales in the dtype of the weight."""
    model = Model(40).half()
    model.blocks[1].up.bias.data = model.blocks[1].up.bias.float()
    planned = compress(model, scheme, group=group, skip_growing=False, dry_run=True)
    report = compress(model, scheme, group=group, skip_growing=False)
    assert report.rows == planned.rows
    assert report.model_bytes_after == planned.model_bytes_after == model_bytes(model)
    down = model.blocks[0].down
    assert isinstance(down, Int4Linear)
    assert down.group == (group if groups > 1 else -1)
    scale_bytes = 2 + (1 if scheme.endswith("_asymmetric") else 0)
    assert report.rows[1].bytes_after == 3 * 2 * 512 + groups * 40 * scale_bytes + 8 * 8


def test_w4a8_refuses_a_k_that_its_op_does() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(1 + 2**19, 16), nn.Linear(2**19, 16))
    report = compress(model, "w4a8", dry_run=True)
    assert report.skipped[0].reason == "its k = 524289 is above 524288, the most that w4a8 sums exactly"
    assert len(compress(model, "w4a16", dry_run=True).compressed) == 2


CALIBRATION = [torch.randint(0, 50, (4, 6), generator=torch.Generator().manual_seed(i)) for i in range(8)]


def test_calibration_is_gptq_on_what_each_layer_sees() -> None:
    model = make_model()
    blocks = model.blocks
    seen: list[Tensor] = []
    handle = blocks[1].down.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        for batch in CALIBRATION:
            model(batch)
    handle.remove()
    want = gptq(blocks[1].down.weight.detach(), hessian(seen), 32, symmetric=False)
    compress(model.train(), "w4a8_asymmetric", group=32, calibration=iter(CALIBRATION))
    down = model.blocks[1].down
    assert isinstance(down, Int4Linear)
    assert (down.activations, down.group, down.symmetric) == ("int8", 32, False)
    assert torch.equal(down.packed_weight.unpack(), want.q)
    assert torch.equal(down.weight_scale, want.scale)
    assert model.training
    assert down.training


@pytest.mark.parametrize("how", ["callable", "mappings", "sequences", "a layer at a time"])
def test_calibration_in_other_ways_is_the_same(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [make_model(), make_model()]
    batches: dict[str, object] = {
        "callable": lambda model: [model(batch) for batch in CALIBRATION],
        "mappings": [{"tokens": batch} for batch in CALIBRATION],
        "sequences": [(batch,) for batch in CALIBRATION],
        "a layer at a time": iter(CALIBRATION),
    }
    compress(models[0], "w4a16", calibration=CALIBRATION)
    if how == "a layer at a time":
        monkeypatch.setattr("lamina.quant.calibration.HESSIAN_BYTES", 1)
    compress(models[1], "w4a16", calibration=batches[how])  # type: ignore[arg-type]
    for left, right in zip(*(model.state_dict().values() for model in models), strict=True):
        assert torch.equal(left, right)


def test_tied_layers_are_calibrated_together() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    model[2].weight = model[0].weight
    x = torch.randn(50, 64)
    with torch.no_grad():
        inputs = [x, model[1](model[0](x))]
    want = gptq(model[0].weight.detach(), hessian(inputs))
    compress(model, "w4a16", calibration=[x])
    assert torch.equal(model[0].packed_weight.unpack(), want.q)
    assert model[2].weight_packed is model[0].weight_packed


def test_a_layer_that_calibration_does_not_reach_warns() -> None:
    model = nn.ModuleDict({"used": nn.Linear(64, 64), "idle": nn.Linear(64, 64)})
    plain = Int4Linear.from_linear(model["idle"])  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="no calibration input reaches layer 'idle'") as caught:
        compress(model, "w4a16", calibration=lambda m: m["used"](torch.randn(9, 64)))  # type: ignore[index]
    assert caught[0].filename == __file__
    assert torch.equal(model["idle"].weight_packed, plain.weight_packed)


def test_bad_calibration_inputs_are_named_and_nothing_is_changed() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    with pytest.raises(ValueError, match=r"layer '0': gptq: hessian holds \d+ NaN or Inf"):
        compress(model, "w4a16", calibration=[torch.full((2, 64), torch.inf)])
    assert isinstance(model[0], nn.Linear)
    assert not model[0]._forward_pre_hooks


def test_calibration_sees_the_layers_of_torch_s_encoder() -> None:
    """Whose fused path calls none of them."""
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2).eval()
    report = compress(model, "w4a16", skip_growing=False, calibration=[torch.randn(2, 7, 32)])
    assert len(report.compressed) == 4
