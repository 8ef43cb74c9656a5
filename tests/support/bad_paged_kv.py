"""Every input that the ops on paged caches and merge_attention_states refuse."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch

import lamina
from tests.support.bad_input import BadInput, bytes_

F32 = torch.float32
PAGES, PAGE, HEADS, DIM, TOKENS = 3, 4, 2, 16, 2


def ints(*values: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


def a_cache(dtype: torch.dtype = F32, dim: int = DIM) -> torch.Tensor:
    return torch.zeros(PAGES, PAGE, HEADS, dim, dtype=dtype)


def scale() -> torch.Tensor:
    return torch.ones(PAGES, PAGE, HEADS)


INT8: dict[str, Any] = {
    "k_cache": bytes_(PAGES, PAGE, HEADS, DIM), "v_cache": bytes_(PAGES, PAGE, HEADS, DIM),
    "k_scale": scale(), "v_scale": scale(),
}  # fmt: skip


def arguments_of(op: str) -> dict[str, Any]:
    """The arguments of a valid call."""
    caches = {"k_cache": a_cache(), "v_cache": a_cache(dim=8)}
    table = ints(0, 1, 2, 1).reshape(2, 2)
    if op == "append_paged_kv":
        rows = {"k": torch.ones(TOKENS, HEADS, DIM), "v": torch.ones(TOKENS, HEADS, 8)}
        return rows | caches | {"slot_mapping": ints(5, -1, dtype=torch.int64)}
    if op == "gather_paged_kv":
        return caches | {"block_table": table, "cu_seqlens_k": ints(0, 5, 8), "tokens": 8}
    if op == "copy_kv_blocks":
        return caches | {"block_mapping": ints(0, 1, dtype=torch.int64).reshape(1, 2)}
    trees = {"seq_lens": ints(8, 7), "tree_len": ints(3, 0), "accepted": ints(0, 2, -1, 9).reshape(2, 2)}
    return caches | {"block_table": table} | trees


def bad_caches(op: str) -> Iterator[BadInput]:
    """The arguments that all ops on caches share."""

    def bad(what: str, argument: str, got: str, allowed: str, **changed: Any) -> BadInput:
        call = functools.partial(getattr(lamina, op), **arguments_of(op) | changed)
        return BadInput(op, what, call, argument, got, allowed)

    k, v = a_cache(), a_cache(dim=8)
    yield bad("k_cache a list", "k_cache", "list", "torch.Tensor", k_cache=[1])
    yield bad(
        "k_cache 3-D", "k_cache", "3-D [4, 2, 16]", "4-D [pages, page, kv_heads, head_dim]", k_cache=k[0]
    )
    yield bad("k_cache f64", "k_cache", "float64", "float8_e4m3fn or int8", k_cache=k.double())
    e5m2 = k.to(torch.float8_e5m2)
    yield bad("k_cache of another float8", "k_cache", "float8_e5m2", "float8_e4m3fn", k_cache=e5m2)
    yield bad("k_cache without slots", "k_cache", "4-D [3, 0, 2, 16]", "page >= 1", k_cache=k[:, :0])
    yield bad("k_cache of MLA", "k_cache", "head_dim = 576", "at most 256", k_cache=a_cache(dim=576))
    yield bad("head_dim 12", "k_cache", "head_dim = 12", "multiples of 8", k_cache=a_cache(dim=12))
    strided = a_cache(dim=32)[..., ::2]
    yield bad("k_cache strided", "k_cache", "got 2", "stride 1 in head_dim", k_cache=strided)
    yield bad("v_cache bf16", "v_cache", "bfloat16", "float32 like k_cache", v_cache=v.bfloat16())
    yield bad("v_cache of fewer pages", "v_cache", "4-D [2, 4, 2, 8]", "4-D [3, 4, 2", v_cache=v[:2])
    yield bad("v_cache on another device", "v_cache", "meta", "must be on cpu", v_cache=v.to("meta"))
    yield bad("k_scale of an f32 cache", "k_scale", "given", "int8 and float8_e4m3fn", k_scale=scale())
    yield bad("int8 without k_scale", "k_scale", "missing", "int8 cache needs", **INT8 | {"k_scale": None})
    yield bad("v_scale f16", "v_scale", "float16", "float32", **INT8 | {"v_scale": scale().half()})
    narrow = INT8 | {"v_scale": scale()[:, :, :1]}
    yield bad(
        "v_scale of one head", "v_scale", "3-D [3, 4, 1]", "[pages, page, kv_heads] = [3, 4, 2]", **narrow
    )
    yield bad("k_scale a number", "k_scale", "float 0.1", "torch.Tensor or None", **INT8 | {"k_scale": 0.1})
    if op == "gather_paged_kv":
        return
    expanded = k[:1].expand(3, -1, -1, -1)
    yield bad("k_cache expanded", "k_cache", "stride 0", "must be above", k_cache=expanded)
    shared = INT8 | {"k_scale": scale()[..., :1].expand(-1, -1, HEADS)}
    yield bad("k_scale expanded", "k_scale", "stride 0", "must be above", **shared)


def bad_append_inputs() -> Iterator[BadInput]:
    op = "append_paged_kv"

    def bad(what: str, argument: str, got: str, allowed: str, **changed: Any) -> BadInput:
        call = functools.partial(lamina.append_paged_kv, **arguments_of(op) | changed)
        return BadInput(op, what, call, argument, got, allowed)

    yield from bad_caches(op)
    k = torch.ones(TOKENS, HEADS, DIM)
    yield bad("k int8", "k ", "int8", "bfloat16", k=bytes_(TOKENS, HEADS, DIM))
    yield bad("k 2-D", "k ", "2-D [2, 16]", "3-D [tokens, kv_heads, head_dim]", k=k[0])
    yield bad("k of one head", "k ", "3-D [2, 1, 16]", "3-D [2, 2, 16]", k=k[:, :1])
    yield bad("k transposed", "k ", "got 2", "stride 1 in head_dim", k=torch.ones(TOKENS, DIM, HEADS).mT)
    yield bad("v of one token", "v ", "3-D [1, 2, 8]", "3-D [2, 2, 8]", v=torch.ones(1, HEADS, 8))
    yield bad("slots int32", "slot_mapping", "int32", "int64", slot_mapping=ints(0, 1))
    long = functools.partial(ints, dtype=torch.int64)
    yield bad("slots of one token", "slot_mapping", "1-D [1]", "tokens = 2", slot_mapping=long(0))
    yield bad("slot 12", "slot_mapping[1]", "12", "below pages * page = 12", slot_mapping=long(-1, 12))
    yield bad("slot -2", "slot_mapping[0]", "-2", "must be -1", slot_mapping=long(-2, 1))
    for value, text in ((0.0, "0"), (torch.nan, "nan"), (torch.inf, "inf"), (-1.0, "-1")):
        one = INT8 | {"k_scale": torch.tensor(value), "v": k}
        yield bad(f"k_scale {value}", "k_scale", f"= {text} ", "finite", **one)
    rope: dict[str, Any] = {"cos": torch.ones(5, 4), "sin": torch.ones(5, 4), "positions": ints(4, 5)}
    yield bad("sin without positions", "positions", "missing", "cos, sin and", **rope | {"positions": None})
    yield bad("no cos", "cos", "missing", "needs cos, sin and positions", **rope | {"cos": None})
    yield bad("no sin", "sin", "missing", "needs cos, sin and positions", **rope | {"sin": None})
    yield bad("q without cos", "q ", "given", "only with cos", q=k)
    yield bad("rotary_dim without cos", "rotary_dim", "given", "only with cos", rotary_dim=4)
    yield bad("interleaved without cos", "interleaved", "given", "only with cos", interleaved=True)
    yield bad("interleaved a number", "interleaved", "int 1", "bool", interleaved=1)
    yield bad("rotary_dim a float", "rotary_dim", "float 4.0", "int or None", rotary_dim=4.0)
    for dim in (7, 18, -2):
        yield bad(
            f"rotary_dim {dim}", "rotary_dim", f"= {dim} ", "at most head_dim = 16", **rope, rotary_dim=dim
        )
    yield bad("rotary_dim 4", "cos", "2-D [5, 4]", "rotary_dim / 2] = [5, 2]", **rope, rotary_dim=4)
    yield bad("cos 1-D", "cos", "1-D [4]", "2-D", **rope | {"cos": torch.ones(4)})
    yield bad("cos f64", "cos", "float64", "bfloat16", **rope | {"cos": torch.ones(5, 4).double()})
    yield bad("sin f16", "sin", "float16", "float32", **rope | {"sin": torch.ones(5, 4).half()})
    yield bad("sin of more rows", "sin", "2-D [6, 4]", "= [5, 4]", **rope | {"sin": torch.ones(6, 4)})
    yield bad("positions of floats", "positions", "float32", "int64", **rope | {"positions": torch.ones(2)})
    yield bad("positions of one", "positions", "1-D [1]", "tokens = 2", **rope | {"positions": ints(1)})
    late = long(5, 6)
    yield bad("position 5", "positions[0]", "5", "below the rows of cos, 5", **rope | {"positions": late})
    yield bad("position of q", "positions[1]", "5", "below the rows of cos, 5", **rope, q=k.clone())
    yield bad("q of one token", "q ", "3-D [1, 2, 16]", "[2, any, 16]", **rope, q=k[:1])
    yield bad("q int8", "q ", "int8", "bfloat16", **rope, q=bytes_(TOKENS, HEADS, DIM))
    yield bad("q expanded", "q ", "stride 0", "must be above", **rope, q=k[:, :1].expand(-1, 3, -1))


def bad_gather_inputs() -> Iterator[BadInput]:
    op = "gather_paged_kv"

    def bad(what: str, argument: str, got: str, allowed: str, **changed: Any) -> BadInput:
        call = functools.partial(lamina.gather_paged_kv, **arguments_of(op) | changed)
        return BadInput(op, what, call, argument, got, allowed)

    yield from bad_caches(op)
    table = ints(0, 3, 2, 1).reshape(2, 2)
    yield bad("block 3", "block_table[0, 1]", "3", "below pages = 3", block_table=table)
    yield bad("block -1", "block_table[0, 1]", "-1", "at least 0", block_table=table.where(table != 3, -1))
    yield bad("block_table int64", "block_table", "int64", "int32", block_table=table.long())
    yield bad("block_table 1-D", "block_table", "1-D [2]", "2-D [requests, max_blocks]", block_table=table[0])
    yield bad("block_table transposed", "block_table", "got 2", "column stride 1", block_table=table.T)
    narrow = {"block_table": table[:, :1].contiguous()}
    yield bad("too many tokens", "cu_seqlens_k", "a length of 5", "max_blocks = 1", **narrow)
    yield bad("offsets int64", "cu_seqlens_k", "int64", "int32", cu_seqlens_k=ints(0, 5, 8).long())
    yield bad(
        "offsets of one request", "cu_seqlens_k", "1-D [2]", "requests + 1 = 3", cu_seqlens_k=ints(0, 8)
    )
    yield bad("first offset 1", "cu_seqlens_k[0]", "1", "must be 0", cu_seqlens_k=ints(1, 5, 8))
    yield bad("offsets decrease", "cu_seqlens_k[1]", "-1", "below", cu_seqlens_k=ints(0, -1, 8))
    yield bad("other tokens", "cu_seqlens_k[2]", "8", "number of tokens, 9", tokens=9)
    yield bad("tokens -1", "tokens", "-1", "negative", tokens=-1)
    yield bad("tokens a float", "tokens", "float 8.0", "int", tokens=8.0)
    yield bad("out_dtype int8", "out_dtype", "int8", "bfloat16", out_dtype=torch.int8)
    yield bad("out_dtype a name", "out_dtype", "str 'f16'", "torch.dtype", out_dtype="f16")


def bad_copy_inputs() -> Iterator[BadInput]:
    op = "copy_kv_blocks"

    def bad(what: str, argument: str, got: str, allowed: str, *pairs: tuple[int, int]) -> BadInput:
        mapping = torch.tensor(pairs, dtype=torch.int64)
        call = functools.partial(lamina.copy_kv_blocks, **arguments_of(op) | {"block_mapping": mapping})
        return BadInput(op, what, call, argument, got, allowed)

    yield from bad_caches(op)
    yield bad("source 3", "block_mapping[1, 0]", "3", "below pages = 3", (0, 1), (3, 2))
    yield bad("destination -1", "block_mapping[0, 1]", "-1", "at least 0", (0, -1))
    yield bad("destination twice", "block_mapping[1, 1]", "2", "must differ", (0, 2), (1, 2))
    yield bad("source overwritten", "block_mapping[1, 0]", "2", "must not be a destination", (0, 2), (2, 1))
    for what, mapping, got, allowed in (
        ("block_mapping int32", ints(0, 1).reshape(1, 2), "int32", "int64"),
        ("block_mapping of three", torch.zeros(1, 3, dtype=torch.int64), "2-D [1, 3]", "[n, 2] = [1, 2]"),
    ):
        call = functools.partial(lamina.copy_kv_blocks, **arguments_of(op) | {"block_mapping": mapping})
        yield BadInput(op, what, call, "block_mapping", got, allowed)


def bad_compact_inputs() -> Iterator[BadInput]:
    op = "compact_kv"

    def bad(what: str, argument: str, got: str, allowed: str, **changed: Any) -> BadInput:
        call = functools.partial(lamina.compact_kv, **arguments_of(op) | changed)
        return BadInput(op, what, call, argument, got, allowed)

    yield from bad_caches(op)
    path = {"accepted": ints(0, 3, -1, -1).reshape(2, 2)}
    yield bad("node 3 of 3", "accepted[0, 1]", "3", "below tree_len[0] = 3", **path)
    yield bad("node -2", "accepted[0, 0]", "-2", "must be -1", accepted=ints(-2, 0, -1, -1).reshape(2, 2))
    yield bad("nodes without a tree", "accepted", "2 nodes for request 1", "tree_len[1] = 0 is the most",
              accepted=ints(0, 1, 0, 1).reshape(2, 2))  # fmt: skip
    yield bad("accepted int64", "accepted", "int64", "int32", accepted=ints(0, 1).long()[None])
    yield bad("accepted of one request", "accepted", "2-D [1, 2]", "= [2, 2]", accepted=ints(0, 1)[None])
    yield bad("tree longer than its request", "tree_len[0]", "9", "seq_lens[0] = 8", tree_len=ints(9, 0))
    yield bad("tree_len -1", "tree_len[1]", "-1", "at least 0", tree_len=ints(3, -1))
    yield bad("tree_len of one", "tree_len", "1-D [1]", "requests = 2", tree_len=ints(3))
    yield bad("seq_len -1", "seq_lens[1]", "-1", "negative", seq_lens=ints(8, -1))
    yield bad("seq_len 9", "seq_lens", "a length of 9", "max_blocks = 2", seq_lens=ints(9, 7))
    yield bad("seq_lens int64", "seq_lens", "int64", "int32", seq_lens=ints(8, 7).long())
    table = ints(0, 7, 2, 1).reshape(2, 2)
    yield bad("block 7", "block_table[0, 1]", "7", "below pages = 3", block_table=table)


def bad_merge_inputs() -> Iterator[BadInput]:
    def bad(what: str, argument: str, got: str, allowed: str, **changed: Any) -> BadInput:
        good = {"outs": [torch.ones(2, 3, 4)] * 2, "lses": [torch.ones(3, 2)] * 2}
        call = functools.partial(lamina.merge_attention_states, **good | changed)
        return BadInput("merge_attention_states", what, call, argument, got, allowed)

    out, lse = torch.ones(2, 3, 4), torch.ones(3, 2)
    yield bad("outs a tensor", "outs", "Tensor", "list of torch.Tensor", outs=out)
    yield bad("outs with None", "outs[1]", "None", "torch.Tensor", outs=[out, None])
    yield bad("outs empty", "outs", "0", "at least 1 tensor", outs=[], lses=[])
    yield bad("one lse", "lses", "got 1", "as many tensors as outs, 2", lses=[lse])
    yield bad("outs of f64", "outs[0]", "float64", "bfloat16", outs=[out.double()] * 2)
    yield bad("outs of two dtypes", "outs[1]", "float16", "float32", outs=[out, out.half()])
    yield bad("outs 2-D", "outs[0]", "2-D [3, 4]", "3-D [tokens, heads, head_dim]", outs=[out[0], out])
    yield bad("outs of two shapes", "outs[1]", "3-D [2, 3, 2]", "3-D [2, 3, 4]", outs=[out, out[..., :2]])
    yield bad("outs transposed", "outs[1]", "got 3", "stride 1", outs=[out, torch.ones(2, 4, 3).mT])
    yield bad("lse f16", "lses[1]", "float16", "float32", lses=[lse, lse.half()])
    yield bad("lse transposed", "lses[0]", "2-D [2, 3]", "[heads, tokens] = [3, 2]", lses=[lse.T, lse])
    yield bad("part on another device", "outs[1]", "meta", "must be on cpu", outs=[out, out.to("meta")])
    yield bad("sinks a number", "sinks", "float 1.0", "torch.Tensor or None", sinks=1.0)
    yield bad("sinks bf16", "sinks", "bfloat16", "float32", sinks=torch.ones(3).bfloat16())
    yield bad("sinks of tokens", "sinks", "1-D [2]", "heads = 3", sinks=torch.ones(2))
    yield bad("merged to int8", "out_dtype", "int8", "bfloat16", out_dtype=torch.int8)
    yield bad("out_dtype a name", "out_dtype", "str 'f16'", "torch.dtype", out_dtype="f16")


def bad_inputs() -> list[BadInput]:
    appended, read = bad_append_inputs(), bad_gather_inputs()
    return [*appended, *read, *bad_copy_inputs(), *bad_compact_inputs(), *bad_merge_inputs()]
