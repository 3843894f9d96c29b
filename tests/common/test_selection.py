"""Selection: whole groups, one seed one result, and nothing that belongs together is torn apart."""

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from examples import example, indexed, pair

from stages.common import selection
from stages.common.catalogue import ROW
from stages.common.records import Example

# What hangs together, and which of it is left out. -------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_components_are_those_of_the_graph(seed):
    draw = random.Random(seed)
    keys = [[draw.randrange(draw.choice([5, 30, 90])) for _ in range(60)] for _ in range(3)]
    labels = selection.components([np.array(key) for key in keys]).tolist()
    reach = [
        {other for other in range(60) if any(key[row] == key[other] for key in keys)} for row in range(60)
    ]
    for row in range(60):
        seen, waiting = set(), [row]
        while waiting:
            at = waiting.pop()
            if at not in seen:
                seen.add(at)
                waiting += reach[at]
        assert labels[row] == min(seen)


def test_components_of_nothing():
    assert selection.components([np.zeros(0, dtype=int)]).tolist() == []
    assert selection.duplicated(np.zeros(0, dtype=ROW), np.zeros(0, dtype=int)).tolist() == []


def kept_contents(examples: list[Example], labels: dict[str, int]) -> list[str]:
    """The texts that survive deduplication across sources; `labels` are the near-duplicates by text."""
    rows = indexed(examples)
    dropped = selection.duplicated(rows, np.array([labels[one.completion] for one in examples]))
    return sorted(one.completion for one, gone in zip(examples, dropped, strict=True) if not gone)


@pytest.mark.parametrize("seed", range(10))
def test_order_of_the_rows_does_not_change_what_survives_deduplication(seed):
    draw = random.Random(seed)
    texts = [(draw.choice(["one", "two"]), f"text {n}", draw.randrange(12)) for n in range(40)]
    labels = {f"{text} {source}": label for source, text, label in texts}
    found = set()
    for _ in range(3):
        draw.shuffle(texts)
        examples = [
            example(n, source=source, prompt="Say something.", completion=f"{text} {source}")
            for n, (source, text, _) in enumerate(texts)
        ]
        found.add(tuple(kept_contents(examples, labels)))
    assert len(found) == 1
    sources = {
        label: {text.split()[-1] for text in next(iter(found)) if labels[text] == label}
        for label in range(12)
    }
    assert all(len(kept) == 1 for label, kept in sources.items() if label in labels.values())


@pytest.mark.parametrize("seed", range(6))
def test_near_duplicates_within_a_source_stay_and_a_losing_group_goes_whole(seed):
    alike = [example(0), example(1), example(0, source="two"), example(7, group=0, source="two")]
    alike = [replace(one, completion=f"{one.completion} {seed}") for one in alike]
    rows = indexed(alike)
    smallest = int(np.argmin(rows["content"][:3]))  # of those that are alike: the one that stays
    dropped = selection.duplicated(rows, np.array([0, 0, 0, 3])).tolist()
    by_group = smallest == 2 or int(np.argmin(rows["content"])) == 3
    assert dropped == ([True, True, False, False] if by_group else [False, False, True, True])
    assert selection.duplicated(rows, np.array([0, 0, 2, 2])).tolist() == [False] * 4


# Which examples. -----------------------------------------------------------------------------------------


def random_groups(seed: int) -> list[Example]:
    """Some forty groups of one to four examples, pairs among them."""
    draw = random.Random(seed)
    found = []
    for number in range(40):
        group = f"one/{number}"
        found += [replace(side, group=group) for side in pair(number)] if draw.random() < 0.5 else []
        for extra in range(draw.randrange(3)):
            found.append(replace(example(1000 * extra + number), group=group))
    return found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("quota", [0, 1, 30, 50])
def test_whole_groups_are_taken_until_the_quota(seed, quota):
    examples = random_groups(seed)
    rows = indexed(examples)
    taken, was_cut = selection.select(rows, quota, seed, exact=False)
    names = {examples[place].group for place in taken}
    assert len(set(taken.tolist())) == len(taken) and not was_cut
    assert len(taken) == sum(one.group in names for one in examples)
    assert quota <= len(taken) < max(quota, 1) + 4


@pytest.mark.parametrize("seed", range(8))
def test_exact_quotas_are_met_and_at_most_one_group_is_cut(seed):
    examples = random_groups(seed)
    rows = indexed(examples)
    for quota in range(len(examples) + 1):
        taken, was_cut = selection.select(rows, quota, seed, exact=True)
        assert len(taken) == len(set(taken.tolist())) == quota
        have, all_ = (Counter(one.group for one in part) for part in ([examples[n] for n in taken], examples))
        assert sum(have[group] != all_[group] for group in have) == was_cut


def test_a_cut_spares_pairs_as_long_as_it_can():
    rows = indexed([*pair(0), example(5, group=0), example(6, group=0)])
    order = np.lexsort((rows["unit"],))
    for room in range(5):
        units = Counter(rows["unit"][selection.cut(rows, order, room)].tolist())
        assert sum(units.values()) == room
        assert units[int(rows["unit"][0])] in ({2} if room > 1 else {0})
    assert len(selection.cut(rows[:2], np.array([0, 1]), 1)) == 1


@pytest.mark.parametrize("exact", [False, True])
def test_choice_depends_neither_on_the_order_nor_on_the_other_groups(exact):
    examples = random_groups(3)
    mixed = random.Random(1).sample(examples, len(examples))
    chosen = [
        {part[place].id for place in selection.select(indexed(part), 20, 5, exact)[0]}
        for part in (examples, mixed)
    ]
    assert chosen[0] == chosen[1]
    rows = indexed(examples)
    small, large = (set(selection.select(rows, quota, 5, exact=False)[0].tolist()) for quota in (10, 30))
    assert small < large
    assert small != set(selection.select(rows, 10, 6, exact=False)[0].tolist())


def test_repeats_are_spread_evenly():
    rows = indexed([example(n) for n in range(10)])
    positions, copies, _ = selection.repeated(rows, 34, 1, exact=True)
    counts = Counter(positions.tolist())
    assert len(positions) == 34 and set(counts.values()) == {3, 4}
    assert all(sorted(copies[positions == n].tolist()) == list(range(counts[n])) for n in range(10))
    assert all((np.diff(positions[copies == copy]) > 0).all() for copy in range(4)), "in the file's order"
    assert [len(part) for part in selection.repeated(rows[:0], 0, 1, exact=True)[:2]] == [0, 0]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("share", [0.0, 0.05, 0.3])
def test_what_hangs_together_never_straddles_the_split(seed, share):
    draw = random.Random(seed)
    keys = [np.array([draw.randrange(60) for _ in range(100)], dtype=np.uint64) for _ in range(2)]
    labels = selection.components(
        [keys[0], np.where(np.arange(100) % 9 == 0, keys[1], 1000 + np.arange(100))]
    )
    valid = selection.divide(labels, keys[0], share, seed)
    for key in (labels, keys[0]):
        assert not set(key[valid].tolist()) & set(key[~valid].tolist())
    wanted = round(share * 100)
    smallest = min(Counter(labels[~valid].tolist()).values())
    assert valid.sum() <= wanted and (valid.sum() == wanted or smallest > wanted - valid.sum())
    assert (selection.divide(labels, keys[0], share, seed) == valid).all()
