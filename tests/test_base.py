"""The base model's folder: copied whole, described truly, or refused without a trace."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Project

from stages import base
from stages.common import uris
from stages.common.errors import PipelineError

GGUF = "package://some-model@1.0/some_model/*.gguf"


def ask(project: Project, uri: str, pad_token: str | None = None) -> None:
    project.params(base={"uri": uri, "licence": "MIT", "pad_token": pad_token})


def test_a_folder_is_copied_and_its_files_are_hashed(project: Project, tiny_model: Path) -> None:
    ask(project, f"file:{tiny_model}")
    project.run("base")
    folder = project.root / "models/base"
    copied = {path.name: path.read_bytes() for path in folder.iterdir()}
    manifest = json.loads(copied.pop("manifest.json"))
    assert copied == {path.name: path.read_bytes() for path in tiny_model.iterdir()}
    assert (manifest["uri"], manifest["licence"]) == (f"file:{tiny_model}", "MIT")
    assert manifest["files"] == {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in sorted(copied.items())
    }


def test_code_and_pickles_are_left_behind(project: Project, tiny_model: Path) -> None:
    source = project.root / "source"
    shutil.copytree(tiny_model, source)
    left = ["modeling.py", "pytorch_model.bin", "optimizer.pt", "weights.pth", ".gitattributes"]
    for name in left:
        (source / name).write_text("")
    ask(project, f"file:{source}")
    project.run("base")
    assert not {path.name for path in (project.root / "models/base").iterdir()} & set(left)


def test_the_pad_token_is_set_everywhere_and_the_manifest_is_of_what_lies_there(
    project: Project, tiny_model: Path
) -> None:
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    ask(project, f"file:{tiny_model}", "<|im_start|>")
    project.run("base")
    folder = project.root / "models/base"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<|im_start|>", 1)
    assert AutoConfig.from_pretrained(folder).pad_token_id == 1
    assert GenerationConfig.from_pretrained(folder).pad_token_id == 1
    assert tokenizer.eos_token_id == 2
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    for name, entry in manifest["files"].items():
        assert entry["sha256"] == hashlib.sha256((folder / name).read_bytes()).hexdigest()


def without(pattern: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        for path in folder.glob(pattern):
            path.unlink()

    return spoil


@pytest.mark.parametrize(
    ("spoil", "pad_token", "message"),
    [
        (without("*.safetensors"), None, "no .*safetensors.*expected a model folder with weights"),
        (without("config.json"), None, "no config.json.*expected a model folder with a configuration"),
        (without("tokenizer*"), None, "no tokenizer.*expected a model folder with a tokenizer"),
        (shutil.rmtree, None, "base.uri: .*expected a folder"),
        (without("nothing"), "<pad>", "base.pad_token: '<pad>'; expected a token of the model's vocabulary"),
    ],
    ids=["weights", "configuration", "tokenizer", "folder", "pad token"],
)
def test_a_folder_that_is_no_model_is_refused_and_what_was_there_stays(
    spoil: Callable[[Path], None], pad_token: str | None, message: str, project: Project, tiny_model: Path
) -> None:
    source = project.root / "source"
    shutil.copytree(tiny_model, source)
    spoil(source)
    ask(project, f"file:{source}", pad_token)
    earlier = project.root / "models/base/config.json"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("{}")
    before = project.files()
    with pytest.raises(PipelineError, match=message):
        project.run("base")
    assert project.files() == before


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("models/somewhere", "expected package:, hf: or file:"),
        ("https://example.org/model", "expected package:, hf: or file:"),
        ("file:nowhere", "base.uri: nowhere; expected a folder"),
        ("hf://owner/name@main", "revision 'main'; expected a commit hash of 40 hex digits"),
        ("hf://owner@main", "expected hf://"),
        ("package://some-model/weights.gguf", "expected package://<distribution>@<version>/<path>"),
        ("package://no-such-distribution@1.0/weights.gguf", "'no-such-distribution' is not installed"),
        ("package://pytest@0.0.1/weights.gguf", r"version \S+ is installed; expected 0.0.1"),
    ],
)
def test_a_bad_uri_is_refused_and_nothing_is_written(uri: str, message: str, project: Project) -> None:
    ask(project, uri)
    before = project.files()
    with pytest.raises(PipelineError, match=message):
        project.run("base")
    assert project.files() == before


@pytest.mark.parametrize(
    ("names", "taken"),
    [(["model.gguf"], "model.gguf"), ([], None), (["a.gguf", "b.gguf"], None), (["model.bin"], None)],
)
def test_a_package_gives_its_one_gguf_file(
    names: list[str], taken: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked: list[Path] = []
    found = {name: tmp_path / name for name in names}
    monkeypatch.setattr(uris, "package_files", lambda uri: found if uri == GGUF else {})
    monkeypatch.setattr(base, "from_gguf", lambda path, folder: unpacked.append(path))
    if taken:
        base.build(GGUF, tmp_path / "model")
        assert unpacked == [tmp_path / taken]
    else:
        with pytest.raises(PipelineError, match=f"names {len(names)} files; expected one .gguf file"):
            base.build(GGUF, tmp_path / "model")
        assert not unpacked
