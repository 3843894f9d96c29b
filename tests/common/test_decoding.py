"""Decoding: the library's greedy tokens whatever is read together and leaves when; draws as the softmax."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from stages.common import decoding, prompts
from stages.common.errors import PipelineError

PROMPTS = [
    "a",
    "Is this code secure? " * 4,
    "x = 1\n" * 9,
    "```python\nfoo()\n```",
    "ab" * 30,
    "\u00fc",
    "Fix the security weakness in this code." * 5,
    "import os\n\ntry:\n    value = int(text)\n",
]
HEAD = "<|im_start|>system\nAnswer briefly.<|im_end|>"
LIMIT = 24
SHARED = {  # the last layers read what earlier ones keep
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "head_dim": 16,
    "sliding_window": 8,
}
Model = tuple[Any, Any]


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> Model:
    """The tiny model in float32, and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many rows each step is given."""
    made: list[int] = []
    step = decoding._step

    def spy(model: Any, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        made.append(len(ids))
        return step(model, ids, *rest)

    monkeypatch.setattr(decoding, "_step", spy)
    yield made


def built(kind: str, tokenizer: Any, **changes: Any) -> Any:
    """A tiny model of another kind with random weights."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "initializer_range": 0.1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": None}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    given = {**sizes, **heads, **ends, "vocab_size": len(tokenizer), **changes}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **given)).eval()


def replied(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    limit: int,
    ended: decoding.Ended = decoding.never,
    pick: decoding.Pick = decoding.greedy,
    done: Callable[[int], object] = lambda count: None,
) -> list[decoding.Reply]:
    """Replies to prompts that have one limit."""
    asked = [decoding.Prompt(text, limit, ended) for text in texts]
    return decoding.answer(model, tokenizer, asked, pick, done)


def library(tiny: Model, prompt: str, limit: int = LIMIT) -> list[int]:
    """What the library's own greedy search answers to one prompt; it knows the tokenizer's end token too."""
    model, tokenizer = tiny
    stops = sorted(decoding.end_tokens(model, tokenizer))
    given = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    made = model.generate(
        **given,
        max_new_tokens=limit,
        do_sample=False,
        eos_token_id=stops,
        pad_token_id=tokenizer.pad_token_id,
    )
    return made[0, given["input_ids"].shape[1] :].tolist()


