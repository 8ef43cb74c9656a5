"""The peers of paged_attention: torch's SDPA, onnxruntime's GroupQueryAttention and vLLM's CPU kernel.

They read what their users have: torch reads contiguous keys [requests, kv_heads, seq_len, head_dim],
onnxruntime the same as the buffer of past and present, vLLM its own paged cache. None has int8 or float8:
all get the numbers that lamina's cache stands for. Neighbouring requests of equal lengths are one call.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bench import machine
from bench.attention.cases import Request
from bench.attention.exact import Exact
from bench.attention.floor import peer_work
from bench.attention.inputs import DTYPES, Inputs
from bench.cases import Accuracy, Candidate, Context
from bench.peers import Array, Bound, OnnxSession, PeerUnavailable, onnx_model
from bench.roofline import Arithmetic


@dataclass(frozen=True)
class Group:
    """Neighbouring requests of equal lengths."""

    request: Request
    first: int  # of the requests
    count: int
    token: int  # the first of the batch

    def tokens(self) -> slice:
        return slice(self.token, self.token + self.count * self.request.q_len)

    def stack(self, inputs: Inputs, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values [count, kv_heads, seq_len, head_dim]."""
        own = slice(self.first, self.first + self.count)
        keys, values = (
            torch.stack([rows.to(dtype) for rows in all_rows[own]])
            for all_rows in (inputs.keys, inputs.values)
        )
        return keys, values


def groups_of(inputs: Inputs) -> list[Group]:
    found, first, starts = [], 0, inputs.starts()
    for request, same in groupby(inputs.requests):
        count = len(list(same))
        found.append(Group(request, first, count, starts[first]))
        first += count
    return found


def _calls(groups: list[Group]) -> str:
    return f"{len(groups)} calls of equal lengths" if len(groups) > 1 else "one call"


def _cache_bytes(inputs: Inputs, dtype: torch.dtype) -> int:
    return sum(2 * rows.data.numel() * dtype.itemsize for rows in inputs.keys)


def sdpa(inputs: Inputs, exact: Exact, context: Context, *, impl: str, name: str) -> Candidate:
    """name: of the dtype."""
    dtype = DTYPES[name]
    groups = groups_of(inputs)
    q = inputs.q.to(dtype)
    shape = (inputs.case.heads, inputs.case.head_dim)

    def make() -> list[tuple[Tensor, Tensor]]:
        return [group.stack(inputs, dtype) for group in groups]

    ring = context.rotation.ring((impl,), _cache_bytes(inputs, dtype), make)
    fixed: list[tuple[Tensor, dict[str, Any]]] = []
    for group in groups:
        request = group.request
        own = q[group.tokens()].view(group.count, request.q_len, *shape).transpose(1, 2)
        if request.q_len == 1:
            fixed.append((own, {}))
        elif request.q_len == request.seq_len and inputs.tree is None:
            fixed.append((own, {"is_causal": True}))
        else:  # is_causal would align the mask to the first key
            fixed.append((own, {"attn_mask": inputs.mask(request)}))

    def call() -> list[Tensor]:
        return [
            scaled_dot_product_attention(own, k, v, enable_gqa=True, **options)
            for (own, options), (k, v) in zip(fixed, next(ring), strict=True)
        ]

    def check() -> Accuracy:
        out = torch.cat([each.transpose(1, 2).reshape(-1, *shape) for each in call()])
        return exact.accuracy(out, "floats", dtype)

    arithmetic: Arithmetic = "f32" if dtype == torch.float32 else "bf16"
    return Candidate(
        impl,
        f"scaled_dot_product_attention, enable_gqa, of contiguous {name}: {_calls(groups)}",
        call,
        check,
        peer_work(inputs.case, arithmetic, dtype.itemsize),
        ring,
    )


