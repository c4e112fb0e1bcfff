"""Endless synthetic scenes in batches, rendered by compiled loops in threads beside the training step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from foundation_stereo_depth.data.batch import Positions, StereoBatch
from foundation_stereo_depth.data.prefetch import available_cores, prefetch
from foundation_stereo_depth.data.synthetic.scenes import announce_compilation, render_scenes


@dataclass(frozen=True, kw_only=True)
class SceneSource:
    """The scenes of `torch_scenes.ProceduralSource`, in an eighth of its time on a CPU.

    Attributes:
        length: scenes per epoch.
        seed: of all of them.
        height, width: px.
    """

    length: int
    seed: int
    height: int
    width: int

    def __len__(self) -> int:
        return self.length

    def name(self, index: int) -> str:
        """Return what messages call the scene."""
        return f"synthetic scene {index} of seed {self.seed}"

    def batches(self, plan: Sequence[Positions], epoch: int) -> Iterator[StereoBatch]:
        """Yield one batch per entry of `plan`; the first call on a machine compiles the renderer."""
        announce_compilation()

        def render(positions: Positions) -> StereoBatch:
            left, right, disparity_px = render_scenes(self.seed, positions, self.height, self.width, epoch=epoch)
            return StereoBatch(
                left=_channels_first(left),
                right=_channels_first(right),
                disparity_px=torch.from_numpy(disparity_px)[:, None],
                indices=torch.as_tensor(positions),
            )

        # The loops hold no lock of Python's; a thread per core renders a batch each.
        return prefetch(plan, render, workers=available_cores())


def _channels_first(views: UInt8[np.ndarray, "B H W 3"]) -> UInt8[Tensor, "B 3 H W"]:
    return torch.from_numpy(np.ascontiguousarray(views.transpose(0, 3, 1, 2)))
