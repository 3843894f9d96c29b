"""What a training needs, by formula and by looking: parameters, what autograd keeps, bytes of a weight."""

from pathlib import Path
from typing import Any

import pytest
from conftest import chosen, make_tiny_model

from stages.common import finetuning, memory
from stages.common.errors import PipelineError
from stages.common.finetuning import TrainParams
from stages.common.params import validate
from stages.common.records import Example

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA = {"method": "lora", "rank": 16, "alpha": 32, "dropout": 0.05, "targets": ALL}
FULL = {"adapter": {"method": "full"}, "quantization": "none"}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "no dropout": {"adapter": {**LORA, "dropout": 0.0}},
    "two targets": {"adapter": {**LORA, "targets": ["q_proj", "v_proj"]}},
    "rslora": {"adapter": {**LORA, "method": "rslora", "rank": 4}},
    "dora": {"adapter": {**LORA, "method": "dora"}},
    "prompt": {"adapter": {"method": "prompt", "virtual_tokens": 4}},
    "prefix": {"adapter": {"method": "prefix", "virtual_tokens": 4}},
    "full": FULL,
    "checkpointing": {"checkpointing": True},
    "full, checkpointing": {**FULL, "checkpointing": True},
}


def settings(**changes: Any) -> TrainParams:
    """The default parameters with changes."""
    values = {**chosen("train"), "batch_size": 4, "accumulation": 1, "max_length": 256, **changes}
    return validate(values, "train", TrainParams)


def config(kind: str = "llama", **changes: Any) -> Any:
    from transformers import AutoConfig

    sizes = {
        "vocab_size": 422,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    }
    return AutoConfig.for_model(kind, **{**sizes, **changes})


# How many parameters. ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "parameters", "adapter"),
    [  # the first as the reference counted them; the others are what the Hub shows, to the digit
        ("0.5B", 494_032_768, 8_798_208),
        ("1.5B", 1_543_714_304, 18_464_768),
        ("3B", 3_085_938_688, 29_933_568),
        ("7B", 7_615_616_512, 40_370_176),
    ],
)
def test_the_published_sizes_of_qwen(size: str, parameters: int, adapter: int) -> None:
    model = memory.QWEN[size]
    made = config(
        "qwen2",
        vocab_size=model.vocabulary,
        hidden_size=model.hidden,
        intermediate_size=model.intermediate,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.keys * model.heads // model.hidden,
        tie_word_embeddings=size != "7B",
    )
    assert memory.skeleton(made) == model
    assert (model.parameters, memory.trained(model, settings())) == (parameters, adapter)


@pytest.mark.parametrize("changes", METHODS.values(), ids=METHODS)
def test_a_method_trains_as_many_parameters_as_peft_makes(changes: dict[str, Any]) -> None:
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    params = settings(**changes)
    for shape in ({}, {"head_dim": 32, "tie_word_embeddings": False}, {"num_key_value_heads": 4}):
        made = config(**shape)
        wanted = memory.trained(memory.skeleton(made), params)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(made)
        if params.adapter.method != "full":
            model = get_peft_model(model, finetuning.adapter(params, None))
        assert wanted == sum(p.numel() for p in model.parameters() if p.requires_grad), shape


@pytest.mark.parametrize("target", ["c_attn", "lm_head", "proj", "embed_tokens"])
def test_a_target_that_names_no_layer_is_refused_with_the_names_there_are(target: str) -> None:
    linears = memory.QWEN["0.5B"].linears
    with pytest.raises(PipelineError, match=rf"targets: {target}; expected .*: down_proj, .*, v_proj "):
        memory.targeted(linears, ["q_proj", target])


def test_a_target_names_layers_whole_or_at_the_end() -> None:
    linears = {"a.q_proj": (1, 2), "b.q_proj": (3, 4), "b.qq_proj": (5, 6)}
    assert memory.targeted(linears, ["q_proj"]) == {"a.q_proj": (1, 2), "b.q_proj": (3, 4)}
    assert memory.targeted(linears, ["b.q_proj", "q_proj"]) == {"b.q_proj": (3, 4), "a.q_proj": (1, 2)}


def test_a_configuration_without_the_sizes_of_a_decoder_is_refused() -> None:
    from transformers import AutoConfig

    with pytest.raises(PipelineError, match="gpt2: intermediate_size None; expected a number"):
        memory.skeleton(AutoConfig.for_model("gpt2", n_layer=1, n_embd=8, n_head=2, vocab_size=9))


# How many bytes. ---------------------------------------------------------------------------------------


def test_a_weight_in_nf4_has_the_bytes_that_it_should() -> None:
    import bitsandbytes
    import torch

    weight = bitsandbytes.nn.Params4bit(
        torch.randn(512, 512), requires_grad=False, quant_type="nf4", compress_statistics=True
    ).to("cpu")
    state = weight.quant_state
    held = weight.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    assert held == pytest.approx(memory.NF4 * 512 * 512, rel=0.001)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


def dequantized(model: Any) -> list[Any]:
    """The weights that 4-bit layers hold a second time."""
    return [module.dequantized for module in model.modules() if hasattr(module, "dequantized")]


