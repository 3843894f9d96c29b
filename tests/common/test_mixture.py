"""Mixture: values that fit the strategy, exact quotas, never more than there is."""

import random
from fractions import Fraction

import pytest
from examples import parameters

from stages.common import mixture
from stages.common.errors import PipelineError

# Parameters. ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sources": {"one": 3, "two": None}}, ["mix.sources.two: null", "a number", '"weights"']),
        ({"strategy": "equal"}, ["mix.sources.one: 3", "null", '"equal"']),
        ({"strategy": "proportional", "sources": {"one": 0}}, ["mix.sources.one: 0", "null"]),
        ({"strategy": "counts", "rows": None, "sources": {"one": 1.5}}, ["mix.sources.one: 1.5", "whole"]),
        ({"strategy": "counts"}, ["mix.rows: 40", "null", '"counts"']),
        ({"temperature": 2.0}, ["mix.temperature: 2", "null", '"weights"']),
        ({"strategy": "temperature", "sources": {"one": None}}, ["mix.temperature: null", "a number"]),
        ({"sources": {"one": 0, "two": 0}}, ["mix.sources: 0", "more than 0"]),
        ({"strategy": "counts", "rows": None, "sources": {"one": 0}}, ["mix.sources: 0", "more than 0"]),
    ],
)
def test_a_value_that_the_strategy_does_not_use_is_refused_and_so_is_the_lack_of_one(changes, words):
    with pytest.raises(PipelineError) as error:
        mixture.check(parameters(**changes))
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rows": None},
        {"strategy": "counts", "rows": None},
        {"strategy": "equal", "sources": {"one": None}},
        {"strategy": "proportional", "sources": {"one": None, "two": None}, "rows": None},
        {"strategy": "temperature", "sources": {"one": None}, "temperature": 2},
    ],
)
def test_what_belongs_together_is_taken(changes):
    mixture.check(parameters(**changes))


# How much of each source. --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shares", "rows", "counts"),
    [
        ({"a": 3, "b": 1}, 10, {"a": 8, "b": 2}),
        ({"a": 1}, 7, {"a": 7}),
        ({"a": 1, "b": 0}, 7, {"a": 7, "b": 0}),
        ({"a": 1, "b": 1, "c": 1}, 10, {"a": 4, "b": 3, "c": 3}),
        ({"coding": 20022, "preferences": 5000, "fixes": 128, "error_handling": 12}, 25162, None),
    ],
)
def test_quotas(shares, rows, counts):
    assert mixture.quotas({name: Fraction(share) for name, share in shares.items()}, rows) == (
        counts or shares
    )


@pytest.mark.parametrize("seed", range(20))
def test_quotas_sum_and_are_nearly_proportional(seed):
    draw = random.Random(seed)
    shares = {f"s{n}": Fraction(draw.choice([0, draw.randrange(1000)]), 7) for n in range(8)}
    shares["s8"] = Fraction(1, 2)
    rows = draw.randrange(1, 5000)
    counts = mixture.quotas(shares, rows)
    assert sum(counts.values()) == rows and list(counts) == list(shares)
    total = sum(shares.values())
    assert all(abs(counts[name] - rows * share / total) < 1 for name, share in shares.items())


NULLS = {"one": None, "two": None}
SIZES = {"one": 900, "two": 100}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rows": 40}, {"one": 30, "two": 10}),
        ({"rows": None}, {"one": 300, "two": 100}),
        ({"rows": None, "repeats": 3}, {"one": 900, "two": 300}),
        ({"rows": None, "sources": {"one": 0.1, "two": 0.9}}, {"one": 11, "two": 100}),
        ({"rows": None, "sources": {"one": 0.7, "two": 0.1}}, {"one": 700, "two": 100}),
        ({"rows": None, "sources": {"one": 0, "two": 0.3}}, {"one": 0, "two": 100}),
        ({"strategy": "counts", "rows": None, "sources": {"one": 899, "two": 0}}, {"one": 899, "two": 0}),
        (
            {"strategy": "counts", "rows": None, "sources": {"one": 0, "two": 200}, "repeats": 2},
            {"one": 0, "two": 200},
        ),
        ({"strategy": "proportional", "sources": NULLS, "rows": None}, SIZES),
        ({"strategy": "proportional", "sources": NULLS, "rows": 50}, {"one": 45, "two": 5}),
        ({"strategy": "equal", "sources": NULLS, "rows": 50}, {"one": 25, "two": 25}),
        ({"strategy": "equal", "sources": NULLS, "rows": None}, {"one": 100, "two": 100}),
        ({"strategy": "equal", "sources": NULLS, "rows": None, "repeats": 9}, {"one": 900, "two": 900}),
        ({"strategy": "temperature", "temperature": 2, "sources": NULLS, "rows": 80}, {"one": 60, "two": 20}),
        ({"strategy": "temperature", "temperature": 1, "sources": NULLS, "rows": None}, SIZES),
        (
            {"strategy": "temperature", "temperature": 1e9, "sources": NULLS, "rows": 80},
            {"one": 40, "two": 40},
        ),
    ],
)
def test_wanted_of_each_source(changes, expected):
    chosen = parameters(**changes)
    mixture.check(chosen)
    assert mixture.wanted(chosen, SIZES) == expected


def test_source_of_preferences_alone_takes_no_share():
    chosen = parameters(strategy="equal", sources=NULLS, rows=None)
    assert mixture.wanted(chosen, {"one": 0, "two": 100}) == {"one": 0, "two": 100}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rows": 404}, ["mix.sources.two: 101", "at most 100", "400 would do"]),
        (
            {"strategy": "counts", "rows": None, "sources": {"one": 901, "two": 1}},
            ["sources.one: 901", "900"],
        ),
        ({"strategy": "counts", "rows": None, "sources": {"one": 1801, "two": 0}, "repeats": 2}, ["1800"]),
        ({"strategy": "equal", "sources": NULLS, "rows": 202}, ["sources.two: 101", "200 would do"]),
    ],
)
def test_more_than_there_is_is_refused(changes, words):
    with pytest.raises(PipelineError) as error:
        mixture.wanted(parameters(**changes), SIZES)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("seed", range(30))
def test_without_rows_the_mix_is_as_large_as_it_can_be(seed):
    draw = random.Random(seed)
    sizes = {f"s{n}": draw.randrange(1, 2000) for n in range(5)}
    weights = {name: draw.choice([0.1, 0.04, 1 / 3, 0.58, draw.random()]) for name in sizes}
    chosen = parameters(sources=weights, rows=None, repeats=draw.randrange(1, 4))
    counts = mixture.wanted(chosen, sizes)
    left = [sizes[name] * chosen.repeats - counts[name] for name in sizes]
    assert 0 <= min(left) <= 1
