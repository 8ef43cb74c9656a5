"""The subjects of benchmarks: cases, the implementations of an op, and the copies of a weight that rotate.

An op plugs in as bench/ops/<op>.py with a module-level `BENCH: OpBench`. An implementation is `lamina` or a
peer; a peer's name starts with its family (`torch_f32` is of `torch`), and `--peers torch` takes the family.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import bench.ops
from bench.models import MODELS
from bench.roofline import Work

T = TypeVar("T")
C = TypeVar("C", contravariant=True)


class BenchError(Exception):
    """A request that cannot be met; the message says what is allowed."""


class AnyCase(Protocol):
    """A case of any op, as the frame sees it."""

    @property
    def op(self) -> str: ...

    @property
    def device(self) -> str: ...

    @property
    def operands(self) -> tuple[object, ...]:
        """Equal for cases that may share the copies of an operand."""

    def to_json(self) -> dict[str, object]:
        """The shape: what the rows of one table share."""

    def title(self) -> str: ...


def title_of(shape: Mapping[str, object]) -> str:
    return " ".join(f"{name}={value}" for name, value in shape.items())


@dataclass(frozen=True)
class Case:
    """One shape of a product."""

    op: str
    device: str
    m: int
    n: int
    k: int
    dtype: str
    group: int | None = None
    values: str = "normal"  # of the operands: normal, quantised to their maximum, or uniform
    weight_dtype: str | None = None  # of ops with weights of several types

    @property
    def operands(self) -> tuple[object, ...]:
        return (self.n, self.k)

    def to_json(self) -> dict[str, object]:
        shape: dict[str, object] = {"m": self.m, "n": self.n, "k": self.k, "dtype": self.dtype}
        shape["values"] = self.values
        if self.weight_dtype is not None:
            shape["weight_dtype"] = self.weight_dtype
        return shape if self.group is None else {**shape, "group": self.group}

    def title(self) -> str:
        return title_of(self.to_json())


@dataclass
class Ring(Iterator[T]):
    """Equal copies at different addresses; a call takes the next, which no cache holds by then."""

    copies: list[T]
    nbytes: int  # of all copies
    _next: int = 0

    def __next__(self) -> T:
        copy = self.copies[self._next]
        self._next = (self._next + 1) % len(self.copies)
        return copy

    def __iter__(self) -> Ring[T]:
        return self


@dataclass
class Rotation:
    """Makes rings of at least `target_bytes` (hot: of one copy), kept for cases of the same weight."""

    hot: bool
    target_bytes: int
    max_copies: int = 4096
    _rings: dict[tuple[object, ...], Ring[Any]] = field(default_factory=dict)

    def copies_of(self, nbytes: int, max_copies: int | None = None) -> int:
        if self.hot:
            return 1
        wanted = max(2, -(-self.target_bytes // max(nbytes, 1)))
        return min(wanted, self.max_copies if max_copies is None else max_copies)

    def ring(
        self, key: tuple[object, ...], nbytes: int, make: Callable[[], T], max_copies: int | None = None
    ) -> Ring[T]:
        """The ring under `key`, made of `make()` results of `nbytes` each when it is not there yet."""
        if key not in self._rings:
            count = self.copies_of(nbytes, max_copies)
            self._rings[key] = Ring([make() for _ in range(count)], count * nbytes)
        return self._rings[key]

    def clear(self) -> None:
        self._rings.clear()


@dataclass(frozen=True)
class Accuracy:
    """The largest error: absolute, and as a fraction of its element's error bound."""

    max_error: float
    over_bound: float


@dataclass
class Candidate:
    """One implementation bound to one case, ready to be checked and timed."""

    impl: str
    computes: str  # one line: what a call does that the others may not
    call: Callable[[], object]
    check: Callable[[], Accuracy]
    work: Work
    ring: Ring[Any] | None = None
    isa: str | None = None  # forced; only lamina has one
    select: Callable[[], None] | None = None
    plan: str | None = None
    check_output: Callable[[object], Accuracy] | None = None  # of what a captured call left, on a GPU


@dataclass
class Context:
    """The options of a run, which are the same for every op."""

    rotation: Rotation
    threads: int
    isas: Sequence[str]  # lamina's, each a row
    peers: Sequence[str]
    skip: Sequence[str] = ()
    skipped: dict[str, str] = field(default_factory=dict)  # impl -> why it has no row

    def wants(self, impl: str) -> bool:
        if impl in self.skip:
            return False
        return impl == "lamina" or any(impl == peer or impl.startswith(peer + "_") for peer in self.peers)


