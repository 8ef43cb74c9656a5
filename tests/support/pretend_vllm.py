"""The parts of vLLM 0.32 that lamina's plugin uses, made anew as modules, so that no vLLM is needed.

tests/vllm runs the plugin in the real one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pkgutil import resolve_name
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

PLUGIN = "lamina.integrations.vllm"


class PlatformEnum(Enum):
    CPU = 1
    CUDA = 2


class Platform:
    """The platform of a process; tests change `kind` and `capability`."""

    kind = PlatformEnum.CPU
    capability = 90

    def is_cpu(self) -> bool:
        return self.kind is PlatformEnum.CPU

    def is_cuda(self) -> bool:
        return self.kind is PlatformEnum.CUDA

    def get_device_capability(self) -> Any:
        return None if self.is_cpu() else SimpleNamespace(to_int=lambda: self.capability)


class MPLinearKernel:
    def __init__(
        self,
        c: Any,
        w_q_param_name: str,
        w_s_param_name: str,
        w_zp_param_name: str | None = None,
        w_gidx_param_name: str | None = None,
    ) -> None:
        self.config = c
        self.w_q_name, self.w_s_name = w_q_param_name, w_s_param_name
        self.w_zp_name, self.w_gidx_name = w_zp_param_name, w_gidx_param_name


class Int8ScaledMMLinearKernel:
    def __init__(self, c: Any, layer_param_names: list[str]) -> None:
        self.config, self.layer_param_names = c, layer_param_names


def replace_parameter(layer: nn.Module, name: str, new: Tensor) -> None:
    layer.register_parameter(name, nn.Parameter(new, requires_grad=False))


class AttentionType(str, Enum):
    DECODER = "decoder"
    ENCODER = "encoder"
    ENCODER_ONLY = "encoder_only"
    ENCODER_DECODER = "encoder_decoder"


class AttentionBackend:
    @classmethod
    def customize_spec(cls, spec: Any) -> Any:
        return spec


class AttentionMetadataBuilder:
    def __init__(self, kv_cache_spec: Any, layer_names: Any, vllm_config: Any, device: Any) -> None:
        self.kv_cache_spec = kv_cache_spec


def _registry() -> dict[str, Any]:
    overrides: dict[Any, str] = {}

    class AttentionBackendEnum(Enum):
        CPU_ATTN = "vllm.stock.CpuAttention"
        CUSTOM = None

        def is_overridden(self) -> bool:
            return self in overrides

        def get_path(self) -> str:
            return overrides.get(self, self.value)

    def register_backend(member: Any, path: str) -> None:
        overrides[member] = path

    return {"AttentionBackendEnum": AttentionBackendEnum, "register_backend": register_backend}


def _linear() -> dict[str, Any]:
    lists = {kind: {platform: ["stock"] for platform in PlatformEnum} for kind in ("mp", "int8")}

    def register_linear_kernel(kernel: Any, platform: Any, kernel_type: str = "mp") -> None:
        lists[kernel_type][platform].append(kernel)

    return {
        "register_linear_kernel": register_linear_kernel,
        "_POSSIBLE_KERNELS": lists["mp"],
        "_POSSIBLE_INT8_KERNELS": lists["int8"],
        "MPLinearKernel": type("MPLinearKernel", (MPLinearKernel,), {}),
        "Int8ScaledMMLinearKernel": type("Int8ScaledMMLinearKernel", (Int8ScaledMMLinearKernel,), {}),
    }


@contextmanager
def pretend_vllm() -> Iterator[None]:
    """Inside, `import vllm...` finds these parts, and the modules of the plugin are fresh."""
    contents: dict[str, dict[str, Any]] = {
        "vllm": {"__path__": []},
        "vllm.platforms": {"PlatformEnum": PlatformEnum, "current_platform": Platform()},
        "vllm.model_executor.kernels.linear": _linear(),
        "vllm.model_executor.layers.quantization.utils": {"replace_parameter": replace_parameter},
        "vllm.v1.attention.backend": {
            "AttentionBackend": type("AttentionBackend", (AttentionBackend,), {}),
            "AttentionCGSupport": Enum("AttentionCGSupport", ["UNIFORM_BATCH"]),
            "AttentionImpl": type("AttentionImpl", (), {}),
            "AttentionMetadataBuilder": AttentionMetadataBuilder,
            "AttentionType": AttentionType,
            "MultipleOf": type("MultipleOf", (int,), {}),
        },
        "vllm.v1.attention.backends.registry": _registry(),
    }
    modules = {}
    for name, content in contents.items():
        for end in [at for at, letter in enumerate(name + ".") if letter == "."]:
            modules.setdefault(name[:end], ModuleType(name[:end])).__dict__.setdefault("__path__", [])
        modules[name].__dict__.update(content)
    for name, module in modules.items():
        if (parent := name.rpartition(".")[0]) in modules:
            setattr(modules[parent], name.rpartition(".")[2], module)
    _forget_plugin()
    sys.modules.update(modules)  # not mock.patch.dict, which would also forget what torch imports meanwhile
    try:
        yield
    finally:
        _forget_plugin()
        for name in modules:
            del sys.modules[name]


def _forget_plugin() -> None:
    """The next import makes its modules anew, with classes of the vLLM that is there then."""
    for name in [name for name in sys.modules if f"{name}.".startswith(f"{PLUGIN}.")]:
        del sys.modules[name]
    vars(resolve_name("lamina.integrations")).pop("vllm", None)


def parameter(data: Tensor, **dims: int) -> nn.Parameter:
    """A parameter with the attributes output_dim, input_dim and packed_dim that vLLM's loaders set."""
    made = nn.Parameter(data, requires_grad=False)
    for name, dim in dims.items():
        setattr(made, name, dim)
    return made


def layer_config(n: int, k: int, group: int, **changed: Any) -> Any:
    """MPLinearLayerConfig of a symmetric layer in float32."""
    values = {
        "full_weight_shape": (k, n), "partition_weight_shape": (k, n), "weight_type": "uint4b8",
        "act_type": torch.float32, "group_size": group, "zero_points": False, "out_type": None,
    }  # fmt: skip
    return SimpleNamespace(**(values | changed))
