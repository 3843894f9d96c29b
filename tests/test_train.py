"""Training on a tiny model: what is learned from, what is trained, and that a seed decides the bytes."""

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Project, chosen, composed, write_rows
from ruamel.yaml import YAML

from stages.common import callbacks, files, finetuning, memory, prompts
from stages.common.errors import PipelineError
from stages.common.params import validate
from stages.common.records import Example, to_row

TRAINABLE = 2 * 16 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128))  # layers, rank, q o, k v, gate up down

EXAMPLES = [  # the shortest first, as they are sorted within an optimizer step
    Example(
        f"coding/{number}/write", f"coding/{number}", "coding", "MIT", "1.0", "", "write", prompt, completion
    )
    for number, (prompt, completion) in enumerate(
        [
            ("Say hello.", "Hello."),
            ("Add two numbers.", "```python\ndef add(first, second):\n    return first + second\n```"),
            ("Is this code secure?\n\n```python\nint(text)\n```", "SAFE\nA number is all that comes of it."),
            (
                "Is this code secure?\n\n```python\neval(text)\n```",
                "VULNERABLE CWE-94\nIt runs what it is given.",
            ),
        ]
    )
]


def settings(**changes: Any) -> dict[str, Any]:
    """The default parameters with changes that suit the tiny model."""
    small = {"batch_size": 4, "accumulation": 1, "epochs": 1, "learning_rate": 0.01, "max_length": 256}
    small |= {"save_steps": 4, "probe": {"steps": 10, "prompts": 6, "max_new_tokens": 8}}
    return {**chosen("train"), **small, **changes}


def prepare(project: Project, model: Path, **changes: Any) -> None:
    """Put a base model, parameters and a preflight that fits them into a project."""
    from transformers import AutoConfig

    project.base(model)
    values = settings(**changes)
    project.params(train=values)
    try:
        wanted = validate(values, "train", finetuning.TrainParams)
    except PipelineError:  # what the run itself is to say
        return
    count = memory.trained(memory.skeleton(AutoConfig.from_pretrained(model)), wanted)
    files.write_json(project.root / "reports/preflight.json", {"trainable_parameters": count})


class Run:
    """One run of `main`: its trainer, and where its files lie."""

    def __init__(self, project: Project, trainer: Any, answers_only: bool) -> None:
        self.root = project.root
        self.trainer = trainer
        self.answers_only = answers_only  # whether TRL scored the positions with a label alone
        self.report = json.loads((self.root / "reports/train.json").read_text(encoding="utf-8"))

    @property
    def adapter(self) -> bytes:
        return (self.root / "models/sft/adapter_model.safetensors").read_bytes()

    def batch(self) -> dict[str, Any]:
        """All examples as the model gets them."""
        return self.trainer.data_collator(list(self.trainer.train_dataset))


def trained(root: Path, model: Path, repeat: int = 1, valid: int = 2, **changes: Any) -> Run:
    """Run `main` in a fresh project, with the first `valid` examples to validate on."""
    import trl

    root.mkdir(exist_ok=True)
    project = Project(root)
    prepare(project, model, **changes)
    write_rows(root / "data/mixed/train.jsonl", map(to_row, EXAMPLES * repeat))
    write_rows(root / "data/mixed/valid.jsonl", map(to_row, EXAMPLES[:valid]))
    seen = []

    class Watched(trl.SFTTrainer):  # type: ignore[misc]
        def train(self, *arguments: Any, **options: Any) -> Any:
            seen.append((self, trl.trainer.utils._use_triton(self.args.device)))
            return super().train(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trl, "SFTTrainer", Watched)
        patch.setattr(trl.trainer.utils, "_use_triton", trl.trainer.utils._use_triton)  # put back afterwards
        project.run("train")
    return Run(project, *seen[0])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Run:
    """Some steps on repeated examples, quantised, in the chat format, with loss on the answers."""
    return trained(tmp_path_factory.mktemp("run"), tiny_model, repeat=4, epochs=8)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Run:
    """One step in the reference's format, with loss on everything, plain weights and no validation."""
    folder = tmp_path_factory.mktemp("reference")
    return trained(folder, tiny_model, valid=0, template="alpaca", loss="full", quantization="none")


