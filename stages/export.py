"""Merge the adapter into the unquantised base model and measure that the two agree.

In: models/base/, models/sft/, data/mixed/train.jsonl. Out: models/merged/ (an ordinary model folder with a
model card) and the parity in reports/export.json.

    python -m stages.export
"""

import argparse
import math
import os
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from stages.common import files, models, records
from stages.common.errors import PipelineError, run
from stages.common.params import load, params
from stages.common.records import Example

if TYPE_CHECKING:
    import torch

BASE = Path("models/base")
ADAPTER = Path("models/sft")
TRAIN = Path("data/mixed/train.jsonl")
MERGED = Path("models/merged")
REPORT = Path("reports/export.json")


@params
class ExportParams:
    """How the merge is proved."""

    parity_prompts: Annotated[int, Field(ge=1)]  # training prompts on which both models are compared
    min_agreement: Annotated[
        float, Field(ge=0, le=1)
    ]  # least share of tokens with the same most likely successor


def log_probabilities(model: Any, tokens: Any, texts: list[str]) -> list["torch.Tensor"]:
    """For each text a (tokens, vocabulary) tensor of the next token's log-probabilities, in float32."""
    import torch

    with torch.inference_mode():
        return [
            model(**tokens(text, return_tensors="pt").to(model.device)).logits[0].float().log_softmax(-1)
            for text in texts
        ]


def parity(before: list["torch.Tensor"], after: list["torch.Tensor"]) -> dict[str, float]:
    """How far the merged model departs from base plus adapter.

    `agreement`: share of positions with the same most likely token. `divergence`: mean Kullback-Leibler
    divergence, in nats a token. `largest`: greatest change of that token's log-probability, in nats.
    """
    import torch

    first, second = torch.cat(before), torch.cat(after)
    top = first.argmax(-1)
    change = (first.gather(1, top[:, None]) - second.gather(1, top[:, None])).abs()
    return {
        "agreement": float((top == second.argmax(-1)).float().mean()),
        "divergence": float((first.exp() * (first - second)).sum(-1).mean()),
        "largest": float(change.max()),
        "tokens": int(top.numel()),
    }


def card(manifest: files.Row, report: dict[str, float]) -> str:
    """The model card, in the Hub's format."""
    return f"""---
license: {manifest["licence"].lower()}
library_name: transformers
pipeline_tag: text-generation
tags: [code, security, qlora]
---

# Security-aware coding assistant

Fine-tuned from `{manifest["uri"]}` with QLoRA; the adapter is merged into the unquantised weights.

It answers programming requests, and judges snippets: the first line is `SAFE` or `VULNERABLE CWE-<n>`,
the reason follows. Ask with the chat template that the tokenizer carries.

Merged and unmerged model agree on the next token in {report["agreement"]:.1%} of {report["tokens"]} cases.

Its verdicts are hints, not an audit: see the evaluation report of the pipeline that made it for how often
it is right. It has not been aligned for any other use.
"""


def main() -> None:
    """Merge, compare, save."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    chosen = load("export", ExportParams)
    os.environ["HF_HUB_OFFLINE"] = "1"
    manifest = files.read_json(BASE / "manifest.json")
    rows = islice(files.iter_rows(TRAIN), chosen.parity_prompts)
    examples = [records.from_row(Example, row, f"{TRAIN}:{number}") for number, row in enumerate(rows, 1)]
    if not examples:
        raise PipelineError(f"{TRAIN}: 0 rows; expected some to compare the models on")
    if not (ADAPTER / "adapter_config.json").exists():
        raise PipelineError(f"{ADAPTER}: no adapter_config.json; expected an adapter (train writes it)")
    from peft import PeftModel
    from transformers import AutoTokenizer

    model, _ = models.load(BASE)
    tokens = AutoTokenizer.from_pretrained(ADAPTER)
    texts = [
        tokens.apply_chat_template(
            [{"role": "user", "content": example.prompt}], tokenize=False, add_generation_prompt=True
        )
        for example in examples
    ]
    adapted = PeftModel.from_pretrained(model, ADAPTER).eval()
    before = log_probabilities(adapted, tokens, texts)
    merged = adapted.merge_and_unload()
    report = parity(before, log_probabilities(merged, tokens, texts))
    if not (math.isfinite(report["divergence"]) and report["agreement"] >= chosen.min_agreement):
        raise PipelineError(
            f"export: merged and unmerged model agree on {report['agreement']:.3f} of the tokens; "
            f"expected at least {chosen.min_agreement} (export.min_agreement)"
        )

    with files.whole(MERGED) as folder:
        merged.save_pretrained(folder)
        tokens.save_pretrained(folder)
        (folder / "README.md").write_text(card(manifest, report), encoding="utf-8")
    files.write_json(REPORT, report)
    print(f"export: agreement {report['agreement']:.4f}, divergence {report['divergence']:.2e} nats a token")


if __name__ == "__main__":
    run(main)
