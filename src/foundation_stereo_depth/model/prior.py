"""What a network is called with: the pair, and for some networks a prior by a classical matcher."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from foundation_stereo_depth.stereo.sgbm import PRIOR_PLANES, TWO_PRIOR_PLANES, prior_planes, two_prior_planes

_THREADS = 16
PRIORS = {PRIOR_PLANES: prior_planes, TWO_PRIOR_PLANES: two_prior_planes}
"""The functions that compute priors, by their number of planes."""


def network_inputs(network: nn.Module, pair: Float[Tensor, "B 6 H W"]) -> tuple[Tensor, ...]:
    """Return the inputs of the network: the pair, and the prior that it takes, if any."""
    planes = prior_planes_of(network)
    if not planes:
        return (pair,)
    views = pair.detach().mul(255).round_().to(torch.uint8).unflatten(1, (2, 3)).permute(0, 1, 3, 4, 2)
    return pair, torch.from_numpy(priors_of(views.cpu().contiguous().numpy(), planes)).to(pair.device)


def wants_prior(network: nn.Module) -> bool:
    """Return True for a network that takes a prior as its second input."""
    return prior_planes_of(network) > 0


def prior_planes_of(network: nn.Module) -> int:
    """Return the number of planes of the network's prior, a key of `PRIORS`; 0 for a network that takes none."""
    return getattr(network, "prior_planes", 0)


def priors_of(pairs: UInt8[np.ndarray, "B 2 H W 3"], planes: int = PRIOR_PLANES) -> Float[np.ndarray, "B planes H W"]:
    """Return the prior of so many planes for each pair of RGB views; threads, since OpenCV releases Python's lock."""
    prior = PRIORS[planes]
    if len(pairs) == 1:
        return prior(*pairs[0])[None]
    with ThreadPoolExecutor(min(len(pairs), _THREADS)) as pool:
        return np.stack(list(pool.map(prior, pairs[:, 0], pairs[:, 1])))
