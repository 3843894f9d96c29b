"""The whole pipeline at a tiny size: it runs, then rests, and reruns only what a change touches."""

import json
import math
import re
from collections import ChainMap, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import Clone, cloned, composed, read_rows, read_yaml, watched_or_skipped, write_yaml

from stages.common import files, program
from stages.common.params import load
from tools import hermetic

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
    """DVC within this process sees what it sees in the clone's commands, and parses each text once."""
    from dvc.utils.serialize import _yaml

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_yaml, "parse_yaml", cache(_yaml.parse_yaml))
        for name, value in clone.environment.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def graph(clone: Clone) -> Graph:
    return Graph(clone.root)


@pytest.fixture
def restored(clone: Clone) -> Iterator[Clone]:
    """The clone, whose tracked files, lock and programs are put back afterwards."""
    paths = [*tracked(clone), clone.root / "dvc.lock", *(clone.root / "programs").iterdir()]
    kept = {path: path.read_bytes() for path in paths}
    yield clone
    for path, content in kept.items():
        if not path.exists() or path.read_bytes() != content:
            path.unlink(missing_ok=True)  # it may be a link into the cache
            path.write_bytes(content)


def tracked(clone: Clone, *places: str) -> list[Path]:
    """The files in git under these places, or all that a run may read."""
    places = places or ("params.yaml", "stages", "data", "dvc.yaml", "conf", program.LOCK)
    return [clone.root / name for name in clone.checked("git", "ls-files", *places).splitlines()]


def reasons(clone: Clone) -> dict[str, Mapping[str, Any]]:
    """The stages that differ from the last run and which dependencies make them: what `dvc status` lists."""
    from dvc.repo import Repo

    with Repo(str(clone.root)) as repo:
        return {
            name.rpartition(":")[2]: ChainMap(*(part.get("changed deps", {}) for part in parts))
            for name, parts in repo.status().items()
        }


def changed(clone: Clone) -> set[str]:
    return set(reasons(clone))


def programs(clone: Clone, chosen: program.ProgramParams) -> dict[str, Any]:
    """What every stage of the clone is made of now."""
    there, locked = program.tree(clone.root), program.lock(clone.root)
    return {stage: program.described(stage, chosen, there, locked) for stage in program.stages(there)}


def described(clone: Clone) -> set[str]:
    """Write down what every stage is made of, as the stage `program` does; those of which that changed."""
    found = set()
    for stage, made in programs(clone, load("program", program.ProgramParams, clone.params)).items():
        path = clone.root / f"programs/{stage}.json"
        if files.read_json(path) != made:
            files.write_json(path, made)
            found.add(stage)
    return found