# What is trained. --------------------------------------------------------------------------------------


def test_the_loss_falls(run: Run) -> None:
    curve = run.root / "reports/train/plots/metrics/loss.tsv"
    losses = [float(row["loss"]) for row in csv.DictReader(curve.open(encoding="utf-8"), delimiter="\t")]
    assert len(losses) == run.report["steps"] == 32
    assert losses[-1] < 0.7 * losses[0]
    assert run.report["loss"] == pytest.approx(sum(losses[-3:]) / 3)
    assert run.report["valid_loss"] < losses[0]


def test_without_rows_to_validate_on_there_is_no_validation_loss(run: Run, reference: Run) -> None:
    assert set(run.report) - set(reference.report) == {"valid", "valid_loss", "valid_step"}
    assert math.isfinite(reference.report["loss"])


def test_the_adapter_holds_lora_tensors_alone_in_full_precision(run: Run) -> None:
    import torch
    from safetensors.torch import load

    tensors = load(run.adapter)
    assert len(tensors) == 2 * 2 * 7  # A and B, layers, projections
    assert all(name.endswith(("lora_A.weight", "lora_B.weight")) for name in tensors)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert all(tensor.abs().max() > 0 for tensor in tensors.values())
    assert sum(tensor.numel() for tensor in tensors.values()) == TRAINABLE


def test_only_the_adapter_is_trainable(run: Run) -> None:
    trainable = {name for name, tensor in run.trainer.model.named_parameters() if tensor.requires_grad}
    assert trainable and all("lora_" in name for name in trainable)
    assert run.report["trainable_parameters"] == TRAINABLE


def test_the_output_is_an_adapter_with_its_tokenizer_and_nothing_else(run: Run) -> None:
    names = {path.name for path in (run.root / "models").glob("sft/*")}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth")) or "checkpoint" in name]
    assert sorted(path.name for path in (run.root / "models").iterdir()) == ["base", "sft"]


def test_a_seed_decides_the_bytes(tmp_path: Path, tiny_model: Path) -> None:
    seeds = {"first": 1, "again": 1, "other": 2}
    adapters = {name: trained(tmp_path / name, tiny_model, seed=seed).adapter for name, seed in seeds.items()}
    assert adapters["first"] == adapters["again"]
    assert adapters["first"] != adapters["other"]


def test_the_settings_of_the_full_scale_train_too(tmp_path: Path, tiny_model: Path) -> None:
    full = YAML(typ="safe").load(composed("v3", "full"))["train"]
    names = ("accumulation", "batch_size", "checkpointing", "loss", "sampling", "template")
    result = trained(tmp_path, tiny_model, repeat=4, **{name: full[name] for name in names})
    assert result.report["steps"] == len(EXAMPLES) * 4 // (full["batch_size"] * full["accumulation"])
    assert math.isfinite(result.report["loss"]) and math.isfinite(result.report["valid_loss"])
    assert result.trainer.model.is_gradient_checkpointing == full["checkpointing"]


def test_qwen_has_the_trainable_parameters_that_were_published() -> None:
    import torch
    from peft import get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "qwen2",
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=151936,
        tie_word_embeddings=True,
    )
    adapter = validate(chosen("train")["adapter"], "train.adapter", finetuning.LoraParams)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        total = model.num_parameters()
        trainable, _ = get_peft_model(
            model, finetuning.lora(adapter, task_type="CAUSAL_LM")
        ).get_nb_trainable_parameters()
    assert (trainable, total) == (8_798_208, 494_032_768)


# What is learned from. ---------------------------------------------------------------------------------


