"""The model card, the GGUF file beside it, and the upload: to a Hub on this machine."""

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Project
from hub import Fault, Hub, job
from huggingface_hub import ModelCard

from stages.common import metrics, modelcard
from stages.common.errors import PipelineError

COMMIT = "a" * 40
CHOSEN = {"base_model": None, "artifact": "merged", "gguf": None, "push": None, "private": True}


def read(name: str) -> dict[str, Any]:
    """A committed report."""
    return json.loads((ROOT / "reports" / name).read_text(encoding="utf-8"))


PARITY = {"agreement": 0.9671, "tokens": 950, "same_answers": 19, "answers": 20}
PROVENANCE = {
    "coding": [("hf://datasets/owner/coding@" + COMMIT + "/rows.json", COMMIT, "CC-BY-NC-4.0", 1200)],
    "fixes": [
        ("package://one@1.0/one/*.py", "1.0", "MIT", 7),
        ("file:data/handmade/fi|xes.jsonl", "sha256:0123456789abcdef", "Apache-2.0", 3),
    ],
}


def put(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


@pytest.fixture
def ready(project: Project, tiny_model: Path) -> Project:
    """A project with everything that `publish` reads: the committed scores, and a tiny model."""
    base = project.base(tiny_model)
    put(base / "manifest.json", {"uri": f"hf://owner/base@{COMMIT}", "licence": "Apache-2.0", "files": {}})
    merged, adapter = (project.root / "models" / name for name in ("merged", "sft"))
    merged.mkdir()
    for path in tiny_model.iterdir():
        (merged / path.name).write_bytes(path.read_bytes())
    (merged / "README.md").write_text("short")
    layers = {"r": 16, "lora_alpha": 32, "target_modules": ["v_proj", "q_proj"]}
    put(adapter / "adapter_config.json", {"base_model_name_or_path": "models/base", **layers})
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    (adapter / "README.md").write_text("PEFT's")
    mix = {name: value for name, value in read("mix.json").items() if name != "sources"}
    mix["sources"] = {name: {"mixed": 1500} for name in PROVENANCE}
    reports = project.root / "reports"
    put(reports / "mix.json", mix)
    put(reports / "export.json", PARITY)
    for name in ("train.json", "metrics.json", "scores/base.json", "scores/tuned.json"):
        put(reports / name, read(name))
    keys = ("uri", "revision", "licence", "rows")
    for name, origins in PROVENANCE.items():
        each = [dict(zip(keys, origin, strict=True)) for origin in origins]
        put(project.root / f"data/raw/{name}.provenance.json", {"origins": each})
    project.params(publish=CHOSEN)
    return project


def card(project: Project) -> str:
    return (project.root / "reports/model_card.md").read_text(encoding="utf-8")


# The card. -----------------------------------------------------------------------------------------------


def test_the_front_matter_is_what_the_hub_reads(ready: Project) -> None:
    ready.run("publish")
    data = ModelCard(card(ready)).data
    assert (data.base_model, data.base_model_relation) == ("owner/base", "finetune")
    assert (data.license, data.library_name, data.pipeline_tag) == (
        "apache-2.0",
        "transformers",
        "text-generation",
    )
    assert data.language == ["en", "code"] and data.datasets == ["owner/coding"]
    assert {"code", "security"} <= set(data.tags) and "gguf" not in data.tags
    told = {(one.dataset_name, one.metric_type): one.metric_value for one in data.eval_results}
    found = read("metrics.json")
    detection = found["detection"]
    named = f"detection ({detection['pairs']} pairs)"
    assert told[named, "specificity"] == round(detection["specificity"]["tuned"], 6)
    coding = found["coding"]
    assert told[f"coding ({coding['tasks']} tasks)", "pass@1"] == round(coding["pass_at_1"]["tuned"], 6)
    assert not any("training" in name or "reference" in name for name, _ in told)


def test_both_outputs_are_the_same_text_and_the_same_bytes_each_time(ready: Project) -> None:
    ready.run("publish")
    first = ready.files()
    assert first["reports/model_card.md"] == first["models/published/README.md"]
    training = read("train.json")
    put(ready.root / "reports/train.json", training | {"seconds": 1.5, "peak_memory_mib": 1})
    again = ready.files()
    ready.run("publish")
    assert ready.files() == again
    assert str(training["seconds"]) not in card(ready)
    git = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    assert not git or git[:7] not in card(ready)


def test_the_tables_tell_base_beside_tuned_and_every_source(ready: Project) -> None:
    ready.run("publish")
    text = card(ready)
    base, tuned = (read(f"scores/{model}.json")["detection"] for model in ("base", "tuned"))
    low, high = tuned["intervals"]["recall"]
    for model in (base, tuned):
        assert f"{model['recall']:.3f} ({model['intervals']['recall'][0]:.3f}" in text
    assert (
        f"| detection ({tuned['pairs']} pairs) | recall | {base['recall']:.3f} (0.000 to 0.000) "
        f"| {tuned['recall']:.3f} ({low:.3f} to {high:.3f}) |"
    ) in text
    assert f"| coding | `{PROVENANCE['coding'][0][0]}` | {COMMIT} | CC-BY-NC-4.0 | 1,200 | 1,500 |" in text
    assert "| fixes | `package://one@1.0/one/*.py` | 1.0 | MIT | 7 | 1,500 |" in text
    assert (
        r"| fixes | `file:data/handmade/fi\|xes.jsonl` | sha256:0123456789abcdef | Apache-2.0 | 3 |  |"
        in text
    )
    assert "Look at CC-BY-NC-4.0 before any use" in text and "Apache-2.0 (3 rows)" in text
    assert "| trained | LoRA, rank 16, alpha 32 |" in text and "| adapted layers | q_proj, v_proj |" in text
    assert "96.7% of 950 cases, the same answer to 19 of 20 questions" in text


def test_a_doubt_about_a_licence_is_told(ready: Project) -> None:
    name = next(iter(PROVENANCE))
    path = ready.root / f"data/raw/{name}.provenance.json"
    row = json.loads(path.read_text(encoding="utf-8"))
    put(path, {"origins": [row["origins"][0] | {"note": "its card says another one"}, *row["origins"][1:]]})
    ready.run("publish")
    assert f"Conflicts and doubts:\n\n- {name}: its card says another one" in card(ready)


def test_a_model_of_which_every_weight_was_trained(ready: Project) -> None:
    (ready.root / "models/sft/adapter_config.json").unlink()
    put(ready.root / "models/sft/config.json", {})
    ready.run("publish")
    text = card(ready)
    assert "| trained | every weight |" in text and "adapted layers" not in text
    assert "Every weight was trained." in text and "lora" not in ModelCard(text).data.tags
    ready.params(publish=CHOSEN | {"artifact": "adapter"})
    with pytest.raises(PipelineError, match=r"publish\.artifact: adapter; expected merged"):
        ready.run("publish")


SCORES = {
    "kind": "detection",
    "pairs": 50,
    "balanced_accuracy": 0.6,
    "intervals": {"balanced_accuracy": [0.55, 0.65]},
    "confusion": {"tp": 20, "fn": 25, "tn": 40, "fp": 8, "invalid_vulnerable": 5, "invalid_fixed": 2},
    "always_vulnerable": {"balanced_accuracy": 0.5},
    "always_safe": {"balanced_accuracy": 0.5},
}


def test_limits_are_counted_of_a_hundred() -> None:
    flags, worth, invalid = modelcard.judge(SCORES)
    low, high = (f"{100 * end:.0f}" for end in metrics.wilson(8, 50))
    assert f"Of 100 safe functions it flags 16 ({low} to {high})" in flags
    low, high = (f"{100 * end:.0f}" for end in metrics.wilson(30, 50))  # 25 called safe, 5 without a verdict
    assert f"of 100 vulnerable ones it misses 60 ({low} to {high})" in flags and "50 pairs" in flags
    assert "tell more than a constant answer's" in worth and "0.60 (0.55 to 0.65) against 0.50" in worth
    assert "it answers 7 (3 to 14) without a verdict line" in invalid


@pytest.mark.parametrize(
    ("interval", "told"),
    [
        ([0.45, 0.65], "cannot be told from"),
        ([0.5, 0.7], "cannot be told from"),
        ([0.3, 0.4], "tell less than"),
    ],
)
def test_what_the_verdicts_are_worth(interval: list[float], told: str) -> None:
    changed = copy.deepcopy(SCORES)
    changed["intervals"]["balanced_accuracy"] = interval  # type: ignore[index]
    assert f"Its verdicts {told} a constant answer's" in modelcard.judge(changed)[1]


def test_every_card_says_that_the_model_must_not_decide_alone() -> None:
    for scores in ({}, {"detection": SCORES}):
        assert "must not decide alone" in " ".join(modelcard.limits(scores))


def test_a_base_without_a_name_on_the_hub(ready: Project) -> None:
    manifest = ready.root / "models/base/manifest.json"
    put(manifest, {"uri": "package://one@1/one.gguf", "licence": "Other-1.0", "files": {}})
    ready.run("publish")
    data = ModelCard(card(ready)).data
    assert (data.base_model, data.get("base_model_relation")) == (None, None)
    assert (data.license, data.license_name) == ("other", "Other-1.0")
    ready.params(publish=CHOSEN | {"base_model": "owner/name"})
    ready.run("publish")
    assert ModelCard(card(ready)).data.base_model == "owner/name"


def test_the_example_in_the_card_runs(ready: Project, capsys: pytest.CaptureFixture[str]) -> None:
    from stages.common import prompts

    ready.run("publish")
    code = re.search(r"````python\n(.*?)````", card(ready), re.DOTALL)[1]  # type: ignore[index]
    (ready.root / "example.py").write_text("eval(text)", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ready.root)
        scope: dict[str, Any] = {}
        exec(code, scope)  # noqa: S102 (our own)
    assert scope["question"] == prompts.detect("eval(text)", "python")


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("reports/export.json", "reports/export.json: same_answers: nothing; expected a value"),
        ("reports/mix.json", "reports/mix.json: train: nothing; expected a value"),
        ("models/sft/adapter_config.json", "models/sft/adapter_config.json: r: nothing; expected a value"),
        ("data/raw/fixes.provenance.json", "data/raw/fixes.provenance.json: origins: nothing"),
    ],
)
def test_reports_that_lack_something_are_named(path: str, told: str, ready: Project) -> None:
    put(ready.root / path, {"agreement": 1.0, "tokens": 1})
    before = ready.files()
    with pytest.raises(PipelineError, match=told):
        ready.run("publish")
    assert ready.files() == before


