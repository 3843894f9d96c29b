"""The whole pipeline at a tiny size: it runs, then rests, and reruns only what a change touches."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Clone, composed, read_rows, read_yaml, write_yaml

pytestmark = pytest.mark.smoke

SOURCES = ["coding", "error_handling", "fixes", "preferences"]
REPORTED = {"report", "publish"}
AFTER_TRAIN = {"export", "generate@tuned", "score@tuned", *REPORTED}
AFTER_MIX = {
    "mix",
    "preflight",
    "train",
    "score@base",
    *AFTER_TRAIN,
}  # both scores tell trained CWEs from others
MODELS = ("base", "tuned")


class Graph:
    """The stages of a clone as DVC resolves them."""

    def __init__(self, root: Path) -> None:
        from dvc.repo import Repo

        with Repo(str(root)) as repo:
            index = repo.index
            self.names = {stage.name for stage in index.stages}
            self.outs = {stage.name: [str(out.def_path) for out in stage.outs] for stage in index.stages}
            edges = [(user.name, used.name) for user, used in index.graph.edges]
        self.users: dict[str, set[str]] = {name: set() for name in self.names}
        for user, used in edges:
            self.users[used].add(user)

    def touched(self, changed: set[str]) -> set[str]:
        """The changed stages and all that follows from them."""
        found: set[str] = set()
        waiting = [*changed]
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting += self.users[name]
        return found


@pytest.fixture(scope="module", autouse=True)
def surroundings(clone: Clone) -> Iterator[None]:
    """DVC within this process sees what it sees in the clone's commands."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in clone.environment.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def graph(clone: Clone) -> Graph:
    return Graph(clone.root)


@pytest.fixture
def restored(clone: Clone) -> Iterator[Clone]:
    """The clone, whose tracked files and parameters are put back afterwards."""
    kept = {path: path.read_bytes() for path in tracked(clone)}
    yield clone
    for path, content in kept.items():
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)


def tracked(clone: Clone) -> list[Path]:
    names = clone.checked("git", "ls-files", "params.yaml", "stages", "data", "dvc.yaml").splitlines()
    return [clone.root / name for name in names]


def changed(clone: Clone) -> set[str]:
    """The stages that differ from the last run, each for a reason of its own: what `dvc status` lists."""
    from dvc.repo import Repo

    with Repo(str(clone.root)) as repo:
        return {name.rpartition(":")[2] for name in repo.status()}


def outputs(clone: Clone) -> dict[str, bytes]:
    folders = ("data", "models", "reports")
    paths = (path for folder in folders for path in (clone.root / folder).rglob("*") if path.is_file())
    return {str(path.relative_to(clone.root)): path.read_bytes() for path in paths}


def numbers(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from numbers(inner, f"{key}.{name}".lstrip("."))
    else:
        yield key, value


# It runs. ----------------------------------------------------------------------------------------------


def test_every_declared_output_exists(clone: Clone, graph: Graph) -> None:
    locked = read_yaml(clone.root / "dvc.lock")["stages"]
    assert set(locked) == graph.names
    for stage, paths in graph.outs.items():
        for path in paths:
            assert (clone.root / path).exists(), f"{stage} did not write {path}"


def test_the_headline_metrics_are_finite_and_given_for_both_models(clone: Clone) -> None:
    metrics = json.loads((clone.root / "reports/metrics.json").read_text(encoding="utf-8"))
    found = dict(numbers(metrics))
    wrong = {
        key: value
        for key, value in found.items()
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value)
    }
    assert not wrong
    names = {key.rsplit(".", 1)[0] for key in found if key.endswith(MODELS)}
    assert names >= {
        "coding.pass_at_1",
        "detection.mcc",
        "error_handling.pass_rate",
        "reference_tests.passed",
    }
    assert all(f"{name}.{model}" in found for name in names for model in MODELS)
    assert {"training.loss", "training.tokens", "data.rows", "data.mixed"} <= set(found)
    assert metrics["data"]["rows"] == metrics["data"]["kept"] + metrics["data"]["rejected"]