class AnyBench(Protocol[C]):
    """BENCH of any op in bench/ops/<op>.py, as the frame sees it."""

    @property
    def name(self) -> str: ...

    @property
    def devices(self) -> tuple[str, ...]:
        """Devices that have kernels."""

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Allowed --dtype values, the default first."""

    def peers_on(self, device: str) -> tuple[str, ...]: ...

    def candidates(self, case: C, context: Context) -> list[Candidate]:
        """lamina first, then the wanted peers; one that cannot run is noted in context.skipped."""


class OpBench(AnyBench[Case], Protocol):
    """BENCH of a product."""

    @property
    def groups(self) -> tuple[int, ...]:
        """Allowed --group values; none is always allowed."""


def op_names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules([str(Path(bench.ops.__file__).parent)]))


def load_op(name: str) -> OpBench:
    if name not in op_names():
        raise BenchError(f"op: got {name!r}; allowed: {', '.join(op_names())}")
    return cast(OpBench, importlib.import_module(f"bench.ops.{name}").BENCH)


def check_device_and_dtype(op: AnyBench[Any], device: str, dtype: str | None) -> None:
    if device not in ("cpu", "cuda"):
        raise BenchError(f"--device: got {device!r}; allowed: cpu, cuda")
    if device not in op.devices:
        raise BenchError(
            f"--device {device}: {op.name} has no {device} kernels; allowed: {', '.join(op.devices)}"
        )
    if dtype is not None and dtype not in op.dtypes:
        raise BenchError(f"--dtype: got {dtype!r}; {op.name} allows {', '.join(op.dtypes)}")


def make_cases(
    op: OpBench,
    device: str,
    ms: Sequence[int],
    weights: Sequence[tuple[int, int]],
    dtype: str | None,
    group: int | None,
) -> list[Case]:
    """One case per weight (n, k) and m, after checking everything that a user can get wrong."""
    check_device_and_dtype(op, device, dtype)
    if group is not None and group not in op.groups:
        allowed = ", ".join(map(str, op.groups)) or "no groups"
        raise BenchError(f"--group: got {group}; {op.name} allows {allowed}")
    for n, k in weights:
        check_sizes(m=min(ms, default=1), n=n, k=k)
    return [Case(op.name, device, m, n, k, dtype or op.dtypes[0], group) for n, k in weights for m in ms]


def weights_of_model(op: str, model: str) -> list[tuple[int, int]]:
    """(n, k) of the weights that a matrix product meets in a model."""
    products = [name for name in op_names() if name.startswith(("gemm_", "matmul_"))]
    if op not in products:
        allowed = ", ".join(products)
        raise BenchError(f"--model: got {model!r} with {op}; allowed with the matrix products {allowed}")
    if model not in MODELS:
        raise BenchError(f"--model: got {model!r}; allowed: {', '.join(MODELS)}")
    return [*MODELS[model].weights().values(), MODELS[model].head()]


def weight_dtype_of(op: object, weight_dtype: str | None) -> str | None:
    """The type of the weights, by default the first of the op; None where weights have one type."""
    allowed: tuple[str, ...] = getattr(op, "weight_dtypes", ())
    if weight_dtype is not None and weight_dtype not in allowed:
        choices = ", ".join(allowed) or "none, as its weights have one type"
        raise BenchError(f"--weight-dtype: got {weight_dtype!r}; allowed: {choices}")
    return weight_dtype or (allowed[0] if allowed else None)


def parse_sizes(text: str) -> list[int]:
    """ "1:64,100" as [1, 2, 4, ..., 64, 100]: sizes, and ranges of powers of two; each size once."""
    found: list[int] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        size = re.fullmatch(r"(\d+)(?::(\d+))?", part)
        if size is None:
            raise BenchError(f"got {part!r}; allowed: whole numbers, ranges such as 1:512, comma separated")
        first, last = int(size[1]), int(size[2] or size[1])
        powers = [1 << bit for bit in range(last.bit_length()) if first <= 1 << bit <= last]
        if size[2] and not powers:
            raise BenchError(f"got {part!r}; allowed: a range that holds a power of two, such as 1:512")
        found += powers if size[2] else [first]
    return list(dict.fromkeys(found))


def check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise BenchError(f"--{name.replace('_', '-')}: got {size}; a benchmark needs at least 1")


def check_peers(op: AnyBench[Any], device: str, names: Sequence[str]) -> None:
    peers = op.peers_on(device)
    families = {peer.split("_")[0] for peer in peers}
    for name in names:
        if name not in peers and name not in families:
            allowed = ", ".join(sorted(families | set(peers)))
            raise BenchError(f"--peers: got {name!r}; {op.name} on {device} has {allowed}")


def finite(value: float) -> float:
    """JSON has no NaN and no infinity: both are an error beyond any bound."""
    return value if abs(value) <= sys.float_info.max else sys.float_info.max
