"""The train stage against stock TRL with the reference's settings: real tokens a second, and peak memory.

Both train the same rows in the same order with the same optimizer steps, each time in a process of its own,
and take turns; loading the model is not counted. Stock TRL takes the reference's batches (2 x 4), recomputes
activations and keeps the adapter in bfloat16, as it does by itself. The last line says how far the machine
could go: a matrix product's rate, measured in the same run, over what training has to multiply.

    python -m bench.train        (needs data/mixed and models/base: make repro)
"""

import argparse
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from stages.common import finetuning, models, records
from stages.common.finetuning import TrainParams
from stages.common.params import load
from stages.common.records import Example

BASE = Path("models/base")
MIXED = Path("data/mixed")
SIDES = ("ours", "trl")
SIZE = 2048  # of the square matrices whose product shows the machine's peak


def stock(chosen: TrainParams, train: list[Example], valid: list[Example], tokens: Any, folder: Path) -> Any:
    """TRL's trainer as the reference's appendix A has it, in today's names."""
    from trl import SFTTrainer

    arguments = dataclasses.replace(
        finetuning.arguments(chosen, folder, validated=False),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=chosen.batch_size * chosen.accumulation // 2,
        activation_checkpointing=True,
        save_strategy="no",
    )
    return SFTTrainer(
        str(BASE),
        args=arguments,
        train_dataset=finetuning.dataset(train),
        eval_dataset=finetuning.dataset(valid),
        processing_class=tokens,
        quantization_config=finetuning.quantization(chosen),
        peft_config=finetuning.adapter(chosen, None),
    )


def ours(chosen: TrainParams, train: list[Example], valid: list[Example], tokens: Any, folder: Path) -> Any:
    """The trainer of the train stage."""
    never = dataclasses.replace(chosen, save_steps=10**6)
    ordered = finetuning.levelled(train, finetuning.lengths(train, tokens), chosen)
    made = finetuning.trainer(never, BASE, tokens, ordered, [], folder, "", [])
    made.eval_dataset = made._prepare_dataset(
        finetuning.dataset(valid), tokens, made.args, False, None, "valid"
    )
    return made


def measured(side: str, rows: int) -> dict[str, float]:
    """One training of the first `rows` rows."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    chosen = load("train", TrainParams)
    train, valid = (records.read(Example, MIXED / f"{split}.jsonl") for split in ("train", "valid"))
    train, tokens = train[:rows], finetuning.tokenizer(BASE, chosen)
    with tempfile.TemporaryDirectory() as folder:
        made = {"ours": ours, "trl": stock}[side](chosen, train, valid, tokens, Path(folder))
        loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        made.train()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        loss = made.evaluate()["eval_loss"]
    count = sum(finetuning.lengths(train, tokens))
    return {
        "tokens_per_second": count / seconds,
        "peak_mib": peak / 1024,
        "loaded_mib": loaded / 1024,
        "steps": made.state.global_step,
        "valid_loss": loss,
    }


def peak_rate() -> float:
    """Floating-point operations a second of a square matrix product as training has it, the best of five."""
    import torch

    a, b = (torch.randn(SIZE, SIZE, dtype=models.compute_dtype()) for _ in range(2))
    a @ b
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2 * SIZE**3 / min(seconds)


def products() -> float:
    """Operations a token that training cannot do without: two products a weight forward and two backward.

    Frozen weights need no gradient of their own; the vocabulary's projection counts for every token, though
    tokens without a label are spared it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(BASE))
    return 4.0 * model.num_parameters()


def child(side: str, rows: int) -> dict[str, float]:
    """What a process of its own measures."""
    command = [sys.executable, "-m", "bench.train", "--side", side, "--rows", str(rows)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print both rates, the ratio, memory and the losses."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=96, help="training rows, 8 an optimizer step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help="measure one side once, as JSON")
    asked = parser.parse_args()
    if asked.side:
        print(json.dumps(measured(asked.side, asked.rows)))
        return
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for number in range(1, asked.rounds + 1):
        for side in SIDES:
            one = child(side, asked.rows)
            found[side].append(one)
            said = ", ".join(f"{name} {value:.4g}" for name, value in one.items())
            print(f"round {number} {side}: {said}")
    rates = {side: [one["tokens_per_second"] for one in found[side]] for side in SIDES}
    ratios = [one / other for one, other in zip(rates["ours"], rates["trl"], strict=True)]
    print(f"ours / TRL: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    mine, theirs = (found[side][0]["valid_loss"] for side in SIDES)
    print(f"validation loss: ours {mine:.4f}, TRL {theirs:.4f} ({100 * (mine / theirs - 1):+.2f} %)")
    limit = peak_rate() / products()
    reached = max(rates["ours"]) / limit
    print(f"the machine's limit: {limit:.0f} tokens a second; ours reach {reached:.0%} of it")


if __name__ == "__main__":
    main()
