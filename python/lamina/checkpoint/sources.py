"""The tensors of a checkpoint of another quantiser, by the names of the model, and its format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from lamina.checkpoint.folder import METHOD, open_tensors, quantization_of, read_json
from lamina.checkpoint.formats.compressed_tensors import CompressedTensors
from lamina.checkpoint.formats.gptq import Awq, Gptq
from lamina.checkpoint.formats.layer import Format, Layer, Spec

OP = "load_checkpoint"


class Source(NamedTuple):
    """An open checkpoint. A tensor is read only where its values are used."""

    names: frozenset[str]
    layers: dict[str, frozenset[str]]  # name of a layer -> the last parts of the names of its tensors
    tensor: Callable[[str], Tensor]
    meta: Callable[[str], Tensor]  # its shape and dtype
    format: Format


class Dense:
    """A checkpoint of floats."""

    def is_packed(self, name: str, own: frozenset[str]) -> bool:
        return False

    def specs(self, name: str, n: int, k: int, own: frozenset[str]) -> Mapping[str, Spec]:
        raise NotImplementedError

    def read(self, name: str, n: int, k: int, get: Any, own: frozenset[str]) -> Layer:
        raise NotImplementedError


def open_source(path: Path, model: nn.Module, qzeros_borrow: bool | None) -> Source:
    """Opens a folder or a .gguf file. Raises ValueError for a format that is not read."""
    if path.suffix == ".gguf":
        from lamina.checkpoint.formats.gguf import open_gguf

        return open_gguf(path, model)
    if not path.is_dir():
        raise FileNotFoundError(f"{OP}: {path} is neither a folder nor a .gguf file")
    opened = open_tensors(path, OP)

    def tensor(name: str) -> Tensor:
        found: Tensor = opened[name].get_tensor(name)
        return found

    def meta(name: str) -> Tensor:
        return tensor(name).to("meta")  # the tensor is mapped, and not read

    return Source(frozenset(opened), layers_of(opened), tensor, meta, _format_of(path, qzeros_borrow))


def layers_of(names: Iterable[str]) -> dict[str, frozenset[str]]:
    """The tensors of each module: name of the module -> the last parts of their names."""
    found: dict[str, set[str]] = {}
    for name in names:
        module, _, part = name.rpartition(".")
        found.setdefault(module, set()).add(part)
    return {module: frozenset(parts) for module, parts in found.items()}


def _format_of(folder: Path, qzeros_borrow: bool | None) -> Format:
    config = quantization_of(folder)
    if config is None and (folder / "config.json").exists():
        old = read_json(folder / "config.json").get("compression_config")  # compressed-tensors before 0.6
        config = old if isinstance(old, dict) else None
    if config is None and (folder / "quantize_config.json").exists():
        config = {"quant_method": "gptq", **read_json(folder / "quantize_config.json")}
    method = None if config is None else config.get("quant_method", "compressed-tensors")
    try:
        if config is None:
            return Dense()
        if method in ("compressed-tensors", "sparseml"):
            return CompressedTensors(config)
        if method == "gptq":
            return Gptq(config, qzeros_borrow)
        if method == "awq":
            return Awq(config)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{OP}: quantization_config in {folder}: {error}") from error
    if method == METHOD:
        raise ValueError(f"{OP}: {folder} was written by lamina.save_compressed; use lamina.load_compressed")
    raise ValueError(
        f"{OP}: quant_method in {folder} is {method!r}; allowed: 'compressed-tensors', 'gptq', 'awq', or none"
    )
