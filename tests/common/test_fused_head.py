"""Scoring in one pass: TRL's numbers and gradients, and TRL's own operation where it does not apply."""

from typing import Any

import pytest

from stages.common import fused_head

ASKED = ("log_probs", "entropy", "is_top1")
WORDS, WIDTH = 300, 24


def given(count: int, dtype: str = "bfloat16", spread: float = 0.3) -> tuple[Any, Any, Any]:
    """Hidden states in float32, a frozen head and targets."""
    import torch

    torch.manual_seed(count)
    weight = (spread * torch.randn(WORDS, WIDTH)).to(getattr(torch, dtype))
    return torch.randn(count, WIDTH), weight, torch.randint(0, WORDS, (count,))


def scored(
    operation: Any, hidden: Any, weight: Any, targets: Any, loss: Any = None, **changes: Any
) -> tuple[Any, ...]:
    """What an operation finds, with the gradient of the states."""
    import torch

    hidden = hidden.clone().requires_grad_()
    options = {"bias": None, "temperature": 1.0, "cap": None, "scale": 1.0, "outputs": ASKED, **changes}
    with torch.autocast("cpu", torch.bfloat16, enabled=weight.dtype == torch.bfloat16):
        log_probs, entropy, squares, means, top = operation.apply(
            hidden,
            weight,
            options["bias"],
            targets,
            options["temperature"],
            128,
            options["cap"],
            options["scale"],
            options["outputs"],
        )
    (-log_probs.mean() if loss is None else loss(log_probs)).backward()
    return log_probs.detach(), entropy.detach(), squares, means, top, hidden.grad


def both(*args: Any, **options: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The same by TRL and by ours."""
    from trl.kernels import ChunkedLogProbFunction as theirs

    return scored(theirs, *args, **options), scored(fused_head.standing_in(theirs), *args, **options)


@pytest.mark.parametrize("count", [1, fused_head.ROWS, fused_head.ROWS + 1, 5 * fused_head.ROWS - 3])
def test_it_finds_what_trl_finds(count: int) -> None:
    import torch

    theirs, ours = both(*given(count, "float32"))
    for name, there, here in zip((*ASKED[:2], "-", "-", ASKED[2], "gradient"), theirs, ours, strict=True):
        assert (there is None) == (here is None)
        if there is not None:
            torch.testing.assert_close(here, there, msg=name)


def test_every_position_s_gradient_is_scaled_by_its_own() -> None:
    import torch

    weights = torch.linspace(-1, 2, 100)
    theirs, ours = both(*given(100, "float32"), loss=lambda log_probs: (weights * log_probs).sum())
    torch.testing.assert_close(ours[5], theirs[5])


@pytest.mark.parametrize("spread", [0.01, 0.3, 3.0])
def test_in_half_precision_it_rounds_no_worse_than_trl(spread: float) -> None:
    import torch

    hidden, weight, targets = given(200, spread=spread)
    theirs, ours = both(hidden, weight, targets)
    exact = hidden.double().requires_grad_()
    truth = torch.log_softmax(exact @ weight.double().t(), 1).gather(1, targets[:, None])[:, 0]
    (-truth.mean()).backward()
    for place, real in ((0, truth.detach()), (5, exact.grad)):
        error, usual = ((found[place] - real).norm() / real.norm() for found in (ours, theirs))
        assert error < max(1.2 * usual, 1e-3)
    assert ours[0].dtype == ours[1].dtype == ours[5].dtype == torch.float32


def test_a_position_s_result_is_the_same_in_any_company() -> None:
    import torch

    hidden, weight, targets = given(150)
    whole = scored(fused_head.standing_in(None), hidden, weight, targets)[0]
    alone = scored(fused_head.standing_in(None), hidden[70:90], weight, targets[70:90])[0]
    torch.testing.assert_close(alone, whole[70:90])


def test_without_gradients_none_is_computed() -> None:
    import torch

    hidden, weight, targets = given(10)
    with torch.no_grad():
        found = fused_head.operation().apply(hidden, weight, targets)
    assert not any(one.requires_grad for one in found)


@pytest.mark.parametrize(
    "changes",
    [{"temperature": 0.5}, {"cap": 5.0}, {"scale": 2.0}, {"outputs": (*ASKED, "mean_logits")}, {"bias": 1.0}],
    ids=str,
)
def test_what_it_does_not_compute_is_trl_s(changes: dict[str, Any]) -> None:
    import torch

    if "bias" in changes:
        changes = {"bias": torch.full((WORDS,), changes["bias"])}
    theirs, ours = both(*given(9, "float32"), **changes)
    for there, here in zip(theirs, ours, strict=True):
        assert (there is None) == (here is None) and (there is None or torch.equal(here, there))


def test_a_head_that_is_trained_gets_its_gradient() -> None:
    import torch

    hidden, weight, targets = given(9, "float32")
    weight.requires_grad_()
    both(hidden, weight, targets)
    assert weight.grad is not None and torch.isfinite(weight.grad).all() and weight.grad.any()
