"""In which dtype a device computes, by itself and on request."""

from typing import Any

import pytest
from conftest import chosen

from stages.common import finetuning, models
from stages.common.errors import PipelineError
from stages.common.finetuning import TrainParams
from stages.common.params import validate

DEVICES = {  # a GPU by its capability, a CPU by what PyTorch found in it
    "H100": ((9, 0), "AVX512"),
    "A100": ((8, 0), "AVX2"),
    "T4": ((7, 5), "AVX512"),
    "AVX-512": (None, "AVX512"),
    "AVX2": (None, "AVX2"),
    "neither": (None, "DEFAULT"),
}


def settings(dtype: str) -> TrainParams:
    return validate({**chosen("train"), "dtype": dtype}, "train", TrainParams)


def on(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let PyTorch find this device."""
    import torch

    gpu, cpu = DEVICES[name]
    found: dict[Any, dict[str, object]] = {
        torch.cuda: {"is_available": gpu is not None, "get_device_capability": gpu},
        torch.backends.cpu: {"get_cpu_capability": cpu},
    }
    for module, answers in found.items():
        for asked, answer in answers.items():
            monkeypatch.setattr(module, asked, lambda answer=answer: answer)


@pytest.mark.parametrize(
    ("device", "dtype"),
    zip(DEVICES, ["bfloat16", "bfloat16", "float16", "bfloat16", "float32", "float32"], strict=True),
)
def test_a_device_computes_in_the_dtype_that_it_is_quick_in(
    device: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    on(device, monkeypatch)
    assert models.compute_dtype() == finetuning.dtype(settings("auto")) == getattr(torch, dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_another_dtype_is_taken_where_the_device_can_train_in_it(
    dtype: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    on(device, monkeypatch)
    refused = {("bfloat16", "T4"), *(("float16", name) for name, (gpu, _) in DEVICES.items() if gpu is None)}
    if (dtype, device) in refused:
        with pytest.raises(PipelineError, match=rf"train\.dtype: {dtype}; expected .*float32 or auto"):
            finetuning.dtype(settings(dtype))
    else:
        assert finetuning.dtype(settings(dtype)) == getattr(torch, dtype)
