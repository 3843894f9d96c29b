"""The data stages against `datasets.map` with the same checks: seconds, memory, and the same kept rows.

One source of generated rows in CodeAlpaca's shape goes through `filter`, `convert` and `mix`, as `dvc repro`
would run them. The peer parses, transforms and checks with the same functions, row by row or in batches of
1,000, drops exact duplicates, shuffles and writes; it looks for no near-duplicates and no benchmark texts
and keeps no ledger. The runs take turns. Memory is the sum over all processes of a run at its peak.

    python -m bench.data --rows 25000 --peers            # ratios
    python -m bench.data --rows 25000 250000 1000000     # growth
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.rows import rows
from stages.common import files

ROOT = Path(__file__).resolve().parents[1]
SOURCE = "coding"
STAGES = ("filter", "convert", "mix")

PEER = """
import json, sys
from functools import partial
import datasets
from stages.common import files, ledger, parsers
from stages.common.checks import verdict
from stages.common.params import load
from stages.common.transforms import transformed
from stages.convert import ConvertParams, examples
from stages.filter import FilterParams

datasets.disable_progress_bars()
chosen, tasks = load("filter.coding", FilterParams), load("convert.coding", ConvertParams).tasks
origin = parsers.Origin("coding", "alpaca", "CC-BY-4.0", "1")

def one(row, number):
    found, _ = transformed(parsers.parse(row, number, origin), chosen.transforms)
    good = [sample for sample in found if verdict(sample, chosen.checks) is None]
    made = [example for sample in good for example in examples(sample, tasks)]
    return {
        "digest": [str(ledger.digests(sample)[:2]) for sample in good],
        "prompt": [example.prompt for example in made],
        "completion": [example.completion for example in made],
    }

def many(batch, numbers):
    names = list(batch)
    results = [one(dict(zip(names, values)), number) for values, number in zip(zip(*batch.values()), numbers)]
    return {name: [result[name] for result in results] for name in ("digest", "prompt", "completion")}

data = datasets.load_dataset("json", data_files="data/raw/coding.jsonl", split="train")
batched = sys.argv[1] == "batched"
names = data.column_names
data = data.map(many if batched else one, with_indices=True, batched=batched, remove_columns=names)
seen = set()
def new(row):
    if not row["digest"] or row["digest"][0] in seen:
        return False
    seen.add(row["digest"][0])
    return True
data = data.filter(new).shuffle(seed=42)
data.to_json("peer.jsonl")
print(len(data))
"""


def prepare(folder: Path, count: int) -> None:
    """A project folder with `count` generated rows where `fetch` leaves them."""
    shutil.copytree(ROOT / "stages", folder / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "data/benchmarks", folder / "data/benchmarks")
    shutil.copy(ROOT / "params.yaml", folder / "params.yaml")
    files.write_rows(folder / f"data/raw/{SOURCE}.jsonl", rows(count))
    origin = {"uri": "file:generated", "licence": "CC-BY-4.0", "revision": "1", "note": "", "rows": count}
    provenance = {"schema": "alpaca", "rows": count, "origins": [{**origin, "committed": None, "files": []}]}
    files.write_json(folder / f"data/raw/{SOURCE}.provenance.json", provenance)
    shutil.copy(ROOT / "data/raw/humaneval.jsonl", folder / "data/raw/humaneval.jsonl")
    change(folder / "params.yaml")


def change(path: Path) -> None:
    """The committed parameters with one source, all of it, shuffled."""
    from ruamel.yaml import YAML

    yaml = YAML()
    values: dict[str, Any] = yaml.load(path)
    values["mix"] |= {
        "strategy": "proportional",
        "sources": {SOURCE: None},
        "rows": None,
        "max_chars": 12_000,
        "order": "shuffled",
        "floors": {},
    }
    yaml.dump(values, path)


def measured(command: list[str], folder: Path) -> tuple[float, float, str]:
    """Seconds, peak of the summed memory in MiB, and the last line that a command prints."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "HF_DATASETS_CACHE": str(folder / "cache")},
        stdout=subprocess.PIPE,
        text=True,
    )
    peak = [0.0]
    watcher = threading.Thread(target=watch, args=(process, peak))
    watcher.start()
    said, _ = process.communicate()
    watcher.join()
    if process.returncode:
        sys.exit(f"{' '.join(command)}: status {process.returncode}")
    return time.perf_counter() - start, peak[0], said.strip().splitlines()[-1]


def watch(process: "subprocess.Popen[str]", peak: list[float]) -> None:
    """Keep the largest sum of the private and shared memory of a process and its children."""
    while process.poll() is None:
        peak[0] = max(peak[0], sum(map(memory, family(process.pid))))
        time.sleep(0.05)


def family(pid: int) -> Iterator[int]:
    """A process and its descendants."""
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return
    for child in children.split():
        yield from family(int(child))


def memory(pid: int) -> float:
    """The proportional memory (PSS) of a process in MiB, 0 once it is gone; shared pages are divided."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:"))) / 1024


def run_ours(folder: Path) -> dict[str, tuple[float, float]]:
    """Seconds and MiB of each stage."""
    results = {}
    for stage in STAGES:
        arguments = [] if stage == "mix" else [SOURCE]
        seconds, peak, said = measured([sys.executable, "-m", f"stages.{stage}", *arguments], folder)
        results[stage] = seconds, peak
        print(f"    {stage}: {seconds:.1f} s, {peak:.0f} MiB ({said})")
    return results


def main() -> None:
    """Print the figures of every size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[25_000])
    parser.add_argument("--peers", action="store_true", help="also run datasets.map")
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    for count in arguments.rows:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            prepare(folder, count)
            for _ in range(arguments.rounds):
                print(f"{count} rows, ours:")
                ours = run_ours(folder)
                total = sum(seconds for seconds, _ in ours.values())
                print(f"    in all {total:.1f} s, {total / count * 1e6:.0f} us a row")
                for mode in ("batched", "row-wise") if arguments.peers else ():
                    shutil.rmtree(folder / "cache", ignore_errors=True)
                    seconds, peak, said = measured([sys.executable, "-c", PEER, mode], folder)
                    print(
                        f"{count} rows, datasets.map {mode}: {seconds:.1f} s, {peak:.0f} MiB ({said} kept), "
                        f"{seconds / total:.2f} times ours"
                    )


if __name__ == "__main__":
    main()
