"""What a training needs: trained parameters, memory at its peak and disk, from shapes and parameters alone.

The estimate counts what autograd keeps, tensor by tensor, for a dense decoder (Llama, Qwen2 and their like)
under autocast, as a look at the saved tensors shows it. It leaves out Python with its libraries (some
700 MiB of main memory) and CUDA's context.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stages.common import finetuning, fused_head
from stages.common.errors import PipelineError
from stages.common.finetuning import LoraParams, TrainParams, VirtualParams

if TYPE_CHECKING:
    from transformers import PretrainedConfig

MIB = 1 << 20
HALF, FULL = 2, 4  # bytes of a number in bfloat16 or float16, and in float32
WIDTH = {"bfloat16": HALF, "float16": HALF, "float32": FULL}

# Bytes of a weight in NF4 with double quantisation: 4 bits, 8 for every 64 weights, 32 for every 256 of those
# (QLoRA, arXiv:2305.14314, section 3).
NF4 = 4 / 8 + 1 / 64 + 4 / (64 * 256)

# TRL scores tiles of labelled positions by words of the vocabulary (trl/kernels/chunked_logprob.py).
TILE_POSITIONS, TILE_WORDS = 4096, 32768
# Bytes of a tile's element at the peak of its backward pass beside the score itself: Triton works in place;
# the version for CPUs holds seven float32 copies and a mask.
TILE_BYTES = {"cuda": 0, "cpu": 7 * FULL + 1}
# Bytes of an element in stages.common.fused_head, which takes its place on a CPU unless the head is trained:
# its score and its share in float32, and both in the dtype of computation where that is another.
ROW_BYTES = {HALF: 2 * (HALF + FULL), FULL: 2 * FULL}

# Bytes of a trained parameter's two moments: AdamW's are float32; the 8-bit form has a byte each and a
# float32 for every 256 of them (arXiv:2110.02861).
MOMENTS = {"cuda": 2 * (1 + FULL / 256), "cpu": 2 * FULL}

# What lies idle between an allocator's blocks, as a share of them. On two CPU cores it was 0 to 9 % with
# batches of one length, 40 % in the first steps with the demo's own and over its whole run 46 % in float32
# and 90 % in bfloat16, with what oneDNN keeps for every new shape. On an H100 it was 3 % with rows of one
# length, and the allocator there gives back what lies idle before it fails.
SLACK = {"cuda": 0.1, "cpu": 0.6}


@dataclass(frozen=True)
class Model:
    """A decoder's shape."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    attention: int  # heads times their dimension
    keys: int  # the same of keys and values, which heads may share
    vocabulary: int
    parameters: int  # all of them, tied ones once
    linears: Mapping[str, tuple[int, int]]  # inputs and outputs by full name; the output embeddings left out


@dataclass(frozen=True)
class Batch:
    """The largest batch of a training."""

    rows: int
    length: int  # tokens of its longest row, to which the others are padded
    labels: int  # positions with a label in all its rows


def decoder(
    hidden: int, intermediate: int, layers: int, heads: int, shared: int, vocabulary: int, tied: bool
) -> Model:
    """Qwen2's architecture: `shared` heads for keys and values, biases at queries, keys and values."""
    keys = hidden // heads * shared
    own = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (hidden, keys),
        "self_attn.v_proj": (hidden, keys),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (hidden, intermediate),
        "mlp.up_proj": (hidden, intermediate),
        "mlp.down_proj": (intermediate, hidden),
    }
    linears = {f"model.layers.{layer}.{name}": size for layer in range(layers) for name, size in own.items()}
    embeddings = vocabulary * hidden * (1 if tied else 2)
    rest = layers * (hidden + 2 * keys + 2 * hidden) + hidden  # biases and norms
    parameters = embeddings + weights(linears) + rest
    return Model(hidden, intermediate, layers, heads, hidden, keys, vocabulary, parameters, linears)


def weights(linears: Mapping[str, tuple[int, int]]) -> int:
    """Weights in linear layers, biases left out."""
    return sum(inputs * outputs for inputs, outputs in linears.values())


# Qwen2.5-Coder's published sizes: arXiv:2409.12186, table 1; the vocabulary, padded to a multiple of 128, is
# that of Qwen/Qwen2.5-Coder-<size>-Instruct/config.json.
QWEN = {
    "0.5B": decoder(896, 4864, 24, 14, 2, 151936, True),
    "1.5B": decoder(1536, 8960, 28, 12, 2, 151936, True),
    "3B": decoder(2048, 11008, 36, 16, 2, 151936, True),
    "7B": decoder(3584, 18944, 28, 28, 4, 152064, False),
}


