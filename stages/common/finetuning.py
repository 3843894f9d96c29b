"""What fine-tuning is made of: parameters, examples as the model sees them, the adapter, TRL's trainer.

`train` runs it to its end, `preflight` for a few steps.
"""

import re
from collections.abc import Callable
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from stages.common import files, fused_head, fused_lora, launching, models, prompts
from stages.common.errors import PipelineError
from stages.common.params import params
from stages.common.records import Example

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from peft import PeftConfig
    from transformers import BitsAndBytesConfig, TrainerCallback
    from trl import SFTConfig, SFTTrainer

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


@params
class LoraParams:
    """Low-rank updates beside the frozen projections."""

    method: Literal["lora", "dora", "rslora"]  # dora learns magnitudes too; rslora scales by the rank's root
    rank: Count
    alpha: Count  # updates are scaled by alpha / rank
    dropout: Annotated[float, Field(ge=0, lt=1)]
    targets: Annotated[list[str], Field(min_length=1)]  # names of linear layers


@params
class VirtualParams:
    """Learned vectors before the prompt, or before the keys and values of every layer."""

    method: Literal["prompt", "prefix"]
    virtual_tokens: Count


@params
class FullParams:
    """Every weight of the model."""

    method: Literal["full"]


Adapter = Annotated[LoraParams | VirtualParams | FullParams, Field(discriminator="method")]


@params
class ValidationParams:
    """When the loss on held-out rows is measured, and whether it ends the training."""

    steps: Count  # between two validations
    patience: (
        Count | None
    )  # validations without improvement until the best adapter is taken; null: the last is


@params
class ProbeParams:
    """Answers that are written down during training, so that one sees behaviour change."""

    steps: Count | None  # between two probes; null: none
    prompts: Count  # held-out ones, of every kind in turn
    max_new_tokens: Count


@params
class TrainParams:
    """What is optimised and how; names as in the literature, values as chosen."""

    seed: int
    template: Literal["chat", "alpaca"]  # chat keeps the model's own; alpaca is the reference's
    loss: Literal["completion", "full"]  # on the answer alone, or on the prompt too
    dtype: Literal["auto", "bfloat16", "float16", "float32"]  # of computation; auto: what suits the device
    quantization: Literal["nf4", "none"]  # of the frozen weights, in memory
    adapter: Adapter
    epochs: Annotated[float, Field(gt=0)]
    batch_size: Count  # examples a forward pass
    accumulation: Count  # forward passes an optimizer step, in all processes together: they are shared out
    learning_rate: Annotated[float, Field(gt=0, lt=1)]  # peak
    warmup: Share  # of all steps; cosine decay follows
    weight_decay: Share
    max_grad_norm: Annotated[float, Field(gt=0)]
    max_length: Annotated[int, Field(ge=8)]  # tokens of prompt and answer; longer examples lose their end
    checkpointing: bool  # recompute activations: less memory, about a third slower
    sampling: Literal["random", "group_by_length", "sequential"]  # sequential keeps the order of the mix
    packing: bool  # fill every row up to max_length with several examples that do not see each other
    attention: Literal["sdpa", "eager", "flex_attention", "flash_attention_2"]  # the last two on a GPU
    liger: bool  # Liger's Triton kernels for norms, rotations and MLPs: on a GPU
    validation: ValidationParams
    probe: ProbeParams
    save_steps: Count  # what a crash may cost at most
    keep: Count  # complete checkpoints
    launcher: str  # conf/launch/<launcher>.yaml: one process, or several, and how the model lies in them
    trackers: list[Literal["tensorboard", "wandb"]]  # beside DVCLive; they change nothing but runs/

    def __post_init__(self) -> None:
        """Refuse what does not go together."""
        if self.adapter.method == "full" and self.quantization != "none":
            raise ValueError(f"quantization {self.quantization} with method full; expected none")
        if self.adapter.method == "prefix" and self.checkpointing:
            raise ValueError("checkpointing with method prefix: recomputation loses the prefix (peft#869)")
        if self.packing and self.sampling != "random":
            raise ValueError(f"packing with sampling {self.sampling}; expected random: packs keep no order")
        if self.packing and isinstance(self.adapter, VirtualParams):
            raise ValueError(f"packing with method {self.adapter.method}: one prefix serves a row")
        files.plain_name(self.launcher)
        if self.sampling == "group_by_length" and self.launcher != launching.SINGLE:
            raise ValueError("sampling group_by_length with several processes: each would group its own way")
        if len(set(self.trackers)) < len(self.trackers):
            raise ValueError(f"trackers {', '.join(self.trackers)}; expected each once")


