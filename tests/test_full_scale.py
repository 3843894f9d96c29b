"""The full scale behind a Hub on this machine: its data stages on as many rows, and all of it end to end.

CodeAlpaca is whole and real. Of the preference pairs the secure sides are real, the vulnerable ones ours; of
the repairs the functions are real, most of them put among others into files as long as CrossVul's. Both have
upstream's shape, names and number of rows. The base model has the name, the files and the form of the real
one, and small random weights. It takes some minutes.

    python -m pytest -m full                                       # all of it
    python -m pytest tests/test_full_scale.py -k end_to_end -s     # the rehearsal alone, with its times
"""

import io
import json
import math
import random
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import qwen
from conftest import ROOT, Clone, read_rows, read_yaml, write_yaml
from hub import Hub

from stages.common import models
from tools import tiny

pytestmark = pytest.mark.full

DATA = ROOT.parent / "shared/data"
BASE = re.search(r"@([0-9a-f]{40})", (ROOT / "conf/scale/full.yaml").read_text(encoding="utf-8"))[1]  # type: ignore[index]
TOKEN, REPOSITORY = "hf_writer", "owner/coder-agent"
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
    repos = {repo: {"main": tree} for repo, tree in files.items()}
    told = ("\n".join(row.values()) for row in json.loads(alpaca.read_bytes()))
    repos[qwen.NAME] = {BASE: qwen.repository(scratch / "model", told)}
    with Hub(repos, writers={TOKEN: "owner"}) as hub:
        clone = Clone(scratch / "copy", scratch)
        clone.hub = hub  # type: ignore[attr-defined]
        tiny.copy_repository(ROOT, clone.root)
        seen = hub.environment(scratch / "hub")
        clone.environment |= {name: value for name, value in seen.items() if name.startswith("HF_")}
        clone.environment["no_proxy"] = "127.0.0.1"
        clone.checked("python", "-m", "conf.pin")
        tiny.commit(clone.root, clone.environment)
        yield clone


def compose(clone: Clone, recipe: str) -> None:
    """The parameters of a recipe at full scale, as `make params` makes them."""
    clone.checked(
        "python",
        "-c",
        "from dvc.utils.hydra import compose_and_dump as compose; import os, sys; "
        "compose('params.yaml', os.path.abspath('conf'), None, 'config', '', sys.argv[1:])",
        f"recipe={recipe}",
        "scale=full",
    )


def mixed(clone: Clone, recipe: str) -> tuple[list[dict], dict[str, Any]]:
    """The data stages of a recipe at full scale: what is trained on, and the report of the mix."""
    compose(clone, recipe)
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


# End to end. ---------------------------------------------------------------------------------------------


def rehearsed(params: dict[str, Any], suites: list[str]) -> dict[str, Any]:
    """What differs from the real run, for want of time and of a model that has learned anything.

    The rest is the real one: sources, checks, shares, NF4, LoRA, batches of 2 times 4, 1,024 tokens,
    recomputed activations, learning rate and schedule, the chat template, batches of 64, the gates.
    """
    params["mix"]["rows"] = 320  # of some 20,000, in the same shares
    params["preflight"]["steps"] = 5  # of 100
    for group in ("validation", "probe"):
        params["train"][group]["steps"] = 15  # of 300
    params["train"]["save_steps"] = 15  # of 300
    params["train"]["probe"]["max_new_tokens"] = 8  # of 64
    params["export"]["min_agreement"] = 0.9  # of 0.95: random weights prefer no token clearly
    params["generate"]["limits"] = dict.fromkeys(suites, 3)  # tasks of a suite; really all of them
    params["generate"]["samples"] = {"humaneval": 2}  # beside the greedy answer; really 10
    params["generate"]["max_new_tokens"] = dict.fromkeys(params["generate"]["max_new_tokens"], 12)
    params["publish"] |= {"gguf": "q8_0", "push": REPOSITORY}  # really asked for by hand
    return params


def repro(clone: Clone) -> tuple[int, list[str], str]:
    """`dvc repro`: its status, the stages that ran, and everything that was said."""
    start = time.perf_counter()
    done = clone.run("dvc", "repro")
    said = done.stdout + done.stderr
    ran = re.findall(r"Running stage '([^']+)'", said)
    print(f"dvc repro: {time.perf_counter() - start:.0f} s, {len(ran)} stages\n{said}")
    return done.returncode, ran, said


def test_it_runs_end_to_end(full: Clone, fixes: list[dict[str, str]]) -> None:
    compose(full, "v4")
    suites = [path.stem for path in sorted((full.root / "data/benchmarks").glob("*.jsonl"))] + ["humaneval"]
    params = rehearsed(read_yaml(full.params), suites)
    write_yaml(full.params, params)
    full.environment["HF_TOKEN"] = TOKEN
    hub: Hub = full.hub  # type: ignore[attr-defined]

    # a model that has learned nothing misses the gates: `report` says which, writes all, and stops the rest
    status, ran, said = repro(full)
    assert status != 0 and ran[-1] == "report" and "publish" not in ran, said[-3000:]
    assert re.search(r"error: .*detection\.specificity", said), said[-3000:]
    assert re.search(r"detection\.invalid_rate", said), said[-3000:]
    handled = len(read_rows(full.root / "data/handmade/error_handling.jsonl"))
    rows = 20_022 + 4_656 + len(fixes) + handled
    assert told(full, "reports/metrics.json")["data"]["rows"] == rows
    for name in ("report.html", "summary.md"):
        assert (full.root / "reports" / name).stat().st_size > 0
    assert not hub.history, "published in spite of a missed gate"

    params["report"] |= {"floors": {}, "ceilings": {}}
    write_yaml(full.params, params)
    status, ran, said = repro(full)
    assert (status, ran) == (0, ["report", "publish"]), said[-3000:]
    stages = {line.split()[0] for line in full.checked("dvc", "stage", "list", "--all").splitlines()}
    assert set(read_yaml(full.root / "dvc.lock")["stages"]) == stages
    assert repro(full)[1] == []

    check_base(full)
    check_training(full, params)
    check_answers(full, suites)
    check_published(full, hub)


