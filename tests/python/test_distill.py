"""lamina.prune and lamina.distill: masks stay frozen, the student gets nearer to its teacher."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lamina
from lamina.quant import hessian, prune_sparse24
from tests.python.test_calibration import BATCHES, Block, block
from tests.support.compare import assert_equal


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def error(student: nn.Module, teacher: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        wanted = teacher(x)
        return float((student(x) - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_prune_is_prune_sparse24_of_each_layer(method: str) -> None:
    plain, pruned = block(), block()
    report = lamina.prune(pruned, method, calibration=BATCHES)
    h = hessian(BATCHES)
    want = prune_sparse24(plain.up.weight, h, method=method).weight
    assert_equal(pruned.up.weight.detach(), want)
    change, weight = (want - plain.up.weight).detach(), plain.up.weight.detach()
    squares = [float(((part.double() @ h.double()) * part.double()).sum()) for part in (change, weight)]
    assert report.layers[0].error == pytest.approx((squares[0] / squares[1]) ** 0.5, rel=1e-4)
    assert [layer.is_sparse for layer in report.layers] == [True, True]
    assert str(report).endswith(f"{method}: 2 of 2 linear layers are 2:4")
    assert pruned.up.weight.requires_grad


def test_prune_without_calibration_is_by_magnitude() -> None:
    plain, pruned = block(), block()
    lamina.prune(pruned)
    assert_equal(pruned.down.weight.detach(), prune_sparse24(plain.down.weight).weight)


def test_a_budget_and_skip_leave_layers() -> None:
    model = block()
    report = lamina.prune(model, calibration=BATCHES, sparse24_fraction=0.5)
    assert sorted(layer.is_sparse for layer in report.layers) == [False, True]
    best = min(report.layers, key=lambda layer: layer.error or 0)
    assert best.is_sparse
    report = lamina.prune(block(), calibration=BATCHES, max_layer_error=0.0)
    assert not any(layer.is_sparse for layer in report.layers)
    report = lamina.prune(block(), skip="up")
    assert (report.layers[0].is_sparse, report.layers[0].reason) == (False, "skip pattern 'up'")


def test_layers_that_no_input_reaches_and_shared_weights() -> None:
    model = block()
    model.more = nn.Linear(48, 8)
    model.tied = nn.Linear(48, 64)
    model.tied.weight = model.up.weight
    with pytest.warns(UserWarning, match="no calibration input reaches layer 'more': magnitude"):
        report = lamina.prune(model, calibration=BATCHES)
    assert lamina.is_sparse24(model.more.weight)
    assert report.layers[3].reason == "shares its weight with up"
    assert model.tied.weight is model.up.weight


def teacher_and_student() -> tuple[Block, Block]:
    teacher, student = block(), block()
    lamina.prune(student, calibration=BATCHES)
    return teacher, student


def test_distill_comes_nearer_and_keeps_the_masks() -> None:
    teacher, student = teacher_and_student()
    held_out = torch.randn(50, 48) * torch.logspace(0, -2, 48)
    before, of_teacher = error(student, teacher, held_out), state(teacher)
    masks = {name: layer.weight != 0 for name, layer in (("up", student.up), ("down", student.down))}
    student.train()
    report = lamina.distill(student, teacher, BATCHES, epochs=60, learning_rate=5e-3, progress=False)
    assert error(student, teacher, held_out) < 0.7 * before
    for name, mask in masks.items():
        weight = student.get_submodule(name).weight
        assert_equal((weight != 0), mask)
    assert report.masked == ("up", "down")
    assert len(report.losses) == 120
    assert sum(report.losses[-10:]) < 0.7 * sum(report.losses[:10])
    assert str(report).startswith("distill: 120 steps in ")
    assert student.training and not teacher.training
    for name, tensor in state(teacher).items():
        assert_equal(tensor, of_teacher[name])
    assert all(parameter.grad is None for parameter in student.parameters())
    assert not student.up.weight._backward_hooks


def test_masks_stay_under_weight_that_is_shared_and_dense_layers_train() -> None:
    teacher, student = block(), block()
    lamina.prune(student, skip="down")
    lamina.distill(student, teacher, BATCHES, epochs=5, learning_rate=5e-3)
    assert lamina.is_sparse24(student.up.weight) and not lamina.is_sparse24(student.down.weight)


def test_chosen_parameters_and_a_loss_of_ones_own() -> None:
    teacher, student = teacher_and_student()
    before = state(student)

    def loss(student: nn.Module, teacher: nn.Module, batch: Any) -> Tensor:
        with torch.no_grad():
            wanted = teacher(batch)
        return (student(batch) - wanted).abs().mean()

    assert student.up.bias is not None
    report = lamina.distill(student, teacher, BATCHES, loss=loss, parameters=[student.up.bias])
    changed = {name for name, tensor in state(student).items() if not torch.equal(tensor, before[name])}
    assert changed == {"up.bias"}
    assert report.trained == 64
    with torch.no_grad():
        exact = (student(BATCHES[0]) - teacher(BATCHES[0])).abs().mean()
    assert float(loss(student, teacher, BATCHES[0]).detach()) == pytest.approx(float(exact))


def test_no_epochs() -> None:
    teacher, student = teacher_and_student()
    before = state(student)
    assert str(lamina.distill(student, teacher, BATCHES, epochs=0)) == "distill: no steps"
    for name, tensor in state(student).items():
        assert_equal(tensor, before[name])


class Language(nn.Module):
    """A model of the shape that transformers gives one."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.base_model = Hidden()
        self.head = nn.Linear(16, 50)
        self.factor = factor

    def get_output_embeddings(self) -> nn.Linear:
        return self.head

    def forward(self, **inputs: Tensor) -> Any:
        out = self.base_model(**inputs)
        out.logits = self.factor * self.head(out.last_hidden_state)
        return out


class Hidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.mix = nn.Linear(16, 16)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        out = type("Output", (), {})()
        out.last_hidden_state = self.embed(input_ids) + self.mix(self.embed(input_ids)).tanh()
        return out


@pytest.mark.parametrize("scaled", ["student", "teacher"])
def test_logits_that_are_more_than_a_head_are_refused(scaled: str) -> None:
    models = {name: Language(0.5 if name == scaled else 1.0) for name in ("student", "teacher")}
    ids = torch.arange(30).view(2, 15)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with pytest.raises(ValueError, match="loss 'vocabulary' needs logits that are the output embeddings"):
        lamina.distill(**models, data=[batch], loss="vocabulary")
    assert lamina.distill(**models, data=[batch], loss=lambda s, t, b: s(**b).logits.sum()).losses


def test_distillation_over_the_vocabulary_leaves_out_padding() -> None:
    teacher, student = Language(), Language()
    lamina.prune(student, skip="head")
    ids = torch.arange(60).view(4, 15) % 50
    mask = torch.ones(4, 15, dtype=torch.int64)
    mask[:, 10:] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    fixed = state(student.base_model.embed)
    report = lamina.distill(student, teacher, [batch], loss="vocabulary", epochs=40, learning_rate=1e-2)
    assert report.losses[-1] < 0.5 * report.losses[0]
    assert_equal(state(student.base_model.embed)["weight"], fixed["weight"])
    assert lamina.is_sparse24(student.base_model.mix.weight)
    other = copy.deepcopy(batch)
    other["input_ids"][:, 10:] = 7  # padding
    first = lamina.distill(copy.deepcopy(student), teacher, [batch], loss="vocabulary").losses
    second = lamina.distill(copy.deepcopy(student), teacher, [other], loss="vocabulary").losses
    assert first == pytest.approx(second, rel=1e-5)


def test_a_bar_needs_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, student = teacher_and_student()
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    with pytest.raises(ImportError, match="distill: progress=True needs rich: pip install rich"):
        lamina.distill(student, teacher, BATCHES, progress=True)


def test_the_bar_shows_the_loss(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes stderr for a terminal
    teacher, student = teacher_and_student()
    report = lamina.distill(student, teacher, BATCHES, progress=True)
    assert len(report.losses) == 2
    assert "distilling, loss 0." in capsys.readouterr().err


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "loss": ({"loss": "mse"}, ValueError, "loss must be one of layers, vocabulary or a function, got 'mse'"),
    "epochs": ({"epochs": -1}, ValueError, "epochs = -1; must be an int, at least 0"),
    "learning_rate": ({"learning_rate": 0.0}, ValueError, r"learning_rate = 0\.0; must be above 0"),
    "teacher": ({"teacher": 3}, TypeError, "teacher must be a torch.nn.Module, got int"),
    "parameters": ({"parameters": []}, ValueError, "parameters has none; allowed: at least one, or None"),
    "data": ({"data": BATCHES[0]}, TypeError, "data must hold batches, got Tensor; put one into a list"),
    "no head": ({"loss": "vocabulary"}, ValueError, "loss 'vocabulary' needs a model of transformers with"),
    "diverges": (
        {"loss": lambda s, t, b: s(b).sum() * torch.inf},
        ValueError,
        "the loss of step 0 is -?inf; try a lower learning_rate",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    changed, kind, message = BAD[case]
    teacher, student = teacher_and_student()
    with pytest.raises(kind, match=f"distill: {message}"):
        lamina.distill(**{"student": student, "teacher": teacher, "data": BATCHES, **changed})
    assert not student.up.weight._backward_hooks


def test_models_that_cannot_be_trained() -> None:
    teacher, student = teacher_and_student()
    lamina.compress(student, "sparse24-w8a8")
    with pytest.raises(TypeError, match="layer 'up' of student is packed and cannot be trained"):
        lamina.distill(student, teacher, BATCHES)
    with pytest.raises(ValueError, match="no parameter of student requires a gradient"):
        lamina.distill(block().requires_grad_(False), teacher, BATCHES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "best"}, "method must be one of magnitude, wanda, sparsegpt, got 'best'"),
        ({"method": "wanda"}, "method 'wanda' needs calibration, got None"),
        ({"sparse24_fraction": -0.5}, r"sparse24_fraction = -0\.5; must be from 0 to 1"),
    ],
)
def test_bad_input_of_prune(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"prune: {message}"):
        lamina.prune(block(), **options)
