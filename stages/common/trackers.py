"""The curves of a training in TensorBoard and in Weights & Biases, beside DVCLive's and on request.

What they write holds times and would be other bytes in every run, so none of it lies in an output of the
pipeline: it goes to runs/, which git and DVC ignore. There it stands under the key of the training, so that a
run that goes on is the same run there, too. Nothing goes over the network without WANDB_API_KEY.

    tensorboard --logdir runs/tensorboard
    wandb sync runs/wandb/offline-run-*        # the newest folder of a key holds its whole run
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.common import callbacks
from stages.common.errors import PipelineError

if TYPE_CHECKING:
    from transformers import TrainerCallback

RUNS = Path("runs")
PROJECT = "coder-agent"  # where WANDB_PROJECT names no other

Config = Mapping[str, Any]
Write = Callable[[int, Mapping[str, float]], None]  # the values of a step


@contextmanager
def tensorboard(key: str, config: Config) -> Iterator[Write]:
    """An event file more in the folder of this key; it replaces the curves of those before it."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(RUNS / "tensorboard" / key), purge_step=0) as writer:
        writer.add_text("parameters", f"```json\n{json.dumps(config, indent=2)}\n```")

        def write(step: int, values: Mapping[str, float]) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)
            writer.flush()

        yield write


@contextmanager
def weights_and_biases(key: str, config: Config) -> Iterator[Write]:
    """The run of this key, without anything of the machine, of git or of the terminal.

    Offline unless WANDB_API_KEY or WANDB_MODE say otherwise. A run that goes on is taken up online by its
    key; offline it is written anew, whole.
    """
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its own crash reports, to its makers
    import wandb

    RUNS.mkdir(exist_ok=True)
    settings = wandb.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        host="",
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )
    mode: Any = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
    try:
        begun = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=key[:8],
            id=key,
            resume="allow" if mode == "online" else None,  # offline it would say that it cannot
            mode=mode,
            dir=str(RUNS),
            config=dict(config),
            settings=settings,
        )
    except wandb.Error as error:
        raise PipelineError(
            f"train.trackers: wandb: {error}; expected a run to begin (WANDB_MODE=offline needs no network)"
        ) from error
    with begun as run:

        def write(step: int, values: Mapping[str, float]) -> None:
            if step >= run.starting_step:  # it refuses a step that it has
                run.log(dict(values), step=step)

        yield write


TRACKERS: dict[str, Callable[[str, Config], AbstractContextManager[Write]]] = {
    "tensorboard": tensorboard,
    "wandb": weights_and_biases,
}


def check(names: Sequence[str]) -> None:
    """Raise PipelineError unless each of these trackers is installed."""
    for name in names:
        if find_spec(name) is None:
            raise PipelineError(
                f"train.trackers: {name} is not installed; expected it in the environment (make setup), or "
                "not in the list (params.yaml)"
            )


@contextmanager
def tracking(names: Sequence[str], key: str, config: Config) -> Iterator["TrainerCallback"]:
    """What tells these trackers all that DVCLive is told, in the first of several processes only."""
    with ExitStack() as stack:
        started: list[Write] = []

        def tell(log: callbacks.Log) -> None:
            if values := callbacks.points(log):
                for write in started:
                    write(log["step"], values)

        def begin(state: Any, control: Any, **_: Any) -> None:
            if state.is_world_process_zero:
                started.extend(stack.enter_context(TRACKERS[name](key, config)) for name in names)
            for log in state.log_history:
                tell(log)

        def logged(state: Any, control: Any, **_: Any) -> None:
            tell(state.log_history[-1])

        yield callbacks.callback(on_train_begin=begin, on_log=logged)
