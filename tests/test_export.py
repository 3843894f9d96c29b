"""The merged model: the same as base and adapter together, proved before anything is written."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Project, make_tiny_model, write_rows

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


def make_adapter(base: Path, folder: Path, scale: float, **more: Any) -> None:
    """An adapter of seeded random weights that changes the base by `scale`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    targets = ["q_proj", "down_proj"]
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM", **more)
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


def outputs(folder: Path, adapter: Path | None = None) -> list[Any]:
    """The logits of a model on disk."""
    from peft import PeftModel

    model, tokens = models.load(folder)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter).eval()
    return export.logits(model, tokens, QUESTIONS)


def test_the_merged_model_is_base_and_adapter_in_one(project: Project, tiny_model: Path) -> None:
    prepare(project, tiny_model, scale=0.2)
    project.run("export")
    base, merged = (project.root / "models" / name for name in ("base", "merged"))
    tuned = outputs(base, project.root / "models/sft")
    same = export.parity(tuned, outputs(merged))
    changed = export.parity(outputs(base), tuned)
    assert same["agreement"] > 0.95 and same["divergence"] < 1e-3
    assert changed["agreement"] < 0.9 and changed["divergence"] > 100 * same["divergence"]
    report = json.loads((project.root / "reports/export.json").read_text(encoding="utf-8"))
    assert report["agreement"] > 0.95 and report["divergence"] < 1e-3
    assert (report["same_answers"], report["answers"]) == (3, 3) and 0 < report["largest_logit"] < 1
    _, tokens = models.load(merged)
    rendered = [
        tokens.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        for question in QUESTIONS[:2]
    ]
    assert report["tokens"] == sum(len(tokens(text)["input_ids"]) for text in rendered)
    assert not list(merged.glob("adapter*"))


def test_it_answers_by_default_as_it_was_judged(project: Project, tiny_model: Path) -> None:
    from transformers import GenerationConfig

    prepare(project, tiny_model, scale=0.2)
    path = project.root / "models/base/generation_config.json"
    tokens = {"eos_token_id": [2, 0], "pad_token_id": 0}
    own = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.1}
    path.write_text(json.dumps(tokens | own), encoding="utf-8")  # as Qwen2.5-Coder's
    project.run("export")
    found = GenerationConfig.from_pretrained(project.root / "models/merged")
    assert {name: getattr(found, name) for name in own} == dict.fromkeys(own)
    assert {name: getattr(found, name) for name in tokens} == tokens


@pytest.mark.parametrize("method", ["use_dora", "use_rslora"])
def test_kin_of_lora_are_merged_as_well(method: str, project: Project, tiny_model: Path) -> None:
    prepare(project, tiny_model, scale=0.2)
    make_adapter(project.root / "models/base", project.root / "models/sft", 0.2, **{method: True})
    project.run("export")
    base, merged = (project.root / "models" / name for name in ("base", "merged"))
    tuned = outputs(base, project.root / "models/sft")
    assert export.parity(tuned, outputs(merged))["agreement"] > 0.95
    assert export.parity(outputs(base), tuned)["agreement"] < 0.95


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
    assert same == {"agreement": 1.0, "divergence": 0.0, "largest": 0.0, "largest_logit": 0.0, "tokens": 3}
    assert other["agreement"] == pytest.approx(2 / 3)
    assert other["divergence"] == pytest.approx((0.5 * math.log(2) - 0.25 * math.log(2)) / 3)
    assert other["largest"] == pytest.approx(math.log(2))
    assert other["tokens"] == 3
    shifted = export.parity(first, [part + 1.5 for part in first])  # other logits, same probabilities
    assert shifted["largest_logit"] == pytest.approx(1.5)
    assert shifted["largest"] == pytest.approx(0, abs=1e-6)


