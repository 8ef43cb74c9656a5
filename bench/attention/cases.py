"""Cases of paged_attention: the requests of each scenario, and what a user may choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, cast

import torch
from torch import Tensor

from bench.cases import BenchError, check_sizes, title_of

SCENARIOS = ("decode", "verify", "prefill", "mixed", "skewed")
KV_DTYPES = ("f32", "bf16", "f16", "int8", "fp8")
LAYOUTS = ("hnd", "nhd")
BATCH = {"prefill": 1, "skewed": 16}  # where --batch is not given; 8 elsewhere
CHUNK_OF_PREFILL = 512  # tokens that a mixed batch prefills
LONG, SHORT = 8, 16  # skewed: one context LONG times as long, the others a SHORTth


@dataclass(frozen=True)
class Request:
    q_len: int
    seq_len: int  # counts the q_len tokens


@dataclass(frozen=True)
class AttentionCase:
    """One batch of requests and the cache that they read."""

    op: str
    device: str
    scenario: str
    dtype: str  # of queries and output
    kv_dtype: str
    page: int
    batch: int
    context: int
    heads: int
    kv_heads: int
    head_dim: int
    tokens: int  # of a request that verifies drafts
    layout: str
    tree: bool = False  # the drafts are a binary tree, not a chain

    def to_json(self) -> dict[str, object]:
        shape: dict[str, object] = {"scenario": self.scenario}
        if self.scenario in ("verify", "mixed"):
            shape["tokens"] = self.tokens
        if self.scenario == "verify":
            shape["tree"] = self.tree
        shape.update(dtype=self.dtype, kv_dtype=self.kv_dtype, batch=self.batch, context=self.context)
        shape.update(heads=f"{self.heads}/{self.kv_heads}", head_dim=self.head_dim)
        shape.update(page=self.page, layout=self.layout)
        return shape

    def title(self) -> str:
        return title_of(self.to_json())

    @property
    def operands(self) -> tuple[object, ...]:
        return (self,)

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads

    def requests(self) -> list[Request]:
        """mixed: half of the requests decode, one prefills the end of its prompt, others verify."""
        if self.scenario == "decode":
            return [Request(1, self.context)] * self.batch
        if self.scenario == "verify":
            return [Request(self.tokens, self.context)] * self.batch
        if self.scenario == "prefill":
            return [Request(self.context, self.context)] * self.batch
        if self.scenario == "skewed":
            short = Request(1, max(1, self.context // SHORT))
            return [Request(1, self.context * LONG)] + [short] * (self.batch - 1)
        decode = self.batch // 2
        return [
            *[Request(1, self.context)] * decode,
            Request(min(CHUNK_OF_PREFILL, self.context), self.context),
            *[Request(self.tokens, self.context)] * (self.batch - decode - 1),
        ]


def binary_tree(tokens: int) -> Tensor:
    """The ancestors of each node, and the node itself; node i hangs on node (i - 1) // 2."""
    seen = torch.eye(tokens, dtype=torch.bool)
    for node in range(1, tokens):
        seen[node] |= seen[(node - 1) // 2]
    return seen


class Options(TypedDict):
    """The options of a case, as a user gives them; None is the default of the scenario or dtype."""

    scenario: str
    kv_dtype: str | None
    page: int
    batch: int | None
    context: int
    heads: str
    head_dim: int
    tokens: int
    layout: str


DEFAULTS: Options = {
    "scenario": "decode", "kv_dtype": None, "page": 16, "batch": None, "context": 4096, "heads": "32/8",
    "head_dim": 128, "tokens": 8, "layout": "hnd",
}  # fmt: skip
NUMBERS = ("page", "batch", "context", "head_dim", "tokens")


def parse_options(text: str) -> list[Options]:
    """ "scenario=verify tokens=16; scenario=prefill batch=1" as the options of two benchmarks."""
    found = []
    for part in text.split(";"):
        given: dict[str, Any] = dict(DEFAULTS)
        for word in part.split():
            name, _, value = word.partition("=")
            if name not in given or not value or (name in NUMBERS and not value.isdigit()):
                raise BenchError(f"--cases: got {word!r}; allowed: NAME=VALUE of {', '.join(given)}")
            given[name] = int(value) if name in NUMBERS else value
        found.append(cast(Options, given))
    return found


def _chosen(option: str, text: str, allowed: Sequence[str]) -> list[str]:
    chosen = [part.strip() for part in text.split(",") if part.strip()]
    for name in chosen:
        if name not in allowed:
            raise BenchError(f"--{option}: got {name!r}; allowed: {', '.join(allowed)}")
    return chosen


def make_cases(op: str, device: str, dtype: str, given: Options) -> list[AttentionCase]:
    """A case for each scenario and dtype of the cache, two for verify: a chain and a tree."""
    scenarios = _chosen("scenario", given["scenario"], SCENARIOS)
    kv_dtypes = _chosen("kv-dtype", given["kv_dtype"] or dtype, KV_DTYPES)
    (layout,) = _chosen("layout", given["layout"], LAYOUTS) or [LAYOUTS[0]]
    try:
        heads, kv_heads = (int(part) for part in given["heads"].split("/"))
    except ValueError:
        raise BenchError(f"--heads: got {given['heads']!r}; allowed: heads/kv_heads, as 32/8") from None
    check_sizes(
        page=given["page"], context=given["context"], heads=min(heads, kv_heads),
        head_dim=given["head_dim"], tokens=given["tokens"],
    )  # fmt: skip
    if heads % kv_heads:
        raise BenchError(f"--heads: got {given['heads']!r}; heads must be a multiple of kv_heads")
    if given["tokens"] > given["context"]:
        raise BenchError(f"--tokens: got {given['tokens']}; a context has {given['context']}")
    cases = []
    for scenario in scenarios:
        batch = BATCH.get(scenario, 8) if given["batch"] is None else given["batch"]
        if batch < (3 if scenario == "mixed" else 1):
            raise BenchError(
                f"--batch: got {batch}; {scenario} needs at least {3 if scenario == 'mixed' else 1}"
            )
        cases += [
            AttentionCase(
                op, device, scenario, dtype, kv_dtype, given["page"], batch, given["context"], heads,
                kv_heads, given["head_dim"], given["tokens"], layout, tree,
            )
            for kv_dtype in kv_dtypes
            for tree in ((False, True) if scenario == "verify" else (False,))
        ]  # fmt: skip
    return cases