def kept(batch: dict[str, Any], row: int) -> list[int]:
    return [label for label in batch["labels"][row].tolist() if label != -100]


def test_the_loss_is_on_the_answer_and_its_end_alone(run: Run) -> None:
    tokens, batch = run.trainer.processing_class, run.batch()
    for row, example in enumerate(EXAMPLES):
        mask = batch["attention_mask"][row].bool()
        labels = batch["labels"][row]
        asked = [{"role": "user", "content": example.prompt}]
        prompt = tokens.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        unlabelled = batch["input_ids"][row][mask & (labels == -100)]
        assert tokens.decode(unlabelled) == prompt
        assert tokens.decode(kept(batch, row)) == f"{example.completion}<|im_end|>\n"
        assert tokens.eos_token_id in kept(batch, row)
        assert (labels[~mask] == -100).all()


def test_padding_is_not_the_end_token(run: Run) -> None:
    tokens, batch = run.trainer.processing_class, run.batch()
    padding = batch["input_ids"][~batch["attention_mask"].bool()]
    assert len(padding) and set(padding.tolist()) == {tokens.pad_token_id}
    assert tokens.pad_token_id != tokens.eos_token_id
    assert (batch["labels"] != tokens.pad_token_id).all()


def test_the_reference_learns_the_prompt_too(reference: Run) -> None:
    tokens, batch = reference.trainer.processing_class, reference.batch()
    for row, example in enumerate(EXAMPLES):
        whole = f"### Instruction:\n{example.prompt}\n\n### Response:\n{example.completion}<|im_end|>"
        assert tokens.decode(kept(batch, row)) == whole


@pytest.mark.parametrize("given", ["", "1, 2"])
def test_alpaca_is_the_format_of_the_reference(given: str, reference: Run) -> None:
    tokens = reference.trainer.processing_class
    asked = [{"role": "user", "content": prompts.with_input("Add.", given)}]
    answered = [*asked, {"role": "assistant", "content": "3"}]
    expected = (
        "### Instruction:\nAdd.\n\n" + (f"### Input:\n{given}\n\n" if given else "") + "### Response:\n"
    )
    prompt = tokens.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert prompt == expected
    assert tokens.apply_chat_template(answered, tokenize=False) == f"{expected}3<|im_end|>"


def test_the_template_travels_with_the_adapter(run: Run, reference: Run) -> None:
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(reference.root / "models/sft").chat_template == prompts.ALPACA
    assert "<|im_start|>" in AutoTokenizer.from_pretrained(run.root / "models/sft").chat_template


def test_truncated_examples_are_counted(run: Run) -> None:
    tokens = run.trainer.processing_class
    lengths = finetuning.lengths(EXAMPLES, tokens)
    assert lengths == [len(row["input_ids"]) for row in run.trainer.train_dataset][: len(EXAMPLES)]
    assert run.report["truncated"] == 0


# Other methods, and what validation does. ---------------------------------------------------------------

