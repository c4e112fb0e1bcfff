"""The backend that runs networks by PyTorch; imported where one is needed, since PyTorch takes seconds to import."""

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import nn

from foundation_stereo_depth.device import Processes, autocast, check_compiler, pick_device, pick_precision
from foundation_stereo_depth.inference.backends import NetworkOutput
from foundation_stereo_depth.model import fuse_batch_norms, prior_planes_of
from foundation_stereo_depth.options.inference import DeviceName, PrecisionName
from foundation_stereo_depth.stereo.prior import priors_of


class TorchBackend:
    """Runs a network by PyTorch.

    Args:
        network: in evaluation mode.
        device: auto takes cuda, else mps, else cpu.
        precision: auto takes bf16 where the device gains from it.
        compile: compile the network at its first call.
    """

    fixed_size: tuple[int, int] | None = None

    def __init__(self, network: nn.Module, *, device: DeviceName, precision: PrecisionName, compile: bool) -> None:
        self.device = pick_device(device, Processes.single())
        if precision == "auto" and getattr(network, "wants_float32", False):
            precision = "fp32"
        self._precision = pick_precision(precision, self.device)
        self._network = fuse_batch_norms(network).to(self.device)
        for part in self._network.modules():
            if isinstance(part, nn.Conv2d):
                part.to(self._precision)  # once, where autocast would do it at every call
        self._network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self._prior_planes = prior_planes_of(network)
        if compile:
            check_compiler(self.device)
            self._network.compile()
        self.description = f"torch, {str(self._precision).removeprefix('torch.')} on {self.device.type}"

    @torch.inference_mode()
    def __call__(
        self, pairs: UInt8[np.ndarray, "B 2 H W 3"], prior: Float32[np.ndarray, "B planes H W"] | None = None
    ) -> NetworkOutput:
        """Return the prediction for left and right RGB bytes, by their prior; None computes what the network takes."""
        # Bytes are copied to the device, and reordered there before they become floats, four times as large.
        pair = torch.from_numpy(pairs).to(self.device).permute(0, 1, 4, 2, 3).flatten(1, 2).to(torch.float32) / 255
        inputs = (pair,)
        if self._prior_planes:
            prior = priors_of(pairs, self._prior_planes) if prior is None else prior
            inputs = (pair, torch.from_numpy(prior).to(self.device))
        with autocast(self.device, self._precision):
            prediction = self._network(*inputs)
        disparity_px, log_variance = (
            values[:, 0].float().cpu().numpy() for values in (prediction.disparity_px, prediction.log_variance)
        )
        return disparity_px, log_variance
