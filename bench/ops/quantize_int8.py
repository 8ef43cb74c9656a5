"""quantize_int8 (dynamic, symmetric, per token) beside eager torch and onnxruntime's DynamicQuantizeLinear.

There is no weight: the activations themselves rotate. n is not used. On a GPU eager torch is the one peer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.cases import Accuracy, Candidate, Case, Context, Ring
from bench.peers import Array, Bound, OnnxSession, PeerUnavailable, onnx_model, wanted_peers
from bench.roofline import Work
from lamina.testing import reference

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
MAX_BINDINGS = 128


def make_input(case: Case) -> Tensor:
    generator = torch.Generator().manual_seed(case.m * 1_000_003 + case.k)
    x = torch.randn(case.m, case.k, generator=generator)
    return (x * torch.linspace(0.5, 8, case.m)[:, None]).to(DTYPES[case.dtype]).to(case.device)


def _work(case: Case, scale_bytes: int) -> Work:
    elements = case.m * case.k
    # One operation per element, for a figure in elements per second; bytes alone set the floor.
    return Work(elements * (DTYPES[case.dtype].itemsize + 1) + scale_bytes, elements, "none")


def _accuracy(x: NDArray[np.float32], q: NDArray[Any], scale: Any, zero_point: Any = 0) -> Accuracy:
    """Distance of every value from what its integer stands for, against half a step of the grid in use."""
    step = np.asarray(scale, np.float64)
    error = np.abs((q.astype(np.float64) - zero_point) * step - x)
    return Accuracy(float(error.max()), float((error / (step * reference.GRID_ERROR)).max()))


def _lamina(case: Case, x: Tensor, context: Context, isa: str | None) -> Candidate:
    """`isa` None: on a GPU."""
    import lamina

    ring: Ring[Tensor] = context.rotation.ring(("x", case.m, case.k), x.nbytes, x.clone)

    def call() -> lamina.QuantizedInt8:
        return lamina.quantize_int8(next(ring))

    values = x.float().cpu().numpy()
    expected_q, expected_scale, _ = (t.numpy() for t in reference.quantize_int8(x.float().cpu()))

    def check_output(out: object) -> Accuracy:
        assert isinstance(out, lamina.QuantizedInt8)
        q, scale = out.q.cpu().numpy(), out.scale.cpu().numpy()
        if not (np.array_equal(q, expected_q) and np.array_equal(scale, expected_scale)):
            wrong = np.abs(q - expected_q).max()
            return Accuracy(float(wrong), 2.0 + float(wrong))  # bit equality is the contract
        return _accuracy(values, q, scale)

    computes = f"per-token scale and int8 from {case.dtype}"
    work = _work(case, 4 * case.m)
    found = Candidate("lamina", computes, call, lambda: check_output(call()), work, ring, isa)
    found.check_output = check_output
    if isa is not None:
        found.select = partial(torch.ops.lamina.set_cpu_isa, isa)
        found.select()
        found.plan = torch.ops.lamina.explain_quantize_int8(case.m, case.k)
    return found


def _torch_eager(case: Case, x: Tensor, context: Context) -> Candidate:
    ring: Ring[Tensor] = context.rotation.ring(("x", case.m, case.k), x.nbytes, x.clone)

    def call() -> tuple[Tensor, Tensor]:
        values = next(ring).float()
        scale = values.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / 127
        return (values / scale).round_().clamp_(-127, 127).to(torch.int8), scale

    def check() -> Accuracy:
        q, scale = call()
        return _accuracy(x.float().cpu().numpy(), q.cpu().numpy(), scale.cpu().numpy())

    work = _work(case, 4 * case.m)
    return Candidate("torch_eager", "the same formula in eager torch", call, check, work, ring)


def _onnxruntime(case: Case, x: Tensor, context: Context) -> Candidate:
    if case.dtype != "f32":
        raise PeerUnavailable(f"DynamicQuantizeLinear takes f32, not {case.dtype}")
    values = x.numpy()
    model = onnx_model(
        [("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero_point"])],
        {"x": (np.float32, ["m", case.k])},
        {"q": (np.uint8, ["m", case.k]), "scale": (np.float32, []), "zero_point": (np.uint8, [])},
        {},
    )
    outputs: dict[str, Array] = {
        "q": np.zeros(values.shape, np.uint8),
        "scale": np.zeros((), np.float32),
        "zero_point": np.zeros((), np.uint8),
    }

    def make() -> tuple[OnnxSession, Bound]:
        session = OnnxSession(model, context.threads)
        bound = Bound({"x": values.copy()}, outputs, context.threads)
        session.bind(bound)
        return session, bound

    ring = context.rotation.ring(("onnxruntime", case.m, case.k), x.nbytes, make, MAX_BINDINGS)

    def call() -> Bound:
        session, bound = next(ring)
        session.run()
        return bound

    def check() -> Accuracy:
        bound = call()
        zero_point = bound.output("zero_point").astype(np.float64)
        return _accuracy(values, bound.output("q"), bound.output("scale"), zero_point)

    computes = "DynamicQuantizeLinear: one scale and zero point for the whole tensor"
    return Candidate("onnxruntime", computes, call, check, _work(case, 5), ring)


_PEERS: dict[str, Callable[[Case, Tensor, Context], Candidate]] = {
    "onnxruntime": _onnxruntime,
    "torch_eager": _torch_eager,
}


class QuantizeInt8Bench:
    name = "quantize_int8"
    devices = ("cpu", "cuda")
    dtypes = tuple(DTYPES)
    groups: tuple[int, ...] = ()

    def peers_on(self, device: str) -> tuple[str, ...]:
        return tuple(peer for peer in _PEERS if device == "cpu" or peer.startswith("torch_"))

    def candidates(self, case: Case, context: Context) -> list[Candidate]:
        x = make_input(case)
        isas: Sequence[str | None] = context.isas if case.device == "cpu" else (None,)
        found = [_lamina(case, x, context, isa) for isa in isas]
        peers = {impl: _PEERS[impl] for impl in self.peers_on(case.device)}
        return found + wanted_peers(peers, case, x, context)


BENCH = QuantizeInt8Bench()
