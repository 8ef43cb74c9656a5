"""Products of DTensors on two processes: rows, output features and input features sharded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lamina
import lamina.parallel  # registers the rules
from lamina.ops import PackedInt4, PackedInt8
from lamina.quant import quantize_weight_int4
from tests.python.test_int8_linear import seeded
from tests.support.cases import generator
from tests.support.compare import assert_equal
from tests.support.on_ranks import run_on_ranks

M, N, K, GROUP = 6, 64, 512, 64


def run_products(rank: int, size: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (size,))
    whole, rows, columns = Replicate(), Shard(0), Shard(1)

    def put(tensor: Tensor | None, placement: Any) -> Any:
        return None if tensor is None else distribute_tensor(tensor, mesh, [placement])

    def check(got: Any, want: Tensor, placement: Any) -> None:
        assert isinstance(got, DTensor)
        assert got.placements == (placement,)
        if placement.is_partial():  # the integers are exact, the f32 steps after them are not
            near, size = got.full_tensor().double(), want.double().abs().max()
            assert bool(((near - want.double()).abs() <= 40 * 2.0**-24 * size).all())
        else:
            assert_equal(got.full_tensor(), want)

    x, bias, gate, residual = seeded(M, K), seeded(N, seed=1), seeded(M, N, seed=2), seeded(M, N, seed=3)
    w = torch.randint(-128, 128, (N, K), generator=generator("w"), dtype=torch.int8)
    w_scale = torch.rand(N, generator=generator("scale")) * 0.1
    a, packed = lamina.quantize_int8(x, symmetric=False), lamina.pack_int8(w)

    # quantize_int8: rows; a scale that is found needs whole rows, so DTensor gathers a sharded k
    for placement in (rows, columns):
        found = lamina.quantize_int8(put(x, placement), symmetric=False)
        for got, want in zip(found, a, strict=True):
            assert_equal(got.full_tensor(), want)
        assert found.q.placements == ((rows,) if placement is rows else (whole,))
    given = lamina.quantize_int8(put(x, columns), scale=put(torch.tensor([0.05]), whole))
    check(given.q, lamina.quantize_int8(x, scale=torch.tensor([0.05])).q, columns)

    def int8(**then: Any) -> Tensor:
        options = {"a_zero_point": a.zero_point, "bias": bias, "gate": gate, "residual": residual} | then
        return lamina.gemm_int8(a.q, packed, a.scale, w_scale, **options)

    # gemm_int8 with rows sharded
    got = lamina.gemm_int8(
        put(a.q, rows), PackedInt8(put(packed.data, whole), put(packed.column_sums, whole), N, K),
        put(a.scale, rows), put(w_scale, whole), a_zero_point=put(a.zero_point, rows), bias=put(bias, whole),
        gate=put(gate, rows), residual=put(residual, rows), activation="gelu",
    )  # fmt: skip
    check(got, int8(activation="gelu"), rows)

    # n sharded
    got = lamina.gemm_int8(
        put(a.q, whole), PackedInt8(put(packed.data, rows), put(packed.column_sums, rows), N, K),
        put(a.scale, whole), put(w_scale, rows), a_zero_point=put(a.zero_point, whole), bias=put(bias, rows),
        gate=put(gate, columns), residual=put(residual, columns), activation="gelu",
    )  # fmt: skip
    check(got, int8(activation="gelu"), columns)

    # k sharded: each process has the column sums of its own features
    own = packed.shard(k=lamina.parallel.cuts(K, size)[rank])
    sums = DTensor.from_local(own.column_sums, mesh, [Partial()])
    of_k = PackedInt8(put(packed.data, columns), sums, N, K)
    assert_equal(of_k.data.to_local(), own.data)
    for activation in (None, "silu"):  # the same tensors, another decision
        got = lamina.gemm_int8(
            put(a.q, columns), of_k, put(a.scale, whole), put(w_scale, whole), activation=activation,
            a_zero_point=put(a.zero_point, whole), bias=put(bias, whole), gate=put(gate, whole),
            residual=put(residual, whole),
        )  # fmt: skip
        if activation is None:
            check(got, int8(), Partial())
        else:  # DTensor chooses where
            assert not got.placements[0].is_partial()
            assert_equal(got.full_tensor(), int8(activation=activation))
    for dtype in (torch.float32, torch.bfloat16):
        got = lamina.gemm_int8(
            put(a.q, columns), of_k, put(a.scale, whole), put(w_scale, whole), out_dtype=dtype
        )
        assert got.dtype is got.to_local().dtype is dtype

    # scales for every 128 input features
    packed = lamina.pack_int8(w, 128)
    by_group = torch.rand(K // 128, N, generator=generator("by group")) * 0.1
    of_rows = torch.rand(M, K // 128, generator=generator("of rows")) * 0.1
    got = lamina.gemm_int8(
        put(a.q, columns), PackedInt8(put(packed.data, columns), put(packed.column_sums, rows), N, K),
        put(of_rows, columns), put(by_group, rows), a_zero_point=put(a.zero_point, whole),
    )  # fmt: skip
    want = lamina.gemm_int8(a.q, packed, of_rows, by_group, a_zero_point=a.zero_point)
    check(got, want, Partial())

    q = quantize_weight_int4(seeded(N, K, seed=4), GROUP, symmetric=False)
    codes = lamina.pack_int4(q.q, "int4_rows")
    assert q.zero_point is not None

    def int4(
        op: Any, activations: Tensor, at: Any, w_at: Any, scale_at: Any, bias_at: Any, **more: Any
    ) -> Any:
        weight = PackedInt4(put(codes.data, w_at), N, K, "int4_rows")
        return op(
            put(activations, at), weight, put(q.scale, scale_at), group=GROUP, bias=put(bias, bias_at),
            w_zero_point=put(q.zero_point, scale_at), **more,
        )  # fmt: skip

    options: dict[str, Any] = {"group": GROUP, "w_zero_point": q.zero_point, "bias": bias}
    for op, activations, scale in (
        (lamina.gemm_int4, x, None),
        (lamina.gemm_int4_int8, a.q, a.scale),
        (lamina.gemm_int4_int8, x, None),  # is quantised inside, by token
    ):
        want = op(activations, codes, q.scale, **options, **({} if scale is None else {"a_scale": scale}))
        for at, places, placement in (
            (rows, (rows, whole, whole, whole), rows),
            (whole, (whole, rows, columns, rows), columns),
            (columns, (columns, columns, rows, whole), Partial()),
        ):
            more = {} if scale is None else {"a_scale": put(scale, rows if at is rows else whole)}
            is_quantised_inside = op is lamina.gemm_int4_int8 and scale is None
            got = int4(op, activations, *places, **more)
            if at is columns and is_quantised_inside:
                assert not got.placements[0].is_partial()
                assert_equal(got.full_tensor(), want)
            else:
                check(got, want, placement)

    # a layer that does not divide into tiles is not sharded, and still right
    odd, scale = lamina.pack_int4(q.q[:40], "int4_rows"), q.scale[:, :40].contiguous()
    weight = PackedInt4(put(odd.data, whole), 40, K, "int4_rows")
    got = lamina.gemm_int4(put(x, whole), weight, put(scale, columns), group=GROUP)
    assert_equal(got.full_tensor(), lamina.gemm_int4(x, odd, scale, group=GROUP))


def test_products_of_two_processes(tmp_path: Path) -> None:
    run_on_ranks(run_products, 2, tmp_path)