def skeleton(config: "PretrainedConfig") -> Model:
    """The shape of any decoder, out of the layers that its configuration makes; no weight is loaded.

    Raises PipelineError for a configuration that does not have the sizes of a dense decoder.
    """
    import torch
    from transformers import AutoModelForCausalLM

    def size(name: str) -> int:
        found = getattr(config, name, None)
        if not isinstance(found, int) or found < 1:
            raise PipelineError(
                f"{config.model_type}: {name} {found}; expected a number, as dense decoders have"
            )
        return found

    hidden, heads = size("hidden_size"), size("num_attention_heads")
    dimension = getattr(config, "head_dim", None) or hidden // heads
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(config)
    head = made.get_output_embeddings()
    return Model(
        hidden=hidden,
        intermediate=size("intermediate_size"),
        layers=size("num_hidden_layers"),
        heads=heads,
        attention=heads * dimension,
        keys=(getattr(config, "num_key_value_heads", None) or heads) * dimension,
        vocabulary=size("vocab_size"),
        parameters=made.num_parameters(),
        linears={
            name: (module.in_features, module.out_features)
            for name, module in made.named_modules()
            if isinstance(module, torch.nn.Linear) and module is not head
        },
    )


def targeted(linears: Mapping[str, tuple[int, int]], targets: list[str]) -> dict[str, tuple[int, int]]:
    """The layers that LoRA's targets name, whole or at the end.

    Raises PipelineError for a target that names none: PEFT is content when any other names one.
    """
    found: dict[str, tuple[int, int]] = {}
    for target in targets:
        own = {name: size for name, size in linears.items() if f".{name}".endswith(f".{target}")}
        if not own:
            known = ", ".join(sorted({name.rpartition(".")[2] for name in linears}))
            raise PipelineError(
                f"train.adapter.targets: {target}; expected linear layers of the base model: {known} "
                "(params.yaml)"
            )
        found |= own
    return found


def trained(model: Model, chosen: TrainParams) -> int:
    """How many parameters the chosen method trains."""
    adapter = chosen.adapter
    if isinstance(adapter, LoraParams):
        sizes = targeted(model.linears, adapter.targets).values()
        magnitudes = sum(outputs for _, outputs in sizes) if adapter.method == "dora" else 0
        return sum(adapter.rank * (inputs + outputs) for inputs, outputs in sizes) + magnitudes
    if isinstance(adapter, VirtualParams):
        width = model.hidden if adapter.method == "prompt" else 2 * model.layers * model.keys
        return adapter.virtual_tokens * width
    return model.parameters


def frozen_bytes(model: Model, chosen: TrainParams, width: int, dequantized: bool) -> int:
    """The weights as they are held, numbers of `width` bytes; trained ones too."""
    linear = weights(model.linears)
    if chosen.quantization == "nf4":
        again = width * linear if dequantized else 0
        return round(NF4 * linear) + again + width * (model.parameters - linear)
    return (FULL if chosen.adapter.method == "full" else width) * model.parameters


def layer_bytes(model: Model, length: int, width: int, masked: bool) -> int:
    """What a frozen layer keeps of a token for its backward pass, in a batch padded to `length`.

    With a mask of padding attention keeps a row of it, and keys and values for every head; without one keys
    and values lie there once for the heads that share them.
    """
    norms = 2 * (FULL * model.hidden + FULL)
    shared = model.attention if masked else model.keys
    attention = width * 2 * (model.attention + shared) + FULL * model.heads  # queries and output; log sums
    mask = width * length if masked else 0
    return norms + attention + mask + width * 3 * model.intermediate  # gate, its activation, up


def adapter_bytes(model: Model, chosen: TrainParams, width: int) -> int:
    """What all layers of an adapter keep of a token, beside what the frozen ones do."""
    if not isinstance(chosen.adapter, LoraParams):
        return 0
    layers, rank = targeted(model.linears, chosen.adapter.targets), chosen.adapter.rank
    inner = sum(width * rank for _ in layers)
    if chosen.adapter.method == "dora":  # PEFT's own passes: dropout's mask, its result, two scaled outputs
        return inner + sum(2 * width * (inputs + outputs) for inputs, outputs in layers.values())
    masks = sum(HALF * inputs for inputs, _ in layers.values()) if chosen.adapter.dropout else 0
    return inner + masks + width * shared_inputs(layers)


def shared_inputs(layers: Mapping[str, tuple[int, int]]) -> int:
    """Numbers a token that go into these layers, those once that siblings share."""
    return sum({(name.rpartition(".")[0], inputs): inputs for name, (inputs, _) in layers.items()}.values())


def full_bytes(model: Model, width: int) -> int:
    """What all layers keep of a token more where every weight is trained: inputs, and norms twice.

    Autocast narrows a shared input for each of its layers.
    """
    each = sum(inputs for inputs, _ in model.linears.values())
    inputs = each if width < FULL else shared_inputs(model.linears)
    return width * inputs + model.layers * 2 * FULL * model.hidden


def copies(model: Model, chosen: TrainParams, width: int) -> int:
    """Bytes of the weights that autocast and DoRA copy: of all layers, or of one at a time.

    Autocast copies what is held in float32, unless that is computed in.
    """
    narrowed = width if width < FULL else 0
    if chosen.adapter.method == "full":
        return narrowed * weights(model.linears)  # autocast keeps them through the forward pass in any case
    found = narrowed * trained(model, chosen)
    if isinstance(chosen.adapter, LoraParams) and chosen.adapter.method == "dora":
        layers = targeted(model.linears, chosen.adapter.targets).values()
        found = sum(width * inputs * (inputs + outputs) for inputs, outputs in layers)
    return found // model.layers if chosen.checkpointing else found


