"""Muon for the kernels of the hidden convolutions, AdamW for all other weights.

On synthetic scenes the U-Net has after 2,400 samples two thirds of the error that AdamW alone leaves
(docs/experiments/accuracy.md).
"""

from typing import Any

import torch
from torch import Tensor, nn

from foundation_stereo_depth.options.training import OptimizerOptions

_MOMENTUM = 0.95
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of a polynomial that brings every singular value between 0 and 1 near 1 within five iterations (Jordan et al.)."""
_ITERATIONS = 5
_ADAMW_RMS = 0.2
"""Root mean square of AdamW's changes, over its learning rate (Liu et al.)."""


def create_optimizers(network: nn.Module, options: OptimizerOptions) -> tuple[torch.optim.Optimizer, ...]:
    """Return the optimizers that together change every weight of the network once per step, at a rate of 0 so far.

    A network's last layers, whose modules are named head, are AdamW's: Muon is for hidden layers.
    """
    weights = dict(network.named_parameters())
    hidden = [name for name, weight in weights.items() if weight.ndim == 4 and "head" not in name]
    if options.optimizer == "adamw" or not hidden:
        return (torch.optim.AdamW(network.parameters(), lr=0.0, weight_decay=options.weight_decay),)
    others = [weight for name, weight in weights.items() if name not in hidden]
    return (
        torch.optim.AdamW(others, lr=0.0, weight_decay=options.weight_decay),
        Muon([weights[name] for name in hidden], weight_decay=options.weight_decay),
    )


class Muon(torch.optim.Optimizer):
    """Momentum whose direction is orthogonalised: all singular values of a change are about the same.

    Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024
    (https://kellerjordan.github.io/posts/muon/); the scale of the changes after Liu et al., "Muon is scalable for LLM
    training", arXiv:2502.16982, so that one learning rate serves Muon and AdamW. `torch.optim.Muon` is for matrices
    alone, and computes in bfloat16, which many CPUs only emulate; this one computes in float32.

    Args:
        kernels: weights with outputs along the first axis; all others are taken together.
        weight_decay: decoupled, as AdamW's.
    """

    def __init__(self, kernels: list[nn.Parameter], *, weight_decay: float) -> None:
        super().__init__(kernels, {"lr": 0.0, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Change the kernels by one step."""
        assert closure is None
        for group in self.param_groups:
            for kernel in group["params"]:
                if kernel.grad is None:
                    continue
                state = self.state[kernel]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(kernel)
                state["momentum"].lerp_(kernel.grad, 1 - _MOMENTUM)
                change = orthogonalised(kernel.grad.lerp(state["momentum"], _MOMENTUM).flatten(1)).view(kernel.shape)
                scale = _ADAMW_RMS * max(change.shape[0], change[0].numel()) ** 0.5
                kernel.mul_(1 - group["lr"] * group["weight_decay"]).add_(change, alpha=-group["lr"] * scale)


def orthogonalised(matrix: Tensor) -> Tensor:
    """Return U V^T of a matrix U S V^T, roughly: singular values come to lie between about 0.7 and 1.2.

    By Newton-Schulz iterations. They multiply the matrix from the left by polynomials in its own Gram matrix, so all
    but the last product are of the smaller side squared.
    """
    wide = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    wide = wide / wide.norm().clamp(min=1e-7)
    gram = wide @ wide.T
    first, third, fifth = _COEFFICIENTS
    product = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    for _ in range(_ITERATIONS):
        factor = torch.addmm(gram, gram, gram, beta=third, alpha=fifth)
        factor.diagonal().add_(first)
        product = factor @ product
        gram = factor @ gram @ factor
    wide = product @ wide
    return wide if len(matrix) <= matrix.shape[1] else wide.T
