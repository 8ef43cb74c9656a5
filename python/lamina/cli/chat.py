"""`lamina chat`: a conversation with a compressed model in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click
import torch

from lamina.cli.demo.encoder import DemoError
from lamina.cli.demo.llm import MODEL_NAME, VARIANTS, load

CONTEXT = 2048  # tokens of a conversation
QUIT, RESET = "/quit", "/reset"


class Conversation:
    """Questions and answers with one model, whose keys and values lie in a PagedKVCache.

    Tokens that the cache holds are not computed again. When the conversation outgrows `context` tokens, its
    oldest questions and answers are dropped.
    """

    def __init__(self, model: Any, tokenizer: Any, context: int = CONTEXT) -> None:
        from lamina.integrations.transformers import PagedKVCache

        self._model, self._tokenizer, self._context = model, tokenizer, context
        self._cache = PagedKVCache(model.config, context)
        self._cached: list[int] = []  # tokens whose keys and values are in the cache
        self._messages: list[dict[str, str]] = []

    def answer(self, question: str, most: int, show: Callable[[str], object]) -> str:
        """The answer of at most `most` tokens. `show` gets each piece of its text as soon as it is there.

        Raises   ValueError for a question that has no room in the context beside the answer
        """
        from transformers import TextStreamer

        class Streamer(TextStreamer):  # type: ignore[misc]
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                show(text)

        self._messages.append({"role": "user", "content": question})
        ids = self._fitting(most)
        self._keep_common(ids)
        tokens = torch.tensor([ids])
        streamer = Streamer(self._tokenizer, skip_prompt=True, skip_special_tokens=True)
        with torch.inference_mode():
            out = self._model.generate(
                tokens, attention_mask=torch.ones_like(tokens), past_key_values=self._cache,
                max_new_tokens=most, do_sample=False, streamer=streamer,
            )  # fmt: skip
        whole: list[int] = out[0].tolist()
        self._cached = whole[: self._cache.get_seq_length()]
        text: str = self._tokenizer.decode(whole[len(ids) :], skip_special_tokens=True)
        self._messages.append({"role": "assistant", "content": text})
        return text

    def reset(self) -> None:
        """Forgets all questions and answers."""
        self._messages.clear()

    def _fitting(self, most: int) -> list[int]:
        """The tokens of the conversation, after the oldest questions are dropped that leave no room."""
        while True:
            ids: list[int] = self._tokenizer.apply_chat_template(
                self._messages, add_generation_prompt=True, return_dict=False
            )
            if len(ids) + most <= self._context:
                return ids
            if len(self._messages) == 1:
                self._messages.clear()
                raise ValueError(
                    f"the question has {len(ids)} tokens with its template; beside an answer of {most} "
                    f"tokens at most {self._context - most} are allowed"
                )
            del self._messages[:2]

    def _keep_common(self, ids: list[int]) -> None:
        """Drops from the cache all that does not begin `ids`; at least the last token is computed anew."""
        common = 0
        for held, wanted in zip(self._cached, ids[:-1], strict=False):
            if held != wanted:
                break
            common += 1
        if self._cached:
            self._cache.crop(common - len(self._cached))
            self._cached = self._cached[:common]


@click.command()
@click.option(
    "--scheme",
    type=click.Choice(list(VARIANTS)),
    default="w4a8-file",
    show_default=True,
    help="As in demo.",
)
@click.option(
    "--max-tokens", type=click.IntRange(1, CONTEXT // 2), default=256, show_default=True, help="Of an answer."
)
def chat(scheme: str, max_tokens: int) -> None:
    """Talk to SmolLM2-135M-Instruct, compressed. /reset forgets the conversation, /quit ends it."""
    try:
        _, model, tokenizer = list(load([scheme]))[-1]
    except DemoError as error:
        raise click.ClickException(str(error)) from error
    conversation = Conversation(model, tokenizer)
    click.echo(f"{MODEL_NAME}, {scheme}: {VARIANTS[scheme].summary}\n{RESET} forgets, {QUIT} ends")
    while True:
        try:
            question = click.prompt("", prompt_suffix="> ", default="", show_default=False).strip()
        except (click.Abort, EOFError):
            click.echo()
            return
        if question == QUIT:
            return
        if question == RESET:
            conversation.reset()
        elif question:
            try:
                conversation.answer(question, max_tokens, _show)
            except ValueError as error:
                click.echo(str(error), err=True)
            click.echo()


def _show(text: str) -> None:
    click.echo(text, nl=False)
    sys.stdout.flush()