def test_a_model_without_weights_is_refused(ready: Project) -> None:
    (ready.root / "models/merged/model.safetensors").unlink()
    with pytest.raises(PipelineError, match=r"models/merged: no model\.safetensors; expected a model folder"):
        ready.run("publish")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"push": "name"}, "publish.push: 'name'; expected"),
        ({"push": "owner/../name"}, "publish.push: "),
        ({"gguf": "q4_k_m"}, "publish.gguf: 'q4_k_m'; expected"),
        ({"artifact": "base"}, "publish.artifact: 'base'; expected 'merged' or 'adapter'"),
    ],
)
def test_parameters_are_checked(change: dict[str, Any], told: str, ready: Project) -> None:
    ready.params(publish=CHOSEN | change)
    with pytest.raises(PipelineError, match=told):
        ready.run("publish")


def test_the_card_alone_needs_no_model_library(ready: Project) -> None:
    code = (
        "import sys; from stages import publish; publish.main(); "
        "sys.exit(' '.join({'torch', 'transformers', 'numpy', 'gguf'} & set(sys.modules)) or 0)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ready.root, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


# The GGUF file. ------------------------------------------------------------------------------------------


def test_a_gguf_file_is_written_beside_the_card(ready: Project) -> None:
    from transformers import AutoModelForCausalLM

    ready.params(publish=CHOSEN | {"gguf": "f16"})
    ready.run("publish")
    folder = ready.root / "models/published"
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "coder-agent-f16.gguf"]
    assert (
        "llama-cli --model coder-agent-f16.gguf" in card(ready) and "gguf" in ModelCard(card(ready)).data.tags
    )
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file="coder-agent-f16.gguf")
    assert model.config.num_hidden_layers == 2