def _onnxruntime(inputs: Inputs, exact: Exact, context: Context) -> Candidate:
    """GroupQueryAttention whose present is its past: the new keys are written over themselves."""
    case = inputs.case
    if inputs.tree is not None:
        raise PeerUnavailable("GroupQueryAttention has no mask of a tree")
    # Several new tokens behind a past are allowed for one request only.
    groups = [
        part
        for group in groups_of(inputs)
        for part in (
            [group]
            if group.request.q_len in (1, group.request.seq_len)
            else [
                Group(group.request, group.first + i, 1, group.token + i * group.request.q_len)
                for i in range(group.count)
            ]
        )
    ]
    width, kv_width = case.heads * case.head_dim, case.kv_heads * case.head_dim
    cache: list[int | str] = ["b", case.kv_heads, "past", case.head_dim]
    f32 = np.float32
    model = onnx_model(
        [
            (
                "GroupQueryAttention",
                ["q", "k", "v", "past_k", "past_v", "last", "length"],
                ["out", "present_k", "present_v"],
            )
        ],
        {
            "q": (f32, ["b", "s", width]),
            "k": (f32, ["b", "s", kv_width]),
            "v": (f32, ["b", "s", kv_width]),
            "past_k": (f32, cache),
            "past_v": (f32, cache),
            "last": (np.int32, ["b"]),
            "length": (np.int32, []),
        },
        {"out": (f32, ["b", "s", width]), "present_k": (f32, cache), "present_v": (f32, cache)},
        {},
        domain="com.microsoft",
        attributes={"num_heads": case.heads, "kv_num_heads": case.kv_heads},
    )

    def bind(group: Group) -> tuple[OnnxSession, Bound]:
        request, count = group.request, group.count
        k, v = group.stack(inputs, torch.float32)

        def new(rows: Tensor) -> Array:
            own: Array = rows[:, :, request.seq_len - request.q_len :].transpose(1, 2).flatten(2).numpy()
            return own

        given: dict[str, Array] = {
            "q": inputs.q[group.tokens()].float().view(count, request.q_len, width).numpy(),
            "k": new(k),
            "v": new(v),
            "past_k": k.numpy(),
            "past_v": v.numpy(),
            "last": np.full(count, request.seq_len - 1, np.int32),
            "length": np.array(request.seq_len, np.int32),
        }
        outputs: dict[str, Array] = {"out": np.zeros((count, request.q_len, width), f32)}
        same = {"present_k": "past_k", "present_v": "past_v"}
        session, bound = OnnxSession(model, context.threads), Bound(given, outputs, context.threads, same)
        session.bind(bound)
        return session, bound

    ring = context.rotation.ring(
        ("onnxruntime",),
        _cache_bytes(inputs, torch.float32),
        lambda: [bind(group) for group in groups],
    )

    def call() -> list[Bound]:
        copy = next(ring)
        for session, _ in copy:
            session.run()
        return [bound for _, bound in copy]

    def check() -> Accuracy:
        out = np.concatenate([bound.output("out").reshape(-1, case.heads, case.head_dim) for bound in call()])
        return exact.accuracy(torch.from_numpy(out), "floats", torch.float32)

    computes = f"GroupQueryAttention in f32, past and present one buffer: {_calls(groups)}"
    return Candidate("onnxruntime", computes, call, check, peer_work(case, "f32", 4), ring)


VLLM_PAGE = 128  # the stock page of its CPU backend


@lru_cache(maxsize=1)
def _vllm_ops() -> Any:
    """torch.ops._C of vLLM's library for this CPU; the Python package around it is not imported."""
    try:
        found = importlib.util.find_spec("vllm")
    except (ImportError, ValueError):
        found = None
    if found is None or not found.submodule_search_locations:
        raise PeerUnavailable("not installed: vllm")
    folder = Path(next(iter(found.submodule_search_locations)))
    flags = machine.visible_flags()
    # As vllm/platforms/cpu.py chooses.
    wide = "_C" if "avx512_bf16" in flags else "_C_AVX512"
    name = wide if "avx512f" in flags else "_C_AVX2"
    libraries = sorted(folder.glob(f"{name}.*so"))
    if not libraries:
        raise PeerUnavailable(f"vllm has no {name} library, the one of its CPU build")
    try:
        torch.ops.load_library(str(libraries[0]))  # type: ignore[no-untyped-call]
    except OSError as error:
        raise PeerUnavailable(str(error).splitlines()[0]) from error
    ops = torch.ops._C
    for needed in ("cpu_attention_with_kv_cache", "cpu_attn_reshape_and_cache", "get_scheduler_metadata"):
        if not hasattr(ops, needed):
            raise PeerUnavailable(f"vllm has no op {needed}")
    return ops


