"""Make the trained model ready for others: its card, on request a GGUF file, on request an upload to the Hub.

In: models/base/manifest.json, models/merged/, models/sft/, the provenance in data/raw/, and the reports. Out:
reports/model_card.md, and models/published/ with what goes to the Hub beside the weights: the same card as
README.md, and the GGUF file. Comes after `report`, so that nothing is published that missed a gate.

    python -m stages.publish
"""

import argparse
import json
from pathlib import Path
from typing import Annotated

from pydantic import Field

from stages.common import files, ggufs, hubpush, modelcard
from stages.common.card import hub_licence
from stages.common.errors import PipelineError, run
from stages.common.params import load, params

MANIFEST = Path("models/base/manifest.json")
MERGED = Path("models/merged")
ADAPTER = Path("models/sft")
FOLDERS = {"merged": MERGED, "adapter": ADAPTER}
RAW = Path("data/raw")
REPORTS = Path("reports")
PUBLISHED = Path("models/published")
CARD = REPORTS / "model_card.md"

Repository = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}$")]


@params
class PublishParams:
    """What is published, and where."""

    base_model: Repository | None  # the base's name on the Hub, where its URI does not tell
    artifact: modelcard.Artifact  # merged: a model of its own; adapter: what is loaded beside the base
    gguf: ggufs.Kind | None  # write a GGUF file of the merged model too, with matrices of this type
    push: Repository | None  # owner/name on the Hub to upload to; by HF_TOKEN
    private: bool  # of a repository that the upload makes


def weights(folder: Path) -> Path:
    """The weights of a model folder; of several files the index, which names them."""
    for name in ("model.safetensors", "model.safetensors.index.json"):
        if (folder / name).is_file():
            return folder / name
    raise PipelineError(f"{folder}: no model.safetensors; expected a model folder (export writes it)")


def adapter(chosen: PublishParams) -> files.Row:
    """The adapter's configuration; empty where training left a whole model."""
    path = ADAPTER / "adapter_config.json"
    if path.exists() or not (ADAPTER / "config.json").exists():
        return files.needed(path, "r", "lora_alpha", "target_modules")
    if chosen.artifact == "adapter":
        raise PipelineError(f"publish.artifact: adapter; expected merged: {ADAPTER} is a whole model")
    return {}


def facts(chosen: PublishParams) -> modelcard.Facts:
    """Everything that the card tells, read from what the stages wrote."""
    manifest = files.needed(MANIFEST, "uri", "licence")
    hub = modelcard.HUB.match(manifest["uri"])
    mix = files.needed(REPORTS / "mix.json", "train", "valid", "contaminated", "kinds", "sources")
    name = (chosen.push or "coder-agent").rpartition("/")[2]
    return modelcard.Facts(
        artifact=chosen.artifact,
        name=name,
        place=chosen.push or str(FOLDERS[chosen.artifact]),
        base_model=chosen.base_model or (hub[2] if hub else ""),
        manifest=manifest,
        config=files.read_json(MERGED / "config.json"),
        adapter=adapter(chosen),
        digest=files.sha256(weights(MERGED)),
        gguf=f"{name}-{chosen.gguf}.gguf" if chosen.gguf else "",
        mix=mix,
        provenance={
            name: files.needed(RAW / f"{name}.provenance.json", "origins") for name in mix["sources"]
        },
        training=files.read_json(REPORTS / "train.json"),
        parity=files.needed(REPORTS / "export.json", "agreement", "tokens", "same_answers", "answers"),
        metrics=files.read_json(REPORTS / "metrics.json"),
        scores={model: files.read_json(REPORTS / "scores" / f"{model}.json") for model in ("base", "tuned")},
    )


def contents(chosen: PublishParams, known: modelcard.Facts) -> dict[str, Path | bytes]:
    """The files of the repository by their names in it: weights, tokenizer, card, GGUF file."""
    folder = FOLDERS[chosen.artifact]
    found: dict[str, Path | bytes] = {path.name: path for path in folder.iterdir() if path.is_file()}
    found |= {path.name: path for path in PUBLISHED.iterdir()}  # the card in place of the folder's own
    if chosen.artifact == "adapter" and known.base_model:  # it names our folder, which nobody else has
        named = {**known.adapter, "base_model_name_or_path": known.base_model}
        found["adapter_config.json"] = (json.dumps(named, indent=2) + "\n").encode()
    return found


def main() -> None:
    """Write the card and what else is wanted; then upload."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    chosen = load("publish", PublishParams)
    known = facts(chosen)
    text = modelcard.readme(known)
    with files.whole(PUBLISHED) as folder:
        files.write_text(folder / "README.md", text)
        if chosen.gguf:
            about = ggufs.About(known.name, hub_licence(known.manifest["licence"]))
            ggufs.write(MERGED, folder / known.gguf, chosen.gguf, about)
    files.write_text(CARD, text)
    print(f"publish: {CARD}" + (f", {PUBLISHED / known.gguf}" if known.gguf else ""))
    if chosen.push:
        print(f"publish: {hubpush.push(chosen.push, contents(chosen, known), chosen.private)}")


if __name__ == "__main__":
    run(main)
