"""State dicts of packed layers."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn

WAYS = ("assign_to_meta", "copy", "file", "safetensors", "deepcopy")


def reloaded(module: nn.Module, how: str, fresh: Any) -> Any:
    """A layer with the state of `module`: fresh(device), made on the meta device for "assign_to_meta"."""
    if how == "deepcopy":
        return copy.deepcopy(module)
    other, state = fresh("meta" if how == "assign_to_meta" else None), module.state_dict()
    if how == "file":
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
    elif how == "safetensors":
        safetensors = pytest.importorskip("safetensors.torch")
        state = safetensors.load(safetensors.save(state))
    other.load_state_dict(state, assign=how == "assign_to_meta")
    return other
