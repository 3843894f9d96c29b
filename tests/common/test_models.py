"""In which dtype a device computes, by itself and on request; and what becomes of memory."""

import subprocess
import sys
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
    list(zip(DEVICES, ["bfloat16", "bfloat16", "float16", "bfloat16", "float32", "float32"], strict=True)),
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


def test_memory_that_was_freed_is_used_again() -> None:
    """In a process of its own, since the setting stays: page faults of 32 MiB taken for the fifth time."""
    code = """
import resource, sys
from stages.common import models
if sys.argv[1] == "kept":
    models.keep_memory()
for _ in range(5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = bytearray(2**25)
    block[::4096] = b"x" * 2**13
    del block
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = {
        name: int(subprocess.run([sys.executable, "-c", code, name], capture_output=True, check=True).stdout)
        for name in ("kept", "usual")
    }
    assert faults["kept"] < 100 < 4000 < faults["usual"]
