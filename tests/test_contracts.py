"""The contracts between code, dvc.yaml and params.yaml: names, dependencies, parameters, rows, imports."""

import ast
import importlib
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Clone, composed, read_rows, read_yaml
from ruamel.yaml import YAML

from stages.common.params import load

PIPELINE = read_yaml(ROOT / "dvc.yaml")["stages"]
STAGES = sorted(PIPELINE)
MODULES = sorted(path.stem for path in (ROOT / "stages").glob("*.py") if path.stem != "__init__")
COMMON = sorted(path.stem for path in (ROOT / "stages/common").glob("*.py") if path.stem != "__init__")
VALUES = read_yaml(ROOT / "params.yaml")

KEYS = ["desc", "cmd", "deps", "params", "outs", "metrics"]
RECIPES = [(recipe, scale) for recipe in ("v2", "v3", "v4") for scale in ("demo", "full")]


def definition(stage: str) -> dict[str, Any]:
    """What DVC runs for a stage: the part under `do` where it is repeated."""
    return PIPELINE[stage].get("do", PIPELINE[stage])


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def local_modules(path: Path) -> set[Path]:
    """The files under stages/ that a file imports itself, inside functions too; packages do not count."""
    names: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    files = (ROOT / (name.replace(".", "/") + ".py") for name in names if name.split(".")[0] == "stages")
    return {file for file in files if file.is_file()}


def reached(path: Path) -> set[Path]:
    """A file and every local file that it imports, directly or not."""
    found: set[Path] = set()
    waiting = [path]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting += local_modules(file)
    return found


def loads(module: str) -> list[tuple[str, str]]:
    """Group and class of each `load(...)` in a stage's module, with * for what is known only when it runs."""
    found = []
    for node in ast.walk(tree(ROOT / "stages" / f"{module}.py")):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "load"):
            continue
        group, cls = node.args[:2]
        assert isinstance(cls, ast.Name)
        parts = group.values if isinstance(group, ast.JoinedStr) else [group]
        found.append(
            ("".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in parts), cls.id)
        )
    return found


READERS = [module for module in MODULES if loads(module)]  # the report reads no parameter


# 1. One name. ------------------------------------------------------------------------------------------


def test_every_module_is_a_stage_and_every_stage_a_module() -> None:
    assert MODULES == STAGES


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_runs_the_module_and_has_the_test_file_of_its_name(stage: str) -> None:
    item = {"fetch": "key", "filter": "key", "convert": "key", "generate": "key", "score": "item"}.get(stage)
    assert definition(stage)["cmd"] == f"python -m stages.{stage}" + (f" ${{{item}}}" if item else "")
    assert (ROOT / "tests" / f"test_{stage}.py").is_file()


def test_groups_of_parameters_are_named_after_the_stages_that_read_them() -> None:
    assert sorted(VALUES) == READERS
    assert [stage for stage in STAGES if stage not in READERS] == ["report"]


# 2. Dependencies are exact. ----------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_code_dependencies_are_the_modules_that_are_imported(stage: str) -> None:
    imported = {str(path.relative_to(ROOT)) for path in reached(ROOT / "stages" / f"{stage}.py")}
    named = [path for path in definition(stage)["deps"] if path.endswith(".py")]
    assert len(named) == len(set(named))
    assert set(named) - imported == set(), "named in dvc.yaml but not imported"
    assert imported - set(named) == set(), "imported but not named in dvc.yaml"


def test_the_import_scan_sees_every_form(tmp_path: Path) -> None:
    path = tmp_path / "sample.py"
    path.write_text(
        "import stages.mix\nfrom stages.common import cwe, errors as e\nimport json\n"
        "def late():\n    from stages.common.uris import files\n",
        encoding="utf-8",
    )
    found = {str(file.relative_to(ROOT)) for file in local_modules(path)}
    assert found == {"stages/mix.py", *(f"stages/common/{name}.py" for name in ("cwe", "errors", "uris"))}


# 3. Parameters are exact. ------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_parameters_named_are_the_parameters_read(stage: str) -> None:
    named = [re.sub(r"\$\{(key|item)\}", "*", name) for name in definition(stage).get("params", [])]
    assert sorted(named) == sorted(group for group, _ in loads(stage))


@pytest.mark.parametrize("stage", READERS)
def test_every_field_of_a_parameter_class_is_used(stage: str) -> None:
    module = tree(ROOT / "stages" / f"{stage}.py")
    used = {node.attr for node in ast.walk(module) if isinstance(node, ast.Attribute)}
    for node in module.body:
        decorators = getattr(node, "decorator_list", [])
        if any(isinstance(decorator, ast.Name) and decorator.id == "params" for decorator in decorators):
            fields = {field.target.id for field in node.body if isinstance(field, ast.AnnAssign)}
            assert fields, f"{node.name} has no field"
            assert fields - used == set(), f"fields of {node.name} that nothing reads"


