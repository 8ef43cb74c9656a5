"""The inputs that the ops of 2:4 weights refuse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

import lamina
from tests.support.bad_input import RAW, BadInput

N, K = 5, 24


def bad_inputs() -> Iterator[BadInput]:
    yield from _bad_compressed()
    yield from _bad_decompressed()
    yield from _bad_imported()


def _bad_compressed() -> Iterator[BadInput]:
    w, mask = torch.zeros(N, K), torch.zeros(N, K, dtype=torch.bool)

    def bad(what: str, argument: str, got: str, allowed: str, **changed: Any) -> BadInput:
        def call() -> Any:
            return lamina.compress_sparse24(**({"w": w, "mask": mask} | changed))

        return BadInput("compress_sparse24", what, call, argument, got, allowed)

    yield bad("w a list", "w ", "list [[1]]", "torch.Tensor", w=[[1]])
    yield bad("w f64", "w ", "float64", "float32, float16, bfloat16, int8 or uint8", w=w.double())
    yield bad("w 1-D", "w ", "1-D [24]", "2-D [n, k]", w=w[0])
    yield bad("w transposed", "w ", "column stride 1", "got 24", w=torch.zeros(K, K).T)
    yield bad("k no multiple of 4", "k = ", "22", "multiples of 4", w=w[:, :22], mask=mask[:, :22])
    yield bad("mask a list", "mask", "list [1]", "torch.Tensor or None", mask=[1])
    yield bad("mask of bytes", "mask", "uint8", "bool", mask=mask.byte())
    yield bad("mask of less", "mask", "2-D [4, 24]", "[n, k] = [5, 24]", mask=mask[:4])
    yield bad("mask on another device", "mask", "meta", "cpu", mask=mask.to("meta"))
    yield bad("w sparse", "w ", "torch.sparse_coo", "dense", w=w.to_sparse(), mask=None)
    yield bad("mask sparse", "mask", "torch.sparse_coo", "dense", mask=mask.to_sparse())
    yield bad("fill infinite", "fill", "inf", "finite", fill=float("inf"))
    yield bad("fill beyond int8", "fill", "128", "-128 to 127", w=w.char(), fill=128)
    yield bad("fill of uint8 negative", "fill", "-1", "0 to 255", w=w.byte(), fill=-1)
    yield bad("fill a fraction", "fill", "0.5", "integers", w=w.byte(), fill=0.5)
    full = w.clone()
    full[3, 20:23] = 1
    yield bad("three nonzeros", "w has 3 nonzeros", "row 3, group 5 (k = 20 to 23)", "2", w=full, mask=None)
    yield bad("three kept", "mask has 3 kept", "row 3, group 5 (k = 20 to 23)", "2", mask=full != 0)


def _bad_decompressed() -> Iterator[BadInput]:
    values, metadata = RAW.compress_sparse24(torch.zeros(N, K))

    def bad(what: str, argument: str, got: str, allowed: str, **changed: Any) -> BadInput:
        given = {"values": values, "metadata": metadata, "k": K} | changed

        def call() -> Any:
            return RAW.decompress_sparse24(**given)

        return BadInput("decompress_sparse24", what, call, argument, got, allowed)

    yield bad("values int32", "values", "int32", "int8 or uint8", values=values.int())
    yield bad("values of another k", "values", "[5, 12]", "[n, k / 2] = [5, 14]", k=28)
    yield bad("values 1-D", "values", "1-D [12]", "2-D [n, k / 2]", values=values[0])
    yield bad("k no multiple of 4", "k = ", "25", "multiples of 4", k=25)
    yield bad("k negative", "k = ", "-4", "multiples of 4", k=-4)
    yield bad("metadata int8", "metadata", "int8", "uint8", metadata=metadata.char())
    yield bad("metadata of less", "metadata", "[5, 2]", "[n, ceil(k / 8)] = [5, 3]", metadata=metadata[:, :2])
    yield bad("metadata elsewhere", "metadata", "meta", "cpu", metadata=metadata.to("meta"))
    yield bad("fill NaN", "fill", "nan", "finite", fill=float("nan"))
    for what, code in (("out of order", 0x1), ("twice the same", 0x5)):
        wrong = metadata.clone()
        wrong[2, 1] = code << 4 | 14
        yield bad(what, "metadata of row 2, group 3", f"{code & 3} and {code >> 2}", "rising", metadata=wrong)


def _bad_imported() -> Iterator[BadInput]:
    words = torch.full((64 * 64 // 16,), -0x1112).short()

    def bad(what: str, argument: str, got: str, allowed: str, **changed: Any) -> BadInput:
        given = {"metadata": words, "order": "marlin", "n": 64, "k": 64} | changed

        def call() -> Any:
            return RAW.import_sparse24_metadata(**given)

        return BadInput("import_sparse24_metadata", what, call, argument, got, allowed)

    yield bad("order unknown", "order", '"gptq"', '"bitmask"', order="gptq")
    yield bad("n no multiple of 64", "n = ", "32", "multiples of 64 in order marlin", n=32)
    yield bad("k no multiple of 32", "k = ", "48", "multiples of 32 in order marlin", k=48)
    yield bad("n negative", "n = ", "-64", "multiples of 64", n=-64)
    yield bad("metadata int32", "metadata", "int32", "int16", metadata=words.int())
    yield bad("metadata of less", "metadata", "1-D [255]", "256 elements", metadata=words[:255])
    strided = words.view(8, 32).T
    yield bad("metadata transposed", "metadata", "contiguous", ".contiguous()", metadata=strided)
    wrong = words.clone()
    wrong[0] = -0x1111
    yield bad("equal indices", "metadata of row 0, group 0", "3 and 3", "rising", metadata=wrong)
    mask = {"metadata": torch.full((64, 8), 0x37).byte(), "order": "bitmask"}
    yield bad("bitmask of three", "bitmask of row 0, group 0", "3 entries", "allowed: 2", **mask)

    def bad_codes(what: str, got: str, allowed: str, data: torch.Tensor, bits: int = 4) -> BadInput:
        def call() -> Any:
            return RAW.import_marlin24(data, bits)

        return BadInput("import_marlin24", what, call, "bits" if bits == 3 else "weight_packed", got, allowed)

    packed = torch.zeros(2, 128).int()
    yield bad_codes("weight int64", "int64", "int32", packed.long())
    yield bad_codes("weight 1-D", "1-D [128]", "2-D [k / 32, n * bits / 2]", packed[0])
    yield bad_codes("n no multiple of 64", "[2, 64]", "n a multiple of 64", packed[:, :64].contiguous())
    yield bad_codes("weight strided", "contiguous", ".contiguous()", torch.zeros(2, 256).int()[:, :128])
    yield bad_codes("bits of three", "3", "4, 8", packed, 3)
