"""The worker processes of a test count and report with this; vLLM mixes the class into its worker."""

from __future__ import annotations

from contextlib import ExitStack

from tests.vllm.engine import counted

_stack = ExitStack()
_calls = _stack.enter_context(counted())


class Counting:
    """Methods for LLM.collective_rpc."""

    def lamina_calls(self) -> dict[str, int]:
        """The calls into lamina since this process began."""
        return dict(_calls)

    def lamina_forget(self) -> None:
        """Starts to count anew."""
        _calls.clear()
