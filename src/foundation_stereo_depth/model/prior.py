"""What a network is called with: the pair, and for some networks a prior by a classical matcher."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from foundation_stereo_depth.stereo.prior import priors_of


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
    """Return the number of planes of the network's prior, a key of `stereo.prior.PRIORS`; 0 where it takes none."""
    return getattr(network, "prior_planes", 0)
