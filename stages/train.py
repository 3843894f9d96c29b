"""Fine-tune the base model on the mixed examples with QLoRA; the result is an adapter.

In: models/base/, data/mixed/{train,valid}.jsonl. Out: models/sft/ (adapter and tokenizer), the curves in
reports/train/ and the summary in reports/train.json. A run that was killed at any moment goes on from its
last checkpoint, in .partial/train/<key>, and ends with the same bytes; the key is a hash of all that they
depend on. The device decides what must differ: the dtype of computation, AdamW or its paged 8-bit form.

In several processes (`train.launcher`) all train, and the first one writes; see docs/scale.md.

    python -m stages.train
"""

import argparse
import os
import platform
import resource
import shutil
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from stages.common import (
    callbacks,
    checkpoints,
    files,
    finetuning,
    launching,
    models,
    program,
    records,
    trackers,
)
from stages.common.errors import PipelineError, run
from stages.common.finetuning import TrainParams
from stages.common.params import load
from stages.common.records import Example

if TYPE_CHECKING:
    from trl import SFTTrainer

BASE = Path("models/base")
MIXED = Path("data/mixed")
ADAPTER = Path("models/sft")
CURVES = Path("reports/train")
REPORT = Path("reports/train.json")
PREFLIGHT = Path("reports/preflight.json")
PARTIAL = Path(".partial/train")

LIBRARIES = ("accelerate", "bitsandbytes", "peft", "torch", "transformers", "trl")


