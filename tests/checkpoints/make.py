"""Makes the small files of this folder with compressed-tensors 0.12.2, which no test needs:

    pip install --no-deps --target DIR compressed-tensors==0.12.2 pydantic pydantic-core annotated-types \
        typing-inspection loguru frozendict tqdm
    PYTHONPATH=DIR:. python tests/checkpoints/make.py

Each layer of compressed_tensors.safetensors is what a compressor of that package writes. The metadata of the
file has its scheme, and a hash of the weight in f32 to which the same package dequantises it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors.quantized_compressors.naive_quantized import NaiveQuantizationCompressor
from compressed_tensors.compressors.quantized_compressors.pack_quantized import (
    PackedQuantizationCompressor,
    unpack_from_int32,
)
from compressed_tensors.compressors.sparse_compressors.sparse_24_bitmask import (
    sparse24_bitmask_compress,
    sparse24_bitmask_decompress,
)
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize
from safetensors.torch import save_file

N, K = 24, 80
SCHEMES: dict[str, dict[str, Any]] = {
    "w4": {"num_bits": 4, "symmetric": True, "strategy": "group", "group_size": 16},
    "w4_zero": {"num_bits": 4, "symmetric": False, "strategy": "group", "group_size": 16},
    "w4_channel": {"num_bits": 4, "symmetric": True, "strategy": "channel"},
    "w4_order": {
        "num_bits": 4,
        "symmetric": True,
        "strategy": "group",
        "group_size": 16,
        "actorder": "group",
    },
    "w8_channel": {"num_bits": 8, "symmetric": True, "strategy": "channel"},
    "w8_zero": {"num_bits": 8, "symmetric": False, "strategy": "channel"},
    "w8_group": {"num_bits": 8, "symmetric": True, "strategy": "group", "group_size": 16},
    "int8": {"num_bits": 8, "symmetric": True, "strategy": "channel"},
    "int8_tensor": {"num_bits": 8, "symmetric": True, "strategy": "tensor"},
    "float8": {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"},
}


def hash_of(w: torch.Tensor) -> str:
    return hashlib.sha256(w.float().contiguous().numpy().tobytes()).hexdigest()[:16]


def parameters(args: QuantizationArgs, g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor | None]:
    groups = K // args.group_size if args.group_size else 1
    shape = (1,) if args.strategy == "tensor" else (N, groups)
    scale = (torch.rand(shape, generator=g) * 0.02 + 0.01).to(torch.bfloat16)
    if args.symmetric:
        return scale, None
    top = 1 << (args.num_bits - 1)
    return scale, torch.randint(-top, top, shape, generator=g).to(torch.int8)


def main() -> None:
    g = torch.Generator().manual_seed(22)
    tensors: dict[str, torch.Tensor] = {}
    described: dict[str, Any] = {}
    for name, scheme in SCHEMES.items():
        args = QuantizationArgs(**scheme)
        w = torch.randn(N, K, generator=g).to(torch.bfloat16) * 0.1
        scale, zero = parameters(args, g)
        g_idx = torch.randperm(K, generator=g).int() // 16 if args.actorder else None
        kind = PackedQuantizationCompressor if name.startswith("w") else NaiveQuantizationCompressor
        compressor = kind(config=None)
        made = compressor.compress_weight(
            weight=w, scale=scale, zero_point=zero, g_idx=g_idx, quantization_args=args, device="cpu"
        )
        stored = {"weight_scale": scale, **made}
        if zero is not None:
            stored.setdefault("weight_zero_point", zero)
        if g_idx is not None:
            stored["weight_g_idx"] = g_idx
        if name.startswith("w"):
            q = unpack_from_int32(made["weight_packed"], args.num_bits, torch.Size((N, K)))
            back = dequantize(q, scale.float(), zero, args, dtype=torch.float32, g_idx=g_idx)
        else:
            back = dequantize(made["weight"].float(), scale.float(), zero, args, dtype=torch.float32)
        tensors |= {
            f"{name}.{part}": tensor.contiguous() for part, tensor in stored.items() if tensor is not None
        }
        described[name] = {"weights": json.loads(args.model_dump_json()), "hash": hash_of(back)}
    w = torch.randn(N, K, generator=g).half()
    values, mask = sparse24_bitmask_compress(w)
    tensors |= {
        "bitmask.compressed": values,
        "bitmask.bitmask": mask,
        "bitmask.shape": torch.tensor([[N], [K]]),
    }
    described["bitmask"] = {"hash": hash_of(sparse24_bitmask_decompress(values, mask, torch.Size((N, K))))}
    save_file(
        tensors, Path(__file__).with_name("compressed_tensors.safetensors"), {"layers": json.dumps(described)}
    )


if __name__ == "__main__":
    main()
