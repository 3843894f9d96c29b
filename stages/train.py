"""Fine-tune the base model on the mixed examples with QLoRA; the result is an adapter.

In: models/base/, data/mixed/{train,valid}.jsonl. Out: models/sft/ (adapter and tokenizer), the curves in
reports/train/ and the summary in reports/train.json. The device decides what must differ: bfloat16 or
float16, AdamW or its paged 8-bit form; everything else is the same on CPU and CUDA.

    python -m stages.train
"""

import argparse
import math
import os
import re
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from stages.common import files, models, prompts, records
from stages.common.errors import PipelineError, run
from stages.common.params import load, params
from stages.common.records import Example

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig, TrainerCallback
    from trl import SFTConfig, SFTTrainer

BASE = Path("models/base")
MIXED = Path("data/mixed")
ADAPTER = Path("models/sft")
CURVES = Path("reports/train")
REPORT = Path("reports/train.json")

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


@params
class LoraParams:
    """The adapter: low-rank updates beside the frozen projections."""

    rank: Count
    alpha: Count  # updates are scaled by alpha / rank
    dropout: Share
    targets: Annotated[list[str], Field(min_length=1)]  # names of linear layers


@params
class TrainParams:
    """What is optimised and how; names as in the literature, values as chosen."""

    seed: int
    template: Literal["chat", "alpaca"]  # chat keeps the model's own; alpaca is the reference's
    loss: Literal["completion", "full"]  # on the answer alone, or on the prompt too
    quantization: Literal["nf4", "none"]  # of the frozen weights, in memory
    lora: LoraParams
    epochs: Annotated[float, Field(gt=0)]
    batch_size: Count  # examples a forward pass
    accumulation: Count  # forward passes an optimizer step
    learning_rate: Annotated[float, Field(gt=0, lt=1)]  # peak
    warmup: Share  # of all steps; cosine decay follows
    weight_decay: Share
    max_grad_norm: Annotated[float, Field(gt=0)]
    max_length: Annotated[int, Field(ge=8)]  # tokens of prompt and answer; longer examples lose their end
    checkpointing: bool  # recompute activations: less memory, about a third slower
    sampling: Literal["random", "group_by_length", "sequential"]  # sequential keeps the order of the mix
    logging_steps: Count


def dataset(examples: list[Example]) -> "Dataset":
    """Examples as conversations, which the tokenizer's chat template turns into text."""
    from datasets import Dataset

    return Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": example.prompt}] for example in examples],
            "completion": [[{"role": "assistant", "content": example.completion}] for example in examples],
        }
    )


def tokenizer(chosen: TrainParams) -> Any:
    """The base model's tokenizer with the chosen template."""
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(BASE)
    if chosen.template == "alpaca":
        loaded.chat_template = prompts.ALPACA
    if not loaded.chat_template:
        raise PipelineError(f"{BASE}: no chat template; expected one with train.template chat (params.yaml)")
    return loaded


def lengths(examples: list[Example], tokens: Any) -> list[int]:
    """Tokens of each example as the model sees it."""
    conversations = [
        [{"role": "user", "content": example.prompt}, {"role": "assistant", "content": example.completion}]
        for example in examples
    ]
    return [len(ids) for ids in tokens.apply_chat_template(conversations, return_dict=False)]


def quantization(chosen: TrainParams) -> "BitsAndBytesConfig | None":
    """NF4 with double quantisation, or nothing."""
    if chosen.quantization == "none":
        return None
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=models.compute_dtype(),
    )


def lora(chosen: LoraParams, revision: str | None) -> "LoraConfig":
    """The adapter's configuration, naming the base's revision."""
    from peft import LoraConfig

    return LoraConfig(
        r=chosen.rank,
        lora_alpha=chosen.alpha,
        lora_dropout=chosen.dropout,
        target_modules=chosen.targets,
        bias="none",
        task_type="CAUSAL_LM",
        revision=revision,
    )


def arguments(chosen: TrainParams, scratch: Path) -> "SFTConfig":
    """Our choices in TRL's words; what is not here is TRL's default."""
    import torch
    from trl import SFTConfig

    cuda = models.device() == "cuda"
    bf16 = models.compute_dtype() == torch.bfloat16
    return SFTConfig(
        output_dir=str(scratch),
        seed=chosen.seed,
        model_init_kwargs={"dtype": models.compute_dtype(), "device_map": {"": models.device()}},
        completion_only_loss=chosen.loss == "completion",
        num_train_epochs=chosen.epochs,
        per_device_train_batch_size=chosen.batch_size,
        per_device_eval_batch_size=chosen.batch_size,
        gradient_accumulation_steps=chosen.accumulation,
        learning_rate=chosen.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=chosen.warmup,
        weight_decay=chosen.weight_decay,
        max_grad_norm=chosen.max_grad_norm,
        max_length=chosen.max_length,
        activation_checkpointing=chosen.checkpointing,
        train_sampling_strategy=chosen.sampling,
        optim="paged_adamw_8bit" if cuda else "adamw_torch",
        bf16=bf16,
        fp16=not bf16,
        use_cpu=not cuda,
        dataloader_pin_memory=cuda,
        logging_steps=chosen.logging_steps,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
    )


