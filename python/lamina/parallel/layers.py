"""Linear layers that are divided among the processes of a group."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lamina.nn.packed_linear import PackedLinear
from lamina.ops.pack_int8 import TILE_K
from lamina.ops.tiles import Range


def cuts(extent: int, size: int) -> list[Range]:
    """The ranges of features of the parts of a layer, by rank.

    All have the same length if `size` divides `extent`. Otherwise they begin at multiples of 64, the input
    features of a tile, and differ in length by at most 64 and the ragged end. The ranges depend on nothing
    else, so that a row-parallel layer has the input features that a column-parallel one gives it.

    Raises   ValueError for a size that leaves a part empty
    """
    step = 1 if size >= 1 and extent % size == 0 else TILE_K
    units = -(-extent // step)
    if not 1 <= size <= units:
        tiles = -(-extent // TILE_K)
        raise ValueError(
            f"{extent} features divide into 1 to {tiles} parts of whole tiles, or into as many as a divisor "
            f"of {extent}; got size = {size}"
        )
    each, more = divmod(units, size)
    begins = [step * (rank * each + min(rank, more)) for rank in range(size)]
    return list(zip(begins, [*begins[1:], extent], strict=True))


def shard(layer: nn.Linear | PackedLinear, n: Range | None = None, k: Range | None = None) -> nn.Module:
    """PackedLinear.shard, also of an nn.Linear."""
    if isinstance(layer, PackedLinear):
        return layer.shard(n, k)
    n, k = n or (0, layer.out_features), k or (0, layer.in_features)
    bias = None if k[0] > 0 else layer.bias
    part = nn.Linear(k[1] - k[0], n[1] - n[0], bias is not None, device="meta", dtype=layer.weight.dtype)
    given = {"weight": layer.weight[n[0] : n[1], k[0] : k[1]]}
    given |= {} if bias is None else {"bias": bias[n[0] : n[1]]}
    for name, tensor in given.items():
        requires_grad = layer.get_parameter(name).requires_grad
        setattr(part, name, nn.Parameter(tensor.detach().clone(), requires_grad=requires_grad))
    return part.train(layer.training)


class ParallelLinear(nn.Module):
    """A linear layer of which this process holds the part `layer`.

    Its tensors are named for the part in state dicts, such as part_0_of_2.weight, so that no part loads into
    another one.
    """

    def __init__(
        self, layer: nn.Module, extent: int, rank: int, size: int, group: dist.ProcessGroup | None
    ) -> None:
        super().__init__()
        self._part = f"part_{rank}_of_{size}"
        self.add_module(self._part, layer)
        self.rank, self.size, self.group = rank, size, group
        self.ranges = cuts(extent, size)

    @property
    def layer(self) -> nn.Module:
        """The part of this process."""
        part: nn.Module = getattr(self, self._part)
        return part

    @property
    def weight(self) -> Tensor:
        """The weight of this part, for modules around the layer that read its dtype."""
        layer: Any = self.layer
        weight: Tensor = layer.weight
        return weight

    def _product(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in self.parameters())):
            raise RuntimeError(
                f"lamina.parallel.{type(self).__name__} has no backward pass, and its input or its weight "
                "requires grad; call the model under torch.inference_mode() or torch.no_grad()"
            )
        y: Tensor = self.layer(x)
        return y

    def _gather(self, y: Tensor) -> list[Tensor]:
        """y of each process, in the order of the ranks."""
        y = y.contiguous()
        gathered = [torch.empty_like(y) for _ in range(self.size)]
        dist.all_gather(gathered, y, group=self.group)
        return gathered

    def extra_repr(self) -> str:
        """The text in the parentheses of print(model)."""
        return f"rank={self.rank}, size={self.size}"


class ColumnParallel(ParallelLinear):
    """A linear layer whose output features are divided among processes: y = x @ w.T + bias. For inference.

    layer          the whole layer, an nn.Linear or a packed layer of lamina.nn; it is not changed
    rank, size     the place of this process, and the number of processes
    group          torch.distributed process group; None is the default group. Making a module needs no group
    gather_output  True: every process gets all output features. False: it gets those of cuts(n, size)[rank]

    x [..., k] is the same in every process. The output of a packed layer has the bits of the whole layer's.
    """

    def __init__(
        self,
        layer: nn.Linear | PackedLinear,
        rank: int,
        size: int,
        *,
        group: dist.ProcessGroup | None = None,
        gather_output: bool = False,
    ) -> None:
        n = layer.out_features
        super().__init__(shard(layer, n=cuts(n, size)[rank]), n, rank, size, group)
        self.gather_output = gather_output

    def forward(self, x: Tensor) -> Tensor:
        """x [..., k] -> [..., n], or the output features of this process."""
        y = self._product(x)
        if not self.gather_output or self.size == 1:
            return y
        widths = [end - begin for begin, end in self.ranges]
        gathered = self._gather(nn.functional.pad(y, (0, max(widths) - y.shape[-1])))
        return torch.cat([part[..., :width] for part, width in zip(gathered, widths, strict=True)], -1)


class RowParallel(ParallelLinear):
    """A linear layer whose input features are divided among processes: y = x @ w.T + bias. For inference.

    layer        the whole layer, an nn.Linear or a packed layer of lamina.nn; it is not changed
    rank, size   the place of this process, and the number of processes
    group        torch.distributed process group; None is the default group. Making a module needs no group
    split_input  True: x has all input features, of which this process takes its own. False: x has those of
                 cuts(k, size)[rank], as a ColumnParallel of that many output features gives them
    ordered      False: all_reduce adds the outputs of the processes. With more than two processes its order
                 may depend on the number of tokens. True: each process gathers all outputs and adds them in
                 f32 in the order of the ranks, so that a token has the same bits in every batch. For size
                 processes this receives size / 2 times as many bytes

    Every process gets the whole output, and rank 0 adds the bias. Each process computes in the dtype of x, so
    that |y - exact| <= sum_r B_r + size u sum_r |y_r| for size <= 16, where y_r is the output of rank r, B_r
    is the bound of its product (the docstrings of lamina.ops), and u = 2^-24 | 2^-11 | 2^-8 for f32 | f16 |
    bf16.

    Int8 activations: each process quantises its own part of a token with a scale of its own, which needs no
    communication. The scale s_r of a part is at most the scale s of the whole token, because the part's
    largest |x| and its range are at most the token's. So the error of quantisation, at most
    sum_r s_r (0.5 + 2^-14) sum_p |w[j, p]| over the features p of rank r, is at most the bound of one
    process, which has s for each s_r. An input_scale of a checkpoint holds for all parts.
    """

    def __init__(
        self,
        layer: nn.Linear | PackedLinear,
        rank: int,
        size: int,
        *,
        group: dist.ProcessGroup | None = None,
        split_input: bool = False,
        ordered: bool = False,
    ) -> None:
        k = layer.in_features
        super().__init__(shard(layer, k=cuts(k, size)[rank]), k, rank, size, group)
        self.split_input = split_input
        self.ordered = ordered

    def forward(self, x: Tensor) -> Tensor:
        """x [..., k], or the input features of this process -> [..., n]."""
        begin, end = self.ranges[self.rank]
        y = self._product(x[..., begin:end] if self.split_input else x)
        if self.size == 1:
            return y
        if not self.ordered:
            dist.all_reduce(y, group=self.group)
            return y
        first, *others = self._gather(y)
        total = first.float()
        for other in others:
            total = total + other
        return total.to(y.dtype)
