"""Stop a bad training run within a minute: what would waste a night is found before `train` begins.

In: models/base/, data/mixed/train.jsonl. Out: reports/preflight.json, facts and estimates that are the same
whenever the inputs are; free bytes and what was measured go to the terminal. The last check trains for a few
steps, with the trainer, the rows and the parameters of `train`, and keeps nothing of it.

    python -m stages.preflight
"""

import argparse
import math
import os
import re
import resource
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from stages.common import callbacks, files, finetuning, memory, models, prompts, records, trackers
from stages.common.errors import PipelineError, run
from stages.common.finetuning import TrainParams, VirtualParams
from stages.common.params import load, params
from stages.common.records import Example

if TYPE_CHECKING:
    import torch
    from transformers import TrainerCallback
    from trl import SFTTrainer

BASE = Path("models/base")
TRAIN = Path("data/mixed/train.jsonl")
REPORT = Path("reports/preflight.json")

Decode = Callable[[list[int]], str]

IGNORED = -100  # the label of a position that is not learned, PyTorch's
AUTOCAST = {"bf16": "bfloat16", "fp16": "float16", "no": "float32"}  # Accelerate's words and PyTorch's


@params
class PreflightParams:
    """What a training must show before it begins."""

    # Optimizer steps. Three at least: the first of a warm-up has a rate of 0, and LoRA's A has no gradient
    # before B has left 0.
    steps: Annotated[int, Field(ge=3)]
    max_truncated: Annotated[
        float, Field(ge=0, le=1)
    ]  # share of rows that lose their end, and with it the stop


# What is known before the model is loaded. --------------------------------------------------------------


def check_truncation(sizes: Sequence[int], max_length: int, limit: float) -> int:
    """Rows that are longer than `max_length` tokens; refuses more than the share `limit`."""
    truncated = sum(size > max_length for size in sizes)
    if truncated > limit * len(sizes):
        raise PipelineError(
            f"train.max_length: {max_length} truncates {truncated} of {len(sizes)} rows; expected at most "
            f"{limit:.2%} (preflight.max_truncated; params.yaml)"
        )
    return truncated


def check_padding(pad: int | None, eos: int | None) -> None:
    """Padding is masked: if it were the end token, no answer would learn to end."""
    if pad is None or eos is None or pad == eos:
        raise PipelineError(
            f"{BASE}: pad token {pad}, end token {eos}; expected two different ones (base.pad_token)"
        )


def check_controls(examples: Iterable[Example], controls: re.Pattern[str]) -> None:
    """Refuses rows that spell a control token: with it a text could end its turn and open another one."""
    for example in examples:
        for name, text in (("prompt", example.prompt), ("completion", example.completion)):
            if found := controls.search(text):
                raise PipelineError(
                    f"{example.id}: {found[0]!r} in its {name}; expected no control token of {BASE} there "
                    "(filter.<source>.checks.control_tokens takes such rows out)"
                )


def check_answers(kept: int, rows: int, max_length: int) -> None:
    """Refuses a training of which no row has a label left."""
    if not kept:
        raise PipelineError(
            f"train.max_length: {max_length}: the prompt alone fills it in all of {rows} rows; expected room "
            "for answers (params.yaml)"
        )


def check_room(needed: int, free: int, what: str, remedy: str) -> None:
    """Refuses a need of bytes beyond what is free."""
    if needed > free:
        raise PipelineError(
            f"{what}: {free // memory.MIB:,} MiB free; expected {needed // memory.MIB:,} MiB ({remedy})"
        )


# What the trainer made of it. ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One example as the model sees it."""

    id: str
    tokens: list[int]
    labels: list[int]


def check_prompts(rows: Iterable[Row], asked: Iterable[list[int]], loss: str, decode: Decode) -> None:
    """What a row does not learn, or begins with where it learns all, is what `generate` would feed for it."""
    for row, prompt in zip(rows, asked, strict=True):
        learned = next((at for at, label in enumerate(row.labels) if label != IGNORED), len(row.labels))
        end = {"completion": learned, "full": len(prompt)}[loss]
        found, expected = row.tokens[:end], prompt[: len(row.tokens)]
        if found != expected:
            pairs = enumerate(zip(found, expected, strict=False))
            at = next((at for at, (ours, theirs) in pairs if ours != theirs), min(len(found), len(expected)))
            raise PipelineError(
                f"{row.id}: training's prompt of {len(found)} tokens goes on with "
                f"{decode(found[at : at + 8])!r} at {at}; expected generation's {len(expected)} tokens with "
                f"{decode(expected[at : at + 8])!r} there (train.template, chat_template of {BASE})"
            )


