"""The folder of a compressed model: the names of its files, and how they are read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
SHARDS = "model-?????-of-?????.safetensors"
METHOD = "lamina"
FORMAT_VERSION = 1


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files in a folder, and their index."""
    found = [folder / WEIGHTS, folder / INDEX, *folder.glob(SHARDS)]
    return sorted(path for path in found if path.exists())


def guard(layer: str) -> str:
    """The name of a packed layer's float weight, under which an empty tensor is stored.

    A loader that takes the files for a float model then finds a weight of the wrong shape and refuses the
    files. Without the empty tensor it could only warn and leave the layer with random weights.
    """
    return f"{layer}.weight"


def quantization_of(folder: Path) -> dict[str, Any] | None:
    """The quantization_config of a folder, or None where there is none."""
    path = folder / CONFIG
    if not path.exists():
        return None
    found = read_json(path).get("quantization_config")
    return found if isinstance(found, dict) else None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError if the file holds anything else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(found).__name__}")
    return found


class Folder(NamedTuple):
    """An open folder that save_compressed has written. A tensor is read only when it is asked for."""

    path: Path
    modules: dict[str, dict[str, Any]]  # the entry of each packed layer: lamina.checkpoint.description
    ties: dict[str, str]  # other name of a tensor -> the name under which it is stored
    transient: frozenset[str]  # stored buffers that are not in the state dict
    opened: dict[str, Any]  # name of a stored tensor -> the open file that holds it

    def tensor(self, name: str) -> Tensor:
        """The tensor of this name, tied names included; it is mapped into memory and not yet read."""
        stored = self.ties.get(name, name)
        found: Tensor = self.opened[stored].get_tensor(stored)
        return found

    @property
    def names(self) -> set[str]:
        """All names of tensors, tied names included."""
        return {*self.opened, *self.ties}


def open_folder(folder: Path) -> Folder:
    """Opens what save_compressed wrote; checks config.json, and that each tensor it names is stored.

    Raises ValueError for a folder of another origin, another format version or a damaged file.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"load_compressed: {folder} is not a folder")
    config = quantization_of(folder)
    method = None if config is None else config.get("quant_method")
    if config is None or method != METHOD:
        raise ValueError(
            f"load_compressed: quantization_config.quant_method in {folder / CONFIG} must be {METHOD!r}, "
            f"got {method!r}; use a folder that lamina.save_compressed has written"
        )
    version = config.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"load_compressed: {folder} has format_version {version!r}, written by lamina "
            f"{config.get('lamina_version')}; this version of lamina reads {FORMAT_VERSION}"
        )
    modules, ties = config.get("modules"), config.get("ties")
    transient = config.get("transient_buffers")
    if (
        not isinstance(modules, dict)
        or not isinstance(ties, dict)
        or not isinstance(transient, list)
        or not all(isinstance(name, str) for name in (*ties.values(), *transient))
    ):
        raise ValueError(
            f"load_compressed: quantization_config in {folder / CONFIG} is damaged: modules and ties must be "
            "objects, transient_buffers a list, of names"
        )
    guards = {guard(name) for name in modules}
    stored = open_tensors(folder, "load_compressed")
    opened = {name: file for name, file in stored.items() if name not in guards}
    if lost := sorted({*ties.values(), *transient} - {*opened, *ties}):
        raise ValueError(
            f"load_compressed: {folder} lacks the tensor {lost[0]!r}, which its config.json names"
        )
    return Folder(folder, modules, ties, frozenset(transient), opened)


def open_tensors(folder: Path, op: str) -> dict[str, Any]:
    """Maps the name of each stored tensor to the open file that holds it. Errors begin with `op`."""
    if not (folder / INDEX).exists():
        file = open_file(folder / WEIGHTS, op)
        return {name: file for name in file.keys()}  # noqa: SIM118  (the file cannot be iterated)
    places = read_json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(Path(str(name)).name == name for name in places.values()):
        raise ValueError(
            f"{op}: weight_map in {folder / INDEX} must name a file of the folder for each tensor"
        )
    files = {name: open_file(folder / name, op) for name in _unique(places.values())}
    held = {name: set(file.keys()) for name, file in files.items()}
    for tensor, name in places.items():
        if tensor not in held[name]:
            raise ValueError(f"{op}: {folder / name} lacks {tensor!r}, which {INDEX} names")
    return {tensor: files[name] for tensor, name in places.items()}


def open_file(path: Path, op: str) -> Any:
    """An open safetensors file, mapped into memory. Errors begin with `op`."""
    safe_open, error_type = import_safetensors(op)
    try:
        return safe_open(path, framework="pt", device="cpu")
    except FileNotFoundError:
        raise ValueError(f"{op}: {path} is missing") from None
    except error_type as error:
        raise ValueError(f"{op}: {path} is damaged or cut off: {error}") from error


def import_safetensors(op: str) -> tuple[Any, type[Exception]]:
    """The function safe_open, and the exception that it raises for a damaged file."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise ImportError(f"{op} needs safetensors: pip install 'lamina[save]'") from None
    return safe_open, SafetensorError


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
