"""Answers of a model: every one that is asked for, once, in order, also after a run that was killed."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Project, chosen, make_tiny_model, read_rows, write_rows

from stages import generate
from stages.common import decoding, models, program, prompts, suites
from stages.common.errors import PipelineError
from stages.common.params import validate

WORDS = [
    {"id": f"k{number}", "kind": "reference", "prompt": "word " * (1 + number * 7 % 5), "all_of": [["try"]]}
    for number in range(5)
]
PAIRS = [
    {
        "id": "p0",
        "kind": "detection",
        "language": "python",
        "cwe": "CWE-94",
        "vulnerable": "eval(a)",
        "fixed": "a",
    },
    {"id": "p1", "kind": "detection", "language": "c", "cwe": "", "vulnerable": "gets(a);", "fixed": "a;"},
]
HUMANEVAL = [
    {
        "task_id": f"HumanEval/{number}",
        "prompt": "def one():\n",
        "entry_point": "one",
        "canonical_solution": "    return 1\n",
        "test": "def check(one):\n    assert one() == 1\n",
    }
    for number in range(4)
]
IDS = ["p0/vulnerable", "p0/fixed", "p1/vulnerable", "p1/fixed", *(f"k{number}" for number in range(5))]
COMPLETIONS = "reports/completions/base.jsonl"


def parameters(**changes: object) -> dict[str, object]:
    lengths = dict.fromkeys(suites.KEYS, 4)
    given = {"max_new_tokens": lengths, "batch_size": 4, "limits": {}, "samples": {}}
    return {**chosen("generate"), **given, **changes}


def valid(**changes: object) -> generate.GenerateParams:
    return validate(parameters(**changes), "generate", generate.GenerateParams)


@pytest.fixture
def asked(project: Project, tiny_model: Path) -> Project:
    """A project with a base model, two suites and HumanEval."""
    project.base(tiny_model)
    project.params(generate=parameters())
    write_rows(project.root / "data/benchmarks/a_pairs.jsonl", PAIRS)
    write_rows(project.root / "data/benchmarks/b_words.jsonl", WORDS)
    write_rows(project.root / "data/raw/humaneval.jsonl", HUMANEVAL)
    return project


def all_tasks(project: Project) -> list[suites.Task]:
    return suites.load_all(project.root / "data/benchmarks", project.root / "data/raw/humaneval.jsonl")


def partial(project: Project) -> list[str]:
    """The files that an unfinished run left."""
    return sorted(path.name for path in (project.root / ".partial").rglob("*") if path.is_file())


# What is asked, in which batches. -------------------------------------------------------------------------


def test_the_greedy_answer_comes_first_and_samples_are_by_suite(asked: Project) -> None:
    tasks = all_tasks(asked)
    assert generate.questions(tasks, valid()) == [(task, 0) for task in tasks]
    found = generate.questions(tasks, valid(samples={"humaneval": 2, "a_pairs": 1}))
    counts = {"a_pairs": 2, "b_words": 1, "humaneval": 3}
    assert found == [(task, number) for task in tasks for number in range(counts[task.suite])]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_batches_hold_every_question_once_and_verdicts_apart(size: int, asked: Project) -> None:
    chosen = valid(samples={"humaneval": 2, "a_pairs": 1}, batch_size=size)
    questions = generate.questions(all_tasks(asked), chosen)
    batches = list(generate.batches(questions, chosen))
    flat = [(task.id, sample) for batch in batches for task, sample in batch]
    assert sorted(flat) == sorted((task.id, sample) for task, sample in questions)
    for batch in batches:
        assert 1 <= len(batch) <= size
        assert len({(task.kind == "detection", sample > 0) for task, sample in batch}) == 1
        lengths = [len(task.prompt) for task, _ in batch]
        assert lengths == sorted(lengths, reverse=True)
    again = list(generate.batches(questions[::-1], chosen))
    assert len(again) == len(batches) and all(batch in batches for batch in again)


def test_verdicts_have_batches_of_their_own(asked: Project) -> None:
    kinds = ("code", "detection", "explanation", "code", "reference", "detection", "fixing")
    questions = [(suites.Task(f"t{number}", "s", kind, "p"), 0) for number, kind in enumerate(kinds)]
    batches = generate.batches(questions, valid(batch_size=3))
    assert ["".join(task.id[1:] for task, _ in batch) for batch in batches] == ["023", "46", "15"]


def test_the_size_of_a_batch_changes_neither_rows_nor_order(
    asked: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(asked.root)
    found = []
    for size in (1, 4, 100):
        asked_for = valid(batch_size=size, samples={"b_words": 2})
        questions = generate.questions(all_tasks(asked), asked_for)
        rows = generate.generate(questions, Path("models/base"), asked_for, Path(f".partial/{size}"))
        assert [(row["id"], row["sample"]) for row in rows] == [(task.id, n) for task, n in questions]
        found.append([(row["id"], row["sample"], row["suite"], row["prompt"]) for row in rows])
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("limits", "ids"),
    [
        ({}, [*IDS, *(f"HumanEval/{number}" for number in range(4))]),
        (
            {"a_pairs": 1, "b_words": 2, "humaneval": 1},
            ["p0/vulnerable", "p0/fixed", "k0", "k2", "HumanEval/0"],
        ),
    ],
)
def test_every_task_is_answered_once(limits: dict[str, int], ids: list[str], asked: Project) -> None:
    asked.params(generate=parameters(limits=limits))
    asked.run("generate", "base")
    rows = read_rows(asked.root / COMPLETIONS)
    assert [row["id"] for row in rows] == ids and {row["sample"] for row in rows} == {0}
    assert all(1 <= row["new_tokens"] <= 4 for row in rows)
    assert any(row["completion"] for row in rows)


# Prompts. ------------------------------------------------------------------------------------------------


def test_a_prompt_ends_where_the_answer_begins(asked: Project) -> None:
    _, tokenizer = models.load(asked.root / "models/base")
    asked_text = prompts.render(tokenizer, "Say hello.")
    assert asked_text == "<|im_start|>user\nSay hello.<|im_end|>\n<|im_start|>assistant\n"
    learned = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Say hello."}, {"role": "assistant", "content": "Hello."}],
        tokenize=False,
    )
    assert learned.startswith(asked_text + "Hello.")


def test_the_row_keeps_the_prompt_as_it_was_asked(asked: Project) -> None:
    asked.run("generate", "mine", "--model", "models/base", "--suite", "data/benchmarks/b_words.jsonl")
    rows = read_rows(asked.root / "reports/completions/mine.jsonl")
    assert [row["id"] for row in rows] == [row["id"] for row in WORDS]
    for row, task in zip(rows, WORDS, strict=True):
        expected = f"<|im_start|>user\n{task['prompt']}<|im_end|>\n<|im_start|>assistant\n"
        assert (row["suite"], row["prompt"]) == ("b_words", expected)


# Rows. ---------------------------------------------------------------------------------------------------


def test_a_row_says_what_was_answered_and_how_it_ended(
    asked: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    model, tokenizer = models.load(asked.root / "models/base")
    vulnerable, safe = generate.verdict_tokens(tokenizer)
    assert tokenizer.decode([vulnerable])[0] == "V" and tokenizer.decode([safe])[0] == "S"
    first = torch.zeros(len(tokenizer))
    first[vulnerable], first[safe] = 1.23456, -1.0
    said = [tokenizer(text)["input_ids"] for text in ("SAFE", "VULNERABLE CWE-8")]
    told: list[tuple[Any, ...]] = []

    def scripted(*given: Any) -> list[decoding.Reply]:
        told.append(given)
        return [
            decoding.Reply([*said[0], tokenizer.eos_token_id], True, first),
            decoding.Reply(said[1], False, -first),
        ]

    monkeypatch.setattr(decoding, "answer", scripted)
    batch = [(task, 0) for task in all_tasks(asked)[:2]]
    done = list[int]().append
    rows = generate.answers(model, tokenizer, batch, valid(max_new_tokens={"detection": 7}), done)
    common = {"suite": "a_pairs", "sample": 0}
    assert rows == [
        {
            "id": "p0/vulnerable",
            **common,
            "prompt": prompts.render(tokenizer, batch[0][0].prompt),
            "completion": "SAFE",
            "new_tokens": len(said[0]) + 1,
            "ended": "stop",
            "log_odds": 2.2346,
        },
        {
            "id": "p0/fixed",
            **common,
            "prompt": prompts.render(tokenizer, batch[1][0].prompt),
            "completion": "VULNERABLE CWE-8",
            "new_tokens": len(said[1]),
            "ended": "length",
            "log_odds": -2.2346,
        },
    ]
    given = [decoding.Prompt(row["prompt"], 7, prompts.answered_line) for row in rows]
    assert told[0][2:] == (given, decoding.greedy, done)


@pytest.mark.parametrize(
    ("kind", "answer", "ended"),
    [
        ("detection", "SAFE\n", True),
        ("detection", "```\nx\n```", True),
        ("code", "SAFE\n", False),
        ("code", "```\nx\n```", True),
        ("fixing", "SAFE\n", False),
        ("fixing", "```\nx\n```", True),
        ("explanation", "```\nx\n```\n", False),
        ("reference", "```\nx\n```\n", False),
    ],
)
def test_an_answer_ends_where_its_judge_stops_reading(
    kind: str, answer: str, ended: bool, asked: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Callable[[str], bool]] = []

    def scripted(*given: Any) -> list[decoding.Reply]:
        told.append(given[2][0].ended)
        return []

    monkeypatch.setattr(decoding, "answer", scripted)
    _, tokenizer = models.load(asked.root / "models/base")
    with pytest.raises(ValueError, match="zip"):
        generate.answers(None, tokenizer, [(suites.Task("t", "s", kind, "p"), 0)], valid())
    assert told[0](answer) == ended


def test_log_odds_are_those_of_the_verdicts_where_the_answer_begins(asked: Project) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    asked.params(generate=parameters(samples={"a_pairs": 1}))
    asked.run("generate", "base")
    folder = asked.root / "models/base"
    exact = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    _, tokenizer = models.load(folder)
    rows = read_rows(asked.root / COMPLETIONS)
    assert {row["suite"] for row in rows if "log_odds" in row} == {"a_pairs"}
    found = []
    for row in rows:
        if row["suite"] != "a_pairs":
            continue
        given = tokenizer(row["prompt"], return_tensors="pt", add_special_tokens=False)
        with torch.inference_mode():
            odds = torch.log_softmax(exact(**given).logits[0, -1], -1)
        vulnerable, safe = (tokenizer(word)["input_ids"][0] for word in ("VULNERABLE", "SAFE"))
        assert row["log_odds"] == pytest.approx(float(odds[vulnerable] - odds[safe]), abs=0.2)  # bfloat16
        found.append(row["log_odds"])
    assert len(found) == 8 and len({round(odds, 1) for odds in found}) > 1


def test_verdicts_that_begin_alike_are_refused() -> None:
    def tokenizer(text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [5, ord(text[0])]}

    with pytest.raises(
        PipelineError, match=r"^tokenizer: both verdicts begin with token 5; expected different"
    ):
        generate.verdict_tokens(tokenizer)


def test_samples_are_drawn_each_from_a_stream_of_its_own(asked: Project) -> None:
    def rows(**changes: object) -> dict[tuple[str, int], str]:
        lengths = dict.fromkeys(suites.KEYS, 12)
        asked.params(generate=parameters(max_new_tokens=lengths, **changes))
        asked.run("generate", "base")
        found = read_rows(asked.root / COMPLETIONS)
        assert all(row["prompt"] for row in found)
        return {(row["id"], row["sample"]): row["completion"] for row in found}

    def greedy(found: dict[tuple[str, int], str]) -> dict[str, str]:
        return {name: answer for (name, sample), answer in found.items() if sample == 0}

    plain, drawn = rows(), rows(samples={"humaneval": 3, "b_words": 1})
    again, other = rows(samples={"humaneval": 3, "b_words": 1}), rows(samples={"humaneval": 1}, seed=7)
    assert drawn == again and greedy(drawn) == greedy(plain) == greedy(other)
    assert [key for key in drawn if key[0] == "HumanEval/0"] == [("HumanEval/0", n) for n in range(4)]
    assert len(drawn) == 13 + 3 * 4 + 5
    # the four tasks of HumanEval ask the same here: only their streams tell their answers apart
    assert len({drawn[f"HumanEval/{number}", sample] for number in range(4) for sample in (1, 2, 3)}) == 12
    assert len({greedy(drawn)[f"HumanEval/{number}"] for number in range(4)}) == 1
    assert all(other["HumanEval/0", 1] != drawn["HumanEval/0", sample] for sample in (1, 2, 3))


# A run that was killed. ----------------------------------------------------------------------------------


class Batches:
    """Counts the batches that are answered, and ends the run before a chosen one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[list[str]] = []
        self.last: int | None = None
        self.real = generate.answers
        monkeypatch.setattr(generate, "answers", self.answers)

    def answers(self, model: Any, tokenizer: Any, batch: list[generate.Asked], *rest: Any) -> Any:
        if len(self.asked) == self.last:
            raise KeyboardInterrupt
        self.asked.append([task.id for task, _ in batch])
        return self.real(model, tokenizer, batch, *rest)

    def run(self, project: Project, *arguments: str, batches: int | None = None) -> int:
        """Run the stage, only so many batches of it; how many were answered."""
        self.asked, self.last = [], batches
        if batches is None:
            project.run("generate", *arguments)
        else:
            with pytest.raises(KeyboardInterrupt):
                project.run("generate", *arguments)
        return len(self.asked)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Batches:
    return Batches(monkeypatch)


