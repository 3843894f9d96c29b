"""A model folder as one GGUF file, the format of llama.cpp and of all that is built on it.

Writing, quantising and the names of tensors are llama.cpp's own (package `gguf`); its converter comes in no
wheel. Two families are known, Llama and Qwen2, with a byte-level BPE tokenizer; whatever else is
refused, since a file that loads and answers wrongly is worse than none. Of the demo's model the tensors equal
those that llama.cpp's own script writes, byte for byte, and llama.cpp answers as transformers does.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stages.common import files
from stages.common.errors import PipelineError

if TYPE_CHECKING:
    import numpy
    from gguf import GGUFWriter

Kind = Literal["f32", "f16", "bf16", "q8_0"]  # of the matrices; vectors are always f32
BLOCK = 32  # weights that share a scale in q8_0; a matrix with other rows becomes f16, as llama.cpp does it

ARCHITECTURES = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}

# How a tokenizer cuts a text before its merges: tokenizer.json's regular expression, llama.cpp's name for it.
# "" is GPT-2's, which ByteLevel brings along. From src/llama-vocab.cpp of llama.cpp.
PRETOKENIZERS = {
    (): "gpt-2",
    ("digits",): "smollm",
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    ): "qwen2",
}


@dataclass(frozen=True)
class About:
    """What the file tells of itself."""

    name: str
    licence: str  # the Hub's identifier


def write(folder: Path, path: Path, kind: Kind, about: About) -> int:
    """Write the model in `folder` to the GGUF file `path`; returns the number of its tensors.

    The same folder gives the same bytes. Raises PipelineError for a model that this module does not know.
    """
    from gguf import GGUFWriter, LlamaFileType

    config, tokenizer = (files.read_json(folder / name) for name in ("config.json", "tokenizer.json"))
    arch = architecture(folder, config)
    pre = pretokenizer(folder, tokenizer)
    writer = GGUFWriter(path, arch)
    writer.add_type("model")
    writer.add_name(about.name)
    writer.add_license(about.licence)
    types = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
    writer.add_file_type(LlamaFileType[types[kind]])
    writer.add_quantization_version(2)
    _sizes(writer, config)
    _vocabulary(writer, folder, config, tokenizer, pre)
    tensors = _tensors(folder, config, arch)
    count = sum(_add(writer, name, weights, kind) for name, weights in tensors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return count


def architecture(folder: Path, config: files.Row) -> str:
    """llama.cpp's name of a model's architecture; PipelineError for one that this module does not know."""
    named = (config.get("architectures") or [""])[0]
    if named not in ARCHITECTURES:
        raise PipelineError(
            f"{folder}/config.json: architectures: {named!r}; expected {' or '.join(ARCHITECTURES)} for GGUF"
        )
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    odd = {
        "rope_type": rope.get("rope_type", "default") != "default",
        "use_sliding_window": bool(config.get("use_sliding_window")),
        "mlp_bias": bool(config.get("mlp_bias")),
        "attention_bias": named == "LlamaForCausalLM" and bool(config.get("attention_bias")),
        "hidden_act": config.get("hidden_act") != "silu",
    }
    for key in sorted(key for key, is_odd in odd.items() if is_odd):
        found = rope.get(key, config.get(key))
        raise PipelineError(f"{folder}/config.json: {key}: {found!r}; expected a plain {named} for GGUF")
    return ARCHITECTURES[named]


def pretokenizer(folder: Path, tokenizer: files.Row) -> str:
    """llama.cpp's name of how a byte-level BPE tokenizer cuts texts; PipelineError for an unknown way."""
    where = f"{folder}/tokenizer.json"
    if tokenizer["model"].get("type") != "BPE" or tokenizer["model"].get("byte_fallback"):
        raise PipelineError(f"{where}: {tokenizer['model'].get('type')}; expected byte-level BPE for GGUF")
    if tokenizer.get("normalizer") not in (None, {"type": "NFC"}):  # llama.cpp normalises nothing
        raise PipelineError(f"{where}: normalizer: {tokenizer['normalizer']!r:.80}; expected none for GGUF")
    given = tokenizer.get("pre_tokenizer") or {}
    *cuts, last = given.get("pretokenizers", [given])
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        raise PipelineError(f"{where}: pre_tokenizer: {given!r:.80}; expected byte-level BPE for GGUF")
    steps = [
        "digits" if one.get("type") == "Digits" and one.get("individual_digits") else _pattern(one)
        for one in cuts
    ]
    plain = bool(last.get("use_regex", True)) == (steps in ([], ["digits"]))
    if not plain or tuple(steps) not in PRETOKENIZERS:
        raise PipelineError(f"{where}: pre_tokenizer: {given!r:.200}; expected one of {_known()} for GGUF")
    return PRETOKENIZERS[tuple(steps)]


