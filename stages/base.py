"""Bring the base model into the project as one local safetensors folder.

In: the URI of `base.uri` (a GGUF file in a package, a Hub model at a commit, or a local folder).
Out: models/base/ with a manifest of its files. The only model stage that may use the network.

    python -m stages.base
"""

import argparse
import os
import shutil
from pathlib import Path

from stages.common import files, models, uris
from stages.common.errors import PipelineError, run
from stages.common.params import load, params

BASE = Path("models/base")
MANIFEST = "manifest.json"


@params
class BaseParams:
    """Which model is trained."""

    uri: str
    licence: str  # SPDX identifier
    pad_token: str | None  # replaces the tokenizer's where that one ends answers too; null keeps it


def from_gguf(path: Path, folder: Path) -> None:
    """Unpack a GGUF file's quantised weights to bfloat16 safetensors, with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.bfloat16)
    del model.config.quantization_config  # the weights are plain from here on
    model.hf_quantizer = None
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(folder)


def from_folder(source: Path, folder: Path) -> None:
    """Copy a model's files."""
    if not source.is_dir():
        raise PipelineError(f"base.uri: {source}; expected a folder (params.yaml)")
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.bin", "*.pt", "*.pth", "*.py", ".*"))


def build(uri: str, folder: Path) -> None:
    """Write the model that `uri` names to `folder`."""
    if uri.startswith("package:"):
        paths = list(uris.package_files(uri).values())
        if len(paths) != 1 or paths[0].suffix != ".gguf":
            raise PipelineError(
                f"base.uri: {uri} names {len(paths)} files; expected one .gguf file (params.yaml)"
            )
        from_gguf(paths[0], folder)
    elif uri.startswith("hf:"):
        from_folder(uris.hub_model(uri), folder)
    elif uri.startswith("file:"):
        from_folder(Path(uri.removeprefix("file:")), folder)
    else:
        raise PipelineError(f"base.uri: {uri}; expected package:, hf: or file: (params.yaml)")


def set_pad_token(folder: Path, token: str) -> None:
    """Let the tokenizer and the configurations pad with `token`, which must exist already."""
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    index = tokenizer.get_vocab().get(token)
    if index is None:
        raise PipelineError(
            f"base.pad_token: {token!r}; expected a token of the model's vocabulary (params.yaml)"
        )
    tokenizer.pad_token = token
    tokenizer.save_pretrained(folder)
    config = AutoConfig.from_pretrained(folder)
    config.pad_token_id = index
    config.save_pretrained(folder)
    generation = folder / "generation_config.json"
    if generation.exists():
        files.write_json(generation, {**files.read_json(generation), "pad_token_id": index})


def manifest(folder: Path, chosen: BaseParams) -> files.Row:
    """Where the model came from and the sha256 and size in bytes of its files."""
    entries = {
        str(path.relative_to(folder)): {
            "bytes": path.stat().st_size,
            "sha256": files.sha256(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    return {"uri": chosen.uri, "licence": chosen.licence, "files": entries}


def main() -> None:
    """Build models/base."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    chosen = load("base", BaseParams)
    if not chosen.uri.startswith("hf:"):
        os.environ["HF_HUB_OFFLINE"] = "1"  # nothing else has a reason to reach the Hub

    with files.whole(BASE) as folder:
        build(chosen.uri, folder)
        models.require(folder)
        if chosen.pad_token is not None:
            set_pad_token(folder, chosen.pad_token)
        entries = manifest(folder, chosen)
        files.write_json(folder / MANIFEST, entries)
    print(f"base: {chosen.uri}, {sum(entry['bytes'] for entry in entries['files'].values()):,} bytes")


if __name__ == "__main__":
    run(main)