def scripted(tiny: Model, answers: Sequence[str | list[int]], exact: bool = True) -> decoding.Pick:
    """Say what is written; with `exact`, hold the logits to those of the whole text without a cache."""
    model, tokenizer = tiny
    tokens = [
        tokenizer(answer, add_special_tokens=False)["input_ids"] if isinstance(answer, str) else answer
        for answer in answers
    ]
    given = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in PROMPTS]
    said = [0] * len(tokens)

    def pick(logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        chosen = []
        for place, row in enumerate(rows):
            if exact and said[row] < len(tokens[row]):
                whole = torch.tensor([given[row] + tokens[row][: said[row]]])
                with torch.inference_mode():
                    expected = model(whole).logits[0, -1]
                assert torch.allclose(logits[place], expected, atol=1e-4), (row, said[row])
            chosen.append(tokens[row][said[row]] if said[row] < len(tokens[row]) else tokenizer.eos_token_id)
            said[row] += 1
        return torch.tensor(chosen)

    return pick


# Greedy. -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["", HEAD])
@pytest.mark.parametrize("limit", [1, 2, LIMIT])
def test_greedy_tokens_are_those_of_the_library(tiny, limit, head):
    given = [head + prompt for prompt in PROMPTS]
    replies = replied(*tiny, given, limit)
    assert [reply.tokens for reply in replies] == [library(tiny, prompt, limit) for prompt in given]
    assert max(len(reply.tokens) for reply in replies) == limit
    assert all(reply.complete == (reply.tokens[-1] == tiny[1].eos_token_id) for reply in replies)


def test_rows_that_end_leave_and_change_nothing_for_the_others(tiny, sizes, monkeypatch):
    model, _ = tiny
    usual = [library(tiny, prompt) for prompt in PROMPTS]
    stops = [tokens[place] for tokens, place in zip(usual, (0, 2, 5, 9, 9, 14, 20), strict=False)]
    monkeypatch.setattr(model.generation_config, "eos_token_id", stops)
    ends = decoding.end_tokens(*tiny)
    expected = [library(tiny, prompt) for prompt in PROMPTS]
    lengths = [len(tokens) for tokens in expected]
    assert len(set(lengths)) > 4 and max(lengths) <= LIMIT

    told: list[int] = []
    replies = replied(*tiny, PROMPTS, LIMIT, decoding.never, done=told.append)
    assert [reply.tokens for reply in replies] == expected
    assert [reply.complete for reply in replies] == [tokens[-1] in ends for tokens in expected]
    assert sizes == [sum(length > step for length in lengths) for step in range(max(lengths))]
    assert told == [lengths.count(length) for length in sorted(set(lengths))]


def test_every_prompt_has_its_own_limit_and_its_own_end(tiny):
    usual = [library(tiny, prompt) for prompt in PROMPTS]
    limits = [1, 5, 2, LIMIT, 7, 5, LIMIT, 3]
    asked = [decoding.Prompt(*one) for one in zip(PROMPTS, limits, strict=True)]
    replies = decoding.answer(*tiny, asked)
    assert [reply.tokens for reply in replies] == [
        tokens[:limit] for tokens, limit in zip(usual, limits, strict=True)
    ]

    text = "one\ntwo\nthree\n"
    at = [lambda answer, lines=lines: answer.count("\n") == lines for lines in (1, 3, 2)]
    asked = [decoding.Prompt(prompt, 60, end) for prompt, end in zip(PROMPTS, at, strict=False)]
    replies = decoding.answer(*tiny, asked, scripted(tiny, [text] * 3))
    assert [tiny[1].decode(reply.tokens) for reply in replies] == ["one\n", text, "one\ntwo\n"]
    assert all(reply.complete for reply in replies)


@pytest.mark.parametrize(("size", "passes"), [(1, len(PROMPTS)), (60, 7), (200, 3), (10_000, 1)])
def test_however_many_prompts_are_read_at_once_the_answers_are_the_same(
    tiny, sizes, monkeypatch, size, passes
):
    expected = [library(tiny, prompt) for prompt in PROMPTS]
    monkeypatch.setattr(decoding, "PASS", size)
    replies = replied(*tiny, PROMPTS, LIMIT)
    assert [reply.tokens for reply in replies] == expected
    assert sum(sizes[:passes]) == len(PROMPTS) and len(sizes) == passes + LIMIT - 1


@pytest.mark.parametrize("room", [0, 1, 5])
def test_however_often_memory_is_taken_the_answers_are_the_same(tiny, monkeypatch, room):
    monkeypatch.setattr(decoding, "ROOM", room)
    replies = replied(*tiny, PROMPTS, LIMIT)
    assert [reply.tokens for reply in replies] == [library(tiny, prompt) for prompt in PROMPTS]


def test_tokens_are_appended_where_there_is_room():
    first, *others = torch.randn(6, 3, 2, 1, 4)
    held = first
    places = []
    for other in others:
        held = decoding._appended(held, other)
        places.append(held.data_ptr())
    assert torch.equal(held, torch.cat([first, *others], 2)) and len(set(places)) == 1
    whole = decoding._appended(held, torch.randn(3, 2, decoding.ROOM, 4))
    assert whole.data_ptr() != held.data_ptr() and torch.equal(whole[:, :, :6], held)
    fewer = held[[2, 0]]
    grown = decoding._appended(fewer, others[0][:2])
    assert torch.equal(grown[:, :, :6], fewer) and torch.equal(grown[:, :, 6:], others[0][:2])


def test_prompts_are_read_with_their_neighbours_as_long_as_one_pass_holds_them(monkeypatch):
    monkeypatch.setattr(decoding, "PASS", 12)
    given = [[1] * length for length in (5, 6, 4, 4, 4, 1, 12, 13, 1, 1, 1)]
    groups = [[len(prompt) for prompt in group] for group in decoding._groups(given)]
    assert groups == [[5, 6], [4, 4, 4], [1], [12], [13], [1, 1, 1]]


def test_what_all_prompts_begin_with_is_read_once(tiny, monkeypatch):
    step, told = decoding._step, []

    def noted(model, ids, *others):
        told.append(tuple(ids.shape))
        return step(model, ids, *others)

    monkeypatch.setattr(decoding, "_step", noted)
    given = [HEAD + prompt for prompt in PROMPTS]
    replied(*tiny, given, 1)
    read = tiny[1](given, add_special_tokens=False)["input_ids"]
    head = len(tiny[1](HEAD, add_special_tokens=False)["input_ids"])
    assert head > 5 and told == [(1, head), (len(given), max(map(len, read)) - head)]


@pytest.mark.parametrize(
    ("given", "shared"),
    [
        ([[1, 2, 3]], 0),
        ([[1, 2], [1, 3]], 1),
        ([[1, 2, 3], [1, 2, 3]], 2),
        ([[1, 2], [1, 2, 3], [1, 2, 4]], 1),
        ([[1], [1, 2]], 0),
        ([[5, 1, 2], [6, 1, 2]], 0),
    ],
)
def test_prompts_share_what_leaves_each_a_token(given, shared):
    assert decoding._shared(given) == shared


def test_order_and_company_of_the_prompts_do_not_matter(tiny):
    whole = replied(*tiny, PROMPTS, 12)
    back = replied(*tiny, PROMPTS[::-1], 12)
    assert [reply.tokens for reply in back[::-1]] == [reply.tokens for reply in whole]
    twice = replied(*tiny, [PROMPTS[3], PROMPTS[3]], 12)
    assert twice[0].tokens == twice[1].tokens == whole[3].tokens


def test_the_logits_of_the_first_token_stay_with_their_prompt(tiny, monkeypatch):
    model, tokenizer = tiny
    monkeypatch.setattr(decoding, "PASS", 60)
    answers = ["\n", "word word word", "", "\nSAFE", "x", "", "some more words", "\n"]
    replies = replied(*tiny, PROMPTS, 8, prompts.answered_line, scripted(tiny, answers))
    for prompt, reply in zip(PROMPTS, replies, strict=True):
        with torch.inference_mode():
            expected = model(**tokenizer(prompt, return_tensors="pt", add_special_tokens=False)).logits[0, -1]
        assert reply.first.dtype == torch.float32 and reply.first.shape == expected.shape
        assert torch.allclose(reply.first, expected, atol=1e-4)


def test_the_first_logits_of_a_bfloat16_model_are_finer_than_its_own(tiny, tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).eval()
    _, tokenizer = tiny
    (reply,) = replied(model, tokenizer, PROMPTS[3:4], 1)
    with torch.inference_mode():
        own = model(**tokenizer(PROMPTS[3], return_tensors="pt", add_special_tokens=False)).logits[0, -1]
    assert reply.first.dtype == torch.float32
    assert torch.allclose(reply.first.bfloat16(), own, rtol=2**-7, atol=2**-7)
    assert (reply.first != reply.first.bfloat16()).float().mean() > 0.9


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("granite", {"logits_scaling": 4.0}),
        ("gemma2", {"final_logit_softcapping": 2.0, "head_dim": 16, "sliding_window": 8}),
        ("mistral", {"head_dim": 16, "sliding_window": 8}),
        ("phi", {"num_key_value_heads": 4}),  # whose output embeddings have a bias
        ("gemma4_text", SHARED),
    ],
)
@pytest.mark.parametrize("head", ["", HEAD])
@pytest.mark.parametrize("size", [60, 10_000])
def test_other_kinds_of_models_answer_as_in_the_library(tiny, kind, changes, size, head, monkeypatch):
    monkeypatch.setattr(decoding, "PASS", size)
    given = [head + prompt for prompt in PROMPTS[:5]]
    _, tokenizer = tiny
    model = built(kind, tokenizer, **changes)
    torch.nn.init.normal_(model.get_output_embeddings().weight)
    if model.get_output_embeddings().bias is not None:
        torch.nn.init.normal_(model.get_output_embeddings().bias)
    replies = replied(model, tokenizer, given, 12)
    assert [reply.tokens for reply in replies] == [library((model, tokenizer), one, 12) for one in given]
    with torch.inference_mode():
        own = model(**tokenizer(given[1], return_tensors="pt", add_special_tokens=False)).logits[0, -1]
    assert torch.allclose(replies[1].first, own, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "changes"), [("lfm2", {"layer_types": ["conv", "full_attention"]}), ("mamba", {}), ("rwkv", {})]
)
def test_a_model_whose_state_cannot_be_cut_is_refused(tiny, kind, changes):
    _, tokenizer = tiny
    model = built(kind, tokenizer, **changes)
    with pytest.raises(PipelineError, match=f"^{kind}: keeps a state beside keys and values; expected "):
        replied(model, tokenizer, PROMPTS, 4)