LAYERS = ["q_proj", "down_proj"]
METHODS: dict[str, dict[str, Any]] = {
    "dora": {"rank": 4, "alpha": 8, "dropout": 0.1, "targets": LAYERS},
    "rslora": {"rank": 4, "alpha": 8, "dropout": 0.1, "targets": LAYERS},
    "prompt": {"virtual_tokens": 4},
    "prefix": {"virtual_tokens": 4},
    "full": {},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_other_methods_learn_and_can_be_loaded_again(
    method: str, quantization: str, tmp_path: Path, tiny_model: Path
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter = {"method": method, **METHODS[method]}
    if (method, quantization) == ("full", "nf4"):
        with pytest.raises(PipelineError, match=r"quantization nf4 with method full; expected none"):
            trained(tmp_path, tiny_model, adapter=adapter, quantization=quantization)
        return
    result = trained(tmp_path, tiny_model, repeat=4, epochs=4, adapter=adapter, quantization=quantization)
    losses = [log["loss"] for log in result.trainer.state.log_history if "loss" in log]
    assert losses[-1] < losses[0]
    folder = tmp_path / "models/sft"
    if method == "full":
        loaded = AutoModelForCausalLM.from_pretrained(folder)
    else:
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "models/base")
        loaded = PeftModel.from_pretrained(base, folder)
        assert not (folder / "model.safetensors").exists()
    saved, ids = loaded.eval(), torch.arange(20)[None]
    untouched = AutoModelForCausalLM.from_pretrained(tmp_path / "models/base").eval()
    with torch.no_grad():
        change = (saved(ids).logits[:, -20:] - untouched(ids).logits).abs().max()  # behind virtual tokens
    assert change > 1e-3, "what was learned is in the folder"


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (
            {"method": "prompt", "virtual_tokens": 4, "rank": 8},
            r"train\.adapter\.rank: 8; expected no such",
        ),
        ({"method": "full", "dropout": 0.1}, r"train\.adapter\.dropout: 0\.1; expected no such key"),
        ({"method": "prefix"}, r"train\.adapter\.virtual_tokens: nothing; expected a value"),
        ({"method": "bottleneck"}, r"train\.adapter: .*expected .*'dora'"),
    ],
)
def test_a_parameter_of_another_method_is_refused(
    adapter: dict[str, Any], message: str, project: Project
) -> None:
    project.params(train=settings(adapter=adapter))
    with pytest.raises(PipelineError, match=message):
        project.run("train")


def test_validation_leaves_training_as_it_is(tmp_path: Path, tiny_model: Path) -> None:
    """Without dropout a run is the same whether or not it was validated, all its layers included."""
    adapter = {**chosen("train")["adapter"], "dropout": 0.0}
    often, never = (
        trained(tmp_path / str(steps), tiny_model, repeat=4, adapter=adapter, validation=validation)
        for steps in (1, 1000)
        for validation in [{"steps": steps, "patience": None}]
    )
    assert len(often.trainer.state.log_history) == len(never.trainer.state.log_history) + 3
    assert often.adapter == never.adapter


def test_the_best_adapter_is_kept_and_patience_ends_the_training(tmp_path: Path, tiny_model: Path) -> None:
    rates = {"learning_rate": 0.3, "warmup": 0.0, "epochs": 40, "max_grad_norm": 10.0}
    result = trained(tmp_path, tiny_model, validation={"steps": 1, "patience": 3}, **rates)
    seen = callbacks.validations(result.trainer.state.log_history, {"write": 2})
    best = min(seen, key=lambda one: one[1])
    assert result.report["steps"] == seen[-1][0] == best[0] + 3 < 40
    assert (result.report["valid_step"], result.report["valid_loss"]) == best
    again = trained(tmp_path / "again", tiny_model, validation={"steps": 1, "patience": 1000}, **rates)
    assert again.report["steps"] == 40


def test_validation_is_told_by_kind(run: Run) -> None:
    assert set(run.report["valid"]) == {"write"}
    assert run.report["valid"]["write"] == pytest.approx(run.report["valid_loss"])
    assert (run.root / "reports/train/plots/metrics/valid/write.tsv").is_file()


def test_probes_show_what_the_model_answers_meanwhile(run: Run) -> None:
    lines = (run.root / "reports/train/probe.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [(row["step"], row["id"]) for row in rows] == [
        (step, example.id) for step in (10, 20, 30) for example in EXAMPLES[:2]
    ]
    assert rows[0]["expected"] == EXAMPLES[0].completion
    assert rows[0]["answer"] != rows[-2]["answer"], "the model learns"
    assert all(row["answer"] for row in rows)


