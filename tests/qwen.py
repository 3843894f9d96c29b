"""A stand-in for Qwen2.5-Coder-0.5B-Instruct as its repository on the Hub has it: tiny, with random weights.

True to the original are the names of the files and their form, every field of the configurations but the
sizes, biases on queries, keys and values, output embeddings tied to the input's and longer than the
vocabulary, the added tokens and their order, how texts are cut, and what the chat template writes. Ids are
smaller, since the vocabulary is learned from the texts that are given.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

NAME = "Qwen/Qwen2.5-Coder-0.5B-Instruct"
SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
PAIRED = ("object_ref", "box", "quad", "vision")
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SPECIAL += [f"<|{name}_{side}|>" for name in PAIRED for side in ("start", "end")]
SPECIAL += [f"<|{name}_pad|>" for name in ("vision", "image", "video")]
OTHERS = ["<tool_call>", "</tool_call>"]
OTHERS += [
    f"<|{name}|>" for name in ("fim_prefix", "fim_middle", "fim_suffix", "fim_pad", "repo_name", "file_sep")
]
SIZES = {  # the original's: 896, 4864, 24, 14, 2 and 151,936
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
WORDS = 8000  # of the vocabulary; the original's has 151,643
UNUSED = 271  # rows of the embeddings beyond the last added token, as many as the original has

# A default system prompt, functions to call, and their results inside a user's turn.
TEMPLATE = """\
{%- set first = messages[0] %}
{%- set told = first.content if first.role == 'system' else 'SYSTEM' %}
{{- '<|im_start|>system\\n' + told }}
{%- if tools %}
    {{- '\\n\\n# Tools\\n\\nFunctions that you may call, as JSON within <tool_call></tool_call>:\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}
    {{- '\\n</tools>' }}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- for message in messages %}
    {%- if message.role == 'assistant' and message.tool_calls %}
        {{- '<|im_start|>assistant' + ('\\n' + message.content if message.content else '') }}
        {%- for call in message.tool_calls %}
            {{- '\\n<tool_call>\\n' + (call.function | tojson) + '\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- elif not (loop.first and message.role == 'system') %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
""".replace("SYSTEM", SYSTEM)


def tokenizer(texts: Iterable[str]) -> Any:
    """Byte-level BPE learned from texts, with Qwen's way of cutting and its added tokens after the words."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, trainers
    from tokenizers import pre_tokenizers as cuts
    from tokenizers.processors import ByteLevel
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    level = cuts.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    made.pre_tokenizer = cuts.Sequence([cuts.Split(Regex(PRETOKENIZE_REGEX), "isolated"), level])
    made.post_processor = ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    made.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    alphabet = cuts.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=WORDS, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(texts, trainer)
    made.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL])
    made.add_tokens([AddedToken(text, normalized=False) for text in OTHERS])
    return made


def settings(made: Any) -> dict[str, dict[str, Any]]:
    """The JSON files beside weights and tokenizer, with the original's keys and no others."""
    end, stop = (made.token_to_id(text) for text in ("<|endoftext|>", "<|im_end|>"))
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": end,
        "eos_token_id": stop,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 32768,
        "max_window_layers": SIZES["num_hidden_layers"],
        "model_type": "qwen2",
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.44.0",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": made.get_vocab_size() + UNUSED,
        **SIZES,
    }
    generation = {
        "bos_token_id": end,
        "pad_token_id": end,
        "do_sample": True,
        "eos_token_id": [stop, end],
        "repetition_penalty": 1.1,
        "temperature": 0.7,
        "top_p": 0.8,
        "top_k": 20,
        "transformers_version": "4.44.0",
    }
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    words = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(made.token_to_id(text)): {"content": text, **plain, "special": text in SPECIAL}
            for text in (*SPECIAL, *OTHERS)
        },
        "additional_special_tokens": SPECIAL[1:],
        "bos_token": None,
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 32768,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    return {"config.json": config, "generation_config.json": generation, "tokenizer_config.json": words}


def repository(scratch: Path, texts: Iterable[str]) -> dict[str, bytes]:
    """The files of the repository, by name."""
    made = tokenizer(texts)
    told = settings(made)
    model = json.loads(made.to_str())["model"]
    found = {name: json.dumps(value, indent=2).encode() for name, value in told.items()}
    found |= {
        ".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n",
        "LICENSE": b"Apache License 2.0\n",
        "README.md": b"---\nlicense: apache-2.0\n---\n",
        "merges.txt": "".join(
            ["#version: 0.2\n", *(f"{' '.join(pair)}\n" for pair in model["merges"])]
        ).encode(),
        "model.safetensors": weights(scratch, told["config.json"]),
        "tokenizer.json": made.to_str().encode(),
        "vocab.json": json.dumps(model["vocab"], ensure_ascii=False).encode(),
    }
    return found


def weights(scratch: Path, config: dict[str, Any]) -> bytes:
    """Random weights in bfloat16; biases are random too, since zeros would be missed by nobody."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**config | {"initializer_range": 0.1})).to(torch.bfloat16)
    for name, values in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(values, std=0.1)
    model.save_pretrained(scratch)
    return (scratch / "model.safetensors").read_bytes()