def test_both_models_answer_the_same_tasks_and_every_answer_is_judged(clone: Clone) -> None:
    rows = {
        (kind, model): read_rows(clone.root / f"reports/{kind}/{model}.jsonl")
        for kind in ("completions", "verdicts")
        for model in MODELS
    }
    ids = {key: [row["id"] for row in found] for key, found in rows.items()}
    assert all(found == ids["completions", "base"] for found in ids.values())
    assert len(set(ids["completions", "base"])) == len(ids["completions", "base"]) > 0
    assert [row["prompt"] for row in rows["completions", "base"]] == [
        row["prompt"] for row in rows["completions", "tuned"]
    ]


def test_the_report_is_one_page_that_loads_nothing(clone: Clone) -> None:
    page = (clone.root / "reports/report.html").read_text(encoding="utf-8")
    assert "</html>" in page
    assert not re.search(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)\s*=\s*[\"']?(?:https?:)?//", page)
    assert not re.search(r"@import|url\(\s*[\"']?(?:https?:)?//", page)


def test_the_run_changes_no_tracked_file_but_its_own_reports(clone: Clone) -> None:
    lines = clone.checked("git", "status", "--porcelain", "--untracked-files=all").splitlines()
    others = [line for line in lines if not line[3:].startswith(("reports/", "dvc.lock"))]
    assert not others


# It rests. ---------------------------------------------------------------------------------------------


def test_a_second_run_does_nothing(clone: Clone) -> None:
    before = outputs(clone)
    said = clone.checked("dvc", "repro")
    assert "Running stage" not in said and "up to date" in said
    assert outputs(clone) == before


# It reruns what a change touches. ----------------------------------------------------------------------


def every(stage: str, sources: list[str] = SOURCES) -> set[str]:
    return {f"{stage}@{source}" for source in sources}


EVALUATION = {"generate@base", "generate@tuned", "score@base", "score@tuned", *REPORTED}
PARAMETERS = [
    ("train.learning_rate", 0.002, {"preflight", "train"}, {"preflight", "train", *AFTER_TRAIN}),
    (
        "filter.fixes.checks.length",
        1999,
        {"filter@fixes"},
        {"filter@fixes", "convert@fixes", *AFTER_MIX},
    ),
    ("convert.coding.tasks", ["reference_write"], {"convert@coding"}, {"convert@coding", *AFTER_MIX}),
    ("mix.sources.fixes", 0.5, {"mix"}, AFTER_MIX),
    ("export.parity_prompts", 3, {"export"}, AFTER_TRAIN),
    ("generate.batch_size", 4, {"generate@base", "generate@tuned"}, EVALUATION),
    ("score.cpu_seconds", 11, {"score@base", "score@tuned"}, {"score@base", "score@tuned", *REPORTED}),
    ("publish.artifact", "adapter", {"publish"}, {"publish"}),
    ("base.licence", "MIT", {"base"}, {"base", *EVALUATION, *AFTER_MIX} - {"mix"}),
]
CODE = [
    ("stages/convert.py", every("convert"), every("convert") | AFTER_MIX),
    ("stages/common/chunks.py", every("filter"), every("filter") | every("convert") | AFTER_MIX),
    ("stages/common/card.py", {"mix", "publish"}, AFTER_MIX),
    ("stages/report.html", {"report"}, REPORTED),
    ("stages/common/jail.py", every("filter") | {"score@base", "score@tuned"}, None),
    ("stages/common/uris.py", every("fetch", [*SOURCES, "humaneval"]) | {"base", "publish"}, None),
    ("data/benchmarks/reference.jsonl", {"mix", *EVALUATION} - REPORTED, AFTER_MIX | EVALUATION),
]


@pytest.mark.parametrize(
    ("key", "value", "direct", "all_touched"), PARAMETERS, ids=lambda value: str(value)[:30]
)
def test_a_parameter_reruns_its_stage_and_what_follows(
    key: str, value: Any, direct: set[str], all_touched: set[str], restored: Clone, graph: Graph
) -> None:
    values = read_yaml(restored.params)
    node = values
    *path, last = key.split(".")
    for part in path:
        node = node[part]
    assert node[last] != value
    node[last] = value
    write_yaml(restored.params, values)
    assert changed(restored) == direct
    assert graph.touched(direct) == all_touched


