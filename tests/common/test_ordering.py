"""Ordering: the order of `datasets`, both sides of a pair in one block, from easy to hard."""

import random
from collections import Counter

import numpy as np
import pytest
from examples import example, indexed, pair

from stages.common import catalogue, ordering


@pytest.mark.parametrize(("seed", "count"), [(42, 1), (42, 1000), (0, 17), (7, 25162)])
def test_shuffled_is_the_order_of_datasets(seed, count):
    datasets = pytest.importorskip("datasets")
    rows = np.zeros(count, dtype=catalogue.ROW)
    expected = datasets.Dataset.from_dict({"n": range(count)}).shuffle(seed=seed)["n"]
    assert ordering.shuffled(rows, np.zeros(count, dtype=int), seed).tolist() == list(expected)


@pytest.mark.parametrize("singles", [0, 1, 7, 70])
@pytest.mark.parametrize("pairs", [0, 1, 40])
def test_paired_order_keeps_both_sides_in_one_block_of_their_kind_alone(singles, pairs):
    draw = random.Random(singles + pairs)
    examples = [side for n in range(pairs) for side in pair(n, draw.randint(1, 400))]
    examples += [side for n in range(100, 100 + pairs) for side in pair(n, draw.randint(1, 400), "review")]
    examples += [example(1000 + n) for n in range(singles)]
    draw.shuffle(examples)
    rows, none = indexed(examples), np.zeros(len(examples), dtype=int)
    places = ordering.paired(rows, none, 5)
    assert sorted(places.tolist()) == list(range(len(examples)))
    assert (places == ordering.paired(rows, none, 5)).all()
    ordered = [examples[place] for place in places]
    whole = 2 * (pairs * 2 // ordering.BLOCK) + singles // ordering.BLOCK
    for start in range(0, whole * ordering.BLOCK, ordering.BLOCK):
        block = ordered[start : start + ordering.BLOCK]
        assert len({one.kind.split("_")[0] for one in block}) == 1
        if block[0].kind != "write":
            assert set(Counter(one.group for one in block).values()) == {2}


def test_copies_of_a_pair_are_pairs_of_their_own():
    rows = indexed([side for n in range(8) for side in pair(n)] * 3)
    copies = np.repeat([0, 1, 2], 16)
    places = ordering.paired(rows, copies, 1)
    for start in range(0, 48, ordering.BLOCK):
        block = places[start : start + ordering.BLOCK]
        units = Counter(zip(rows["unit"][block].tolist(), copies[block].tolist(), strict=True))
        assert set(units.values()) == {2}


def test_curriculum_goes_from_easy_to_hard_and_keeps_pairs_adjacent():
    draw = random.Random(1)
    examples = [side for n in range(20) for side in pair(n, draw.randint(1, 400))]
    examples += [example(100 + n, prompt="y" * draw.randint(1, 400)) for n in range(20)]
    draw.shuffle(examples)
    rows = indexed(examples)
    places = ordering.curriculum(rows, np.zeros(40 + 20, dtype=int), 0)
    ordered = [examples[place] for place in places]
    units = list(dict.fromkeys(one.group for one in ordered))
    assert [one.group for one in ordered] == [
        one.group for name in units for one in examples if one.group == name
    ]
    longest = [max(catalogue.characters(one) for one in examples if one.group == name) for name in units]
    assert longest == sorted(longest)
    assert ordering.curriculum(rows[:0], np.zeros(0, dtype=int), 0).tolist() == []


def test_curriculum_settles_ties_by_id_not_by_place():
    examples = [example(n) for n in range(10, 40)]
    orders = []
    for part in (examples, examples[::-1]):
        places = ordering.curriculum(indexed(part), np.zeros(30, dtype=int), 0)
        orders.append([part[place].id for place in places])
    assert orders[0] == orders[1]