def curves(folder: Path) -> "TrainerCallback":
    """A callback that writes loss, token accuracy, entropy and learning rate as DVC plots."""
    from dvclive import Live
    from transformers import TrainerCallback

    names = {
        "loss": "loss",
        "mean_token_accuracy": "token_accuracy",
        "entropy": "entropy",
        "learning_rate": "learning_rate",
    }
    live = Live(dir=str(folder), dvcyaml=None, save_dvc_exp=False, report=None)

    class Curves(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
            live.step = state.global_step
            for theirs, ours in names.items():
                if theirs in logs:
                    live.log_metric(ours, logs[theirs])
            live.make_summary()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == state.max_steps:
                control.should_log = True  # whatever the interval, the curves reach the end

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            live.end()

    return Curves()


def score_answers_only() -> None:
    """Let TRL project only the positions with a label onto the vocabulary, on CPUs too.

    It does so by itself where Triton is; elsewhere it scores every position and masks afterwards, which is
    nearly half of a step's time with a vocabulary of 49,152 and short answers.
    """
    from trl.trainer import utils

    utils._use_triton = lambda device: True


def keep_full_precision(trainer: "SFTTrainer") -> None:
    """Hold the adapter in float32: TRL casts it to bfloat16, which rounds small updates away.

    Autocast computes in half precision all the same, so PEFT need not copy every input to float32 first.
    """
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for module in trainer.model.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False


def check(trainer: "SFTTrainer", examples: int) -> None:
    """Raise PipelineError when truncation left examples without any label, which TRL drops silently."""
    left = len(trainer.train_dataset)
    if left < examples:
        raise PipelineError(
            f"train.max_length: {examples - left} of {examples} examples lose their whole answer; "
            "expected a limit beyond every prompt (params.yaml)"
        )


def revision(uri: str) -> str | None:
    """The commit of a Hub model's URI; other models have none."""
    match = re.fullmatch(r"hf://[^@]+@([0-9a-f]{40})", uri)
    return match[1] if match else None


def summary(trainer: "SFTTrainer", seconds: float) -> files.Row:
    """The run in numbers: means over the last tenth of the logs, tokens with padding left out."""
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    tail = logs[-max(1, len(logs) // 10) :]
    tokens = int(logs[-1]["num_tokens"])
    return {
        "loss": sum(entry["loss"] for entry in tail) / len(tail),
        "token_accuracy": sum(entry["mean_token_accuracy"] for entry in tail) / len(tail),
        "entropy": sum(entry["entropy"] for entry in tail) / len(tail),
        "steps": trainer.state.global_step,
        "tokens": tokens,
        "seconds": round(seconds, 1),
        "tokens_per_second": round(tokens / seconds, 1),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "device": models.device(),
        "dtype": str(models.compute_dtype()).removeprefix("torch."),
    }


def main() -> None:
    """Train the adapter."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    chosen = load("train", TrainParams)
    models.require(BASE)
    os.environ["HF_HUB_OFFLINE"] = "1"
    from trl import SFTTrainer

    train, valid = (records.read(Example, MIXED / f"{split}.jsonl") for split in ("train", "valid"))
    tokens = tokenizer(chosen)
    sizes = lengths(train, tokens)
    truncated = sum(size > chosen.max_length for size in sizes)
    print(
        f"train: {len(train)} examples, {sum(sizes):,} tokens, {truncated} truncated at {chosen.max_length}"
    )

    score_answers_only()
    with files.whole(ADAPTER) as folder, files.whole(CURVES) as log:
        trainer = SFTTrainer(
            str(BASE),
            args=arguments(chosen, folder),
            train_dataset=dataset(train),
            eval_dataset=dataset(valid) if valid else None,
            processing_class=tokens,
            callbacks=[curves(log)],
            quantization_config=quantization(chosen),
            peft_config=lora(chosen.lora, revision(files.read_json(BASE / "manifest.json")["uri"])),
        )
        check(trainer, len(train))
        keep_full_precision(trainer)
        start = time.perf_counter()
        trainer.train()
        report = summary(trainer, time.perf_counter() - start)
        report["truncated"] = truncated
        if valid:
            report["valid_loss"] = trainer.evaluate()["eval_loss"]
        losses = {name: value for name, value in report.items() if name.endswith("loss")}
        if not all(map(math.isfinite, losses.values())):
            found = ", ".join(f"{name} {value}" for name, value in losses.items())
            raise PipelineError(
                f"train: {found}; expected finite losses (a lower train.learning_rate may help)"
            )
        trainer.model.save_pretrained(folder)
        tokens.save_pretrained(folder)
    files.write_json(REPORT, report)
    print(f"train: loss {report['loss']:.3f}, {report['tokens']:,} tokens in {report['seconds']:,} s")


if __name__ == "__main__":
    run(main)
