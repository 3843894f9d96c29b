"""The model card: what the Hub reads of a model, and what a person should know before using it.

Nothing here opens a file: the card is made of what the stages report. It leaves out whatever differs from run
to run of the same pipeline, such as seconds.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from stages.common import prompts
from stages.common.card import doubts, hub_licence, table
from stages.common.metrics import wilson

Row = Mapping[str, Any]
Artifact = Literal["merged", "adapter"]

TITLE = "Security-aware coding assistant"
SPECIAL = {"humaneval": "HumanEval", "reference": "reference tests, by keywords"}  # suites by better names
HUB_DATASETS = {
    "coding": "openai/openai_humaneval"
}  # of the groups of reports/metrics.json, where the Hub has one
DETECTION = {
    "balanced_accuracy": "balanced accuracy",
    "recall": "recall",
    "specificity": "specificity",
    "mcc": "MCC",
    "pair_correct": "pair correct",
    "invalid_rate": "invalid rate",
    "auc": "AUC",
}
CHECKS = {"functional": "works", "secure": "withstands", "handled": "handles the fault"}
HUB = re.compile(r"hf://(?:(datasets)/)?([\w.-]+/[\w.-]+)@([0-9a-f]{40})")


@dataclass(frozen=True)
class Facts:
    """What the card tells."""

    artifact: Artifact  # which of the two is published; the card is the same but for how it is loaded
    name: str  # of the model
    place: str  # where it is loaded from: the repository, or the folder
    base_model: str  # its identifier on the Hub, "" where there is none
    manifest: Row  # models/base/manifest.json
    config: Row  # models/merged/config.json
    adapter: Row  # models/sft/adapter_config.json, empty where every weight was trained
    digest: str  # SHA-256 of the merged weights
    gguf: str  # name of the GGUF file, "" for none
    provenance: Mapping[str, Row]  # by source: data/raw/<source>.provenance.json
    mix: Row  # reports/mix.json
    training: Row  # reports/train.json
    parity: Row  # reports/export.json
    metrics: Row  # reports/metrics.json
    scores: Mapping[str, Row]  # of base and tuned: reports/scores/<model>.json


def readme(facts: Facts) -> str:
    """The card: YAML front matter, then Markdown."""
    uri, base = facts.manifest["uri"], facts.base_model
    hub = f" ([{base}](https://huggingface.co/{base}))" if base else ""
    sections = [
        f"---\n{front_matter(facts)}\n---",
        f"# {TITLE}",
        f"A small code model, fine-tuned ({method(facts.adapter)}) from `{uri}`{hub}. It answers "
        "requests for code, and judges code: the first line of the answer is `SAFE` or `VULNERABLE CWE-<n>`. "
        + KINDS[facts.artifact if facts.adapter else "full"],
        "## What it can and cannot do\n\n" + "\n".join(f"- {line}" for line in limits(facts.scores["tuned"])),
        f"## How to use it\n\n{_use(facts)}",
        f"## Measured\n\n{_measured(facts.scores)}",
        f"## Training data\n\n{_data(facts)}",
        f"## Training\n\n{_training(facts)}",
        f"## Licences\n\n{_licences(facts)}",
        f"## How to reproduce it\n\n{_reproduce(facts)}",
    ]
    return "\n\n".join(sections) + "\n"


KINDS = {
    "merged": "This is the merged model: the adapter's update added to the unquantised weights.",
    "adapter": "This is the adapter alone, to be loaded beside the base model.",
    "full": "Every weight was trained.",
}


def method(adapter: Row) -> str:
    """How a model was trained, by the adapter's configuration."""
    if not adapter:
        return "every weight"
    name = "DoRA" if adapter.get("use_dora") else "rsLoRA" if adapter.get("use_rslora") else "LoRA"
    return f"{name}, rank {adapter['r']}, alpha {adapter['lora_alpha']}"


# The front matter. ---------------------------------------------------------------------------------------


def front_matter(facts: Facts) -> str:
    """The metadata that the Hub reads, as YAML, made and checked by huggingface_hub."""
    from huggingface_hub import ModelCardData

    licence = facts.manifest["licence"]
    adapter = facts.artifact == "adapter"
    made = ModelCardData(
        base_model=facts.base_model or None,
        base_model_relation=("adapter" if adapter else "finetune") if facts.base_model else None,
        license=hub_licence(licence),
        license_name=licence if hub_licence(licence) == "other" else None,
        language=["en", "code"],
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["code", "security", *(["lora"] if facts.adapter else []), *(["gguf"] if facts.gguf else [])],
        datasets=datasets(facts.provenance) or None,
        model_name=facts.name,
        eval_results=list(results(facts.metrics)) or None,
    )
    text: str = made.to_yaml(line_break="\n")
    return text.rstrip()


def datasets(provenance: Mapping[str, Row]) -> list[str]:
    """The identifiers of the sources that the Hub has."""
    found = (HUB.match(origin["uri"]) for one in provenance.values() for origin in one["origins"])
    return sorted({match[2] for match in found if match and match[1]})


