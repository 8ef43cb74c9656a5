"""The least time of a call: its bytes, and the vector instructions of lamina's CPU kernels.

The counts follow csrc/ops/paged_attention/cpu. L is the number of lanes (avx2 8, AVX-512 16). Loads, stores,
broadcasts from memory and loops are not counted, because other ports execute them. Neither is work that a
chunk of 512 keys causes once (merges, queries that become integers).

For each KV head, tile of up to 128 rows of queries, and key that the tile sees (panels.h, multiply.h). Tiles
have 64 rows where L2 is small, and then more is done than is counted:

    transposition  dwords / L^2 blocks of L rows, at 3 L shuffles. A key has head_dim dwords of f32,
                   head_dim / 2 of 2 bytes, head_dim / 4 of 1 byte
    int8 keys      head_dim / (4 L) exclusive ors, for dot products: keys become unsigned
    key to f32     head_dim / L times CONVERT
    value to f32   v_head_dim / L times a load that widens (a shuffle; none for f32), and CONVERT
    value, bf16    v_head_dim / (2 L) unpacks for each piece of rows, for dot products: 2 interleave 2 keys.
                   A piece is what the microkernel holds in registers: up to 8 rows, or 32 with AMX
    value, int8    v_head_dim / (2 L) unpacks for each piece, for dot products: 8 interleave 4 keys of 4 L
                   elements. A piece has up to 4 planes
    CONVERT        f32   0
                   bf16  1: a shift or a mask
                   f16   avx2 4: mask, pack, permute, convert. AVX-512 2: narrow, convert. Keys: half a shift
                   int8  3: two shifts, convert. Keys: a quarter less
                   e4m3  9 and f16: 2 masks, 2 shifts, or, mul, convert, compare, blend. Keys: 3/4 shift

For each row of queries and key that the row sees (products.h, exp.h, softmax.h), 1 / L times:

    products       head_dim + v_head_dim multiply-adds of f32; half as many of bf16; of int8 a quarter for
                   each of 2 planes. AMX takes bf16 in tiles of 16 rows, which are counted whole, at the rate
                   of its own instruction
    softmax        14: max, sub, add, and exp2 with 7 fma, mul, sub, max, shift
    token scales   2: mul, fma
    bf16 weights   half of an instruction, which narrows two vectors
    int8 scores    4: shift, add, subtract, convert
    int8 weights   6: max, mul, convert, shift, 2 that narrow (shuffles)

The floor is the largest of five times: bytes at the read ceiling, products at the rate of their instruction,
these with the multiplications of the softmax at the rate of an f32 multiply-add, whose ports they share (not
with AMX, whose products have a unit of their own), all instructions at the rate of vpaddd, which every vector
port executes, and shuffles at that of vpunpckldq (bench/native/peak.c). The read ceiling is that of runs in
random order, each a head's part of a page.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bench.attention.cases import AttentionCase, Request, binary_tree
from bench.attention.inputs import DTYPES
from bench.roofline import Arithmetic, Issue, Work

TILE_ROWS = 128
AMX_ROWS = 16
LINE_BYTES = 64
EXP = 11
MULTIPLIES_OF_SOFTMAX = 8
PIECE_ROWS = {"bf16": 8, "int8": 4}  # of the microkernel for values, in rows of an operand
Dot = Literal["f32", "bf16", "int8"]


@dataclass(frozen=True)
class Kernel:
    """A CPU kernel of paged_attention: the lanes of its vectors, and the ceiling of each product it has."""

    lanes: int
    peaks: dict[Dot, str]

    def is_amx(self, dot: Dot) -> bool:
        return self.peaks[dot] == "amx_bf16"

    def dot(self, case: AttentionCase) -> Dot:
        """How the kernel multiplies."""
        if case.kv_dtype == "int8" and "int8" in self.peaks:
            return "int8"
        if case.kv_dtype == case.dtype == "bf16" and "bf16" in self.peaks:
            return "bf16"
        return "f32"


# Ascending, as csrc/ops/paged_attention/kernels.inc. The instructions of generic are the compiler's choice.
KERNELS = {
    "generic": Kernel(0, {"f32": "generic"}),
    "avx2": Kernel(8, {"f32": "avx2"}),
    "avx512_vnni": Kernel(16, {"f32": "avx512", "int8": "avx512_vnni"}),
    "avx512_bf16": Kernel(16, {"f32": "avx512", "int8": "avx512_vnni", "bf16": "avx512_bf16"}),
    "amx_int8": Kernel(16, {"f32": "avx512", "int8": "avx512_vnni", "bf16": "amx_bf16"}),
}


def kernel_of(isa: str, available: list[str]) -> Kernel:
    """The kernel that runs where `isa` is forced: the best that does not need more. available: ascending."""
    names = [name for name in available[: available.index(isa) + 1] if name in KERNELS]
    return KERNELS[names[-1]]


@dataclass
class Instructions:
    """Vector instructions; `multiplies` counts again the products, and those of `others` that multiply."""

    products: float = 0.0
    shuffles: float = 0.0
    others: float = 0.0
    multiplies: float = 0.0

    def add(
        self,
        count: float,
        *,
        products: float = 0.0,
        shuffles: float = 0.0,
        others: float = 0.0,
        multiplies: float = 0.0,
    ) -> None:
        """`others` includes `multiplies` that are no products."""
        self.products += count * products
        self.shuffles += count * shuffles
        self.others += count * others
        self.multiplies += count * (products + multiplies)


def _conversion(kv_dtype: str, lanes: int) -> tuple[float, float, float]:
    """Shuffles and other instructions of an element of a value, and others that a key's element adds."""
    f16 = (2.0, 2.0) if lanes == 8 else (1.0, 1.0)
    return {
        "f32": (0.0, 0.0, 0.0),
        "bf16": (0.0, 1.0, 0.0),
        "f16": (*f16, 0.5),
        "int8": (0.0, 3.0, -0.25),
        "fp8": (f16[0], f16[1] + 9.0, 0.75),
    }[kv_dtype]


