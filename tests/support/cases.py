"""Named problems and their inputs. Inputs are seeded by the case's name and asymmetric, so that a swapped
row, tile or scale cannot cancel."""

from __future__ import annotations

import dataclasses
import itertools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from tests.reference import gemm as reference

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


Optional = TypeVar("Optional", torch.Tensor, None)


def cut_rows(t: Optional, begin: int, end: int) -> Optional:
    """The rows [begin, end) of an operand; an operand that all rows share stays whole."""
    return t if t is None or t.numel() == 1 else t[begin:end]


@dataclass(frozen=True, kw_only=True)
class Epilogue:
    """The arguments of the steps after the bias."""

    activation: str | None = None
    gate: torch.Tensor | None = None
    residual: torch.Tensor | None = None

    def then(self) -> dict[str, Any]:
        """By their names in the schema."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(Epilogue)}

    def steps(self) -> reference.Steps:
        return reference.Steps(**{name: widened(value) for name, value in self.then().items()})

    def rows_of_then(self, begin: int, end: int) -> dict[str, Any]:
        """then() for a slice of the batch."""
        return {
            name: value[begin:end] if isinstance(value, torch.Tensor) else value
            for name, value in self.then().items()
        }


def widened(value: Any) -> Any:
    """A tensor of floats as an f32 array, and any other value as it is."""
    return value.float().numpy() if isinstance(value, torch.Tensor) else value


@dataclass(frozen=True)
class GemmInputs(Epilogue):
    """The arguments of gemm_int8 with the weight as [n, k], and what the op must return for them."""

    a: torch.Tensor
    w: torch.Tensor
    a_scale: torch.Tensor
    w_scale: torch.Tensor
    a_zero_point: torch.Tensor | None
    bias: torch.Tensor | None
    max_sms: int | None = None
    group: int | None = None

    def rows(self, begin: int, end: int) -> GemmInputs:
        """The same problem for a slice of the batch."""
        return dataclasses.replace(
            self,
            a=self.a[begin:end],
            a_scale=cut_rows(self.a_scale, begin, end),
            a_zero_point=cut_rows(self.a_zero_point, begin, end),
            **self.rows_of_then(begin, end),
        )

    def accumulated(self) -> NDArray[np.int64]:
        zero_point = None if self.a_zero_point is None else self.a_zero_point.numpy()
        accumulate = reference.accumulate if self.group is None else reference.accumulate_groups
        return accumulate(self.a.numpy(), self.w.numpy(), zero_point)

    def _epilogue(self, out_dtype: torch.dtype) -> tuple[Any, ...]:
        return self.a_scale.numpy(), self.w_scale.numpy(), widened(self.bias), out_dtype, self.steps()

    def expected(self, acc: NDArray[np.int64], out_dtype: torch.dtype) -> reference.Expected:
        return reference.gemm_int8(acc, *self._epilogue(out_dtype))

    def expected_bits(self, acc: NDArray[np.int64], out_dtype: torch.dtype) -> torch.Tensor:
        return reference.gemm_int8_steps(acc, *self._epilogue(out_dtype))


@dataclass(frozen=True)
class GemmCase:
    name: str
    m: int
    n: int
    k: int

    def __str__(self) -> str:
        return f"{self.name}-{self.m}x{self.n}x{self.k}"

    def inputs(
        self,
        *,
        per_token: bool = True,
        per_channel: bool = True,
        zero_point: str = "none",
        bias: torch.dtype | None = None,
    ) -> GemmInputs:
        """zero_point: "none", "tensor" or "token"."""
        g = generator(f"{self.name} {self.m} {self.n} {self.k}")
        a = random_int8(g, self.m, self.k)
        w = random_int8(g, self.n, self.k)
        a_scale = random_scale(g, self.m if per_token else 1)
        w_scale = random_scale(g, self.n if per_channel else 1)
        zeros = None
        if zero_point != "none":
            zeros = random_int8(g, self.m if zero_point == "token" else 1, 1)
        offsets = None
        if bias is not None:
            offsets = (torch.randn(self.n, generator=g) * 0.01 * max(1, self.k)).to(bias)
        return GemmInputs(a, w, a_scale, w_scale, zeros, offsets)


def grouped(
    case: GemmCase,
    *,
    a: str = "group",
    w: str = "group",
    zero_point: str = "none",
    bias: torch.dtype | None = None,
) -> GemmInputs:
    """a: scales per "tensor", "token" or "group"; w: per "tensor", "channel" or "group"."""
    inputs = case.inputs(per_token=a != "tensor", per_channel=w != "tensor", zero_point=zero_point, bias=bias)
    g, groups = generator(f"groups of {case}"), -(-case.k // reference.GROUP)

    def spread(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=g) + 0.25

    a_scale, w_scale = inputs.a_scale, inputs.w_scale
    if a == "group":
        a_scale = a_scale.reshape(-1, 1) * spread(case.m, groups)
    if w == "group":
        w_scale = w_scale.reshape(1, -1) * spread(groups, case.n)
    return dataclasses.replace(inputs, a_scale=a_scale, w_scale=w_scale, group=reference.GROUP)


def generator(text: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(text.encode()))


def random_int8(g: torch.Generator, rows: int, columns: int) -> torch.Tensor:
    """Random values from the whole range of int8; the ends are frequent."""
    values = torch.randint(-128, 128, (rows, columns), generator=g)
    ends = torch.rand(rows, columns, generator=g) < 0.05
    return torch.where(ends, torch.where(values < 0, -128, 127), values).to(torch.int8)


def random_scale(g: torch.Generator, count: int) -> torch.Tensor:
    """Distinct positive f32 values around 0.01; [count, 1], or [1] for one."""
    scale = (torch.rand(count, generator=g) + 0.5) * 0.02 * (1 + torch.arange(count) / max(1, count))
    return scale if count == 1 else scale.reshape(count, 1)


def pairwise(*axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Few rows of the axes' product, in which any two values of two axes meet; always the same rows.

    Each row starts with a pair that is left and takes, axis by axis, the value that adds most pairs; the best
    of some such rows is chosen.
    """
    sizes = [len(axis) for axis in axes]
    by_size = sorted(range(len(axes)), key=lambda axis: -sizes[axis])
    cells = [[(axis, value) for value in range(size)] for axis, size in enumerate(sizes)]
    two_axes = itertools.combinations(cells, 2)
    left = dict.fromkeys(pair for two in two_axes for pair in itertools.product(*two))

    def new_pairs(row: dict[int, int]) -> int:
        return sum(pair in left for pair in itertools.combinations(sorted(row.items()), 2))

    def complete(row: dict[int, int]) -> dict[int, int]:
        for axis in by_size:
            if axis not in row:
                row = max(({**row, axis: value} for value in range(sizes[axis])), key=new_pairs)
        return row

    chosen = []
    while left:
        starts = list(left)[:: max(1, len(left) // 4)]
        row = max((complete(dict(start)) for start in starts), key=new_pairs)
        for pair in itertools.combinations(sorted(row.items()), 2):
            left.pop(pair, None)
        chosen.append(tuple(axis[row[i]] for i, axis in enumerate(axes)))
    return chosen


def with_row_stride(a: torch.Tensor, extra: int, lead: int, filler: int) -> torch.Tensor:
    """The same values as a slice of columns of a wider tensor full of `filler`."""
    wide = torch.full((a.shape[0] + 2, lead + a.shape[1] + extra), filler, dtype=a.dtype)
    view = wide[1:-1, lead : lead + a.shape[1]]
    view.copy_(a)
    return view


GEMM_CASES = (
    GemmCase("smallest", 1, 1, 1),
    GemmCase("no_rows", 0, 5, 7),
    GemmCase("no_columns", 3, 0, 5),
    GemmCase("no_depth", 3, 5, 0),
    GemmCase("nothing", 0, 0, 0),
    GemmCase("ragged_depth_3", 5, 7, 3),
    GemmCase("whole_tile", 16, 16, 64),
    GemmCase("row_ragged", 1, 17, 65),
    GemmCase("two_rows", 2, 33, 127),
    GemmCase("five_rows", 5, 15, 63),
    GemmCase("six_rows", 6, 16, 64),
    GemmCase("seven_rows", 7, 31, 129),
    GemmCase("one_column", 9, 1, 66),
    GemmCase("ragged_everywhere", 17, 49, 191),
    GemmCase("ragged_amx_panel", 33, 97, 77),
    GemmCase("blocks_of_depth", 40, 70, 1101),
    GemmCase("aligned", 64, 128, 512),
    GemmCase("several_panels", 130, 257, 321),
    GemmCase("deep_row", 1, 3, 5000),
    GemmCase("minilm_query", 9, 384, 384),
    GemmCase("minilm_up", 21, 1536, 384),
    GemmCase("minilm_down", 21, 384, 1536),
)
GEMM_BY_NAME = {case.name: case for case in GEMM_CASES}

QUANTIZE_SHAPES = ((0, 5), (3, 0), (1, 1), (2, 3), (5, 17), (6, 63), (7, 64), (16, 65), (33, 130), (4, 1537))