def _pattern(step: files.Row) -> str:
    """The regular expression of a Split that isolates what it finds; otherwise nothing that is known."""
    split = step.get("type") == "Split" and step.get("behavior") == "Isolated" and not step.get("invert")
    return str(step.get("pattern", {}).get("Regex", "?")) if split else "?"


def _known() -> str:
    return ", ".join(PRETOKENIZERS.values())


def _head(config: files.Row) -> int:
    """Numbers of an attention head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _sizes(writer: "GGUFWriter", config: files.Row) -> None:
    head = _head(config)
    rope = config.get("rope_parameters") or {}
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    writer.add_rope_dimension_count(head)
    writer.add_vocab_size(config["vocab_size"])
    if head * config["num_attention_heads"] != config["hidden_size"]:
        writer.add_key_length(head)
        writer.add_value_length(head)


def _vocabulary(
    writer: "GGUFWriter", folder: Path, config: files.Row, tokenizer: files.Row, pre: str
) -> None:
    from gguf import SpecialVocab, TokenType

    size = config["vocab_size"]
    tokens = [f"[PAD{number}]" for number in range(size)]  # rows of the embeddings that no token uses
    types = [TokenType.UNUSED] * size
    added = {one["id"]: one for one in tokenizer["added_tokens"]}
    named = {**tokenizer["model"]["vocab"], **{one["content"]: number for number, one in added.items()}}
    if (last := max(named.values())) >= size:
        raise PipelineError(f"{folder}: a token {last}; expected fewer than vocab_size {size}")
    for text, number in named.items():
        tokens[number], types[number] = text, TokenType.NORMAL
        if number in added:
            special = added[number].get("special") or re.fullmatch(r"<\|.*\|>", text)
            types[number] = TokenType.CONTROL if special else TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    special = SpecialVocab(folder, load_merges=True, n_vocab=size)
    special.add_special_token.setdefault("bos", False)  # the chat template writes all that is to be written
    special.add_to_gguf(writer, quiet=True)


def _tensors(folder: Path, config: files.Row, arch: str) -> Iterator[tuple[str, "numpy.ndarray[Any, Any]"]]:
    """Each tensor by its name in GGUF, in float32 and in order; one at a time, as models may be large."""
    from gguf import MODEL_ARCH, get_tensor_name_map
    from safetensors import safe_open

    names = get_tensor_name_map(MODEL_ARCH[arch.upper()], config["num_hidden_layers"])
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as weights:
            for key in sorted(weights.keys()):
                name = names.get_name(key, try_suffixes=(".weight", ".bias"))
                if name is None:
                    raise PipelineError(f"{path}: {key}; expected a tensor of {arch} for GGUF")
                if key == "lm_head.weight" and config.get("tie_word_embeddings"):
                    continue
                values = weights.get_tensor(key).float().numpy()
                count = heads.get(name.split(".")[-2]) if arch == "llama" else None
                yield name, values if count is None else turned(values, count)


def turned(weights: "numpy.ndarray[Any, Any]", heads: int) -> "numpy.ndarray[Any, Any]":
    """The rows of a query or key projection in the order in which llama.cpp rotates a Llama's positions.

    Transformers rotates the first half of a head's numbers with its second half, llama.cpp neighbours.

    >>> import numpy
    >>> turned(numpy.arange(8).reshape(8, 1), 2).ravel().tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    """
    rows, columns = weights.shape
    return weights.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _add(writer: "GGUFWriter", name: str, weights: "numpy.ndarray[Any, Any]", kind: Kind) -> bool:
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    chosen = "f32" if weights.ndim == 1 else kind
    if chosen == "q8_0" and weights.shape[-1] % BLOCK:
        chosen = "f16"
    type_ = GGMLQuantizationType[chosen.upper()]
    writer.add_tensor(name, quantize(weights, type_), raw_dtype=type_)
    return True