def dataset(examples: list[Example]) -> "Dataset":
    """Examples as conversations, which the tokenizer's chat template turns into text."""
    from datasets import Dataset

    return Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": example.prompt}] for example in examples],
            "completion": [[{"role": "assistant", "content": example.completion}] for example in examples],
        }
    )


def by_kind(examples: list[Example]) -> dict[str, list[Example]]:
    """Examples by what they teach: write, detect, fix, explain, handle, review."""
    taught = [example.kind.removeprefix("reference_").split("_")[0] for example in examples]
    return {
        kind: [example for example, own in zip(examples, taught, strict=True) if own == kind]
        for kind in sorted(set(taught))
    }


def probed(examples: list[Example], chosen: TrainParams) -> list[Example]:
    """The examples that probes ask: the first of every kind in turn."""
    rounds = zip_longest(*by_kind(examples).values())
    return [example for one in rounds for example in one if example][: chosen.probe.prompts]


def tokenizer(base: Path, chosen: TrainParams) -> Any:
    """The base model's tokenizer with the chosen template."""
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(base)
    if chosen.template == "alpaca":
        loaded.chat_template = prompts.ALPACA
    if not loaded.chat_template:
        raise PipelineError(f"{base}: no chat template; expected one with train.template chat (params.yaml)")
    return loaded


def lengths(examples: list[Example], tokens: Any) -> list[int]:
    """Tokens of each example as the model sees it."""
    conversations = [
        [{"role": "user", "content": example.prompt}, {"role": "assistant", "content": example.completion}]
        for example in examples
    ]
    return [len(ids) for ids in tokens.apply_chat_template(conversations, return_dict=False)]


def tokenized(examples: list[Example], tokens: Any) -> list[list[int]]:
    """The tokens of each example's prompt, as training and generation feed it."""
    rendered = [prompts.render(tokens, example.prompt) for example in examples]
    found: list[list[int]] = tokens(rendered, add_special_tokens=False)["input_ids"] if rendered else []
    return found


def answerable(examples: list[Example], asked: list[list[int]], chosen: TrainParams) -> list[Example]:
    """The examples of which something is learned: not those whose prompt alone fills the whole length.

    With the loss on answers they have no label, and TRL would drop them silently.
    """
    if chosen.loss == "full":
        return examples
    pairs = zip(examples, asked, strict=True)
    return [example for example, ids in pairs if len(ids) < chosen.max_length]


