"""The texts with which `lamina demo` calibrates and judges a language model, and its question."""

from __future__ import annotations

from pydoc_data.topics import topics

QUESTION = "What is the capital of France, and which river flows through the city?"

PROSE = """\
The village of Harrow Bay lies at the end of a narrow road, between low green hills and the sea. In the \
morning the fishing boats come back to the harbour, and the men carry boxes of herring and mackerel to \
the market hall. The gulls follow them and wait for something to fall. By nine o'clock the best fish has \
been sold, the floor has been washed, and the square is quiet again until the school bus arrives.

Anna Weber came here eleven years ago to repair clocks. Her shop is a small room next to the bakery, with \
a wooden bench under the window and hundreds of drawers along the walls. She says that a clock is a \
patient teacher. If you force it, it breaks; if you clean it, oil it and listen to it, it usually tells \
you what is wrong. Most of the clocks that people bring to her have stopped for the same simple reason: \
the oil has become thick and sticky, and the wheels can no longer turn freely. She takes the whole \
movement apart, washes every piece, polishes the pivots and puts everything together again. The work \
takes two days. The bill is small, because she likes the work more than the money.

Last winter a storm damaged the old lighthouse. The wind broke two of the windows, and the rain ran down \
the stairs and into the room with the machine that turns the lamp. That machine is a kind of clock too. A \
heavy weight hangs on a long chain, and while it sinks slowly it drives the wheels, so that the light \
goes around once every thirty seconds. For more than a hundred years it had never been late by more than \
one second in an hour. After the storm it did not move at all.

The council wanted to replace the machine with an electric motor. A motor would be cheaper, they said, \
and nobody would have to climb the stairs to wind up the weight. Anna asked for one month. She went up \
every day with a lamp, a bag of tools and a bottle of hot tea. First she dried the room. Then she removed \
the rust from the chain, link by link, and made two new teeth for the largest wheel, because salt water \
had eaten the old ones. The children from the school came to watch, and she explained to them how a \
pendulum keeps time, and why a longer pendulum swings more slowly than a short one.

On the last evening of the month almost everybody in the village stood on the beach. It was cold, and the \
sky was full of stars. At seven o'clock the light went on. It moved slowly over the water, over the \
boats, and over the faces of the people, and then it came back, exactly thirty seconds later. Nobody said \
anything for a while. Then the children began to count aloud, and when they reached thirty the light was \
there again.
"""


def calibration_texts() -> list[str]:
    """Eight parts of Python's own help texts, some 300 tokens each: far from the prose above."""
    text = "\n".join(topics[name] for name in sorted(topics))
    return [text[begin : begin + 1200] for begin in range(0, 8 * 18000, 18000)]
