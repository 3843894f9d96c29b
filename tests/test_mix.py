"""Mix: exact quotas, whole groups, one seed one result, and no trace of a benchmark."""

import json
import random
from collections import Counter
from dataclasses import asdict, replace

import pytest

from stages import mix
from stages.common import prompts, suites
from stages.common.errors import PipelineError
from stages.common.records import Example

SNIPPET = """def load_report(cursor, name):
    return cursor.execute('SELECT body FROM report WHERE name = ?', (name,))"""
FIXED = SNIPPET.replace("?", ":name")
DETECTION = {
    "id": "d/1",
    "kind": "detection",
    "language": "python",
    "cwe": "CWE-89",
    "vulnerable": SNIPPET,
    "fixed": FIXED,
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
    "prompt": 'def below_zero(operations):\n    """Tell whether the balance ever falls below zero."""\n',
    "entry_point": "below_zero",
    "canonical_solution": "    return False\n",
    "test": "def check(candidate):\n    assert candidate([1, -2]) is True\n",
}


def example(number: int = 0, group: int | None = None, source: str = "mine", **changes: str) -> Example:
    """A harmless example with a text of its own."""
    fields = {
        "id": f"{source}/{number}/write",
        "group": f"{source}/{number if group is None else group}",
        "source": source,
        "licence": "MIT",
        "kind": "write",
        "prompt": f"Say the number {number} of {source}.",
        "completion": f"It is {number}.",
    }
    return Example(**{**fields, **changes})


