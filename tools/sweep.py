"""Search for better parameters: Optuna proposes them, each trial is a DVC experiment of the committed run.

    python -m tools.sweep --trials 20      # until the sweep has 20 trials; killed at any moment, it goes on
    python -m tools.sweep --show           # the table of trials, and a picture in .partial/sweep/
    python -m tools.sweep --apply          # bring the best trial into the working tree

What is tried stands in conf/sweep.yaml. Trials run in folders of their own: the working tree stays as it is.
One that fails is recorded with its reason; one that was killed is run again with the same parameters.
"""

import argparse
import json
import math
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, TypeAdapter
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.common import files, noise
from stages.common.errors import PipelineError, run
from stages.common.params import params, validate
from stages.common.summary import columns
from tools import revisions, scatter

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

FILE = Path("conf/sweep.yaml")
FOLDER = Path(".partial/sweep")
GATED = (None, "report", "publish")  # targets that come to the report, whose gates would stop a trial
BENCHMARKS = (revisions.METRICS, "reports/scores/base.json", "reports/scores/tuned.json")
IN_A_ROW = 5  # failed trials after which it is not the parameters' fault


@params
class Range:
    """Numbers from low to high; whole ones where both are."""

    low: int | float
    high: int | float
    log: bool = False  # drawn evenly over their logarithms
    step: int | float | None = None

    def __post_init__(self) -> None:
        """Refuse what Optuna would."""
        if not self.low < self.high:
            raise ValueError(f"low < high; found {self.low} and {self.high}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("with log a low above 0 and no step")


@params
class Choices:
    """Some values, in no order."""

    choices: Annotated[list[bool | int | float | str], Field(min_length=2)]


@params
class Objective:
    """The number by which a trial is judged."""

    file: str
    metric: str  # dotted; a part may be *: the mean of what it stands for
    direction: Literal["minimize", "maximize"]


@params
class SweepParams:
    """What is tried, and how it is judged."""

    objective: Objective
    target: str | None
    seed: Annotated[int, Field(ge=0)]
    startup: Annotated[int, Field(ge=1)]
    fixed: dict[str, bool | int | float | str]
    space: Annotated[dict[str, Range | Choices], Field(min_length=1)]


def read(path: Path) -> SweepParams:
    """The settings; raises PipelineError naming the key that is wrong."""
    try:
        values = YAML(typ="safe").load(files.read_text(path))
    except YAMLError as error:
        raise PipelineError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    return validate(values, "sweep", SweepParams, path)


def measured(report: Mapping[str, Any], metric: str) -> dict[str, float]:
    """The numbers that a metric stands for, by dotted name.

    >>> measured({"valid": {"fix": 0.7, "write": 0.3}, "loss": 1.0}, "valid.*")
    {'valid.fix': 0.7, 'valid.write': 0.3}
    """
    wanted = metric.split(".")
    return {
        name: value
        for name, value in revisions.flat(report)
        if isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and _fits(name.split("."), wanted)
    }


def _fits(parts: Sequence[str], wanted: Sequence[str]) -> bool:
    return len(parts) == len(wanted) and all(
        one in ("*", part) for one, part in zip(wanted, parts, strict=True)
    )


def objective(commit: str, chosen: Objective, known: Sequence[str], name: str) -> float:
    """What a run is worth; raises PipelineError where it lacks a number that the committed run has."""
    numbers = measured(revisions.mapping(commit, chosen.file, name), chosen.metric)
    if missing := [one for one in known if one not in numbers]:
        raise PipelineError(
            f"{chosen.file}: {missing[0]}: nothing; expected a number, as the committed run has"
        )
    return sum(numbers[one] for one in known) / len(known)


def propose(trial: "Trial", space: Mapping[str, Range | Choices]) -> dict[str, Any]:
    """A value of each parameter."""
    result: dict[str, Any] = {}
    for key, one in space.items():
        if isinstance(one, Choices):
            result[key] = trial.suggest_categorical(key, one.choices)
        elif all(isinstance(part, int) for part in (one.low, one.high, one.step or 1)):
            result[key] = trial.suggest_int(
                key, int(one.low), int(one.high), step=int(one.step or 1), log=one.log
            )
        else:
            result[key] = trial.suggest_float(key, one.low, one.high, step=one.step, log=one.log)
    return result


def command(name: str, chosen: SweepParams, values: Mapping[str, Any]) -> list[str]:
    """The trial as DVC is asked to run it."""
    ungated = {"report.enforce": False} if chosen.target in GATED else {}
    settings = [f"{key}={json.dumps(value)}" for key, value in {**chosen.fixed, **ungated, **values}.items()]
    asked = ["dvc", "exp", "run", "--temp", "--name", name]
    asked += [part for one in settings for part in ("--set-param", one)]
    return [*asked, chosen.target] if chosen.target else asked


def failure(log: str) -> str:
    """Why a command ended, by what it printed: the first error, else the last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line.partition(" ")[2] for line in lines if line.lower().startswith("error: ")]
    return (errors or lines[-1:] or ["it said nothing"])[0]


# The study. --------------------------------------------------------------------------------------------


def opened(name: str, direction: Literal["minimize", "maximize"] | None = None) -> "Study":
    """The study of a sweep, out of its journal; a new one where there is none."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    FOLDER.mkdir(parents=True, exist_ok=True)
    return optuna.create_study(
        study_name=name,
        direction=direction,
        storage=JournalStorage(JournalFileBackend(str(FOLDER / f"{name}.journal"))),
        load_if_exists=True,
    )


def kept(name: str) -> "tuple[Study, SweepParams]":
    """A sweep that was begun, and its settings; raises PipelineError where there is none."""
    if not (FOLDER / f"{name}.journal").exists():
        raise PipelineError(f"sweep {name}: no {FOLDER / name}.journal; expected one (make sweep)")
    study = opened(name)
    return study, validate(study.user_attrs["settings"], "sweep", SweepParams, FILE)


def begin(study: "Study", head: str, chosen: SweepParams, known: Sequence[str]) -> None:
    """Tie a new study to its commit, and refuse one that began otherwise; put killed trials back in line."""
    from optuna.trial import TrialState

    settings = TypeAdapter(SweepParams).dump_python(chosen, mode="json")
    now = {"commit": head, "settings": settings, "numbers": list(known)}
    if not study.user_attrs:
        there = [one for one in revisions.experiments(head) if one.startswith(f"{study.study_name}-")]
        if there:
            raise PipelineError(
                f"{min(there)}: an experiment of an earlier sweep; expected none of this name "
                "(dvc exp remove, or another --name)"
            )
        for key, value in now.items():
            study.set_user_attr(key, value)
    if odd := noise.differing(study.user_attrs, now):
        raise PipelineError(
            f"sweep {study.study_name}: {odd}; expected what it began with, or another --name"
        )
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params, user_attrs={"again": trial.number})


