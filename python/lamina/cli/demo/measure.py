"""Sizes, times and embeddings of the encoder in f32, in f16 on CUDA, and compressed."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn

from lamina._checks import call
from lamina.cli.demo.encoder import MODEL_NAME, DemoError, Encoder, embed, load_encoder
from lamina.cli.demo.sentences import SENTENCES, calibration_sentences
from lamina.compression import SCHEMES, compress
from lamina.nn import Int4Linear

BASELINE = "torch f32"
# The dtypes in which torch runs the model on each device; the schemes compress the model of the last one.
BASELINES = {
    "cpu": {BASELINE: torch.float32},
    "cuda": {BASELINE: torch.float32, "torch f16": torch.float16},
}
BATCHES = (1, 32)
# A suffix of an int4 scheme: GPTQ rounds the weights, calibrated on other text.
GPTQ = "_gptq"

# The schemes, with the least cosine that a sentence may have. Measured 2026-11-23 (all ISAs give the same
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
# The schemes of each device; gemm_int4 takes no f32 on CUDA.
SCHEME_NAMES = {"cpu": tuple(MIN_COSINE), "cuda": ("w8a8", "w8a8_asymmetric")}
# The least cosine of the uncompressed model: f32 against itself, and f16, at 0.999998 on a CPU on 2026-11-23.
MIN_BASELINE_COSINE = {torch.float32: 1 - 1e-9, torch.float16: 0.9999}


@dataclass(frozen=True)
class Latency:
    """The time of one forward pass, from tokenised input to hidden states."""

    batch: int
    tokens: int  # padding included
    median_ms: float
    iqr_ms: float
    speedup: float  # median of the baseline over this one, samples taken in turn


@dataclass(frozen=True)
class SchemeResult:
    """One line of the table. Cosines compare with the baseline, one per sentence."""

    scheme: str
    summary: str
    model_bytes: int
    linear_bytes: int
    latencies: tuple[Latency, ...]
    cosines: tuple[float, ...]
    neighbours_agree: int  # sentences with the same nearest neighbour as under the baseline
    paraphrases_found: int  # sentences whose nearest neighbour is the other sentence of their pair
    min_cosine: float  # the least that is allowed

    @property
    def passed(self) -> bool:
        """Whether every sentence is close enough."""
        return min(self.cosines) >= self.min_cosine


def run_demo(device: str, schemes: Sequence[str], repeats: int, progress: bool | None) -> list[SchemeResult]:
    """One result per baseline, then one per scheme. All models are timed in turn, sample by sample."""
    try:
        call(torch.ops.lamina.cpu_isa)  # the CPU quantises weights, whatever the device
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
            models[name] = with_int8_activations(models[same_weights])
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
    """The results as a dict for JSON."""
    return {
        "machine": dict(machine),
        "model": MODEL_NAME,
        "sentences": list(SENTENCES),
        "rows": [asdict(result) | {"passed": result.passed} for result in results],
    }


def _calibration(encoder: Encoder) -> list[Mapping[str, Tensor]]:
    sentences = calibration_sentences()
    return [encoder.tokenize(sentences[first : first + 16]) for first in range(0, len(sentences), 16)]


def with_int8_activations(model: nn.Module) -> nn.Module:
    """A copy with int8 activations that shares the weights: rounding them again would give the same."""
    model = copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
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
    """Waits until the device has done all its work."""
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
