"""Predictor: pictures of any size in, disparity and its doubt at the same size out.

predictor = Predictor.from_checkpoint(Path("best.pt"))
prediction = predictor(left, right)       # uint8 RGB [H, W, 3]
prediction.disparity_px                   # float32 [H, W]
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from foundation_stereo_depth.checkpoint import NetworkFacts
from foundation_stereo_depth.data.sample import resize_image
from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.inference.backends import Backend, BackendName, DeviceName, PrecisionName, open_backend
from foundation_stereo_depth.stereo.disparity import resize_disparity
from foundation_stereo_depth.uncertainty import probability_within

CONFIDENT_WITHIN_PX = 1.0
"""Confidence is the chance that the disparity is off by less than this, in pixels of the map it belongs to."""

RIG_SIGMA_PX = 0.15
"""Standard deviation, px of the network's size, that no network trained on perfect pairs can know of: real eyes are
never rectified, focused and measured that well. Without it 40 % of real errors, rather than 68 %, lie where the surest
eighth of the installed network's pixels say that 68 % do (docs/experiments.md)."""

_SMALLEST_PX = 32  # what every network takes


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Disparity of the left picture and its standard deviation, px of that picture, at its size.

    Attributes:
        distribution: of the error: "laplace" or "gaussian".
    """

    disparity_px: Float32[np.ndarray, "H W"]
    sigma_px: Float32[np.ndarray, "H W"]
    distribution: str

    @property
    def confidence(self) -> Float32[np.ndarray, "H W"]:
        """P(|error| < 1 px), 0 to 1."""
        return self.probability_within(CONFIDENT_WITHIN_PX)

    def probability_within(self, threshold_px: float) -> Float32[np.ndarray, "H W"]:
        """P(|error| < threshold), 0 to 1."""
        return probability_within(threshold_px, torch.from_numpy(self.sigma_px), self.distribution).numpy()


class Predictor:
    """A network with everything around it that makes any two pictures its input, and its answer theirs.

    The pictures are stretched to the network's size, as they were in training: rows stay on rows. Disparity follows
    the width alone, and so does its standard deviation.

    Args:
        backend: runs the network.
        facts: what the network's file says.
        height, width: the size at which the network works, px; None takes the size that it was trained at.

    Raises:
        UserError: the network does not work at that size.
    """

    def __init__(
        self, backend: Backend, facts: NetworkFacts, *, height: int | None = None, width: int | None = None
    ) -> None:
        self._backend = backend
        self.facts = facts
        default = backend.fixed_size or (facts.height, facts.width)
        self.height, self.width = height or default[0], width or default[1]
        size = (self.height, self.width)
        if backend.fixed_size is not None and size != backend.fixed_size:
            raise UserError(
                f"--width {self.width} --height {self.height}: this network was exported for {default[1]}x{default[0]} "
                "alone; export it with --dynamic-size"
            )
        if min(size) < _SMALLEST_PX:
            raise UserError(f"--width {self.width} --height {self.height}: both have to be at least {_SMALLEST_PX} px")

    @classmethod
    def from_checkpoint(
        cls,
        path: Path | str,
        *,
        device: DeviceName = "auto",
        precision: PrecisionName = "auto",
        backend: BackendName = "auto",
        compile: bool = False,
        height: int | None = None,
        width: int | None = None,
    ) -> "Predictor":
        """The predictor of a `.pt`, `.safetensors` or `.onnx` file.

        Args:
            path: the file.
            device: auto takes the fastest there is.
            precision: auto takes bf16 where the device gains from it.
            backend: auto takes torch for weights; for an .onnx OpenVINO on Intel CPUs, else onnxruntime.
            compile: compile the network by torch at its first call; every new batch size or picture size costs again.
            height: at which the network works, px; None takes the one that it was trained at.
            width: the same.

        Raises:
            CheckpointError: the file cannot be used.
            UserError: the backend, the device, the precision or the size is not to be had.
        """
        try:
            runner, facts = open_backend(
                Path(path), backend=backend, device=device, precision=precision, compile=compile
            )
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            raise UserError(f"{path}: out of memory; another program may hold what the device has") from error
        return cls(runner, facts, height=height, width=width)

    @property
    def description(self) -> str:
        """What runs where and at which size, for people."""
        return f"{self.facts.model.model} at {self.width}x{self.height}, {self._backend.description}"

    def __call__(self, left: UInt8[np.ndarray, "H W 3"], right: UInt8[np.ndarray, "H W 3"]) -> Prediction:
        """The prediction for one rectified pair, RGB.

        Raises:
            UserError: the two differ in size, or memory does not suffice.
        """
        return self.batch([(left, right)])[0]

    def batch(self, pairs: Sequence[tuple[UInt8[np.ndarray, "_ _ 3"], UInt8[np.ndarray, "_ _ 3"]]]) -> list[Prediction]:
        """The predictions for several pairs, each of any size, in one go.

        Raises:
            UserError: the eyes of a pair differ in size, or memory does not suffice.
        """
        inputs = np.empty((len(pairs), 2, self.height, self.width, 3), np.uint8)
        for row, (left, right) in zip(inputs, pairs, strict=True):
            if left.shape != right.shape:
                raise UserError(
                    f"the left picture is {left.shape[1]}x{left.shape[0]}, the right one {right.shape[1]}x"
                    f"{right.shape[0]}; a rectified pair has one size"
                )
            for view, picture in zip(row, (left, right), strict=True):
                view[:] = resize_image(picture, self.height, self.width)
        try:
            raw = self._backend(inputs)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            raise UserError(
                f"out of memory with {len(pairs)} pairs at {self.width}x{self.height} ({self._backend.description}); "
                "try a lower --batch-size, or a smaller --width and --height"
            ) from error
        return [
            self._at_size(disparity_px, log_variance, *left.shape[:2])
            for disparity_px, log_variance, (left, _) in zip(raw.disparity_px, raw.log_variance, pairs, strict=True)
        ]

    def _at_size(
        self,
        disparity_px: Float32[np.ndarray, "h w"],
        log_variance: Float32[np.ndarray, "h w"],
        height: int,
        width: int,
    ) -> Prediction:
        # Nearest samples: measured on seven Middlebury maps shrunk to 320x240, they bring back EPE 0.24 px and bad-1
        # 3.4 %, linear interpolation 0.27 px and 5.1 %, since it puts surfaces between foreground and background.
        own_variance = np.exp(log_variance) * np.float32(self.facts.sigma_scale**2)
        return Prediction(
            disparity_px=resize_disparity(disparity_px, height, width),
            sigma_px=resize_disparity(np.sqrt(own_variance + np.float32(RIG_SIGMA_PX**2)), height, width),
            distribution=self.facts.distribution,
        )


def _is_out_of_memory(error: RuntimeError) -> bool:
    """True for a GPU's or a CPU's lack of memory; the CPU's has no type of its own."""
    words = ("out of memory", "can't allocate memory", "not enough memory", "Failed to allocate memory", "bad_alloc")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)