ALL = 4  # batches of the suites above: a pair a side, five words in two, HumanEval


@pytest.mark.parametrize("batches", range(ALL))
def test_a_run_that_was_stopped_goes_on_and_ends_with_the_same_bytes(
    batches: int, asked: Project, counted: Batches, capsys: pytest.CaptureFixture[str]
) -> None:
    assert counted.run(asked, "base") == ALL and partial(asked) == []
    path = asked.root / COMPLETIONS
    whole = path.read_bytes()
    path.unlink()
    assert counted.run(asked, "base", batches=batches) == batches
    assert partial(asked) == [f"{number}.jsonl" for number in range(batches)] and not path.exists()
    capsys.readouterr()
    assert counted.run(asked, "base") == ALL - batches
    assert (f"generate: {batches} of {ALL} batches are in .partial" in capsys.readouterr().out) == (
        batches > 0
    )
    assert path.read_bytes() == whole and partial(asked) == []


def test_a_run_stopped_twice_and_with_samples_ends_with_the_same_bytes(
    asked: Project, counted: Batches
) -> None:
    asked.params(generate=parameters(samples={"humaneval": 2, "a_pairs": 1}, batch_size=2))
    every = counted.run(asked, "base")
    whole = (asked.root / COMPLETIONS).read_bytes()
    counted.run(asked, "base", batches=2)
    counted.run(asked, "base", batches=3)
    assert counted.run(asked, "base") == every - 5
    assert (asked.root / COMPLETIONS).read_bytes() == whole


