"""LoRA's update in one step: y + s B A dropout(x), without the copies that separate operations make.

PEFT's own forward pass draws a float for every input's dropout, scales the update and adds it in passes of
their own; on two CPU cores these take longer than the matrix products (`python -m bench.train` measures it).
Here the scale goes into the products, the update is added where the base layer wrote its output, and a
dropout decision costs 16 random bits, which then blank the number out: "and" is a tenth of a product with a
boolean. The mathematics, the adapter and its files are PEFT's.
"""

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def drawn(count: int, device: "torch.device") -> "torch.Tensor":
    """As many random int16 numbers, which PyTorch's generator decides.

    On a CPU it only gives the seed: NumPy's SFC64 draws them in half the time, the same on every CPU.
    """
    import numpy as np
    import torch

    words = -(-count // 4)
    if device.type != "cpu":
        return torch.empty(words, dtype=torch.int64, device=device).random_(-(2**63), None).view(torch.int16)
    seed = int(torch.empty((), dtype=torch.int64).random_())
    return torch.from_numpy(np.random.SFC64(seed).random_raw(words).view(np.int16))


def kept(like: "torch.Tensor", dropout: float) -> "torch.Tensor":
    """int16 numbers of the shape of `like`: 0 with the probability `dropout`, else all bits set.

    The probability is kept to within 1/65,536.
    """
    noise = drawn(like.numel(), like.device)[: like.numel()].view_as(like)
    return noise.ge_(round(2**16 * dropout) - 2**15).neg_()


def blanked(values: "torch.Tensor", mask: "torch.Tensor", in_place: bool = False) -> "torch.Tensor":
    """The values where the mask has all bits set, otherwise 0."""
    import torch

    whole = {2: torch.int16, 4: torch.int32}[values.itemsize]
    bits = values.view(whole)
    return torch.bitwise_and(bits, mask.to(whole), out=bits if in_place else None).view(values.dtype)


@cache
def update() -> Any:
    """The operation: `apply(out, x, a, b, scale, dropout)` adds scale B A dropout(x) to `out`, in place.

    `out` (..., outputs) is the base layer's; x (..., inputs), a (rank, inputs), b (outputs, rank). It
    computes in the dtype of `out` and has gradients for `out`, x, a and b.
    """
    import torch

    class Update(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any,
            out: torch.Tensor,
            x: torch.Tensor,
            a: torch.Tensor,
            b: torch.Tensor,
            scale: float,
            dropout: float,
        ) -> torch.Tensor:
            flat = x.reshape(-1, x.shape[-1]).to(out.dtype)
            a, b, scale = a.to(out.dtype), b.to(out.dtype), scale / (1 - dropout)
            mask = kept(flat, dropout) if dropout else None
            inner = (flat if mask is None else blanked(flat, mask)) @ a.t()
            out.view(-1, out.shape[-1]).addmm_(inner, b.t(), alpha=scale)
            ctx.mark_dirty(out)
            ctx.save_for_backward(flat, mask, inner, a, b)
            ctx.scale, ctx.shape, ctx.dtype = scale, x.shape, x.dtype
            return out

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> Any:
            flat, mask, inner, a, b = ctx.saved_tensors
            outer = grad.reshape(-1, grad.shape[-1])
            above = (outer @ b).mul_(ctx.scale)
            grad_b = (outer.t() @ inner).float().mul_(ctx.scale)
            grad_a = (above.t() @ (flat if mask is None else blanked(flat, mask))).float()
            grad_x = None
            if ctx.needs_input_grad[1]:
                grad_x = above @ a
                grad_x = grad_x if mask is None else blanked(grad_x, mask, in_place=True)
                grad_x = grad_x.view(ctx.shape).to(ctx.dtype)
            return grad, grad_x, grad_a, grad_b, None, None

    return Update


def fuse(model: "torch.nn.Module") -> int:
    """Let every plain LoRA layer of a PEFT model work in one step; returns how many there are."""
    from peft.tuners.lora import LoraLayer

    found = [module for module in model.modules() if isinstance(module, LoraLayer) and plain(module)]
    for module in found:
        module.forward = forward(module)
    return len(found)


def plain(module: Any) -> bool:
    """Whether a layer is a linear one with one LoRA of the usual kind; rank-stabilised ones are."""
    return (
        list(module.lora_A) == list(module.lora_B) == ["default"]
        and not module.lora_variant
        and not module.lora_bias["default"]
    )


def forward(module: Any) -> "Callable[[torch.Tensor], torch.Tensor]":
    """The layer's new forward pass."""
    base, a, b = module.base_layer, module.lora_A["default"], module.lora_B["default"]
    scale, dropout = module.scaling["default"], getattr(module.lora_dropout["default"], "p", 0.0)
    apply = update().apply

    def fused(x: "torch.Tensor") -> "torch.Tensor":
        out = base(x)
        out = out.clone() if out._is_view() else out  # autograd refuses to write into some of these
        p = dropout if module.training else 0.0
        result: torch.Tensor = apply(out, x, a.weight, b.weight, scale, p)
        return result

    return fused