def check_ends(rows: Iterable[Row], eos: int, max_length: int, decode: Decode) -> None:
    """A row's last label is the end token, up to white space, unless the row fills the whole length."""
    for row in rows:
        labels = [label for label in row.labels if label != IGNORED]
        if not labels:
            raise PipelineError(
                f"{row.id}: all {len(row.labels)} labels masked; expected those of its answer"
            )
        after = labels[::-1].index(eos) if eos in labels else len(labels)
        if len(row.tokens) < max_length and (
            eos not in labels or decode(labels[len(labels) - after :]).strip()
        ):
            raise PipelineError(
                f"{row.id}: the last labels are {decode(labels[-8:])!r}; expected the end token "
                f"{decode([eos])!r} (chat_template of {BASE})"
            )


@dataclass(frozen=True)
class Promise:
    """What the parameters promise of a trainer."""

    trainable: int  # parameters
    autocast: str  # dtype of computation; float32 without autocast
    frozen: dict[str, int]  # linear layers of the base model by how their weights are held


def check_dtypes(trained: Iterable[str], frozen: Mapping[str, int], autocast: str, expected: Promise) -> None:
    """Trained parameters, frozen weights and autocast have the dtypes that were promised."""
    found: tuple[tuple[str, object, object], ...] = (
        ("trained parameters", sorted(set(trained)), ["float32"]),
        ("autocast", autocast, expected.autocast),
        ("linear layers", dict(frozen), expected.frozen),
    )
    for what, have, want in found:
        if have != want:
            raise PipelineError(f"train.dtype: {what} {have}; expected {want} (stages/common/finetuning.py)")


def check_trainable(found: int, expected: int, method: str) -> None:
    """The parameters that are trained are as many as the method promises."""
    if found != expected:
        raise PipelineError(
            f"train.adapter: {found:,} parameters are trained; expected {expected:,} of method {method}"
        )


def plain(dtype: "torch.dtype") -> str:
    """The name of a dtype."""
    return str(dtype).removeprefix("torch.")


# What some steps show. ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """What was seen in some steps."""

    losses: list[float]  # of every step
    before: float  # loss on the first batch, without dropout
    after: float  # the same after the last step
    largest: dict[str, float]  # absolute gradient of each trained tensor over all steps
    last: dict[str, float]  # the same in the last step


def check_steps(trial: Trial, steps: int) -> None:
    """Losses and gradients are finite, every trained tensor has a gradient, and the loss falls.

    Gradients of float16 overflow in the first steps, which the scaler skips: the last step's count.
    """
    bad = [(step, loss) for step, loss in enumerate(trial.losses, 1) if not math.isfinite(loss)]
    if bad or len(trial.losses) != steps:
        found = f"loss {bad[0][1]} at step {bad[0][0]}" if bad else f"{len(trial.losses)} steps"
        raise PipelineError(
            f"train: {found}; expected {steps} finite losses (train.learning_rate, train.dtype)"
        )
    for name, value in sorted(trial.last.items()):
        if not math.isfinite(value):
            raise PipelineError(f"{name}: gradient {value}; expected a finite one (train.learning_rate)")
    dead = sorted(name for name, value in trial.largest.items() if not value > 0)
    if dead or not trial.largest:
        named = dead[0] if dead else "the model"
        raise PipelineError(
            f"{named}: no gradient, like {len(dead)} of {len(trial.largest)} trained tensors; expected one "
            f"in each within {steps} steps"
        )
    if not trial.after < trial.before:
        raise PipelineError(
            f"train: loss {trial.before:.4f} before and {trial.after:.4f} after {steps} steps on the same "
            "batch; expected it to fall (train.learning_rate is too high, or too low for preflight.steps)"
        )


def watcher(largest: dict[str, float], last: dict[str, float]) -> "TrainerCallback":
    """Notes the largest absolute gradient of each trained tensor before every optimizer step."""

    def note(state: Any, control: Any, model: Any, **_: Any) -> None:
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                last[name] = 0.0 if parameter.grad is None else float(parameter.grad.abs().max())
                if math.isfinite(last[name]):
                    largest[name] = max(largest.get(name, 0.0), last[name])

    return callbacks.callback(on_pre_optimizer_step=note)


def loss_of(trainer: "SFTTrainer", count: int) -> float:
    """The loss on the first `count` rows as one batch, computed as in training but without dropout."""
    import torch

    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(count)])
    trainer.model.eval()
    with torch.no_grad(), trainer.accelerator.autocast():
        return float(trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch)))


