"""Speculative decoding over a PagedCache: drafts, the choice of their number, and a driver that measures.

model = lamina.integrations.transformers.PagedModel(causal_lm, tokens=4096)
found = decode(model, [Request(prompt, max_new_tokens=64)], PromptLookup(), width=ClosedLoop(8))
"""

from lamina.speculate.closed_loop import ClosedLoop, FixedWidth, Step, Width
from lamina.speculate.draft_model import DraftModel
from lamina.speculate.drafts import Draft, PromptLookup, Proposal
from lamina.speculate.driver import Decoded, decode
from lamina.speculate.request import Request, Running
from lamina.speculate.rows import Model, Rows

__all__ = [
    "ClosedLoop",
    "Decoded",
    "Draft",
    "DraftModel",
    "FixedWidth",
    "Model",
    "PromptLookup",
    "Proposal",
    "Request",
    "Rows",
    "Running",
    "Step",
    "Width",
    "decode",
]