def kept(base: Path, params: TrainParams, device: str, folder: Path) -> tuple[memory.Batch, int]:
    """What autograd keeps for the backward pass, in bytes, of a batch; weights and buffers left out."""
    import torch

    examples = [
        Example(f"c/{n}/write", f"c/{n}", "c", "MIT", "1", "", "write", "Say hello. " * n, "Hello, you. " * n)
        for n in (3, 5, 7, 9)
    ]
    tokens = finetuning.tokenizer(base, params)
    trainer = finetuning.trainer(params, base, tokens, examples, [], folder, "file:x", [])
    if finetuning.masked(params, device):
        trainer.model._forward_pre_hooks.clear()
    batch = trainer._prepare_inputs(trainer.data_collator(list(trainer.train_dataset)))
    if params.checkpointing:
        trainer.model.gradient_checkpointing_enable()
    own = {
        tensor.untyped_storage().data_ptr()
        for tensor in (*trainer.model.parameters(), *trainer.model.buffers(), *dequantized(trainer.model))
    }
    seen: dict[int, Any] = {}

    def note(tensor: Any) -> Any:
        if tensor.untyped_storage().data_ptr() not in own:
            seen.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    trainer.model.train()
    keeping = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with keeping, trainer.accelerator.autocast():
        trainer.compute_loss(trainer.model, batch)
    shape = memory.Batch(*batch["input_ids"].shape, int((batch["labels"] != -100).sum()))
    return shape, sum(tensor.untyped_storage().nbytes() for tensor in seen.values())


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("changes", METHODS.values(), ids=METHODS)
def test_the_activations_are_those_that_autograd_keeps(
    changes: dict[str, Any], dtype: str, device: str, base: Path, tmp_path: Path
) -> None:
    from transformers import AutoConfig

    params = settings(**changes, dtype=dtype)
    batch, found = kept(base, params, device, tmp_path)
    model = memory.skeleton(AutoConfig.from_pretrained(base))
    parts = memory.estimate(model, params, batch, device, dtype)
    copies = 0 if params.checkpointing else parts["copies"]  # made anew with the layer
    assert parts["activations"] + copies == pytest.approx(found, rel=0.05)


def test_weights_are_copied_in_half_precision() -> None:
    model = memory.QWEN["0.5B"]
    assert memory.copies(model, settings(**FULL), 2) == 2 * memory.weights(model.linears)
    assert memory.copies(model, settings(), 2) == 2 * 8_798_208
    assert memory.copies(model, settings(), 4) == memory.copies(model, settings(**FULL), 4) == 0
    assert memory.copies(model, settings(checkpointing=True), 2) == 2 * 8_798_208 // 24
    dora = memory.copies(model, settings(adapter={**LORA, "method": "dora", "targets": ["down_proj"]}), 2)
    assert dora == 24 * 2 * 4864 * (4864 + 896)  # the identity that PEFT multiplies with, and the weight


def test_a_smaller_training_needs_less() -> None:
    model, batch = memory.QWEN["0.5B"], memory.Batch(4, 1024, 2048)

    def peak(
        device: str = "cuda", batch: memory.Batch = batch, dtype: str = "bfloat16", **changes: Any
    ) -> int:
        return sum(memory.estimate(model, settings(**changes), batch, device, dtype).values())

    assert peak() < peak(quantization="none") < peak(**FULL)
    assert peak(checkpointing=True) < peak()
    assert peak(adapter={**LORA, "rank": 8}) < peak() < peak(adapter={**LORA, "method": "dora"})
    assert peak(batch=memory.Batch(4, 512, 2048)) < peak()
    assert peak("cpu", memory.Batch(4, 1024, 1024)) < peak("cpu")
    assert peak() < peak("cpu") < peak("cpu", dtype="float32")
    held = {
        again: memory.estimate(model, settings(checkpointing=again), batch, "cpu", "float32")["weights"]
        for again in (True, False)
    }
    assert held[False] - held[True] == 4 * memory.weights(model.linears)
    assert peak() == peak(dtype="float16") < peak(dtype="float32")


def test_the_table_has_a_row_for_every_size() -> None:
    lines = memory.table(settings(batch_size=2, max_length=1024, checkpointing=True)).split("\n")
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {size}" for size in memory.QWEN]
    peaks = [float(line.removesuffix(" |").split(" | ")[-1]) for line in lines[2:]]
    assert peaks == sorted(peaks) and 0.5 < peaks[0] < 3 and 5 < peaks[-1] < 15


# How much there is. ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "expected"), [("max", None), ("1000", 1000 - 600 + 250), (None, None)], ids=str
)
def test_a_container_allows_its_limit_without_what_is_in_use(
    limit: str | None, expected: int | None, tmp_path: Path
) -> None:
    contents = {"memory.max": limit, "memory.current": "600", "memory.stat": "anon 300\ninactive_file 250"}
    for name, text in contents.items():
        if text is not None:
            (tmp_path / name).write_text(text, encoding="ascii")
    assert memory.within(tmp_path) == expected


def test_there_is_some_memory() -> None:
    assert memory.available("cpu") > memory.MIB
