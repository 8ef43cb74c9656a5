"""The sentences of `lamina demo`: pairs with the same meaning, so that each nearest neighbour is known."""

from __future__ import annotations

import re

PAIRS = (
    (
        "The cat slept on the warm windowsill all afternoon.",
        "A cat spent the whole afternoon asleep on a sunny window ledge.",
    ),
    (
        "Heavy rain flooded several streets in the old town.",
        "Streets in the historic centre were under water after a downpour.",
    ),
    (
        "The central bank raised interest rates by a quarter point.",
        "Policy makers increased borrowing costs by 25 basis points.",
    ),
    (
        "She forgot to water the tomatoes, and they withered.",
        "Her tomato plants dried up because she did not water them.",
    ),
    (
        "The train to Vienna leaves from platform seven at noon.",
        "At twelve o'clock the Vienna service departs from track 7.",
    ),
    (
        "Add the flour slowly and stir until the dough is smooth.",
        "Mix in flour a little at a time until the batter has no lumps.",
    ),
    (
        "The vaccine protects most people for at least a year.",
        "For twelve months or more, immunisation shields the majority.",
    ),
    (
        "He repaired the bicycle's brakes before the race.",
        "Before competing, he fixed the brakes on his bike.",
    ),
    (
        "The telescope captured light from a galaxy ten billion years old.",
        "Astronomers photographed an extremely distant, ancient galaxy.",
    ),
    (
        "Our team lost the final in a penalty shootout.",
        "We were beaten on penalties in the championship match.",
    ),
    (
        "Please send the signed contract before Friday.",
        "We need the agreement back with your signature by the end of the week.",
    ),
    (
        "The violinist practised the concerto for six hours a day.",
        "Every day the musician rehearsed her violin piece for six hours.",
    ),
    (
        "Memory bandwidth limits how fast a language model writes text.",
        "Token generation speed is bound by how quickly weights are read from memory.",
    ),
    (
        "Children learn a second language faster than adults do.",
        "Young kids pick up foreign languages more quickly than grown-ups.",
    ),
    (
        "The museum reopened after two years of restoration.",
        "Following a two-year renovation, the gallery welcomed visitors again.",
    ),
    (
        "Bees are disappearing because of pesticides and lost meadows.",
        "Pollinator numbers fall as insecticides spread and wildflowers vanish.",
    ),
)
SENTENCES = tuple(sentence for pair in PAIRS for sentence in pair)


def calibration_sentences(count: int = 192) -> list[str]:
    """Sentences from the documentation that every Python installs; none of them is in SENTENCES."""
    from pydoc_data.topics import topics

    text = re.sub(r"\s+", " ", " ".join(topics.values()))
    found = re.findall(r"(?<=\. )[A-Z][a-z]+ [A-Za-z ,'-]{25,150}\.(?= )", text)
    prose = list(dict.fromkeys(found))
    return prose[:: max(1, len(prose) // count)][:count]
