"""Writes, reads and moves the rows of a paged KV cache."""

from __future__ import annotations

import torch
from torch import Tensor

from lamina._checks import (
    call,
    require_bool,
    require_dtype,
    require_int,
    require_one_device,
    require_optional_int,
    require_optional_tensors,
    require_tensors,
)
from lamina.ops.registration import Arguments, fake


def append_paged_kv(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    *,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    positions: Tensor | None = None,
    rotary_dim: int | None = None,
    interleaved: bool = False,
    q: Tensor | None = None,
) -> None:
    """Stores the keys and values of new tokens in a paged cache; with cos and sin, rotates k and q first.

    k             [tokens, kv_heads, head_dim]  f32 | f16 | bf16, unit stride in head_dim
    v             [tokens, kv_heads, v_head_dim]  like k; the dtype may differ
    k_cache       [pages, page, kv_heads, head_dim]  f32 | f16 | bf16 | float8_e4m3fn | int8, written. Rows of
                  head_dim are contiguous, and head_dim is a multiple of 8 from 8 to 256. The other strides
                  are free, so [pages, kv_heads, page, head_dim] works as a transposed view
    v_cache       [pages, page, kv_heads, v_head_dim]  dtype of k_cache, written
    slot_mapping  [tokens]  int64: token t goes to row slot % page of page slot // page. -1: the token is not
                  stored. If several tokens have one slot, a CPU stores the last one; on CUDA the contents of
                  the slot are undefined
    k_scale       f32, only if the cache is int8 (which needs it) or float8_e4m3fn (None means 1).
                  1 element: the scale of all keys, finite and >= 2^-126, which is read.
                  [pages, page, kv_heads], any strides: a scale for each token and head, which is written
    v_scale       likewise for the values
    cos, sin      [positions, rotary_dim / 2]  f32 | f16 | bf16, any row stride. None: no rotation. A cache
                  [positions, rotary_dim] of cosines beside sines is passed as two slices
    positions     [tokens]  int64 | int32: the row of cos and sin for each token
    rotary_dim    even, <= head_dim; None means twice the columns of cos. Later elements are not rotated
    interleaved   False: pairs are x[i], x[i + rotary_dim / 2] (NeoX). True: x[2i], x[2i + 1] (GPT-J)
    q             [tokens, heads, head_dim]  f32 | f16 | bf16, unit stride in head_dim, rotated in place, for
                  tokens with slot -1 too
    returns       None.  In f32, with x the rotated row:
                  rope             y1 = x1 cos - x2 sin, y2 = x2 cos + x1 sin; products and sums are rounded
                  f32, f16, bf16   x, rounded once
                  int8, one scale  clamp(rint(x * (1/scale)), -127, 127), rint to even; NaN becomes 0
                  e4m3, one scale  clamp(x * (1/scale), -448, 448), rounded once; NaN stays NaN
                  scale per token  scale = max(max|x| / 127, 2^-126), for e4m3 / 448, then as above
    NaN, Inf      A row with a NaN or an Inf and a scale of its own gets zeros and scale = NaN, so that it is
                  read as NaN. A row of zeros gets scale = 2^-126
    Error         int8: |q * scale - x| <= scale * (0.5 + 2^-14) inside the representable range; e4m3:
                  <= 2^-4 (1 + 2^-18) |x| + 2^-10 (1 + 2^-18) scale
    Raises        ValueError that names the argument, its value and the allowed values, before anything is
                  written; TypeError for an argument of a wrong Python type (docs/errors.md lists both)
    On CUDA       the host does not look at the contents of tensors. A token with a bad slot or scale is not
                  stored; with a bad position it is not rotated either. check_errors() raises the first error
    Devices       CPU (generic, avx2, avx512_vnni), CUDA sm_80+. All give the same bits, except payloads of
                  NaNs that rope computes. Capturable in a CUDA graph
    Source        csrc/ops/paged_kv/paged_kv.h
    """
    op = "append_paged_kv"
    require_tensors(op, k=k, v=v, k_cache=k_cache, v_cache=v_cache, slot_mapping=slot_mapping)
    require_optional_tensors(op, k_scale=k_scale, v_scale=v_scale, cos=cos, sin=sin, positions=positions, q=q)
    require_optional_int(op, "rotary_dim", rotary_dim)
    require_bool(op, "interleaved", interleaved)
    call(
        torch.ops.lamina.append_paged_kv, k, v, k_cache, v_cache, slot_mapping, k_scale=k_scale,
        v_scale=v_scale, cos=cos, sin=sin, positions=positions, rotary_dim=rotary_dim,
        interleaved=interleaved, q=q,
    )  # fmt: skip