def test_a_model_that_gguf_does_not_know_leaves_nothing_behind(ready: Project) -> None:
    path = ready.root / "models/merged/config.json"
    put(path, json.loads(path.read_text(encoding="utf-8")) | {"architectures": ["Other"]})
    ready.params(publish=CHOSEN | {"gguf": "f16"})
    before = ready.files()
    with pytest.raises(PipelineError, match="architectures: 'Other'; expected Llama"):
        ready.run("publish")
    assert ready.files() == before


# The upload. ---------------------------------------------------------------------------------------------

TOKEN = "hf_secret_writer"  # noqa: S105 (of the Hub on this machine)
PUSHED = CHOSEN | {"push": "owner/name"}


def published(hub: Hub, project: Project, home: Path, **changes: str) -> dict[str, Any]:
    return hub.run(home, [job(project.root, "stages.publish")], **{"HF_TOKEN": TOKEN, **changes})[0]


@pytest.fixture
def hub() -> Any:
    with Hub({}, writers={TOKEN: "owner"}) as served:
        yield served


def test_the_model_goes_up_in_one_commit(ready: Project, hub: Hub, tmp_path: Path) -> None:
    ready.params(publish=PUSHED | {"gguf": "q8_0"})
    done = published(hub, ready, tmp_path / "home")
    assert done["status"] == 0, done["err"]
    merged = {path.name: path.read_bytes() for path in (ready.root / "models/merged").iterdir()}
    beside = {path.name: path.read_bytes() for path in (ready.root / "models/published").iterdir()}
    assert hub.repos["owner/name"]["main"] == {**merged, **beside}
    assert set(beside) == {"README.md", "name-q8_0.gguf"}
    assert hub.history == [("owner/name", sorted({**merged, **beside}))]
    assert [one["visibility"] for one in hub.made] == ["private"]
    assert f"{hub.endpoint}/owner/name/commit/" in done["out"]
    assert 'from_pretrained("owner/name")' in card(ready)


