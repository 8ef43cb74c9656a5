"""The reference of the Python interface from its docstrings: `python -m tools.ops_page > docs/ops.md`."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterator
from enum import Enum
from typing import Any

from torch.nn import Module

import lamina

INTRODUCTION = """\
# Reference

`make docs` generates this page from the docstrings. [errors.md](errors.md) has the message for each wrong
argument, [layouts.md](layouts.md) the packed layouts.

`m` is the number of tokens, `n` the number of output features and `k` the number of input features. f32,
f16 and bf16 are `torch.float32`, `torch.float16` and `torch.bfloat16`. The description of an argument has
its shape, its dtypes and its other conditions. The functions on tensors are also ops in `torch.ops.lamina`,
for engines and exported graphs; there a packed weight is passed as its tensors: `data`, and for int8 also
`column_sums`.
"""
SECTIONS = {
    "Matrix products": (
        *("gemm_int8", "gemm_int8_quantized", "gemm_int4", "gemm_int4_int8"),
        *("matmul_sparse24", "matmul_sparse24_int8", "matmul_sparse24_int4", "matmul_sparse24_int4_int8"),
    ),
    "Activations": (
        *("quantize_int8", "QuantizedInt8"),
        *("rms_norm", "rms_norm_int8", "silu_mul", "silu_mul_int8"),
    ),
    "Attention and its cache": (
        *("paged_attention", "append_paged_kv", "gather_paged_kv", "copy_kv_blocks", "compact_kv"),
        *("merge_attention_states", "check_errors"),
        *("decoder_layers", "DecoderLayer", "PackedProduct", "ProductKind"),
        *("kv.PagedCache", "kv.Batch", "kv.OutOfPages", "kv.advise_huge_pages"),
    ),
    "Choice of tokens": (
        *("sample_tokens", "SampledTokens", "SampleFlag"),
        *("verify_draft", "VerifiedDraft", "pack_tree_mask", "TreeMask"),
    ),
    "Speculative decoding": (
        *("speculate.decode", "speculate.Request", "speculate.Decoded"),
        *("speculate.PromptLookup", "speculate.DraftModel"),
        *("speculate.FixedWidth", "speculate.ClosedLoop"),
    ),
    "Packed weights": (
        "pack_int8",
        "PackedInt8",
        "pack_int4",
        "PackedInt4",
        "pack_sparse24",
        "PackedSparse24",
    ),
    "2:4 weights": ("compress_sparse24", "Sparse24", "is_sparse24"),
    "Whole models": (
        *("compress", "CompressionReport", "save_compressed", "load_compressed"),
        *("load_checkpoint", "CheckpointReport"),
    ),
    "2:4 models": (
        *("prune", "PruneReport", "plan_sparse24", "Sparse24Plan"),
        *("distill", "DistillReport", "distill_loss"),
    ),
    "Layers": (
        "nn.Int8Linear",
        "nn.Int4Linear",
        "nn.Sparse24Int8Linear",
        "nn.Sparse24Int4Linear",
        "nn.Sparse24Linear",
        "nn.PackedLinear",
        "nn.RMSNorm",
    ),
    "Rounding of weights": (
        *("quant.quantize_weight_int8", "quant.quantize_weight_int4", "quant.QuantizedInt4"),
        *("quant.hessian", "quant.gptq", "quant.act_order", "quant.ActOrder"),
    ),
    "2:4 pruning of weights": (
        *("quant.prune_sparse24", "quant.prune_sparse24_int8", "quant.prune_sparse24_int4"),
        *("quant.PrunedWeight", "quant.PrunedInt8", "quant.PrunedInt4", "quant.feature_order_sparse24"),
    ),
}
WIDTH = 100


def summary(item: Any) -> str:
    """The first line of a docstring."""
    return (inspect.getdoc(item) or "").splitlines()[0]


def declaration(name: str, item: Any) -> str:
    """The name with its arguments, one a line where they are too long for one line."""
    if inspect.isclass(item) and issubclass(item, Enum):
        return name  # nobody calls it
    described = inspect.signature(item)
    arguments = []
    for argument in described.parameters.values():
        if argument.name == "self":
            continue
        if argument.kind is argument.KEYWORD_ONLY and "*" not in arguments:
            arguments.append("*")
        annotation = getattr(argument.annotation, "__forward_arg__", argument.annotation)
        default = "" if argument.default is argument.empty else f" = {argument.default!r}"
        arguments.append(f"{argument.name}: {annotation}{default}")
    returns = "" if inspect.isclass(item) else f" -> {described.return_annotation}"
    line = f"{name}({', '.join(arguments)}){returns}"
    return line if len(line) <= WIDTH else f"{name}(\n    " + ",\n    ".join(arguments) + f",\n){returns}"


def members(item: type) -> Iterator[str]:
    """The properties and methods of a class; a module's only if torch.nn.Module lacks them."""
    for name, member in vars(item).items():
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if (
            name.startswith("_")
            or not inspect.isfunction(function)
            or (issubclass(item, Module) and hasattr(Module, name))
        ):
            continue
        head = f".{name}" if isinstance(member, property) else declaration(f".{name}", getattr(item, name))
        lines = (inspect.getdoc(function) or "").splitlines()
        yield "\n".join([head, *(f"    {line}".rstrip() for line in lines)]) + "\n"


def entry(name: str) -> str:
    """Heading, declaration and docstring of lamina.<name>."""
    item = operator.attrgetter(name)(lamina)
    parts = [declaration(f"lamina.{name}", item) + "\n", f"{inspect.getdoc(item)}\n"]
    if inspect.isclass(item):
        parts += members(item)
    return f"\n### lamina.{name}\n\n```text\n" + "\n".join(parts) + "```\n"


def page() -> str:
    """The whole page."""
    index, body = [], []
    for title, names in SECTIONS.items():
        index.append(f"\n{title}:\n")
        body.append(f"\n## {title}\n")
        for name in names:
            anchor = f"lamina.{name}".replace(".", "").lower()
            index.append(f"- [`{name}`](#{anchor}): {summary(operator.attrgetter(name)(lamina))}")
            body.append(entry(name))
    return "\n".join([INTRODUCTION.rstrip(), *index]) + "\n" + "".join(body)


if __name__ == "__main__":
    print(page(), end="")