def test_probes_ask_every_kind_in_turn() -> None:
    kinds = ["write", "write", "detect_safe", "detect_vulnerable", "fix"]
    examples = [replace(EXAMPLES[0], id=f"{number}", kind=kind) for number, kind in enumerate(kinds)]
    probe = {"steps": 1, "prompts": 4, "max_new_tokens": 1}
    wanted = validate(settings(probe=probe), "train", finetuning.TrainParams)
    assert [one.id for one in finetuning.probed(examples, wanted)] == ["2", "4", "0", "3"]
    assert finetuning.probed([], wanted) == []


def test_a_training_that_fails_is_stopped(tmp_path: Path, tiny_model: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = math.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(PipelineError, match=r"train: the loss is nan at step 1; expected it to fall"):
        trained(tmp_path / "run", folder)
    assert not (tmp_path / "run/models/sft").exists()


# TRL's way to score answers alone. ---------------------------------------------------------------------


def test_scoring_answers_alone_gives_the_same_loss(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from trl.trainer import utils

    assert callable(utils._use_triton), "TRL renamed what score_answers_only replaces"
    asked: list[Any] = []

    def everywhere(device: Any) -> bool:
        asked.append(device)
        return False

    model = run.trainer.model.eval()  # without dropout
    batch = run.trainer._prepare_inputs(run.batch())
    with torch.no_grad():
        monkeypatch.setattr(utils, "_use_triton", everywhere)
        every = run.trainer.compute_loss(model, batch)
        finetuning.score_answers_only()
        alone = run.trainer.compute_loss(model, batch)
    assert asked, "TRL no longer asks the function that score_answers_only replaces"
    assert run.answers_only
    assert float(alone) == pytest.approx(float(every), rel=1e-5)


def test_without_a_preflight_that_fits_there_is_no_training(project: Project, tiny_model: Path) -> None:
    prepare(project, tiny_model)
    path = project.root / "reports/preflight.json"
    write_rows(project.root / "data/mixed/train.jsonl", map(to_row, EXAMPLES))
    write_rows(project.root / "data/mixed/valid.jsonl", [])
    files.write_json(path, {"trainable_parameters": TRAINABLE - 1})
    with pytest.raises(PipelineError, match=rf"trainable_parameters: {TRAINABLE - 1}; expected {TRAINABLE}"):
        project.run("train")
    path.unlink()
    with pytest.raises(PipelineError, match=r"reports/preflight\.json: not found"):
        project.run("train")


# Errors. -----------------------------------------------------------------------------------------------


def test_a_base_without_a_chat_template_is_refused(project: Project, tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    folder = project.base(tiny_model)
    (folder / "chat_template.jinja").unlink()
    assert not AutoTokenizer.from_pretrained(folder).chat_template
    project.params(train=settings())
    write_rows(project.root / "data/mixed/train.jsonl", map(to_row, EXAMPLES))
    write_rows(project.root / "data/mixed/valid.jsonl", map(to_row, EXAMPLES))
    with pytest.raises(PipelineError, match="no chat template"):
        project.run("train")
    assert not (project.root / "models/sft").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 2.0}, r"train\.learning_rate: 2\.0; expected less than 1"),
        ({"loss": "answers"}, r"train\.loss: 'answers'; expected 'completion' or 'full'"),
        (
            {"adapter": {"method": "lora", "rank": 0, "alpha": 1, "dropout": 0.0, "targets": ["q_proj"]}},
            r"train\.adapter\.rank: 0; ",
        ),
        ({"speed": 1}, r"train\.speed: 1; expected no such key"),
        ({"trackers": ["mlflow"]}, r"train\.trackers\.0: 'mlflow'; expected 'tensorboard' or 'wandb'"),
        ({"trackers": ["wandb", "wandb"]}, r"train: .*trackers wandb, wandb; expected each once"),
    ],
)
def test_a_wrong_parameter_is_named(change: dict[str, Any], message: str, project: Project) -> None:
    project.params(train=settings(**change))
    with pytest.raises(PipelineError, match=message):
        project.run("train")
