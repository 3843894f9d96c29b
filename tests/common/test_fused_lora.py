"""The fused LoRA layer: PEFT's results and gradients, and a dropout that keeps its promise."""

import copy
from typing import Any

import pytest

from stages.common import fused_lora


def layers(dropout: float = 0.0, dtype: str = "float32", **options: Any) -> tuple[Any, Any]:
    """The same small model twice, adapted by PEFT: as PEFT computes it, and fused."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(24, 40), torch.nn.Tanh(), torch.nn.Linear(40, 8))
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules=["0", "2"], **options)
    model = get_peft_model(base.to(getattr(torch, dtype)), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter, dtype=torch.float32) / 4
    fused = copy.deepcopy(model)
    assert fused_lora.fuse(fused) == (0 if options.get("use_dora") else 2)
    return model, fused


def gradients(model: Any, x: Any) -> tuple[Any, dict[str, Any]]:
    """The output, and the gradients of the adapter and of the input."""
    import torch

    x = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=x.dtype == torch.bfloat16):
        out = model(x)
    out.float().square().sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return out.detach(), {**found, "input": x.grad}


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}], ids=["lora", "rslora"])
@pytest.mark.parametrize("shape", [(24,), (5, 24), (2, 3, 24), (0, 24)])
def test_it_computes_what_peft_computes(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    import torch

    model, fused = layers(**options)
    x = torch.randn(shape)
    (expected, theirs), (found, ours) = gradients(model, x), gradients(fused, x)
    torch.testing.assert_close(found, expected)
    assert set(ours) == set(theirs) and len(ours) == 5
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], msg=name)


def test_in_half_precision_it_rounds_no_worse_than_peft() -> None:
    import torch

    model, fused = layers(dtype="bfloat16")
    exact, _ = layers()
    x = torch.randn(64, 24).bfloat16()
    truth = gradients(exact, x.float())[1]
    theirs, ours = gradients(model, x)[1], gradients(fused, x)[1]
    for name, value in truth.items():
        scale = value.abs().max()
        assert (ours[name].float() - value).abs().max() / scale <= 0.02, name
        assert (theirs[name].float() - value).abs().max() / scale <= 0.02, name
        assert "lora" not in name or ours[name].dtype == torch.float32


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("dropout", [0.05, 0.5])
def test_a_mask_blanks_the_share_that_was_asked_for_and_nothing_else(dropout: float, dtype: str) -> None:
    import torch

    values = torch.randn(1000, 333, dtype=getattr(torch, dtype))
    values[values == 0] = 1
    values[0, 0], values[0, 1] = torch.inf, torch.nan
    mask = fused_lora.kept(values, dropout)
    assert set(mask.unique().tolist()) == {0, -1}
    assert (mask == 0).double().mean().item() == pytest.approx(dropout, abs=0.003)
    left = fused_lora.blanked(values, mask)
    expected = torch.where(mask == 0, torch.zeros_like(values), values)
    torch.testing.assert_close(left, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dropout", [0.05, 0.5])
def test_dropout_leaves_the_mean(dropout: float) -> None:
    import torch

    torch.manual_seed(0)
    update, x, a, b = fused_lora.update().apply, torch.randn(1, 24), torch.randn(4, 24), torch.randn(8, 4)
    means = torch.stack([update(torch.zeros(1, 8), x, a, b, 0.5, dropout) for _ in range(20_000)]).mean(0)
    clean = 0.5 * x @ a.t() @ b.t()
    assert (means - clean).abs().max() < 0.03 * clean.abs().max()


def test_there_is_no_dropout_in_evaluation() -> None:
    import torch

    model, fused = layers(dropout=0.5)
    x = torch.randn(3, 24)
    torch.testing.assert_close(fused.eval()(x), model.eval()(x))


def test_the_mask_of_the_backward_pass_is_that_of_the_forward_pass() -> None:
    import torch

    update = fused_lora.update().apply
    a, b = torch.ones(1, 64), torch.ones(1, 1)
    x = torch.ones(1, 64, requires_grad=True)
    out = update(torch.zeros(1, 1), x, a, b, 1.0, 0.5)
    out.backward()
    dropped = int((x.grad == 0).sum())
    assert 0 < dropped < 64 and out.item() == pytest.approx((64 - dropped) * 2)
    assert set(x.grad.flatten().tolist()) == {0.0, 2.0}


def test_masks_follow_the_seed() -> None:
    import torch

    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(fused_lora.kept(torch.empty(7, 11), 0.5))
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])


def test_other_kinds_of_layers_stay_as_they_are() -> None:
    import torch

    model, fused = layers(use_dora=True)
    x = torch.randn(3, 24)
    torch.testing.assert_close(fused(x), model(x))