def test_the_adapter_goes_up_under_the_name_of_its_base(ready: Project, hub: Hub, tmp_path: Path) -> None:
    ready.params(publish=PUSHED | {"artifact": "adapter", "private": False})
    done = published(hub, ready, tmp_path / "home")
    assert done["status"] == 0, done["err"]
    tree = hub.repos["owner/name"]["main"]
    assert sorted(tree) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    config = json.loads(tree["adapter_config.json"])
    assert (config["base_model_name_or_path"], config["r"]) == ("owner/base", 16)
    data = ModelCard(tree["README.md"].decode()).data
    assert (data.library_name, data.base_model_relation) == ("peft", "adapter")
    assert 'PeftModel.from_pretrained(base, "owner/name")' in tree["README.md"].decode()
    assert [one["visibility"] for one in hub.made] == ["public"]


def test_again_only_what_changed_goes_up(ready: Project, hub: Hub, tmp_path: Path) -> None:
    ready.params(publish=PUSHED)
    for _ in "12":
        assert published(hub, ready, tmp_path / "home")["status"] == 0
    assert len(hub.history) == 1
    (ready.root / "models/merged/chat_template.jinja").write_text("{{ messages }}")
    assert published(hub, ready, tmp_path / "home")["status"] == 0
    assert hub.history[1:] == [("owner/name", ["chat_template.jinja"])]


def test_a_busy_hub_is_asked_again(ready: Project, hub: Hub, tmp_path: Path) -> None:
    ready.params(publish=PUSHED)
    hub.faults += [
        Fault("/api/repos/create", "POST", status=503),
        Fault("/preupload/", "POST", status=429, headers={"Retry-After": "2"}),
        Fault("/commit/main", "POST", status=500),
    ]
    done = published(hub, ready, tmp_path / "home")
    assert done["status"] == 0 and done["err"].count("trying again") == 3
    assert len(hub.history) == 1


@pytest.mark.parametrize(
    ("environment", "owner", "told"),
    [
        ({"HF_TOKEN": ""}, "owner", "no token; expected HF_TOKEN, or a login"),
        ({"HF_TOKEN": "hf_secret_other"}, "owner", "401 from the Hub: the token is not valid"),
        ({}, "somebody", "403 from the Hub: the token may not write there"),
        ({"HF_HUB_OFFLINE": "1"}, "owner", "HF_HUB_OFFLINE is set; expected to be online"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "owner", "no answer: .*; expected the Hub"),
    ],
)
def test_a_refusal_is_told_in_one_line_without_the_token(
    environment: dict[str, str], owner: str, told: str, ready: Project, hub: Hub, tmp_path: Path
) -> None:
    ready.params(publish=PUSHED | {"push": f"{owner}/name"})
    done = published(hub, ready, tmp_path / "home", **environment)
    assert done["status"] == 2
    assert re.fullmatch(rf"error: {owner}/name: {told}.*\n", done["err"])
    assert "secret" not in done["out"] + done["err"]
    assert "secret" not in "".join(path.read_text() for path in (ready.root / "reports").rglob("*.md"))
    assert hub.history == [] and not any(hub.repos.get(f"{owner}/name", {"main": {}})["main"])


@pytest.mark.parametrize("step", ["/put/", "/commit/main", "/objects/batch"])
def test_an_upload_that_breaks_off_shows_nothing(step: str, ready: Project, hub: Hub, tmp_path: Path) -> None:
    ready.params(publish=PUSHED)
    hub.faults.append(Fault(step, "PUT" if step == "/put/" else "POST", status=400, times=99))
    done = published(hub, ready, tmp_path / "home")
    assert done["status"] == 2 and done["err"].startswith("error: owner/name: ")
    assert done["err"].count("\n") == 1 and "Signature" not in done["err"]
    assert hub.repos["owner/name"]["main"] == {}


def test_a_storage_that_fails_is_told_without_its_address() -> None:
    from stages.common import hubpush

    def fail() -> None:
        raise RuntimeError("Data processing error: https://cas.example.org/x?sig=secret refused\nmore")

    told = "owner/name: Data processing error: ... refused; expected that the Hub takes the weights"
    with pytest.raises(PipelineError) as caught:
        hubpush._asked("owner/name", fail)
    assert str(caught.value) == told


def test_a_card_that_the_hub_refuses_is_told(ready: Project, hub: Hub, tmp_path: Path) -> None:
    ready.params(publish=PUSHED)
    body = json.dumps({"errors": [{"message": '"license" must be one of'}], "warnings": []}).encode()
    hub.faults.append(Fault("validate-yaml", "POST", status=400, body=body))
    done = published(hub, ready, tmp_path / "home")
    assert (
        done["status"] == 2 and '"license" must be one of; expected a card that the Hub takes' in done["err"]
    )
    assert hub.history == []