def results(metrics: Row) -> Iterator[Any]:
    """The tuned model's headline shares as entries of the Hub's model index; counts are left out."""
    from huggingface_hub import EvalResult

    for group, measures in metrics.items():
        for metric, values in measures.items():
            if not isinstance(values, Mapping) or type(values.get("tuned")) is not float:
                continue
            yield EvalResult(
                task_type="text-generation",
                task_name=group.replace("_", " "),
                dataset_type=HUB_DATASETS.get(group, f"coder-agent/{group}"),
                dataset_name=f"{group.replace('_', ' ')} ({measures.get('pairs', measures.get('tasks'))} "
                f"{'pairs' if 'pairs' in measures else 'tasks'})",
                metric_type="pass@1" if metric == "pass_at_1" else metric,
                metric_value=round(values["tuned"], 6),
            )


# What it can and cannot do. ------------------------------------------------------------------------------


def of_hundred(part: float, whole: int) -> str:
    """A share as a count of a hundred with its 95 % interval by Wilson: "7 (3 to 14)"."""
    low, high = wilson(round(part), whole)
    return f"{100 * part / whole:.0f} ({100 * low:.0f} to {100 * high:.0f})"


def judge(detection: Row) -> list[str]:
    """How far the model's verdicts can be trusted, in sentences, from the scores of a detection suite."""
    counts, pairs = detection["confusion"], detection["pairs"]
    found = [
        f"Of 100 safe functions it flags {of_hundred(counts['fp'], pairs)}, of 100 vulnerable ones it misses "
        f"{of_hundred(pairs - counts['tp'], pairs)} (in brackets 95 % intervals; measured on {pairs} pairs "
        "of a vulnerable function and its repaired twin)."
    ]
    low, high = detection["intervals"]["balanced_accuracy"]
    best = max(detection[name]["balanced_accuracy"] for name in ("always_vulnerable", "always_safe"))
    value = f"its balanced accuracy is {detection['balanced_accuracy']:.2f} ({low:.2f} to {high:.2f})"
    told = "tell more than" if low > best else "tell less than" if high < best else "cannot be told from"
    found.append(f"Its verdicts {told} a constant answer's: {value} against {best:.2f}.")
    invalid = counts["invalid_vulnerable"] + counts["invalid_fixed"]
    found.append(f"Of 100 questions it answers {of_hundred(invalid, 2 * pairs)} without a verdict line.")
    return found


def limits(scores: Row) -> list[str]:
    """What was measured of the tuned model in plain words, and what it must not be used for."""
    found = []
    for name, one in scores.items():
        if one["kind"] == "detection":
            found += judge(one)
        elif one["kind"] == "fixing":
            total = one["tasks"]
            works = one["checks"]["functional"]["passed"]
            found.append(
                f"Of 100 repairs {of_hundred(one['passed'], total)} work and withstand the attack; "
                f"{of_hundred(works, total)} work at all."
            )
        elif one["kind"] == "code":
            title = SPECIAL.get(name, name.replace("_", " "))
            solved = of_hundred(one["passed"], one["tasks"])
            found.append(
                f"{title[0].upper()}{title[1:]}: it solves {solved} of 100 tasks at the first attempt."
            )
    return [*found, *CAUTIONS]


CAUTIONS = (
    "**It must not decide alone whether code is released**: a verdict is a hint for a reader, not an audit. "
    "`SAFE` proves nothing.",
    "It sees one function at a time; weaknesses that only show across functions or files it cannot see.",
    "Code that it writes or repairs is to be read and tested before it runs.",
    "It was measured with greedy decoding, in English, on short functions; nothing is known beyond that.",
)


# The sections. -------------------------------------------------------------------------------------------


def _use(facts: Facts) -> str:
    question = prompts.detect("<the code>", "python").split("\n\n")[0]
    load = {
        "merged": f'model = AutoModelForCausalLM.from_pretrained("{facts.place}")',
        "adapter": "from peft import PeftModel\n\n"
        f'base = AutoModelForCausalLM.from_pretrained("{facts.base_model or facts.manifest["uri"]}")\n'
        f'model = PeftModel.from_pretrained(base, "{facts.place}")',
    }[facts.artifact]
    code = "\n".join(
        (
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            *([""] if facts.artifact == "merged" else []),
            load,
            f'tokenizer = AutoTokenizer.from_pretrained("{facts.place}")',
            'code = open("example.py").read()',
            f'question = f"{question}\\n\\n```python\\n{{code}}\\n```"',
            'chat = [{"role": "user", "content": question}]',
            "ids = tokenizer.apply_chat_template(",
            '    chat, add_generation_prompt=True, return_tensors="pt", return_dict=True',
            ")",
            "answer = model.generate(**ids, max_new_tokens=64, do_sample=False, repetition_penalty=1.0)",
            'print(tokenizer.decode(answer[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))',
        )
    )
    # 4 takes no notice of `rope_parameters`, and so reads a base with another rope_theta than 10,000 wrongly
    text = (
        "Ask in these very words, in which it was evaluated, with transformers 5 or later:"
        f"\n\n````python\n{code}\n````"
    )
    if facts.gguf:
        text += f"\n\nWith llama.cpp: `llama-cli --model {facts.gguf} --temp 0`."
    return text


