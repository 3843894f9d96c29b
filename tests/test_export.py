"""The merged model: the same as base and adapter together, proved before anything is written."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from conftest import Project, write_rows

from stages import export
from stages.common import models
from stages.common.errors import PipelineError
from stages.common.records import Example, to_row

QUESTIONS = ["Is this code secure?\n\n```python\neval(text)\n```", "Add two numbers.", "Say hello."]
EXAMPLES = [
    Example(
        f"coding/{number}/write", f"coding/{number}", "coding", "MIT", "1.0", "", "write", question, "Answer."
    )
    for number, question in enumerate(QUESTIONS)
]


def make_adapter(base: Path, folder: Path, scale: float) -> None:
    """An adapter of seeded random weights that changes the base by `scale`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for name, tensor in model.named_parameters():
        if "lora_B" in name:
            tensor.data.normal_().mul_(scale)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)


def prepare(project: Project, model: Path, scale: float, min_agreement: float = 0.9) -> None:
    base = project.base(model)
    make_adapter(base, project.root / "models/sft", scale)
    write_rows(project.root / "data/mixed/train.jsonl", map(to_row, EXAMPLES))
    project.params(export={"parity_prompts": 2, "min_agreement": min_agreement})


def answers(folder: Path, adapter: Path | None = None) -> list[Any]:
    """The next token's log-probabilities of a model on disk."""
    from peft import PeftModel

    model, tokens = models.load(folder)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter).eval()
    return export.log_probabilities(model, tokens, QUESTIONS)


def test_the_merged_model_is_base_and_adapter_in_one(project: Project, tiny_model: Path) -> None:
    prepare(project, tiny_model, scale=0.2)
    project.run("export")
    base, merged = (project.root / "models" / name for name in ("base", "merged"))
    tuned = answers(base, project.root / "models/sft")
    same = export.parity(tuned, answers(merged))
    changed = export.parity(answers(base), tuned)
    assert same["agreement"] > 0.95 and same["divergence"] < 1e-3
    assert changed["agreement"] < 0.9 and changed["divergence"] > 100 * same["divergence"]
    report = json.loads((project.root / "reports/export.json").read_text(encoding="utf-8"))
    assert report["agreement"] > 0.95 and report["divergence"] < 1e-3
    _, tokens = models.load(merged)
    rendered = [
        tokens.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        for question in QUESTIONS[:2]
    ]
    assert report["tokens"] == sum(len(tokens(text)["input_ids"]) for text in rendered)
    assert not list(merged.glob("adapter*"))


def test_the_card_tells_where_the_model_comes_from(project: Project, tiny_model: Path) -> None:
    from ruamel.yaml import YAML

    prepare(project, tiny_model, scale=0.2)
    project.run("export")
    _, front, text = (project.root / "models/merged/README.md").read_text(encoding="utf-8").split("---\n", 2)
    report = json.loads((project.root / "reports/export.json").read_text(encoding="utf-8"))
    head = YAML(typ="safe").load(front)
    assert (head["license"], head["pipeline_tag"]) == ("apache-2.0", "text-generation")
    assert f"`file:{tiny_model}`" in text
    assert f"{report['agreement']:.1%} of {report['tokens']}" in text


@pytest.mark.parametrize(
    ("scale", "min_agreement", "found"),
    [(0.2, 1.0, r"0\.\d+"), (math.nan, 0.0, r"\d\.\d+")],
    ids=["too low", "not finite"],
)
def test_models_that_disagree_are_refused_and_nothing_is_written(
    scale: float,
    min_agreement: float,
    found: str,
    project: Project,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepare(project, tiny_model, scale, min_agreement)
    honest = export.parity

    def rolled(before: list[Any], after: list[Any]) -> dict[str, float]:
        return honest(before, [part.roll(1, -1) for part in after])  # another most likely token

    if not math.isnan(scale):
        monkeypatch.setattr(export, "parity", rolled)
    earlier = project.root / "models/merged/config.json"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("{}")
    before = project.files()
    with pytest.raises(PipelineError, match=f"agree on {found} of the tokens; .*{min_agreement}"):
        project.run("export")
    assert project.files() == before


def test_no_training_row_is_refused(project: Project) -> None:
    base = project.root / "models/base"
    base.mkdir(parents=True)
    (base / "manifest.json").write_text("{}")
    write_rows(project.root / "data/mixed/train.jsonl", [])
    project.params(export={"parity_prompts": 2, "min_agreement": 0.9})
    with pytest.raises(PipelineError, match="0 rows; expected some to compare the models on"):
        project.run("export")


def test_parity_by_hand() -> None:
    from torch import tensor

    first = [tensor([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]]).log(), tensor([[0.25, 0.5, 0.25]]).log()]
    second = [tensor([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]]).log(), tensor([[0.25, 0.5, 0.25]]).log()]
    same, other = export.parity(first, first), export.parity(first, second)
    assert same == {"agreement": 1.0, "divergence": 0.0, "largest": 0.0, "tokens": 3}
    assert other["agreement"] == pytest.approx(2 / 3)
    assert other["divergence"] == pytest.approx((0.5 * math.log(2) - 0.25 * math.log(2)) / 3)
    assert other["largest"] == pytest.approx(math.log(2))
    assert other["tokens"] == 3
