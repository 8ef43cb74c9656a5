"""The prompts of the study: texts whose answers repeat the prompt, and texts whose answers do not."""

CODE = (
    """\
def area(width, height):
    if width < 0 or height < 0:
        raise ValueError("sizes must not be negative")
    return width * height


def volume(width, height, depth):
    if depth < 0:
        raise ValueError("depth must not be negative")
    return area(width, height) * depth
""",
    """\
class Account:
    def __init__(self, owner, balance=0):
        self.owner = owner
        self.balance = balance

    def deposit(self, amount):
        if amount <= 0:
            raise ValueError("amount must be positive")
        self.balance += amount
        return self.balance
""",
    """\
def count_words(path):
    counts = {}
    with open(path) as file:
        for line in file:
            for word in line.lower().split():
                counts[word] = counts.get(word, 0) + 1
    return sorted(counts.items(), key=lambda item: item[1], reverse=True)
""",
    """\
def binary_search(items, wanted):
    low, high = 0, len(items) - 1
    while low <= high:
        middle = (low + high) // 2
        if items[middle] == wanted:
            return middle
        if items[middle] < wanted:
            low = middle + 1
        else:
            high = middle - 1
    return -1
""",
)
NOTES = (
    "The meeting of the harbour council began at nine. Mrs. Weber reported that the lighthouse works again "
    "and that the repair cost four hundred pounds. Mr. Hall said that the council would pay for a new chain.",
    "The library opens at ten on weekdays and at noon on Saturdays. Books may be kept for three weeks, films "
    "for one week. A late book costs ten cents a day, and a lost book costs its price and five dollars.",
    "The train to the coast leaves from platform four at eight fifteen. It stops at Linden, Marsh End and "
    "Harrow Bay. On Sundays the train leaves one hour later, and it does not stop at Marsh End.",
    "The soup needs two onions, four potatoes, one litre of water and a little salt. Cut the onions and the "
    "potatoes, boil them in the water for twenty minutes, add the salt, and serve the soup with bread.",
)
QUESTIONS = (
    "Why is the sky blue during the day and red in the evening?",
    "Give me three tips for sleeping well.",
    "How does a bicycle stay upright while it moves?",
    "What is the difference between weather and climate?",
    "Explain how bread rises.",
    "Write a short story about a cat who lives on a ship.",
    "Why do leaves change their colour in autumn?",
    "Describe a walk through an old town in winter.",
)
EDIT = "Repeat the following code exactly, and add a comment before each function.\n\n"
QUOTE = "Repeat the following text word by word, and then list its facts.\n\n"
# Even prompts edit code, odd ones quote a text.
COPIES = tuple(
    prompt for code, note in zip(CODE, NOTES, strict=True) for prompt in (EDIT + code, QUOTE + note)
)
PROMPTS = {"copy": COPIES, "answer": QUESTIONS}