def write(folder, name: str, rows: list[dict]) -> None:
    """A JSON lines file."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def tasks(tmp_path) -> list[suites.Task]:
    """The tasks of three small suites."""
    write(tmp_path, "b/mine.jsonl", [DETECTION, CODE])
    write(tmp_path, "humaneval.jsonl", [HUMANEVAL])
    return suites.load_all(tmp_path / "b", tmp_path / "humaneval.jsonl")


@pytest.mark.parametrize(
    ("weights", "rows", "counts"),
    [
        ({"a": 3.0, "b": 1.0}, 10, {"a": 8, "b": 2}),
        ({"a": 1.0}, 7, {"a": 7}),
        ({"a": 1.0, "b": 0.0}, 7, {"a": 7, "b": 0}),
        ({"a": 1.0, "b": 1.0, "c": 1.0}, 10, {"a": 4, "b": 3, "c": 3}),
        ({"coding": 20022.0, "preferences": 5000.0, "fixes": 128.0, "error_handling": 12.0}, 25162, None),
    ],
)
def test_quotas(weights, rows, counts):
    assert mix.quotas(weights, rows) == (counts or weights)


@pytest.mark.parametrize("seed", range(20))
def test_quotas_sum_and_are_nearly_proportional(seed):
    random_ = random.Random(seed)
    weights = {f"s{n}": random_.choice([0.0, random_.random(), random_.random() * 100]) for n in range(8)}
    weights["s8"] = 0.5
    rows = random_.randrange(1, 5000)
    counts = mix.quotas(weights, rows)
    assert sum(counts.values()) == rows and list(counts) == list(weights)
    total = sum(weights.values())
    assert all(abs(counts[name] - rows * weight / total) < 1 for name, weight in weights.items())


def test_weights_that_sum_to_nothing_are_refused():
    with pytest.raises(PipelineError, match=r"mix\.weights.*0"):
        mix.quotas({"a": 0.0}, 10)


SHOUTED = SNIPPET.upper().replace("    ", "\t").replace("(", " ( ").replace("'", '"')


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": prompts.detect(SNIPPET, "python")},
        {"prompt": prompts.detect(FIXED, "python")},
        {"prompt": prompts.fix(SNIPPET, "python")},
        {"prompt": SNIPPET},
        {"prompt": SHOUTED},
        {"prompt": f"What does this do?\n\n{SHOUTED}"},
        {"completion": SNIPPET},
        {"completion": f"Sure, here it is:\n\n```python\n# mine\n{SNIPPET}\n\n\nprint(1)\n```\nGood luck."},
        {"prompt": "First this\nhalf:", "completion": f"x = 1;{SHOUTED};y = 2"},
        {"prompt": CODE["prompt"]},
        {"prompt": "  write a FUNCTION roman( text )\nthat reads a roman numeral!"},
        {"completion": f"```python\n{CODE['test']}\n```"},
        {"prompt": prompts.complete(HUMANEVAL["prompt"])},
        {"completion": f"```python\n{HUMANEVAL['prompt']}    return True\n```"},
        {"completion": HUMANEVAL["test"]},
    ],
)
def test_copy_of_a_benchmark_takes_its_whole_group_out(tasks, changes):
    groups = mix.grouped([example(0), example(1, group=0, **changes), example(2)])
    clean, dirty = mix.decontaminate(groups, tasks)
    assert (list(clean), dirty) == (["mine/2"], ["mine/0"])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prompt": "Write a function roman(text) that writes a Roman numeral."},
        {"prompt": prompts.detect("x = 1", "python"), "completion": "SAFE\nNothing is done."},
        {"prompt": "!?", "completion": "..."},
        {"completion": SNIPPET.replace("report", "letter")},
        {"completion": "def below_zero(x):\n    return x < 0"},
    ],
)
def test_what_only_resembles_a_benchmark_stays(tasks, changes):
    groups = mix.grouped([example(0, **changes)])
    assert mix.decontaminate(groups, tasks) == (groups, [])


def random_groups(seed: int) -> mix.Groups:
    """Some forty groups of one to three examples."""
    random_ = random.Random(seed)
    return mix.grouped(
        [example(number, group=group) for number, group in enumerate(random_.choices(range(40), k=80))]
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("quota", [0, 1, 30, 80, 500])
def test_whole_groups_are_taken_until_the_quota(seed, quota):
    groups = random_groups(seed)
    taken = mix.take(groups, quota, random.Random(seed))
    assert taken == mix.take(dict(reversed(groups.items())), quota, random.Random(seed))
    assert all(part == groups[part[0].group] for part in taken)
    count, largest = sum(map(len, taken)), max(map(len, groups.values()))
    assert min(quota, 80) <= count < max(quota, 1) + largest
    assert len({part[0].group for part in taken}) == len(taken)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.0, 0.05, 0.3])
def test_a_group_never_straddles_the_split_and_nothing_is_lost(seed, share):
    taken = list(random_groups(seed).values())
    train, valid = mix.divide(taken, share, random.Random(seed))
    assert {row.group for row in train} & {row.group for row in valid} == set()
    assert Counter(train + valid) == Counter(row for part in taken for row in part)
    largest = max(map(len, taken))
    assert round(share * 80) <= len(valid) <= round(share * 80) + largest
    assert mix.divide(taken, share, random.Random(seed)) == (train, valid)
    assert mix.divide(taken, share, random.Random(seed + 100)) != (train, valid)


def prepare(project, **changes: object) -> None:
    """Two converted sources, the benchmarks, and the parameters."""
    first = [example(n, group=n // 2, source="one") for n in range(60)]
    first[10] = example(10, group=5, source="one", prompt=prompts.detect(SNIPPET, "python"))
    second = [example(n, source="two") for n in range(30)]
    for name, rows in (("one", first), ("two", second), ("unused", [example(0, source="unused")])):
        write(project.root, f"data/converted/{name}.jsonl", [asdict(row) for row in rows])
    write(project.root, "data/benchmarks/mine.jsonl", [DETECTION, CODE])
    write(project.root, "data/raw/humaneval.jsonl", [HUMANEVAL])
    group = {"seed": 1, "rows": 40, "weights": {"one": 3, "two": 1}, "valid_share": 0.1}
    group |= {"order": "shuffled", "max_chars": 10_000}
    project.params(mix={**group, **changes})


def mixed(project) -> tuple[list[dict], list[dict], dict]:
    """What mix wrote."""
    read = [
        [
            json.loads(line)
            for line in (project.root / f"data/mixed/{name}.jsonl").read_text().split("\n")
            if line
        ]
        for name in ("train", "valid")
    ]
    return read[0], read[1], json.loads((project.root / "reports/mix.json").read_text())


def test_main_mixes_counts_and_repeats_itself(project):
    prepare(project)
    project.run("mix")
    train, valid, report = mixed(project)
    assert (len(train), len(valid)) == (report["train"], report["valid"])
    assert len(train + valid) == 40 and 4 <= len(valid) <= 5
    assert Counter(row["source"] for row in train + valid) == {"one": 30, "two": 10}
    assert report["contaminated"] == 2
    assert report["sources"]["one"] == {
        "examples": 60,
        "too_long": 0,
        "contaminated": 2,
        "wanted": 30,
        "mixed": 30,
    }
    assert report["kinds"] == {"write": 40}
    assert {row["group"] for row in train} & {row["group"] for row in valid} == set()
    assert not any(row["group"] == "one/5" for row in train + valid)
    first = project.files()
    project.run("mix")
    assert project.files() == first


def test_another_seed_gives_another_order_and_only_that(project):
    found = []
    for seed in (1, 2):
        prepare(project, seed=seed, rows=88, weights={"one": 58, "two": 30})
        project.run("mix")
        train, valid, _ = mixed(project)
        found.append([row["id"] for row in train + valid])
    assert found[0] != found[1] and sorted(found[0]) == sorted(found[1])


def test_changing_one_weight_to_nothing_leaves_the_choice_of_the_other(project):
    chosen = []
    for weights in ({"one": 1, "two": 1}, {"one": 1, "two": 0}):
        prepare(project, rows=40 if weights["two"] else 20, weights=weights)
        project.run("mix")
        train, valid, _ = mixed(project)
        chosen.append({row["id"] for row in train + valid if row["source"] == "one"})
    assert chosen[0] == chosen[1]


def pair(n: int, length: int = 40) -> list[Example]:
    """Both sides of a pair."""
    sides = ("detect_vulnerable", "detect_safe")
    return [
        replace(example(n, prompt="x" * length + kind), id=f"one/{n}/{kind}", kind=kind) for kind in sides
    ]


@pytest.mark.parametrize("singles", [0, 1, 7, 70])
@pytest.mark.parametrize("pairs", [0, 1, 40])
def test_paired_order_keeps_both_sides_in_one_block_of_verdicts_alone(singles, pairs):
    draw = random.Random(singles + pairs)
    rows = [side for n in range(pairs) for side in pair(n, draw.randint(1, 400))]
    rows += [example(100 + n) for n in range(singles)]
    draw.shuffle(rows)
    ordered = mix.paired(rows, random.Random(5))
    assert sorted(row.id for row in ordered) == sorted(row.id for row in rows)
    assert ordered == mix.paired(rows, random.Random(5))
    full = [ordered[start : start + mix.BLOCK] for start in range(0, len(rows) - mix.BLOCK, mix.BLOCK)]
    for block in full[: pairs * 2 // mix.BLOCK + singles // mix.BLOCK]:
        verdicts = [row for row in block if row.kind.startswith("detect_")]
        assert len(verdicts) in (0, mix.BLOCK)
        assert all(count == 2 for count in Counter(row.group for row in verdicts).values())


def test_a_pair_is_left_out_whole_and_other_examples_alone():
    long = pair(1, 500)
    long[1] = replace(long[1], prompt="short")
    other = replace(example(1, prompt="fix it"), id="one/1/fix", kind="fix")
    rows = [*pair(0), *long, other, example(2, prompt="y" * 500)]
    assert mix.short(rows, 200) == [*pair(0), other]
    assert mix.short(rows, 10_000) == rows


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weights": {"absent": 1}}, ["data/converted/absent.jsonl: not found"]),
        ({"weights": {"one": 0}}, ["mix.weights", "more than 0"]),
        ({"weights": {"one": -1}}, ["mix.weights.one: -1"]),
        ({"weights": {"one": float("inf")}}, ["mix.weights.one: inf"]),
        ({"weights": {}}, ["mix.weights: {}"]),
        ({"rows": 0}, ["mix.rows: 0"]),
        ({"valid_share": 1.0}, ["mix.valid_share: 1.0"]),
        ({"rows": 1, "valid_share": 0.9, "weights": {"two": 1}}, ["mix."]),
        ({"colour": 1}, ["mix.colour: 1"]),
    ],
)
def test_bad_parameters_give_one_line_and_no_output(project, capsys, changes, words):
    prepare(project, **changes)
    before = project.files()
    assert project.command("mix") == 2
    printed = capsys.readouterr().err
    assert (
        printed.startswith("error: ") and printed.count("\n") == 1 and all(word in printed for word in words)
    )
    assert project.files() == before


@pytest.mark.parametrize(
    ("name", "line", "words"),
    [
        ("data/converted/one.jsonl", "oops", ["one.jsonl:1", "'oops'"]),
        ("data/converted/two.jsonl", '{"id": "x"}', ["two.jsonl:1", "['id']"]),
        ("data/benchmarks/mine.jsonl", '{"id": "x"}', ["mine.jsonl:1", "kind: None"]),
        ("data/raw/humaneval.jsonl", "", ["humaneval.jsonl: 0 tasks"]),
    ],
)
def test_bad_file_gives_one_line_and_no_output(project, capsys, name, line, words):
    prepare(project)
    (project.root / name).write_text(line + "\n")
    before = project.files()
    assert project.command("mix") == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and all(word in printed for word in words)
    assert project.files() == before
