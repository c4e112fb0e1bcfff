"""The networks, by the name that `--model` takes, and what they take as input."""

from torch import nn

from foundation_stereo_depth.model.batch_norm import fuse_batch_norms
from foundation_stereo_depth.model.fused import FusedNetwork, fused_from_guided
from foundation_stereo_depth.model.guided import GuidedNetwork
from foundation_stereo_depth.model.predecessor import PredecessorUNet
from foundation_stereo_depth.model.prediction import StereoNetwork, StereoPrediction
from foundation_stereo_depth.model.prior import network_inputs, prior_planes_of, wants_prior
from foundation_stereo_depth.model.unet import UNet
from foundation_stereo_depth.options.training import ModelOptions
from foundation_stereo_depth.stereo.prior import PRIORS, priors_of

__all__ = [
    "PRIORS",
    "FusedNetwork",
    "GuidedNetwork",
    "PredecessorUNet",
    "StereoNetwork",
    "StereoPrediction",
    "UNet",
    "create_network",
    "fewest_parameters",
    "fuse_batch_norms",
    "fused_from_guided",
    "network_inputs",
    "prior_planes_of",
    "priors_of",
    "wants_prior",
]


def create_network(options: ModelOptions, *, predicts_uncertainty: bool = True) -> nn.Module:
    """Return a network with initial weights, drawn from torch's global generator; it follows `StereoNetwork`.

    Args:
        options: which one.
        predicts_uncertainty: False for the older networks of the predecessor, whose log-variance is NaN.
    """
    for refinement in (GuidedNetwork, FusedNetwork):
        if options.model == refinement.name:
            return refinement(base_channels=options.base_channels)
    if options.model == "predecessor":
        return PredecessorUNet(base_channels=options.base_channels, predicts_uncertainty=predicts_uncertainty)
    return UNet(base_channels=options.base_channels, depth=options.depth)


def fewest_parameters(options: ModelOptions) -> int:
    """Return a number of parameters that the network of these options has at least; it has at most 30 times as many."""
    if options.model == "unet":
        return 9 * (options.base_channels * (options.depth + 1)) ** 2  # one convolution of its deepest level
    if options.model == "predecessor":
        return 9 * (16 * options.base_channels) ** 2
    return 100 * options.base_channels**2
