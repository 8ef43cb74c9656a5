"""Models of llama.cpp: a .gguf file, whose tensors get the names that transformers gives them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lamina.checkpoint.formats.gguf_file import GgufFile, Stored, read_gguf
from lamina.checkpoint.formats.layer import Get, Layer, Spec
from lamina.checkpoint.sources import OP, Source, layers_of
from lamina.checkpoint.tensors import slots
from lamina.compression.candidates import is_linear
from lamina.quant import QuantizedInt4

GROUP = 32  # input features of a block
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
PAIRED = ("llama",)  # the converter moves rows of q and k, so that rotary pairs are neighbours
PLAIN = ("qwen2", "qwen3")  # the converter keeps all rows
CONSTANTS = ("rope_freqs.weight",)
BLOCKS = "blocks"  # in place of "weight" in the name of a tensor: its bytes [n, bytes of a row]
NAMES = {
    "embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


class Gguf:
    """Q4_0 and Q4_1 as they are; other types as values."""

    def __init__(self, kinds: Mapping[str, str], linear: frozenset[str]) -> None:
        self._kinds = kinds  # name of a tensor of the model -> type of its blocks
        self._linear = linear  # names of the linear layers of the model

    def is_packed(self, name: str, own: frozenset[str]) -> bool:
        return name in self._linear and self._kinds.get(f"{name}.weight", "F32") not in FLOATS

    def specs(self, name: str, n: int, k: int, own: frozenset[str]) -> Mapping[str, Spec]:
        return {"weight": Spec((torch.float32,), ((n, k),))}

    def read(self, name: str, n: int, k: int, get: Get, own: frozenset[str]) -> Layer:
        kind = self._kinds[f"{name}.weight"]
        if kind == "Q4_0":
            return Layer(q4_0(get(BLOCKS)))
        return Layer(q4_1(get(BLOCKS))) if kind == "Q4_1" else Layer(get("weight"), stored=f"{kind} (gguf)")


def q4_0(rows: Tensor) -> QuantizedInt4:
    """Blocks of 18 bytes: d f16, then 16 bytes with the codes of features i and i + 16; w = d (q - 8)."""
    blocks = rows.view(len(rows), -1, 18)
    return QuantizedInt4(_codes(blocks[:, :, 2:]), _halves(blocks, 0).T.contiguous(), None, GROUP)


def q4_1(rows: Tensor) -> QuantizedInt4:
    """Blocks of 20 bytes: d f16, m f16, then codes as in q4_0; w = d q + m, so the zero point is -m / d.

    A block with d = 0 holds m everywhere: all its codes become 1, with scale m and zero point 0.
    """
    blocks = rows.view(len(rows), -1, 20)
    q, d, m = _codes(blocks[:, :, 4:]), _halves(blocks, 0).float(), _halves(blocks, 2).float()
    is_flat = d == 0
    q.view(len(rows), -1, GROUP)[is_flat] = 1
    scale = torch.where(is_flat, m, d)
    zero_point = torch.where(is_flat, 0, -m / scale)
    return QuantizedInt4(q, scale.T.contiguous(), zero_point.T.contiguous(), GROUP)


def values_of(stored: Stored) -> Tensor:
    """The elements, as floats; a float type keeps its dtype."""
    blocks = stored.blocks
    if stored.kind in FLOATS:
        return blocks.contiguous().view(FLOATS[stored.kind]).view(stored.shape)
    rows = blocks.reshape(-1, blocks.shape[-1])
    if stored.kind == "Q4_0":
        values = q4_0(rows).dequantize()
    elif stored.kind == "Q4_1":  # in the order of operations of the file's definition
        held = rows.view(len(rows), -1, 20)
        q = _codes(held[:, :, 4:]).view(len(rows), -1, GROUP)
        values = _halves(held, 0).float()[:, :, None] * q + _halves(held, 2).float()[:, :, None]
    elif stored.kind == "Q8_0":
        held = rows.view(len(rows), -1, 34)
        values = _halves(held, 0).float()[:, :, None] * held[:, :, 2:].view(torch.int8)
    else:
        values = _dequantized(stored.kind, rows)
    return values.reshape(stored.shape)


def _dequantized(kind: str, rows: Tensor) -> Tensor:
    try:
        import gguf
    except ImportError:
        raise ImportError(f"{OP}: blocks of {kind} need gguf: pip install 'lamina[gguf]'") from None
    values: Tensor = torch.from_numpy(gguf.dequantize(rows.numpy(), gguf.GGMLQuantizationType[kind]))
    return values


def _codes(nibbles: Tensor) -> Tensor:
    """[n, blocks, 16] bytes as codes [n, blocks * 32]."""
    n, blocks, half = nibbles.shape
    codes = torch.empty(n, blocks, 2, half, dtype=torch.uint8, device=nibbles.device)
    torch.bitwise_and(nibbles, 15, out=codes[:, :, 0])
    torch.bitwise_right_shift(nibbles, 4, out=codes[:, :, 1])
    return codes.view(n, -1)


def _halves(blocks: Tensor, at: int) -> Tensor:
    """The f16 at byte `at` of each block: [n, blocks]."""
    return blocks[:, :, at : at + 2].contiguous().view(torch.float16)[:, :, 0]


def open_gguf(path: Path, model: nn.Module) -> Source:
    """Opens a .gguf file for a model of transformers. Raises ValueError for a damaged file."""
    try:
        file = read_gguf(path)
    except ValueError as error:
        raise ValueError(f"{OP}: {path} is damaged or unknown: {error}") from error
    arch = file.fields.get("general.architecture")
    if arch not in (*PAIRED, *PLAIN):
        raise ValueError(f"{OP}: architecture of {path} is {arch!r}; allowed: {', '.join((*PAIRED, *PLAIN))}")
    heads = _heads(path, file, arch) if arch in PAIRED else {}
    found = {slot.name: _file_name(slot.name) for slot in slots(model)}
    names = {name: own for name, own in found.items() if own in file.tensors}

    def tensor(name: str) -> Tensor:
        layer, _, part = name.rpartition(".")
        stored = file.tensors[names[f"{layer}.weight" if part == BLOCKS else name]]
        values = stored.blocks if part == BLOCKS else values_of(stored)
        count = heads.get(layer.rpartition(".")[2])
        return values if count is None else values[_unpaired(len(values), count)]

    def meta(name: str) -> Tensor:
        return torch.empty(file.tensors[names[name]].shape, device="meta")

    kinds = {name: file.tensors[own].kind for name, own in names.items()}
    linear = frozenset(
        name for name, module in model.named_modules(remove_duplicate=False) if is_linear(module)
    )
    for own in file.tensors.keys() - set(names.values()) - set(CONSTANTS):
        names[own] = own  # load_checkpoint names it as unknown to the model
    return Source(frozenset(names), layers_of(names), tensor, meta, Gguf(kinds, linear))


def _file_name(name: str) -> str | None:
    """The name in the file of a tensor of the model, or None."""
    stem, _, part = name.removeprefix("model.").rpartition(".")
    block = re.fullmatch(r"layers\.(\d+)\.(.*)", stem)
    own = NAMES.get(stem if block is None else block[2])
    if own is None:
        return None
    return f"{own}.{part}" if block is None else f"blk.{block[1]}.{own}.{part}"


def _heads(path: Path, file: GgufFile, arch: str) -> dict[str, int]:
    """The number of heads of the layers whose rows the converter has moved."""
    heads = file.fields.get(f"{arch}.attention.head_count")
    if not isinstance(heads, int):
        raise ValueError(f"{OP}: {path} lacks the field {arch}.attention.head_count")
    return {"q_proj": heads, "k_proj": int(file.fields.get(f"{arch}.attention.head_count_kv", heads))}


def _unpaired(rows: int, heads: int) -> Tensor:
    """Where each row of a model's q or k is in the file, which keeps the halves of a head interleaved."""
    return torch.arange(rows).view(heads, rows // heads // 2, 2).transpose(1, 2).flatten()
