"""Layers of AutoGPTQ and GPTQModel (quant_method "gptq") and of AutoAWQ's GEMM format ("awq")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lamina.checkpoint.formats.layer import FLOATS, Get, Layer, Spec, groups_of
from lamina.checkpoint.formats.words import AWQ_ORDER, unpack_columns, unpack_rows
from lamina.nn.gptq_tensors import CHECKPOINT_FORMATS, unpack_gptq
from lamina.quant import QuantizedInt4

INTS = (torch.int32,)


class Gptq:
    """4 bits as they are, 8 bits as values. qzeros_borrow is that of Int4Linear.from_gptq."""

    def __init__(self, config: Mapping[str, Any], qzeros_borrow: bool | None = None) -> None:
        self.bits = int(config.get("bits", 4))
        self.group = int(config.get("group_size", -1))
        self.checkpoint_format = config.get("checkpoint_format") or "gptq"
        self.qzeros_borrow = qzeros_borrow
        if self.bits not in (4, 8):
            raise ValueError(f"bits is {self.bits}; allowed: 4, 8")
        if self.checkpoint_format not in CHECKPOINT_FORMATS:
            allowed = ", ".join(repr(name) for name in CHECKPOINT_FORMATS)
            raise ValueError(f"checkpoint_format is {self.checkpoint_format!r}; allowed: {allowed}")

    def is_packed(self, name: str, own: frozenset[str]) -> bool:
        return "qweight" in own

    def specs(self, name: str, n: int, k: int, own: frozenset[str]) -> Mapping[str, Spec]:
        groups, per_word = groups_of(k, self.group), 32 // self.bits
        return {
            "qweight": Spec(INTS, ((-(-k // per_word), n),)),
            "qzeros": Spec(INTS, ((groups, -(-n // per_word)),)),
            "scales": Spec(FLOATS, ((groups, n),)),
            "g_idx": Spec(INTS, ((k,),), is_needed=False),
        }

    def read(self, name: str, n: int, k: int, get: Get, own: frozenset[str]) -> Layer:
        g_idx = get("g_idx") if "g_idx" in own else None
        if self.bits == 4:
            return Layer(
                unpack_gptq(
                    get("qweight"),
                    get("qzeros"),
                    get("scales"),
                    g_idx,
                    self.checkpoint_format,
                    self.qzeros_borrow,
                )
            )
        q = unpack_rows(get("qweight"), 8, k).T
        zero = unpack_columns(get("qzeros"), 8, n)
        if self.checkpoint_format == "gptq":
            zero = zero + 1  # 255 is 0
        group = max(k, 1) if self.group == -1 else self.group
        index = torch.arange(k) // group if g_idx is None or not bool(g_idx.any()) else g_idx.long()
        scale = get("scales").float()
        w = (q.float() - zero.float()[index].T) * scale[index].T
        return Layer(w, stored=f"8-bit integers in groups of {self.group} (gptq)")


class Awq:
    """AutoAWQ's version "gemm", 4 bits."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        version = str(config.get("version", "gemm")).lower()
        bits = int(config.get("bits", config.get("w_bit", 4)))
        self.group = int(config.get("group_size", config.get("q_group_size", 128)))
        if version != "gemm":
            raise ValueError(f"version is {version!r}; allowed: 'gemm'")
        if bits != 4:
            raise ValueError(f"bits is {bits}; allowed: 4")

    def is_packed(self, name: str, own: frozenset[str]) -> bool:
        return "qweight" in own

    def specs(self, name: str, n: int, k: int, own: frozenset[str]) -> Mapping[str, Spec]:
        groups, words = groups_of(k, self.group), -(-n // 8)
        zeros = Spec(INTS, ((groups, words),), is_needed=False)
        return {"qweight": Spec(INTS, ((k, words),)), "qzeros": zeros, "scales": Spec(FLOATS, ((groups, n),))}

    def read(self, name: str, n: int, k: int, get: Get, own: frozenset[str]) -> Layer:
        q = unpack_columns(get("qweight"), 4, n, AWQ_ORDER).T.contiguous()
        zero = unpack_columns(get("qzeros"), 4, n, AWQ_ORDER) if "qzeros" in own else None
        group = max(k, 1) if self.group == -1 else self.group
        return Layer(QuantizedInt4(q, get("scales"), zero, group))
