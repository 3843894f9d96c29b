"""Let a model answer many prompts at once: a batch with a key-value cache that shrinks as answers end.

The library's `generate` pads every prompt to the longest one of its batch and keeps every row until the last
one ends. Here what all prompts begin with is read once, the rest a few at a time, and a row leaves when it
ends: at the model's end token or where `ended` finds that the answer is complete.
"""

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from stages.common.errors import PipelineError

if TYPE_CHECKING:
    import torch
    from transformers import DynamicCache

Ended = Callable[[str], bool]
Pick = Callable[["torch.Tensor", Sequence[int]], "torch.Tensor"]

PASS = 2048  # tokens, padding counted, of the prompts that are read at once: memory and padding stay small
ROOM = 64  # tokens for which memory is taken in advance when that of the keys and values is full


def never(answer: str) -> bool:
    """No answer is complete before the model says so."""
    return False


@dataclass(frozen=True)
class Prompt:
    """What is asked: the rendered text, the most tokens of an answer, and what finds one complete."""

    text: str
    limit: int
    ended: Ended = never


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
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    pick: Pick = greedy,
    done: Callable[[int], object] = lambda count: None,
) -> list[Reply]:
    """A reply to each prompt, in their order.

    A prompt's `ended` is asked whenever a token brings a line feed or a backtick, with the answer so far;
    `done` is told how many answers have ended whenever some have. Raises PipelineError for models that keep
    more than keys and values of attention.
    """
    import torch

    stops, marks = end_tokens(model, tokenizer), _marks(tokenizer)
    first, mask, cache = _read(model, tokenizer, [prompt.text for prompt in prompts])
    rows = list(range(len(prompts)))  # the prompts whose answers have not ended
    tokens: list[list[int]] = [[] for _ in prompts]
    complete = [False] * len(prompts)
    logits = first
    while True:
        chosen = pick(logits.to(model.dtype), rows)
        for row, token in zip(rows, chosen.tolist(), strict=True):
            tokens[row].append(token)
            complete[row] = token in stops or (
                token in marks and prompts[row].ended(tokenizer.decode(tokens[row]))
            )
        living = [
            place
            for place, row in enumerate(rows)
            if not complete[row] and len(tokens[row]) < prompts[row].limit
        ]
        if len(living) < len(rows):
            done(len(rows) - len(living))
            if not living:
                break
            rows, chosen, mask = _closed(living, rows, chosen, mask, cache)
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
        logits = _step(model, chosen[:, None], mask, cache)
    return [Reply(*reply) for reply in zip(tokens, complete, first, strict=True)]


def _read(
    model: Any, tokenizer: Any, prompts: Sequence[str]
) -> "tuple[torch.Tensor, torch.Tensor, DynamicCache]":
    """Read the prompts: float32 logits of the first tokens, and the mask and the cache of them all."""
    import torch
    from torch.nn.functional import pad
    from transformers.cache_utils import DummyLayer, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    joined = DynamicCache(config=model.config)
    known = {DynamicLayer, DynamicSlidingWindowLayer, DummyLayer}  # a dummy reads what another layer keeps
    if model._is_stateful or not {*map(type, joined.layers)} <= known:
        raise PipelineError(
            f"{model.config.model_type}: keeps a state beside keys and values; expected a model of attention "
            "alone, whose cache can let go of answers that ended"
        )
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # any will do: padding is masked
    read = tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
    # a sliding window would count the padding between what is shared and what is not
    shared = _shared(read) if {*map(type, joined.layers)} == {DynamicLayer} else 0
    begun = DynamicCache(config=model.config)
    if shared:
        first = torch.tensor([read[0][:shared]], device=model.device)
        _step(model, first, torch.ones_like(first), begun)
    logits, masks, caches = [], [], []
    for group in _groups([ids[shared:] for ids in read]):
        given = tokenizer.pad({"input_ids": group}, padding_side="left", return_tensors="pt").to(model.device)
        caches.append(copy.deepcopy(begun))
        caches[-1].batch_repeat_interleave(len(group))
        masks.append(pad(given["attention_mask"], (shared, 0), value=1))
        with _fine(model):
            logits.append(_step(model, given["input_ids"], masks[-1], caches[-1]))
    width = max(mask.shape[1] for mask in masks)
    for number in range(len(joined.layers)):
        layers = [cache.layers.pop(0) for cache in caches]  # what is joined is let go
        if isinstance(layers[0], DummyLayer):
            continue
        keys, values = (
            torch.cat([pad(part, (0, 0, width - part.shape[-2], 0)) for part in parts])
            for parts in zip(*((layer.keys, layer.values) for layer in layers), strict=True)
        )
        joined.update(keys, values, number)
        if type(joined.layers[number]) is DynamicLayer:
            joined.layers[number].update = partial(_append, joined.layers[number])
    mask = torch.cat([pad(mask, (width - mask.shape[1], 0)) for mask in masks])
    return torch.cat(logits), mask, joined


def _closed(
    living: list[int], rows: list[int], chosen: Any, mask: Any, cache: "DynamicCache"
) -> "tuple[list[int], Any, Any]":
    """Rows, tokens, mask and cache of those that go on: the last ones move to the places that became free.

    Nothing else is copied. Memory is given back when the cache's runs full the next time.
    """
    import torch

    count = len(living)
    free, moved = sorted(set(range(count)) - {*living}), [place for place in living if place >= count]

    def close(held: "torch.Tensor") -> "torch.Tensor":
        held[free] = held[moved]
        return held[:count]

    with torch.inference_mode():
        for layer in cache.layers:
            if layer.get_seq_length():
                layer.keys, layer.values = close(layer.keys), close(layer.values)
        chosen, mask = close(chosen), close(mask)
    for place, last in zip(free, moved, strict=True):
        rows[place] = rows[last]
    return rows[:count], chosen, mask


def _append(layer: Any, keys: Any, values: Any, *others: Any) -> "tuple[torch.Tensor, torch.Tensor]":
    """What a cache's layer does with new keys and values, without copying the old ones for every token."""
    layer.keys, layer.values = _appended(layer.keys, keys), _appended(layer.values, values)
    return layer.keys, layer.values


def _appended(held: "torch.Tensor", new: "torch.Tensor") -> "torch.Tensor":
    """Both (rows, heads, tokens, size), one after the other: in the memory of the first where it has room."""
    *outer, length, size = held.shape
    grown = length + new.shape[-2]
    if held.stride(1) < grown * size:
        memory = held.new_empty(*outer, grown + ROOM, size)
        memory[:, :, :length] = held
        held = memory
    whole = held.as_strided((*outer, grown, size), held.stride())
    whole[:, :, length:] = new
    return whole


def _shared(prompts: list[list[int]]) -> int:
    """How many tokens several prompts begin with alike, all of them having another one at least."""
    if len(prompts) < 2:
        return 0
    alike = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*prompts, strict=False))
    return min(sum(1 for _ in alike), min(map(len, prompts)) - 1)


def _groups(prompts: list[list[int]]) -> Iterator[list[list[int]]]:
    """Neighbours together, as many as fill one pass when padded to the longest of them."""
    group: list[list[int]] = []
    for prompt in prompts:
        if group and (len(group) + 1) * max(map(len, (*group, prompt))) > PASS:
            yield group
            group = []
        group.append(prompt)
    yield group


def _step(model: Any, ids: Any, mask: Any, cache: Any) -> "torch.Tensor":
    """The (rows, vocabulary) logits of the token after `ids`, the last ones of those that `mask` covers."""
    import torch

    positions = (mask.cumsum(1) - 1).clamp_min(0)[:, -ids.shape[1] :]
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
