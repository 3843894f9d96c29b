"""Mix: every row accounted for, no trace of a benchmark, one seed one result."""

import json
import random
from collections import Counter
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from conftest import Project, read_rows, write_rows
from examples import GROUP, example, pair, preference

from stages import mix
from stages.common import catalogue, overlap, prompts, suites
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
NULLS = {"one": None, "two": None}


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> overlap.Index:
    folder = tmp_path_factory.mktemp("suites")
    write_rows(folder / "b/mine.jsonl", [DETECTION, CODE])
    write_rows(folder / "humaneval.jsonl", [HUMANEVAL])
    tasks = suites.load_all(folder / "b", folder / "humaneval.jsonl")
    return overlap.build(tasks, overlap.Overlap(8, 0.5, False))


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
    train, valid, pairs = (
        read_rows(project.root / f"data/mixed/{name}.jsonl") for name in ("train", "valid", "preferences")
    )
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
    assert report["decontamination"]["mine"]["exact"] == 1 and report["cwes"] == {}
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
    for chunk, workers in ((catalogue.CHUNK, 1), (700, 1), (700, 3), (1, 2)):
        monkeypatch.setattr(catalogue, "CHUNK", chunk)
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


def test_weaknesses_are_counted_in_what_is_trained_on_or_held_out(project):
    names = ("CWE-89", "CWE-79", "", "CWE-798")
    sources = {
        "one": [
            *(example(n, cwe=names[n % 4]) for n in range(40)),
            *(preference(100 + n, cwe="CWE-22") for n in range(8)),
        ]
    }
    prepare(project, sources, strategy="proportional", sources={"one": None}, rows=None, valid_share=0.25)
    project.run("mix")
    train, valid, pairs, report = mixed(project)
    assert report["cwes"] == Counter(row["cwe"] for row in train + valid if row["cwe"])
    assert list(report["cwes"].items()) == [("CWE-79", 10), ("CWE-798", 10), ("CWE-89", 10)]
    assert {row["cwe"] for row in pairs} == {"CWE-22"} and any(row["cwe"] for row in valid)


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
