"""The networks, by the name that `--model` takes, and what they take as input."""

from torch import nn

from foundation_stereo_depth.model.batch_norm import fuse_batch_norms
from foundation_stereo_depth.model.guided import GuidedNetwork
from foundation_stereo_depth.model.prediction import StereoNetwork, StereoPrediction
from foundation_stereo_depth.model.prior import network_inputs, priors_of, wants_prior
from foundation_stereo_depth.model.unet import UNet
from foundation_stereo_depth.options.training import ModelOptions

__all__ = [
    "GuidedNetwork",
    "StereoNetwork",
    "StereoPrediction",
    "UNet",
    "create_network",
    "fuse_batch_norms",
    "network_inputs",
    "priors_of",
    "wants_prior",
]


def create_network(options: ModelOptions) -> nn.Module:
    """A network with fresh weights, drawn from torch's global generator; it follows `StereoNetwork`."""
    if options.model == "guided":
        return GuidedNetwork(base_channels=options.base_channels)
    return UNet(base_channels=options.base_channels, depth=options.depth)
