"""Mix: exact quotas, whole groups, one seed one result, every row accounted for, no trace of a benchmark."""

import json
import random
from collections import Counter
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Project, read_rows, write_rows

from stages import mix
from stages.common import overlap, prompts, suites
from stages.common.errors import PipelineError
from stages.common.params import validate
from stages.common.records import Example

SNIPPET = """def load_report(cursor, name):
    return cursor.execute('SELECT body FROM report WHERE name = ?', (name,))"""
DETECTION = {
    "id": "d/1",
    "kind": "detection",
    "language": "python",
    "cwe": "CWE-89",
    "vulnerable": SNIPPET,
    "fixed": SNIPPET.replace("?", ":name"),
}
CODE = {
    "id": "c/1",
    "kind": "code",
    "prompt": "Write a function roman(text) that reads a Roman numeral.",
    "entry_point": "roman",
    "test": "assert roman('XIV') == 14\nassert roman('MCMXC') == 1990",
}
HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": 'def falls_below_zero(operations):\n    """Tell whether a balance ever falls below zero."""\n',
    "entry_point": "falls_below_zero",
    "canonical_solution": "    return False\n",
    "test": "def check(candidate):\n    assert candidate([1, -2]) is True\n",
}
GROUP: dict[str, Any] = {
    "seed": 1,
    "strategy": "weights",
    "sources": {"one": 3, "two": 1},
    "temperature": None,
    "rows": 40,
    "repeats": 1,
    "max_chars": 10_000,
    "order": "shuffled",
    "valid_share": 0.1,
    "floors": {},
    "below_floor": "fail",
    "near_duplicate": None,
    "contaminated": "drop",
    "overlap": {"ngram": 8, "share": 0.5, "entry_points": False},
}


def parameters(**changes: object) -> mix.MixParams:
    return validate({**GROUP, **changes}, "mix", mix.MixParams)


def example(number: int = 0, group: int | None = None, source: str = "one", **changes: str) -> Example:
    """A harmless example with a text of its own."""
    kind = changes.get("kind", "write")
    fields = {
        "id": f"{source}/{number}/{kind}",
        "group": f"{source}/{number if group is None else group}",
        "source": source,
        "licence": "MIT",
        "revision": "1.0",
        "transforms": "",
        "kind": kind,
        "prompt": f"Say the number {number} of {source}.",
        "completion": f"It is {number}.",
    }
    return Example(**{**fields, **changes})


def pair(number: int, length: int = 40, kind: str = "detect", source: str = "one") -> list[Example]:
    """Both sides of a pair."""
    sides = {
        "detect": ("detect_vulnerable", "detect_safe"),
        "review": ("review_incomplete", "review_complete"),
    }
    return [
        example(number, source=source, kind=side, prompt="x" * length + f" {source} {number} {side}")
        for side in sides[kind]
    ]


def preference(number: int, source: str = "one", **changes: str) -> Example:
    given = {"kind": "preference", "rejected": f"It is not {number}.", **changes}
    return example(number, source=source, **given)


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> overlap.Index:
    folder = tmp_path_factory.mktemp("suites")
    write_rows(folder / "b/mine.jsonl", [DETECTION, CODE])
    write_rows(folder / "humaneval.jsonl", [HUMANEVAL])
    tasks = suites.load_all(folder / "b", folder / "humaneval.jsonl")
    return overlap.build(tasks, overlap.Overlap(8, 0.5, False))


def indexed(benchmarks: overlap.Index, examples: list[Example], chosen: mix.MixParams | None = None) -> Any:
    """The index of some examples of one or more sources, in their order."""
    chosen = chosen or parameters()
    names = list(chosen.sources)
    parts = [
        mix.examine(
            [mix.Line(1, 0, json.dumps(asdict(one)).encode())],
            names.index(one.source),
            Path(f"{one.source}.jsonl"),
            chosen,
            benchmarks,
        ).rows
        for one in examples
    ]
    return np.concatenate([np.zeros(0, dtype=mix.ROW), *parts])


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
        mix.check(parameters(**changes))
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
    mix.check(parameters(**changes))


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
    assert mix.quotas({name: Fraction(share) for name, share in shares.items()}, rows) == (counts or shares)


@pytest.mark.parametrize("seed", range(20))
def test_quotas_sum_and_are_nearly_proportional(seed):
    draw = random.Random(seed)
    shares = {f"s{n}": Fraction(draw.choice([0, draw.randrange(1000)]), 7) for n in range(8)}
    shares["s8"] = Fraction(1, 2)
    rows = draw.randrange(1, 5000)
    counts = mix.quotas(shares, rows)
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
    mix.check(chosen)
    assert mix.wanted(chosen, SIZES) == expected


def test_source_of_preferences_alone_takes_no_share():
    chosen = parameters(strategy="equal", sources=NULLS, rows=None)
    assert mix.wanted(chosen, {"one": 0, "two": 100}) == {"one": 0, "two": 100}


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
        mix.wanted(parameters(**changes), SIZES)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("seed", range(30))
def test_without_rows_the_mix_is_as_large_as_it_can_be(seed):
    draw = random.Random(seed)
    sizes = {f"s{n}": draw.randrange(1, 2000) for n in range(5)}
    weights = {name: draw.choice([0.1, 0.04, 1 / 3, 0.58, draw.random()]) for name in sizes}
    chosen = parameters(sources=weights, rows=None, repeats=draw.randrange(1, 4))
    counts = mix.wanted(chosen, sizes)
    left = [sizes[name] * chosen.repeats - counts[name] for name in sizes]
    assert 0 <= min(left) <= 1


# What hangs together, and which of it is left out. -------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_components_are_those_of_the_graph(seed):
    draw = random.Random(seed)
    keys = [[draw.randrange(draw.choice([5, 30, 90])) for _ in range(60)] for _ in range(3)]
    labels = mix.components([np.array(key) for key in keys]).tolist()
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
    assert mix.components([np.zeros(0, dtype=int)]).tolist() == []
    assert mix.duplicated(np.zeros(0, dtype=mix.ROW), np.zeros(0, dtype=int)).tolist() == []


def kept_contents(benchmarks: overlap.Index, examples: list[Example], labels: dict[str, int]) -> list[str]:
    """The texts that survive deduplication across sources; `labels` are the near-duplicates by text."""
    rows = indexed(benchmarks, examples)
    dropped = mix.duplicated(rows, np.array([labels[one.completion] for one in examples]))
    return sorted(one.completion for one, gone in zip(examples, dropped, strict=True) if not gone)


@pytest.mark.parametrize("seed", range(10))
def test_order_of_the_rows_does_not_change_what_survives_deduplication(benchmarks, seed):
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
        found.add(tuple(kept_contents(benchmarks, examples, labels)))
    assert len(found) == 1
    sources = {
        label: {text.split()[-1] for text in next(iter(found)) if labels[text] == label}
        for label in range(12)
    }
    assert all(len(kept) == 1 for label, kept in sources.items() if label in labels.values())


@pytest.mark.parametrize("seed", range(6))
def test_near_duplicates_within_a_source_stay_and_a_losing_group_goes_whole(benchmarks, seed):
    alike = [example(0), example(1), example(0, source="two"), example(7, group=0, source="two")]
    alike = [replace(one, completion=f"{one.completion} {seed}") for one in alike]
    rows = indexed(benchmarks, alike)
    smallest = int(np.argmin(rows["content"][:3]))  # of those that are alike: the one that stays
    dropped = mix.duplicated(rows, np.array([0, 0, 0, 3])).tolist()
    by_group = smallest == 2 or int(np.argmin(rows["content"])) == 3
    assert dropped == ([True, True, False, False] if by_group else [False, False, True, True])
    assert mix.duplicated(rows, np.array([0, 0, 2, 2])).tolist() == [False] * 4


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
def test_whole_groups_are_taken_until_the_quota(benchmarks, seed, quota):
    examples = random_groups(seed)
    rows = indexed(benchmarks, examples)
    taken, was_cut = mix.select(rows, quota, seed, exact=False)
    names = {examples[place].group for place in taken}
    assert len(set(taken.tolist())) == len(taken) and not was_cut
    assert len(taken) == sum(one.group in names for one in examples)
    assert quota <= len(taken) < max(quota, 1) + 4


@pytest.mark.parametrize("seed", range(8))
def test_exact_quotas_are_met_and_at_most_one_group_is_cut(benchmarks, seed):
    examples = random_groups(seed)
    rows = indexed(benchmarks, examples)
    for quota in range(len(examples) + 1):
        taken, was_cut = mix.select(rows, quota, seed, exact=True)
        assert len(taken) == len(set(taken.tolist())) == quota
        have, all_ = (Counter(one.group for one in part) for part in ([examples[n] for n in taken], examples))
        assert sum(have[group] != all_[group] for group in have) == was_cut


def test_a_cut_spares_pairs_as_long_as_it_can(benchmarks):
    rows = indexed(benchmarks, [*pair(0), example(5, group=0), example(6, group=0)])
    order = np.lexsort((rows["unit"],))
    for room in range(5):
        units = Counter(rows["unit"][mix.cut(rows, order, room)].tolist())
        assert sum(units.values()) == room
        assert units[int(rows["unit"][0])] in ({2} if room > 1 else {0})
    assert len(mix.cut(rows[:2], np.array([0, 1]), 1)) == 1


@pytest.mark.parametrize("exact", [False, True])
def test_choice_depends_neither_on_the_order_nor_on_the_other_groups(benchmarks, exact):
    examples = random_groups(3)
    mixed = random.Random(1).sample(examples, len(examples))
    chosen = [
        {part[place].id for place in mix.select(indexed(benchmarks, part), 20, 5, exact)[0]}
        for part in (examples, mixed)
    ]
    assert chosen[0] == chosen[1]
    rows = indexed(benchmarks, examples)
    small, large = (set(mix.select(rows, quota, 5, exact=False)[0].tolist()) for quota in (10, 30))
    assert small < large
    assert small != set(mix.select(rows, 10, 6, exact=False)[0].tolist())


def test_repeats_are_spread_evenly(benchmarks):
    rows = indexed(benchmarks, [example(n) for n in range(10)])
    positions, copies, _ = mix.repeated(rows, 34, 1, exact=True)
    counts = Counter(positions.tolist())
    assert len(positions) == 34 and set(counts.values()) == {3, 4}
    assert all(sorted(copies[positions == n].tolist()) == list(range(counts[n])) for n in range(10))
    assert all((np.diff(positions[copies == copy]) > 0).all() for copy in range(4)), "in the file's order"
    assert [len(part) for part in mix.repeated(rows[:0], 0, 1, exact=True)[:2]] == [0, 0]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("share", [0.0, 0.05, 0.3])
def test_what_hangs_together_never_straddles_the_split(seed, share):
    draw = random.Random(seed)
    keys = [np.array([draw.randrange(60) for _ in range(100)], dtype=np.uint64) for _ in range(2)]
    labels = mix.components([keys[0], np.where(np.arange(100) % 9 == 0, keys[1], 1000 + np.arange(100))])
    valid = mix.divide(labels, keys[0], share, seed)
    for key in (labels, keys[0]):
        assert not set(key[valid].tolist()) & set(key[~valid].tolist())
    wanted = round(share * 100)
    smallest = min(Counter(labels[~valid].tolist()).values())
    assert valid.sum() <= wanted and (valid.sum() == wanted or smallest > wanted - valid.sum())
    assert (mix.divide(labels, keys[0], share, seed) == valid).all()


# In which order. -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seed", "count"), [(42, 1), (42, 1000), (0, 17), (7, 25162)])
def test_shuffled_is_the_order_of_datasets(seed, count):
    datasets = pytest.importorskip("datasets")
    rows = np.zeros(count, dtype=mix.ROW)
    expected = datasets.Dataset.from_dict({"n": range(count)}).shuffle(seed=seed)["n"]
    assert mix.shuffled(rows, np.zeros(count, dtype=int), seed).tolist() == list(expected)


@pytest.mark.parametrize("singles", [0, 1, 7, 70])
@pytest.mark.parametrize("pairs", [0, 1, 40])
def test_paired_order_keeps_both_sides_in_one_block_of_their_kind_alone(benchmarks, singles, pairs):
    draw = random.Random(singles + pairs)
    examples = [side for n in range(pairs) for side in pair(n, draw.randint(1, 400))]
    examples += [side for n in range(100, 100 + pairs) for side in pair(n, draw.randint(1, 400), "review")]
    examples += [example(1000 + n) for n in range(singles)]
    draw.shuffle(examples)
    rows, none = indexed(benchmarks, examples), np.zeros(len(examples), dtype=int)
    places = mix.paired(rows, none, 5)
    assert sorted(places.tolist()) == list(range(len(examples)))
    assert (places == mix.paired(rows, none, 5)).all()
    ordered = [examples[place] for place in places]
    whole = 2 * (pairs * 2 // mix.BLOCK) + singles // mix.BLOCK
    for start in range(0, whole * mix.BLOCK, mix.BLOCK):
        block = ordered[start : start + mix.BLOCK]
        assert len({one.kind.split("_")[0] for one in block}) == 1
        if block[0].kind != "write":
            assert set(Counter(one.group for one in block).values()) == {2}


def test_copies_of_a_pair_are_pairs_of_their_own(benchmarks):
    rows = indexed(benchmarks, [side for n in range(8) for side in pair(n)] * 3)
    copies = np.repeat([0, 1, 2], 16)
    places = mix.paired(rows, copies, 1)
    for start in range(0, 48, mix.BLOCK):
        block = places[start : start + mix.BLOCK]
        units = Counter(zip(rows["unit"][block].tolist(), copies[block].tolist(), strict=True))
        assert set(units.values()) == {2}


def test_curriculum_goes_from_easy_to_hard_and_keeps_pairs_adjacent(benchmarks):
    draw = random.Random(1)
    examples = [side for n in range(20) for side in pair(n, draw.randint(1, 400))]
    examples += [example(100 + n, prompt="y" * draw.randint(1, 400)) for n in range(20)]
    draw.shuffle(examples)
    rows = indexed(benchmarks, examples)
    places = mix.curriculum(rows, np.zeros(40 + 20, dtype=int), 0)
    ordered = [examples[place] for place in places]
    units = list(dict.fromkeys(one.group for one in ordered))
    assert [one.group for one in ordered] == [
        one.group for name in units for one in examples if one.group == name
    ]
    longest = [max(mix.characters(one) for one in examples if one.group == name) for name in units]
    assert longest == sorted(longest)
    assert mix.curriculum(rows[:0], np.zeros(0, dtype=int), 0).tolist() == []


def test_curriculum_settles_ties_by_id_not_by_place(benchmarks):
    examples = [example(n) for n in range(10, 40)]
    orders = []
    for part in (examples, examples[::-1]):
        places = mix.curriculum(indexed(benchmarks, part), np.zeros(30, dtype=int), 0)
        orders.append([part[place].id for place in places])
    assert orders[0] == orders[1]


# The whole stage. ----------------------------------------------------------------------------------------


def rows_of_one() -> list[Example]:
    first = [example(n, group=n // 2) for n in range(60)]
    first[10] = example(10, group=5, prompt=prompts.detect(SNIPPET, "python"))
    return first


def prepare(project: Project, given: dict[str, list[Example]] | None = None, /, **changes: object) -> None:
    """Converted sources, what earlier stages tell of them, the benchmarks, and the parameters."""
    given = given or {"one": rows_of_one(), "two": [example(n, source="two") for n in range(30)]}
    for name, examples in given.items():
        write_rows(project.root / f"data/converted/{name}.jsonl", map(asdict, examples))
        origin = {"uri": f"file:{name}", "revision": "1.0", "licence": "MIT", "note": "", "rows": 99}
        told = {"schema": "alpaca", "rows": 99, "origins": [origin]}
        report = {"rows": 99, "kept": 98, "rejected": 1, "reasons": {"length": 1}, "redacted": {}, "more": 1}
        (project.root / f"data/raw/{name}.provenance.json").parent.mkdir(parents=True, exist_ok=True)
        (project.root / f"data/raw/{name}.provenance.json").write_text(json.dumps(told))
        (project.root / f"reports/filter/{name}.json").parent.mkdir(parents=True, exist_ok=True)
        (project.root / f"reports/filter/{name}.json").write_text(json.dumps(report))
    write_rows(project.root / "data/benchmarks/mine.jsonl", [DETECTION, CODE])
    write_rows(project.root / "data/raw/humaneval.jsonl", [HUMANEVAL])
    project.params(mix={**GROUP, **changes})


def mixed(project: Project) -> tuple[list[dict], list[dict], list[dict], dict]:
    """What mix wrote."""
    train, valid, pairs = (read_rows(project.root / f"data/mixed/{name}.jsonl") for name in mix.SPLITS)
    return train, valid, pairs, json.loads((project.root / "reports/mix.json").read_text())


def test_main_mixes_counts_and_repeats_itself(project):
    prepare(project)
    project.run("mix")
    train, valid, pairs, report = mixed(project)
    assert (len(train), len(valid), len(pairs)) == (report["train"], report["valid"], report["preferences"])
    assert len(train + valid) == 40 and len(valid) == 4 and not pairs
    assert Counter(row["source"] for row in train + valid) == {"one": 30, "two": 10}
    assert report["contaminated"] == 2
    assert report["sources"]["one"] == {
        "examples": 60,
        "too_long": 0,
        "contaminated": 2,
        "near_duplicate": 0,
        "not_chosen": 28,
        "wanted": 30,
        "mixed": 30,
        "repeated": 0,
        "preferences": 0,
    }
    assert report["kinds"]["write"]["rows"] == 40 and report["kinds"]["write"]["share"] == 1
    assert report["decontamination"]["mine"]["exact"] == 1
    assert not {row["group"] for row in train} & {row["group"] for row in valid}
    assert not any(row["group"] == "one/5" for row in train + valid)
    assert {"README.md", "funnel.svg"} <= {path.name for path in (project.root / "data/mixed").iterdir()}
    first = project.files()
    project.run("mix")
    assert project.files() == first
    project.run("mix", "--workers", "1")
    assert project.files() == first


def test_neither_workers_nor_chunks_change_a_byte(project, monkeypatch):
    prepare(project, near_duplicate=0.8, repeats=2, order="paired", rows=60, sources={"one": 2, "two": 2})
    found = []
    for chunk, workers in ((mix.CHUNK, 1), (700, 1), (700, 3), (1, 2)):
        monkeypatch.setattr(mix, "CHUNK", chunk)
        project.run("mix", "--workers", str(workers))
        found.append(project.files())
    assert all(one == found[0] for one in found)


def test_rows_are_written_as_they_were_read(project):
    prepare(project, valid_share=0, rows=88, sources={"one": 58, "two": 30})
    project.run("mix")
    lines = {
        line for name in ("one", "two") for line in (project.root / f"data/converted/{name}.jsonl").open()
    }
    assert set((project.root / "data/mixed/train.jsonl").open()) < lines
    assert (project.root / "data/mixed/valid.jsonl").read_bytes() == b""


def numbers(value: object) -> bool:
    return all(map(numbers, value.values())) if isinstance(value, dict) else type(value) in (int, float)


@pytest.mark.parametrize("seed", range(6))
def test_every_example_is_accounted_for(project, seed):
    draw = random.Random(seed)
    sources: dict[str, list[Example]] = {}
    for source in ("one", "two"):
        examples = [side for n in range(30) for side in pair(n, draw.choice([10, 900]), source=source)]
        examples += [preference(n, source, group=f"{source}/{n}") for n in range(30)]
        examples += [example(100 + n, source=source) for n in range(40)]
        places = draw.sample(range(len(examples)), 5)
        for place in places:
            leak = draw.choice([SNIPPET, CODE["test"], HUMANEVAL["prompt"]])
            examples[place] = replace(examples[place], completion=f"{leak} and more")
        sources[source] = examples
    sources["two"] += [
        replace(one, id=f"two/{900 + n}/write", group=f"two/{900 + n}", source="two")
        for n, one in enumerate(sources["one"][-20:])
    ]
    chosen = draw.choice(["drop", "report"])
    prepare(
        project,
        sources,
        rows=None,
        max_chars=500,
        strategy="proportional",
        sources=NULLS,
        repeats=draw.randint(1, 3),
        near_duplicate=0.8,
        contaminated=chosen,
        order=draw.choice(["shuffled", "paired", "curriculum"]),
    )
    project.run("mix")
    train, valid, pairs, report = mixed(project)
    assert numbers(report)
    for source, counts in report["sources"].items():
        known = {one.id for one in sources[source]}
        written = [row["id"].split("@")[0] for row in train + valid if row["source"] == source]
        chosen_pairs = [row["id"] for row in pairs if row["source"] == source]
        assert set(written) | set(chosen_pairs) <= known
        assert (len(written), len(chosen_pairs)) == (counts["mixed"], counts["preferences"])
        assert len(written) - len(set(written)) == counts["repeated"]
        out = counts["too_long"] + counts["near_duplicate"] + counts["not_chosen"]
        out += counts["contaminated"] if chosen == "drop" else 0
        assert len(known) == out + len(set(written)) + len(set(chosen_pairs))
    ids = [row["id"] for row in train + valid + pairs]
    assert len(set(ids)) == len(ids)
    assert sum(kind["rows"] for kind in report["kinds"].values()) == len(train + valid)
    assert (
        "preference" not in report["kinds"]
        and report["sources"]["two"]["near_duplicate"] + report["sources"]["one"]["near_duplicate"]
    )
    assert not {row["group"] for row in valid} & {row["group"] for row in train + pairs}


def test_preferences_are_never_trained_on_and_follow_the_split(project):
    sources = {"one": [*(example(n) for n in range(40)), *(preference(n) for n in range(40))]}
    sources["one"] += [preference(100 + n, prompt=f"Say the number {n} of one.") for n in range(40)]
    prepare(project, sources, strategy="proportional", sources={"one": None}, rows=None, valid_share=0.25)
    project.run("mix")
    train, valid, pairs, report = mixed(project)
    assert (len(train), len(valid), len(pairs)) == (30, 10, 60)
    assert {row["kind"] for row in train + valid} == {"write"} and {row["kind"] for row in pairs} == {
        "preference"
    }
    assert not {row["prompt"] for row in valid} & {row["prompt"] for row in pairs}
    assert report["sources"]["one"]["not_chosen"] == 20


def test_rows_under_one_question_stay_on_one_side(project):
    sources = {
        "one": [
            example(n, prompt=f"QUESTION {n // 4}!" if n % 2 else f"question {n // 4}") for n in range(80)
        ]
    }
    prepare(project, sources, strategy="proportional", sources={"one": None}, rows=None, valid_share=0.2)
    project.run("mix")
    train, valid, _, _ = mixed(project)
    assert len(valid) == 16
    asked = [{row["prompt"].lower().strip("!") for row in part} for part in (train, valid)]
    assert not asked[0] & asked[1]


def test_near_duplicates_are_dropped_across_sources_and_split_together_within_one(project):
    code = "\n".join(f"value_{n} = compute(value_{n - 1}, {n})" for n in range(40))
    texts = [f"```python\n{code}\nlast = {n}\n```" for n in range(6)]
    sources = {
        "one": [example(n, completion=text) for n, text in enumerate(texts[:3])]
        + [example(50 + n) for n in range(30)],
        "two": [example(n, source="two", completion=text) for n, text in enumerate(texts[3:])]
        + [example(50 + n, source="two") for n in range(30)],
    }
    nulls = {"strategy": "proportional", "sources": NULLS, "rows": None, "near_duplicate": 0.8}
    for seed in range(5):
        prepare(project, sources, seed=seed, valid_share=0.3, **nulls)
        project.run("mix")
        train, valid, _, report = mixed(project)
        assert sorted(one["near_duplicate"] for one in report["sources"].values()) == [0, 3]
        alike = [[row for row in part if "compute" in row["completion"]] for part in (train, valid)]
        assert sorted(map(len, alike)) == [0, 3]


def test_exact_counts_with_repeats_and_the_cut_that_they_need(project, capsys):
    sources = {
        "one": [side for n in range(10) for side in pair(n)],
        "two": [example(n, source="two") for n in range(5)],
    }
    prepare(
        project,
        sources,
        strategy="counts",
        sources={"one": 13, "two": 12},
        rows=None,
        repeats=3,
        valid_share=0.2,
    )
    project.run("mix")
    train, valid, _, report = mixed(project)
    assert Counter(row["source"] for row in train + valid) == {"one": 13, "two": 12}
    assert report["sources"]["two"]["repeated"] == 7
    copies = Counter(row["id"].partition("@")[2] for row in train + valid if row["source"] == "two")
    assert copies == {"": 5, "2": 5, "3": 2}
    said = capsys.readouterr().err
    assert "mix.sources.one: a group was cut to meet 13 exactly" in said and "sources.two" not in said
    assert "a group was cut" in (project.root / "data/mixed/README.md").read_text()


def test_reference_mix_is_all_rows_in_the_order_of_datasets(project, capsys):
    sources = {
        "one": rows_of_one(),
        "two": [example(n, source="two") for n in range(30)],
        "few": [example(0, source="few")],
    }
    prepare(
        project,
        sources,
        seed=42,
        strategy="proportional",
        sources={"few": None, "one": None, "two": None},
        rows=None,
        valid_share=0,
        contaminated="report",
        floors={"few": 0.02},
        below_floor="warn",
    )
    project.run("mix")
    train, valid, _, report = mixed(project)
    concatenated = [one.id for name in ("few", "one", "two") for one in sources[name]]
    order = np.random.default_rng(42).permutation(len(concatenated))
    assert [row["id"] for row in train] == [concatenated[place] for place in order]
    assert valid == [] and report["contaminated"] == 2 and report["sources"]["one"]["mixed"] == 60
    assert report["floors"] == {"few": {"share": round(1 / 91, 6), "floor": 0.02}}
    said = capsys.readouterr().err
    assert "warning: mix.floors.few: 0.0110" in said and "mix.contaminated: 2 examples" in said


@pytest.mark.parametrize(
    ("floors", "words"),
    [
        ({"write": 0.9, "one": 0.5}, None),
        ({"two": 0.3}, ["mix.floors.two: 0.2500", "0.3"]),
        ({"handle": 0.02}, ["mix.floors.handle: 0.0000"]),
    ],
)
def test_floors_hold_or_stop(project, capsys, floors, words):
    prepare(project, floors=floors)
    before = project.files()
    status = project.command("mix")
    if words is None:
        assert status == 0
    else:
        printed = capsys.readouterr().err
        assert status == 2 and all(word in printed for word in words)
        assert project.files() == before


def test_a_floor_that_is_source_and_kind_is_refused(project, capsys):
    prepare(
        project,
        {"write": [example(n, source="write") for n in range(40)]},
        sources={"write": 1},
        rows=30,
        floors={"write": 0.1},
    )
    assert project.command("mix") == 2
    assert "mix.floors.write: both" in capsys.readouterr().err


def test_entry_points_are_counted_and_dropped_only_when_asked(project):
    named = replace(example(3), completion="def falls_below_zero(x):\n    return any(n < 0 for n in x)")
    for asked in (False, True):
        examples = [example(n) if n != 3 else named for n in range(40)]
        chosen = {"ngram": 8, "share": 0.5, "entry_points": asked}
        prepare(
            project,
            {"one": examples},
            strategy="proportional",
            sources={"one": None},
            rows=None,
            overlap=chosen,
        )
        project.run("mix")
        train, valid, _, report = mixed(project)
        assert report["decontamination"]["humaneval"]["entry_point"] == 1
        assert report["contaminated"] == asked and len(train + valid) == 40 - asked


DRESSES = [
    lambda text: text,
    lambda text: text.upper(),
    lambda text: "  " + text.replace("\n", "\r\n\t ").replace("(", " ( "),
    lambda text: f"Look:\n\n```python\n{text}\n```\nDone.",
    lambda text: text.replace(" ", "\u00a0").replace("'", "\u2019"),
]


@pytest.mark.parametrize("seed", range(6))
def test_no_text_of_a_benchmark_survives(project, benchmarks, seed):
    draw = random.Random(seed)
    leaks = [
        SNIPPET,
        DETECTION["fixed"],
        CODE["prompt"],
        CODE["test"],
        HUMANEVAL["prompt"],
        HUMANEVAL["test"],
    ]
    examples = [example(n, group=n // 2) for n in range(200)]
    dirty = draw.sample(range(200), 30)
    for place in dirty:
        text = draw.choice(DRESSES)(draw.choice(leaks))
        where = draw.choice(["prompt", "completion"])
        examples[place] = replace(examples[place], **{where: text})
    nulls = {"strategy": "proportional", "sources": {"one": None}, "rows": None}
    prepare(project, {"one": examples}, valid_share=0.1, **nulls)
    project.run("mix")
    train, valid, _, report = mixed(project)
    groups = {examples[place].group for place in dirty}
    assert report["contaminated"] == 2 * len(groups) == 200 - len(train + valid)
    for row in train + valid:
        assert overlap.find(benchmarks, row["prompt"], row["completion"]) == []


def test_the_gate_does_not_trust_the_bookkeeping(project, capsys, monkeypatch):
    prepare(project, rows=None, strategy="proportional", sources=NULLS)
    keep = mix.plan

    def careless(rows: Any, *rest: Any) -> Any:
        rows["flags"] = 0  # as if no example had been found
        return keep(rows, *rest)

    monkeypatch.setattr(mix, "plan", careless)
    before = project.files()
    assert project.command("mix") == 2
    assert "rows with a benchmark's text; expected 0 (mine exact 1)" in capsys.readouterr().err
    assert project.files() == before


def test_another_seed_gives_another_order_and_only_that(project):
    found = []
    for seed in (1, 2):
        prepare(project, seed=seed, rows=None, strategy="proportional", sources=NULLS)
        project.run("mix")
        train, valid, _, _ = mixed(project)
        found.append([row["id"] for row in train + valid])
    assert found[0] != found[1] and sorted(found[0]) == sorted(found[1])


def test_changing_one_weight_to_nothing_leaves_the_choice_of_the_other(project):
    chosen = []
    for weights in ({"one": 1, "two": 1}, {"one": 1, "two": 0}):
        prepare(project, rows=40 if weights["two"] else 20, sources=weights)
        project.run("mix")
        train, valid, _, _ = mixed(project)
        chosen.append({row["id"] for row in train + valid if row["source"] == "one"})
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize("kind", ["detect", "review"])
def test_a_pair_is_too_long_as_a_whole_and_other_examples_alone(project, kind):
    long = pair(1, 500, kind)
    long[1] = replace(long[1], prompt="short")
    other = replace(example(1, kind="fix"), prompt="fix it")
    examples = [*pair(0, 40, kind), *long, other, example(2, prompt="y" * 500)]
    prepare(
        project,
        {"one": examples},
        strategy="proportional",
        sources={"one": None},
        rows=None,
        max_chars=200,
        valid_share=0,
    )
    project.run("mix")
    train, _, _, report = mixed(project)
    assert {row["id"] for row in train} == {one.id for one in [*pair(0, 40, kind), other]}
    assert report["sources"]["one"]["too_long"] == 3


def test_the_longer_answer_of_a_preference_counts(project):
    examples = [
        example(0),
        preference(1),
        preference(2, rejected="x" * 300),
        preference(3, completion="x" * 300),
    ]
    nulls = {"strategy": "proportional", "sources": {"one": None}, "rows": None}
    prepare(project, {"one": examples}, max_chars=200, valid_share=0, **nulls)
    project.run("mix")
    assert [row["id"] for row in mixed(project)[2]] == ["one/1/preference"]


# What is refused. ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sources": {"absent": 1}}, ["data/raw/absent.provenance.json: not found"]),
        ({"sources": {"one": 0}}, ["mix.sources", "more than 0"]),
        ({"sources": {"one": -1}}, ["mix.sources.one", "-1"]),
        ({"sources": {"one": float("inf")}}, ["mix.sources.one: inf"]),
        ({"sources": {}}, ["mix.sources: {}"]),
        ({"strategy": "best"}, ["mix.strategy: 'best'"]),
        ({"rows": 0}, ["mix.rows: 0"]),
        ({"rows": 1000}, ["mix.sources.one: 750 wanted", "77 would do for mix.rows"]),
        ({"seed": -1}, ["mix.seed: -1"]),
        ({"repeats": 0}, ["mix.repeats: 0"]),
        ({"valid_share": 1.0}, ["mix.valid_share: 1.0"]),
        ({"rows": 1, "valid_share": 0.9, "sources": {"two": 1}}, ["mix.rows"]),
        ({"rows": 4, "valid_share": 0.1, "sources": {"two": 1}}, ["mix.rows", "0 to validate"]),
        ({"overlap": {"ngram": 1, "share": 0.5, "entry_points": False}}, ["mix.overlap.ngram: 1"]),
        ({"max_chars": 5}, ["mix.sources.one: no example left"]),
        ({"colour": 1}, ["mix.colour: 1"]),
    ],
)
def test_bad_parameters_give_one_line_and_no_output(project, capsys, changes, words):
    prepare(project, **changes)
    before = project.files()
    assert project.command("mix") == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1
    assert all(word in printed for word in words), printed
    assert project.files() == before


def line(**changes: object) -> str:
    return json.dumps({**asdict(example(777)), **changes})


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("data/converted/one.jsonl", b"oops", ["one.jsonl:1", "'oops"]),
        ("data/converted/two.jsonl", b'{"id": "x"}', ["two.jsonl:1", "['id']"]),
        ("data/converted/one.jsonl", b"", ["mix.sources.one: no example left"]),
        ("data/converted/one.jsonl", b"\n" + line(prompt=3).encode(), ["one.jsonl:2: prompt: 3"]),
        ("data/converted/one.jsonl", b'{"id": "\xff"}', ["one.jsonl:1: byte 8"]),
        ("data/converted/one.jsonl", line(prompt="\ud800").encode(), ["one.jsonl:1: '\\ud800'", "UTF-8"]),
        ("data/converted/one.jsonl", line(source="two").encode(), ["one.jsonl:1: source: 'two'"]),
        ("data/converted/one.jsonl", line(kind="preference").encode(), ["one.jsonl:1: rejected: ''"]),
        ("data/converted/one.jsonl", f"{line()}\n{line()}".encode(), ["id 'one/777/write' occurs twice"]),
        ("data/converted/one.jsonl", b"[" * 100_000, ["one.jsonl:1"]),
        ("data/benchmarks/mine.jsonl", b'{"id": "x"}', ["mine.jsonl:1", "kind: None"]),
        ("data/raw/humaneval.jsonl", b"", ["humaneval.jsonl: 0 tasks"]),
        ("data/raw/one.provenance.json", b"{}", ["one.provenance.json: no key 'origins'"]),
        ("reports/filter/two.json", b'{"rows": 1}', ["two.json: no key 'kept'"]),
    ],
)
def test_bad_file_gives_one_line_and_no_output(project, capsys, name, text, words):
    prepare(project)
    (project.root / name).write_bytes(text + b"\n")
    before = project.files()
    assert project.command("mix") == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and all(word in printed for word in words), printed
    assert project.files() == before


def test_odd_but_sound_lines_are_taken(project):
    odd = [
        example(n, prompt=text) for n, text in enumerate(["\u2028\x85", "\x00", "größe", "\t\r\n", "😀", " "])
    ]
    odd.append(example(6, prompt="long " * 500_000))
    prepare(
        project,
        {"one": odd},
        strategy="proportional",
        sources={"one": None},
        rows=None,
        valid_share=0,
        max_chars=9**9,
    )
    lines = [json.dumps(asdict(one), ensure_ascii=bool(n % 2)) for n, one in enumerate(odd)]
    (project.root / "data/converted/one.jsonl").write_bytes("\n\r\n".join(lines).encode() + b"  ")
    project.run("mix")
    train, _, _, _ = mixed(project)
    assert sorted(row["prompt"] for row in train) == sorted(one.prompt for one in odd)
    assert b"\r" not in (project.root / "data/mixed/train.jsonl").read_bytes()