def told(clone: Clone, path: str) -> Any:
    return json.loads((clone.root / path).read_text(encoding="utf-8"))


def check_base(clone: Clone) -> None:
    """The base model is the Hub's at its commit: safetensors, configuration and tokenizer, no other file."""
    manifest = told(clone, "models/base/manifest.json")
    assert manifest["uri"] == f"hf://{qwen.NAME}@{BASE}"
    assert set(manifest["files"]) == {
        *("config.json", "generation_config.json", "merges.txt", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json", "vocab.json"),
    }


def check_training(clone: Clone, params: dict[str, Any]) -> None:
    """The training was the full scale's: its rows, its steps, its way of holding weights."""
    preflight, training = told(clone, "reports/preflight.json"), told(clone, "reports/train.json")
    rows = len(read_rows(clone.root / "data/mixed/train.jsonl"))
    assert training["steps"] == math.ceil(rows / 8) >= 30
    computed = str(models.compute_dtype()).removeprefix("torch.")
    assert training["dtype"] == computed and preflight["linear_layers"] == f"nf4 in {computed}"
    assert preflight["longest"] > 512
    size, inner, keys = qwen.SIZES["hidden_size"], qwen.SIZES["intermediate_size"], 32
    count = 2 * 16 * (2 * 2 * size + 2 * (size + keys) + 3 * (size + inner))
    assert training["trainable_parameters"] == preflight["trainable_parameters"] == count
    assert set(training["valid"]) and math.isfinite(training["valid_loss"])
    adapter = told(clone, "models/sft/adapter_config.json")
    assert (adapter["revision"], adapter["base_model_name_or_path"]) == (BASE, "models/base")
    probes = read_rows(clone.root / "reports/train/probe.jsonl")
    assert {row["step"] for row in probes} >= {15, 30}


def check_answers(clone: Clone, suites: list[str]) -> None:
    """Both models were asked in Qwen's own words, and HumanEval was answered three times over."""
    opening = f"<|im_start|>system\n{qwen.SYSTEM}<|im_end|>\n<|im_start|>user\n"
    for model in ("base", "tuned"):
        rows = read_rows(clone.root / f"reports/completions/{model}.jsonl")
        assert {row["suite"] for row in rows} == set(suites)
        assert Counter(row["sample"] for row in rows if row["suite"] == "humaneval") == {0: 3, 1: 3, 2: 3}
        assert all(row["prompt"].startswith(opening) for row in rows)
        assert all(row["prompt"].endswith("<|im_end|>\n<|im_start|>assistant\n") for row in rows)
        assert told(clone, f"reports/scores/{model}.json")["humaneval"]["samples"] == 2


def check_published(clone: Clone, hub: Hub) -> None:
    """One commit holds the merged model, Qwen's in everything but weights, with its card and a GGUF file."""
    from gguf import GGUFReader
    from safetensors import safe_open
    from transformers import AutoTokenizer

    [(repository, names)] = hub.history
    assert repository == REPOSITORY
    wanted = {"README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    assert set(names) >= wanted | {"tokenizer_config.json", "coder-agent-q8_0.gguf"}
    card = hub.repos[REPOSITORY]["main"]["README.md"].decode()
    assert f"base_model: {qwen.NAME}" in card and "CC BY-NC 4.0" in card

    base, merged = clone.root / "models/base", clone.root / "models/merged"
    for file, names in (
        ("config.json", ("eos_token_id", "tie_word_embeddings", "vocab_size", "max_position_embeddings")),
        ("generation_config.json", ("bos_token_id", "eos_token_id", "pad_token_id")),
    ):
        before, after = (json.loads((folder / file).read_text(encoding="utf-8")) for folder in (base, merged))
        assert {name: after[name] for name in names} == {name: before[name] for name in names}, file
    assert not {"do_sample", "repetition_penalty", "temperature"} & set(after), "not as it was evaluated"
    with (
        safe_open(base / "model.safetensors", "pt") as one,
        safe_open(merged / "model.safetensors", "pt") as two,
    ):
        assert "lm_head.weight" not in (names := set(two.keys())) and names == set(one.keys())
    ours, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (merged, base))
    turns = [{"role": "user", "content": "Grüße, \U0001f600"}, {"role": "assistant", "content": "x = 1\n"}]
    assert ours.apply_chat_template(turns) == theirs.apply_chat_template(turns)
    assert (ours.eos_token, ours.pad_token) == ("<|im_end|>", "<|endoftext|>")

    fields = GGUFReader(clone.root / "models/published/coder-agent-q8_0.gguf").fields
    found = {name: fields[f"tokenizer.ggml.{name}"].contents() for name in ("pre", "eos_token_id", "tokens")}
    assert (found["pre"], found["eos_token_id"]) == ("qwen2", theirs.eos_token_id)
    assert len(found["tokens"]) == told(clone, "models/merged/config.json")["vocab_size"]
