"""Models on disk: what a usable folder holds, and how one is loaded for inference."""

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.common.errors import PipelineError

if TYPE_CHECKING:
    import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's numbers of these options (malloc.h)


def require(folder: Path) -> None:
    """Raise PipelineError unless `folder` holds a configuration, a tokenizer and safetensors weights."""
    for pattern, what in (
        ("config.json", "a configuration"),
        ("tokenizer*.json", "a tokenizer"),
        ("*.safetensors", "weights as safetensors"),
    ):
        if not any(folder.glob(pattern)):
            found = ", ".join(sorted(path.name for path in folder.glob("*"))[:5]) or "nothing"
            raise PipelineError(f"{folder}: no {pattern}; found {found}; expected a model folder with {what}")


def device() -> str:
    """`cuda` where there is one, otherwise `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def compute_dtype() -> "torch.dtype":
    """bfloat16 where the device multiplies it quickly, otherwise float16 on a GPU and float32 on a CPU.

    GPUs do from capability 8.0 on, CPUs with AVX-512. On others PyTorch multiplies bfloat16 number by number:
    with AVX2 on two cores of a Zen 3 it reached 17 GFLOP/s there, and 117 to 142 in float32.
    """
    import torch

    if device() == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16
    return torch.bfloat16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else torch.float32


def choose_kernels() -> None:
    """Leave cuDNN's attention out on a GPU: it plans anew for every shape, and batches here differ in theirs.

    On an H100 the planning took a seventh of a training step of 8 rows at once, and a quarter with 2 at once.
    """
    import torch

    torch.backends.cuda.enable_cudnn_sdp(False)


def keep_memory() -> None:
    """Let the C library use again what it frees, instead of giving it back and asking anew for every tensor.

    The system blanks each page that it hands out: with glibc's own settings this was a seventh of a training
    step of the demo, and blocks of ever other lengths left gaps in which a process grew. Other libraries have
    no such call.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        library.mallopt(M_MMAP_MAX, 0)


def load(folder: Path) -> tuple[Any, Any]:
    """Load model and tokenizer for inference, without any code from the folder.

    Raises PipelineError when the folder is not a model.
    """
    require(folder)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not tokenizer.chat_template:
        raise PipelineError(f"{folder}: the tokenizer has no chat template; expected an instruct model")
    choose_kernels()
    keep_memory()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=compute_dtype(), use_safetensors=True)
    return model.to(device()).eval(), tokenizer
