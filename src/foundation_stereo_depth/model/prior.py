"""What a network is called with: the pair, and for some networks what a classical matcher says of it."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from foundation_stereo_depth.stereo.sgbm import prior_planes

_THREADS = 16


def network_inputs(network: nn.Module, pair: Float[Tensor, "B 6 H W"]) -> tuple[Tensor, ...]:
    """What to call the network with: the pair, and for one that wants it the classical matcher's answer to the pair."""
    if not wants_prior(network):
        return (pair,)
    views = pair.detach().mul(255).round_().to(torch.uint8).unflatten(1, (2, 3)).permute(0, 1, 3, 4, 2)
    return pair, torch.from_numpy(priors_of(views.cpu().contiguous().numpy())).to(pair.device)


def wants_prior(network: nn.Module) -> bool:
    """True for a network that takes `block_matching.prior_planes` as its second input."""
    return getattr(network, "wants_prior", False)


def priors_of(pairs: UInt8[np.ndarray, "B 2 H W 3"]) -> Float[np.ndarray, "B 10 H W"]:
    """`block_matching.prior_planes` of each pair of RGB views; OpenCV releases Python's lock, so threads share them."""
    if len(pairs) == 1:
        return prior_planes(*pairs[0])[None]
    with ThreadPoolExecutor(min(len(pairs), _THREADS)) as pool:
        return np.stack(list(pool.map(prior_planes, pairs[:, 0], pairs[:, 1])))
