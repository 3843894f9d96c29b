"""Talk to a model in the terminal; its answers appear token by token.

    python -m tools.chat                          # models/merged
    python -m tools.chat --model models/base
    echo "Reverse a list in Python." | python -m tools.chat

The model sees the conversation until `/reset`; `/quit` ends it, Ctrl-C stops an answer. A message that opens
a fence (three backticks) goes on until the line that closes it, so that code can be pasted.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from stages.common import decoding, prompts
from stages.common.answers import visible
from stages.common.errors import PipelineError, run
from tools import loading

Turn = dict[str, str]

HELP = "/reset forgets the conversation, /quit ends it, Ctrl-C stops an answer"
FENCE = "```"


def stream(model: Any, tokenizer: Any, prompt: str, limit: int, pick: decoding.Pick) -> Iterator[str]:
    """The pieces of an answer to a rendered prompt as they come, of at most `limit` tokens.

    A piece ends where a character ends: one of several bytes may take several tokens.
    """
    import torch
    from transformers import DynamicCache

    stops = decoding.end_tokens(model, tokenizer)
    cache = DynamicCache(config=model.config)
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"].to(model.device)
    tokens: list[int] = []
    shown = ""
    for left in reversed(range(limit)):
        with torch.inference_mode():
            logits = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[
                :, -1
            ]
        token = int(pick(logits, [0]))
        ended = token in stops
        tokens += [] if ended else [token]
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        if text != shown and (ended or not left or not text.endswith("\ufffd")):
            yield text[len(shown) :]
            shown = text
        if ended:
            return
        ids = torch.tensor([[token]], device=model.device)


def fitting(tokenizer: Any, turns: list[Turn], room: int) -> list[Turn]:
    """The newest turns that fit into `room` tokens, from a question on; empty when not even the last does."""
    for start in range(0, len(turns), 2):
        ids = tokenizer(prompts.conversation(tokenizer, turns[start:]), add_special_tokens=False)["input_ids"]
        if len(ids) <= room:
            return turns[start:]
    return []


def message(ask: Callable[[str], str]) -> str:
    """One message: a line, or all lines until the fence that it opens is closed."""
    lines = [ask("> ")]
    while sum(line.lstrip().startswith(FENCE) for line in lines) % 2:
        lines.append(ask("| "))
    return "\n".join(lines).strip()


def answer(
    model: Any,
    tokenizer: Any,
    turns: list[Turn],
    limit: int,
    pick: decoding.Pick,
    write: Callable[[str], object],
) -> tuple[list[Turn], str]:
    """Write the answer to a conversation as it comes; returns the turns that were read, and the answer.

    Ctrl-C ends the answer where it is. Raises PipelineError when the last message alone is too long.
    """
    room = loading.longest(model) - limit
    read = fitting(tokenizer, turns, room)
    if not read:
        raise PipelineError(f"the message: longer than {room} tokens; expected one that the model can read")
    given = ""
    try:
        for piece in stream(model, tokenizer, prompts.conversation(tokenizer, read), limit, pick):
            given += piece
            write(piece)
    except KeyboardInterrupt:
        pass
    write("\n")
    return read, given


def converse(ask: Callable[[str], str], reply: Callable[[list[Turn]], tuple[list[Turn], str]]) -> None:
    """Messages and answers in turn until `/quit` or the end of the input."""
    turns: list[Turn] = []
    while True:
        try:
            said = message(ask)
        except EOFError:
            return
        except KeyboardInterrupt:
            print(f"\n{HELP}", file=sys.stderr)
            continue
        if said == "/quit":
            return
        if said == "/reset":
            turns = []
        elif said.startswith("/") and " " not in said and said.count("/") == 1:
            print(HELP, file=sys.stderr)
        elif said:
            asked = [*turns, {"role": "user", "content": said}]
            try:
                read, given = reply(asked)
            except PipelineError as error:
                print(f"error: {error}", file=sys.stderr)
                continue
            if len(read) < len(asked):
                print(f"({(len(asked) - len(read)) // 2} earlier answers no longer fit)", file=sys.stderr)
            turns = [*read, {"role": "assistant", "content": given}]


def main() -> None:
    """Talk, or answer the one message that stands in the input."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", type=Path, default=loading.MODEL, help="a model folder (default: %(default)s)"
    )
    parser.add_argument("--max-new-tokens", type=int, default=512, help="of an answer (default: %(default)s)")
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="0, the default, takes the likeliest token"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draws at a temperature")
    given = parser.parse_args()
    if given.max_new_tokens < 1 or not 0 <= given.temperature <= 2:
        raise PipelineError("--max-new-tokens, --temperature: expected at least 1, and 0 to 2")
    model, tokenizer = loading.load(given.model)
    pick = decoding.sampled([str(given.seed)], given.temperature) if given.temperature else decoding.greedy

    def write(piece: str) -> None:
        print(visible(piece), end="", flush=True)

    def reply(turns: list[Turn]) -> tuple[list[Turn], str]:
        return answer(model, tokenizer, turns, given.max_new_tokens, pick, write)

    if sys.stdin.isatty():
        import readline  # noqa: F401 (gives `input` its line editing)

        print(f"{given.model}: {HELP}", file=sys.stderr)
        converse(input, reply)
        return
    said = sys.stdin.read().strip()
    if not said:
        raise PipelineError("the input: empty; expected a message")
    reply([{"role": "user", "content": said}])


if __name__ == "__main__":
    run(main)
