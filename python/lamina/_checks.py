"""Checks of arguments for the Python functions and the fake kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


def call(op: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Calls op. torch 2.15 raises lamina's ValueErrors as RuntimeErrors; this turns them back."""
    try:
        return op(*args, **options)
    except NotImplementedError:  # torch names the backend that has no kernel, but no argument
        _require_dense(op, *args, **options)
        raise
    except RuntimeError as error:
        if str(error).startswith("lamina"):
            raise ValueError(str(error)) from None
        if str(error).startswith("out of memory"):
            raise torch.OutOfMemoryError(str(error)) from None
        raise


def _require_dense(op: Callable[..., Any], *args: Any, **options: Any) -> None:
    """Every tensor must have strides: a sparse one has none."""
    overload: Any = getattr(op, "default", op)  # `op` may be one
    schema = overload._schema
    names = [argument.name for argument in schema.arguments]
    for name, value in {**dict(zip(names, args, strict=False)), **options}.items():
        if isinstance(value, Tensor) and value.layout is not torch.strided:
            raise ValueError(f"{schema.name}: {name} must be a dense tensor, got {value.layout}")


def require_tensors(op: str, **arguments: object) -> None:
    """Each argument must be a tensor. torch lets None pass for one, and fails without its name."""
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"lamina::{op}: {name} must be a torch.Tensor, got {_kind(value)}")


def require_optional_tensors(op: str, **arguments: object) -> None:
    """Each argument must be a tensor or None."""
    for name, value in arguments.items():
        if value is not None and not isinstance(value, Tensor):
            raise TypeError(f"lamina::{op}: {name} must be a torch.Tensor or None, got {_kind(value)}")


def require_tensor_list(op: str, name: str, value: object) -> None:
    """The argument must be a list or a tuple of tensors."""
    if not isinstance(value, list | tuple):
        raise TypeError(f"lamina::{op}: {name} must be a list of torch.Tensor, got {_kind(value)}")
    require_tensors(op, **{f"{name}[{i}]": item for i, item in enumerate(value)})


def require_str(op: str, name: str, value: object) -> None:
    """The argument must be a str."""
    if not isinstance(value, str):
        raise TypeError(f"lamina::{op}: {name} must be a str, got {_kind(value)}")


def require_optional_str(op: str, name: str, value: object) -> None:
    """The argument must be a str or None."""
    if value is not None and not isinstance(value, str):
        raise TypeError(f"lamina::{op}: {name} must be a str or None, got {_kind(value)}")


def require_int(op: str, name: str, value: object) -> None:
    """The argument must be an int that fits in 64 bits."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"lamina::{op}: {name} must be an int, got {_kind(value)}")
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"lamina::{op}: {name} = {value}; must fit in 64 bits")


def require_optional_int(op: str, name: str, value: object) -> None:
    """The argument must be an int or None."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise TypeError(f"lamina::{op}: {name} must be an int or None, got {_kind(value)}")
    if value is not None and not -(2**63) <= value < 2**63:
        raise ValueError(f"lamina::{op}: {name} = {value}; must be None or fit in 64 bits")


def require_float(op: str, name: str, value: object) -> None:
    """The argument must be a float or an int."""
    if not isinstance(value, float | int) or isinstance(value, bool):
        raise TypeError(f"lamina::{op}: {name} must be a float, got {_kind(value)}")


def require_dtype(op: str, name: str, value: object) -> None:
    """The argument must be a torch.dtype."""
    if not isinstance(value, torch.dtype):
        raise TypeError(f"lamina::{op}: {name} must be a torch.dtype, got {_kind(value)}")


def require_bool(op: str, name: str, value: object) -> None:
    """The argument must be a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"lamina::{op}: {name} must be a bool, got {_kind(value)}")


def _kind(value: object) -> str:
    """The value where it is short, else its type."""
    if value is None:
        return "None"
    text = repr(value)
    name = type(value).__name__
    return f"{name} {text}" if len(text) <= 40 and "\n" not in text else name


def require_2d(op: str, name: str, tensor: Tensor, dims: str) -> None:
    """`tensor` must be 2-D; the error of a fake kernel has the words of the C++ check."""
    if tensor.dim() != 2:
        shape = ", ".join(str(size) for size in tensor.shape)
        raise ValueError(f"lamina::{op}: {name} must be 2-D {dims}, got {tensor.dim()}-D [{shape}]")


def require_one_device(op: str, arguments: Mapping[str, object]) -> None:
    """Every tensor must be on the device of the first one.

    A fake kernel that accepted two devices would promise a result that the real kernel refuses to compute.
    """
    tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    device = next(iter(tensors.values())).device
    for name, tensor in tensors.items():
        if tensor.device != device:
            raise ValueError(
                f"lamina::{op}: {name} must be on {device} like the first argument, got {tensor.device}"
            )