def check_packs(trainer: "SFTTrainer") -> None:
    """Another first example in a pack changes nothing for its last one, which therefore does not see it."""
    import torch

    pack = next((row for row in trainer.train_dataset if len(row["seq_lengths"]) > 1), None)
    if pack is None:
        raise PipelineError(
            "train.packing: no pack holds two examples; expected some, or packing false "
            "(train.max_length, params.yaml)"
        )
    batch = dict(trainer._prepare_inputs(trainer.data_collator([pack])))
    del batch["labels"]
    other, first = batch["input_ids"].clone(), pack["seq_lengths"][0]
    other[0, :first] = other[0, :first].flip(0)
    trainer.model.eval()
    with torch.no_grad():
        before, after = (
            trainer.model(**{**batch, "input_ids": ids}, use_cache=False, logits_to_keep=1).logits
            for ids in (batch["input_ids"], other)
        )
    if not torch.equal(before, after):
        raise PipelineError(
            f"train.packing: the last example of a pack of {len(pack['seq_lengths'])} sees the first; "
            "expected attention within examples alone "
            f"(train.attention: {trainer.model.config._attn_implementation})"
        )


def attempt(trainer: "SFTTrainer", chosen: TrainParams, steps: int) -> Trial:
    """Train for some steps on the first rows, with the loss on the first batch's before and after."""
    largest: dict[str, float] = {}
    last: dict[str, float] = {}
    rows = trainer.train_dataset
    count = min(steps * chosen.batch_size * chosen.accumulation, len(rows))
    trainer.train_dataset = rows.select(range(count))
    trainer.args.max_steps, trainer.args.save_strategy = steps, "no"
    trainer.add_callback(watcher(largest, last))
    first = min(chosen.batch_size, count)
    before = loss_of(trainer, first)
    trainer.train()
    after = loss_of(trainer, first)
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    return Trial(losses, before, after, largest, last)


# The whole. ---------------------------------------------------------------------------------------------


def say(check: str, found: str) -> None:
    """One line on the terminal for a check that was passed."""
    print(f"preflight: {check}: {found}", flush=True)


def held(model: Any) -> Counter[str]:
    """The base model's linear layers but its output embeddings, by how their weights are held."""
    import torch

    head = model.get_output_embeddings()
    found: Counter[str] = Counter()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not head and ".lora_" not in name:
            layer: Any = module
            if hasattr(layer.weight, "quant_type"):
                found[f"{layer.weight.quant_type} in {plain(layer.compute_dtype)}"] += 1
            else:
                found[plain(layer.weight.dtype)] += 1
    return found


