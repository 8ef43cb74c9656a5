"""lamina.integrations.vllm: how it registers, and what its linear layers compute, with a pretended vLLM."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lamina.testing.compare import error_over_bound
from lamina.testing.reference import Expected, gemm_int4, gemm_int4_int8, gemm_int8, quantize_int8
from tests.support.cases import generator
from tests.support.pretend_vllm import PlatformEnum, layer_config, parameter, pretend_vllm

LINEAR = "vllm.model_executor.kernels.linear"
REGISTRY = "vllm.v1.attention.backends.registry"


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The package, freshly imported, with the default options."""
    for name in ("PRIORITY", "ACTIVATIONS", "ATTENTION"):
        monkeypatch.delenv(f"LAMINA_VLLM_{name}", raising=False)
    with pretend_vllm():
        yield resolve_name("lamina.integrations.vllm")


def kernels() -> dict[tuple[str, str], list[str]]:
    """The names of the linear kernels in the order in which vLLM asks them."""
    lists = {"int4": "_POSSIBLE_KERNELS", "int8": "_POSSIBLE_INT8_KERNELS"}
    return {
        (kind, platform.name): [getattr(kernel, "__name__", kernel) for kernel in of_platform]
        for kind, name in lists.items()
        for platform, of_platform in resolve_name(f"{LINEAR}:{name}").items()
    }


