"""The contracts of code, dvc.yaml and params.yaml: names, dependencies, parameters, files, rows, imports."""

import ast
import importlib
import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from functools import cache
from importlib.metadata import packages_distributions, requires
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Clone, composed, read_rows, read_yaml, watched_or_skipped
from ruamel.yaml import YAML

from stages.common import program, prompts
from stages.common.params import load
from tools import hermetic

PIPELINE = read_yaml(ROOT / "dvc.yaml")["stages"]
STAGES = sorted(PIPELINE)
MODULES = sorted(path.stem for path in (ROOT / "stages").glob("*.py") if path.stem != "__init__")
COMMON = sorted(path.stem for path in (ROOT / "stages/common").glob("*.py") if path.stem != "__init__")
VALUES = read_yaml(ROOT / "params.yaml")
TREE = program.tree(ROOT)
LOCKED = program.lock(ROOT)

KEYS = ["desc", "cmd", "deps", "params", "outs", "metrics"]
RECIPES = [(recipe, scale) for recipe in ("v2", "v3", "v4") for scale in ("demo", "full")]


def definition(stage: str) -> dict[str, Any]:
    """What DVC runs for a stage: the part under `do` where it is repeated."""
    return PIPELINE[stage].get("do", PIPELINE[stage])


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def modules(stage: str) -> list[Path]:
    """The files of Python that a stage is made of."""
    return [file for file in program.reached(f"stages.{stage}", TREE).values() if file.suffix == ".py"]


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


READERS = [module for module in MODULES if loads(module)]


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


# 2. Dependencies are exact. ----------------------------------------------------------------------------

CHOSEN = program.ProgramParams(**VALUES["program"])
PROGRAMS = {stage: program.described(stage, CHOSEN, TREE, LOCKED) for stage in program.stages(TREE)}
SPARED = {path for name in CHOSEN.harmless for path in TREE.get(name, ())}

# Imports a module, then runs every import of ours that stands in a function of any module that is loaded.
LAZY = """
import ast, importlib, json, sys

importlib.import_module(sys.argv[1])
done = set()
while waiting := {name for name in sys.modules if name.startswith("stages")} - done:
    for name in waiting:
        done.add(name)
        file = sys.modules[name].__file__
        for function in ast.walk(ast.parse(open(file, "rb").read())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                for node in ast.walk(function):
                    if isinstance(node, ast.Import | ast.ImportFrom) and "stages" in ast.unparse(node):
                        exec(compile(ast.Module([node], []), name, "exec"), {})
print(json.dumps([sys.modules[name].__file__ for name in done]))
"""


def test_a_stage_depends_on_its_own_program_and_names_no_code_beside_it() -> None:
    assert definition("program")["deps"] == [program.LOCK, program.LOCAL]
    assert definition("program")["outs"] == [f"programs/{stage}.json" for stage in PROGRAMS]
    assert sorted([*PROGRAMS, "program"]) == STAGES
    for stage in PROGRAMS:
        first, *others = definition(stage)["deps"]
        assert first == f"programs/{stage}.json"
        assert [path for path in others if path.startswith(("programs", "stages"))] == []


