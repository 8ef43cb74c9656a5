"""The bugs that tools/mutants.py plants in the steps behind gemm_int8's sums."""

from __future__ import annotations

from dataclasses import replace

from tools.mutant import Mutant

GEMM = "csrc/ops/gemm_int8"
ACTIVATION = "csrc/gemm/activation.h"
CUDA = f"{GEMM}/cuda/epilogue.cuh"
SETTLE = f"{GEMM}/cuda/settle.cu"

_MUTANTS = (
    Mutant(
        "epilogue: gate in the residual's place",
        f"{GEMM}/cpu/rows.h",
        "y[j] = y[j] * to_f32(gate[j])",
        "y[j] = y[j] + to_f32(gate[j])",
    ),
    Mutant(
        "epilogue: row stride of gate and residual ignored",
        f"{GEMM}/cpu/out.h",
        "i * operand.stride + j",
        "i + j",
    ),
    Mutant(
        "epilogue: residual added before the activation",
        f"{GEMM}/cpu/out.h",
        "activate_row<Activation::kSilu>(sum, i, count, c, y);",
        "{ activate_row<Activation::kNone>(sum, i, count, c, y); with_elements(p.residual, i, n0, "
        "[&](const auto* x) { add_row(x, count, y); }); "
        "for (int j = 0; j < count; ++j) y[j] = activate<Activation::kSilu>(y[j]); continue; }",
    ),
    Mutant(
        "epilogue: gelu in place of gelu_tanh",
        f"{GEMM}/cpu/out.h",
        "activate_row<Activation::kGeluTanh>",
        "activate_row<Activation::kGelu>",
    ),
    Mutant(
        "epilogue: static scale of the block's first row",
        f"{GEMM}/cpu/out.h",
        "quantizer({p.out_scale[i], 0}, true)",
        "quantizer({p.out_scale[i / 4 * 4], 0}, true)",
    ),
    Mutant(
        "epilogue: a NaN is quantised like a number",
        f"{GEMM}/epilogue.h",
        "return y == y ? q : kLost",
        "return q",
    ),
    Mutant(
        "quantized: the last byte of a row is not searched",
        f"{GEMM}/quantized.cc",
        "static_cast<uint8_t>(kLost), bytes)",
        "static_cast<uint8_t>(kLost), bytes - 1)",
    ),
    Mutant("activation: 1.596 rounded", ACTIVATION, "0x1.988454p+0f", "0x1.9885p+0f"),
    Mutant("activation: a coefficient of exp", ACTIVATION, "0x1.555492p-3f", "0x1.555494p-3f"),
    Mutant("activation: a coefficient of erfcx", ACTIVATION, "0x1.ad2bcep+0f", "0x1.ad2bd0p+0f"),
    Mutant("activation: one part of ln 2", ACTIVATION, "kLn2High - z) + n * kLn2Low", "kLn2High - z)"),
    Mutant(
        "activation: 0 where negative zero is due", ACTIVATION, "y < 0.0f ? -0.0f : y", "y < 0.0f ? 0.0f : y"
    ),
    Mutant(
        "cuda epilogue: row stride of gate and residual ignored",
        CUDA,
        "rows[r] * operand.stride + columns.j0",
        "rows[r] * columns.left + columns.j0",
    ),
    Mutant(
        "cuda epilogue: a run is read in words wherever it starts",
        CUDA,
        "count >= kCount && low % sizeof(Word) == 0",
        "count >= kCount",
    ),
    Mutant(
        "cuda epilogue: residual multiplied in the place of the gate",
        CUDA,
        "combine_all(p.gate, rows,",
        "combine_all(p.residual, rows,",
    ),
    Mutant(
        "cuda epilogue: values leave the activation rotated",
        CUDA,
        "step < kCount / kAtOnce",
        "step < kCount / kAtOnce - 1",
    ),
    Mutant(
        "cuda epilogue: static scale of the first row",
        CUDA,
        "quantizer({p.out_scale[i], 0}, true)",
        "quantizer({p.out_scale[0], 0}, true)",
    ),
    Mutant(
        "settle: bytes behind the last word not searched",
        SETTLE,
        "j = in_words + dev::thread_index()",
        "j = (in_words > 0 ? n : 0) + dev::thread_index()",
    ),
    Mutant(
        "settle: words searched for 127",
        SETTLE,
        "bytes ^ 0x01010101u",
        "~bytes ^ 0x01010101u",
    ),
    Mutant(
        "settle: what other warps found is read before it is there",
        SETTLE,
        "dev::block_sync();\n    int32_t",
        "dev::warp_sync();\n    int32_t",
    ),
)


def _tests(mutant: Mutant) -> tuple[str, ...]:
    """What requantises is tested last, and all other tests would run before it."""
    quantized = mutant.file == SETTLE or "static scale" in mutant.name or "quantized" in mutant.name
    where = "twin" if "/cuda/" in mutant.file else "not twin"
    return "tests/ops/test_gemm_int8_epilogue.py", "-k", f"{where} and quantized" if quantized else where


EPILOGUE_MUTANTS = tuple(replace(mutant, tests=_tests(mutant)) for mutant in _MUTANTS)