# Ends. ---------------------------------------------------------------------------------------------------

FENCED = "Here:\n```python\nx = `1`\n```"


@pytest.mark.parametrize(
    ("answer", "ended", "kept", "complete"),
    [
        ("SAFE\nbecause", prompts.answered_line, "SAFE\n", True),
        ("\n\nSAFE\nbecause", prompts.answered_line, "\n\nSAFE\n", True),
        ("SAFE", prompts.answered_line, "SAFE", True),  # then the end token
        (FENCED + "\nThat is it.", prompts.answered_block, FENCED, True),
        (FENCED + "\nThat is it.", prompts.answered_line, "Here:\n", True),
        (FENCED + "\nThat is it.", decoding.never, FENCED + "\nThat is it.", True),
        ("no block", prompts.answered_block, "no block", True),
        ("no end " * 30, prompts.answered_block, None, False),
        ("", decoding.never, "", True),
    ],
)
def test_an_answer_ends_where_it_is_complete(tiny, answer, ended, kept, complete):
    _, tokenizer = tiny
    texts = [answer, "word " * 9, "", FENCED]
    replies = replied(*tiny, PROMPTS[:4], 60, ended, scripted(tiny, texts))
    reply = replies[0]
    assert reply.complete == complete
    if kept is None:
        assert len(reply.tokens) == 60 and answer.startswith(tokenizer.decode(reply.tokens))
    else:
        assert tokenizer.decode(reply.tokens, skip_special_tokens=True).startswith(kept)
        plain = [token for token in reply.tokens if token != tokenizer.eos_token_id]
        assert len(plain) <= len(tokenizer(answer, add_special_tokens=False)["input_ids"])
        assert not ended(tokenizer.decode(plain[:-1]))  # no token later than it must
        assert (reply.tokens[-1] == tokenizer.eos_token_id) == (not ended(tokenizer.decode(plain)))
    assert tokenizer.eos_token_id not in reply.tokens[:-1]


