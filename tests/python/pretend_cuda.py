"""A CUDA device for machines without one: its memory is the CPU's, its lamina kernels run on the emulator.

Tensors say that they are on cuda:0 and torch refuses to mix them with others, as it does on a GPU; so what
moves weights between devices is tested everywhere. Streams, speed and the real kernels are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from lamina.ops.registration import FAKES
from lamina.testing import emulated_gpu
from tests.support.backends import EMULATOR_SMS, emu_ops

DEVICE = torch.device("cuda", 0)
_COPIES = (torch.ops.aten.copy_.default, torch.Tensor.copy_)
_CUDA_OPS = FAKES.keys() - {"pack_int8", "unpack_int8"}
# These ask for the device guard, which is not there, or for values, before they dispatch.
_UNDISPATCHED = (
    torch.Tensor.__bool__,
    torch.Tensor.__float__,
    torch.Tensor.__getitem__,
    torch.Tensor.__setitem__,
    torch.Tensor.__int__,
    torch.Tensor.__invert__,
    torch.Tensor.contiguous,
    torch.Tensor.copy_,
    torch.Tensor.long,
    torch.Tensor.tolist,
    torch.nonzero,
)


class PretendTensor(torch.Tensor):
    """Says that it is on cuda:0; `held` is the CPU tensor with its values."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> PretendTensor:
        tensor: PretendTensor = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=DEVICE
        )
        tensor.held = held
        return tensor

    def __repr__(self, **_: Any) -> str:
        return f"PretendTensor({self.held!r})"

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _UNDISPATCHED:
            return _call(func, args, kwargs or {})
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _call(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Sees the calls that no PretendTensor takes part in: those that make one."""

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _call(func, args, kwargs or {})


class Traffic(NamedTuple):
    """The calls of lamina's ops as (op, device type), and copies of the tensors that changed their device."""

    calls: list[tuple[str, str]]
    crossed: list[torch.Tensor]

    def packed(self) -> list[str]:
        """The device types on which int4 weights were packed, one entry a weight."""
        return [device for op, device in self.calls if op == "pack_int4"]


_recorders: list[Traffic] = []


@contextmanager
def recorded() -> Iterator[Traffic]:
    """Records what happens inside, on a pretended device."""
    traffic = Traffic([], [])
    _recorders.append(traffic)
    try:
        yield traffic
    finally:
        _recorders.remove(traffic)


def _record(func: Callable[..., Any], tensors: list[torch.Tensor], wanted: Any) -> None:
    namespace, _, name = str(func).partition(".")
    is_pretended = [isinstance(tensor, PretendTensor) for tensor in tensors]
    for traffic in _recorders:
        if namespace == "lamina" and tensors:
            traffic.calls.append((name.partition(".")[0], "cuda" if any(is_pretended) else "cpu"))
        target = is_pretended[0] if func in _COPIES else torch.device(wanted or "meta").type == "cuda"
        is_copy = func in _COPIES or (func is torch.ops.aten._to_copy.default and wanted is not None)
        if is_copy and is_pretended[-1] is not target:
            traffic.crossed.append(_held(tensors[-1]).clone())


def _call(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    pretends = [tensor for tensor in tensors if isinstance(tensor, PretendTensor)]
    if pretends and func not in _COPIES:
        for tensor in tensors:
            if not isinstance(tensor, PretendTensor) and tensor.dim() > 0:
                raise RuntimeError(f"{func} got tensors on cuda:0 and on {tensor.device}")
    wanted = kwargs.get("device")
    _record(func, tensors, wanted)
    on_device = bool(pretends) if wanted is None else torch.device(wanted).type == "cuda"
    held_args, held_kwargs = tree_map(_held, (args, kwargs))
    if wanted is not None and on_device:
        held_kwargs["device"] = "cpu"
    result = _kernel(func, bool(pretends))(*held_args, **held_kwargs)
    if func in _COPIES:
        return args[0]
    return tree_map(_pretend, result) if on_device else result


def _kernel(func: Callable[..., Any], on_device: bool) -> Callable[..., Any]:
    """For an op of lamina on the device: the same op on the emulator, or the refusal of the CUDA key."""
    namespace, _, name = str(func).partition(".")
    if not on_device or namespace != "lamina":
        return func
    name = name.partition(".")[0]
    if name not in _CUDA_OPS:
        raise ValueError(f"lamina::{name}: on the CPU only")
    kernel: Callable[..., Any] = getattr(emu_ops(), name)
    return kernel


def _held(leaf: Any) -> Any:
    return leaf.held if isinstance(leaf, PretendTensor) else leaf


def _pretend(leaf: Any) -> Any:
    is_plain = isinstance(leaf, torch.Tensor) and not isinstance(leaf, PretendTensor)
    return PretendTensor(leaf) if is_plain else leaf


@contextmanager
def pretend_cuda() -> Iterator[torch.device]:
    """The device, inside; needs the test-only library (emu_ops)."""
    # torch.tensor(..., device=...) makes a CPU tensor first, and moves it.
    torch._C._set_only_lift_cpu_tensors(True)
    # Module.to assigns parameters: the default, to give an old one new data, cannot change its class.
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        # Autograd asks for the device guard as well; lamina is for inference.
        with (
            emulated_gpu(80, EMULATOR_SMS),
            torch.no_grad(),
            mock.patch.object(torch.cuda, "_lazy_init", lambda: None),
            _Mode(),
        ):
            yield DEVICE
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
        torch._C._set_only_lift_cpu_tensors(False)
