"""What happens beside training: curves, the watch over the loss, sealed checkpoints, signals, early stopping.

Each is made by a function and keeps to the trainer's own log history, so that a resumed run goes on as if it
had never stopped.
"""

import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.common import checkpoints, files, finetuning, launching, prompts
from stages.common.errors import PipelineError
from stages.common.finetuning import ProbeParams
from stages.common.records import Example

if TYPE_CHECKING:
    import torch
    from transformers import TrainerCallback

CURVES = {
    "loss": "loss",
    "mean_token_accuracy": "token_accuracy",
    "entropy": "entropy",
    "learning_rate": "learning_rate",
}
WINDOW = 10  # steps that a judgement of the loss looks at
DIVERGED = 2.0  # times the first steps' mean loss: a run that gets there does not come back

Log = dict[str, Any]


def callback(**handlers: Callable[..., None]) -> "TrainerCallback":
    """A trainer's callback out of functions; each is called with state, control and what else there is."""
    from transformers import TrainerCallback

    def method(handle: Callable[..., None]) -> Callable[..., None]:
        return lambda self, args, state, control, **given: handle(state, control, **given)

    kind = type("Callback", (TrainerCallback,), {name: method(handle) for name, handle in handlers.items()})
    made: TrainerCallback = kind()
    return made


def points(log: Log) -> dict[str, float]:
    """What an entry of the log history adds to the curves, by their names."""
    losses = sorted(name for name in log if name.startswith("eval_") and name.endswith("loss"))
    return {
        **{ours: log[theirs] for theirs, ours in CURVES.items() if theirs in log},
        **{"valid/" + (name[5:-4].strip("_") or "all"): log[name] for name in losses},
    }


def curves(folder: Path) -> "TrainerCallback":
    """Writes what is logged as DVC plots; a resumed run writes what was logged before it, too."""
    from dvclive import Live

    live = Live(dir=str(folder), dvcyaml=None, save_dvc_exp=False, report=None)

    def write(log: Log) -> None:
        live.step = log["step"]
        for name, value in points(log).items():
            live.log_metric(name, value)
        live.make_summary()  # each time: its keys come in the order in which they were first seen

    def begin(state: Any, control: Any, **_: Any) -> None:
        for log in state.log_history:
            write(log)

    def log(state: Any, control: Any, **_: Any) -> None:
        write(state.log_history[-1])

    return callback(on_train_begin=begin, on_log=log)


def complaint(logs: list[Log]) -> str:
    """What is wrong with a training that has logged this, or nothing.

    >>> complaint([{"loss": 2.0}, {"loss": math.nan}])
    'the loss is nan'
    """
    losses = [log["loss"] for log in logs if "loss" in log]
    if losses and not math.isfinite(losses[-1]):
        return f"the loss is {losses[-1]}"
    last = losses[-WINDOW:]
    if len(last) == WINDOW and max(last) == 0:
        return f"the loss has been 0 for {WINDOW} steps"
    first = losses[:WINDOW]
    if len(losses) >= 2 * WINDOW and sum(last) > DIVERGED * sum(first):
        return (
            f"the mean loss of {WINDOW} steps rose from {sum(first) / WINDOW:.3f} to {sum(last) / WINDOW:.3f}"
        )
    return ""


def watch() -> "TrainerCallback":
    """Stops a training that has failed; its last checkpoint stays."""

    def log(state: Any, control: Any, **_: Any) -> None:
        if found := complaint(state.log_history):
            raise PipelineError(
                f"train: {found} at step {state.global_step}; expected it to fall "
                "(a lower train.learning_rate may help)"
            )

    return callback(on_log=log)


def sealing(folder: Path, keep: int, seconds: float) -> "TrainerCallback":
    """Completes the checkpoints that the trainer writes into `folder`, and keeps the newest ones.

    `seconds` were spent by earlier runs; each checkpoint says how many have been by then. Of several
    processes each has saved its random state before the first completes a checkpoint, and waits for that.
    """
    start = time.perf_counter() - seconds

    def save(state: Any, control: Any, **_: Any) -> None:
        launching.wait()
        if launching.leads():
            spent = {"seconds": time.perf_counter() - start}
            checkpoints.seal(folder / f"checkpoint-{state.global_step}", state.global_step, spent)
            checkpoints.rotate(folder, keep)
        launching.wait()

    return callback(on_save=save)


