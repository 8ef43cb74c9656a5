"""`lamina explain`."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click
import torch

from lamina._checks import call
from lamina.devices import runtime_devices

FLAGS = ("bf16",)  # options without a value
PREFIX = "lamina::explain_"
CUDA_SUFFIX = "_cuda"
# SMs of the device that an --arch stands for: A100 and H100 SXM.
SM_COUNTS = {80: 108, 90: 132}

Extent = click.IntRange(min=0, max=2**63 - 1)


@dataclass(frozen=True)
class Explainable:
    """An op that can print a plan."""

    name: str
    extents: tuple[str, ...]  # that the plan depends on
    has_cuda: bool  # a plan for CUDA too
    options: tuple[str, ...]  # that it may depend on, on some device

    @property
    def usage(self) -> str:
        """How to ask for it."""
        line = f"lamina explain {self.name} {_options(self.extents)}"
        line += "".join(f" [{_options([option])}]" for option in self.options)
        return f"{line} [--device cpu|cuda] [--arch 80 --sms 108]" if self.has_cuda else line


@click.command()
@click.argument("op", required=False)
@click.option("--m", type=Extent, help="Tokens.")
@click.option("--n", type=Extent, help="Output features.")
@click.option("--k", type=Extent, help="Input features.")
@click.option("--batch", type=Extent, help="Requests of attention.")
@click.option("--q-len", type=Extent, help="Tokens of a request.")
@click.option("--context", type=Extent, help="Keys of a request.")
@click.option("--heads", type=Extent, help="Heads of queries.")
@click.option("--kv-heads", type=Extent, help="Heads of the cache.")
@click.option("--group", type=int, help="Input features that share scales.")
@click.option("--bf16", is_flag=True, default=None, help="bf16 activations with integer zero points.")
@click.option("--max-sms", type=int, help="SMs that the call may use on CUDA.")
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    help="By default cuda where a device is and the op has a plan for it, else cpu.",
)
@click.option(
    "--arch",
    type=click.IntRange(80, 999),
    help="Compute capability of a CUDA device to plan for, present or not: 80, 90. By default 80.",
)
@click.option(
    "--sms",
    type=click.IntRange(1, 4096),
    help="Its number of SMs. By default 108 for 80 and 132 for 90.",
)
def explain(
    op: str | None,
    device: str | None,
    arch: int | None,
    sms: int | None,
    group: int | None,
    bf16: bool | None,
    max_sms: int | None,
    **extents: int | None,
) -> None:
    """The plan for OP: kernel, blocks, reason; or why there is none.

    The plan is for this machine or, with --arch or --sms, for a CUDA device that need not be here.
    Without OP, or with one that is unknown, the ops are listed.
    """
    ops = explainable_ops()
    usage = "Ops with a plan:\n" + "\n".join(f"  {known.usage}" for known in ops.values())
    if op is None:
        click.echo(usage)
        return
    name = op.removeprefix("lamina::").removeprefix("lamina.")
    if name not in ops:
        close = difflib.get_close_matches(name, ops, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise click.UsageError(f"no op {name!r}{hint}\n{usage}")
    wanted = ops[name]
    given = {extent for extent, value in extents.items() if value is not None}
    if given != set(wanted.extents):
        got = _options(sorted(given)) or "nothing"
        raise click.UsageError(f"{name} takes {_options(wanted.extents)}, got {got}")
    arguments: list[Any] = [extents[extent] for extent in wanted.extents]
    options = {"group": group, "bf16": bf16, "max_sms": max_sms}
    chosen = {option: value for option, value in options.items() if value is not None}
    for option in chosen:
        if option not in wanted.options:
            raise click.UsageError(f"{name} has no {_options([option])}")
    click.echo(_plan(wanted, arguments, chosen, device, arch, sms))


def explainable_ops() -> dict[str, Explainable]:
    """The ops that can print a plan, by name."""
    every = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith(PREFIX)]
    names = sorted(full.removeprefix(PREFIX) for full in every if not full.endswith(CUDA_SUFFIX))
    return {name: _explainable(name, f"{PREFIX}{name}{CUDA_SUFFIX}" in every) for name in names}


def _explainable(name: str, has_cuda: bool) -> Explainable:
    arguments = _arguments(name)
    extents = (argument.name for argument in arguments if not argument.has_default_value())
    every = [*arguments, *(_arguments(name + CUDA_SUFFIX) if has_cuda else [])]
    options = dict.fromkeys(argument.name for argument in every if argument.has_default_value())
    return Explainable(name, tuple(extents), has_cuda, tuple(options))


def _arguments(name: str) -> list[Any]:
    return list(_explainer(name).default._schema.arguments)


def _explainer(name: str) -> Any:
    return getattr(torch.ops.lamina, f"explain_{name}")


def _plan(
    op: Explainable,
    extents: list[Any],
    options: dict[str, int],
    device: str | None,
    arch: int | None,
    sms: int | None,
) -> str:
    is_described = arch is not None or sms is not None
    if device == "cpu" and is_described:
        raise click.UsageError("--arch and --sms describe a CUDA device, --device is cpu")
    if not op.has_cuda and (device == "cuda" or is_described):
        raise click.UsageError(
            f"{op.name} has a plan for the CPU only; its CUDA kernel leaves nothing to choose"
        )
    present = _asked(lambda: runtime_devices() or []) if op.has_cuda and device != "cpu" else []
    if device is None:
        device = "cuda" if is_described or present else "cpu"
    of_device, other = (op.name, "CUDA") if device == "cpu" else (op.name + CUDA_SUFFIX, "the CPU")
    understood = {argument.name for argument in _arguments(of_device)}
    if unknown := [option for option in options if option not in understood]:
        raise click.UsageError(f"{_options(unknown)} is of a plan for {other}, --device is {device}")
    if device == "cpu":
        return str(_asked(lambda: _explainer(op.name)(*extents, **options)))
    if present and not is_described:
        here = present[0]
        note, arch, sms = f"this machine's CUDA device {here}", here.compute_capability, here.sm_count
    else:
        arch = 80 if arch is None else arch
        sms = SM_COUNTS.get(arch) if sms is None else sms
        if sms is None:
            known = ", ".join(map(str, SM_COUNTS))
            raise click.UsageError(f"--arch {arch} needs --sms; there is a default for {known}")
        why = "as --arch and --sms have it" if is_described else "this machine has no CUDA device"
        note = f"hypothetical, {why}"
    plan = _asked(lambda: _explainer(op.name + CUDA_SUFFIX)(*extents, arch, sms, **options))
    return f"{plan}\ndevice     {note}"


def _asked(question: Callable[[], Any]) -> Any:
    """The answer; an error of lamina's ends the command with its message."""
    try:
        return call(question)
    except (ValueError, RuntimeError) as error:
        raise click.ClickException(f"no plan: {error}") from error


def _options(names: tuple[str, ...] | list[str]) -> str:
    return " ".join(
        f"--{name.replace('_', '-')}" + f" {name.upper()}" * (name not in FLAGS) for name in names
    )
