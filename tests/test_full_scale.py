"""The data stages at full scale, on real rows behind a Hub on this machine. It takes some minutes.

CodeAlpaca is whole and real. Of the preference pairs the secure sides are real, the vulnerable ones ours; of
the repairs the functions are real, most of them put among others into files as long as CrossVul's. Both have
upstream's shape, names and number of rows.
"""

import io
import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Clone, copy_repository, read_rows
from hub import Hub

pytestmark = pytest.mark.full

DATA = ROOT.parent / "shared/data"
LANGUAGES = {"py": "Python", "c": "C", "cpp": "C++", "cc": "C++", "js": "JavaScript", "jsx": "JavaScript"}
LANGUAGES |= {"rb": "Ruby", "go": "Go", "java": "Java", "h": "C"}
WEAK = {
    "python": "def run(text):\n    return eval(text)",
    "javascript": "function run(text) { return eval(text); }",
    "php": "function run($text) { return eval($text); }",
    "ruby": "def run(text)\n  eval(text)\nend",
}


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of a file of real data, which lies beside the repository where it may be used."""
    path = DATA / name
    if not path.exists():
        pytest.skip(f"NOT TESTED AT FULL SCALE: {path} is absent; put it there to run this test")
    return read_rows(path)


def preferences() -> list[dict[str, str]]:
    """4,656 preference pairs: real secure answers, and the same with a weak function after them."""
    chosen = rows("cybernative/chosen.jsonl")
    pairs = []
    for row in (chosen + chosen)[:4656]:
        label = re.search(r"```([\w+#]+)", row["response"])
        language = label[1] if label else ""
        weak = WEAK.get(language, "// the input goes to the shell as it is")
        pairs.append(
            {
                "lang": language,
                "vulnerability": "The code runs text that comes from outside.",
                "system": "",
                "question": row["prompt"],
                "chosen": row["response"],
                "rejected": row["response"].rstrip().removesuffix("```") + f"\n{weak}\n```",
            }
        )
    return pairs


def repairs() -> list[dict[str, str]]:
    """9,313 vulnerable and fixed files: one in twenty a function alone, the others with more around it."""
    random_ = random.Random(1)
    pairs = [
        (LANGUAGES[row["file_name"].rsplit(".", 1)[-1]], row)
        for name in ("sven/train.jsonl", "safecoder/train.jsonl")
        for row in rows(name)
    ]
    bodies: dict[str, list[str]] = {}
    for language, row in pairs:
        bodies.setdefault(language, []).append(row["func_src_after"])
    made = []
    for number in range(9313):
        language, row = pairs[number % len(pairs)]
        around = [] if number % 20 == 0 else random_.choices(bodies[language], k=random_.randint(2, 6))
        place = random_.randint(0, len(around))
        sides = (
            "\n\n\n".join([*around[:place], row[side], *around[place:]])
            for side in ("func_src_before", "func_src_after")
        )
        vulnerable, fixed = sides
        made.append(
            {
                "cwe_id": row["vul_type"].upper().replace("CWE-0", "CWE-"),
                "cwe_description": "",
                "language": language,
                "vulnerable_code": vulnerable,
                "fixed_code": fixed,
                "file_pair_id": str(number),
                "source": "stand-in",
                "language_dir": language.lower(),
            }
        )
    return made


def parquet(part: list[dict[str, str]]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    stream = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(part), stream)
    return stream.getvalue()


@pytest.fixture(scope="module")
def fixes() -> list[dict[str, str]]:
    return repairs()


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, fixes: list[dict[str, str]]) -> Any:
    """A copy of the repository whose full-scale sources were pinned against the Hub on this machine."""
    alpaca = DATA / "codealpaca/code_alpaca_20k.json"
    if not alpaca.exists():
        pytest.skip(f"NOT TESTED AT FULL SCALE: {alpaca} is absent; put it there to run this test")
    scratch = tmp_path_factory.mktemp("full")
    half = len(fixes) // 2
    lines = "".join(json.dumps(row) + "\n" for row in preferences())
    files = {
        "datasets/sahil2801/CodeAlpaca-20k": {"code_alpaca_20k.json": alpaca.read_bytes()},
        "datasets/CyberNative/Code_Vulnerability_Security_DPO": {
            "secure_programming_dpo.json": lines.encode()
        },
        "datasets/hitoshura25/crossvul": {
            "data/train-00000-of-00002.parquet": parquet(fixes[:half]),
            "data/train-00001-of-00002.parquet": parquet(fixes[half:]),
        },
    }
    with Hub({repo: {"main": tree} for repo, tree in files.items()}) as hub:
        clone = Clone(scratch / "copy", scratch)
        copy_repository(clone.root)
        seen = hub.environment(scratch / "hub")
        clone.environment |= {name: value for name, value in seen.items() if name.startswith("HF_")}
        clone.environment["no_proxy"] = "127.0.0.1"
        clone.checked("git", "init", "-q")
        clone.checked("python", "-m", "conf.pin")
        yield clone


def mixed(clone: Clone, recipe: str) -> tuple[list[dict], dict[str, Any]]:
    """The data stages of a recipe at full scale: what is trained on, and the report of the mix."""
    clone.checked(
        "python",
        "-c",
        "from dvc.utils.hydra import compose_and_dump as compose; import os, sys; "
        "compose('params.yaml', os.path.abspath('conf'), None, 'config', '', sys.argv[1:])",
        f"recipe={recipe}",
        "scale=full",
    )
    print(clone.checked("dvc", "repro", "mix"))
    report = json.loads((clone.root / "reports/mix.json").read_text())
    return read_rows(clone.root / "data/mixed/train.jsonl"), report


def test_v3_is_the_references_mix(full: Clone, fixes: list[dict[str, str]]) -> None:
    train, report = mixed(full, "v3")
    print(json.dumps(report))
    short = sum(max(len(row["vulnerable_code"]), len(row["fixed_code"])) <= 2000 for row in fixes[:2500])
    assert short > 50
    assert Counter(row["source"] for row in train) == {
        "coding": 20_022,
        "preferences": 5_000,
        "fixes": short,
        "error_handling": 12,
    }
    import numpy as np

    order = np.random.default_rng(42).permutation(len(train))
    ids = [row["id"] for row in train]
    unshuffled = [""] * len(ids)
    for place, index in enumerate(order):
        unshuffled[index] = ids[place]
    assert unshuffled[:2] == ["coding/0/write", "coding/1/write"] and unshuffled[-1].startswith(
        "error_handling/11"
    )
    reviews = [row for row in train if row["kind"] == "detect_vulnerable"]
    assert len(reviews) == 2_500 and all(row["completion"].startswith("NO - SECURITY") for row in reviews)


def test_v4_accounts_for_every_row(full: Clone) -> None:
    train, report = mixed(full, "v4")
    for source, declared in (("coding", 20_022), ("preferences", 4_656), ("fixes", 9_313)):
        counts = json.loads((full.root / f"reports/filter/{source}.json").read_text())
        assert counts["rows"] == declared == counts["kept"] + counts["rejected"], source
        print(source, json.dumps(counts))
    print(json.dumps(report))
    kinds = Counter(row["kind"] for row in train)
    assert kinds["detect_safe"] == kinds["detect_vulnerable"] > 0
    assert {row["source"] for row in train} == {"coding", "preferences", "fixes", "error_handling"}
    assert all(row["revision"] and row["licence"] and "convert" in row["transforms"] for row in train)
    chunked = {row["group"] for row in train if "#" in row["id"]}
    assert chunked, "no repair was cut to its changed functions"
    card = (full.root / "data/mixed/README.md").read_text(encoding="utf-8")
    assert "CC BY-NC 4.0" in card and "CodeAlpaca-20k" in card


def test_the_revisions_were_pinned(full: Clone) -> None:
    for path in sorted(Path(full.root, "conf/source").glob("*/full.yaml")):
        assert "@main" not in path.read_text(encoding="utf-8"), path
