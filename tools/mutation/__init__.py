"""The bugs that tools/mutants.py plants, a module for each room and op. Add some with every kernel."""

from __future__ import annotations

from tools.mutation import (
    base,
    block,
    gemm_cpu,
    gemm_cuda,
    gemm_int4_cpu,
    gemm_int4_cuda,
    gemm_int4_int8_cpu,
    gemm_int4_int8_cuda,
    gemm_int4_int8_sm90a,
    gemm_int4_sm90a,
    gemm_int8_cpu,
    gemm_int8_cuda,
    gemm_sm80_pipe,
    paged_attention_cpu,
    quant,
    quantize_int8,
    torch,
)

MUTANTS = (
    *base.MUTANTS,
    *block.MUTANTS,
    *gemm_cpu.MUTANTS,
    *gemm_cuda.MUTANTS,
    *gemm_int4_cpu.MUTANTS,
    *gemm_int4_cuda.MUTANTS,
    *gemm_int4_int8_cpu.MUTANTS,
    *gemm_int4_int8_cuda.MUTANTS,
    *gemm_int4_int8_sm90a.MUTANTS,
    *gemm_int4_sm90a.MUTANTS,
    *gemm_int8_cpu.MUTANTS,
    *gemm_int8_cuda.MUTANTS,
    *gemm_sm80_pipe.MUTANTS,
    *paged_attention_cpu.MUTANTS,
    *quant.MUTANTS,
    *quantize_int8.MUTANTS,
    *torch.MUTANTS,
)
