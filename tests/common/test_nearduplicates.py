"""Near-duplicates: planted ones are found, others left apart, in whatever order the texts come."""

import random

import numpy as np
import pytest

from stages.common import nearduplicates

WORDS = [f"{a}{b}" for a in ("alpha", "beta", "gamma", "delta", "list", "item", "node") for b in range(60)]


def text(random_: random.Random, length: int = 120) -> str:
    return " ".join(random_.choice(WORDS) for _ in range(length))


def similar(original: str, random_: random.Random, edits: int = 1) -> str:
    """The text with some words replaced: one edit in 120 words leaves a Jaccard similarity of 0.92."""
    words = original.split()
    for _ in range(edits):
        words[random_.randrange(len(words))] = "other"
    return " ".join(words)


def jaccard(one: str, other: str) -> float:
    first, second = (set(nearduplicates.shingles([each])[0].tolist()) for each in (one, other))
    return len(first & second) / len(first | second)


def partition(texts: list[str], threshold: float = 0.8) -> set[frozenset[str]]:
    """The clusters as sets of texts."""
    found: dict[int, set[str]] = {}
    for member, root in zip(
        texts, nearduplicates.clusters(nearduplicates.signatures(texts), threshold), strict=True
    ):
        found.setdefault(int(root), set()).add(member)
    return {frozenset(members) for members in found.values()}


def runs(text: str) -> list[int]:
    return nearduplicates.shingles([text])[0].tolist()


def test_shingles_forget_case_layout_and_punctuation():
    assert runs("A b\n  c(d) E f") == runs("a B c d e;F") and len(runs("a b c d e f")) == 2
    assert runs("a b c d e") != runs("b a c d e")
    assert runs("é b c d e") == runs("É b c d e") != runs("è b c d e")


def test_shingles_of_several_texts_do_not_run_into_each_other():
    texts = ["one two three four five six seven", "", "short", "a b c d e", "+ - *", "short text"]
    found, offsets = nearduplicates.shingles(texts)
    assert offsets.tolist() == [0, 3, 4, 5, 6, 7, 8]
    for number, each in enumerate(texts):
        assert found[int(offsets[number]) : int(offsets[number + 1])].tolist() == runs(each)
    assert len({*found.tolist()}) == 7, "the two without words are the same, all others differ"


def test_planted_pairs_are_found_and_others_left_apart():
    random_ = random.Random(1)
    originals = [text(random_) for _ in range(1500)]
    copies = [similar(original, random_) for original in originals]
    roots = nearduplicates.clusters(nearduplicates.signatures(originals + copies), 0.8)
    found = sum(roots[index] == roots[index + 1500] for index in range(1500))
    assert found / 1500 >= 0.99
    assert len(set(roots[:1500].tolist())) == 1500, "different texts share a cluster"


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_texts_changes_nothing(seed):
    random_ = random.Random(seed)
    originals = [text(random_, 90) for _ in range(60)]
    copies = [similar(random_.choice(originals), random_, random_.randrange(4)) for _ in range(240)]
    texts = sorted({*originals, *copies})
    expected = partition(texts)
    random_.shuffle(texts)
    assert partition(texts) == expected
    assert any(len(members) > 2 for members in expected)


def test_the_root_is_the_smallest_index_and_its_own_root():
    random_ = random.Random(5)
    original = text(random_)
    texts = [text(random_), original, text(random_), similar(original, random_), original]
    assert nearduplicates.clusters(nearduplicates.signatures(texts), 0.8).tolist() == [0, 1, 2, 1, 1]


def test_signatures_estimate_jaccard():
    random_ = random.Random(7)
    for edits in (0, 1, 3, 8, 20):
        original = text(random_, 400)
        other = similar(original, random_, edits)
        first, second = nearduplicates.signatures([original, other])
        assert abs((first == second).mean() - jaccard(original, other)) < 0.15


@pytest.mark.parametrize("texts", [[], ["one"], ["", ""], ["a", "b"], ["a b", "a b c d e"]])
def test_few_and_empty_texts(texts):
    roots = nearduplicates.clusters(nearduplicates.signatures(texts), 0.8)
    assert roots.dtype == np.int64 and len(roots) == len(texts)
    assert roots.tolist() == ([0, 0] if texts == ["", ""] else list(range(len(texts))))


def test_many_equal_texts_are_one_cluster():
    assert set(nearduplicates.clusters(nearduplicates.signatures(["x = 1"] * 5000), 0.8).tolist()) == {0}
