"""PagedCache and check_errors on a CUDA device, or on one that is pretended."""

from __future__ import annotations

import pytest
import torch

import lamina
from lamina.integrations.flash_attn import flash_attn_with_kvcache
from lamina.kv import PagedCache
from tests.python.test_cuda import device as device  # the fixture
from tests.support.cases import generator
from tests.support.compare import assert_equal


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_a_cache_on_the_device_holds_what_one_on_the_cpu_holds(
    dtype: torch.dtype, device: torch.device
) -> None:
    """Append, fork with a copy of a shared page, accept a tree and read."""
    results = []
    for place in (torch.device("cpu"), device):
        g = generator("cache on a device")
        cache = PagedCache(2, 6, 4, 2, 16, v_head_dim=8, dtype=dtype, device=place)
        first = cache.new()
        seqs = [first]
        for count in (6, 5):
            slots = cache.append(seqs, count)
            k, v = (torch.randn(count * len(seqs), 2, d, generator=g).to(place) for d in (16, 8))
            for layer in range(2):
                cache.write(layer, k, v, slots)
            if len(seqs) == 1:
                seqs.append(cache.fork(first))
        paths = torch.tensor([[0, 2, 4], [1, 3, -1]], dtype=torch.int32).to(place)
        cache.accept(seqs, 5, paths)
        assert [cache.length(seq) for seq in seqs] == [9, 8]
        batch = cache.batch(seqs, [9, 8])
        scales = {"k_scale": cache.k_scale[1], "v_scale": cache.v_scale[1]} if cache.k_scale else {}
        read = lamina.gather_paged_kv(
            cache.k[1], cache.v[1], batch.block_table, batch.cu_seqlens_q, 17, **scales
        )
        results.append([tensor.cpu() for tensor in read])
    for got, want in zip(results[1], results[0], strict=True):
        assert_equal(got.float(), want.float())


def test_check_errors_raises_once(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():  # pretended: the word is that of the emulator
        monkeypatch.setattr(torch.ops.lamina, "take_kv_error", torch.ops.lamina_emu.take_kv_error)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    cache = torch.zeros(2, 4, 1, 8).to(device)
    rows = torch.ones(3, 1, 8).to(device)
    lamina.check_errors()
    for place in (None, device, 0, "cuda", "cuda:0"):
        lamina.append_paged_kv(rows, rows, cache, cache.clone(), torch.tensor([1, 8, 2]).to(device))
        lamina.check_errors("cpu")
        text = r"^lamina::append_paged_kv: slot_mapping\[1\] = 8 must be -1, or .* \(on cuda:0, "
        with pytest.raises(RuntimeError, match=text):
            lamina.check_errors(place)
        lamina.check_errors(place)


def test_the_decode_call_of_transformers(device: torch.device) -> None:
    """Pages of 256 rows, the layers of a cache interleaved, a table padded with -1; a new key for each."""
    lengths, table = [300, 0, 511], torch.tensor([[4, 1, -1, -1], [2, -1, -1, -1], [5, 0, -1, -1]])
    g = generator("decode call")
    layers = torch.randn(6, 2, 2, 256, 2, 16, generator=g).bfloat16()  # pages, layers, keys and values
    q = torch.randn(3, 1, 4, 16, generator=g).bfloat16()
    k, v = torch.randn(2, 3, 1, 2, 16, generator=g).bfloat16().unbind(0)

    def decode(place: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        cache = layers.clone().to(place)
        out = flash_attn_with_kvcache(
            q=q.to(place), k_cache=cache[:, 1, 0], v_cache=cache[:, 1, 1], k=k.to(place), v=v.to(place),
            cache_seqlens=torch.tensor(lengths, dtype=torch.int32).to(place),
            block_table=table.int().to(place), softmax_scale=0.25, causal=True, window_size=(-1, -1),
        )  # fmt: skip
        assert isinstance(out, torch.Tensor)
        return out.cpu(), cache.cpu()

    out, cache = decode(device)
    exact, appended = decode(torch.device("cpu"))
    assert_equal(cache, appended)
    torch.testing.assert_close(out, exact, rtol=2e-2, atol=2e-2)


def test_without_a_device_there_is_nothing_to_check() -> None:
    lamina.check_errors("cpu")
    if not torch.cuda.is_available():
        lamina.check_errors()
