"""GGUF files: what they hold, and that a model read back from one answers as the folder does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TEXTS, make_tiny_model, tiny_tokenizer

from stages.common import decoding, ggufs
from stages.common.errors import PipelineError

ABOUT = ggufs.About("A model", "apache-2.0")
QWEN = next(steps[0] for steps, name in ggufs.PRETOKENIZERS.items() if name == "qwen2")


def make_qwen(folder: Path) -> Path:
    """A tiny Qwen2: biases on query, key and value, untied embeddings with unused rows, and its own cuts."""
    import torch
    from tokenizers import Regex, normalizers, pre_tokenizers
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = tiny_tokenizer()
    split = pre_tokenizers.Split(Regex(QWEN), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer) + 5,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.1,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = Qwen2ForCausalLM(config)
    for name, tensor in model.named_parameters():
        if name.endswith("bias"):
            tensor.data.normal_()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


MODELS: dict[str, Callable[[Path], Path]] = {"llama": make_tiny_model, "qwen2": make_qwen}


@pytest.mark.parametrize(
    ("family", "kind", "bound"),
    [("llama", "f32", 1e-4), ("qwen2", "f16", 0.02), ("llama", "bf16", 0.2), ("qwen2", "q8_0", 0.5)],
)
def test_a_model_read_back_answers_as_its_folder(
    family: str, kind: ggufs.Kind, bound: float, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = MODELS[family](tmp_path / "model")
    ggufs.write(folder, tmp_path / "model.gguf", kind, ABOUT)
    given = AutoTokenizer.from_pretrained(folder)
    told = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    assert told.chat_template == given.chat_template
    models = [
        AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval(),
        AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype="float32").eval(),
    ]
    for text in TEXTS:
        ids = given(text, return_tensors="pt")
        assert told(text)["input_ids"] == ids["input_ids"][0].tolist()
        first, second = (model(**ids).logits.detach() for model in models)
        assert float((first - second).abs().max()) < bound
    if kind == "f32":
        asked = [decoding.Prompt(text, 16) for text in TEXTS]
        first, second = (decoding.answer(model, given, asked) for model in models)
        assert [reply.tokens for reply in first] == [reply.tokens for reply in second]


def test_the_file_holds_the_vocabulary_and_the_shape(tmp_path: Path) -> None:
    from gguf import GGUFReader

    folder = make_qwen(tmp_path / "model")
    count = ggufs.write(folder, tmp_path / "model.gguf", "q8_0", ABOUT)
    reader = GGUFReader(tmp_path / "model.gguf")
    found = {key: one.contents() for key, one in reader.fields.items()}
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    size = len(vocabulary) + 5
    assert count == len(reader.tensors) == 2 * 12 + 3
    assert (found["general.architecture"], found["general.name"]) == ("qwen2", "A model")
    assert found["general.license"] == "apache-2.0"
    assert (found["tokenizer.ggml.model"], found["tokenizer.ggml.pre"]) == ("gpt2", "qwen2")
    tokens, types = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert len(tokens) == len(types) == found["qwen2.vocab_size"] == size
    assert [tokens[number] for number in vocabulary.values()] == list(vocabulary)
    assert types[:4] == [3, 3, 3, 1] and types[-5:] == [5] * 5
    assert found["tokenizer.ggml.eos_token_id"] == vocabulary["<|im_end|>"]
    assert found["tokenizer.ggml.padding_token_id"] == vocabulary["<|endoftext|>"]
    assert found["tokenizer.ggml.add_bos_token"] is False
    assert "<|im_start|>assistant" in found["tokenizer.chat_template"]
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["blk.0.attn_q.weight"] == "Q8_0" and kinds["blk.0.attn_q.bias"] == "F32"
    assert found["general.file_type"] == 7


def test_rows_that_no_block_fits_become_f16(tmp_path: Path) -> None:
    from gguf import GGUFReader
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = make_tiny_model(tmp_path / "model")
    config = LlamaConfig.from_pretrained(folder)
    config.intermediate_size = 40
    LlamaForCausalLM(config).save_pretrained(folder)
    ggufs.write(folder, tmp_path / "model.gguf", "q8_0", ABOUT)
    kinds = {one.name: one.tensor_type.name for one in GGUFReader(tmp_path / "model.gguf").tensors}
    assert (kinds["blk.0.ffn_down.weight"], kinds["blk.0.ffn_up.weight"]) == ("F16", "Q8_0")


def test_the_same_folder_gives_the_same_bytes(tiny_model: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        ggufs.write(tiny_model, tmp_path / name, "f16", ABOUT)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


CONFIG = {"architectures": ["LlamaForCausalLM"], "hidden_act": "silu"}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "architectures: 'MambaForCausalLM'; expected Llama"),
        ({"architectures": None}, "architectures: ''; expected LlamaForCausalLM or Qwen2"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type: 'yarn'; expected a plain Llama"),
        ({"attention_bias": True}, "attention_bias: True; expected a plain Llama"),
        ({"mlp_bias": True}, "mlp_bias: True; expected a plain Llama"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu'; expected a plain Llama"),
        ({"use_sliding_window": True}, "use_sliding_window: True; expected a plain Llama"),
    ],
)
def test_other_models_are_refused(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    assert ggufs.architecture(tmp_path, CONFIG) == "llama"
    with pytest.raises(PipelineError, match=rf"config\.json: {told}"):
        ggufs.architecture(tmp_path, CONFIG | change)


LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
SPLIT = {"type": "Split", "pattern": {"Regex": QWEN}, "behavior": "Isolated", "invert": False}
PLAIN = LEVEL | {"use_regex": False}


@pytest.mark.parametrize(
    ("steps", "name"),
    [([LEVEL], "gpt-2"), ([DIGITS, LEVEL], "smollm"), ([SPLIT, PLAIN], "qwen2")],
)
def test_known_cuts(steps: list[dict[str, Any]], name: str, tmp_path: Path) -> None:
    given = {"type": "Sequence", "pretokenizers": steps} if len(steps) > 1 else steps[0]
    assert ggufs.pretokenizer(tmp_path, {"model": {"type": "BPE"}, "pre_tokenizer": given}) == name


@pytest.mark.parametrize(
    "steps",
    [
        [SPLIT, LEVEL],
        [PLAIN],
        [SPLIT | {"behavior": "Removed"}, PLAIN],
        [SPLIT | {"pattern": {"Regex": r"\s+"}}, PLAIN],
        [DIGITS | {"individual_digits": False}, LEVEL],
        [LEVEL | {"add_prefix_space": True}],
        [{"type": "Metaspace"}],
        [],
    ],
)
def test_other_cuts_are_refused(steps: list[dict[str, Any]], tmp_path: Path) -> None:
    given = {"type": "Sequence", "pretokenizers": steps} if steps else None
    with pytest.raises(PipelineError, match=r"tokenizer\.json: pre_tokenizer: .*for GGUF"):
        ggufs.pretokenizer(tmp_path, {"model": {"type": "BPE"}, "pre_tokenizer": given})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": {"type": "Unigram"}}, "Unigram; expected byte-level BPE"),
        ({"model": {"type": "BPE", "byte_fallback": True}}, "expected byte-level BPE"),
        ({"normalizer": {"type": "Lowercase"}}, "normalizer: .*Lowercase.*expected none"),
    ],
)
def test_other_tokenizers_are_refused(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=told):
        ggufs.pretokenizer(tmp_path, {"model": {"type": "BPE"}, "pre_tokenizer": LEVEL} | change)


def test_a_tensor_without_a_name_and_a_token_without_a_row_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = make_tiny_model(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    odd = {"model.extra.weight": weights["model.norm.weight"].clone()}
    save_file(weights | odd, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PipelineError, match=r"model\.safetensors: model\.extra\.weight; expected a tensor"):
        ggufs.write(folder, tmp_path / "x.gguf", "f16", ABOUT)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 9}), encoding="utf-8")
    with pytest.raises(PipelineError, match=r"a token \d+; expected fewer than vocab_size 9"):
        ggufs.write(folder, tmp_path / "x.gguf", "f16", ABOUT)