def test_ended_is_asked_at_line_feeds_and_backticks_alone_with_the_answer_so_far(tiny):
    asked: list[str] = []

    def ended(answer: str) -> bool:
        asked.append(answer)
        return False

    text = "one two\nthree `four`"
    replied(*tiny, PROMPTS[:1], 60, ended, scripted(tiny, [text]))
    assert asked == ["one two\n", "one two\nthree `", "one two\nthree `four`"]


def test_every_token_that_may_end_a_line_or_a_block_is_known(tiny):
    _, tokenizer = tiny
    marks = decoding._marks(tokenizer)
    for text in ("\n", "`", "a\nb", "``` x", "\r\n", "```\n\n```"):
        found = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert {token for token in found if set("\n`") & set(tokenizer.decode([token]))} <= marks
        assert marks & set(found)
    assert not marks & set(tokenizer("def f(x): return 'y'", add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize(
    ("configured", "own", "expected"),
    [
        (None, 2, {2}),
        (2, 2, {2}),
        (7, 2, {2, 7}),
        ([7, 8], 2, {2, 7, 8}),
        ([7], None, {7}),
        (None, None, set()),
    ],
)
def test_end_tokens_are_the_models_and_the_tokenizers(configured, own, expected):
    class Given:
        def __init__(self, **given: Any) -> None:
            self.__dict__.update(given)

    model = Given(generation_config=Given(eos_token_id=configured))
    assert decoding.end_tokens(model, Given(eos_token_id=own)) == expected


@pytest.mark.parametrize("limit", [1, 3, 7])
def test_the_limit_cuts_off_and_the_end_token_counts(tiny, limit):
    _, tokenizer = tiny
    answers: list[list[int]] = [[300] * count for count in (0, 1, 2, 3, 6, 7, 8, 50)]
    replies = replied(*tiny, PROMPTS, limit, decoding.never, scripted(tiny, answers))
    for answer, reply in zip(answers, replies, strict=True):
        assert reply.tokens == [*answer, tokenizer.eos_token_id][:limit]
        assert reply.complete == (len(answer) < limit)


def test_a_tokenizer_without_padding_serves_as_well(tiny, tiny_model):
    model, _ = tiny
    bare = AutoTokenizer.from_pretrained(tiny_model)
    bare.pad_token = None
    replies = replied(model, bare, PROMPTS, 6)
    assert [reply.tokens for reply in replies] == [library(tiny, prompt, 6) for prompt in PROMPTS]


# Draws. --------------------------------------------------------------------------------------------------

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -2.0])


def chi_square(counts: Sequence[int], shares: Sequence[float]) -> float:
    total = sum(counts)
    return sum(
        (count - total * share) ** 2 / (total * share) for count, share in zip(counts, shares, strict=True)
    )


def of_many_streams(pick: Callable[[Sequence[str]], decoding.Pick], draws: int) -> torch.Tensor:
    return pick([f"key {number}" for number in range(draws)])(LOGITS.repeat(draws, 1), range(draws))


def of_one_stream(pick: Callable[[Sequence[str]], decoding.Pick], draws: int) -> torch.Tensor:
    one = pick(["key"])
    return torch.cat([one(LOGITS[None], [0]) for _ in range(draws)])


