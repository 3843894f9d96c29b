"""Merge the adapter into the unquantised base model and measure that the two agree.

In: models/base/, models/sft/, data/mixed/train.jsonl. Out: models/merged/ (an ordinary model folder with a
model card) and the parity in reports/export.json: how far the logits differ, and how many greedy answers do.
Where every weight was trained there is nothing to merge: it must agree with the model in full precision.

    python -m stages.export
"""

import argparse
import copy
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from stages.common import decoding, files, models, records
from stages.common.errors import PipelineError, run
from stages.common.params import load, params
from stages.common.records import Example

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig

BASE = Path("models/base")
ADAPTER = Path("models/sft")
TRAIN = Path("data/mixed/train.jsonl")
MERGED = Path("models/merged")
REPORT = Path("reports/export.json")

ANSWERS = 20  # training prompts that both models answer greedily; of 135M both together take 26 s of a core
NEW_TOKENS = 16  # of such an answer at most; a verdict line has 6 to 8


@params
class ExportParams:
    """How the merge is proved."""

    parity_prompts: Annotated[int, Field(ge=1)]  # training prompts on which both models are compared
    min_agreement: Annotated[
        float, Field(ge=0, le=1)
    ]  # least share of tokens with the same most likely successor


def logits(model: Any, tokens: Any, texts: list[str]) -> list["torch.Tensor"]:
    """For each text a (tokens, vocabulary) tensor of the next token's logits, in the model's own type."""
    import torch

    with torch.inference_mode():
        return [model(**tokens(text, return_tensors="pt").to(model.device)).logits[0] for text in texts]


def answers(model: Any, tokens: Any, texts: list[str]) -> list[list[int]]:
    """The tokens of each text's greedy answer, `NEW_TOKENS` at most."""
    replies = decoding.answer(model, tokens, [decoding.Prompt(text, NEW_TOKENS) for text in texts])
    return [reply.tokens for reply in replies]


