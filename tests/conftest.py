"""What several tests share: a tiny model, a project folder, parameters, and one run of the pipeline."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["DVC_NO_ANALYTICS"] = "1"
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # a tiny model gains nothing by threads that wait for each other

ROOT = Path(__file__).resolve().parents[1]

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TEXTS = [
    "Is this code secure? Answer SAFE, or VULNERABLE and the CWE, on the first line. Then give the reason.",
    "Complete this Python function.\n\n```python\ndef add(first, second):\n    return first + second\n```",
    "Fix the security weakness in this code. Name the security weakness in this code and explain it.",
    "import os\n\ntry:\n    value = int(text)\nexcept ValueError as error:\n    raise OSError from error",
]


def read_yaml(path: Path) -> Any:
    return YAML(typ="safe").load(path)


def write_yaml(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    YAML(typ="safe").dump(value, path)


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@cache
def composed(recipe: str = "v4", scale: str = "demo") -> str:
    """The parameters of a recipe at a scale, as YAML text, composed as DVC does it."""
    import tempfile

    from dvc.utils.hydra import compose_and_dump

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "params.yaml")
        compose_and_dump(path, str(ROOT / "conf"), None, "config", "", [f"recipe={recipe}", f"scale={scale}"])
        return path.read_text(encoding="utf-8")


def chosen(group: str) -> dict[str, Any]:
    """A fresh copy of one group of the default parameters."""
    return YAML(typ="safe").load(composed())[group]


def tiny_tokenizer() -> Any:
    """Byte-level BPE with at most 512 tokens: any text can be encoded, and decodes to itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START],
        chat_template=CHATML,
    )


def make_tiny_model(folder: Path, seed: int = 0) -> Path:
    """Save a Llama of two small layers with random weights, its tokenizer and chat template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            initializer_range=0.1,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


class Project:
    """A project folder in which a stage's `main` can be run."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def params(self, **groups: Any) -> None:
        write_yaml(self.root / "params.yaml", {"program": chosen("program"), **groups})

    def base(self, model: Path) -> Path:
        """Put a model where `base` leaves it."""
        folder = self.root / "models/base"
        shutil.copytree(model, folder)
        manifest = {"uri": f"file:{model}", "licence": "Apache-2.0", "files": {}}
        (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        return folder

    def run(self, stage: str, *arguments: str) -> None:
        """Run the stage's `main`; a PipelineError comes through."""
        self._call(importlib.import_module(f"stages.{stage}").main, stage, arguments)

    def command(self, stage: str, *arguments: str) -> int:
        """Run the stage as the command line does and return the exit status."""
        from stages.common.errors import run

        main = importlib.import_module(f"stages.{stage}").main
        try:
            self._call(lambda: run(main), stage, arguments)
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    def _call(self, function: Callable[[], None], stage: str, arguments: tuple[str, ...]) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.root)
            patch.setattr(sys, "argv", [stage, *arguments])
            function()

    def files(self) -> dict[str, bytes]:
        """Every file and its content, hidden ones too."""
        paths = (path for path in self.root.rglob("*") if path.is_file())
        return {str(path.relative_to(self.root)): path.read_bytes() for path in paths}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


# The whole pipeline at a tiny size. --------------------------------------------------------------------


# What Python runs first where this stands as sitecustomize.py. It notes of every stage what it reads, writes,
# imports and connects to, a line of JSON each; files outside the project and those without a name not.
WATCH = """
import json, os, sys

if sys.orig_argv[1:2] == ["-m"] and sys.orig_argv[2].startswith("stages."):
    stage = "@".join(sys.orig_argv[2:4]).removeprefix("stages.")
    os.environ.pop("DVC_STAGE", None)  # or the check of its inputs reads them all
    root = os.getcwd() + os.sep
    log = os.open(os.environ["WATCHED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    seen = set()

    def did(event, arguments):
        if event == "open" and isinstance(arguments[0], str | bytes):
            path = os.path.abspath(os.fsdecode(arguments[0]))
            mode, flags = arguments[1] or "", arguments[2] or 0
            written = set(mode) & set("wax+") or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            nameless = os.path.isdir(path)  # a temporary file in it
            if path.startswith(root) and not nameless and "__pycache__" not in path:
                return "writes" if written else "reads", path.removeprefix(root)
        elif event == "import":
            return "imports", arguments[0]
        elif event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
            return "connects", repr(arguments[1:])
        return None

    def watch(event, arguments):
        done = did(event, arguments)
        if done and done not in seen:
            seen.add(done)
            os.write(log, (json.dumps([stage, *done]) + "\\n").encode())

    sys.addaudithook(watch)
"""


