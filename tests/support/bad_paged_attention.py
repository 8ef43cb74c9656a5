"""Every input that paged_attention refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

import lamina
from tests.support.bad_input import BadInput

# Two requests: one token after four keys, two tokens without any before.
TOKENS, HEADS, KV_HEADS, DIM, PAGES, PAGE = 3, 4, 2, 8, 3, 4
Q, CACHE = torch.zeros(TOKENS, HEADS, DIM), torch.zeros(PAGES, PAGE, KV_HEADS, DIM)
TABLE = torch.tensor([[2, 0], [1, -1]]).int()
INT8 = CACHE.to(torch.int8)
ONE = torch.ones(1)
MASK = torch.ones(TOKENS, 1).int()


def attend(**changed: Any) -> Callable[[], Any]:
    """A call of lamina.paged_attention for a valid problem with some arguments replaced."""
    arguments: dict[str, Any] = {
        "q": Q,
        "k_cache": CACHE,
        "v_cache": CACHE,
        "block_table": TABLE,
        "seq_lens": torch.tensor([5, 2]).int(),
        "cu_seqlens_q": torch.tensor([0, 1, 3]).int(),
        "max_seqlen_q": 2,
    } | changed
    return lambda: lamina.paged_attention(**arguments)


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values).int()


def bad(what: str, call: Callable[[], Any], argument: str, got: str, allowed: str) -> BadInput:
    return BadInput("paged_attention", what, call, argument, got, allowed)


def bad_inputs() -> Iterator[BadInput]:
    yield from _bad_tensors()
    yield from _bad_indices()
    yield from _bad_options()
    yield from _bad_trees()
    yield from _bad_scales()


def _bad_tensors() -> Iterator[BadInput]:
    yield bad("q None", attend(q=None), "q ", "None", "torch.Tensor")
    yield bad("q f64", attend(q=Q.double()), "q ", "float64", "bfloat16")
    yield bad("q 2-D", attend(q=Q[0]), "q ", "2-D [4, 8]", "3-D [tokens, heads, head_dim]")
    strided = torch.zeros(TOKENS, HEADS, 2 * DIM)[:, :, ::2]
    yield bad("q strided", attend(q=strided), "q ", "got 2", "stride 1")
    yield bad(
        "q of another head_dim", attend(q=torch.zeros(3, 4, 16)), "q ", "head_dim = 16", "8 like k_cache"
    )
    yield bad("q of five heads", attend(q=torch.zeros(3, 5, 8)), "q ", "5 heads", "multiple of the 2")
    many = torch.zeros(TOKENS, 129, DIM)
    yield bad("a group of 129", attend(q=many, **_both(CACHE[:, :, :1])), "q ", "129 heads", "at most 128")
    for name in ("k_cache", "v_cache"):
        yield bad(f"{name} 3-D", attend(**{name: CACHE[0]}), name, "3-D [4, 2, 8]", "4-D [pages, page")
        yield bad(f"{name} f64", attend(**{name: CACHE.double()}), name, "float64", "float8_e4m3fn or int8")
        wide = torch.zeros(PAGES, PAGE, KV_HEADS, 2 * DIM)[..., ::2]
        yield bad(f"{name} strided", attend(**{name: wide}), name, "got 2", "stride 1")
        yield bad(f"{name} on another device", attend(**{name: CACHE.to("meta")}), name, "meta", "cpu")
    for d, allowed in ((12, "multiples of 8 from 8 to 256"), (0, "multiples of 8"), (576, "MLA")):
        cache, q = torch.zeros(PAGES, PAGE, KV_HEADS, d), torch.zeros(TOKENS, HEADS, d)
        yield bad(f"head_dim {d}", attend(q=q, k_cache=cache), "k_cache", f"head_dim = {d};", allowed)
        yield bad(f"head_dim {d} of values", attend(v_cache=cache), "v_cache", f"head_dim = {d};", allowed)
    yield bad("pages of no slots", attend(**_both(CACHE[:, :0])), "k_cache", "[3, 0, 2, 8]", "page >= 1")
    yield bad("no heads", attend(**_both(CACHE[:, :, :0])), "k_cache", "[3, 4, 0, 8]", "kv_heads >= 1")
    yield bad("v_cache of another dtype", attend(v_cache=CACHE.half()), "v_cache", "float16", "float32 like")
    yield bad("v_cache of fewer pages", attend(v_cache=CACHE[1:]), "v_cache", "[2, 4, 2, 8]", "[3, 4, 2,")


def _both(cache: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"k_cache": cache, "v_cache": cache}


def _bad_indices() -> Iterator[BadInput]:
    for name, value in (
        ("block_table", TABLE),
        ("seq_lens", ints(5, 2)),
        ("cu_seqlens_q", ints(0, 1, 3)),
    ):
        yield bad(f"{name} int64", attend(**{name: value.long()}), name, "int64", "int32")
        yield bad(f"{name} a list", attend(**{name: [1]}), name, "list [1]", "torch.Tensor")
    yield bad("block_table 1-D", attend(block_table=TABLE[0]), "block_table", "1-D [2]", "2-D [requests, max")
    yield bad("block_table of one row", attend(block_table=TABLE[:1]), "block_table", "[1, 2]", "[2, 2]")
    yield bad(
        "block_table transposed", attend(block_table=TABLE.T), "block_table", "got 2", "column stride 1"
    )
    yield bad("seq_lens 2-D", attend(seq_lens=ints(5, 2)[None]), "seq_lens", "2-D [1, 2]", "1-D [requests]")
    yield bad("cu_seqlens_q too short", attend(cu_seqlens_q=ints(0, 3)), "cu_seqlens_q", "1-D [2]", "= 3")
    yield bad(
        "cu_seqlens_q strided",
        attend(cu_seqlens_q=ints(0, 9, 1, 9, 3)[::2]),
        "cu_seqlens_q",
        "contiguous",
        ".contiguous()",
    )
    for offsets, place, got, allowed in (
        ((1, 1, 3), "cu_seqlens_q[0]", "= 1 ", "must be 0"),
        ((0, 4, 3), "cu_seqlens_q[2]", "= 3 ", "below cu_seqlens_q[1] = 4"),
        ((0, -1, 3), "cu_seqlens_q[1]", "= -1 ", "below cu_seqlens_q[0] = 0"),
        ((0, 1, 2), "cu_seqlens_q[2]", "= 2 ", "number of tokens, 3"),
    ):
        yield bad(f"cu_seqlens_q {offsets}", attend(cu_seqlens_q=ints(*offsets)), place, got, allowed)
    yield bad("max_seqlen_q too small", attend(max_seqlen_q=1), "max_seqlen_q", "= 1;", "request 1 has 2")
    yield bad("max_seqlen_q negative", attend(max_seqlen_q=-1), "max_seqlen_q", "= -1;", "negative")
    yield bad("max_seqlen_q a float", attend(max_seqlen_q=2.0), "max_seqlen_q", "float 2.0", "int")
    yield bad("seq_lens negative", attend(seq_lens=ints(5, -1)), "seq_lens[1]", "-1", "between 0 and")
    yield bad("seq_lens past the table", attend(seq_lens=ints(9, 2)), "seq_lens[0]", "9", "2 pages of 4")
    yield bad("block negative", attend(seq_lens=ints(5, 6)), "block_table[1, 1]", "= -1", "below pages = 3")
    table = TABLE.clone()
    table[0, 1] = 3
    yield bad(
        "block past the cache", attend(block_table=table), "block_table[0, 1]", "= 3", "below pages = 3"
    )


def _bad_options() -> Iterator[BadInput]:
    for window in (3, (1,), [1, 1]):
        yield bad(f"window {window}", attend(window=window), "window", str(window), "(left, right)")
    yield bad("window of -2", attend(window=(-2, 0)), "window_left", "= -2;", "-1 for no limit")
    yield bad("window of -2 to the right", attend(window=(0, -2)), "window_right", "= -2;", "-1 for no limit")
    yield bad("window of floats", attend(window=(1.0, 0)), "window[0]", "float 1.0", "int")
    for value in (-1.0, float("inf"), float("nan"), 1e39, 1e-50):
        yield bad(
            f"softcap {value}", attend(softcap=value), "softcap", str(value).removesuffix(".0"), "finite"
        )
    yield bad("causal a number", attend(causal=1), "causal", "int 1", "bool")
    yield bad("return_lse a number", attend(return_lse=1), "return_lse", "int 1", "bool")
    yield bad("batch_invariant None", attend(batch_invariant=None), "batch_invariant", "None", "bool")
    yield bad("out_dtype int8", attend(out_dtype=torch.int8), "out_dtype", "int8", "bfloat16")
    for name in ("alibi_slopes", "sinks"):
        yield bad(f"{name} a number", attend(**{name: 0.5}), name, "float 0.5", "torch.Tensor or None")
        yield bad(f"{name} f16", attend(**{name: torch.ones(HEADS).half()}), name, "float16", "float32")
        yield bad(f"{name} of two", attend(**{name: torch.ones(2)}), name, "1-D [2]", "heads = 4")
        far = torch.ones(HEADS).to("meta")
        yield bad(f"{name} on another device", attend(**{name: far}), name, "meta", "cpu")
    slopes = torch.ones(1, HEADS)
    yield bad("alibi_slopes of one request", attend(alibi_slopes=slopes), "alibi_slopes", "[1, 4]", "[2, 4]")


def _bad_trees() -> Iterator[BadInput]:
    def tree(**changed: Any) -> Callable[[], Any]:
        return attend(**({"tree_mask": MASK, "tree_len": ints(0, 2)} | changed))

    yield bad("tree_mask alone", attend(tree_mask=MASK), "tree_len", "missing", "go together")
    yield bad("tree_len alone", attend(tree_len=ints(0, 2)), "tree_mask", "missing", "go together")
    yield bad("tree_depth alone", attend(tree_depth=ints(0, 0, 0)), "tree_depth", "given", "with tree_mask")
    yield bad("tree_mask int64", tree(tree_mask=MASK.long()), "tree_mask", "int64", "int32")
    yield bad("tree_mask 1-D", tree(tree_mask=MASK[:, 0]), "tree_mask", "1-D [3]", "2-D [tokens, words]")
    yield bad("tree_mask of two tokens", tree(tree_mask=MASK[1:]), "tree_mask", "[2, 1]", "[3, 1]")
    yield bad("tree_len of one", tree(tree_len=ints(2)), "tree_len", "1-D [1]", "requests = 2")
    yield bad("tree_depth of two", tree(tree_depth=ints(0, 1)), "tree_depth", "1-D [2]", "tokens = 3")
    yield bad("tree_len negative", tree(tree_len=ints(0, -1)), "tree_len[1]", "= -1;", "between 0 and 2")
    yield bad("tree_len above q_len", tree(tree_len=ints(2, 0)), "tree_len[0]", "= 2;", "between 0 and 1")
    yield bad("tree_len above seq_len", tree(seq_lens=ints(5, 1)), "tree_len[1]", "= 2;", "between 0 and 1")
    narrow = tree(tree_mask=MASK[:, :0])
    yield bad("tree_mask too narrow", narrow, "tree_mask", "tree_len[1] = 2;", "between 0 and 0")
    yield bad("depth negative", tree(tree_depth=ints(-9, 0, -3)), "tree_depth[2]", "= -3;", "negative")


def _bad_scales() -> Iterator[BadInput]:
    for name, other in (("k_scale", "v_scale"), ("v_scale", "k_scale")):

        def scaled(scale: Any, name: str = name, other: str = other) -> Callable[[], Any]:
            return attend(**_both(INT8), **{name: scale, other: ONE})

        yield bad(f"{name} missing", scaled(None), name, "missing", "int8 cache needs it")
        yield bad(f"{name} of a float cache", attend(**{name: ONE}), name, "given", "int8 and float8_e4m3fn")
        yield bad(f"{name} a number", scaled(0.5), name, "float 0.5", "torch.Tensor or None")
        yield bad(f"{name} f16", scaled(ONE.half()), name, "float16", "float32")
        two = torch.ones(2)
        yield bad(f"{name} of two", scaled(two), name, "1-D [2]", "[pages, page, kv_heads] = [3, 4, 2]")
        turned = torch.ones(PAGES, KV_HEADS, PAGE)
        yield bad(f"{name} transposed", scaled(turned), name, "3-D [3, 2, 4]", "[3, 4, 2]")