def test_answers_that_differ_are_counted(
    project: Project, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(project, tiny_model, scale=0.2)
    given = iter([[[1], [2], [3]], [[1], [2, 0], [4]]])
    monkeypatch.setattr(export, "answers", lambda *_: next(given))
    project.run("export")
    report = json.loads((project.root / "reports/export.json").read_text(encoding="utf-8"))
    assert (report["same_answers"], report["answers"]) == (1, 3)


def test_comparing_leaves_the_tokenizer_as_it_was_trained_with(project: Project, tiny_model: Path) -> None:
    prepare(project, tiny_model, scale=0.2)
    project.run("export")
    saved = json.loads((project.root / "models/merged/tokenizer.json").read_text(encoding="utf-8"))
    assert (saved["padding"], saved["truncation"]) == (None, None)


# What is wrong with an adapter or a base that do not fit. ------------------------------------------------


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def change_weights(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def first_shorter(weights: dict[str, Any]) -> None:
    name = min(weights)
    weights[name] = weights[name][:, :-1].contiguous()


def renamed(weights: dict[str, Any]) -> None:
    weights[f"{min(weights)}.more"] = weights.pop(min(weights))


def whole_model(sft: Path, seed: int) -> None:
    """A model of which every weight was trained, in place of the adapter."""
    for path in sft.iterdir():
        path.unlink()
    make_tiny_model(sft, seed)


def test_a_model_of_which_every_weight_was_trained_is_rounded_and_compared(
    project: Project, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(models, "compute_dtype", lambda: torch.bfloat16)
    prepare(project, tiny_model, scale=0.2)
    whole_model(project.root / "models/sft", seed=1)
    project.run("export")
    merged, base = (project.root / "models" / name for name in ("merged", "base"))
    exported = AutoModelForCausalLM.from_pretrained(merged, dtype="auto")
    given = AutoModelForCausalLM.from_pretrained(project.root / "models/sft", dtype="auto")
    assert (given.dtype, exported.dtype) == (torch.float32, torch.bfloat16)
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(given.get_parameter(name).to(exported.dtype), exported.get_parameter(name))
    report = json.loads((project.root / "reports/export.json").read_text(encoding="utf-8"))
    assert report["agreement"] > 0.9 and 0 < report["largest_logit"] < 1
    assert export.parity(outputs(base), outputs(merged))["agreement"] < 0.9, "it is not the base"


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no configuration": (
        lambda sft: (sft / "adapter_config.json").unlink(),
        "models/sft: no adapter_config.json; expected an adapter",
    ),
    "configuration cut off": (
        lambda sft: (sft / "adapter_config.json").write_text('{"r": 4'),
        "adapter_config.json: .*expected one JSON object",
    ),
    "another method": (
        lambda sft: rewrite(sft / "adapter_config.json", lambda value: value.update(peft_type="NONE")),
        r"adapter_config\.json: peft_type: 'NONE'; expected LORA: nothing else can be merged",
    ),
    "layers that the base lacks": (
        lambda sft: rewrite(sft / "adapter_config.json", lambda value: value.update(target_modules=["c"])),
        "models/sft: Target modules .*not found.*; expected an adapter of models/base",
    ),
    "another base": (
        lambda sft: rewrite(sft / "adapter_config.json", lambda value: value.update(revision="a" * 40)),
        "revision: 'aaaa.*; expected that of file:.*, which models/base holds",
    ),
    "no weights": (
        lambda sft: (sft / "adapter_model.safetensors").unlink(),
        "models/sft: no adapter_model.safetensors; expected an adapter",
    ),
    "weights cut off": (
        lambda sft: (sft / "adapter_model.safetensors").write_bytes(b"\x10"),
        "models/sft: .*header.*expected an adapter of models/base",
    ),
    "wrong shape": (
        lambda sft: change_weights(sft / "adapter_model.safetensors", first_shorter),
        "models/sft: .*size mismatch for .*expected an adapter of models/base",
    ),
    "a layer too few": (
        lambda sft: change_weights(sft / "adapter_model.safetensors", lambda all: all.pop(min(all))),
        "models/sft: 1 tensors such as .* are not in adapter_model.safetensors",
    ),
    "another layer": (
        lambda sft: change_weights(sft / "adapter_model.safetensors", renamed),
        "models/sft: 2 tensors such as .*adapter_model.safetensors",
    ),
    "a broken tokenizer": (
        lambda sft: (sft / "tokenizer.json").write_text("{}"),
        "models/sft: .*expected a tokenizer with a chat template",
    ),
    "a tokenizer of more tokens": (
        lambda sft: rewrite(
            sft / "tokenizer.json",
            lambda value: value["added_tokens"].append(
                {**value["added_tokens"][0], "id": 512, "content": "<x>"}
            ),
        ),
        r"models/sft: a tokenizer of \d+ tokens; expected \d+, as models/base has",
    ),
    "virtual tokens": (
        lambda sft: rewrite(
            sft / "adapter_config.json", lambda value: value.update(peft_type="PREFIX_TUNING")
        ),
        r"peft_type: 'PREFIX_TUNING'; expected LORA.*train\.adapter\.method",
    ),
    "a whole model without weights": (
        lambda sft: (whole_model(sft, 0), (sft / "model.safetensors").unlink()),
        r"models/sft: no \*\.safetensors",
    ),
    "a whole model cut off": (
        lambda sft: (whole_model(sft, 0), (sft / "model.safetensors").write_bytes(b"\x10")),
        r"models/sft: .*header.*expected a model folder \(train writes it\)",
    ),
    "a broken base": (
        lambda sft: (sft.parent / "base/model.safetensors").write_bytes(b"\x10"),
        "models/base: .*header.*expected a model folder",
    ),
}


@pytest.mark.filterwarnings("ignore:Found missing adapter keys", "ignore:Already found")
@pytest.mark.parametrize("name", FAULTS)
def test_what_does_not_fit_is_told_in_one_line_and_nothing_is_written(
    name: str, project: Project, tiny_model: Path
) -> None:
    break_it, told = FAULTS[name]
    prepare(project, tiny_model, scale=0.2)
    break_it(project.root / "models/sft")
    before = project.files()
    with pytest.raises(PipelineError, match=told) as caught:
        project.run("export")
    assert "\n" not in str(caught.value) and project.files() == before
