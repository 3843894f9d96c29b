"""Our batched decoding against the library's `generate`, one prompt at a time: tokens a second, and sameness.

Both answer the same HumanEval prompts greedily with the same model, and take turns, each first in every other
round. Answers run to the end token or the limit: the checks by which `generate` ends answers early are off.
Rounding depends on the shape of a batch, so answers of the usual precision may part where two tokens are
nearly as likely; in float32 that hardly happens. Both shares are printed, and where answers part.

    python -m bench.generate --prompts 16 --tokens 96
    python -m bench.generate --model path/to/model --rounds 3
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages.common import decoding, models, prompts, suites
from stages.common.errors import run
from stages.generate import FOLDERS

Tokens = list[list[int]]
Answering = Callable[[Any, Any, list[str], int], Tokens]


def ours(model: Any, tokenizer: Any, texts: list[str], limit: int) -> Tokens:
    """All prompts as one batch."""
    replies = decoding.answer(model, tokenizer, [decoding.Prompt(text, limit) for text in texts])
    return [reply.tokens for reply in replies]


def theirs(model: Any, tokenizer: Any, texts: list[str], limit: int) -> Tokens:
    """One prompt after another."""
    stops = sorted(decoding.end_tokens(model, tokenizer))
    answers = []
    for text in texts:
        given = tokenizer(text, return_tensors="pt", add_special_tokens=False).to(model.device)
        made = model.generate(
            **given, max_new_tokens=limit, do_sample=False, eos_token_id=stops, pad_token_id=stops[0]
        )
        answers.append(made[0, given["input_ids"].shape[1] :].tolist())
    return answers


SIDES: dict[str, Answering] = {"ours": ours, "theirs": theirs}


def parting(first: list[int], second: list[int]) -> int | None:
    """The place of the first token that differs, from 0; None where all are the same."""
    places = (place for place, both in enumerate(zip(first, second, strict=False)) if both[0] != both[1])
    return next(places, None if len(first) == len(second) else min(len(first), len(second)))


def sameness(answers: dict[str, Tokens]) -> str:
    """How many answers are the same on both sides, and where the others part."""
    found = [parting(*both) for both in zip(answers["ours"], answers["theirs"], strict=True)]
    places = sorted(place for place in found if place is not None)
    same = len(found) - len(places)
    where = f"; the others part at token {', '.join(map(str, places))}" if places else ""
    return f"{same} of {len(found)} answers are the same token for token ({same / len(found):.2f}){where}"


def main() -> None:
    """Print tokens a second, their ratio, and how many answers are the same."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=FOLDERS["base"])
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    model, tokenizer = models.load(arguments.model)
    tasks = suites.subset(suites.load(suites.HUMANEVAL), {suites.HUMANEVAL.stem: arguments.prompts})
    texts = [prompts.render(tokenizer, task.prompt) for task in tasks]
    given = (model, tokenizer, texts, arguments.tokens)

    for answer in SIDES.values():
        answer(model, tokenizer, texts[:1], 2)  # warm up
    speeds: dict[str, list[float]] = {name: [] for name in SIDES}
    answers: dict[str, Tokens] = {}
    for number in range(arguments.rounds):
        for name in list(SIDES)[:: -1 if number % 2 else 1]:
            start = time.perf_counter()
            answers[name] = SIDES[name](*given)
            speeds[name].append(sum(map(len, answers[name])) / (time.perf_counter() - start))
    for name, found in speeds.items():
        tokens = sum(map(len, answers[name]))
        print(
            f"{name}: {statistics.median(found):.1f} tokens/s, {tokens} tokens, {model.dtype}, {model.device}"
        )
    ratios = [mine / other for mine, other in zip(speeds["ours"], speeds["theirs"], strict=True)]
    print(f"ours / theirs: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    print(f"{model.dtype}: {sameness(answers)}")
    model.float()
    print(f"{model.dtype}: {sameness({name: answer(*given) for name, answer in SIDES.items()})}")


if __name__ == "__main__":
    run(main)