class Clone:
    """A copy of this repository, with a tiny model and few rows, in which DVC can be run."""

    def __init__(self, root: Path, scratch: Path) -> None:
        self.root = root
        self.watched = scratch / "watched.jsonl"  # see WATCH
        nowhere = "http://127.0.0.1:9"  # nothing listens there: whoever tries the network fails at once
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "DVC_SITE_CACHE_DIR": str(scratch / "site"),
            "DVC_GLOBAL_CONFIG_DIR": str(scratch / "global"),
            "DVC_SYSTEM_CONFIG_DIR": str(scratch / "system"),
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_SYSTEM": os.devnull,
            **{f"GIT_{who}_NAME": "Tester" for who in ("AUTHOR", "COMMITTER")},
            **{f"GIT_{who}_EMAIL": "tester@example.org" for who in ("AUTHOR", "COMMITTER")},
            **{f"{scheme}_proxy": nowhere for scheme in ("http", "https", "all")},
        }
        self.environment.pop("PYTHONPATH", None)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=self.root, env=self.environment, capture_output=True, text=True)

    def checked(self, *command: str) -> str:
        done = self.run(*command)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    @property
    def params(self) -> Path:
        return self.root / "params.yaml"


def small(params: dict[str, Any], model: Path) -> dict[str, Any]:
    """Parameters that take the same path in seconds: few rows, short answers, the tiny model."""
    suites = [path.stem for path in sorted((ROOT / "data/benchmarks").glob("*.jsonl"))]
    params["fetch"]["coding"]["origins"] = params["fetch"]["coding"]["origins"][1:2]
    params["filter"]["fixes"]["transforms"]["chunk"] = 400
    params["base"] |= {"uri": f"file:{model}", "pad_token": None}
    params["mix"] |= {"rows": 40, "valid_share": 0.1}
    params["train"] |= {"epochs": 1, "batch_size": 4, "accumulation": 1, "max_length": 2048}
    params["train"] |= {"probe": {"steps": 2, "prompts": 2, "max_new_tokens": 4}}
    params["export"] |= {"parity_prompts": 2, "min_agreement": 0.0}
    params["generate"]["max_new_tokens"] = dict.fromkeys(params["generate"]["max_new_tokens"], 8)
    params["generate"] |= {"batch_size": 8, "limits": dict.fromkeys([*suites, "humaneval"], 4)}
    params["report"] |= {"no_drop": [], "floors": {}, "ceilings": {}}  # a model this small misses them
    return params


def copy_repository(root: Path) -> None:
    """What git tracks or would track, but for the lock of the last run."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if name == "dvc.lock" or not (ROOT / name).is_file():
            continue
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, root / name)


def few(rows: list[dict[str, Any]], count: int = 24) -> list[dict[str, Any]]:
    """Rows spread over a source, of which the last repeats the first; of code to be fixed one is long."""
    chosen = rows[:: len(rows) // count][: count - 1]
    if "fixed_code" in rows[0]:
        joined = [row for row in rows if (row["language"], row["cwe_id"]) == ("python", "CWE-89")]
        sides = ("vulnerable_code", "fixed_code")
        chosen[1] = joined[0] | {side: "\n\n\n".join(row[side] for row in joined) for side in sides}
    return [*chosen, chosen[0]]


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """The copy after its first `dvc repro`, whose stages were watched."""
    scratch = tmp_path_factory.mktemp("smoke")
    root = scratch / "copy"
    copy_repository(root)
    for path in (root / "data/handmade").glob("*.jsonl"):
        write_rows(path, few(read_rows(path)))
    model = make_tiny_model(scratch / "model")
    made = Clone(root, scratch)
    write_yaml(made.params, small(YAML(typ="safe").load(composed()), model))
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "Copy"]):
        made.checked("git", *command)
    (scratch / "site").mkdir()
    (scratch / "site/sitecustomize.py").write_text(WATCH, encoding="utf-8")
    unwatched = made.environment
    made.environment = {**unwatched, "PYTHONPATH": str(scratch / "site"), "WATCHED": str(made.watched)}
    made.checked("dvc", "repro")
    made.environment = unwatched
    return made
