"""Bugs to plant in rms_norm, silu_mul, the row quantiser that they share, and the layers that take their results."""

from __future__ import annotations

from tools.mutation.mutant import plant

NORM, SILU = "csrc/ops/rms_norm", "csrc/ops/silu_mul"
NORM_CPU = "tests/ops/test_rms_norm.py -k not emulator"
NORM_EMULATOR = "tests/ops/test_rms_norm.py -k emulator"
SILU_CPU = "tests/ops/test_silu_mul.py -k not emulator"
SILU_EMULATOR = "tests/ops/test_silu_mul.py -k emulator"

MUTANTS = (
    *plant(
        f"{NORM}/rms_norm.h",
        ("rms_norm: eps outside the root", "n) + eps)", "n)) + eps"),
        ("rms_norm: the sum instead of the mean", "/ static_cast<float>(n) + eps", "+ eps"),
        (
            "rms_norm: weight before the first rounding",
            "from_f32<T>(to_f32(from_f32<T>(to_f32(z) * inverse)) * to_f32(weight))",
            "from_f32<T>(to_f32(z) * inverse * to_f32(weight))",
        ),
        tests=NORM_CPU,
    ),
    *plant(
        f"{NORM}/cpu/body.h",
        ("rms_norm: the last eighth is not summed", "w < eighths; ++w", "w < eighths - 1; ++w"),
        (
            "rms_norm: only the first columns are summed",
            "begin < n; begin += kSums",
            "begin < 1; begin += kSums",
        ),
        ("rms_norm: old sums in accumulators", "std::fill_n(flat, eighths * kOfEighth, 0.0f);", ""),
        ("rms_norm: columns in another order", "begin += kSums", "begin += kSums / 2"),
        ("rms_norm: the rms of x without the residual", "      z = sum;", ""),
        ("rms_norm: residual stride ignored", "i * p.residual_stride", "i * p.n"),
        ("rms_norm: x stride ignored", "i * p.x_stride", "i * p.n"),
        tests=NORM_CPU,
    ),
    *plant(
        f"{NORM}/run.cc",
        ("rms_norm: eps 0 is allowed", "params.eps >= FLT_MIN", "params.eps >= 0.0f"),
        ("rms_norm: any n is allowed", "params.n > kMaxN", "params.n < 0"),
        tests="tests/ops/test_errors.py -k rms_norm",
    ),
    *plant(
        f"{NORM}/cuda/rows.cu",
        ("rms_norm rows: the tail is summed twice", "if (e < count) squares[e]", "squares[e]"),
        ("rms_norm rows: the new residual is not stored", "store_run(added + j, chunk, count);", ""),
        ("rms_norm rows: the rms of x is applied to x alone", "z = added;", ""),
        (
            "rms_norm rows: rows in int32",
            "static_cast<const T*>(p.residual) + i * p.residual_stride",
            "static_cast<const T*>(p.residual) + static_cast<int32_t>(i * p.residual_stride)",
            "tests/ops/test_large.py -k rms_norm and emulator",
        ),
        tests=NORM_EMULATOR,
    ),
    *plant(
        "csrc/block/sum.cuh",
        ("sum_of_block: lanes swap the wrong halves", "is_upper ? sums[e] : sums[e + kept]", "sums[e]"),
        (
            "sum_of_block: sharers are not added",
            "for (int step = kSharers / 2; step > 0;",
            "for (int step = kSharers / 2; step > 1;",
        ),
        (
            "sum_of_block: a warp is left out",
            "for (int half = kWarps / 2; half > 0;",
            "for (int half = kWarps / 2; half > 1;",
        ),
        (
            "sum_of_block: every lane reads value 0",
            "smem + w * kCount + dev::lane() % kCount",
            "smem + w * kCount",
        ),
        tests=NORM_EMULATOR,
    ),
    *plant(
        f"{SILU}/silu_mul.h",
        (
            "silu_mul: the gate without its activation",
            "activate<Activation::kSilu>(to_f32(gate))",
            "to_f32(gate)",
        ),
        tests=SILU_CPU,
    ),
    *plant(
        f"{SILU}/cpu/body.h",
        ("silu_mul: the last column is left out", "j < n; ++j) out[j]", "j < n - 1; ++j) out[j]"),
        ("silu_mul: up has the stride of the gate", "i * p.up_stride", "i * p.gate_stride"),
        tests=SILU_CPU,
    ),
    *plant(
        f"{SILU}/cuda/rows.cu",
        (
            "silu_mul chunks: the row of another chunk",
            "const int64_t i = c / of_row,",
            "const int64_t i = c % p.m,",
        ),
        (
            "silu_mul chunks: whole chunks only",
            "ceil_div(p.n, kChunk);\n    const int64_t first",
            "p.n / kChunk;\n    const int64_t first",
        ),
        (
            "silu_mul rows: rows in int32",
            "static_cast<const T*>(p.up) + i * p.up_stride",
            "static_cast<const T*>(p.up) + static_cast<int32_t>(i * p.up_stride)",
            "tests/ops/test_large.py -k silu_mul and emulator",
        ),
        tests=SILU_EMULATOR,
    ),
    *plant(
        "csrc/torch/silu_mul.cc",
        (
            "silu_mul: up starts at the gate",
            "params.n * size_bytes(params.dtype)",
            "0 * size_bytes(params.dtype)",
        ),
        tests=SILU_CPU,
    ),
    *plant(
        "python/lamina/nn/int4_linear.py",
        (
            "forward_quantized: the zero points are lost",
            "a_zero_point=a.zero_point, residual",
            "a_zero_point=None, residual",
        ),
        ("multiply: W4A16 loses the residual", "rows.dtype, residual=residual", "rows.dtype, residual=None"),
        tests="tests/python/test_forward_quantized.py",
    ),
    *plant(
        "python/lamina/nn/int8_linear.py",
        ("quantizes: a static layer says that it can share", 'return "static"', 'return "symmetric"'),
        ("multiply: W8A8 loses the residual", "residual=residual,", "residual=None,"),
        tests="tests/python/test_forward_quantized.py",
    ),
    *plant(
        "python/lamina/nn/rms_norm.py",
        ("RMSNorm: any norm is taken over", "if not module._agrees_with(norm):", "if False:"),
        ("RMSNorm: eps of the norm is lost", "module = cls(0, eps)", "module = cls(0)"),
        tests="tests/python/test_rms_norm.py",
    ),
)
