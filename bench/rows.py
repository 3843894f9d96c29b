"""Rows to measure with: Python-like text of our own, with the lengths of real instruction data."""

import random
from collections.abc import Iterator

# Deciles of the lengths, in characters, of CodeAlpaca-20k's 20,022 rows.
INSTRUCTION = (0, 41, 50, 57, 64, 71, 78, 86, 97, 115, 475)
OUTPUT = (0, 23, 44, 73, 107, 141, 181, 232, 302, 423, 4121)
NAMES = [f"{stem}_{end}" for stem in ("row", "item", "total", "price", "node") for end in "abcdefghijklmnop"]
CALLS = ["len", "sorted", "sum", "max", "min", "list", "set", "str", "int", "range"]


def length(deciles: tuple[int, ...], random_: random.Random) -> int:
    """A length drawn from a distribution given by its deciles."""
    tenth = random_.randrange(10)
    return random_.randint(deciles[tenth], deciles[tenth + 1])


def text(random_: random.Random, characters: int) -> str:
    """Lines of a Python function until there are enough characters."""
    lines = [f"def {random_.choice(NAMES)}_{random_.randrange(10**6)}({random_.choice(NAMES)}):"]
    size = len(lines[0])
    while size < characters or len(lines) < 2:
        name, call, other = random_.choice(NAMES), random_.choice(CALLS), random_.choice(NAMES)
        lines.append(f"    {name} = {call}({other}) + {random_.randrange(1000)}")
        size += len(lines[-1]) + 1
    return "\n".join(lines)


def copied(original: str, random_: random.Random) -> str:
    """A near-copy: one word is another. Of 600 characters 0.87 of the runs of five words stay the same."""
    words = original.split(" ")
    words[random_.randrange(1, len(words))] = "changed"
    return " ".join(words)


def rows(count: int, seed: int = 1) -> Iterator[dict[str, str]]:
    """Rows in CodeAlpaca's shape; one in twenty is a copy of an earlier one, one in twenty a near-copy."""
    random_ = random.Random(seed)
    recent: list[dict[str, str]] = []
    for number in range(count):
        chance = random_.random()
        if chance < 0.05 and recent:
            yield random_.choice(recent)
            continue
        body = text(random_, length(OUTPUT, random_))
        if chance < 0.1 and recent:
            body = copied(random_.choice(recent)["output"], random_)
        question = f"Write a Python function, number {number}: " + " ".join(
            random_.choices(NAMES, k=1 + length(INSTRUCTION, random_) // 12)
        )
        row = {"instruction": question, "input": "", "output": body}
        if len(recent) < 1000:
            recent.append(row)
        else:
            recent[random_.randrange(1000)] = row
        yield row