def parity(before: list["torch.Tensor"], after: list["torch.Tensor"]) -> dict[str, float]:
    """How far the logits of the merged model depart from those of base plus adapter.

    `agreement`: share of positions with the same most likely token. `divergence`: mean Kullback-Leibler
    divergence, in nats a token. `largest`: greatest change of that token's log-probability, in nats.
    `largest_logit`: greatest change of any logit.
    """
    same, divergence, largest, largest_logit, positions = 0, 0.0, 0.0, 0.0, 0
    for one, other in zip(before, after, strict=True):
        first, second = one.float().log_softmax(-1), other.float().log_softmax(-1)
        top = first.argmax(-1)
        change = (first.gather(1, top[:, None]) - second.gather(1, top[:, None])).abs()
        same += int((top == second.argmax(-1)).sum())
        divergence += float((first.exp() * (first - second)).sum(-1).double().sum())
        largest = max(largest, float(change.max()))
        largest_logit = max(largest_logit, float((one.float() - other.float()).abs().max()))
        positions += top.numel()
    return {
        "agreement": same / positions,
        "divergence": divergence / positions,
        "largest": largest,
        "largest_logit": largest_logit,
        "tokens": positions,
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


@contextmanager
def readable(folder: Path, what: str) -> Iterator[None]:
    """What a library says of a folder that it cannot load becomes a PipelineError of one line."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
        told = "; ".join(lines[:2]) or type(error).__name__  # torch tells the layer on its second line
        raise PipelineError(f"{folder}: {told[:300]}; expected {what}") from None


def is_adapter() -> bool:
    """Whether training left an adapter, and not a model of which every weight was trained."""
    return (ADAPTER / "adapter_config.json").exists() or not (ADAPTER / "config.json").exists()


def require_adapter(manifest: files.Row) -> None:
    """Raise PipelineError unless the adapter is complete, can be merged, and was trained on this base."""
    for name in ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json"):
        if not (ADAPTER / name).is_file():
            raise PipelineError(f"{ADAPTER}: no {name}; expected an adapter (train writes it)")
    config = files.read_json(ADAPTER / "adapter_config.json")
    method, revision = config.get("peft_type"), config.get("revision")
    if method != "LORA":
        raise PipelineError(
            f"{ADAPTER}/adapter_config.json: peft_type: {method!r}; expected LORA: nothing else can be "
            "merged (train.adapter.method)"
        )
    if revision is not None and not str(manifest["uri"]).endswith(f"@{revision}"):
        raise PipelineError(
            f"{ADAPTER}/adapter_config.json: revision: {revision!r}; expected that of {manifest['uri']}, "
            f"which {BASE} holds (train again)"
        )


def adapted() -> Any:
    """The base model with the adapter beside its weights; PipelineError when they do not belong together.

    PEFT itself only warns of layers for which the file has nothing, and leaves them as they are.
    """
    from peft import PeftModel
    from peft.utils import get_peft_model_state_dict
    from safetensors import safe_open

    with readable(BASE, "a model folder (base writes it)"):
        model, _ = models.load(BASE)
    with readable(ADAPTER, f"an adapter of {BASE}"):
        result = PeftModel.from_pretrained(model, ADAPTER).eval()
        with safe_open(ADAPTER / "adapter_model.safetensors", framework="pt") as weights:
            found = set(weights.keys())
    wanted = set(get_peft_model_state_dict(result))
    if odd := sorted(wanted ^ found):
        side = "not in" if odd[0] in wanted else "beyond the configuration in"
        raise PipelineError(
            f"{ADAPTER}: {len(odd)} tensors such as {odd[0]} are {side} adapter_model.safetensors; "
            f"expected all that adapter_config.json names, and no other"
        )
    return result


def trained() -> Any:
    """The model of which every weight was trained, in the precision in which it was."""
    from transformers import AutoModelForCausalLM

    models.require(ADAPTER)
    with readable(ADAPTER, "a model folder (train writes it)"):
        model = AutoModelForCausalLM.from_pretrained(ADAPTER, dtype="auto", use_safetensors=True)
    return model.to(models.device()).eval()


def as_evaluated(base: "GenerationConfig") -> "GenerationConfig":
    """Greedy answers by default, as they were judged: a base may bring sampling and penalties along."""
    from transformers import GenerationConfig

    tokens = ("bos_token_id", "eos_token_id", "pad_token_id")
    return GenerationConfig(**{name: getattr(base, name) for name in tokens})


def main() -> None:
    """Merge, compare, save."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    chosen = load("export", ExportParams)
    os.environ["HF_HUB_OFFLINE"] = "1"
    manifest = files.read_json(BASE / "manifest.json")
    rows = islice(files.iter_rows(TRAIN), max(chosen.parity_prompts, ANSWERS))
    examples = [records.from_row(Example, row, f"{TRAIN}:{number}") for number, row in enumerate(rows, 1)]
    if not examples:
        raise PipelineError(f"{TRAIN}: 0 rows; expected some to compare the models on")
    merging = is_adapter()
    if merging:
        require_adapter(manifest)
    from transformers import AutoTokenizer

    with readable(ADAPTER, "a tokenizer with a chat template (train writes it)"):
        tokens = AutoTokenizer.from_pretrained(ADAPTER)
        padding = copy.deepcopy(tokens)  # to pad changes a tokenizer, and so what is saved of it
        texts = [
            tokens.apply_chat_template(
                [{"role": "user", "content": example.prompt}], tokenize=False, add_generation_prompt=True
            )
            for example in examples
        ]
    both = adapted() if merging else trained()
    if len(tokens) > (known := both.get_input_embeddings().weight.shape[0]):
        raise PipelineError(
            f"{ADAPTER}: a tokenizer of {len(tokens)} tokens; expected {known}, as {BASE} has"
        )

    compared, asked = texts[: chosen.parity_prompts], texts[:ANSWERS]
    alone = both.get_base_model() if merging else both  # without PEFT's shell, the adapter inside
    before = logits(both, tokens, compared), answers(alone, padding, asked)
    merged = both.merge_and_unload() if merging else both.to(models.compute_dtype())
    after = logits(merged, tokens, compared), answers(merged, padding, asked)
    report = parity(before[0], after[0])
    if not (math.isfinite(report["divergence"]) and report["agreement"] >= chosen.min_agreement):
        raise PipelineError(
            f"export: merged and unmerged model agree on {report['agreement']:.3f} of the tokens; "
            f"expected at least {chosen.min_agreement} (export.min_agreement)"
        )
    report["same_answers"] = sum(map(list.__eq__, before[1], after[1]))
    report["answers"] = len(asked)

    merged.generation_config = as_evaluated(merged.generation_config)
    with files.whole(MERGED) as folder:
        merged.save_pretrained(folder)
        tokens.save_pretrained(folder)
        (folder / "README.md").write_text(card(manifest, report), encoding="utf-8")
    files.write_json(REPORT, report)
    print(
        f"export: agreement {report['agreement']:.4f}, divergence {report['divergence']:.2e} nats a token, "
        f"{report['same_answers']} of {report['answers']} greedy answers the same"
    )


if __name__ == "__main__":
    run(main)
