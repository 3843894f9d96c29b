"""Packing without contamination, padding that needs no mask, and kernels that are there."""

from pathlib import Path
from typing import Any

import pytest
from conftest import chosen
from test_train import EXAMPLES

from stages.common import finetuning, models
from stages.common.errors import PipelineError
from stages.common.finetuning import TrainParams
from stages.common.params import validate

PACKED = {"packing": True, "sampling": "random", "max_length": 128, "quantization": "none"}


def settings(**changes: Any) -> TrainParams:
    """The default parameters with changes."""
    return validate({**chosen("train"), **changes}, "train", TrainParams)


def trainer(model: Path, folder: Path, **changes: Any) -> Any:
    """The trainer of some examples."""
    wanted = settings(**changes)
    tokens = finetuning.tokenizer(model, wanted)
    return finetuning.trainer(wanted, model, tokens, EXAMPLES * 3, [], folder, "", [])


def scores(model: Any, batch: dict[str, Any], *names: str) -> Any:
    """The model's scores of a batch, given these parts of it."""
    import torch

    with torch.no_grad():
        return model.eval()(**{name: batch[name] for name in names}, use_cache=False).logits[0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_weights_that_are_dequantised_once_give_the_same_losses_and_gradients(
    tiny_model: Path, tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where bitsandbytes dequantises them for every product, which it is told of each time."""
    import bitsandbytes
    import torch

    products: list[int] = []
    usual = bitsandbytes.matmul_4bit

    def counted(*given: Any, **named: Any) -> Any:
        products.append(1)
        return usual(*given, **named)

    monkeypatch.setattr(bitsandbytes, "matmul_4bit", counted)
    adapter = {**chosen("train")["adapter"], "dropout": 0.0}
    found = []
    for once in (True, False):
        monkeypatch.setattr(finetuning, "dequantized", lambda chosen, device, once=once: once)
        made = trainer(tiny_model, tmp_path / str(once), dtype=dtype, adapter=adapter, warmup=0.0)
        layers = sum("lora_A" in name for name, _ in made.model.named_parameters())
        batch = made.data_collator(list(made.train_dataset)[:4])
        for name, value in made.model.named_parameters():
            if "lora_B" in name:  # all 0 at first, and so without a gradient for A
                torch.manual_seed(len(name))
                value.data.normal_(std=0.02)
        with made.accelerator.autocast():
            loss = made.model(**batch).loss
        loss.backward()
        assert len(products) == (0 if once else layers > 0 and layers)
        found.append([loss, *(value.grad for value in made.model.parameters() if value.requires_grad)])
    for one, other in zip(*found, strict=True):
        assert one.abs().sum() > 0
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("device", "changes", "expected"),
    [
        ("cpu", {}, True),
        ("cpu", {"checkpointing": True}, False),
        ("cpu", {"quantization": "none"}, False),
        ("cuda", {}, False),
    ],
)
def test_weights_are_dequantised_once_where_main_memory_holds_them(
    device: str, changes: dict[str, Any], expected: bool
) -> None:
    assert finetuning.dequantized(settings(**changes), device) is expected


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_examples_of_a_pack_do_not_see_each_other(tiny_model: Path, tmp_path: Path, attention: str) -> None:
    import torch

    made = trainer(tiny_model, tmp_path, attention=attention, **PACKED)
    rows = list(made.train_dataset)
    assert len(rows) < len(EXAMPLES * 3) and max(len(row["seq_lengths"]) for row in rows) > 1
    assert sum(sum(row["seq_lengths"]) for row in rows) == sum(
        finetuning.lengths(EXAMPLES * 3, made.processing_class)
    )
    batch = made.data_collator(rows[:2])
    first = rows[0]["seq_lengths"][0]
    other = {**batch, "input_ids": batch["input_ids"].clone()}
    other["input_ids"][0, :first] = batch["input_ids"][0, :first].flip(0)
    given = ("input_ids", "position_ids")
    before, after = scores(made.model, batch, *given), scores(made.model, other, *given)
    assert not torch.equal(before[:first], after[:first])
    assert torch.equal(before[first:], after[first:])
    alone = batch["input_ids"][:, first : first + rows[0]["seq_lengths"][1]]
    torch.testing.assert_close(
        scores(made.model, {"input_ids": alone}, "input_ids"),
        before[first : first + alone.shape[1]],
        rtol=0.02,
        atol=0.02,  # bfloat16
    )
    # without positions nothing says where an example ends: this is what the packs are spared
    before, after = (scores(made.model, one, "input_ids") for one in (batch, other))
    assert not torch.equal(before[first:], after[first:])


def test_padding_needs_no_mask_where_labels_are(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    made = trainer(tiny_model, tmp_path, quantization="none", packing=False)
    model = made.model.eval().float()
    batch = made.data_collator(list(made.train_dataset)[:4])
    assert 0 < batch["attention_mask"].sum() < batch["attention_mask"].numel()
    told: list[Any] = []
    inner = model.get_base_model()
    inner.register_forward_pre_hook(
        lambda module, given, named: told.append(named["attention_mask"]), with_kwargs=True
    )

    def probabilities() -> Any:
        with torch.no_grad():
            return model(**batch, fused_lm_head=True).log_probs

    found = probabilities()
    model._forward_pre_hooks.clear()
    expected = probabilities()
    assert told[0] is None and torch.equal(told[1], batch["attention_mask"])
    assert expected.abs().sum() > 0
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "seen"), [({}, 1), ({"adapter": {"method": "prompt", "virtual_tokens": 2}}, 2)]
)
def test_generation_and_virtual_tokens_keep_their_mask(
    tiny_model: Path, tmp_path: Path, changes: dict[str, Any], seen: int
) -> None:
    made = trainer(tiny_model, tmp_path, quantization="none", packing=False, **changes)
    batch = made.data_collator(list(made.train_dataset)[:4])
    told: list[Any] = []
    made.model.get_base_model().register_forward_pre_hook(
        lambda module, given, named: told.append(named["attention_mask"]), with_kwargs=True
    )
    made.model(**batch, fused_lm_head=True)
    made.model(**{name: part for name, part in batch.items() if name != "labels"})
    assert sum(mask is not None for mask in told) == seen


def test_packs_train(tiny_model: Path, tmp_path: Path) -> None:
    made = trainer(tiny_model, tmp_path, epochs=6, **{**PACKED, "quantization": "nf4"})
    made.train()
    losses = [log["loss"] for log in made.state.log_history if "loss" in log]
    assert len(losses) >= 6 and losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"packing": True, "sampling": "sequential"}, "packing with sampling sequential; expected random"),
        (
            {**PACKED, "adapter": {"method": "prompt", "virtual_tokens": 2}},
            "packing with method prompt: one prefix serves a row",
        ),
    ],
)
def test_what_cannot_be_packed_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        settings(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"liger": True}, "train.liger: liger; expected a GPU"),
        ({"attention": "flash_attention_2"}, "train.attention: flash_attention_2; expected a GPU"),
        ({"attention": "flex_attention"}, "train.attention: flex_attention; expected a GPU"),
    ],
)
def test_kernels_of_a_gpu_are_refused_without_one(changes: dict[str, Any], message: str) -> None:
    if models.device() == "cuda":
        pytest.skip("NOT TESTED: what is refused without a GPU; there is one")
    with pytest.raises(PipelineError, match=message):
        finetuning.check_kernels(settings(**changes))


def test_kernels_that_are_not_installed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "device", lambda: "cuda")
    monkeypatch.setattr(finetuning, "find_spec", lambda name: None)
    with pytest.raises(PipelineError, match=r"train\.liger: liger; expected package liger_kernel"):
        finetuning.check_kernels(settings(liger=True))