def gather_paged_kv(
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    cu_seqlens_k: Tensor,
    tokens: int,
    *,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Reads the keys and values of requests out of a paged cache, in order of requests and slots.

    k_cache       [pages, page, kv_heads, head_dim]  as in append_paged_kv
    v_cache       [pages, page, kv_heads, v_head_dim]  dtype of k_cache
    block_table   [requests, max_blocks]  int32, any row stride: slot s of a request is row s % page of page
                  block_table[request, s // page]. Entries past the length of a request are never read
    cu_seqlens_k  [requests + 1]  int32: request r has tokens cu_seqlens_k[r] to cu_seqlens_k[r + 1] - 1, its
                  slots from 0 on
    tokens        the last of cu_seqlens_k
    k_scale       f32, 1 element or [pages, page, kv_heads] with any strides, only if the cache is int8 (which
                  needs it) or float8_e4m3fn (None means 1)
    v_scale       likewise for the values
    out_dtype     f32 | f16 | bf16. None means the dtype of the cache, and f32 for int8 and float8_e4m3fn
    returns       k [tokens, kv_heads, head_dim], v [tokens, kv_heads, v_head_dim] of out_dtype:
                  value * scale in f32, then one rounding
    Error         that of the f32 product and of one rounding
    Raises        ValueError that names the argument, its value and the allowed values; TypeError for an
                  argument of a wrong Python type (docs/errors.md lists both)
    On CUDA       the host does not look at the contents of tensors. Tokens of a bad page, and of no request,
                  are zeros. check_errors() raises the first error
    Devices       CPU (generic, avx2, avx512_vnni), CUDA sm_80+. All give the same bits, except payloads of
                  NaNs. Capturable in a CUDA graph
    Source        csrc/ops/paged_kv/paged_kv.h
    """
    op = "gather_paged_kv"
    require_tensors(op, k_cache=k_cache, v_cache=v_cache, block_table=block_table, cu_seqlens_k=cu_seqlens_k)
    require_int(op, "tokens", tokens)
    require_optional_tensors(op, k_scale=k_scale, v_scale=v_scale)
    if out_dtype is not None:
        require_dtype(op, "out_dtype", out_dtype)
    k, v = call(
        torch.ops.lamina.gather_paged_kv, k_cache, v_cache, block_table, cu_seqlens_k, tokens,
        k_scale=k_scale, v_scale=v_scale, out_dtype=out_dtype,
    )  # fmt: skip
    return k, v


def copy_kv_blocks(
    k_cache: Tensor,
    v_cache: Tensor,
    block_mapping: Tensor,
    *,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> None:
    """Copies whole pages within a paged cache, as copy on write needs.

    k_cache        [pages, page, kv_heads, head_dim]  as in append_paged_kv, written
    v_cache        [pages, page, kv_heads, v_head_dim]  dtype of k_cache, written
    block_mapping  [n, 2]  int64: pages block_mapping[i] = source, destination. Destinations differ from each
                   other and from all sources; one source may have several destinations. On CUDA nothing
                   checks that they differ, and the contents of a page that is both are undefined
    k_scale        f32, as in append_paged_kv. Scales [pages, page, kv_heads] are copied with their pages
    v_scale        likewise for the values
    returns        None
    Error          none: bytes are copied
    Raises         ValueError that names the argument, its value and the allowed values, before anything is
                   written; TypeError for an argument that is not a tensor (docs/errors.md lists both)
    On CUDA        the host does not look at the contents of tensors. A pair with a bad page is not copied.
                   check_errors() raises the first error
    Devices        CPU, CUDA sm_80+. Capturable in a CUDA graph
    Source         csrc/ops/paged_kv/paged_kv.h
    """
    op = "copy_kv_blocks"
    require_tensors(op, k_cache=k_cache, v_cache=v_cache, block_mapping=block_mapping)
    require_optional_tensors(op, k_scale=k_scale, v_scale=v_scale)
    call(torch.ops.lamina.copy_kv_blocks, k_cache, v_cache, block_mapping, k_scale=k_scale, v_scale=v_scale)


def compact_kv(
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    tree_len: Tensor,
    accepted: Tensor,
    *,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> None:
    """Moves the accepted nodes of a verified draft tree together, behind the prefix of their request.

    k_cache      [pages, page, kv_heads, head_dim]  as in append_paged_kv, written
    v_cache      [pages, page, kv_heads, v_head_dim]  dtype of k_cache, written
    block_table  [requests, max_blocks]  int32, as in gather_paged_kv
    seq_lens     [requests]  int32, with the tree, whose nodes are in the last tree_len slots
    tree_len     [requests]  int32: 0 means no tree
    accepted     [requests, max_accepted]  int32, any row stride: node accepted[r, i] of the tree moves from
                 slot prefix + accepted[r, i] to slot prefix + i, where prefix = seq_lens[r] - tree_len[r].
                 The first -1 ends the list of a request; what follows it is never read. Any order and any
                 overlap work: every row moves as it was before the call
    k_scale      f32, as in append_paged_kv. Scales [pages, page, kv_heads] move with their rows
    v_scale      likewise for the values
    returns      None. The slots of a tree beyond its accepted nodes hold rows that are no longer meant.
                 Requests may share pages, but not those of their trees
    Error        none: bytes are moved
    Raises       ValueError that names the argument, its value and the allowed values, before anything is
                 written; TypeError for an argument that is not a tensor (docs/errors.md lists both)
    On CUDA      the host does not look at the contents of tensors. A row with a bad node or page does not
                 move, nor does any row of a request with bad lengths. check_errors() raises the first error.
                 max_accepted is at most 3000
    Devices      CPU, CUDA sm_80+. Capturable in a CUDA graph
    Source       csrc/ops/paged_kv/paged_kv.h
    """
    op = "compact_kv"
    require_tensors(
        op, k_cache=k_cache, v_cache=v_cache, block_table=block_table, seq_lens=seq_lens,
        tree_len=tree_len, accepted=accepted,
    )  # fmt: skip
    require_optional_tensors(op, k_scale=k_scale, v_scale=v_scale)
    call(
        torch.ops.lamina.compact_kv, k_cache, v_cache, block_table, seq_lens, tree_len, accepted,
        k_scale=k_scale, v_scale=v_scale,
    )  # fmt: skip


@fake("append_paged_kv")
def _fake_append_paged_kv(given: Arguments) -> None:
    require_one_device("append_paged_kv", vars(given))


@fake("gather_paged_kv")
def _fake_gather_paged_kv(given: Arguments) -> tuple[Tensor, Tensor]:
    require_one_device("gather_paged_kv", vars(given))
    k, v = given.k_cache, given.v_cache
    dtype = given.out_dtype or (torch.float32 if k.element_size() == 1 else k.dtype)
    shape = (given.tokens, k.shape[2])
    return k.new_empty((*shape, k.shape[3]), dtype=dtype), v.new_empty((*shape, v.shape[3]), dtype=dtype)


@fake("copy_kv_blocks")
def _fake_copy_kv_blocks(given: Arguments) -> None:
    require_one_device("copy_kv_blocks", vars(given))


@fake("compact_kv")
def _fake_compact_kv(given: Arguments) -> None:
    require_one_device("compact_kv", vars(given))