def counted(study: "Study") -> "list[FrozenTrial]":
    """The trials that came to an end of their own: with a value, or with a reason for having none."""
    return [trial for trial in study.trials if trial.value is not None or "reason" in trial.user_attrs]


def attempt(study: "Study", head: str, chosen: SweepParams, known: Sequence[str]) -> None:
    """One trial: proposed, run, and told to the study."""
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState

    done = counted(study)
    # a seed for each trial, so that a sweep that was killed proposes what one that was not does
    study.sampler = TPESampler(seed=chosen.seed + len(done), n_startup_trials=chosen.startup)
    trial = study.ask()
    values = propose(trial, chosen.space)
    name = f"{study.study_name}-{trial.number}"
    print(f"sweep: {len(done) + 1}: {name}: {told(values)}", flush=True)
    same = next((one for one in done if one.params == values), None)
    try:
        if same:
            trial.set_user_attr("experiment", same.user_attrs.get("experiment"))
            value = same.value
            if value is None:
                raise PipelineError(same.user_attrs["reason"])
        else:
            execute(name, chosen, values)
            commit = revisions.experiments(head).get(name)
            if commit is None:
                raise PipelineError("DVC left no experiment; expected one")
            trial.set_user_attr("experiment", commit)
            value = objective(commit, chosen.objective, known, name)
    except PipelineError as error:
        trial.set_user_attr("reason", str(error))
        study.tell(trial, state=TrialState.FAIL)
        print(f"sweep: {name} failed: {error}", flush=True)
    else:
        study.tell(trial, value)
        print(f"sweep: {name}: {value:.6g}", flush=True)


def execute(name: str, chosen: SweepParams, values: Mapping[str, Any]) -> None:
    """Run a trial, its output to a file; raises PipelineError with the reason for which it failed."""
    log = FOLDER / f"{name}.log"
    try:
        with log.open("wb") as stream:
            status = subprocess.run(
                command(name, chosen, values), stdout=stream, stderr=subprocess.STDOUT, check=False
            ).returncode
    except FileNotFoundError:
        raise PipelineError("dvc: not found; expected it on the path (make sweep)") from None
    if status:
        raise PipelineError(f"{failure(log.read_text(encoding='utf-8', errors='replace'))} ({log})")


def search(study: "Study", head: str, chosen: SweepParams, known: Sequence[str], count: int) -> None:
    """Trials until there are `count`; raises PipelineError where several in a row fail."""
    while len(done := counted(study)) < count:
        if len(done) >= IN_A_ROW and all(trial.value is None for trial in done[-IN_A_ROW:]):
            reason = done[-1].user_attrs["reason"]
            raise PipelineError(
                f"sweep {study.study_name}: {IN_A_ROW} trials in a row failed, the last: {reason}; expected "
                f"some to come through (change {FILE}, and begin another sweep by --name)"
            )
        attempt(study, head, chosen, known)


