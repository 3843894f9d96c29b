"""The loss over the vocabulary on a CPU: scores, entropy and the gradient of the states in one pass.

TRL computes scores twice, forward and backward, and holds a float32 copy of them several times over; where
Triton is, its kernels make this cheap. Here some rows at a time are scored, measured and turned into their
gradient while they are in the cache, so that two matrix products remain and nothing grows with the number
of labels. It stands in for TRL's operation, with its arguments and results.
"""

from functools import cache
from typing import Any

ROWS = 64  # positions at a time: 12 MiB of float32 scores with a vocabulary of 49,152
COMPUTED = {"log_probs", "entropy", "is_top1"}  # of what TRL can ask for


@cache
def operation() -> Any:
    """The operation, for scores without bias, temperature, scale or cap and a head that is not trained."""
    import torch

    class LogProb(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> Any:
            ctx.set_materialize_grads(False)
            learns = ctx.needs_input_grad[0]
            states = hidden.to(weight.dtype)
            count = len(states)
            log_probs, entropy = hidden.new_empty(2, count, dtype=torch.float32)
            top = torch.empty(count, dtype=torch.bool)
            slope = torch.empty_like(states) if learns else None
            for start in range(0, count, ROWS):
                part = slice(start, start + ROWS)
                target = targets[part, None]
                scores = (states[part] @ weight.t()).float()
                largest, found = scores.max(1, keepdim=True)
                top[part] = (found == target)[:, 0]
                scores -= largest
                wanted = scores.gather(1, target)[:, 0]
                shares = scores.exp()
                total = shares.sum(1)
                log_total = total.log()
                log_probs[part] = wanted - log_total
                entropy[part] = log_total - scores.mul_(shares).sum(1) / total
                if slope is not None:
                    shares /= -total[:, None]
                    shares.scatter_add_(1, target, torch.ones_like(target, dtype=torch.float32))
                    slope[part] = shares.to(weight.dtype) @ weight
            ctx.save_for_backward(slope)
            ctx.dtype = hidden.dtype
            ctx.mark_non_differentiable(entropy, top)
            return log_probs, entropy, top

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor | None, *_: Any) -> Any:
            (slope,) = ctx.saved_tensors
            return (None if grad is None else (slope * grad[:, None]).to(ctx.dtype)), None, None

    return LogProb


def standing_in(theirs: Any) -> Any:
    """TRL's operation, ours where it applies: on a CPU, with a frozen head."""
    import torch

    class Chosen:
        @staticmethod
        def apply(
            hidden: torch.Tensor,
            weight: torch.Tensor,
            bias: torch.Tensor | None,
            targets: torch.Tensor,
            temperature: float,
            chunk: int,
            cap: float | None,
            scale: float,
            outputs: tuple[str, ...],
        ) -> Any:
            plain = bias is None and temperature == scale == 1 and not cap and set(outputs) <= COMPUTED
            if hidden.device.type != "cpu" or weight.requires_grad or not plain:
                return theirs.apply(hidden, weight, bias, targets, temperature, chunk, cap, scale, outputs)
            log_probs, entropy, top = operation().apply(hidden, weight, targets)
            return log_probs, entropy, None, None, top

    return Chosen