def estimate(model: Model, chosen: TrainParams, batch: Batch, device: str, dtype: str) -> dict[str, int]:
    """Bytes that a training of this batch needs at its peak on `device` (cpu or cuda), by what they are for.

    `dtype`: of computation, PyTorch's name. weights: as held; trained: adapters in float32 (none where the
    weights are trained themselves); gradients: float32; optimizer: two moments; copies: of weights, in half
    precision; activations: what is kept for the backward pass; working: the largest of what comes and goes,
    the vocabulary's scores or a layer; allocator: what lies between blocks of the last two.
    """
    count, tokens, width = trained(model, chosen), batch.rows * batch.length, WIDTH[dtype]
    full = chosen.adapter.method == "full"
    layer = layer_bytes(model, batch.length, width, finetuning.masked(chosen, device))
    layer += (full_bytes(model, width) if full else adapter_bytes(model, chosen, width)) // model.layers
    scores = scored_bytes(model, batch.labels, device, full, width)
    backward = tokens * width * 4 * model.intermediate  # gradients inside the MLP
    backward += width * model.hidden * model.intermediate  # one dequantised weight
    kept = layer * model.layers * tokens
    if chosen.checkpointing:
        kept = (FULL if full else width) * model.hidden * model.layers * tokens  # each layer's input
        backward += layer * tokens  # one layer computed again
    elif isinstance(chosen.adapter, LoraParams):
        kept -= FULL * model.hidden * tokens  # nothing below the first norm learns
    norm, scored = (2 * FULL, FULL) if full else (FULL, width)
    kept += norm * model.hidden * tokens + scored * model.hidden * batch.labels  # after the last layer
    working = max(scores, backward)
    return {
        "weights": frozen_bytes(model, chosen, width, finetuning.dequantized(chosen, device)),
        "trained": 0 if full else FULL * count,
        "gradients": FULL * count,
        "optimizer": round(MOMENTS[device] * count),
        "copies": copies(model, chosen, width),
        "activations": kept,
        "working": working,
        "allocator": round(SLACK[device] * (kept + working)),
    }


def scored_bytes(model: Model, labels: int, device: str, full: bool, width: int) -> int:
    """Bytes that scoring the labelled positions over the vocabulary needs for a while."""
    states = FULL * labels * model.hidden  # their gradient
    if device == "cpu" and not full:
        rows = ROW_BYTES[width] * min(labels, fused_head.ROWS) * model.vocabulary
        return rows + states + width * labels * model.hidden
    positions, words = min(labels, TILE_POSITIONS), min(model.vocabulary, TILE_WORDS)
    found = (width + TILE_BYTES[device]) * positions * words + states
    found += FULL * model.vocabulary * model.hidden if full else 0
    return found + (2 * FULL * words * model.hidden if device == "cpu" else 0)


def checkpoint_bytes(model: Model, chosen: TrainParams, device: str) -> int:
    """What one checkpoint takes on disk: trained parameters and the optimizer's moments."""
    return round((FULL + MOMENTS[device]) * trained(model, chosen))


def available(device: str) -> int:
    """Free bytes of a GPU's memory, or of main memory within the container's limit."""
    if device == "cuda":
        import torch

        free: int = torch.cuda.mem_get_info()[0]
        return free
    table = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    free = next(int(line.split()[1]) * 1024 for line in table if line.startswith("MemAvailable:"))
    return min(free, within(Path("/sys/fs/cgroup")) or free)


def within(group: Path) -> int | None:
    """Bytes that a control group (version 2) still allows, caches not counted; None without a limit."""
    limit = group / "memory.max"
    if not limit.exists() or limit.read_text(encoding="ascii").strip() == "max":
        return None
    used = int((group / "memory.current").read_text(encoding="ascii"))
    stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
    return int(limit.read_text(encoding="ascii")) - used + int(stat.get("inactive_file", 0))


def table(chosen: TrainParams) -> str:
    """GiB on CUDA in bfloat16 for Qwen2.5-Coder's sizes, as Markdown.

    Every row is as long as allowed, and labelled throughout.
    """
    batch = Batch(chosen.batch_size, chosen.max_length, chosen.batch_size * chosen.max_length)
    lines = ["| model | trained | weights | adapter and optimizer | activations | working | peak |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|")
    for name, model in QWEN.items():
        parts = estimate(model, chosen, batch, "cuda", "bfloat16")
        adapter = parts["trained"] + parts["gradients"] + parts["optimizer"]
        kept, rest = parts["copies"] + parts["activations"], parts["working"] + parts["allocator"]
        cells = [parts["weights"], adapter, kept, rest, sum(parts.values())]
        shown = " | ".join(f"{cell / 2**30:.1f}" for cell in cells)
        lines.append(f"| {name} | {trained(model, chosen) / 1e6:.1f} M | {shown} |")
    return "\n".join(lines)
