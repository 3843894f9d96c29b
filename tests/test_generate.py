"""Answers of a model: one a task, in the order of the tasks, however they are batched."""

from pathlib import Path

import pytest
from conftest import Project, chosen, read_rows, write_rows

from stages import generate
from stages.common import models, suites
from stages.common.errors import PipelineError
from stages.common.params import validate

KEYWORDS = [
    {"id": f"k{number}", "kind": "keywords", "prompt": "word " * (1 + number * 7 % 5), "all_of": [["try"]]}
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


def parameters(**changes: object) -> dict[str, object]:
    lengths = dict.fromkeys(suites.KEYS, 4)
    return {**chosen("generate"), "max_new_tokens": lengths, "batch_size": 4, "limits": {}, **changes}


@pytest.fixture
def asked(project: Project, tiny_model: Path) -> Project:
    """A project with a base model, two suites and HumanEval."""
    project.base(tiny_model)
    project.params(generate=parameters())
    write_rows(project.root / "data/benchmarks/a_pairs.jsonl", PAIRS)
    write_rows(project.root / "data/benchmarks/b_words.jsonl", KEYWORDS)
    write_rows(project.root / "data/raw/humaneval.jsonl", HUMANEVAL)
    return project


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_batches_hold_every_task_once_and_one_kind_each(size: int, asked: Project) -> None:
    benchmarks, humaneval = asked.root / "data/benchmarks", asked.root / "data/raw/humaneval.jsonl"
    tasks = suites.load_all(benchmarks, humaneval)
    batches = list(generate.batches(tasks, size))
    assert sorted(task.id for batch in batches for task in batch) == sorted(task.id for task in tasks)
    for batch in batches:
        assert 1 <= len(batch) <= size
        assert len({task.kind for task in batch}) == 1
        lengths = [len(task.prompt) for task in batch]
        assert lengths == sorted(lengths, reverse=True)
    assert list(generate.batches(tasks[::-1], size)) == batches


def test_the_size_of_a_batch_changes_neither_rows_nor_order(asked: Project) -> None:
    benchmarks, humaneval = asked.root / "data/benchmarks", asked.root / "data/raw/humaneval.jsonl"
    tasks = suites.load_all(benchmarks, humaneval)
    found = []
    for size in (1, 4, 100):
        asked_for = validate(parameters(batch_size=size), "generate", generate.GenerateParams)
        rows = generate.generate(tasks, asked.root / "models/base", asked_for)
        found.append([(row["id"], row["suite"], row["prompt"]) for row in rows])
    assert [task.id for task in tasks] == [name for name, _, _ in found[0]]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("limits", "ids"),
    [
        ({}, [*IDS, *(f"HumanEval/{number}" for number in range(4))]),
        ({"a_pairs": 1, "b_words": 2, "humaneval": 1}, ["p0/vulnerable", "k0", "k2", "HumanEval/0"]),
    ],
)
def test_every_task_is_answered_once(limits: dict[str, int], ids: list[str], asked: Project) -> None:
    asked.params(generate=parameters(limits=limits))
    asked.run("generate", "base")
    rows = read_rows(asked.root / "reports/completions/base.jsonl")
    assert [row["id"] for row in rows] == ids
    assert all(0 <= row["new_tokens"] <= 4 for row in rows)
    assert any(row["completion"] for row in rows)


def test_a_prompt_ends_where_the_answer_begins(asked: Project) -> None:
    _, tokenizer = models.load(asked.root / "models/base")
    asked_text = generate.render(tokenizer, "Say hello.")
    assert asked_text == "<|im_start|>user\nSay hello.<|im_end|>\n<|im_start|>assistant\n"
    learned = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Say hello."}, {"role": "assistant", "content": "Hello."}],
        tokenize=False,
    )
    assert learned.startswith(asked_text + "Hello.")


def test_the_row_keeps_the_prompt_as_it_was_asked(asked: Project) -> None:
    asked.run("generate", "mine", "--model", "models/base", "--suite", "data/benchmarks/b_words.jsonl")
    rows = read_rows(asked.root / "reports/completions/mine.jsonl")
    assert [row["id"] for row in rows] == [row["id"] for row in KEYWORDS]
    for row, task in zip(rows, KEYWORDS, strict=True):
        expected = f"<|im_start|>user\n{task['prompt']}<|im_end|>\n<|im_start|>assistant\n"
        assert (row["suite"], row["prompt"]) == ("b_words", expected)


def test_an_answer_ends_at_the_end_token_and_padding_does_not_count(tiny_model: Path) -> None:
    import torch

    model, tokenizer = models.load(tiny_model)
    tokenizer.padding_side = "left"
    answer = tokenizer("SAFE")["input_ids"]

    class Scripted:
        """Answers `SAFE` and its end to the first prompt, which pads it, and twice as much to the second."""

        device = model.device

        def generate(self, input_ids: torch.Tensor, **_: object) -> torch.Tensor:
            short = [*answer, tokenizer.eos_token_id, *[tokenizer.pad_token_id] * (len(answer) - 1)]
            return torch.cat([input_ids, torch.tensor([short, answer * 2], device=input_ids.device)], dim=1)

    found = generate.answers(Scripted(), tokenizer, ["Say so, and no more.", "Again."], 2 * len(answer))
    assert found == [("SAFE", len(answer) + 1), ("SAFESAFE", 2 * len(answer))]


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


def test_a_kind_without_a_length_is_named(asked: Project) -> None:
    asked.params(generate=parameters(max_new_tokens={"code": 4, "keywords": 4}))
    with pytest.raises(
        PipelineError, match=r"generate\.max_new_tokens\.detection: nothing; expected a value"
    ):
        asked.run("generate", "base")
