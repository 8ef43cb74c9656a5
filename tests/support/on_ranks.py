"""Runs a function of a test module in several processes, the ranks of a gloo group."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# One server imports these; each rank is a fork of it.
IMPORTED = ["lamina", "torch.distributed.tensor", "transformers.models.llama.modeling_llama"]


def run_on_ranks(function: Callable[..., None], size: int, folder: Path, *args: Any) -> None:
    """Calls function(rank, size, *args) in `size` processes; an exception in one of them fails the test.

    folder   a new folder, where the processes meet
    """
    multiprocessing.set_forkserver_preload(IMPORTED)
    arguments = (function, size, str(folder / "store"), args)
    mp.start_processes(_rank, arguments, nprocs=size, start_method="forkserver")  # type: ignore[no-untyped-call]


def _rank(rank: int, function: Callable[..., None], size: int, store: str, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    try:
        function(rank, size, *args)
    finally:
        dist.destroy_process_group()
