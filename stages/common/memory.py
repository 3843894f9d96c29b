"""What a training needs: trained parameters, memory at its peak and disk, from shapes and parameters alone.

The estimate counts what autograd keeps, tensor by tensor, for a dense decoder (Llama, Qwen2 and their like)
under autocast, as a look at the saved tensors shows it. It leaves out Python with its libraries (some
700 MiB of main memory) and CUDA's context.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stages.common import fused_head
from stages.common.errors import PipelineError
from stages.common.finetuning import LoraParams, TrainParams, VirtualParams

if TYPE_CHECKING:
    from transformers import PretrainedConfig

MIB = 1 << 20
HALF, FULL = 2, 4  # bytes of a number in bfloat16 or float16, and in float32

# Bytes of a weight in NF4 with double quantisation: 4 bits, 8 for every 64 weights, 32 for every 256 of those
# (QLoRA, arXiv:2305.14314, section 3).
NF4 = 4 / 8 + 1 / 64 + 4 / (64 * 256)

# TRL scores tiles of labelled positions by words of the vocabulary (trl/kernels/chunked_logprob.py).
TILE_POSITIONS, TILE_WORDS = 4096, 32768
# Bytes of a tile's element at the peak of its backward pass: Triton works in place, in half precision; the
# version for CPUs holds that, seven float32 copies and a mask.
TILE_BYTES = {"cuda": HALF, "cpu": HALF + 7 * FULL + 1}
# The same of stages.common.fused_head, which takes its place on a CPU unless the head is trained: scores in
# half precision and in float32, their shares in both.
ROW_BYTES = 2 * (HALF + FULL)

# Bytes of a trained parameter's two moments: AdamW's are float32; the 8-bit form has a byte each and a
# float32 for every 256 of them (arXiv:2110.02861).
MOMENTS = {"cuda": 2 * (1 + FULL / 256), "cpu": 2 * FULL}

# What lies idle between an allocator's blocks, as a share of them. On two CPU cores it was 0 to 9 % with
# batches of one length, 40 % in the first steps with the demo's own and 90 % over its whole run, with what
# oneDNN keeps for every new shape. On an H100 it was 3 % with rows of one length, and the allocator there
# gives back what lies idle before it fails.
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


def frozen_bytes(model: Model, chosen: TrainParams) -> int:
    """The weights as they are held; trained ones too."""
    linear = weights(model.linears)
    if chosen.quantization == "nf4":
        return round(NF4 * linear) + HALF * (model.parameters - linear)
    return (FULL if chosen.adapter.method == "full" else HALF) * model.parameters


def layer_bytes(model: Model, length: int) -> int:
    """What a frozen layer keeps of a token for its backward pass, in a batch padded to `length`."""
    norms = 2 * (FULL * model.hidden + FULL)
    attention = (
        HALF * 4 * model.attention + FULL * model.heads + HALF * length
    )  # q, k, v, out; a row of the mask
    return norms + attention + HALF * 3 * model.intermediate  # gate, its activation, up


def adapter_bytes(model: Model, chosen: TrainParams) -> int:
    """What all layers of an adapter keep of a token, beside what the frozen ones do."""
    if not isinstance(chosen.adapter, LoraParams):
        return 0
    layers, rank = targeted(model.linears, chosen.adapter.targets), chosen.adapter.rank
    inner = sum(HALF * rank for _ in layers)
    if chosen.adapter.method == "dora":  # PEFT's own passes: dropout's mask, its result, two scaled outputs
        return inner + sum(2 * HALF * (inputs + outputs) for inputs, outputs in layers.values())
    masks = sum(HALF * inputs for inputs, _ in layers.values()) if chosen.adapter.dropout else 0
    shared = {(name.rpartition(".")[0], inputs) for name, (inputs, _) in layers.items()}
    return inner + masks + sum(HALF * inputs for _, inputs in shared)


def full_bytes(model: Model) -> int:
    """What all layers keep of a token more where every weight is trained: inputs, and norms twice."""
    inputs = sum(HALF * inputs for inputs, _ in model.linears.values())
    return inputs + model.layers * 2 * FULL * model.hidden


def copies(model: Model, chosen: TrainParams) -> int:
    """Bytes of the weights that autocast and DoRA copy: of all layers, or of one at a time."""
    if chosen.adapter.method == "full":
        return HALF * weights(model.linears)  # autocast keeps them through the forward pass in any case
    found = HALF * trained(model, chosen)
    if isinstance(chosen.adapter, LoraParams) and chosen.adapter.method == "dora":
        layers = targeted(model.linears, chosen.adapter.targets).values()
        found = sum(HALF * inputs * (inputs + outputs) for inputs, outputs in layers)
    return found // model.layers if chosen.checkpointing else found


def estimate(model: Model, chosen: TrainParams, batch: Batch, device: str) -> dict[str, int]:
    """Bytes that a training of this batch needs at its peak on `device` (cpu or cuda), by what they are for.

    weights: as held; trained: adapters in float32 (none where the weights are trained themselves);
    gradients: float32; optimizer: two moments; copies: of weights, in half precision; activations: what is
    kept for the backward pass; working: the largest of what comes and goes, the vocabulary's scores or a
    layer; allocator: what lies between blocks of the last two.
    """
    count, tokens = trained(model, chosen), batch.rows * batch.length
    full = chosen.adapter.method == "full"
    layer = layer_bytes(model, batch.length) + adapter_bytes(model, chosen) // model.layers
    if full:
        layer += full_bytes(model) // model.layers
    scores = scored_bytes(model, batch.labels, device, full)
    backward = tokens * HALF * 4 * model.intermediate  # gradients inside the MLP
    backward += HALF * model.hidden * model.intermediate  # one dequantised weight
    kept = layer * model.layers * tokens
    if chosen.checkpointing:
        kept = (FULL if full else HALF) * model.hidden * model.layers * tokens  # each layer's input
        backward += layer * tokens  # one layer computed again
    norm, scored = (2 * FULL, FULL) if full else (FULL, HALF)
    kept += norm * model.hidden * tokens + scored * model.hidden * batch.labels  # after the last layer
    working = max(scores, backward)
    return {
        "weights": frozen_bytes(model, chosen),
        "trained": 0 if full else FULL * count,
        "gradients": FULL * count,
        "optimizer": round(MOMENTS[device] * count),
        "copies": copies(model, chosen),
        "activations": kept,
        "working": working,
        "allocator": round(SLACK[device] * (kept + working)),
    }


def scored_bytes(model: Model, labels: int, device: str, full: bool) -> int:
    """Bytes that scoring the labelled positions over the vocabulary needs for a while."""
    states = FULL * labels * model.hidden  # their gradient
    if device == "cpu" and not full:
        rows = ROW_BYTES * min(labels, fused_head.ROWS) * model.vocabulary
        return rows + states + HALF * labels * model.hidden
    positions, words = min(labels, TILE_POSITIONS), min(model.vocabulary, TILE_WORDS)
    found = round(TILE_BYTES[device] * positions * words) + states
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


def table(chosen: TrainParams, device: str = "cuda") -> str:
    """GiB for Qwen2.5-Coder's sizes, every row as long as allowed and labelled throughout, as Markdown."""
    batch = Batch(chosen.batch_size, chosen.max_length, chosen.batch_size * chosen.max_length)
    lines = ["| model | trained | weights | adapter and optimizer | activations | working | peak |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|")
    for name, model in QWEN.items():
        parts = estimate(model, chosen, batch, device)
        adapter = parts["trained"] + parts["gradients"] + parts["optimizer"]
        kept, rest = parts["copies"] + parts["activations"], parts["working"] + parts["allocator"]
        cells = [parts["weights"], adapter, kept, rest, sum(parts.values())]
        shown = " | ".join(f"{cell / 2**30:.1f}" for cell in cells)
        lines.append(f"| {name} | {trained(model, chosen) / 1e6:.1f} M | {shown} |")
    return "\n".join(lines)
