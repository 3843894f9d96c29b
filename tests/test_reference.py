"""Recipe `v3` at full scale is the reference's appendix A, value by value, as the libraries are handed it.

Left out on purpose are its uploads to the Hub during training, which `publish` does, and one line in its log
for 25 steps: every step is logged here.
"""

from pathlib import Path
from typing import Any

import pytest
import transformers.training_args
from conftest import composed
from ruamel.yaml import YAML

from stages.common import finetuning, models
from stages.common.finetuning import TrainParams
from stages.common.params import validate

ROWS, STEPS = 25_162, 3_146  # as published

QUANTIZATION = {
    "load_in_4bit": True,
    "load_in_8bit": False,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
}
LORA = {
    "r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "bias": "none",
    "task_type": "CAUSAL_LM",
    "use_dora": False,
    "use_rslora": False,
    "modules_to_save": None,
}
TARGETS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
TRAINING = {
    "num_train_epochs": 1,
    "max_steps": -1,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "learning_rate": 2e-4,
    "weight_decay": 0.01,
    "warmup_steps": 0.03,  # below 1 a share; what was called warmup_ratio
    "lr_scheduler_type": "cosine",
    "activation_checkpointing": True,  # what was called gradient_checkpointing
    "bf16": True,
    "fp16": False,
    "save_strategy": "steps",
    "save_steps": 300,
    "optim": "paged_adamw_8bit",
    "max_grad_norm": 0.3,
    "max_length": 1024,  # what was called max_seq_length
    # The reference's one text of question and answer: all of it is learned, and no two share a row.
    "completion_only_loss": False,
    "assistant_only_loss": False,
    "packing": False,
    # Nothing that it does not name.
    "neftune_noise_alpha": None,
    "label_smoothing_factor": 0.0,
    "train_sampling_strategy": "random",
    "push_to_hub": False,
}


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> TrainParams:
    """The parameters of training, on a machine that looks as if it had a GPU with bfloat16."""
    import torch

    monkeypatch.setattr(models, "device", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    monkeypatch.setattr(transformers.training_args, "is_torch_bf16_gpu_available", lambda: True)
    return validate(YAML(typ="safe").load(composed("v3", "full"))["train"], "train", TrainParams)


def found(config: Any, wanted: dict[str, Any]) -> dict[str, Any]:
    return {name: getattr(config, name) for name in wanted}


def test_the_quantisation(reference: TrainParams) -> None:
    import torch

    config = finetuning.quantization(reference)
    assert found(config, QUANTIZATION) == QUANTIZATION
    assert config is not None and config.bnb_4bit_compute_dtype == torch.bfloat16


def test_the_adapter(reference: TrainParams) -> None:
    config = finetuning.adapter(reference, None)
    assert found(config, LORA) == LORA
    assert config is not None and set(config.target_modules) == TARGETS


def test_the_training(reference: TrainParams, tmp_path: Path) -> None:
    assert found(finetuning.arguments(reference, tmp_path, False), TRAINING) == TRAINING
    assert reference.keep == 3  # save_total_limit, which we hold to ourselves
    assert (reference.seed, reference.template) == (42, "alpaca")


def test_its_rows_take_the_steps_that_were_published(reference: TrainParams, tmp_path: Path) -> None:
    """By the trainer's own arithmetic, the warm-up included: "Steps 0-94" of its section 11."""
    import torch

    arguments = finetuning.arguments(reference, tmp_path, False)
    rows = torch.utils.data.TensorDataset(torch.zeros(ROWS))
    trainer = transformers.Trainer(torch.nn.Linear(1, 1), arguments, train_dataset=rows)
    epochs, a_epoch, examples, _, batch, _, steps = trainer.set_initial_training_values(
        arguments, trainer.get_train_dataloader()
    )
    assert (epochs, a_epoch, examples, batch, steps) == (1, STEPS, ROWS, 8, STEPS)
    assert arguments.get_warmup_steps(steps) == 95  # steps 0 to 94
