"""Near-duplicate search against datasketch: seconds for the same texts, and the planted pairs that are found.

All get the same texts, runs of five words, 128 permutations and the threshold 0.7, and take turns. datasketch
is measured twice: with `update` for each run, as its documentation begins, and with `update_batch`.

    python -m bench.nearduplicates --texts 4000
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from functools import partial

from bench.rows import copied, text
from stages.common import nearduplicates

THRESHOLD = 0.7


def ours(texts: list[str]) -> list[int]:
    """The root of each text's cluster."""
    roots = nearduplicates.clusters(nearduplicates.signatures(texts), THRESHOLD)
    return [int(root) for root in roots]


def shingled(text: str) -> set[bytes]:
    """The runs of words of a text, as a set of bytes."""
    words, size = nearduplicates.words(text), nearduplicates.SHINGLE
    return {b" ".join(words[start : start + size]) for start in range(max(1, len(words) - size + 1))}


def datasketch(texts: list[str], batch: bool) -> list[int]:
    """The first text that datasketch finds to be like each one, itself when there is none."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=THRESHOLD, num_perm=nearduplicates.PERMUTATIONS)
    found = []
    for number, one in enumerate(texts):
        signature = MinHash(num_perm=nearduplicates.PERMUTATIONS)
        if batch:
            signature.update_batch(list(shingled(one)))
        else:
            for shingle in shingled(one):
                signature.update(shingle)
        found.append(min((int(key) for key in index.query(signature)), default=number))
        index.insert(str(number), signature)
    return found


def recall(found: list[int], pairs: int) -> float:
    """The share of planted copies, the second half of the texts, that are put to their originals."""
    half = len(found) // 2
    return sum(found[half + number] == found[number] for number in range(pairs)) / pairs


def main() -> None:
    """Print seconds, ratio and recall."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    random_ = random.Random(1)
    originals = [text(random_, 600) for _ in range(arguments.texts // 2)]
    texts = originals + [copied(original, random_) for original in originals]

    searches: dict[str, Callable[[list[str]], list[int]]] = {
        "ours": ours,
        "datasketch, update_batch": partial(datasketch, batch=True),
        "datasketch, update": partial(datasketch, batch=False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in searches}
    found: dict[str, list[int]] = {}
    for _ in range(arguments.rounds):
        for name, search in searches.items():
            start = time.perf_counter()
            found[name] = search(texts)
            seconds[name].append(time.perf_counter() - start)
    for name in searches:
        middle = statistics.median(seconds[name])
        print(
            f"{name}: {middle:.2f} s, {middle / len(texts) * 1e6:.0f} us a text, "
            f"recall {recall(found[name], len(originals)):.4f}"
        )
    for name in list(searches)[1:]:
        ratios = [slow / fast for slow, fast in zip(seconds[name], seconds["ours"], strict=True)]
        print(f"{name} / ours: {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})")


if __name__ == "__main__":
    main()