@pytest.mark.parametrize("stage", PROGRAMS)
def test_a_program_holds_the_modules_that_are_imported(stage: str) -> None:
    command = [sys.executable, "-B", "-c", LAZY, f"stages.{stage}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    imported = {str(Path(path).relative_to(ROOT)) for path in json.loads(done.stdout)}
    named = {path for path in PROGRAMS[stage]["modules"] if path.endswith(".py")}
    assert named - imported == set(), "in its program but not imported"
    assert imported - named - SPARED == set(), "imported but not in its program"


def test_every_file_of_ours_is_part_of_a_program() -> None:
    there = {path for found in TREE.values() for path in found}
    used = {path for made in PROGRAMS.values() for path in made["modules"]}
    assert there - used == {"stages/program.py", *SPARED}


def test_nothing_reads_what_a_program_leaves_out() -> None:
    """A docstring is the help of its command and nothing else; no code reads code as a text."""
    for path in (file for found in TREE.values() for file in found.values() if file.suffix == ".py"):
        nodes = list(ast.walk(tree(path)))
        helps = {
            id(node.value) for node in nodes if isinstance(node, ast.keyword) and node.arg == "description"
        }
        for node in nodes:
            name = (
                node.id
                if isinstance(node, ast.Name)
                else node.attr
                if isinstance(node, ast.Attribute)
                else ""
            )
            assert name != "__doc__" or id(node) in helps, path
            assert name not in ("getsource", "getdoc", "getsourcelines", "linecache", "co_code"), path


# 3. Parameters are exact. ------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_parameters_named_are_the_parameters_read(stage: str) -> None:
    named = [re.sub(r"\$\{(key|item)\}", "*", name) for name in definition(stage).get("params", [])]
    assert sorted(named) == sorted(group for group, _ in loads(stage))


def parameter_classes(path: Path) -> dict[str, set[str]]:
    """The parameter classes of a module, each with its fields."""
    return {
        node.name: {field.target.id for field in node.body if isinstance(field, ast.AnnAssign)}  # type: ignore[union-attr]
        for node in tree(path).body
        if isinstance(node, ast.ClassDef)
        and any(isinstance(name, ast.Name) and name.id == "params" for name in node.decorator_list)
    }


def used(path: Path) -> set[str]:
    """Names that a module reads of objects: as attributes, or as keys of a table that it walks by name."""
    attributes = {node.attr for node in ast.walk(tree(path)) if isinstance(node, ast.Attribute)}
    tables = [node for node in tree(path).body if isinstance(node, ast.AnnAssign)]
    keys = (node.value.keys for node in tables if isinstance(node.value, ast.Dict))
    return attributes | {key.value for key in chain(*keys) if isinstance(key, ast.Constant)}


@pytest.mark.parametrize("stage", READERS)
def test_every_field_of_a_parameter_class_is_used(stage: str) -> None:
    classes = {name: fields for path in modules(stage) for name, fields in parameter_classes(path).items()}
    assert {cls for _, cls in loads(stage)} <= set(classes)
    for name, fields in classes.items():
        assert fields, f"{name} has no field"
        assert fields - set().union(*map(used, modules(stage))) == set(), (
            f"fields of {name} that nothing reads"
        )


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


# 4. Files are exact. -----------------------------------------------------------------------------------

DATA_STAGES = ("fetch", "filter", "convert", "mix", "score", "report", "publish")
LIBRARIES = {"torch", "transformers", "trl", "peft", "datasets", "pandas"}


@pytest.fixture(scope="module")
def did(clone: Clone) -> hermetic.Doings:
    """What each stage of the clone did, as the kernel saw it."""
    watched_or_skipped()
    return hermetic.noted(clone.scratch / hermetic.LOG)


@pytest.fixture(scope="module")
def stages(clone: Clone) -> list[hermetic.Stage]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in clone.environment.items():
            patch.setenv(name, value)
        return hermetic.pipeline(clone.root)


@pytest.mark.smoke
def test_a_stage_does_what_dvc_yaml_names_and_nothing_else(
    clone: Clone, did: hermetic.Doings, stages: list[hermetic.Stage]
) -> None:
    assert set(did) == {stage.name for stage in stages}
    text, count = hermetic.verdict(stages, did, clone.places)
    assert count == 0, text
    assert "looks for" not in text
    idle = {
        Path(path).relative_to(clone.root)
        for stage in stages
        for path in hermetic.idle(stage, did[stage.name])
    }
    # under `foreach` a source that comes from a package has the folder of the others, too
    assert idle == {Path("data/handmade")}
    for stage in stages:
        assert any(hermetic.below(path, stage.deps) for path in did[stage.name]["reads"]), "reads are seen"
        talks = did[stage.name]["connects"] | did[stage.name]["binds"]
        assert [name for name in talks if not hermetic.below(name, hermetic.NAMES)] == [], (
            "the demo is offline"
        )


@pytest.mark.smoke
def test_a_program_holds_the_packages_that_are_imported(did: hermetic.Doings) -> None:
    owners = packages_distributions()
    needs = defaultdict(set, LOCKED.needs)
    counted = set().union(*(made["packages"] for made in PROGRAMS.values()))
    spared = program.closure(CHOSEN.harmless, needs, []) - counted
    origins = chain.from_iterable(source["origins"] for source in VALUES["fetch"].values())
    packaged = {found[1] for origin in origins if (found := re.match("package://([^@]+)@", origin["uri"]))}
    for stage, done in did.items():
        if (own := stage.partition("@")[0]) in PROGRAMS:
            loaded = {name.partition(".")[0] for name in hermetic.imports(done)}
            imported = {program.normal(owner) for name in loaded for owner in owners.get(name, ())}
            strangers = imported - set(LOCKED.pins)  # somebody's own, which bring what they need
            lines = chain.from_iterable(requires(name) or () for name in strangers)
            brought = {program.normal(re.split(r"[^\w.-]", line)[0]) for line in lines}
            missing = imported - strangers - spared - program.closure(brought, needs, [])
            if own == "fetch":
                missing -= packaged  # whose code it reads as data
            assert missing - set(PROGRAMS[own]["packages"]) == set(), f"{stage} imports, but does not name"


@pytest.mark.smoke
def test_no_data_stage_loads_a_model_library(did: hermetic.Doings) -> None:
    for stage, done in did.items():
        loaded = {name.partition(".")[0] for name in hermetic.imports(done)}
        assert loaded, "imports are seen"
        if stage.partition("@")[0] in DATA_STAGES:
            assert loaded & LIBRARIES == set(), stage
    assert "torch" in {name.partition(".")[0] for name in hermetic.imports(did["train"])}


# 6. No row vanishes. -----------------------------------------------------------------------------------


def row_of(sample: str) -> str:
    """The row that a sample is, or is a piece of."""
    return sample.partition("#")[0]


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.smoke
def test_rows_in_are_rows_kept_and_rejected(clone: Clone) -> None:
    data = clone.root / "data"
    seen: Counter[str] = Counter()
    for source in read_yaml(clone.params)["filter"]:
        raw = {f"{source}/{number}" for number, _ in enumerate(read_rows(data / f"raw/{source}.jsonl"))}
        kept = [row["id"] for row in read_rows(data / f"filtered/{source}.jsonl")]
        ledger = read_rows(data / f"filtered/{source}.rejected.jsonl")
        assert all(row["check"] and row["reason"] for row in ledger)
        names = [*kept, *(row["id"] for row in ledger)]
        assert len(set(names)) == len(names)
        assert set(map(row_of, names)) == raw
        for row, count in Counter(map(row_of, names)).items():  # a row is there whole, or with all its pieces
            pieces = {name for name in names if row_of(name) == row}
            assert pieces in ({row}, {f"{row}#{number}" for number in range(1, count + 1)})
        counts = read_json(clone.root / f"reports/filter/{source}.json")
        rows_kept = set(map(row_of, kept))
        found = (
            len(raw),
            len(rows_kept),
            len(raw - rows_kept),
            len(kept),
            sum("#" in name for name in names),
        )
        assert tuple(counts[key] for key in ("rows", "kept", "rejected", "samples", "chunks")) == found
        reasons = Counter(row["check"] for row in ledger)
        assert {check: count for check, count in counts["reasons"].items() if count} == reasons
        seen.update(reasons)
        seen["pieces"] += counts["chunks"]
    assert seen["pieces"] > 2 and seen["duplicate"] and len(seen) > 3, "there are rows to lose"


def code_lines(text: str) -> set[str]:
    """The lines of the code blocks in a text, without their indentation."""
    return {line.strip() for block in prompts.BLOCK.findall(text) for line in block[2].split("\n")} - {""}


@pytest.mark.smoke
def test_every_example_traces_back_to_a_raw_row_with_its_revision_licence_and_transforms(
    clone: Clone,
) -> None:
    data = clone.root / "data"
    steps_seen: set[str] = set()
    for source, chosen in read_yaml(clone.params)["convert"].items():
        provenance = read_json(data / f"raw/{source}.provenance.json")
        raw = read_rows(data / f"raw/{source}.jsonl")
        origins = [origin for origin in provenance["origins"] for _ in range(origin["rows"])]
        assert len(origins) == len(raw) == provenance["rows"]
        samples = {row["id"]: row for row in read_rows(data / f"filtered/{source}.jsonl")}
        for example in read_rows(data / f"converted/{source}.jsonl"):
            sample = samples[example["id"].rpartition("/")[0]]
            assert example["id"] == f"{sample['id']}/{example['kind']}"
            assert example["group"] == row_of(sample["id"]) and example["source"] == source
            number = int(example["group"].removeprefix(f"{source}/"))
            for key in ("licence", "revision"):
                assert example[key] == sample[key] == origins[number][key] != ""
            *steps, last = example["transforms"].split("; ")
            assert "; ".join(steps) == sample["transforms"] and last.split()[0] == "convert"
            assert last.split()[1] in chosen["tasks"]
            assert ("#" in sample["id"]) == any(step.startswith("chunk ") for step in steps)
            if not any(step.startswith("redact ") for step in steps):
                texts = (text for text in raw[number].values() if isinstance(text, str))
                given = {line.strip() for text in texts for line in text.split("\n")}
                answers = (example[key] for key in ("prompt", "completion", "rejected"))
                assert set().union(*map(code_lines, answers)) <= given, example["id"]
            steps_seen |= {step.split()[0] for step in (*steps, last)}
    assert steps_seen >= {"chunk", "convert"}


@pytest.mark.smoke
def test_the_mix_is_made_of_examples_as_they_were_converted(clone: Clone) -> None:
    data = clone.root / "data"
    sources = read_yaml(clone.params)["mix"]["sources"]
    examples = {row["id"]: row for name in sources for row in read_rows(data / f"converted/{name}.jsonl")}
    splits = {name: read_rows(data / f"mixed/{name}.jsonl") for name in ("train", "valid", "preferences")}
    for name, rows in splits.items():
        assert rows and len({row["id"] for row in rows}) == len(rows)
        for row in rows:
            first = re.sub(r"@\d+$", "", row["id"])
            assert {**row, "id": first} == examples[first]
            assert (row["kind"] == "preference") == (name == "preferences")
    groups = {name: {row["group"] for row in rows} for name, rows in splits.items()}
    assert not groups["valid"] & (groups["train"] | groups["preferences"])
    report = read_json(clone.root / "reports/mix.json")
    assert {name: report[name] for name in splits} == {name: len(rows) for name, rows in splits.items()}
    for source, counts in report["sources"].items():
        assert counts["examples"] == sum(row["source"] == source for row in examples.values())
        fates = ("too_long", "contaminated", "near_duplicate", "not_chosen", "preferences", "mixed")
        assert counts["examples"] == sum(counts[fate] for fate in fates) - counts["repeated"]


# 9. Import does nothing. -------------------------------------------------------------------------------

PROBE = """
import contextlib, importlib, io, json, os, sys

heavy = ("torch", "transformers", "trl", "peft", "datasets", "pandas", "pyarrow", "numpy", "gguf", "fsspec")
heavy += ("huggingface_hub", "bandit", "detect_secrets", "tree_sitter", "rensa", "dvc", "dvclive")
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
    for entry in definition(stage).get("outs", []) + definition(stage).get("metrics", []):
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