@pytest.mark.parametrize("source", [of_many_streams, of_one_stream])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(source, temperature):
    found = source(lambda keys: decoding.sampled(keys, temperature), 3000)
    shares = torch.softmax(LOGITS / temperature, -1).tolist()
    counts = torch.bincount(found, minlength=len(shares)).tolist()
    assert chi_square(counts, shares) < 20.5  # p = 0.001 at 5 degrees of freedom
    other = torch.softmax(LOGITS / (temperature * 1.25), -1).tolist()
    assert chi_square(counts, other) > 20.5  # so the test can tell


def test_successive_draws_are_independent():
    found = of_one_stream(lambda keys: decoding.sampled(keys, 1.0), 4000)
    shares = torch.softmax(LOGITS, -1)
    both = torch.bincount(found[:-1:2] * 6 + found[1::2], minlength=36)
    assert chi_square(both.tolist(), (shares[:, None] * shares).flatten().tolist()) < 66.6  # p = 0.001 at 35


def test_first_tokens_of_a_model_follow_its_softmax(tiny):
    draws = 1500
    keys = [str(number) for number in range(draws)]
    replies = replied(*tiny, ["a"] * draws, 1, decoding.never, decoding.sampled(keys, 0.7))
    shares = torch.softmax(replies[0].first / 0.7, -1)
    best = shares.topk(8).indices
    found = torch.bincount(torch.tensor([reply.tokens[0] for reply in replies]), minlength=len(shares))
    counts = [*found[best].tolist(), draws - int(found[best].sum())]
    expected = [*shares[best].tolist(), 1 - float(shares[best].sum())]
    assert chi_square(counts, expected) < 26.1  # p = 0.001 at 8 degrees of freedom


def test_draws_do_not_depend_on_the_batch(tiny):
    keys = [f"1 t/{number} 1" for number in range(len(PROMPTS))]
    whole = replied(*tiny, PROMPTS, 16, decoding.never, decoding.sampled(keys, 0.8))
    for part in (slice(0, 1), slice(2, 5), slice(5, 8)):
        some = replied(*tiny, PROMPTS[part], 16, decoding.never, decoding.sampled(keys[part], 0.8))
        assert [reply.tokens for reply in some] == [reply.tokens for reply in whole[part]]
    again = replied(*tiny, PROMPTS, 16, decoding.never, decoding.sampled(keys, 0.8))
    assert [reply.tokens for reply in again] == [reply.tokens for reply in whole]


def test_rows_that_leave_do_not_shift_the_draws_of_the_others(tiny, monkeypatch, sizes):
    keys = [f"key {number}" for number in range(len(PROMPTS))]
    whole = replied(*tiny, PROMPTS, 16, decoding.never, decoding.sampled(keys, 1.5))
    monkeypatch.setattr(tiny[0].generation_config, "eos_token_id", [whole[1].tokens[0], whole[4].tokens[3]])
    left = replied(*tiny, PROMPTS, 16, decoding.never, decoding.sampled(keys, 1.5))
    assert all(all_.tokens[: len(one.tokens)] == one.tokens for one, all_ in zip(left, whole, strict=True))
    assert len(left[1].tokens) == 1 and len(left[4].tokens) <= 4 and sizes[-1] < len(PROMPTS)


def test_other_keys_draw_otherwise(tiny):
    replies = replied(
        *tiny, ["a"] * 4, 16, decoding.never, decoding.sampled(["1 t 1", "1 t 2", "2 t 1", "1 u 1"], 1.0)
    )
    assert len({tuple(reply.tokens) for reply in replies}) == 4
    same = replied(*tiny, ["a"] * 2, 16, decoding.never, decoding.sampled(["1 t 1", "1 t 1"], 1.0))
    assert same[0].tokens == same[1].tokens == replies[0].tokens


def test_without_warmth_the_draw_is_the_greedy_token(tiny):
    keys = list(map(str, range(len(PROMPTS))))
    cold = replied(*tiny, PROMPTS, LIMIT, decoding.never, decoding.sampled(keys, 1e-4))
    assert [reply.tokens for reply in cold] == [library(tiny, prompt) for prompt in PROMPTS]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_draws_from_extreme_logits_are_possible_ones(dtype):
    logits = torch.tensor([[0.0, -math.inf, -1e4], [-math.inf, 50.0, 50.0]], dtype=dtype)
    for number in range(300):
        first, second = decoding.sampled([f"{number}", f"-{number}"], 1.0)(logits, [0, 1]).tolist()
        assert first == 0 and second in (1, 2)