def interruptible() -> "TrainerCallback":
    """On SIGTERM or SIGINT: ends the step, saves, and stops; the second signal ends at once.

    Several processes agree after every step on whether one of them has had a signal.
    """
    received: list[str] = []
    agreed: list[bool] = []

    def note(number: int, frame: Any) -> None:
        received.append(signal.Signals(number).name)
        signal.signal(number, signal.SIG_DFL)
        print(f"train: {received[0]}: saving after this step", flush=True)

    def begin(state: Any, control: Any, **_: Any) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, note)

    def step(state: Any, control: Any, **_: Any) -> None:
        if launching.anyone(bool(received)):
            agreed.append(True)
            control.should_save = True

    def save(state: Any, control: Any, **_: Any) -> None:
        if agreed and state.global_step < state.max_steps:
            raise PipelineError(
                f"train: stopped by {received[0] if received else 'a signal to another process'} after step "
                f"{state.global_step} of {state.max_steps}; run again to go on from there"
            )

    def end(state: Any, control: Any, **_: Any) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, before[number])

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    return callback(on_train_begin=begin, on_step_end=step, on_save=save, on_train_end=end)


def validations(logs: list[Log], rows: dict[str, int]) -> list[tuple[int, float]]:
    """Step and loss of every validation that is complete: the mean over its kinds, weighted by their rows.

    >>> logs = [{"step": 5, "eval_fix_loss": 1.0}, {"step": 5, "eval_write_loss": 4.0}]
    >>> validations(logs, {"fix": 2, "write": 1})
    [(5, 2.0)]
    """
    found: dict[int, dict[str, float]] = {}
    for log in logs:
        for kind in rows:
            if f"eval_{kind}_loss" in log:
                found.setdefault(log["step"], {})[kind] = log[f"eval_{kind}_loss"]
    total = sum(rows.values())
    return [
        (step, sum(losses[kind] * count for kind, count in rows.items()) / total)
        for step, losses in found.items()
        if len(losses) == len(rows)
    ]


def stopping(best: Path, rows: dict[str, int], patience: int) -> "TrainerCallback":
    """Keeps the adapter with the least validation loss in `best`; stops after `patience` others in a row."""

    def evaluated(state: Any, control: Any, model: Any, **_: Any) -> None:
        seen = validations(state.log_history, rows)
        if not seen or seen[-1][0] != state.global_step:
            return
        least = min(range(len(seen)), key=lambda index: seen[index][1])
        if least == len(seen) - 1:
            with launching.output(best) as folder:
                finetuning.save(model, folder)
        elif len(seen) - 1 - least >= patience:
            control.should_training_stop = True
            print(f"train: no better validation since step {seen[least][0]}: stopped at {state.global_step}")

    return callback(on_evaluate=evaluated)


def probe(asked: list[Example], chosen: ProbeParams, tokens: Any, dtype: "torch.dtype") -> "TrainerCallback":
    """Every so many steps, answers the prompts greedily and adds what it says to the log history.

    Of several processes all answer: a model that is spread over them can only be asked by all.
    """
    import torch

    texts = [prompts.render(tokens, example.prompt) for example in asked]
    given = tokens(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)

    def answers(model: Any) -> list[str]:
        model.eval()
        with torch.no_grad(), torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
            made = model.generate(
                **given.to(model.device),
                max_new_tokens=chosen.max_new_tokens,
                do_sample=False,
                repetition_penalty=1.0,  # some models bring another, which evaluation does not use
                use_cache=True,
                pad_token_id=tokens.pad_token_id,
            )
        model.train()
        said: list[str] = tokens.batch_decode(
            made[:, given["input_ids"].shape[1] :], skip_special_tokens=True
        )
        return said

    def step(state: Any, control: Any, model: Any, **_: Any) -> None:
        if chosen.steps and state.global_step % chosen.steps == 0:
            state.log_history.append({"step": state.global_step, "probe": answers(model)})

    return callback(on_step_end=step)


def probed(logs: list[Log], asked: list[Example]) -> list[files.Row]:
    """What the probes found: a row an answer, with the answer that was to be learned beside it."""
    return [
        {"step": log["step"], "id": example.id, "answer": answer, "expected": example.completion}
        for log in logs
        if "probe" in log
        for example, answer in zip(asked, log["probe"], strict=True)
    ]


def bar() -> "TrainerCallback":
    """A progress bar of the steps, with the loss."""
    from tqdm import tqdm

    shown: list[Any] = []

    def begin(state: Any, control: Any, **_: Any) -> None:
        shown.append(tqdm(total=state.max_steps, initial=state.global_step, desc="train", unit="step"))

    def log(state: Any, control: Any, logs: Log, **_: Any) -> None:
        if "loss" in logs:
            shown[0].set_postfix(loss=f"{logs['loss']:.3f}", refresh=False)

    def step(state: Any, control: Any, **_: Any) -> None:
        shown[0].update()

    def end(state: Any, control: Any, **_: Any) -> None:
        shown[0].close()

    return callback(on_train_begin=begin, on_log=log, on_step_end=step, on_train_end=end)
