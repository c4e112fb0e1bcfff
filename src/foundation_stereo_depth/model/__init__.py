"""The networks, by the name that `--model` takes."""

from torch import nn

from foundation_stereo_depth.model.prediction import StereoNetwork, StereoPrediction
from foundation_stereo_depth.model.unet import UNet
from foundation_stereo_depth.options import ModelOptions

__all__ = ["StereoNetwork", "StereoPrediction", "UNet", "create_network"]

_NETWORKS = {"unet": UNet}


def create_network(options: ModelOptions) -> nn.Module:
    """A network with fresh weights, drawn from torch's global generator; it follows `StereoNetwork`."""
    return _NETWORKS[options.model](base_channels=options.base_channels, depth=options.depth)