def alter(path: Path) -> None:
    """Change what a file says: in Python, what it does."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write("\nADDED = 1\n" if path.suffix == ".py" else "\n")


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
FILES = [
    ("stages/convert.py", every("convert"), every("convert") | AFTER_MIX),
    ("stages/common/chunks.py", every("filter"), every("filter") | every("convert") | AFTER_MIX),
    ("stages/common/card.py", {"mix", "publish"}, AFTER_MIX),
    ("stages/common/noise.py", {"report"}, REPORTED),
    ("stages/report.html", {"report"}, REPORTED),
    ("stages/program.py", set(), set()),
    ("data/noise.json", {"report"}, REPORTED),
    ("data/benchmarks/reference.jsonl", {"mix", *EVALUATION} - REPORTED, AFTER_MIX | EVALUATION),
]


@pytest.mark.parametrize(
    ("key", "value", "direct", "all_touched"), PARAMETERS, ids=[key for key, *_ in PARAMETERS]
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


@pytest.mark.parametrize(("path", "direct", "all_touched"), FILES, ids=[path for path, _, _ in FILES])
def test_a_file_reruns_the_stages_that_use_it(
    path: str, direct: set[str], all_touched: set[str], restored: Clone, graph: Graph
) -> None:
    alter(restored.root / path)
    described(restored)
    assert changed(restored) - {"program"} == direct
    assert graph.touched(direct) == all_touched


def declared(clone: Clone) -> dict[str, dict[str, Any]]:
    """What dvc.yaml says of each stage, for each of its items, with the clone's parameters."""
    values = read_yaml(clone.params)
    found = {}
    for stage, entry in read_yaml(clone.root / "dvc.yaml")["stages"].items():
        over = entry.get("foreach", [""])
        items = values[over[2:-1]] if isinstance(over, str) else over
        for key in items:
            item = items[key] if isinstance(items, dict) and isinstance(items[key], str) else key
            text = json.dumps(entry.get("do", entry)).replace("${key}", key).replace("${item}", item)
            text = text.replace("${train.launcher}", values["train"]["launcher"])
            found[f"{stage}@{key}" if key else stage] = json.loads(text)
    return found


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the values in a tree stand; a list of plain ones is one, and so is what is empty."""
    inner: Iterable[Any] = value if isinstance(value, dict) else ()
    if isinstance(value, list) and any(isinstance(part, dict) for part in value):
        inner = range(len(value))
    if not inner:
        yield path
    for key in inner:
        yield from leaves(value[key], (*path, key))


def put(values: Any, path: tuple[Any, ...]) -> None:
    """Put another value there."""
    *outer, last = path
    for key in outer:
        values = values[key]
    value = values[last]
    if last == "launcher":
        values[last] = "ddp"  # it names a file
    elif isinstance(value, list):
        values[last] = [*value, "x"]
    elif isinstance(value, bool):
        values[last] = not value
    else:
        values[last] = value + 1 if isinstance(value, int | float) else f"{value}x"


def test_every_parameter_reruns_the_stages_that_name_its_group(restored: Clone) -> None:
    """One value of every group is changed at a time; the reasons tell them apart."""
    values, stages = read_yaml(restored.params), declared(restored)
    named = {stage: set(entry["params"]) for stage, entry in stages.items()}
    groups = set().union(*named.values())
    paths: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
    for path in leaves(values):
        (group,) = groups & {path[0], ".".join(map(str, path[:2]))}
        paths[group].append(path)
    for number in range(max(map(len, paths.values()))):
        now = deepcopy(values)
        touched = {group: path[number] for group, path in paths.items() if number < len(path)}
        for path in touched.values():
            put(now, path)
        write_yaml(restored.params, now)
        found = reasons(restored)
        assert set(found) == {stage for stage, names in named.items() if names & set(touched)}, touched
        for stage, entry in declared(restored).items():
            if stage in found:
                others = set(entry["deps"]) - set(stages[stage]["deps"])  # a parameter may name a file
                assert set(found[stage]) == {"params.yaml", *others}, touched
                assert set(found[stage]["params.yaml"]) == named[stage] & set(touched), touched


def test_every_data_file_reruns_the_stages_that_list_it(restored: Clone) -> None:
    """One file of every folder is changed at a time; the reasons tell them apart."""
    deps = {stage: entry["deps"] for stage, entry in declared(restored).items()}
    folders: dict[Path, list[Path]] = defaultdict(list)
    for path in tracked(restored, "data", "conf/launch"):
        folders[path.parent].append(path)
    assert len(folders) == 4
    for number in range(max(map(len, folders.values()))):
        touched = [paths[number] for paths in folders.values() if number < len(paths)]
        kept = {path: path.read_bytes() for path in touched}
        for path in touched:
            alter(path)
        seen = {path.relative_to(restored.root) for path in touched if path.name != "README.md"}  # .dvcignore
        expected = {
            stage: {dep for dep in listed if any(path.is_relative_to(dep) for path in seen)}
            for stage, listed in deps.items()
        }
        found = {stage: set(why) for stage, why in reasons(restored).items()}
        assert found == {stage: why for stage, why in expected.items() if why}, touched
        for path, content in kept.items():
            path.write_bytes(content)


def test_every_source_file_changes_the_programs_of_the_stages_that_read_it(restored: Clone) -> None:
    """What a stage reads of our code when it runs is what reruns it."""
    watched_or_skipped()
    reads: dict[str, set[str]] = defaultdict(set)
    for stage, done in hermetic.noted(restored.scratch / hermetic.LOG).items():
        for path in done["reads"] if stage != "program" else ():
            reads[path.removeprefix(f"{restored.root}/")].add(stage.partition("@")[0])
    chosen = load("program", program.ProgramParams, restored.params)
    before = programs(restored, chosen)
    for path in tracked(restored, "stages"):
        name = path.relative_to(restored.root)
        kept = path.read_bytes()
        alter(path)
        after = programs(restored, chosen)
        path.write_bytes(kept)
        spared = ".".join(name.with_suffix("").parts) in chosen.harmless
        users = set() if spared else reads[name.as_posix()]
        assert {stage for stage in before if before[stage] != after[stage]} == users, name


def test_a_stage_reruns_for_its_own_program_alone(restored: Clone) -> None:
    for path in (restored.root / "programs").iterdir():
        files.write_json(path, {})
    stages = declared(restored)
    own = {stage: {f"programs/{stage.partition('@')[0]}.json"} for stage in stages if stage != "program"}
    found = {stage: set(why) for stage, why in reasons(restored).items()}
    assert found == {**own, "program": set()}


def ran(clone: Clone) -> set[str]:
    """Run DVC; the stages that it ran."""
    return set(re.findall(r"Running stage '([^']+)'", clone.checked("dvc", "repro")))


def test_comments_docstrings_and_layout_rerun_nothing(restored: Clone) -> None:
    sources = [path for path in tracked(restored, "stages") if path.suffix == ".py"]
    options = ["--isolated", "--no-cache", "--line-length=60", "--config=format.quote-style='single'"]
    restored.checked("ruff", "format", "-q", *options, "stages")
    for path in sources:
        text = path.read_text(encoding="utf-8").replace('"""', '"""Said otherwise. ', 1)
        path.write_text(f"# A comment.\n{text}", encoding="utf-8")
    assert ran(restored) == {"program"}
    assert changed(restored) == set()


def test_a_pin_reruns_the_stages_that_use_the_package(restored: Clone) -> None:
    lock = restored.root / program.LOCK
    text = lock.read_text(encoding="utf-8")
    lock.write_text(re.sub(r"(?m)^pytest==\S+", "pytest==0.1", text), encoding="utf-8")
    assert ran(restored) == {"program"}
    lock.write_text(re.sub(r"(?m)^trl==\S+", "trl==0.1", text), encoding="utf-8")
    assert described(restored) == {"preflight", "train"}
    assert changed(restored) == {"program", "preflight", "train"}
    said = restored.run("dvc", "repro").stderr
    assert re.search(r"error: trl: [\d.]+ installed; expected 0\.1 \(requirements\.lock; run make ", said)


def test_a_change_without_effect_stops_at_its_stage(restored: Clone) -> None:
    alter(restored.root / "stages/convert.py")
    assert ran(restored) == {"program", *every("convert")}
    restored.checked("git", "checkout", "-q", "stages/convert.py")
    assert ran(restored) == set(), "the run cache answers for what was run before"


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
    # no program is in the folder of a dry experiment: it names the stages as skipped
    command = ["dvc", "exp", "run", "--dry", "--keep-going", "-S", "recipe=v2", "-S", f"base.uri='{model}'"]
    done = clone.run(*command)
    said = done.stdout + done.stderr
    assert "'filter@coding'" in said and "@fixes" not in said, said
    assert clone.params.read_bytes() == before


@pytest.mark.parametrize(
    ("module", "line", "current"),
    [
        (None, "", True),
        ("fetch", "# a comment", True),
        ("fetch", "CHANGED = 1", False),  # its inputs are in git: DVC says that it would run
        ("score", "CHANGED = 1", False),  # its inputs are not: DVC says that they are missing
    ],
)
def test_a_clone_without_data_knows_whether_the_lock_is_current(
    module: str | None, line: str, current: bool, committed: Clone, tmp_path: Path
) -> None:
    fresh = cloned(committed, tmp_path)
    if module:
        with (fresh.root / f"stages/{module}.py").open("a") as file:
            file.write(f"\n{line}\n")
    done = fresh.run("make", "current", "IN=image")
    assert (done.returncode == 0) == current, done.stderr
    assert ("dvc.lock: not of these files" in done.stderr) != current
