"""Errors that kernels on a GPU have found in the contents of tensors."""

from __future__ import annotations

import torch

from lamina._checks import call


def check_errors(device: torch.device | str | int | None = None) -> None:
    """Raises the first error that the ops on paged caches have found on a CUDA device.

    On a CPU these ops check every index before they write, and raise ValueError. On CUDA the host would have
    to wait for the device, so the kernels skip a bad index and record the first one. check_errors waits for
    all work of the device, forgets the record and raises it.

    device   a CUDA device; None means the current one. On a CPU there is nothing to check
    returns  None without an error
    Raises   RuntimeError that names the op, the argument, the place, its value and the allowed values, as
             `lamina::append_paged_kv: slot_mapping[3] = 77 must be -1, or at least 0 and below pages * page`
    Source   csrc/kv/error_word.h
    """
    if device is None:
        if not torch.cuda.is_available():
            return
        device = torch.cuda.current_device()
    place = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    if place.type != "cuda":
        return
    index = torch.cuda.current_device() if place.index is None else place.index
    text: str = call(torch.ops.lamina.take_kv_error, index)
    if text:
        raise RuntimeError(f"lamina::{text} (on cuda:{index}, the first since the last check; skipped)")
