"""Models of llama.cpp: a .gguf file, whose tensors get the names that transformers gives them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lamina.checkpoint.formats.layer import Get, Layer, Spec
from lamina.checkpoint.sources import OP, Source, layers_of
from lamina.checkpoint.tensors import slots
from lamina.compression.candidates import is_linear
from lamina.quant import QuantizedInt4

GROUP = 32  # input features of a block
FLOATS = ("F32", "F16", "BF16")
PAIRED = ("llama",)  # the converter moves rows of q and k, so that rotary pairs are neighbours
PLAIN = ("qwen2", "qwen3")  # the converter keeps all rows
CONSTANTS = ("rope_freqs.weight",)
BLOCKS = "blocks"  # in place of "weight" in the name of a tensor: its bytes [n, bytes of a row]


class Gguf:
    """Q4_0 and Q4_1 as they are; other types as values."""

    def __init__(self, types: Mapping[str, str], linear: frozenset[str]) -> None:
        self._types = types  # name of a tensor of the model -> type of its blocks
        self._linear = linear  # names of the linear layers of the model

    def is_packed(self, name: str, own: frozenset[str]) -> bool:
        return name in self._linear and self._types.get(f"{name}.weight", "F32") not in FLOATS

    def specs(self, name: str, n: int, k: int, own: frozenset[str]) -> Mapping[str, Spec]:
        return {"weight": Spec((torch.float32,), ((n, k),))}

    def read(self, name: str, n: int, k: int, get: Get, own: frozenset[str]) -> Layer:
        kind = self._types[f"{name}.weight"]
        if kind in AS_THEY_ARE:
            return Layer(AS_THEY_ARE[kind](get(BLOCKS)))
        return Layer(get("weight"), stored=f"{kind} (gguf)")


def q4_0(rows: Tensor) -> QuantizedInt4:
    """Blocks of 18 bytes: d f16, then 16 bytes with the codes of features i and i + 16; w = d (q - 8)."""
    blocks = rows.unflatten(1, (-1, 18))  # type: ignore[no-untyped-call]
    return QuantizedInt4(_codes(blocks[:, :, 2:]), _halves(blocks[:, :, :2]), None, GROUP)


def q4_1(rows: Tensor) -> QuantizedInt4:
    """Blocks of 20 bytes: d f16, m f16, then codes as in q4_0; w = d q + m, so the zero point is -m / d.

    A block with d = 0 holds m everywhere: all its codes become 1, with scale m and zero point 0.
    """
    blocks = rows.unflatten(1, (-1, 20))  # type: ignore[no-untyped-call]
    q, d, m = _codes(blocks[:, :, 4:]), _halves(blocks[:, :, :2]).float(), _halves(blocks[:, :, 2:4]).float()
    is_flat = d == 0
    scale = torch.where(is_flat, m, d)
    zero_point = torch.where(is_flat, 0, -m / torch.where(is_flat, 1, d))
    flat = is_flat.T.repeat_interleave(GROUP, 1)
    return QuantizedInt4(torch.where(flat, 1, q), scale, zero_point, GROUP)


def _codes(nibbles: Tensor) -> Tensor:
    """[n, blocks, 16] bytes as codes [n, blocks * 32]."""
    return torch.cat([nibbles & 15, nibbles >> 4], 2).flatten(1)


def _halves(two_bytes: Tensor) -> Tensor:
    """[n, blocks, 2] bytes as f16 [blocks, n]."""
    return two_bytes.contiguous().view(torch.float16)[:, :, 0].T.contiguous()


AS_THEY_ARE = {"Q4_0": q4_0, "Q4_1": q4_1}


def open_gguf(path: Path, model: nn.Module) -> Source:
    """Opens a .gguf file for a model of transformers. Raises ValueError for a damaged file."""
    try:
        import gguf
    except ImportError:
        raise ImportError(f"{OP}: .gguf files need gguf: pip install 'lamina[gguf]'") from None
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError) as error:
        raise ValueError(f"{OP}: {path} is damaged or cut off: {error}") from error
    field = reader.get_field("general.architecture")
    arch = None if field is None else str(field.contents())
    if arch not in (*PAIRED, *PLAIN):
        raise ValueError(f"{OP}: architecture of {path} is {arch!r}; allowed: {', '.join((*PAIRED, *PLAIN))}")
    stored = {tensor.name: tensor for tensor in reader.tensors}
    names = _names(gguf, arch, _number(reader, f"{arch}.block_count"), model, stored)
    heads = _number(reader, f"{arch}.attention.head_count")
    kv_heads = _number(reader, f"{arch}.attention.head_count_kv", heads)

    def tensor(name: str) -> Tensor:
        layer, _, part = name.rpartition(".")
        held = stored[names[f"{layer}.weight" if part == BLOCKS else name]]
        values = held.data if part == BLOCKS else gguf.dequantize(held.data, held.tensor_type)
        kind = layer.rpartition(".")[2]
        if arch in PAIRED and kind in ("q_proj", "k_proj"):
            values = values[_unpaired(len(values), heads if kind == "q_proj" else kv_heads)]
        return torch.from_numpy(values if values.flags.writeable else values.copy())

    def meta(name: str) -> Tensor:
        return torch.empty(tuple(stored[names[name]].shape.tolist()[::-1]), device="meta")

    types = {name: stored[own].tensor_type.name for name, own in names.items()}
    linear = frozenset(
        name for name, module in model.named_modules(remove_duplicate=False) if is_linear(module)
    )
    for own in stored.keys() - set(names.values()) - set(CONSTANTS):
        names[own] = own  # load_checkpoint names it as unknown to the model
    return Source(frozenset(names), layers_of(names), tensor, meta, Gguf(types, linear))


def _names(
    gguf: Any, arch: str, blocks: int, model: nn.Module, stored: Mapping[str, object]
) -> dict[str, str]:
    """Name of a tensor of the model -> its name in the file."""
    known = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(known[arch], blocks)
    found = {slot.name: table.get_name(slot.name, try_suffixes=(".weight", ".bias")) for slot in slots(model)}
    return {name: own for name, own in found.items() if own in stored}


def _number(reader: Any, key: str, default: int | None = None) -> int:
    field = reader.get_field(key)
    if field is None and default is None:
        raise ValueError(f"{OP}: the file lacks {key}")
    return int(default if field is None else field.contents())  # type: ignore[arg-type]


def _unpaired(rows: int, heads: int) -> Any:
    """Where each row of a model's q or k is in the file, which keeps the halves of a head interleaved."""
    return torch.arange(rows).view(heads, rows // heads // 2, 2).transpose(1, 2).flatten().numpy()