def pairs_of(request: Request, case: AttentionCase) -> int:
    """How many pairs of a token and a key that it sees a request has."""
    if case.tree:
        return request.q_len * (request.seq_len - request.q_len) + int(binary_tree(request.q_len).sum())
    return request.q_len * request.seq_len - request.q_len * (request.q_len - 1) // 2


def _panel_keys(request: Request, case: AttentionCase) -> float:
    """Keys of all tiles of a request, a key counted in each tile that sees it."""
    # A token of more heads than a tile has rows is cut into tiles.
    tokens = max(1, TILE_ROWS // case.group)
    tiles = range(0, request.q_len, tokens)
    before = request.seq_len - request.q_len
    keys = sum(before + min(first + tokens, request.q_len) for first in tiles)
    return keys * max(1.0, case.group / TILE_ROWS)


def _pieces(request: Request, case: AttentionCase, dot: Dot, is_amx: bool) -> float:
    """How often a tile of a request reads a value, from its own rows to registers."""
    rows = min(request.q_len * case.group, TILE_ROWS)
    if is_amx:
        return -(-rows // (2 * AMX_ROWS))
    return -(-rows * (2 if dot == "int8" else 1) // PIECE_ROWS[dot])


def count(case: AttentionCase, kernel: Kernel) -> Instructions:
    """The instructions that the kernel issues for a call."""
    lanes, dot, size = kernel.lanes, kernel.dot(case), DTYPES[case.kv_dtype].itemsize
    dim = case.head_dim
    requests = case.requests()
    panels = case.kv_heads * sum(_panel_keys(request, case) for request in requests)
    scores = case.heads * sum(pairs_of(request, case) for request in requests)
    total = Instructions()
    total.add(panels * dim * size / 4 / lanes**2, shuffles=3 * lanes)
    if dot == "f32":
        shuffles, others, of_key = _conversion(case.kv_dtype, lanes)
        widen = 0.0 if size == 4 else 1.0
        total.add(panels * dim / lanes, shuffles=shuffles, others=others + of_key)
        total.add(panels * dim / lanes, shuffles=shuffles + widen, others=others)
    else:
        reads = case.kv_heads * sum(
            _panel_keys(request, case) * _pieces(request, case, dot, kernel.is_amx(dot))
            for request in requests
        )
        total.add(reads * dim / lanes, shuffles=0.5)
    if dot == "int8":
        total.add(panels * dim / 4 / lanes, others=1.0)
    if not kernel.is_amx(dot):
        total.add(scores * 2 * dim / lanes, products={"f32": 1.0, "bf16": 1 / 2, "int8": 2 / 4}[dot])
    total.add(scores / lanes, others=3 + EXP, multiplies=MULTIPLIES_OF_SOFTMAX)
    if case.kv_dtype == "int8":
        total.add(scores / lanes, others=2.0, multiplies=2.0)
    if dot == "bf16":
        total.add(scores / lanes, others=0.5)
    elif dot == "int8":
        total.add(scores / lanes, shuffles=2.0, others=8.0, multiplies=1.0)
    return total


def least_bytes(case: AttentionCase, kv_bytes: int, q_bytes: int, scale_bytes: int = 0) -> int:
    """Keys and values once, with their scales; queries and results."""
    requests = case.requests()
    keys = sum(request.seq_len for request in requests) * case.kv_heads
    tokens = sum(request.q_len for request in requests)
    return (
        2 * keys * (case.head_dim * kv_bytes + scale_bytes)
        + 2 * tokens * case.heads * case.head_dim * q_bytes
    )


def run_bytes_of(case: AttentionCase) -> int:
    """Bytes of a cache that lie next to each other and are read together: a head's part of a page."""
    row = case.head_dim * DTYPES[case.kv_dtype].itemsize
    run = row * (case.page if case.layout == "hnd" else 1)
    return -(-run // LINE_BYTES) * LINE_BYTES


def work_of(case: AttentionCase, kernel: Kernel) -> Work:
    """The work of the kernel; operations are those of its products, both planes of int8 among them."""
    dot = kernel.dot(case)
    cache, q = DTYPES[case.kv_dtype], DTYPES[case.dtype]
    moved = least_bytes(case, cache.itemsize, q.itemsize, 4 if case.kv_dtype == "int8" else 0)
    if not kernel.lanes:
        return Work(moved, plain_ops(case), "f32", isa=kernel.peaks["f32"], run_bytes=run_bytes_of(case))
    found = count(case, kernel)
    ops = 2 * kernel.lanes * {"f32": 1, "bf16": 2, "int8": 4}[dot] * found.products
    if kernel.is_amx(dot):
        ops = _amx_ops(case)
    everything = found.products + found.shuffles + found.others
    issue: dict[Issue, int] = {"vector": round(everything), "shuffle": round(found.shuffles)}
    if not kernel.is_amx(dot):
        issue["multiply"] = round(found.multiplies)
    return Work(
        moved,
        round(ops),
        dot,
        issue,
        kernel.peaks[dot],
        run_bytes_of(case),
    )


def gpu_work(case: AttentionCase) -> Work:
    """Bytes once, and the products at the rate of bf16, in which CUDA kernels multiply every cache."""
    cache, q = DTYPES[case.kv_dtype], DTYPES[case.dtype]
    scales = 4 if case.kv_dtype == "int8" else 0
    return Work(least_bytes(case, cache.itemsize, q.itemsize, scales), plain_ops(case), "bf16")


def _amx_ops(case: AttentionCase) -> float:
    ops = 0.0
    for request in case.requests():
        rows = request.q_len * case.group
        padding = -(-rows // AMX_ROWS) * AMX_ROWS / rows
        ops += 4 * pairs_of(request, case) * case.heads * case.head_dim * padding
    return ops


def plain_ops(case: AttentionCase) -> int:
    """Two for each multiply-add of the two products."""
    pairs = sum(pairs_of(request, case) for request in case.requests())
    return 2 * pairs * case.heads * 2 * case.head_dim


def peer_work(case: AttentionCase, arithmetic: Arithmetic, element_bytes: int) -> Work:
    """A peer whose cache, queries and results have elements of that size."""
    return Work(least_bytes(case, element_bytes, element_bytes), plain_ops(case), arithmetic)
