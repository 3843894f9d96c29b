"""Measure how much metrics differ when nothing but the training's seed does.

    python -m tools.noise --seeds 43 44

Every seed is a DVC experiment named seed-<seed> of the current commit, run in a folder of its own, so that
the working tree stays as it is; one that is there is not repeated. Their reports/metrics.json and that of the
commit's own run become data/noise.json: commit it, and `report` sets the noise beside every difference.
"""

import argparse
import subprocess
from typing import Any

from stages.common import files, noise
from stages.common.errors import PipelineError, run
from tools.revisions import LOCK, METRICS, MIX, PARAMS, clean, experiments, git, mapping


def seedless(params: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """The training's seed, and all other parameters but the report's, which change no metric."""
    training = dict(params["train"])
    others = {name: group for name, group in params.items() if name != "report"}
    return training.pop("seed"), {**others, "train": training}


def inputs(lock: dict[str, Any]) -> dict[str, str]:
    """What a run was given, by path and hash: data that no stage wrote, and what its stages are made of.

    Our own file is left out, and so is the code as such, of which comments may change.
    """
    stages = [stage for name, stage in lock["stages"].items() if name != "program"]
    made = {str(noise.FILE), *(out["path"] for stage in stages for out in stage.get("outs", []))}
    given = (dep for stage in stages for dep in stage.get("deps", []) if dep["path"] not in made)
    return {dep["path"]: dep["md5"] for dep in given}


def repeat(seed: int, name: str) -> None:
    """Run the whole with another seed, whatever gates it misses; raises PipelineError where that fails."""
    command = ["dvc", "exp", "run", "--temp", "--name", name]
    command += ["--set-param", f"train.seed={seed}", "--set-param", "report.enforce=false"]
    try:
        status = subprocess.run(command, check=False).returncode
    except FileNotFoundError:
        raise PipelineError("dvc: not found; expected it on the path (make noise)") from None
    if status:
        raise PipelineError(
            f"{name}: {' '.join(command)} ended with {status}; expected 0 (it says why above)"
        )


def collect(head: str, named: dict[str, str]) -> files.Row:
    """What the file holds: of the commit's own run and of experiments that differ in the seed alone."""
    own = seedless(mapping(head, PARAMS, "HEAD"))
    given = inputs(mapping(head, LOCK, "HEAD"))
    facts: files.Row = {}
    found: dict[int, dict[str, float]] = {}
    for name, commit in {"HEAD": head, **named}.items():
        seed, others = seedless(mapping(commit, PARAMS, name))
        metrics = mapping(commit, METRICS, name)
        now = noise.facts(metrics, mapping(commit, MIX, name))
        facts = facts or now
        odd = (
            noise.differing(own[1], others)
            or noise.differing(given, inputs(mapping(commit, LOCK, name)))
            or noise.differing(facts, now)
        )
        if odd:
            raise PipelineError(f"{name}: {odd}; expected another train.seed than HEAD's and nothing else")
        if seed in found or name not in ("HEAD", f"seed-{seed}"):
            raise PipelineError(f"{name}: train.seed: {seed}; expected that of its name, and each once")
        found[seed] = noise.moved(metrics)
    names = found[own[0]]
    for seed, values in found.items():
        if missing := sorted(set(names) ^ set(values)):
            raise PipelineError(
                f"seed {seed}: {missing[0]} is not in every {METRICS}; expected the same metrics"
            )
    return {
        "revision": head,
        "seeds": list(found),
        "facts": facts,
        "values": {name: [values[name] for values in found.values()] for name in names},
    }


def measure(seeds: list[int]) -> files.Row:
    """Run what is missing, and collect."""
    head = git("rev-parse", "HEAD").strip()
    own = seedless(mapping(head, PARAMS, "HEAD"))[0]
    if own in seeds:
        raise PipelineError(f"--seeds: {own}; expected other seeds than the commit's own train.seed")
    there = experiments(head)
    names = {f"seed-{seed}": seed for seed in seeds}
    missing = [name for name in names if name not in there]
    if missing:
        clean(str(noise.FILE))
    for number, (name, seed) in enumerate(names.items(), 1):
        if name in missing:
            print(f"noise: {number} of {len(names)}: {name} is run", flush=True)
            repeat(seed, name)
        else:
            print(f"noise: {number} of {len(names)}: {name} is there", flush=True)
    there = experiments(head)
    for name in names:
        if name not in there:
            raise PipelineError(
                f"{name}: no such experiment of {head[:10]}; expected the one that was just run"
            )
    return collect(head, {name: there[name] for name in names})


def main() -> None:
    """Measure, and write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[43, 44], help="default: 43 44")
    seeds = parser.parse_args().seeds
    made = measure(list(dict.fromkeys(seeds)))
    files.write_json(noise.FILE, made)
    print(f"noise: {noise.FILE}: {len(made['values'])} metrics of seeds {', '.join(map(str, made['seeds']))}")


if __name__ == "__main__":
    run(main)