@pytest.mark.parametrize(("path", "direct", "all_touched"), CODE, ids=[path for path, _, _ in CODE])
def test_a_file_reruns_the_stages_that_use_it(
    path: str, direct: set[str], all_touched: set[str] | None, restored: Clone, graph: Graph
) -> None:
    with (restored.root / path).open("a", encoding="utf-8") as stream:
        stream.write("\n")
    assert changed(restored) == direct
    touched = graph.touched(direct)
    if all_touched is not None:
        assert touched == all_touched
    if not any(name.startswith("fetch") for name in direct):
        assert not any(name.startswith("fetch") for name in touched)


def test_a_change_without_effect_stops_at_its_stage(restored: Clone) -> None:
    with (restored.root / "stages/convert.py").open("a", encoding="utf-8") as stream:
        stream.write("\n# nothing changes\n")
    ran = re.findall(r"Running stage '([^']+)'", restored.checked("dvc", "repro"))
    assert set(ran) == every("convert")
    restored.checked("git", "checkout", "-q", "stages/convert.py")
    again = restored.checked("dvc", "repro")
    assert "Running stage" not in again, "the run cache answers for what was run before"


# Errors. -----------------------------------------------------------------------------------------------


def spoil_row(clone: Clone) -> None:
    with (clone.root / "data/raw/fixes.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"language": \n')


def spoil_field(clone: Clone) -> None:
    path = clone.root / "data/filtered/fixes.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace('"output"', '"answer"', 1), encoding="utf-8")


def spoil_parameter(clone: Clone) -> None:
    values = read_yaml(clone.params)
    values["mix"]["speed"] = 1
    values["train"]["adapter"]["rank"] = 0
    write_yaml(clone.params, values)


@pytest.mark.parametrize(
    ("spoil", "arguments", "message"),
    [
        (
            spoil_row,
            ["filter", "fixes"],
            r"data/raw/fixes\.provenance\.json: 24 rows declared; expected the 25 of data/raw/fixes\.jsonl",
        ),
        (
            spoil_field,
            ["convert", "fixes"],
            r"data/filtered/fixes\.jsonl:1: keys .*answer.*expected .*output",
        ),
        (spoil_parameter, ["mix"], r"mix\.speed: 1; expected no such key.*params\.yaml"),
        (
            spoil_parameter,
            ["preflight"],
            r"train\.adapter\.rank: 0; expected greater than or equal to 1 \(params",
        ),
        (lambda clone: None, ["fetch", "nowhere"], r"fetch\.nowhere: no group 'nowhere'; found .*coding"),
    ],
    ids=["row", "field", "parameter", "nested parameter", "source"],
)
def test_a_fault_ends_with_one_line_and_leaves_what_was_there(
    spoil: Any, arguments: list[str], message: str, restored: Clone
) -> None:
    inputs = outputs(restored)
    stage, *rest = arguments
    spoil(restored)
    before = outputs(restored)
    done = restored.run("python", "-m", f"stages.{stage}", *rest)
    after = outputs(restored)
    for name, content in inputs.items():
        if before[name] != content:
            (restored.root / name).unlink()  # it may be a link into the cache
            (restored.root / name).write_bytes(content)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(f"error: {message}[^\n]*\n", done.stderr)
    assert after == before


# Hydra. ------------------------------------------------------------------------------------------------


def test_another_recipe_is_another_set_of_stages(restored: Clone) -> None:
    restored.params.write_text(composed("v2", "demo"), encoding="utf-8")
    names = {line.split()[0] for line in restored.checked("dvc", "stage", "list", "--all").splitlines()}
    assert {name for name in names if "@" in name} == {
        *("fetch@coding", "fetch@humaneval", "filter@coding", "convert@coding"),
        *("generate@base", "generate@tuned", "score@base", "score@tuned"),
    }


def test_an_experiment_composes_its_parameters(clone: Clone) -> None:
    model = read_yaml(clone.params)["base"]["uri"]
    before = clone.params.read_bytes()
    done = clone.run("dvc", "exp", "run", "--dry", "-S", "recipe=v2", "-S", f"base.uri='{model}'")
    said = done.stdout + done.stderr
    assert "'filter@coding'" in said and "@fixes" not in said, said
    assert clone.params.read_bytes() == before