def test_when_every_batch_is_there_no_model_is_loaded(
    asked: Project, counted: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted.run(asked, "base")
    whole = (asked.root / COMPLETIONS).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(generate.shutil, "rmtree", lambda path: None)
        counted.run(asked, "base")
    monkeypatch.setattr(models, "load", None)
    assert counted.run(asked, "base") == 0 and (asked.root / COMPLETIONS).read_bytes() == whole


# Runs in a process of its own and dies, as kill -9 does it, before a batch or while it is written.
DYING = """
import os, signal, sys
from pathlib import Path
from stages import generate

where, place = sys.argv.pop(1), int(sys.argv.pop(1))
answers, replace = generate.answers, Path.replace
done = 0

def die(*given):
    os.kill(os.getpid(), signal.SIGKILL)

def counting(*given):
    global done
    if done == place:
        if where == "before":
            die()
        Path.replace = die
    done += 1
    return answers(*given)

generate.answers = counting
generate.main()
"""


@pytest.mark.parametrize("where", ["before", "while"])
def test_a_run_that_was_killed_goes_on_and_ends_with_the_same_bytes(
    where: str, asked: Project, counted: Batches
) -> None:
    counted.run(asked, "base")
    path = asked.root / COMPLETIONS
    whole = path.read_bytes()
    path.unlink()
    command = [sys.executable, "-c", DYING, where, "2", "base"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=asked.root, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    torn = [".2.jsonl.part"] if where == "while" else []
    assert partial(asked) == [*torn, "0.jsonl", "1.jsonl"]
    assert counted.run(asked, "base") == ALL - 2
    assert path.read_bytes() == whole and partial(asked) == []


def other_model(project: Project) -> None:
    make_tiny_model(project.root / "models/base", seed=1)


def other_settings_of_the_model(project: Project) -> None:
    path = project.root / "models/base/generation_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "eos_token_id": [2, 300]}))


def other_template(project: Project) -> None:
    path = project.root / "models/base/chat_template.jinja"
    path.write_text(path.read_text().replace("assistant", "helper"))


def other_parameters(**changes: object) -> Callable[[Project], None]:
    def change(project: Project) -> None:
        project.params(generate=parameters(**changes))

    return change


def other_rows(name: str, rows: list[dict[str, Any]]) -> Callable[[Project], None]:
    def change(project: Project) -> None:
        (project.root / "data/benchmarks/b_words.jsonl").unlink()
        write_rows(project.root / f"data/benchmarks/{name}.jsonl", rows)

    return change


CHANGES = {
    "model": other_model,
    "its settings": other_settings_of_the_model,
    "its template": other_template,
    "max_new_tokens": other_parameters(max_new_tokens=dict.fromkeys(suites.KEYS, 5)),
    "batch_size": other_parameters(batch_size=5),
    "temperature": other_parameters(temperature=0.5),
    "seed": other_parameters(seed=1),
    "samples": other_parameters(samples={"b_words": 1}),
    "limits": other_parameters(limits={"b_words": 4}),
    "prompt": other_rows("b_words", [{**WORDS[0], "prompt": "another word "}, *WORDS[1:]]),
    "id": other_rows("b_words", [{**WORDS[0], "id": "k9"}, *WORDS[1:]]),
    "order": other_rows("b_words", WORDS[::-1]),
    "suite": other_rows("c_words", WORDS),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_batches_of_another_run_are_never_taken(
    change: Callable[[Project], None], asked: Project, counted: Batches
) -> None:
    counted.run(asked, "base", batches=2)
    change(asked)
    many = counted.run(asked, "base")
    after = (asked.root / COMPLETIONS).read_bytes()
    assert counted.run(asked, "base") == many and (asked.root / COMPLETIONS).read_bytes() == after
    assert partial(asked) == ["0.jsonl", "1.jsonl"]  # of the run that was stopped


def test_what_asks_the_same_takes_the_same_batches(asked: Project, counted: Batches) -> None:
    counted.run(asked, "base", batches=2)
    asked.params(generate=parameters(limits={"b_words": 5, "humaneval": 99}))
    assert counted.run(asked, "mine", "--model", "models/base") == ALL - 2 and partial(asked) == []


def test_the_code_and_its_libraries_are_part_of_the_key(
    asked: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    questions, folder = generate.questions(all_tasks(asked), valid()), asked.root / "models/base"
    keys = {generate.key(questions, folder, valid())}
    assert keys == {generate.key(questions, folder, valid())}
    made = program.describe("generate")
    for part in ("modules", "packages"):
        with monkeypatch.context() as patch:
            found = {"generate": {**made, part: {**made[part], "new": "1"}}}
            patch.setattr(program, "describe", found.__getitem__)
            keys.add(generate.key(questions, folder, valid()))
    for place, name, value in (
        (torch, "__version__", "0"),
        (torch, "get_num_threads", lambda: 99),
        (models, "device", lambda: "tpu"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, value)
            keys.add(generate.key(questions, folder, valid()))
    assert len(keys) == 1 + 2 + 3


# What cannot be asked. -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mine", "--model", "empty"], "empty: no config.json"),
        (["mine", "--model", "unweighted"], "unweighted: no *.safetensors"),
        (["mine", "--model", "nowhere"], "nowhere: no config.json"),
        (["mine"], "mine: no such model; expected base, tuned, or --model with a folder"),
        (["tuned"], "models/merged: no config.json"),
        (["base", "--suite", "nowhere.jsonl"], "nowhere.jsonl: not found"),
    ],
)
def test_what_cannot_be_asked_ends_with_one_message(
    arguments: list[str], message: str, asked: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    (asked.root / "empty").mkdir()
    unweighted = asked.root / "unweighted"
    unweighted.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (unweighted / name).write_text("{}")
    before = asked.files()
    assert asked.command("generate", *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1
    assert asked.files() == before


LENGTHS = dict.fromkeys(suites.KEYS, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"max_new_tokens": {"code": 4, "reference": 4}},
            "max_new_tokens.detection: nothing; expected a value",
        ),
        (
            {"max_new_tokens": {**LENGTHS, "poem": 4}},
            "max_new_tokens.poem: no such kind; expected detection, ",
        ),
        ({"max_new_tokens": {**LENGTHS, "code": 0}}, "max_new_tokens.code: 0; expected greater than"),
        ({"limits": {"nothing": 4}}, "limits.nothing: no such suite; expected a file of data/benchmarks"),
        ({"limits": {"a_pairs": 0}}, "limits.a_pairs: 0; expected greater than"),
        ({"samples": {"nothing": 4}}, "samples.nothing: no such suite; expected a file of data/benchmarks"),
        ({"samples": {"a_pairs": 0}}, "samples.a_pairs: 0; expected greater than"),
        ({"samples": {"a_pairs": 1.5}}, "samples.a_pairs: 1.5; expected a valid integer"),
        ({"samples": None}, "samples: None; expected "),
        ({"batch_size": 0}, "batch_size: 0; expected greater than"),
        ({"temperature": 0}, "temperature: 0; expected greater than 0"),
        ({"temperature": 2.1}, "temperature: 2.1; expected less than or equal to 2"),
        ({"seed": "one"}, "seed: 'one'; expected a valid integer"),
        ({"top_p": 0.9}, "top_p: 0.9; expected no such key"),
    ],
)
def test_a_bad_parameter_is_named(
    changes: dict[str, object], message: str, asked: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    asked.params(generate=parameters(**changes))
    before = asked.files()
    assert asked.command("generate", "base") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: generate.{message}") and error.count("\n") == 1
    assert asked.files() == before


@pytest.mark.parametrize("key", ["max_new_tokens", "batch_size", "limits", "samples", "temperature", "seed"])
def test_a_missing_parameter_is_named(key: str, asked: Project) -> None:
    given = parameters()
    del given[key]
    asked.params(generate=given)
    with pytest.raises(PipelineError, match=rf"^generate\.{key}: nothing; expected a value"):
        asked.run("generate", "base")


def test_one_suite_needs_the_lengths_of_its_own_kinds_and_no_suites_that_are_named(asked: Project) -> None:
    limits = {"limits": {"humaneval": 1}, "samples": {"humaneval": 2, "b_words": 1}}
    asked.params(generate=parameters(max_new_tokens={"reference": 4}, **limits))
    asked.run("generate", "base", "--suite", "data/benchmarks/b_words.jsonl")
    assert len(read_rows(asked.root / COMPLETIONS)) == 2 * len(WORDS)
    with pytest.raises(
        PipelineError, match=r"^generate\.max_new_tokens\.detection: nothing; expected a value"
    ):
        asked.run("generate", "base", "--suite", "data/benchmarks/a_pairs.jsonl")
