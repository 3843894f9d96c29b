"""Let a model answer many prompts at once: a batch with a key-value cache that shrinks as answers end.

The library's `generate` keeps every row of a batch until its last one ends; here a row leaves when it ends,
at the model's end token or where `ended` finds that the answer is complete.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stages.common.errors import PipelineError

if TYPE_CHECKING:
    import torch

Ended = Callable[[str], bool]
Pick = Callable[["torch.Tensor", Sequence[int]], "torch.Tensor"]

SHRINK = 0.75  # share of living rows from which on the dead ones are cut out of the cache, which copies it


@dataclass(frozen=True)
class Reply:
    """One answer: its tokens with the end token, and whether it ended by itself or at the limit."""

    tokens: list[int]
    complete: bool
    first: "torch.Tensor"  # (vocabulary,) logits of the first token, float32


def greedy(logits: "torch.Tensor", rows: Sequence[int]) -> "torch.Tensor":
    """The most likely token of each row of (rows, vocabulary) logits."""
    return logits.argmax(-1)


def sampled(keys: Sequence[str], temperature: float) -> Pick:
    """Draw tokens at a temperature; `keys` seed each prompt's own stream, whatever batch it is in.

    Adding Gumbel noise and taking the largest draws from the softmax exactly.
    """
    import torch

    streams = [
        torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big"))
        for key in keys
    ]

    def pick(logits: "torch.Tensor", rows: Sequence[int]) -> "torch.Tensor":
        noise = torch.stack(
            [torch.rand(logits.shape[-1], generator=streams[row], dtype=torch.float32) for row in rows]
        )
        gumbel = -(-noise.clamp_min(1e-20).log()).clamp_min(1e-20).log()
        return (logits.float() / temperature + gumbel.to(logits.device)).argmax(-1)

    return pick


def answer(
    model: Any, tokenizer: Any, prompts: Sequence[str], limit: int, ended: Ended, pick: Pick = greedy
) -> list[Reply]:
    """A reply to each rendered prompt, of at most `limit` tokens, in the order of the prompts.

    `ended` is asked whenever a token brings a line feed or a backtick, with the answer so far. Raises
    PipelineError for models that keep a recurrent state beside attention or in its place.
    """
    import torch
    from transformers import DynamicCache

    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # any will do: padding is masked
    given = tokenizer(
        list(prompts), return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
    ).to(model.device)
    ids, mask = given["input_ids"], given["attention_mask"]
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    stops, marks = end_tokens(model, tokenizer), _marks(tokenizer)
    cache = DynamicCache(config=model.config)
    if model._is_stateful or not all(hasattr(layer, "batch_select_indices") for layer in cache.layers):
        raise PipelineError(
            f"{model.config.model_type}: keeps a recurrent state; expected a model of attention alone, "
            "whose cache can let go of answers that ended"
        )
    rows = list(range(len(prompts)))  # the prompts that the batch still holds
    tokens: list[list[int]] = [[] for _ in prompts]
    complete = [False] * len(prompts)
    first: Any = None
    for _ in range(limit):
        with _fine(model) if first is None else nullcontext():
            logits = _step(model, ids, mask, positions, cache)
        first = logits if first is None else first
        chosen = pick(logits.to(model.dtype), rows)
        for row, token in zip(rows, chosen.tolist(), strict=True):
            if complete[row]:
                continue
            tokens[row].append(token)
            complete[row] = token in stops or (token in marks and ended(tokenizer.decode(tokens[row])))
        ids, positions = chosen[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
        living = [place for place, row in enumerate(rows) if not complete[row]]
        if not living:
            break
        if len(living) <= SHRINK * len(rows):
            rows = [rows[place] for place in living]
            kept = torch.tensor(living, device=model.device)
            ids, mask, positions = ids[kept], mask[kept], positions[kept]
            cache.batch_select_indices(kept)
    return [Reply(*reply) for reply in zip(tokens, complete, first, strict=True)]


def _step(model: Any, ids: Any, mask: Any, positions: Any, cache: Any) -> "torch.Tensor":
    """The (rows, vocabulary) logits of the next token."""
    import torch

    with torch.inference_mode():
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
    logits: torch.Tensor = output.logits[:, -1]
    return logits


@contextmanager
def _fine(model: Any) -> Iterator[None]:
    """Let the output embeddings compute in float32 meanwhile; what the model does to logits after it stays.

    Logits of a bfloat16 model are rounded to steps of about 0.1; from the unrounded ones come finer odds.
    """
    import torch

    def again(head: Any, given: Any, rounded: Any) -> "torch.Tensor":
        bias = None if head.bias is None else head.bias.float()
        return torch.nn.functional.linear(given[0].float(), head.weight.float(), bias)

    hook = model.get_output_embeddings().register_forward_hook(again)
    try:
        yield
    finally:
        hook.remove()


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """The ids that end an answer, by the model's generation settings and by its tokenizer."""
    found = model.generation_config.eos_token_id
    stops = found if isinstance(found, list) else [found]
    return frozenset(one for one in (*stops, tokenizer.eos_token_id) if one is not None)


def _marks(tokenizer: Any) -> frozenset[int]:
    """The ids of tokens that hold a line feed or a backtick: an answer's line or block may end there."""
    texts = tokenizer.batch_decode([[number] for number in range(len(tokenizer))])
    return frozenset(number for number, text in enumerate(texts) if "\n" in text or "`" in text)