def plan(
    examples: list[Example],
    kept: int,
    tokens: Any,
    asked: list[list[int]],
    chosen: TrainParams,
    wanted: PreflightParams,
) -> tuple[files.Row, Promise]:
    """Every check that needs no weight of the model; returns facts, and what the trainer must come up to.

    `kept` is how many examples keep a label, `asked` the prompts of all.
    """
    from transformers import AutoConfig

    check_padding(tokens.pad_token_id, tokens.eos_token_id)
    say("padding", f"{tokens.pad_token!r}, and answers end with {tokens.eos_token!r}")
    check_controls(examples, prompts.control_tokens(tokens))
    say("texts", f"{len(examples)} rows, none of which spells a control token")
    sizes = finetuning.lengths(examples, tokens)
    truncated = check_truncation(sizes, chosen.max_length, wanted.max_truncated)
    say("length", f"{truncated} of {len(sizes)} rows truncated at {chosen.max_length} tokens")
    check_answers(kept, len(examples), chosen.max_length)
    say("answers", f"{kept} rows keep a label; the longest prompt has {max(map(len, asked))} tokens")

    model, device = memory.skeleton(AutoConfig.from_pretrained(BASE)), models.device()
    count = memory.trained(model, chosen)
    computed = plain(finetuning.dtype(chosen))
    form = f"nf4 in {computed}" if chosen.quantization == "nf4" else plain(finetuning.master(chosen))
    say("method", f"{chosen.adapter.method} trains {count:,} of {model.parameters:,} parameters")
    batch = largest_batch(sizes, asked, chosen)
    parts = memory.estimate(model, chosen, batch, device, computed)
    needed, free = sum(parts.values()), memory.available(device)
    check_room(needed, free, f"memory of the {device}", "a smaller train.batch_size or train.max_length")
    say("memory", f"{needed // memory.MIB:,} MiB at most on the {device}, {free // memory.MIB:,} MiB free")
    disk = disk_bytes(memory.checkpoint_bytes(model, chosen, device), memory.FULL * count, chosen)
    free = shutil.disk_usage(Path()).free
    check_room(disk, free, "disk", "fewer checkpoints with train.keep")
    say("disk", f"{disk // memory.MIB:,} MiB for checkpoints and adapter, {free // memory.MIB:,} MiB free")
    facts = {
        "rows": kept,
        "unlabelled": len(sizes) - kept,
        "tokens": sum(sizes),
        "longest": max(sizes),
        "truncated": truncated,
        "trainable_parameters": count,
        "parameters": model.parameters,
        "device": device,
        "dtype": computed,
        "linear_layers": form,
        "memory_mib": {name: part // memory.MIB for name, part in {**parts, "peak": needed}.items()},
        "disk_mib": disk // memory.MIB,
    }
    return facts, Promise(count, computed, {form: len(model.linears)})


def largest_batch(sizes: list[int], asked: list[list[int]], chosen: TrainParams) -> memory.Batch:
    """What no batch exceeds: each row as long as the longest, with as many labels as any has."""
    kept = [min(size, chosen.max_length) for size in sizes]
    virtual = chosen.adapter.virtual_tokens if isinstance(chosen.adapter, VirtualParams) else 0
    first = [len(ids) if chosen.loss == "completion" else 0 for ids in asked]
    labels = max(size - start for size, start in zip(kept, first, strict=True))
    if chosen.packing:  # all packs of a batch lie in one row, each full, and mostly of answers at worst
        length = chosen.batch_size * chosen.max_length
        return memory.Batch(1, length, length)
    return memory.Batch(chosen.batch_size, max(kept) + virtual, chosen.batch_size * labels)


def disk_bytes(checkpoint: int, weights: int, chosen: TrainParams) -> int:
    """The checkpoints that are kept, the one that is being written, and the result; each with its tokenizer.

    Early stopping keeps its best weights beside them.
    """
    beside = sum(path.stat().st_size for path in BASE.iterdir() if path.suffix != ".safetensors")
    results = 2 if chosen.validation.patience else 1
    return (chosen.keep + 1) * (checkpoint + beside) + results * (weights + beside)


def rehearse(
    examples: list[Example],
    tokens: Any,
    asked: list[list[int]],
    chosen: TrainParams,
    steps: int,
    promised: Promise,
) -> files.Row:
    """Every check on the trainer itself, the steps among them; returns what is worth keeping."""
    with TemporaryDirectory(prefix="preflight-") as folder:
        uri = files.read_json(BASE / "manifest.json")["uri"]
        trainer = finetuning.trainer(chosen, BASE, tokens, examples, [], Path(folder), uri, [])
        fed = trainer.train_dataset
        if chosen.packing:
            check_packs(trainer)
            say("packs", f"{len(fed)}, whose examples do not see each other")
            fed = trainer._prepare_dataset(
                finetuning.dataset(examples), tokens, trainer.args, False, None, "train"
            )
        rows = [
            Row(example.id, row["input_ids"], row["labels"])
            for example, row in zip(examples, fed, strict=True)
        ]
        check_prompts(rows, asked, chosen.loss, tokens.decode)
        say("prompts", f"{len(rows)} are fed in training as in generation, token by token")
        check_ends(rows, tokens.eos_token_id, chosen.max_length, tokens.decode)
        say("ends", "every whole answer ends with the end token, and learns it")
        found = held(trainer.model)
        parameters = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
        autocast = AUTOCAST[trainer.accelerator.mixed_precision]
        check_dtypes({plain(parameter.dtype) for parameter in parameters}, found, autocast, promised)
        say("dtypes", f"trained in float32, computed in {autocast}, linear layers {dict(found)}")
        count = sum(parameter.numel() for parameter in parameters)
        check_trainable(count, promised.trainable, chosen.adapter.method)
        say("trainable", f"{count:,} parameters, as the method promises")
        seen = attempt(trainer, chosen, steps)
    check_steps(seen, steps)
    say(
        "steps",
        f"{steps}, loss on the first batch {seen.before:.3f} before and {seen.after:.3f} after; "
        f"{peak() // memory.MIB:,} MiB held at the peak",
    )
    return {
        "labels": sum(label != IGNORED for row in rows for label in row.labels),
        "steps": steps,
        "loss_before": round(seen.before, 3),
        "loss_after": round(seen.after, 3),
    }


def peak() -> int:
    """Bytes that training held at its peak: on a GPU its tensors, otherwise the whole process."""
    import torch

    if models.device() == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Run every check, the cheap ones first."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    wanted, chosen = load("preflight", PreflightParams), load("train", TrainParams)
    trackers.check(chosen.trackers)
    models.require(BASE)
    os.environ["HF_HUB_OFFLINE"] = "1"
    examples = records.read(Example, TRAIN)
    if not examples:
        raise PipelineError(f"{TRAIN}: 0 rows; expected some to train on")
    tokens = finetuning.tokenizer(BASE, chosen)
    asked = finetuning.tokenized(examples, tokens)
    kept = finetuning.answerable(examples, asked, chosen)
    facts, promised = plan(examples, len(kept), tokens, asked, chosen, wanted)
    ordered = finetuning.levelled(kept, finetuning.lengths(kept, tokens), chosen)
    fed = {example.id: ids for example, ids in zip(examples, asked, strict=True)}
    prompted = [fed[example.id] for example in ordered]
    files.write_json(REPORT, facts | rehearse(ordered, tokens, prompted, chosen, wanted.steps, promised))


if __name__ == "__main__":
    run(main)