def environment() -> files.Row:
    """What decides the bytes beside parameters, data and code: the libraries and the machine's arithmetic."""
    import torch

    return {
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def settings(chosen: TrainParams) -> files.Row:
    """The parameters but for the trackers, which change nothing: a killed run may go on with others."""
    from pydantic import TypeAdapter

    found: files.Row = TypeAdapter(TrainParams).dump_python(chosen, exclude={"trackers"})
    return found


def key(chosen: TrainParams) -> str:
    """The name of this run: parameters, data, base, code, packages, environment and processes as a hash."""
    inputs = [MIXED / "train.jsonl", MIXED / "valid.jsonl", *sorted(BASE.iterdir())]
    inputs.append(launching.configuration(chosen.launcher))
    facts = {"params": settings(chosen), "processes": launching.processes()}
    return checkpoints.key(facts | environment() | {"program": program.describe("train")}, inputs)


def resumed(folder: Path) -> tuple[Path | None, float, int]:
    """The newest sound checkpoint, with the seconds and the tokens that were spent up to it."""
    found = checkpoints.latest(folder)
    if found is None:
        return None, 0.0, 0
    point, manifest = found
    logs = files.read_json(point / "trainer_state.json")["log_history"]
    return point, manifest["seconds"], max((int(log.get("num_tokens", 0)) for log in logs), default=0)


def summary(trainer: "SFTTrainer", chosen: TrainParams, seconds: float) -> files.Row:
    """The run in numbers: means over the last tenth of the steps, tokens with padding left out."""
    logs = [log for log in trainer.state.log_history if "loss" in log]
    tail = logs[-max(1, len(logs) // 10) :]
    tokens = int(logs[-1]["num_tokens"])
    return {
        "loss": sum(log["loss"] for log in tail) / len(tail),
        "token_accuracy": sum(log["mean_token_accuracy"] for log in tail) / len(tail),
        "entropy": sum(log["entropy"] for log in tail) / len(tail),
        "steps": trainer.state.global_step,
        "tokens": tokens,
        "seconds": round(seconds, 1),
        "tokens_per_second": round(tokens / seconds, 1),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "trainable_parameters": trainable(trainer),
        "processes": launching.processes(),
        "device": models.device(),
        "dtype": str(finetuning.dtype(chosen)).removeprefix("torch."),
        "optimizer": str(trainer.args.optim.value),
        "attention": trainer.model.config._attn_implementation,
        "environment": environment(),
    }


def main() -> None:
    """Train the adapter."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    chosen = load("train", TrainParams)
    trackers.check(chosen.trackers)
    models.require(BASE)
    os.environ["HF_HUB_OFFLINE"] = "1"
    if chosen.launcher != launching.SINGLE and not launching.inside():
        launching.launch(chosen.launcher, "stages.train")
        return
    with launching.member(chosen.launcher), checkpoints.storage(PARTIAL):
        fine_tune(chosen)


def fine_tune(chosen: TrainParams) -> None:
    """Train to the end, from the last checkpoint where there is one, and write every output."""
    train, valid = (records.read(Example, MIXED / f"{split}.jsonl") for split in ("train", "valid"))
    tokens = finetuning.tokenizer(BASE, chosen)
    given = len(train)
    train, valid = (
        finetuning.answerable(rows, finetuning.tokenized(rows, tokens), chosen) for rows in (train, valid)
    )
    if len(train) < given:
        print(f"train: {given - len(train)} examples left out, whose prompt fills {chosen.max_length} tokens")
    sizes = finetuning.lengths(train, tokens)
    truncated = sum(size > chosen.max_length for size in sizes)
    print(
        f"train: {len(train)} examples, {sum(sizes):,} tokens, {truncated} truncated at {chosen.max_length}"
    )

    kept = PARTIAL / key(chosen)
    if launching.leads():
        checkpoints.sweep(kept)
    point, spent, counted = resumed(kept)
    if point:
        print(f"train: goes on from {point}")
    asked = finetuning.probed(valid, chosen)
    rows = {kind: len(examples) for kind, examples in finetuning.by_kind(valid).items()}
    best = kept / "best" if valid and chosen.validation.patience else None
    config = {**settings(chosen), "environment": environment()}
    with (
        trackers.tracking(chosen.trackers, kept.name, config) as tracked,
        launching.output(ADAPTER) as folder,
        launching.output(CURVES) as log,
    ):
        reactions = [
            *([callbacks.curves(log)] if launching.leads() else []),
            tracked,
            callbacks.watch(),
            callbacks.sealing(kept, chosen.keep, spent),
            callbacks.interruptible(),
            *([callbacks.bar()] if launching.leads() else []),
        ]
        if asked and chosen.probe.steps:
            reactions.append(callbacks.probe(asked, chosen.probe, tokens, finetuning.dtype(chosen)))
        if best and chosen.validation.patience:
            reactions.append(callbacks.stopping(best, rows, chosen.validation.patience))
        trainer = finetuning.trainer(
            chosen,
            BASE,
            tokens,
            finetuning.levelled(train, sizes, chosen),
            valid,
            kept,
            files.read_json(BASE / "manifest.json")["uri"],
            reactions,
        )
        check_preflight(trainer)
        launching.agree("this training", kept.name)
        launching.agree("the last checkpoint", point.name if point else "none")
        trainer._total_train_tokens = counted  # a resumed trainer counts from 0
        start = time.perf_counter()
        trainer.train(resume_from_checkpoint=str(point) if point else None)
        seconds = spent + time.perf_counter() - start
        report = summary(trainer, chosen, seconds) | {"truncated": truncated}
        if valid:
            report |= validation(trainer, rows, best is not None)
        if not best:
            finetuning.save(trainer.model, folder)
        elif launching.leads():
            shutil.copytree(best, folder)
        if not launching.leads():
            return
        tokens.save_pretrained(folder)
        files.write_rows(log / "probe.jsonl", callbacks.probed(trainer.state.log_history, asked))
    files.write_json(REPORT, report)
    checkpoints.clear(kept)
    print(f"train: loss {report['loss']:.3f}, {report['tokens']:,} tokens in {report['seconds']:,} s")


def check_preflight(trainer: "SFTTrainer") -> None:
    """Raise PipelineError unless preflight has seen the training that is about to begin."""
    seen = files.read_json(PREFLIGHT).get("trainable_parameters")
    found = trainable(trainer)
    if found != seen:
        raise PipelineError(
            f"{PREFLIGHT}: trainable_parameters: {seen}; expected {found} (run preflight again)"
        )


def trainable(trainer: "SFTTrainer") -> int:
    """How many parameters are trained."""
    return sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)


def validation(trainer: "SFTTrainer", rows: dict[str, int], best: bool) -> files.Row:
    """The loss on held-out rows, in all and by kind: of the best validation or of the last."""
    seen = callbacks.validations(trainer.state.log_history, rows)
    if not seen or seen[-1][0] < trainer.state.global_step:
        trainer.evaluate()
    logs = trainer.state.log_history
    seen = callbacks.validations(logs, rows)
    step, loss = min(seen, key=lambda one: one[1]) if best else seen[-1]
    there = {name: value for log in logs if log["step"] == step for name, value in log.items()}
    kinds = {kind: there[f"eval_{kind}_loss"] for kind in rows}
    return {"valid_loss": loss, "valid": kinds, "valid_step": step}


if __name__ == "__main__":
    run(main)
