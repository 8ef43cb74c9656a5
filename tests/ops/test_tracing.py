"""Every op under torch's own checks: opcheck, fake tensors, torch.compile, dispatch keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import lamina
from lamina.doctor import attention, decoder_layers, sample
from lamina.ops.registration import FAKES
from tests.support.backends import emu_ops
from tests.support.cases import GEMM_BY_NAME, GemmCase, generator, random_int8
from tests.support.compare import assert_equal
from tests.support.int4_cases import Int4Case

# Others: test_decoder_layers.py, test_paged_attention_tracing.py, test_paged_kv_tracing.py and
# test_sample_tracing.py.
APART = {*attention.CHECKS, *decoder_layers.CHECKS, *sample.CHECKS}
TENSOR_OPS = sorted(set(FAKES) - APART)
PACKED_ON_THE_CPU = ("pack_int8", "unpack_int8", "compress_sparse24", "decompress_sparse24")
PACKED_ON_THE_CPU += ("import_sparse24_metadata", "import_marlin24", "pack_sparse24", "unpack_sparse24")


def gemm_arguments(m: int, n: int, k: int, zero_point: str, bias: torch.dtype | None) -> tuple[Any, ...]:
    i = GemmCase("trace", m, n, k).inputs(zero_point=zero_point, bias=bias)
    data, sums = torch.ops.lamina.pack_int8(i.w)
    return (i.a, data, sums, i.a_scale, i.w_scale, i.a_zero_point, i.bias)


def int4_calls() -> Iterator[tuple[Any, ...]]:
    """Calls of gemm_int4_int8: int8 and float activations, every optional argument."""
    i = Int4Case("trace", 7, 37, 70, 32).inputs(zero=torch.uint8, a_zero="token", bias=torch.float32)
    g, data = generator("trace"), i.pack()
    x, gate = torch.randn(7, 75, generator=g)[:, 3:73], torch.randn(7, 40, generator=g)[:, :37]
    given = (i.a_scale, i.w_zero_point, i.a_zero_point, i.bias)
    yield (i.a, data, i.w_scale, 32, *given)
    yield (i.a, data, i.w_scale, 32, *given, torch.half, "silu", gate, gate.bfloat16())
    yield (x.bfloat16(), data, i.w_scale.half(), 32, None, None, None, None, torch.bfloat16)
    yield (x, data, i.w_scale[:1], -1, None, i.w_zero_point[:1].float())
    yield (x[:0], data, i.w_scale, 32)
    yield (i.a, data, i.w_scale.T.contiguous().T, 32, torch.ones(1))
    perm = torch.arange(70).flip(0).int() - 1
    yield (i.a[:, :69].contiguous(), data, i.w_scale, 32, *given, torch.half, None, None, None, perm)


def sparse24_calls(op: str) -> Iterator[tuple[Any, ...]]:
    """Calls of the products with 2:4 weights, of pack_sparse24 and of unpack_sparse24."""
    g, (n, k) = generator("sparse24"), (33, 72)
    dtype = {"matmul_sparse24": torch.half, "matmul_sparse24_int8": torch.int8}.get(op, torch.uint8)
    mask = (torch.arange(n * k) % 4 < 2).view(n, k)
    w = torch.randint(0, 16, (n, k), generator=g).to(dtype)
    sparse = torch.ops.lamina.compress_sparse24(w, mask)
    group = 128 if dtype == torch.int8 else None
    data, sums = torch.ops.lamina.pack_sparse24(*sparse, k, "sparse24_rows", group)
    x, gate = torch.randn(7, 80, generator=g)[:, 3 : 3 + k], torch.randn(7, n, generator=g)
    q, one = random_int8(g, 7, k), torch.ones(1)
    scales = torch.rand(3, n, generator=g)
    if op == "pack_sparse24":
        yield (*sparse, k, "sparse24_rows")
        yield (sparse[0].to(torch.int8), sparse[1], k, "sparse24_rows", 128)
        yield (sparse[0][:0].half(), sparse[1][:0], k, "sparse24_rows")
    elif op == "unpack_sparse24":
        yield (data, n, k, "sparse24_rows", torch.uint8)
    elif op == "matmul_sparse24":
        yield (x.half(), data, n)
        yield (x.half()[:0], data, n, gate[0], torch.float32)
        yield (x.half(), data, n, None, None, "silu", gate, gate.half())
    elif op == "matmul_sparse24_int8":
        yield (q, data, sums, one, scales[:1], None, gate[0], torch.half, "silu", gate, gate.half())
        yield (q[:1], data, sums, one, one)
    elif op == "matmul_sparse24_int4":
        yield (x, data, scales, 32)
        yield (x.half(), data, scales, 32, scales.half(), gate[0], torch.float32, "gelu", gate)
        yield (x, data, scales[:1], -1, None, None, None, None, None, None, torch.arange(k).flip(0).int())
    else:
        yield (q, data, scales, 32, torch.ones(7, 1), scales, q[:, :1].contiguous(), gate[0])
        yield (x.bfloat16(), data, scales[:1], -1, None, None, None, None, torch.bfloat16, "silu", gate)


def activation_calls(op: str) -> Iterator[tuple[Any, ...]]:
    """Calls of rms_norm, silu_mul and their int8 forms."""
    x = torch.randn(9, 70, generator=generator("activations"))
    last = (False,) if op.endswith("int8") else ()
    if op.startswith("rms_norm"):
        weight = torch.ones(70)
        yield (x, weight)
        yield (x.half()[:, :65], weight.half()[:65], 1e-5, x.half()[:, 5:], *last)
        yield (x.bfloat16()[:0], weight.bfloat16())
    else:
        yield (x,)
        yield (x.half()[:, :65], x.half()[:, 5:], *last)
        yield (x.bfloat16()[:0], None, *last)


def sample_calls(op: str) -> Iterator[tuple[Any, ...]]:
    """Positional arguments of several calls that differ in shape, stride, dtype and optional arguments."""
    g = generator("samples")
    x = torch.randn(9, 70, generator=g)
    w = random_int8(g, 33, 70)
    if op == "quantize_int8":
        yield (x,)
        yield (x.half()[:, :65], None, None, False)
        yield (x.bfloat16()[:1], torch.tensor([0.1]))
        yield (x, torch.rand(9, 1) + 0.1, torch.zeros(9, 1, dtype=torch.int8), False)
        yield (x[:0],)
    elif op.startswith(("rms_norm", "silu_mul")):
        yield from activation_calls(op)
    elif op == "pack_int8":
        yield from ((w,), (w[:5, :64],), (w[:0],), (w[:, :0],), (w, 128))
    elif op == "pack_int4":
        codes = (w % 16).to(torch.uint8)
        yield from ((codes, "int4_tile"), (codes[:5, :64], "int4_rows"), (codes[:0], "int4_tile"))
        yield (codes, "int4_rows", torch.arange(-70, 70).clamp(min=-1).int())  # more tiles than codes has
    elif op == "unpack_int4":
        for layout in ("int4_tile", "int4_rows"):
            yield (torch.ops.lamina.pack_int4((w % 16).to(torch.uint8), layout), 33, 70, layout)
    elif op == "unpack_int8":
        for n, k in ((33, 70), (48, 128), (33, 65)):
            yield (torch.ops.lamina.pack_int8(torch.zeros(n, k, dtype=torch.int8))[0], n, k)
    elif op == "compress_sparse24":
        kept = torch.tensor([True, False, False, True]).repeat(33, 16)
        pruned = w[:, :64].where(kept, torch.tensor(0, dtype=torch.int8))
        yield from ((pruned,), (pruned.half()[:5, :60],), (pruned[:0],), (w[:, :64], kept, 8.0))
    elif op == "decompress_sparse24":
        for k, dtype in ((64, torch.int8), (36, torch.bfloat16), (0, torch.float32)):
            zeros = torch.zeros(33, k, dtype=dtype)
            yield (*torch.ops.lamina.compress_sparse24(zeros), k, 0.0)
    elif op == "import_sparse24_metadata":
        empty = torch.full((128 * 128 // 8,), 0xEE, dtype=torch.uint8)
        for order, words in (("cutlass_16", empty.view(torch.int16)), ("cutlass_8", empty.view(torch.int32))):
            yield (words, order, 128, 128)
        yield (torch.full((5, 1), 0x33, dtype=torch.uint8), "bitmask", 5, 4)
    elif op == "import_marlin24":
        for bits in (4, 8):
            yield (torch.arange(3 * 32 * bits).int().view(3, -1), bits)
    elif op == "gemm_int4":
        i = Int4Case("trace", 9, 33, 70, 32).inputs(zero=torch.uint8, bias=torch.float16)
        weight = (i.pack(), i.w_scale)
        yield (x, *weight, 32)
        yield (x.half()[:, :70], *weight, 32, i.w_zero_point, i.bias, torch.float32, "gelu", x[:, :33])
        yield (
            x.bfloat16()[:1],
            weight[0],
            i.w_scale[:1].bfloat16(),
            -1,
            None,
            None,
            None,
            None,
            None,
            x[:1, :33],
        )
        yield (x[:0], *weight, 32, i.w_zero_point.float())
        yield (x.clone().requires_grad_(), *weight, 32, i.w_zero_point, None, None)
        few, perm = x[:, :69].clone().requires_grad_(), torch.arange(70).flip(0).int() - 1
        yield (few, *weight, 32, i.w_zero_point, None, None, None, None, None, perm)
    elif op == "gemm_int4_int8":
        yield from int4_calls()
    elif op in ("pack_sparse24", "unpack_sparse24") or op.startswith("matmul_sparse24"):
        yield from sparse24_calls(op)
    elif op == "gemm_int8_quantized":
        base = gemm_arguments(7, 37, 70, "token", torch.float32)
        gate = torch.randn(7, 40, generator=g)[:, :37]
        yield base
        yield (*base, "gelu", gate.half(), gate, None, False)
        yield (*base, None, None, gate.bfloat16(), torch.tensor([0.1]))
        yield (*gemm_arguments(0, 5, 7, "none", None), "silu", None, None, torch.ones(0, 1))
    else:
        gate = torch.randn(7, 40, generator=g)[:, :37]
        yield gemm_arguments(7, 37, 70, "token", torch.float32)
        yield (*gemm_arguments(7, 37, 70, "token", torch.float32), torch.half, "silu", gate, gate.bfloat16())
        yield (*gemm_arguments(1, 16, 64, "none", None), torch.bfloat16, None, None, None, 2)
        yield (*gemm_arguments(0, 5, 7, "tensor", torch.float16), torch.float16)
        a, *rest = gemm_arguments(6, 33, 70, "token", torch.bfloat16)
        yield (torch.cat([a, a], 1)[:, :70], *rest)
        groups = torch.rand(3, 33, generator=g)
        wide = random_int8(g, 33, 300)
        yield (wide[:4], *torch.ops.lamina.pack_int8(wide, 128), groups[:, :4].T, groups)


CALLS = [
    pytest.param(op, arguments, id=f"{op}-{number}")
    for op in TENSOR_OPS
    for number, arguments in enumerate(sample_calls(op))
]


@pytest.mark.parametrize("op, arguments", CALLS)
def test_opcheck(op: str, arguments: tuple[Any, ...]) -> None:
    torch.library.opcheck(getattr(torch.ops.lamina, op).default, arguments)


@pytest.mark.parametrize("op", TENSOR_OPS)
def test_opcheck_of_the_emulated_library(op: str) -> None:
    ops = emu_ops()
    if ops is None:
        pytest.skip("the emulated library is not built (install libsimde-dev)")
    torch.library.opcheck(getattr(ops, op).default, next(sample_calls(op)))


def kind(result: Any) -> list[tuple[Any, ...]]:
    tensors = [result] if isinstance(result, torch.Tensor) else list(result)
    return [(tuple(t.shape), t.dtype, t.stride(), t.device.type) for t in tensors]


@pytest.mark.parametrize("op, arguments", CALLS)
def test_fake_kernels_promise_what_the_real_ones_give(op: str, arguments: tuple[Any, ...]) -> None:
    call = getattr(torch.ops.lamina, op)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments]
        promised = kind(call(*fakes))
    assert promised == kind(call(*arguments))
    meta = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in arguments]
    on_meta = [(shape, dtype) for shape, dtype, *_ in kind(call(*meta))]
    assert on_meta == [(shape, dtype) for shape, dtype, *_ in promised]


@pytest.mark.parametrize("op", TENSOR_OPS)
def test_registered_for_cpu_cuda_and_meta(op: str) -> None:
    for key in ("CPU", "CUDA"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"lamina::{op}", key)
    overload = getattr(torch.ops.lamina, op).default
    assert torch._library.simple_registry.singleton.find(str(overload._schema.name)).fake_impl.kernel


@pytest.mark.parametrize("op", PACKED_ON_THE_CPU)
def test_packing_on_cuda_says_to_pack_on_the_cpu(op: str) -> None:
    """The test calls the function to which a CUDA tensor would dispatch, without such a tensor."""
    cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    with pytest.raises(ValueError, match=f"lamina::{op}: .*(packs|presses|imports) on the CPU only: move"):
        getattr(torch.ops.lamina, op).default.redispatch(cuda, *next(sample_calls(op)))


@pytest.mark.parametrize("op", TENSOR_OPS)
def test_schema_names_no_argument_mode(op: str) -> None:
    schema = getattr(torch.ops.lamina, op).default._schema
    assert "mode" not in [argument.name for argument in schema.arguments]
    assert not schema.is_mutable


# The arguments of each product behind `bias`, in the order in which callers may give them by position.
BEHIND_BIAS = {
    "gemm_int8": "out_dtype activation gate residual max_sms",
    "gemm_int8_quantized": "activation gate residual out_scale symmetric max_sms",
    "gemm_int4": "out_dtype activation gate residual perm max_sms",
    "gemm_int4_int8": "out_dtype activation gate residual perm max_sms",
    "matmul_sparse24": "out_dtype activation gate residual max_sms",
    "matmul_sparse24_int8": "out_dtype activation gate residual max_sms dense dense_rows",
    "matmul_sparse24_int4": "out_dtype activation gate residual perm max_sms dense dense_rows",
    "matmul_sparse24_int4_int8": "out_dtype activation gate residual perm max_sms dense dense_rows",
}


@pytest.mark.parametrize("op", BEHIND_BIAS)
def test_calls_by_position_stay_valid(op: str) -> None:
    names = [argument.name for argument in getattr(torch.ops.lamina, op).default._schema.arguments]
    wanted = BEHIND_BIAS[op].split()
    assert names[names.index("bias") + 1 :][: len(wanted)] == wanted


def linear(x: torch.Tensor, packed: lamina.PackedInt8, w_scale: torch.Tensor) -> torch.Tensor:
    q, scale, zero_point = lamina.quantize_int8(x.abs() + x, symmetric=False)
    y = lamina.gemm_int8(q, packed, scale, w_scale, a_zero_point=zero_point, out_dtype=x.dtype)
    return y * 2


def gated(x: torch.Tensor, packed: lamina.PackedInt8, w_scale: torch.Tensor) -> torch.Tensor:
    q = lamina.quantize_int8(x)
    up = lamina.gemm_int8(q.q, packed, q.scale, w_scale, out_dtype=torch.bfloat16)
    y = lamina.gemm_int8_quantized(q.q, packed, q.scale, w_scale, activation="silu", gate=up, residual=up)
    return y.q * y.scale


def gated_mlp(x: torch.Tensor, packed: lamina.PackedInt8, w_scale: torch.Tensor) -> torch.Tensor:
    norm = torch.ones_like(x[0])
    q, residual = lamina.rms_norm_int8(x, norm, residual=x)
    y = lamina.gemm_int8(q.q, packed, q.scale, w_scale)
    hidden = lamina.silu_mul_int8(y, y * 2, symmetric=False)
    return torch.cat([hidden.q.float(), lamina.rms_norm(residual, norm), lamina.silu_mul(y, y)], 1)


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("layer", [linear, gated, gated_mlp])
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compiles_to_one_graph_for_every_m(backend: str, layer: Callable[..., torch.Tensor]) -> None:
    inputs = GEMM_BY_NAME["seven_rows"].inputs()
    packed, w_scale = lamina.pack_int8(inputs.w), inputs.w_scale.flatten()
    graphs = 0

    def counted(graph: torch.fx.GraphModule, examples: list[Any]) -> Callable[..., Any]:
        nonlocal graphs
        graphs += 1
        compiler: Callable[..., Any] = torch._dynamo.lookup_backend(backend)
        compiled: Callable[..., Any] = compiler(graph, examples)
        return compiled

    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counted)
    g = generator("compile")
    graphs_so_far = []  # a first call may begin again, once it knows which sizes are equal
    for m in (7, 2, 33, 130):
        x = torch.randn(m, inputs.w.shape[1], generator=g)
        assert_equal(compiled(x, packed, w_scale), layer(x, packed, w_scale), f"m = {m}")
        graphs_so_far.append(graphs)
    assert 1 <= graphs_so_far[0] <= 2
    assert graphs == graphs_so_far[0]


@pytest.mark.usefixtures("fresh_dynamo")
def test_packing_compiles() -> None:
    def round_trip(w: torch.Tensor) -> torch.Tensor:
        return lamina.pack_int8(w).unpack()

    compiled = torch.compile(round_trip, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (5, 17, 40):
        w = random_int8(generator("compiled pack"), n, 66)
        assert_equal(compiled(w), w)


def test_exports() -> None:
    inputs = GEMM_BY_NAME["seven_rows"].inputs()
    packed, w_scale = lamina.pack_int8(inputs.w), inputs.w_scale.flatten()

    class Layer(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return linear(x, packed, w_scale)

    x = torch.randn(7, inputs.w.shape[1])
    m = torch.export.Dim("m", min=2, max=4096)
    program = torch.export.export(Layer(), (x,), dynamic_shapes=({0: m},))
    for rows in (x, x[:3]):
        assert_equal(program.module()(rows), linear(rows, packed, w_scale))