def levelled(examples: list[Example], sizes: list[int], chosen: TrainParams) -> list[Example]:
    """The same optimizer steps with less padding: within each, examples are sorted by length.

    Only where the order of the mix is kept; a step's gradient is the mean over all its tokens either way.
    """
    if chosen.sampling != "sequential":
        return examples
    step = chosen.batch_size * chosen.accumulation
    order = sorted(range(len(examples)), key=lambda index: (index // step, sizes[index]))
    return [examples[index] for index in order]


def dtype(chosen: TrainParams) -> "torch.dtype":
    """The dtype of computation. Raises PipelineError where the device cannot train in it."""
    import torch

    if chosen.dtype == "auto":
        return models.compute_dtype()
    if chosen.dtype == "float16" and models.device() == "cpu":
        raise PipelineError(
            "train.dtype: float16; expected bfloat16, float32 or auto without a GPU (params.yaml)"
        )
    if chosen.dtype == "bfloat16" and models.compute_dtype() == torch.float16:
        raise PipelineError(
            "train.dtype: bfloat16; expected float16, float32 or auto on this GPU (capability below 8.0)"
        )
    found: torch.dtype = getattr(torch, chosen.dtype)
    return found


def quantization(chosen: TrainParams) -> "BitsAndBytesConfig | None":
    """NF4 with double quantisation, or nothing.

    FSDP2 and ZeRO-3 cut tensors of floating-point numbers alone: there four weights are stored as one
    number of the dtype of computation.
    """
    if chosen.quantization == "none":
        return None
    from transformers import BitsAndBytesConfig

    stored = {"bnb_4bit_quant_storage": dtype(chosen)} if launching.sharding() in ("fsdp", "zero3") else {}
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype(chosen),
        **stored,
    )


def lora(chosen: LoraParams, **common: Any) -> "PeftConfig":
    """Low-rank adaptation, plain (arXiv:2106.09685), DoRA (2402.09353) or rank-stabilised (2312.03732)."""
    from peft import LoraConfig

    config = LoraConfig(
        r=chosen.rank,
        lora_alpha=chosen.alpha,
        lora_dropout=chosen.dropout,
        target_modules=chosen.targets,
        use_dora=chosen.method == "dora",
        use_rslora=chosen.method == "rslora",
        bias="none",
        **common,
    )
    config.target_modules = sorted(chosen.targets)  # PEFT's set is saved in another order by every process
    return config


def virtual(chosen: VirtualParams, **common: Any) -> "PeftConfig":
    """Prompt tuning (arXiv:2104.08691) or prefix tuning (2101.00190)."""
    from peft import PrefixTuningConfig, PromptTuningConfig

    config = {"prompt": PromptTuningConfig, "prefix": PrefixTuningConfig}[chosen.method]
    return config(num_virtual_tokens=chosen.virtual_tokens, **common)


ADAPTERS: dict[str, Callable[..., "PeftConfig"]] = {
    **dict.fromkeys(("lora", "dora", "rslora"), lora),
    **dict.fromkeys(("prompt", "prefix"), virtual),
}


def adapter(chosen: TrainParams, revision: str | None) -> "PeftConfig | None":
    """The adapter's configuration, naming the base's revision; none where every weight is trained."""
    if chosen.adapter.method == "full":
        return None
    return ADAPTERS[chosen.adapter.method](chosen.adapter, task_type="CAUSAL_LM", revision=revision)


def revision(uri: str) -> str | None:
    """The commit of a Hub model's URI; other models have none."""
    match = re.fullmatch(r"hf://[^@]+@([0-9a-f]{40})", uri)
    return match[1] if match else None


def arguments(chosen: TrainParams, folder: Path, validated: bool) -> "SFTConfig":
    """Our choices in TRL's words; what is not here is TRL's default. Checkpoints go to `folder`."""
    import torch
    from trl import SFTConfig

    cuda = models.device() == "cuda"
    return SFTConfig(
        output_dir=str(folder),
        seed=chosen.seed,
        model_init_kwargs={
            "dtype": master(chosen),
            "device_map": {"": models.device()},
            "attn_implementation": chosen.attention,
        },
        use_liger_kernel=chosen.liger,
        packing=chosen.packing,
        packing_strategy="bfd",  # what is longer than max_length loses its end, as without packing
        eval_packing=False,
        completion_only_loss=chosen.loss == "completion",
        num_train_epochs=chosen.epochs,
        per_device_train_batch_size=chosen.batch_size,
        per_device_eval_batch_size=chosen.batch_size,
        gradient_accumulation_steps=launching.share(chosen.accumulation),
        learning_rate=chosen.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=chosen.warmup,
        weight_decay=chosen.weight_decay,
        max_grad_norm=chosen.max_grad_norm,
        max_length=chosen.max_length,
        activation_checkpointing=chosen.checkpointing,
        train_sampling_strategy=chosen.sampling,
        optim="paged_adamw_8bit" if cuda and not launching.sharding() else "adamw_torch",  # it cannot be cut
        ddp_find_unused_parameters=False,  # every trained parameter has a part in every batch
        bf16=dtype(chosen) == torch.bfloat16,
        fp16=dtype(chosen) == torch.float16,
        use_cpu=not cuda,
        dataloader_pin_memory=cuda,
        eval_strategy="steps" if validated else "no",
        eval_steps=chosen.validation.steps,
        save_strategy="steps",
        save_steps=chosen.save_steps,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
    )


def master(chosen: TrainParams) -> "torch.dtype":
    """The dtype in which the model's weights are held: float32 where they are trained themselves."""
    import torch

    return torch.float32 if chosen.adapter.method == "full" else dtype(chosen)


KERNELS = {"liger": "liger_kernel", "flash_attention_2": "flash_attn", "flex_attention": "triton"}


def check_kernels(chosen: TrainParams) -> None:
    """Raise PipelineError for kernels that this device or this environment does not have."""
    wanted = {"train.attention": chosen.attention, "train.liger": "liger" if chosen.liger else ""}
    for name, kernels in wanted.items():
        package = KERNELS.get(kernels)
        if package and models.device() != "cuda":
            raise PipelineError(f"{name}: {kernels}; expected a GPU for it, or other kernels (params.yaml)")
        if package and not find_spec(package):
            raise PipelineError(f"{name}: {kernels}; expected package {package} to be there (params.yaml)")


def score_answers_only() -> None:
    """Let TRL project only the positions with a label onto the vocabulary on CPUs too, there in one pass.

    It leaves the others out by itself where Triton is; elsewhere it scores every position and masks
    afterwards, which is nearly half of a step's time with a vocabulary of 49,152 and short answers.
    """
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer import utils

    utils._use_triton = lambda device: True
    utils._ChunkedLogProbFunction = fused_head.standing_in(ChunkedLogProbFunction)


def keep_full_precision(model: "torch.nn.Module") -> None:
    """Hold what is trained in float32: TRL casts adapters to bfloat16, which rounds small updates away.

    A resumed adapter comes back in float32, so nothing else could end with the same bytes. Autocast computes
    in half precision all the same, so PEFT need not copy every input to float32 first.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for module in model.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            setattr(module, "cast_input_dtype_enabled", False)  # noqa: B010 (PEFT's layers alone have it)


def keep_gradients(model: "torch.nn.Module") -> None:
    """Keep 4-bit layers trainable after a validation on a CPU with AVX512-BF16.

    In its first forward pass without gradients bitsandbytes packs the weights for a kernel that has no
    backward pass, and uses it from then on, in training too: no gradient would reach the layers below.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 (4-bit layers alone have it)


def masked(chosen: TrainParams, device: str) -> bool:
    """Whether attention gets a mask of padding: on a GPU, and where virtual tokens lie before a row."""
    return device != "cpu" or isinstance(chosen.adapter, VirtualParams)


def dequantized(chosen: TrainParams, device: str) -> bool:
    """Whether 4-bit weights are dequantised once: on a CPU, unless memory is saved at activations as well."""
    return device == "cpu" and chosen.quantization == "nf4" and not chosen.checkpointing


def dequantize(model: "torch.nn.Module", dtype: "torch.dtype") -> None:
    """Let 4-bit layers keep their weights in the dtype of computation, too, for all products to come.

    The numbers are those that bitsandbytes computes anew for each product, which takes a tenth of a step on
    two CPU cores; the memory that NF4 saves is spent.
    """
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit
    from torch.nn.functional import linear

    def forward(module: Any) -> "Callable[[torch.Tensor], torch.Tensor]":
        bias = None if module.bias is None else module.bias.to(dtype)
        return lambda x: linear(x.to(dtype), module.dequantized, bias).to(x.dtype)

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.dequantized = dequantize_4bit(module.weight.data, module.weight.quant_state).to(dtype)
            module.forward = forward(module)


def leave_padding_unmasked(model: "torch.nn.Module") -> None:
    """Train without a mask of padding: rows are padded on the right, where no token of a causal model looks.

    Attention then knows that it is causal and leaves out the half that lies ahead: a tenth of a step on CPUs.
    Generation keeps its mask: there padding is on the left, and no labels are given.
    """

    def unmasked(module: "torch.nn.Module", given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        return given, named | {"attention_mask": None} if "labels" in named else named

    model.register_forward_pre_hook(unmasked, with_kwargs=True)


def trainer(
    chosen: TrainParams,
    base: Path,
    tokens: Any,
    train: list[Example],
    valid: list[Example],
    folder: Path,
    uri: str,
    callbacks: "list[TrainerCallback]",
) -> "SFTTrainer":
    """TRL's trainer, ready to go; checkpoints go to `folder`, `uri` says where the base came from.

    Raises PipelineError when truncation leaves examples without any label, which TRL would drop silently.
    """
    from transformers import PrinterCallback, ProgressCallback
    from trl import SFTTrainer

    check_kernels(chosen)
    if isinstance(chosen.adapter, VirtualParams) and launching.sharding() in ("fsdp", "zero3"):
        raise PipelineError(
            f"train.adapter.method: {chosen.adapter.method} with {chosen.launcher}; expected single or ddp: "
            "a part of its vectors cannot be saved (params.yaml)"
        )
    models.choose_kernels()
    models.keep_memory()
    score_answers_only()
    made = SFTTrainer(
        str(base),
        args=arguments(chosen, folder, bool(valid)),
        train_dataset=dataset(train),
        eval_dataset={kind: dataset(rows) for kind, rows in by_kind(valid).items()} if valid else None,
        processing_class=tokens,
        quantization_config=quantization(chosen),
        peft_config=adapter(chosen, revision(uri)),
    )
    made.remove_callback(PrinterCallback)  # our own bar instead of a line a step
    made.remove_callback(ProgressCallback)
    for one in callbacks:
        made.add_callback(one)
    left = len(made.train_dataset)
    if left < len(train) and not chosen.packing:
        raise PipelineError(
            f"train.max_length: {len(train) - left} of {len(train)} examples lose their whole answer; "
            "expected a limit beyond every prompt (params.yaml)"
        )
    keep_full_precision(made.model)
    keep_gradients(made.model)
    if not masked(chosen, models.device()):
        leave_padding_unmasked(made.model)
    if dequantized(chosen, models.device()) and launching.sharding() not in ("fsdp", "zero3"):
        dequantize(made.model, dtype(chosen))
    if chosen.adapter.method in ("lora", "rslora") and launching.sharding() != "zero3":
        fused_lora.fuse(made.model)  # it reads weights that ZeRO-3 brings together in their own layer alone
    launching.shard_precisely(made, dtype(chosen))
    return made


def save(model: Any, folder: Path) -> None:
    """Write what was trained; several processes gather it, all of them, and the first one writes."""
    gathered = launching.whole(model)
    if launching.leads():
        model.save_pretrained(folder, **({} if gathered is None else {"state_dict": gathered}))