def best(study: "Study") -> "FrozenTrial":
    """The best trial; raises PipelineError where none has a value."""
    if not any(trial.value is not None for trial in study.trials):
        raise PipelineError(f"sweep {study.study_name}: no trial with a value; expected some (make sweep)")
    return study.best_trial


def name_of(study: "Study", trial: "FrozenTrial") -> str:
    """What the trial's experiment is called."""
    return f"{study.study_name}-{trial.number}"


def dots(study: "Study") -> list[scatter.Dot]:
    """The trials as they are drawn."""
    return [scatter.Dot(name_of(study, one), one.params, one.value) for one in counted(study)]


def told(values: Mapping[str, Any]) -> str:
    """Parameters in a line: `told({"train.seed": 1}) == "train.seed=1"`."""
    return ", ".join(f"{key}={brief(value)}" for key, value in values.items())


def brief(value: object) -> str:
    """A parameter in few digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(
    found: Sequence[scatter.Dot], chosen: SweepParams, committed: float, reasons: Mapping[str, str]
) -> str:
    """The trials, best first, then the failed ones with their reasons."""
    sign = 1 if chosen.objective.direction == "minimize" else -1
    rows = [
        ["", chosen.objective.metric, *chosen.space],
        ["committed run", f"{committed:.6g}", *[""] * len(chosen.space)],
    ]
    good = [(dot, dot.value) for dot in found if dot.value is not None]
    for dot, value in sorted(good, key=lambda one: sign * one[1]):
        rows.append([dot.name, f"{value:.6g}", *(brief(dot.values[key]) for key in chosen.space)])
    bad = [f"{name} failed: {reason}" for name, reason in reasons.items()]
    return "\n".join([columns(rows), *([""] if bad else []), *bad])


def main() -> None:
    """Search, show, or apply, as the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--trials", type=int, default=0, help="how many the sweep shall have; failed ones count"
    )
    parser.add_argument("--name", type=files.plain_name, default="sweep", help="default: sweep")
    parser.add_argument(
        "--show", action="store_true", help="print the trials and draw them (also after a search)"
    )
    parser.add_argument("--apply", action="store_true", help="bring the best trial into the working tree")
    asked = parser.parse_args()
    if not (asked.trials or asked.show or asked.apply):
        parser.error("expected --trials, --show or --apply")

    if asked.trials or asked.apply:
        revisions.clean()
    if asked.trials:
        chosen = read(FILE)
        head = revisions.git("rev-parse", "HEAD").strip()
        numbers = judged(head, chosen)
        study = opened(asked.name, chosen.objective.direction)
        begin(study, head, chosen, numbers)
        search(study, head, chosen, numbers, asked.trials)
    study, chosen = kept(asked.name)
    first = best(study)
    head, numbers = study.user_attrs["commit"], study.user_attrs["numbers"]
    reasons = {name_of(study, one): one.user_attrs["reason"] for one in counted(study) if one.value is None}
    print(table(dots(study), chosen, objective(head, chosen.objective, numbers, head[:10]), reasons))
    logarithmic = [key for key, one in chosen.space.items() if isinstance(one, Range) and one.log]
    picture = FOLDER / f"{asked.name}.svg"
    metric = chosen.objective.metric
    files.write_text(picture, scatter.drawn(dots(study), name_of(study, first), metric, logarithmic))
    print(f"sweep: {len(counted(study))} trials; best: {name_of(study, first)}; picture: {picture}")
    if asked.apply:
        apply(first.user_attrs["experiment"])
        print(f"sweep: {name_of(study, first)} is in the working tree; dvc repro runs what is left")


def judged(head: str, chosen: SweepParams) -> list[str]:
    """The numbers that trials are judged by; raises PipelineError on a key that the committed run lacks."""
    metric, file = chosen.objective.metric, chosen.objective.file
    numbers = list(measured(revisions.mapping(head, file, "HEAD"), metric))
    if not numbers:
        raise PipelineError(f"objective.metric: {metric}; expected numbers of {file} ({FILE})")
    known = dict(revisions.flat(revisions.mapping(head, revisions.PARAMS, "HEAD")))
    unknown = chosen.space.keys() - known.keys()
    if unknown and not chosen.fixed:  # which may choose another recipe
        raise PipelineError(f"space.{min(unknown)}: no such parameter; expected one of params.yaml ({FILE})")
    if file in BENCHMARKS and not metric.startswith("training."):
        print("sweep: chosen by a benchmark: what the report then says of the best trial is too good")
    return numbers


def apply(commit: str) -> None:
    """Bring an experiment into the working tree."""
    done = subprocess.run(["dvc", "exp", "apply", commit], capture_output=True, text=True, check=False)
    if done.returncode:
        raise PipelineError(f"dvc exp apply {commit[:10]}: {failure(done.stderr)}")


if __name__ == "__main__":
    run(main)