def _vllm_isa(dtype: torch.dtype, head_dim: int) -> str:
    """As vllm/v1/attention/backends/cpu_attn.py chooses."""
    if head_dim % 32 != 0:
        return "vec16"
    if dtype == torch.bfloat16 and "amx_tile" in machine.visible_flags() and torch.cpu._init_amx():
        return "amx"
    return "vec"


def _vllm(inputs: Inputs, exact: Exact, context: Context, *, impl: str) -> Candidate:
    """Its own cache and plan: the plan is made once for all layers of a step, so it is not timed."""
    ops = _vllm_ops()
    case, dtype = inputs.case, DTYPES[impl.removeprefix("vllm_")]
    isa = _vllm_isa(dtype, case.head_dim)
    if inputs.tree is not None:
        raise PeerUnavailable("its CPU kernel has no mask of a tree")
    q, out = inputs.q.to(dtype), torch.empty_like(inputs.q, dtype=dtype)
    starts = torch.tensor(inputs.starts(), dtype=torch.int32)
    seq_lens = torch.tensor([request.seq_len for request in inputs.requests], dtype=torch.int32)
    counts = [-(-request.seq_len // VLLM_PAGE) for request in inputs.requests]
    order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(VLLM_PAGE)).int()
    pages = torch.split(order, counts)
    table = torch.zeros(len(counts), max(counts), dtype=torch.int32)
    for row, own in zip(table, pages, strict=True):
        row[: len(own)] = own

    def make() -> tuple[Tensor, Tensor]:
        stock = torch.zeros(len(order), case.kv_heads, VLLM_PAGE, 2 * case.head_dim, dtype=dtype)
        k_cache, v_cache = stock.view(len(order), case.kv_heads, 2 * VLLM_PAGE, case.head_dim).chunk(2, 2)
        for keys, values, own in zip(inputs.keys, inputs.values, pages, strict=True):
            slots = torch.arange(len(keys.data))
            mapping = own[slots // VLLM_PAGE].long() * VLLM_PAGE + slots % VLLM_PAGE
            k, v = (rows.to(dtype).transpose(0, 1).contiguous() for rows in (keys, values))
            ops.cpu_attn_reshape_and_cache(k, v, k_cache, v_cache, mapping, isa, 1.0, 1.0, "auto")
        return k_cache, v_cache

    plan = ops.get_scheduler_metadata(
        len(counts), case.heads, case.kv_heads, case.head_dim, seq_lens, dtype, starts, True, -1, isa, True,
        None, "auto",
    )  # fmt: skip
    ring = context.rotation.ring((impl,), _cache_bytes(inputs, dtype), make)

    def call() -> None:
        k_cache, v_cache = next(ring)
        ops.cpu_attention_with_kv_cache(
            q, k_cache, v_cache, out, starts, seq_lens, case.head_dim**-0.5, True, None, -1, table, 0.0, plan,
            None, None, 1.0, 1.0, "auto",
        )  # fmt: skip

    try:
        call()
    except RuntimeError as error:
        raise PeerUnavailable(str(error).splitlines()[0]) from error

    def check() -> Accuracy:
        call()
        return exact.accuracy(out, "floats", dtype)

    arithmetic: Arithmetic = "f32" if dtype == torch.float32 else "bf16"
    computes = f"cpu_attention_with_kv_cache, pages of {VLLM_PAGE}, isa {isa}"
    return Candidate(impl, computes, call, check, peer_work(case, arithmetic, dtype.itemsize), ring)


PEERS: dict[str, Callable[[Inputs, Exact, Context], Candidate]] = {
    "torch_f32": partial(sdpa, impl="torch_f32", name="f32"),
    "torch_bf16": partial(sdpa, impl="torch_bf16", name="bf16"),
    "onnxruntime": _onnxruntime,
    "vllm_f32": partial(_vllm, impl="vllm_f32"),
    "vllm_bf16": partial(_vllm, impl="vllm_bf16"),
}
