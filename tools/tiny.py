"""The same pipeline in a minute: a copy of the working tree with few rows and a tiny model of random weights.

Every stage takes the path that it always takes; only values are small. `tools.hermetic` and the tests use it.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stages.common import files

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
IDENTITY = {"NAME": "Nobody", "EMAIL": "nobody@example.org"}
FIRST = 200  # rows of a source that are looked at


def tokenizer() -> Any:
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


def model(folder: Path, seed: int = 0) -> Path:
    """Save a Llama of two small layers with random weights, its tokenizer and chat template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    made = tokenizer()
    torch.manual_seed(seed)
    weights = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(made),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            initializer_range=0.1,
            bos_token_id=None,
            eos_token_id=made.eos_token_id,
            pad_token_id=made.pad_token_id,
        )
    )
    weights.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def small(params: dict[str, Any], base: Path, suites: list[str]) -> dict[str, Any]:
    """Parameters that take the same path in seconds: few rows, short answers, the model in `base`."""
    for source in params["fetch"].values():
        middle = len(source["origins"]) // 2
        source["origins"] = source["origins"][middle : middle + 1]
    for source in params["filter"].values():
        source["first"] = FIRST
        if "chunk" in source["transforms"]:
            source["transforms"]["chunk"] = 400
    params["base"] |= {"uri": f"file:{base}", "pad_token": None}
    params["mix"] |= {"rows": 40, "valid_share": 0.1}
    params["train"] |= {"epochs": 1, "batch_size": 4, "accumulation": 1, "max_length": 2048}
    params["train"] |= {"probe": {"steps": 2, "prompts": 2, "max_new_tokens": 4}}
    params["export"] |= {"parity_prompts": 2, "min_agreement": 0.0}
    params["generate"]["max_new_tokens"] = dict.fromkeys(params["generate"]["max_new_tokens"], 8)
    params["generate"] |= {"batch_size": 8, "limits": dict.fromkeys([*suites, "humaneval"], 4)}
    params["report"] |= {"no_drop": [], "floors": {}, "ceilings": {}}  # a model this small misses them
    return params


def few(rows: list[files.Row], count: int = 24) -> list[files.Row]:
    """Rows spread over a source, of which the last repeats the first; of code to be fixed one is long."""
    if len(rows) <= count:
        return rows
    chosen = rows[:: len(rows) // count][: count - 1]
    joined = [row for row in rows if (row.get("language"), row.get("cwe_id")) == ("python", "CWE-89")]
    if joined and "fixed_code" in joined[0]:
        sides = ("vulnerable_code", "fixed_code")
        chosen[1] = joined[0] | {side: "\n\n\n".join(row[side] for row in joined) for side in sides}
    return [*chosen, chosen[0]]


def copy_repository(source: Path, target: Path) -> None:
    """Copy what git tracks or would track, but for the lock of the last run."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=source,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if name == "dvc.lock" or not (source / name).is_file():
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)


def shrink(root: Path, params: dict[str, Any], base: Path) -> None:
    """Give a copy of the repository few rows, and small parameters with the model in `base`."""
    for path in (root / "data/handmade").glob("*.jsonl"):
        files.write_rows(path, few(files.read_rows(path)))
    suites = [path.stem for path in sorted((root / "data/benchmarks").glob("*.jsonl"))]
    YAML(typ="safe").dump(small(params, base, suites), root / "params.yaml")


def environment(scratch: Path) -> dict[str, str]:
    """Variables with which DVC and git run in a copy and leave the user's settings and caches alone."""
    who = {f"GIT_{who}_{what}": text for who in ("AUTHOR", "COMMITTER") for what, text in IDENTITY.items()}
    made = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(scratch / "site"),
        "DVC_GLOBAL_CONFIG_DIR": str(scratch / "global"),
        "DVC_SYSTEM_CONFIG_DIR": str(scratch / "system"),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
        **who,
    }
    made.pop("PYTHONPATH", None)
    return made


def commit(root: Path, environment: Mapping[str, str]) -> None:
    """Make a copy a git repository with one commit: DVC and `report` ask git."""
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "Copy"]):
        subprocess.run(["git", *command], cwd=root, env=environment, check=True)
