"""Code that the peers of several ops share: an onnxruntime session around one graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.cases import Candidate, Case, Context

Array = NDArray[Any]


class PeerUnavailable(Exception):
    """The peer is not installed or cannot run this case; the message says why."""


def wanted_peers(
    builders: Mapping[str, Callable[[Case, Any, Context], Candidate]],
    case: Case,
    inputs: Any,
    context: Context,
) -> list[Candidate]:
    """The peers that a run wants; one that cannot run is noted in context.skipped."""
    found = []
    for impl, build in builders.items():
        if not context.wants(impl):
            continue
        try:
            found.append(build(case, inputs, context))
        except PeerUnavailable as error:
            context.skipped[impl] = str(error)
    return found


@lru_cache(maxsize=1)
def _onnxruntime(threads: int) -> Any:
    """The module, with one thread pool for all sessions: a rotation holds dozens of them."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
    except ImportError as error:
        raise PeerUnavailable(f"not installed: {error.name}") from error
    onnxruntime.set_global_thread_pool_sizes(threads, 1)
    return onnxruntime


class Bound:
    """Input and output buffers that any number of sessions share: no allocation and no copy is timed."""

    def __init__(
        self,
        inputs: dict[str, Array],
        outputs: dict[str, Array],
        threads: int,
        same: Mapping[str, str] | None = None,
    ) -> None:
        """same: outputs that are written in place of an input."""
        values = _onnxruntime(threads).OrtValue
        self._inputs = {name: values.ortvalue_from_numpy(array) for name, array in inputs.items()}
        self._outputs = {name: values.ortvalue_from_numpy(array) for name, array in outputs.items()}
        self._outputs.update({output: self._inputs[name] for output, name in (same or {}).items()})

    def attach(self, binding: Any) -> None:
        for name, value in self._inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in self._outputs.items():
            binding.bind_ortvalue_output(name, value)

    def output(self, name: str) -> Array:
        array: Array = self._outputs[name].numpy()
        return array


class OnnxSession:
    """One onnxruntime CPU session."""

    def __init__(self, model: bytes, threads: int) -> None:
        ort = _onnxruntime(threads)
        options = ort.SessionOptions()
        options.use_per_session_threads = False
        options.log_severity_level = 3
        # The shared pool spins 25 ms after a run (2026-11, onnxruntime 1.32), and timing.settle waits for it:
        # session.force_spinning_stop acts on a session's own pool alone.
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._binding = self._session.io_binding()

    def bind(self, bound: Bound) -> None:
        self._binding.clear_binding_inputs()
        self._binding.clear_binding_outputs()
        bound.attach(self._binding)

    def run(self) -> None:
        self._session.run_with_iobinding(self._binding)


def onnx_model(
    nodes: Sequence[tuple[str, Sequence[str], Sequence[str]]],
    inputs: dict[str, tuple[type[np.generic], Sequence[int | str]]],
    outputs: dict[str, tuple[type[np.generic], Sequence[int | str]]],
    constants: dict[str, Array],
    *,
    domain: str = "",
    attributes: dict[str, int] | None = None,
) -> bytes:
    """A serialized graph of (op, inputs, outputs) nodes; constants are initializers, which may be packed.

    domain and attributes are those of every node.
    """
    try:
        from onnx import helper, numpy_helper
    except ImportError as error:
        raise PeerUnavailable(f"not installed: {error.name}") from error

    def declare(values: dict[str, tuple[type[np.generic], Sequence[int | str]]]) -> list[Any]:
        return [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
            for name, (dtype, shape) in values.items()
        ]

    graph = helper.make_graph(
        [
            helper.make_node(op, list(taken), list(given), domain=domain, **(attributes or {}))
            for op, taken, given in nodes
        ],
        "peer",
        declare(inputs),
        declare(outputs),
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    # Opset 17 and IR 9: read by every onnxruntime since 1.14.
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    return bytes(model.SerializeToString())
