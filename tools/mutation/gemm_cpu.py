"""Bugs to plant in csrc/gemm/cpu, and what it shares with CUDA."""

from __future__ import annotations

from tools.mutation.mutant import plant

MUTANTS = (
    *plant(
        "csrc/gemm/activation.h",
        ("activation: 1.596 rounded", "0x1.988454p+0f", "0x1.9885p+0f"),
        ("activation: a coefficient of exp", "0x1.555492p-3f", "0x1.555494p-3f"),
        ("activation: a coefficient of erfcx", "0x1.ad2bcep+0f", "0x1.ad2bd0p+0f"),
        ("activation: one part of ln 2", "kLn2High - z) + n * kLn2Low", "kLn2High - z)"),
        ("activation: 0 in the place of -0", "y < 0.0f ? -0.0f : y", "y < 0.0f ? 0.0f : y"),
        tests="tests/ops/test_gemm_int8_epilogue.py -k not emulator",
    ),
    *plant(
        "csrc/gemm/cpu/amx_product.h",
        (
            "int4_int8 amx: the second half of a tile is the first",
            "p % kParts * kProductK;",
            "0 * kProductK;",
            "tests/ops/test_gemm_int4_int8.py tests/ops/test_gemm_int4_int8_exact.py",
        ),
        (
            "amx: second row tile added to the first's sums",
            "amx_multiply_s8<r * kColumnTiles + c,",
            "amx_multiply_s8<c,",
        ),
        (
            "amx: fourth column tile multiplies the third's weights",
            "amx_load<kWeights>(w + c * w_stride, kAmxRowBytes)",
            "amx_load<kWeights>(w + (c - (c == 3)) * w_stride, kAmxRowBytes)",
        ),
        (
            "amx: last byte of a ragged k missing",
            "a + r * a_stride + p, static_cast<size_t>(k - p))",
            "a + r * a_stride + p, static_cast<size_t>(k - p - 1))",
        ),
    ),
    *plant(
        "csrc/gemm/cpu/blocking.cc",
        (
            "plan: a task loses its last row",
            "std::min(m_begin + block_m, m)",
            "std::min(m_begin + block_m - (m_begin > 0), m)",
        ),
        (
            "plan: every tile of rows counts the scratch of all",
            "std::max<int64_t>(1, work.panel_bytes)",
            "std::max<int64_t>(1, work.panel_bytes + work.scratch_bytes)",
        ),
        tests="tests/probe/test_cpu_plans.py",
    ),
    *plant(
        "csrc/gemm/cpu/pack_bytes.h",
        (
            "pack_bytes: the last four k of a row are read whole",
            "static_cast<size_t>(k % kGroupK)",
            "sizeof group",
        ),
        tests="tests/ops/test_gemm_int8.py -k generic or avx2",
    ),
    *plant(
        "csrc/gemm/cpu/plan.cc",
        ("plan int4: a kernel for groups that it cannot cut", "p.groups() > 1", "p.groups() > 2"),
        (
            "host: threads is not in the key",
            "memo_key(&op, key_of(p), key_of(cpu), threads)",
            "memo_key(&op, key_of(p), key_of(cpu))",
            "tests/ops/test_host_work.py",
        ),
        tests="tests/ops/test_gemm_int4_int8.py tests/ops/test_gemm_int4_int8_exact.py -k amx",
    ),
    *plant(
        "csrc/gemm/cpu/row_steps.h",
        (
            "epilogue: gate in the residual's place",
            "y[j] = y[j] * to_f32(gate[j])",
            "y[j] = y[j] + to_f32(gate[j])",
        ),
        tests="tests/ops/test_gemm_int8_epilogue.py -k not emulator",
    ),
    *plant(
        "csrc/gemm/cpu/store_strip.h",
        (
            "epilogue: row stride of gate and residual ignored",
            "i * operand.stride + j",
            "i + j",
            "tests/ops/test_gemm_int8_epilogue.py -k not emulator",
        ),
        (
            "epilogue: residual added before the activation",
            "activate_row<Activation::kSilu>(sum, i, count, c, y);",
            "{ activate_row<Activation::kNone>(sum, i, count, c, y); with_elements(p.residual, i, n0, [&](const auto* x) { add_row(x, count, y); }); for (int j = 0; j < count; ++j) y[j] = activate<Activation::kSilu>(y[j]); continue; }",
            "tests/ops/test_gemm_int8_epilogue.py -k not emulator",
        ),
        (
            "epilogue: gelu in place of gelu_tanh",
            "activate_row<Activation::kGeluTanh>",
            "activate_row<Activation::kGelu>",
            "tests/ops/test_gemm_int8_epilogue.py -k not emulator",
        ),
        (
            "epilogue: static scale of the block's first row",
            "quantizer({p.out_scale[i], 0}, true)",
            "quantizer({p.out_scale[i / 4 * 4], 0}, true)",
            "tests/ops/test_gemm_int8_epilogue.py -k not emulator and quantized",
        ),
        (
            "gemm: scale of the panel's first row",
            "const float a_scale = p.a_scale[i];",
            "const float a_scale = p.a_scale[i / 4 * 4];",
        ),
        ("gemm: zero point of the panel's first row", "p.a_zero_point[i]", "p.a_zero_point[i / 4 * 4]"),
        (
            "gemm: bias of the last column dropped",
            "j < count; ++j) c.bias[j] = to_f32",
            "j < count - 1; ++j) c.bias[j] = to_f32",
        ),
        (
            "epilogue: bias rounded to bf16",
            "c.scale[j]) + c.bias[j]",
            "c.scale[j]) + to_f32(from_f32<BF16>(c.bias[j]))",
        ),
    ),
    *plant(
        "csrc/gemm/epilogue_maths.h",
        (
            "epilogue: a NaN is quantised like a number",
            "return y == y ? q : kLost",
            "return q",
            "tests/ops/test_gemm_int8_epilogue.py -k not emulator",
        ),
        (
            "groups: rounded twice",
            "std::fma(static_cast<float>(acc) * a_scale, w_scale, k_chunk)",
            "static_cast<float>(acc) * a_scale * w_scale + k_chunk",
            "tests/ops/test_gemm_int8_groups.py",
        ),
        (
            "groups: scales multiplied with each other first",
            "std::fma(static_cast<float>(acc) * a_scale, w_scale, k_chunk)",
            "std::fma(static_cast<float>(acc), a_scale * w_scale, k_chunk)",
            "tests/ops/test_gemm_int8_groups.py",
        ),
        ("epilogue: sign of the zero point", "static_cast<uint32_t>(acc) -", "static_cast<uint32_t>(acc) +"),
        (
            "epilogue: zero point dropped past int32",
            "acc - static_cast<int64_t>(zero_point)",
            "acc - 0 * static_cast<int64_t>(zero_point)",
        ),
        (
            "epilogue: scales multiplied with each other first",
            "static_cast<float>(acc) * a_scale * w_scale",
            "static_cast<float>(acc) * (a_scale * w_scale)",
        ),
    ),
    *plant(
        "csrc/gemm/problem.h",
        (
            "host: m of int4 is not in the key",
            "memo_key(m, n, k, group, is_bf16)",
            "memo_key(n, k, group, is_bf16)",
        ),
        ("host: group is not in the key", "memo_key(m, n, k, group, is_bf16)", "memo_key(m, n, k, is_bf16)"),
        tests="tests/ops/test_host_work.py",
    ),
)
