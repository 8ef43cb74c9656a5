"""Text without meaning, for calibration and distillation: frames of sentences that words of a tokenizer fill.

It covers more of a model's vocabulary than any text of its size, and nobody has to download it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from lamina.cli.demo.encoder import Encoder

POOL = 16 * 32  # sentences among which those of similar length become batches

# Frames of sentences, none of them from the sentences that are judged; words of the tokenizer fill the gaps.
TEMPLATES = (
    "My _ told me that the _ was _ and the _ had _.", "Why do _ _ when the _ is so _?",
    "There is a _ _ in the _ near the _.", "They _ the _ with a _ because it was too _.",
    "If you _ your _, the _ will _ you.", "_ and _ are the two most _ _ of the _.",
    "Nobody _ how the _ _ came to the _.", "I would rather _ a _ than _ another _.",
    "In _, the _ of _ _ was _ by a _.", "This _ is made of _, _ and a little _.",
    "He said that his _ could _ any _ within an hour.", "It was the _ _ we had ever _.",
    "Some _ _ while others _ in the _.", "Could you _ me the _ to the _ _?",
    "The _, which _ last year, is now _ again.", "Without _, a _ can not _ its _.",
    "Scientists _ that _ _ makes _ more _.", "You should _ the _ as soon as the _ _.",
    "Many _ in _ still _ their _ by hand.", "Its _ was _, but its _ was _.",
    "_ _ _ _ _ _ _ _ _ _.", "the _ of _ and _ _ for _ _", "_: a _ guide to _ and _",
)  # fmt: skip


def made_batches(encoder: Encoder, count: int, seed: int) -> list[Mapping[str, Tensor]]:
    """Batches of 16 made sentences: a template each, its gaps filled with words of the tokenizer."""
    made = made_sentences(encoder, 16 * count, seed)
    return [encoder.tokenize(made[begin : begin + 16]) for begin in range(0, len(made), 16)]


def made_sentences(encoder: Encoder, count: int, seed: int) -> list[str]:
    """Sentences of templates whose gaps words of the tokenizer fill."""
    words = _words(encoder)
    generator = torch.Generator().manual_seed(seed)

    def sentence() -> str:
        template = TEMPLATES[int(torch.randint(len(TEMPLATES), (), generator=generator))]
        # The tokenizer lists common words first: the square prefers them.
        places = torch.rand(template.count("_"), generator=generator).square() * len(words)
        for place in places.tolist():
            template = template.replace("_", words[int(place)], 1)
        return template

    return [sentence() for _ in range(count)]


def with_other_words(encoder: Encoder, sentences: list[str], share: float, seed: int) -> list[str]:
    """The sentences, where words of the tokenizer replace some others.

    share   of the lower-case words of four letters or more that the tokenizer has, so less of all words
    """
    words = _words(encoder)
    known = {word for word in words if len(word) >= 4}
    generator = random.Random(seed)

    def other(match: re.Match[str]) -> str:
        if match.group() not in known or generator.random() >= share:
            return match.group()
        return words[int(generator.random() ** 2 * len(words))]

    return [re.sub(r"(?<![\w'])[a-z]+(?![\w'])", other, sentence) for sentence in sentences]


def alike_in_length(encoder: Encoder, sentences: list[str], seed: int) -> list[Mapping[str, Tensor]]:
    """Shuffled batches of 16 sentences of similar length, with little padding; len(sentences) % 16 is 0."""
    shuffled = random.Random(seed).sample(sentences, len(sentences))
    batches = []
    for begin in range(0, len(shuffled), POOL):
        pool = sorted(shuffled[begin : begin + POOL], key=len)
        batches += [pool[at : at + 16] for at in range(0, len(pool), 16)]
    random.Random(seed).shuffle(batches)
    return [encoder.tokenize(batch) for batch in batches]


def _words(encoder: Encoder) -> list[str]:
    """The words of three letters or more that are one token, common ones first."""
    return [word for word in encoder.tokens if re.fullmatch("[a-z]{3,}", word)]
