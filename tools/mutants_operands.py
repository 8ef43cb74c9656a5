"""The bugs that tools/mutants.py plants in how operands are reached: beyond 2^31, beyond an edge, where k is
split; and in the sign of zero."""

from __future__ import annotations

from tools.mutant import Mutant

W8A8 = "csrc/ops/gemm_int8"
W4A16 = "csrc/ops/gemm_int4"
W4A8 = "csrc/ops/gemm_int4_int8"
EPILOGUE = f"{W8A8}/cuda/epilogue.cuh"
W4A8_REDUCE = f"{W4A8}/cuda/reduce.cu"

SPLIT = "tests/ops/test_split_k.py", "-k"
LARGE = "tests/ops/test_large.py", "-k"
ZEROS = "tests/ops/test_zeros.py", "-k"
PLACEMENT = ("tests/ops/test_placement.py",)

OPERAND_MUTANTS = (
    # Where k is split
    Mutant(
        "int4 sm80, perm: the rows of a split start at its first k",
        f"{W4A16}/cuda/sm80.cuh",
        "(p.perm.is_given() ? 0 : begin)",
        "(p.perm.is_given() ? begin - chunk * 16 : begin)",
        (*SPLIT, "gemm_int4-"),
    ),
    Mutant(
        "int4 sm90a, perm: the rows of a split start at its first k",
        f"{W4A16}/cuda/sm90a.cuh",
        "copy_rows(args, tile.m0, step, thread, stage);",
        "{ Args moved = args; if (args.p.perm.is_given()) moved.p.a = static_cast<const std::byte*>(args.p.a)"
        " + tile.first_step * int4::kTileK * 2; copy_rows(moved, tile.m0, step, thread, stage); }",
        (*SPLIT, "gemm_int4-"),
    ),
    Mutant(
        "reduce, int4: gate dropped",
        f"{W4A16}/cuda/reduce.cu",
        "gemm_int8::reduce_columns<float, float>(p,",
        "Params less = p; less.gate = {}; gemm_int8::reduce_columns<float, float>(less,",
        (*SPLIT, "gemm_int4-"),
    ),
    Mutant(
        "reduce, int4: residual dropped",
        f"{W4A16}/cuda/reduce.cu",
        "gemm_int8::reduce_columns<float, float>(p,",
        "Params less = p; less.residual = {}; gemm_int8::reduce_columns<float, float>(less,",
        (*SPLIT, "gemm_int4-"),
    ),
    Mutant(
        "reduce, int4_int8: gate dropped",
        W4A8_REDUCE,
        "if (!is_one_group(p.problem)) return gemm_int8::reduce_columns<float, float>(p,",
        "CudaParams less = p; less.gate = {}; if (!is_one_group(p.problem)) "
        "return gemm_int8::reduce_columns<float, float>(less,",
        (*SPLIT, "gemm_int4_int8"),
    ),
    Mutant(
        "reduce, int4_int8: gate of one group dropped",
        W4A8_REDUCE,
        "store_row(p, y, i, columns);",
        "CudaParams less = p; less.gate = {}; store_row(less, y, i, columns);",
        (*SPLIT, "gemm_int4_int8"),
    ),
    Mutant(
        "reduce, int4_int8: activation of one group dropped",
        W4A8_REDUCE,
        "store_row(p, y, i, columns);",
        "CudaParams less = p; less.activation = Activation::kNone; store_row(less, y, i, columns);",
        (*SPLIT, "gemm_int4_int8"),
    ),
    Mutant(
        "reduce, gemm_int8: gate dropped",
        f"{W8A8}/cuda/reduce.cu",
        "return Reduce<Params, Op>::launch(params,",
        "Params less = params; less.gate = {}; return Reduce<Params, Op>::launch(less,",
        (*SPLIT, "gemm_int8"),
    ),
    # Beyond 2^31
    Mutant(
        "int4_int8 cuda, prepare: rows in int32",
        f"{W4A8}/cuda/prepare.cu",
        "args.a + i * args.a_stride",
        "args.a + static_cast<int32_t>(i * args.a_stride)",
        (*LARGE, "gemm_int4_int8 and twin"),
    ),
    Mutant(
        "int4 sm80: passes over rows in int32",
        f"{W4A16}/cuda/sm80.cuh",
        "p.a_stride * 2 * kRowsPerPass,",
        "static_cast<int32_t>(p.a_stride * 2 * kRowsPerPass),",
        (*LARGE, "gemm_int4- and twin"),
    ),
    Mutant(
        "int4 sm90a: copied rows in int32",
        f"{W4A16}/cuda/sm90a.cuh",
        "base + (m0 + row) * p.a_stride * 2;",
        "base + static_cast<int32_t>((m0 + row) * p.a_stride) * 2;",
        (*LARGE, "gemm_int4- and twin"),
    ),
    Mutant(
        "int4 groups: columns in int32",
        f"{W4A16}/cuda/group_rows.cuh",
        "row * group_stride + column * stride;",
        "row * group_stride + static_cast<int32_t>(column * stride);",
        (*LARGE, "gemm_int4 and twin"),
    ),
    Mutant(
        "reduce, int4_int8: columns of scales in int32",
        W4A8_REDUCE,
        "const int64_t at = j * of.stride;",
        "const auto at = static_cast<int32_t>(j * of.stride);",
        (*LARGE, "gemm_int4_int8 and reduction"),
    ),
    Mutant(
        "pack int4 cuda: rows in int32",
        f"{W4A16}/cuda/pack.cu",
        "args.q + row * args.stride + p",
        "args.q + static_cast<int32_t>(row * args.stride) + p",
        (*LARGE, "pack_int4"),
    ),
    Mutant(
        "rows: rows in int32",
        "csrc/ops/quantize_int8/cuda/rows.cu",
        "static_cast<const In*>(p.x) + i * p.x_stride",
        "static_cast<const In*>(p.x) + static_cast<int32_t>(i * p.x_stride)",
        (*LARGE, "quantize and twin"),
    ),
    Mutant(
        "int4, perm: rows in int32",
        f"{W4A16}/cpu/body.h",
        "a[r * stride + perm[i]]",
        "a[static_cast<int32_t>(r * stride) + perm[i]]",
        (*LARGE, "gathered and not twin"),
    ),
    Mutant(
        "cuda epilogue: rows of gate and residual in int32",
        EPILOGUE,
        "rows[r] * operand.stride + columns.j0",
        "static_cast<int32_t>(rows[r] * operand.stride) + columns.j0",
        (*LARGE, "apart and twin"),
    ),
    # Beyond an edge
    Mutant(
        "int4 sm90a: rows beyond m copied",
        f"{W4A16}/cuda/sm90a.cuh",
        "m0 + row < p.problem.m ? p.problem.k - k0 : 0;",
        "p.problem.k - k0;",
        ("tests/ops/test_gemm_int4_cuda.py", "-k", "sm90a and (act_order or strides)"),
    ),
    Mutant(
        "sm90a boxes: gate and residual of rows beyond m",
        f"{W8A8}/cuda/sm90a_boxes.cuh",
        "std::min(m0 + row_of(r), last);",
        "m0 + row_of(r);",
        ("tests/ops/test_gemm_int8_epilogue.py", "-k", "sm90a and twin"),
    ),
    Mutant(
        "sm80 groups: scales of columns beyond n",
        f"{W8A8}/cuda/sm80_groups.cuh",
        "const int bytes = n0 + t < p.problem.n ? 4 : 0; const int64_t j = bytes > 0 ? n0 + t : 0;",
        "const int bytes = 4; const int64_t j = n0 + t;",
        ("tests/ops/test_gemm_int8_groups.py", "-k", "sm80 and twin"),
    ),
    Mutant(
        "cuda epilogue: bias and scales of columns beyond n",
        EPILOGUE,
        "j0 + (e < left ? e : 0);",
        "j0 + e;",
        ("tests/ops/test_gemm_int8_epilogue.py", "-k", "twin"),
    ),
    Mutant(
        "cuda epilogue: gate and residual of columns beyond n",
        EPILOGUE,
        "from[r] + (e < count ? e : 0)",
        "from[r] + e",
        ("tests/ops/test_gemm_int8_epilogue.py", "-k", "twin"),
    ),
    # The sign of zero
    Mutant(
        "int4_int8: a k_chunk starts at 0",
        f"{W4A8}/cpu/body.h",
        "std::fill_n(k_chunk, rows * kTileN, gemm_int8::kNoSum);",
        "std::fill_n(k_chunk, rows * kTileN, 0.0f);",
        (*ZEROS, "gemm_int4_int8 and not twin"),
    ),
    Mutant(
        "int4_int8: a difference of the other sign",
        f"{W4A8}/cpu/step.h",
        "static_cast<float>(sum - kSymmetricZeroPoint * a_sum)",
        "-static_cast<float>(kSymmetricZeroPoint * a_sum - sum)",
        (*ZEROS, "gemm_int4_int8 and not twin"),
    ),
    Mutant(
        "int4_int8 cuda: a k_chunk starts at 0",
        f"{W4A8}/cuda/sm80.cuh",
        "end_k_chunk.clear(gemm_int8::empty_sum(args.p.problem.k));",
        "end_k_chunk.clear(0.0f);",
        (*ZEROS, "gemm_int4_int8 and twin"),
    ),
    Mutant(
        "reduce: sums of partials start at 0",
        f"{W8A8}/cuda/reduce.cuh",
        "Acc(kNoSum)",
        "Acc(0)",
        (*ZEROS, "twin"),
    ),
    Mutant(
        "reduce, int4_int8: one group starts at 0",
        W4A8_REDUCE,
        "gemm_int8::kNoSum);",
        "0.0f);",
        (*ZEROS, "gemm_int4_int8 and twin"),
    ),
    # What is refused, and what else no other table has
    Mutant(
        "int4 cuda: packed weights at any multiple of 4 bytes",
        f"{W4A16}/cuda/plan.cc",
        "reinterpret_cast<uintptr_t>(params.w) % 16 != 0",
        "reinterpret_cast<uintptr_t>(params.w) % 4 != 0",
        PLACEMENT,
    ),
    Mutant(
        "binding, int4: residual on another device",
        "csrc/torch/gemm_int4.cc",
        'then.argument("residual", residual), then.argument("perm", perm)',
        'then.argument("perm", perm)',
        PLACEMENT,
    ),
    Mutant(
        "quantize: only the first static scale is looked at",
        "csrc/ops/quantize_int8/run.cc",
        "i < (scale.stride == 0 ? std::min<int64_t>(m, 1) : m)",
        "i < std::min<int64_t>(m, 1)",
        ("tests/ops/test_errors.py", "-k", "scale"),
    ),
    Mutant(
        "quantized cuda: no cap on the launch that settles rows",
        f"{W8A8}/cuda/quantized.cc",
        "launch_mark_nan_rows(p.quantize, plan.max_blocks(), stream)",
        "launch_mark_nan_rows(p.quantize, 1 << 30, stream)",
        ("tests/ops/test_twin.py", "-k", "cap"),
    ),
    Mutant(
        "pack int4 cuda: row stride of q ignored",
        f"{W4A16}/cuda/pack.cu",
        "args.q + row * args.stride + p",
        "args.q + row * args.k + p",
        ("tests/ops/test_pack_int4.py", "-k", "device"),
    ),
    Mutant(
        "int4 cuda, a: four bytes at once at any even address",
        f"{W4A16}/cuda/kernel.h",
        "alignment >= 4 ? 4 : 1",
        "alignment >= 2 ? 4 : 1",
        ("tests/ops/test_gemm_int4_cuda.py", "-k", "strides and twin"),
    ),
    Mutant(
        "scratch: a request a little larger gets the old block",
        "csrc/base/scratch.cc",
        "if (bytes > size)",
        "if (bytes > size + 2048)",
        ("tests/ops/test_gemm_int8.py", "-k", "avx2 or avx512_vnni"),
    ),
    Mutant(
        "int4_int8 avx512: zero points taken off in two roundings",
        f"{W4A8}/cpu/scale512.h",
        "x = _mm512_fmadd_ps(_mm512_loadu_ps(minus_zero), _mm512_set1_ps(static_cast<float>(a_sum)), x);",
        "x = _mm512_add_ps(_mm512_mul_ps(_mm512_loadu_ps(minus_zero), "
        "_mm512_set1_ps(static_cast<float>(a_sum))), x);",
        ("tests/ops/test_gemm_int4_int8.py", "-k", "avx512_vnni"),
    ),
    Mutant(
        "pack_bytes: the last four k of a row are read whole",
        f"{W8A8}/cpu/pack_bytes.h",
        "static_cast<size_t>(k % int8_tile::kGroupK)",
        "sizeof group",
        ("tests/ops/test_gemm_int8.py", "-k", "generic or avx2"),
    ),
    Mutant(
        "plan int4: a kernel with two groups that it cannot cut",
        f"{W4A16}/plan.cc",
        "p.groups() > 1",
        "p.groups() > 2",
        ("tests/ops/test_gemm_int4_int8.py", "tests/ops/test_gemm_int4_int8_exact.py", "-k", "amx"),
    ),
)