def _share(value: float, interval: Sequence[float]) -> str:
    return f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"


def measures(scores: Row) -> dict[tuple[str, str], str]:
    """Each measure of a model by suite and name, with its 95 % interval."""
    found: dict[tuple[str, str], str] = {}
    for suite, one in scores.items():
        title = SPECIAL.get(suite, suite.replace("_", " "))
        if one["kind"] == "detection":
            title += f" ({one['pairs']} pairs)"
            for metric, name in DETECTION.items():
                if metric in one:
                    found[title, name] = _share(one[metric], one["intervals"][metric])
            continue
        title += f" ({one['tasks']} tasks)"
        found[title, "pass rate"] = _share(one["pass_rate"], one["interval"])
        parts = {name: part for name, part in one.get("checks", {}).items() if len(one["checks"]) > 1}
        for name, part in parts.items():
            found[title, CHECKS.get(name, name)] = _share(part["pass_rate"], part["interval"])
        if "ours" in one:
            found[title, "by our judge"] = _share(one["ours"]["pass_rate"], one["ours"]["interval"])
    return found


def _measured(scores: Mapping[str, Row]) -> str:
    base, tuned = measures(scores["base"]), measures(scores["tuned"])
    rows = [(*key, base.get(key, ""), value) for key, value in tuned.items()]
    return (
        "Base and tuned model on the same tasks in the same words, greedy; in brackets 95 % intervals. "
        "Code counts when it stands its tests in a sandbox; no verdict line is a wrong verdict.\n\n"
        + table(("suite", "measure", "base", "tuned"), rows)
    )


def _data(facts: Facts) -> str:
    rows = [
        (
            name,
            f"`{origin['uri']}`",
            origin.get("revision", ""),
            origin["licence"],
            origin["rows"],
            "" if number else f"{facts.mix['sources'][name]['mixed']:,}",
        )
        for name, one in facts.provenance.items()
        for number, origin in enumerate(one["origins"])
    ]
    shown = table(("source", "from", "revision", "licence", "rows", "examples drawn"), rows)
    kinds = ", ".join(f"{kind.replace('_', ' ')} {one['rows']:,}" for kind, one in facts.mix["kinds"].items())
    return (
        f"{facts.mix['train']:,} examples for training and {facts.mix['valid']:,} for validation: {kinds}. "
        f"{facts.mix['contaminated']:,} of them give a task of the evaluation away.\n\n{shown}"
    )


# What training tells of itself; seconds and memory differ from run to run.
TRAINED = {
    "trainable_parameters": "trainable parameters",
    "steps": "steps",
    "tokens": "tokens seen",
    "truncated": "examples cut at the length limit",
    "loss": "training loss, at the end",
    "valid_loss": "validation loss",
    "token_accuracy": "token accuracy, at the end",
    "device": "device",
    "dtype": "computed in",
}


def _told(value: object) -> str:
    return (
        f"{value:,}" if isinstance(value, int) else f"{value:.3f}" if isinstance(value, float) else str(value)
    )


def _training(facts: Facts) -> str:
    adapter, parity = facts.adapter, facts.parity
    same = (
        f"the same next token in {parity['agreement']:.1%} of {parity['tokens']:,} cases, the same answer to "
        f"{parity['same_answers']} of {parity['answers']} questions"
    )
    rows = [
        ("architecture", ", ".join(facts.config.get("architectures") or [])),
        ("trained", method(adapter)),
        *([("adapted layers", ", ".join(sorted(adapter["target_modules"])))] if adapter else []),
        *((title, _told(facts.training[name])) for name, title in TRAINED.items() if name in facts.training),
        ("merged against unmerged", same),
    ]
    return table(("", ""), rows)


def _licences(facts: Facts) -> str:
    rows: dict[str, int] = {}
    for one in facts.provenance.values():
        for origin in one["origins"]:
            rows[origin["licence"]] = rows.get(origin["licence"], 0) + origin["rows"]
    named = ", ".join(f"{licence} ({count:,} rows)" for licence, count in sorted(rows.items()))
    text = f"The base model: {facts.manifest['licence']}. The sources of the training data: {named}."
    doubtful = sorted(one for one in rows if hub_licence(one) == "other" or "-NC" in one.upper())
    if doubtful:
        text += f" Look at {', '.join(doubtful)} before any use: it may forbid yours."
    return text + " No permission beyond these is given, and no warranty." + doubts(facts.provenance)


def _reproduce(facts: Facts) -> str:
    return (
        "`make repro` in the pipeline's repository, with its `params.yaml` and locked packages. On the same "
        "kind of machine the merged weights come out the same to the byte: SHA-256 "
        f"`{facts.digest}`. The table of the data above names the revision of every source."
    )