def test_importing_lamina_or_the_package_imports_nothing_of_vllm() -> None:
    code = (
        "import sys, lamina, lamina.integrations.vllm;"
        "print([name for name in sys.modules if name.split('.')[0] == 'vllm'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("priority", [None, "first", "last"])
def test_kernels_are_registered_once(
    plugin: Any, monkeypatch: pytest.MonkeyPatch, priority: str | None
) -> None:
    if priority is not None:
        monkeypatch.setenv("LAMINA_VLLM_PRIORITY", priority)
    plugin.register()
    plugin.register()
    ours = {"int4": "LaminaInt4LinearKernel", "int8": "LaminaInt8LinearKernel"}
    for (kind, _), names in kernels().items():
        assert names == (["stock", ours[kind]] if priority == "last" else [ours[kind], "stock"])


def test_attention_takes_the_place_of_the_backends(plugin: Any) -> None:
    plugin.register()
    members = resolve_name(f"{REGISTRY}:AttentionBackendEnum")
    for name in ("CPU_ATTN", "CUSTOM"):
        backend = resolve_name(getattr(members, name).get_path())
        assert backend.get_name() == name
        assert backend.__module__ == "lamina.integrations.vllm.attention"


def test_attention_can_stay_stock(plugin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMINA_VLLM_ATTENTION", "stock")
    plugin.register()
    assert not any(member.is_overridden() for member in resolve_name(f"{REGISTRY}:AttentionBackendEnum"))


def test_a_backend_of_another_plugin_stays(plugin: Any, caplog: pytest.LogCaptureFixture) -> None:
    custom = resolve_name(f"{REGISTRY}:AttentionBackendEnum.CUSTOM")
    resolve_name(f"{REGISTRY}:register_backend")(custom, "another.Backend")
    plugin.register()
    assert custom.get_path() == "another.Backend"
    assert "another plugin has taken the attention backend CUSTOM: another.Backend" in caplog.text


@pytest.mark.parametrize("name", ["PRIORITY", "ACTIVATIONS", "ATTENTION"])
def test_a_wrong_option_is_named(plugin: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"LAMINA_VLLM_{name}", "fastest")
    with pytest.raises(ValueError, match=rf"LAMINA_VLLM_{name} = 'fastest'; allowed: \w+, \w+"):
        plugin.register()


@pytest.mark.parametrize(
    "path",
    [
        f"{LINEAR}:register_linear_kernel",
        f"{LINEAR}:Int8ScaledMMLinearKernel",
        f"{LINEAR}:_POSSIBLE_KERNELS",
        f"{REGISTRY}:register_backend",
        f"{REGISTRY}:AttentionBackendEnum",
        "vllm.v1.attention.backend:AttentionBackend.customize_spec",
    ],
)
def test_a_version_that_lacks_a_hook_is_an_error_that_names_it(plugin: Any, path: str) -> None:
    holder, _, name = path.replace(":", ".").rpartition(".")
    owner = resolve_name(path.removesuffix(f".{name}") if "." in path.partition(":")[2] else holder)
    for cls in getattr(owner, "__mro__", (owner,)):
        if name in vars(cls):
            delattr(cls, name)
    with pytest.raises(ImportError, match=rf"vLLM .* has no {holder}\.{name}.*tested with vLLM 0\.32"):
        plugin.register()


@pytest.mark.parametrize(
    ("changed", "on_cpu", "reason"),
    [
        (
            {"weight_type": "uint8b128"},
            True,
            "weight_type is uint8b128; allowed with zero_points = False: uint4b8",
        ),
        ({"weight_type": "uint4"}, True, "weight_type is uint4; allowed with zero_points = False: uint4b8"),
        ({"zero_points": True}, True, "weight_type is uint4b8; allowed with zero_points = True: uint4"),
        ({"group_size": 24}, True, "group_size is 24; allowed: -1 and multiples of 16"),
        ({"group_size": 0}, True, "group_size is 0; allowed"),
        ({"act_type": torch.float64}, True, r"act_type is torch.float64; allowed: .*float32"),
        (
            {"act_type": torch.float32},
            False,
            r"act_type is torch.float32; allowed: torch.float16, torch.bfloat16$",
        ),
        ({"out_type": torch.int8}, True, "out_type is torch.int8"),
        ({"group_size": -1}, True, None),
        ({"act_type": torch.bfloat16, "weight_type": "uint4", "zero_points": True}, False, None),
    ],
)
def test_a_refusal_has_a_reason(
    plugin: Any, changed: dict[str, Any], on_cpu: bool, reason: str | None
) -> None:
    linear = resolve_name("lamina.integrations.vllm.linear")
    linear.current_platform.kind = PlatformEnum.CPU if on_cpu else PlatformEnum.CUDA
    accepted, why = linear.LaminaInt4LinearKernel.can_implement(layer_config(48, 96, 32, **changed))
    assert accepted == (reason is None)
    if reason is None:
        assert why is None
    else:
        assert_match(reason, why)


def assert_match(pattern: str, text: str) -> None:
    with pytest.raises(ValueError, match=pattern):
        raise ValueError(text)


def test_int8_needs_compute_capability_80(plugin: Any) -> None:
    linear = resolve_name("lamina.integrations.vllm.linear")
    assert linear.LaminaInt8LinearKernel.is_supported() == (True, None)
    linear.current_platform.kind, linear.current_platform.capability = PlatformEnum.CUDA, 75
    supported, why = linear.LaminaInt8LinearKernel.is_supported()
    assert not supported and why == "needs compute capability 80; the device has 75"
    assert linear.LaminaInt8LinearKernel.is_supported(90)[0]


def packed(codes: Tensor) -> Tensor:
    """Codes [rows, columns] as words [rows, ceil(columns / 8)], the first code in the low bits."""
    padded = nn.functional.pad(codes, (0, -codes.shape[1] % 8)).long().unflatten(1, (-1, 8))
    unsigned = (padded << torch.arange(0, 32, 4)).sum(2)
    return torch.where(unsigned < 2**31, unsigned, unsigned - 2**32).int()


N, K, GROUP, TOKENS = 40, 96, 32, 5


class Int4Layer:
    """A layer of vLLM with random int4 weights, as a loader of `layout` fills it."""

    def __init__(self, layout: str, zero_points: bool, group: int = GROUP, act_order: bool = False) -> None:
        g = generator(f"{layout} {zero_points} {group} {act_order}")
        groups = K // (K if group == -1 else group)
        self.q = torch.randint(0, 16, (N, K), dtype=torch.uint8, generator=g)
        self.scale = torch.rand(groups, N, generator=g) + 0.5
        self.zero = torch.randint(0, 16, (groups, N), dtype=torch.uint8, generator=g) if zero_points else None
        self.g_idx = torch.randperm(K, generator=g).int() % groups if act_order else None
        self.x = torch.randn(TOKENS, K, generator=g)
        self.bias = torch.randn(N, generator=g)
        self.group = group
        self.module = nn.Module()
        kind = "uint4" if zero_points else "uint4b8"
        self.config = layer_config(N, K, group, zero_points=zero_points, weight_type=kind)
        words, zeros = packed(self.q), None if self.zero is None else packed(self.zero)
        if layout == "gptq":
            self.module.q = parameter(words.T.contiguous(), input_dim=0, output_dim=1, packed_dim=0)
            self.module.s = parameter(self.scale, input_dim=0, output_dim=1)
            if zeros is not None:
                self.module.z = parameter(zeros, input_dim=0, output_dim=1, packed_dim=1)
        else:
            self.module.q = parameter(words, input_dim=1, output_dim=0, packed_dim=1)
            self.module.s = parameter(self.scale.T.contiguous(), input_dim=1, output_dim=0)
            if zeros is not None:
                self.module.z = parameter(zeros.T.contiguous(), input_dim=1, output_dim=0, packed_dim=0)
        if self.g_idx is not None:
            self.module.g = parameter(self.g_idx, input_dim=0)

    def run(self, x: Tensor) -> Tensor:
        kernel = resolve_name("lamina.integrations.vllm.linear:LaminaInt4LinearKernel")(
            self.config, "q", "s", "z", None if self.g_idx is None else "g"
        )
        kernel.process_weights_after_loading(self.module)
        out: Tensor = kernel.apply_weights(self.module, x, self.bias)
        return out

    def expected(self, activations: str) -> Expected:
        order = None if self.g_idx is None else self.g_idx.argsort(stable=True)
        x, q = (self.x, self.q) if order is None else (self.x[:, order], self.q[:, order])
        more = {"w_zero_point": self.zero, "bias": self.bias}
        if activations == "float":
            return gemm_int4(x, q, self.scale, self.group, torch.float32, **more)
        a, a_scale, _ = quantize_int8(x)
        return gemm_int4_int8(a, q, self.scale, self.group, a_scale, torch.float32, **more)


@pytest.mark.parametrize("activations", ["float", "int8"])
@pytest.mark.parametrize(
    ("layout", "zero_points", "group", "act_order"),
    [
        ("compressed-tensors", False, GROUP, False),
        ("compressed-tensors", True, GROUP, False),
        ("compressed-tensors", True, -1, False),
        ("gptq", False, -1, False),
        ("gptq", False, GROUP, True),
        ("gptq", True, GROUP, False),
    ],
)
def test_int4_layers_compute_their_weight(
    plugin: Any,
    monkeypatch: pytest.MonkeyPatch,
    layout: str,
    zero_points: bool,
    group: int,
    act_order: bool,
    activations: str,
) -> None:
    monkeypatch.setenv("LAMINA_VLLM_ACTIVATIONS", activations)
    layer = Int4Layer(layout, zero_points, group, act_order)
    got = layer.run(layer.x)
    assert error_over_bound(got, layer.expected(activations)) <= 1


def test_groups_of_an_act_order_may_differ_in_size(plugin: Any) -> None:
    layer = Int4Layer("gptq", False, act_order=True)
    layer.g_idx[: K // 4] = 0
    weight = (layer.q.double() - 8) * layer.scale.double()[layer.g_idx.long()].T
    exact, terms = (x @ w.T for x, w in ((layer.x.double(), weight), (layer.x.double().abs(), weight.abs())))
    got = layer.run(layer.x)
    assert error_over_bound(got, Expected(exact + layer.bias, 2.0**-20 * (terms + layer.bias.abs()))) <= 1


def test_int4_layers_take_other_shapes_and_dtypes(plugin: Any) -> None:
    layer = Int4Layer("gptq", False)
    x = layer.x.bfloat16()
    layer.x = x.float()
    got = layer.run(x.view(1, TOKENS, K))
    assert got.shape == (1, TOKENS, N)
    assert got.dtype == torch.bfloat16
    q, more = layer.q, {"bias": layer.bias}
    assert error_over_bound(got[0], gemm_int4(x, q, layer.scale, GROUP, torch.bfloat16, **more)) <= 1


def test_codes_that_are_packed_along_the_outputs_are_refused(plugin: Any) -> None:
    layer = Int4Layer("gptq", False)
    layer.module.q.packed_dim = 1
    with pytest.raises(
        ValueError, match=r"output_dim = 1 and packed_dim = 1; codes of a weight must be packed"
    ):
        layer.run(layer.x)


def int8_kernel(**config: Any) -> Any:
    names = ["weight", "weight_scale", "input_scale", "input_zero_point", "azp_adj"]
    cls = resolve_name("lamina.integrations.vllm.linear:LaminaInt8LinearKernel")
    return cls(
        SimpleNamespace(**({"is_static_input_scheme": False, "input_symmetric": True} | config)), names
    )


def int8_layer(
    scale: Tensor, widths: list[int], **inputs: Tensor
) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """The layer, its weight [n, k], an input and a bias."""
    g = generator(f"{list(scale.shape)} {list(inputs)}")
    layer = nn.Module()
    w = torch.randint(-128, 128, (N, K), dtype=torch.int8, generator=g)
    given = {"weight": w.clone(), "weight_scale": scale, "azp_adj": None, **inputs}
    for name, tensor in given.items():
        layer.register_parameter(name, None if tensor is None else parameter(tensor))
    layer.logical_widths = widths
    return layer, w, torch.randn(TOKENS, K, generator=g), torch.randn(N, generator=g)


CHANNELS = torch.rand(N, 1, generator=generator("channels")) + 0.5
SCALES = {
    "a channel": (CHANNELS, [N], CHANNELS[:, 0]),
    "a tensor": (torch.tensor([0.75]), [N], torch.full((N,), 0.75)),
    "a part of a fused layer": (
        torch.tensor([0.5, 2.0, 1.25]),
        [24, 8, 8],
        torch.tensor([0.5] * 24 + [2.0] * 8 + [1.25] * 8),
    ),
}


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("scales", list(SCALES))
def test_int8_layers_compute_their_weight(plugin: Any, scales: str, symmetric: bool) -> None:
    scale, widths, of_channels = SCALES[scales]
    layer, w, x, bias = int8_layer(scale, widths)
    kernel = int8_kernel(input_symmetric=symmetric)
    kernel.process_weights_after_loading(layer)
    got = kernel.apply_weights(layer, x.view(TOKENS, 1, K), bias)
    a, a_scale, zero = quantize_int8(x, symmetric=symmetric)
    exact = gemm_int8(a, w, a_scale, of_channels[None], torch.float32, a_zero_point=zero, bias=bias)
    assert got.shape == (TOKENS, 1, N)
    assert error_over_bound(got[:, 0], exact) <= 1


def test_int8_scales_that_fit_no_layer_are_refused(plugin: Any) -> None:
    layer, *_ = int8_layer(torch.ones(3), [24, 16])
    with pytest.raises(ValueError, match=r"weight_scale is \[3\]; allowed: \[40, 1\], \[1\] or \[2\]"):
        int8_kernel().process_weights_after_loading(layer)


@pytest.mark.parametrize("zero_point", [None, 37])
def test_static_scales_keep_their_bits(plugin: Any, zero_point: int | None) -> None:
    inputs = {"input_scale": torch.tensor([0.0371])}
    if zero_point is not None:
        inputs["input_zero_point"] = torch.tensor([zero_point], dtype=torch.int8)
    layer, w, x, bias = int8_layer(CHANNELS, [N], **inputs)
    kernel = int8_kernel(is_static_input_scheme=True, input_symmetric=zero_point is None)
    kernel.process_weights_after_loading(layer)
    got = kernel.apply_weights(layer, x, bias)
    zero = None if zero_point is None else torch.full((TOKENS, 1), zero_point)
    a, a_scale, zero = quantize_int8(x, torch.tensor([[0.0371]]).expand(TOKENS, 1), zero, zero_point is None)
    exact = gemm_int8(a, w, a_scale, CHANNELS.T, torch.float32, a_zero_point=zero, bias=bias)
    assert error_over_bound(got, exact) <= 1


def test_merged_ranges_hold_those_of_all_parts(plugin: Any) -> None:
    merge = resolve_name("lamina.integrations.vllm.linear:merge_input_ranges")
    scale, zero = torch.tensor([0.02, 0.05, 0.01]), torch.tensor([-100, 20, 127], dtype=torch.int8)
    merged, zero_point = merge(scale, zero)
    ends = [(s * (end - z), end) for s, z in zip(scale, zero.int(), strict=True) for end in (-128, 127)]
    for value, _ in ends:
        nearest = (value / merged + zero_point.int()).round()
        assert -129 <= nearest <= 128  # rounding of the zero point moves the range by at most a step
    widest = max(v for v, _ in ends) - min(v for v, _ in ends)
    torch.testing.assert_close(merged[0] * 255, widest)
    assert merge(scale, None)[0].tolist() == [pytest.approx(0.05)]