@pytest.mark.parametrize(("recipe", "scale"), RECIPES)
def test_every_composed_key_is_read_by_a_stage(recipe: str, scale: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(composed(recipe, scale), encoding="utf-8")
    values = read_yaml(path)
    assert sorted(values) == READERS
    for stage in READERS:
        module = importlib.import_module(f"stages.{stage}")
        for group, cls in loads(stage):
            items = values[stage] if "*" in group else [""]
            assert items, f"{stage} has no item"
            for item in items:
                load(group.replace("*", item), getattr(module, cls), path)  # raises on a wrong key or value


@pytest.mark.parametrize(("recipe", "scale"), RECIPES)
def test_the_sources_of_a_recipe_pass_through_every_data_stage(recipe: str, scale: str) -> None:
    values = YAML(typ="safe").load(composed(recipe, scale))
    mixed = sorted(values["mix"]["sources"])
    assert sorted(values["fetch"]) == sorted([*mixed, "humaneval"])
    assert sorted(values["filter"]) == sorted(values["convert"]) == mixed


def test_committed_parameters_are_the_default_recipe_at_demo_scale() -> None:
    expected = YAML(typ="safe").load(composed())
    assert expected == VALUES, "run `make params`"


# 6. No row vanishes. -----------------------------------------------------------------------------------


@pytest.mark.smoke
def test_rows_in_are_rows_kept_and_rejected(clone: Clone) -> None:
    data = clone.root / "data"
    for source in read_yaml(clone.params)["filter"]:
        raw = [f"{source}/{number}" for number, _ in enumerate(read_rows(data / f"raw/{source}.jsonl"))]
        kept = [row["id"] for row in read_rows(data / f"filtered/{source}.jsonl")]
        rejected = read_rows(data / f"filtered/{source}.rejected.jsonl")
        assert sorted(raw) == sorted([*kept, *(row["id"] for row in rejected)])
        assert all(row["check"] and row["reason"] for row in rejected)
        counts = json.loads((clone.root / f"reports/filter/{source}.json").read_text(encoding="utf-8"))
        found = (len(raw), len(kept), len(rejected))
        assert (counts["rows"], counts["kept"], counts["rejected"]) == found
        assert sum(counts["reasons"].values()) == len(rejected)


@pytest.mark.smoke
def test_every_mixed_row_traces_back_to_a_raw_row_and_its_licence(clone: Clone) -> None:
    data = clone.root / "data"
    licences: dict[str, str] = {}
    for source in read_yaml(clone.params)["filter"]:
        provenance = json.loads((data / f"raw/{source}.provenance.json").read_text(encoding="utf-8"))
        given = [origin["licence"] for origin in provenance["origins"] for _ in range(origin["rows"])]
        assert len(given) == len(read_rows(data / f"raw/{source}.jsonl"))
        licences |= {f"{source}/{number}": licence for number, licence in enumerate(given)}
    splits = {name: read_rows(data / f"mixed/{name}.jsonl") for name in ("train", "valid")}
    for row in splits["train"] + splits["valid"]:
        assert row["id"] == f"{row['group']}/{row['kind']}"
        assert row["source"] == row["group"].split("/")[0]
        assert row["licence"] == licences[row["group"]]
    groups = [{row["group"] for row in rows} for rows in splits.values()]
    assert groups[0] and groups[1] and not groups[0] & groups[1]


# 9. Import does nothing. -------------------------------------------------------------------------------

PROBE = """
import contextlib, importlib, io, json, os, sys

heavy = ("torch", "transformers", "trl", "peft", "datasets", "pandas")
seen = []

def watch(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        if set(mode or "") & set("wax+") or (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            seen.append(f"opens {path} for writing")
    elif event in ("os.mkdir", "os.remove", "os.rename", "socket.connect", "subprocess.Popen"):
        seen.append(f"{event} {arguments}")

sys.addaudithook(watch)
faults = []
for name in sys.argv[1:]:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        importlib.import_module(name)
    faults += [f"{name}: {what}" for what in seen]
    faults += [f"{name}: imports {module}" for module in heavy if module in sys.modules]
    if printed.getvalue():
        faults.append(f"{name}: prints {printed.getvalue()!r}")
    seen.clear()
print(json.dumps(faults))
"""


def test_importing_a_module_does_nothing() -> None:
    names = [*(f"stages.common.{name}" for name in COMMON), *(f"stages.{name}" for name in MODULES)]
    done = subprocess.run(
        [sys.executable, "-B", "-c", PROBE, *names], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert (json.loads(done.stdout), done.stderr) == ([], "")


# How dvc.yaml reads. -----------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_described_in_one_sentence_and_its_keys_keep_their_order(stage: str) -> None:
    if "do" in PIPELINE[stage]:
        assert list(PIPELINE[stage]) == ["foreach", "do"]
    given = list(definition(stage))
    assert given == [key for key in KEYS if key in given]
    assert re.fullmatch(r"[A-Z][^.\n]+\.", definition(stage)["desc"])


def written(stage: str) -> list[tuple[str, bool]]:
    """Each path that a stage writes, for each of its items, and whether DVC's cache keeps it."""
    repeated = PIPELINE[stage].get("foreach", [""])
    items = VALUES[repeated[2:-1]] if isinstance(repeated, str) else repeated
    found = []
    for entry in definition(stage)["outs"] + definition(stage).get("metrics", []):
        path, options = (entry, {}) if isinstance(entry, str) else next(iter(entry.items()))
        found += [(re.sub(r"\$\{(key|item)\}", item, path), options.get("cache", True)) for item in items]
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_git_ignores_what_the_cache_keeps_and_nothing_else(stage: str) -> None:
    for path, cached in written(stage):
        command = ["git", "check-ignore", "--no-index", "-q", path]
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        assert status in (0, 1)
        assert (status == 0) == cached, f"{path}: cached {cached}, ignored by git {status == 0}"


@pytest.mark.parametrize("stage", STAGES)
def test_metrics_stay_in_git(stage: str) -> None:
    assert all(
        isinstance(entry, dict) and next(iter(entry.values())) == {"cache": False}
        for entry in definition(stage).get("metrics", [])
    )
