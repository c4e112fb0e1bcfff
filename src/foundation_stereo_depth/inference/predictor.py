"""Open a network and predict with it: images of any size in, disparity and its uncertainty at that size out."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from foundation_stereo_depth.data.sample import resize_image
from foundation_stereo_depth.data.views import ChannelOrder, View, as_rgb
from foundation_stereo_depth.errors import CheckpointError, UserError
from foundation_stereo_depth.inference.backends import OUT_OF_MEMORY, Backend, open_backend
from foundation_stereo_depth.inference.coarse_to_fine import COARSE_TO_FINE_MODEL, predict_coarse_to_fine
from foundation_stereo_depth.log import count_of
from foundation_stereo_depth.network_facts import DEFAULT_WEIGHTS, NetworkFacts
from foundation_stereo_depth.options.fields import expand_home
from foundation_stereo_depth.options.inference import (
    BackendName,
    DeviceName,
    InferenceOptions,
    NetworkSourceOptions,
    PrecisionName,
)
from foundation_stereo_depth.outputs import PairMatch
from foundation_stereo_depth.stereo.confidence import probability_within, sigma_with_rig
from foundation_stereo_depth.stereo.disparity import nearest_samples, resize_disparity
from foundation_stereo_depth.stereo.match import CONFIDENT_WITHIN_PX, StereoMatch

_SMALLEST_PX = 32  # what every network takes
_ENLARGED_UP_TO_PX = 400
"""Width of the network's size. Images of 640 px gain nothing when they are enlarged (docs/experiments/accuracy.md)."""
_NO_LARGER = 1.25
"""Times the network's width. A small size for larger images is named for its speed, so they are not enlarged."""
_SUFFIXES = (".pt", ".safetensors", ".onnx")


def open_network(
    source: NetworkSourceOptions | Path | str | None = None,
    inference: InferenceOptions = InferenceOptions(),  # noqa: B008 (it is frozen)
    *,
    height: int | None = None,
    width: int | None = None,
    disparity_scale: float = 1.0,
    few_pairs: bool = False,
    enlarge: bool = True,
) -> "Predictor":
    """Return the predictor of a file, of a run, or of the installed network.

    Args:
        source: options; or a file; or the id of an MLflow run; None for the installed network.
        inference: backend, device and precision.
        height: at which the network works, px; None takes the one that it was trained at.
        width: the same.
        disparity_scale: a factor on the disparity, for weights of unknown scale; options as `source` name their own.
        few_pairs: prefer what starts soon to what runs fast.
        enlarge: see `Predictor`.

    Raises:
        CheckpointError: the file cannot be used.
        UserError: there is no such run, or the backend, device, precision or size is not available.
    """
    with TemporaryDirectory(prefix="foundation-stereo-") as folder:
        path = find_network_file(source, Path(folder))
        try:
            backend, facts = open_backend(path, inference, few_pairs=few_pairs)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            raise UserError(f"{path}: out of memory; another program may be using the device") from error
    if isinstance(source, NetworkSourceOptions):
        disparity_scale = source.disparity_scale
    facts = replace(facts, disparity_scale=facts.disparity_scale * disparity_scale)
    return Predictor(backend, facts, height=height, width=width, enlarge=enlarge)


def find_network_file(source: NetworkSourceOptions | Path | str | None, download_to: Path) -> Path:
    """Return the file of a network, downloading a run's checkpoint if it is not on this machine.

    Args:
        source: as in `open_network`.
        download_to: folder for what has to be downloaded.

    Raises:
        UserError: there is no such run.
    """
    options = source if isinstance(source, NetworkSourceOptions) else _source_options(source)
    if options.run_id is not None:
        # MLflow takes seconds to import, and most networks are files.
        from foundation_stereo_depth.tracking import checkpoint_of_run  # noqa: PLC0415

        name, uri = options.run_file, options.mlflow_tracking_uri
        return checkpoint_of_run(uri, options.run_id, download_to, name=name, flag="--run-id")
    return options.checkpoint if isinstance(options.checkpoint, Path) else DEFAULT_WEIGHTS


def _source_options(source: Path | str | None) -> NetworkSourceOptions:
    if source is None or source == "default":
        return NetworkSourceOptions()
    path = Path(expand_home(str(source)))
    if isinstance(source, Path) or path.suffix in _SUFFIXES or path.exists():
        return NetworkSourceOptions(checkpoint=path)
    return NetworkSourceOptions(run_id=str(source))


class Predictor:
    """A network behind a call that takes two images of any size and returns a match of that size.

    A fused network predicts at half of the size first, and so on (`inference.coarse_to_fine`); the network itself,
    exported or in PyTorch, does not do that. Small images it predicts at twice their size: it works on squares of four
    pixels, which mix what is before and behind an edge.

    Images are stretched to the network's size, as in training: rows stay on rows. Disparity scales with the width
    alone, and so does its standard deviation.

    >>> import numpy as np
    >>> from foundation_stereo_depth import Predictor, StereoCalibration
    >>> left = right = np.zeros((120, 160, 3), np.uint8)  # or paths of images; rectified
    >>> match = Predictor.open()(left, right)  # or open("best.pt"), or open("<id of an MLflow run>")
    >>> rig = StereoCalibration.centred(height=120, width=160, focal_px=140.0, baseline_m=0.06)
    >>> match.depth_m(rig).shape, match.sigma_px.shape, match.confidence.shape
    ((120, 160), (120, 160), (120, 160))
    >>> match.save("depth.png", rig).name  # a figure; .npy and .pfm are metres, .ply a point cloud
    'depth.png'

    Args:
        backend: runs the network.
        facts: what the network's file contains beside its weights.
        height, width: the size at which the network works, px; None takes the size that it was trained at.
        enlarge: where that is up to 400 px wide, predict images up to 1.25 times as wide at twice the size: more
            accurately, in four times the time.

    Raises:
        UserError: the network does not work at that size.
    """

    def __init__(
        self,
        backend: Backend,
        facts: NetworkFacts,
        *,
        height: int | None = None,
        width: int | None = None,
        enlarge: bool = True,
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
        is_coarse_to_fine = facts.model.model == COARSE_TO_FINE_MODEL and backend.fixed_size is None
        self._enlarges = enlarge and is_coarse_to_fine and self.width <= _ENLARGED_UP_TO_PX

    @classmethod
    def open(
        cls,
        source: NetworkSourceOptions | Path | str | None = None,
        *,
        device: DeviceName = "auto",
        precision: PrecisionName = "auto",
        backend: BackendName = "auto",
        compile: bool = False,
        height: int | None = None,
        width: int | None = None,
        disparity_scale: float = 1.0,
        enlarge: bool = True,
    ) -> "Predictor":
        """Return `open_network` of the same arguments, with the inference options as keywords."""
        inference = InferenceOptions(device=device, precision=precision, backend=backend, compile=compile)
        return open_network(
            source, inference, height=height, width=width, disparity_scale=disparity_scale, enlarge=enlarge
        )

    from_checkpoint = open  # noqa: A003 (the method above is meant)
    """The name of `open` in version 0.1."""

    @property
    def description(self) -> str:
        """The network, its size, and what it runs on, for messages."""
        enlarged = ", small images enlarged" if self._enlarges else ""
        return f"{self.facts.model.model} at {self.width}x{self.height}{enlarged}, {self._backend.description}"

    def __call__(self, left: View, right: View, *, order: ChannelOrder = "rgb") -> PairMatch:
        """Return the match of one rectified pair.

        Args:
            left: path of an image, or an array: grey or colour; bytes, 16 bits, or floats from 0 to 1.
            right: the same.
            order: of the channels of arrays; "bgr" for those of `cv2.imread`.

        Raises:
            UserError: a view is no image, the two differ in size, or memory does not suffice.
            DataError: a file cannot be read.
        """
        left_rgb, right_rgb = as_rgb(left, "left", order), as_rgb(right, "right", order)
        return PairMatch.of(self.batch([(left_rgb, right_rgb)])[0], left_rgb)

    def batch(
        self,
        pairs: Sequence[tuple[UInt8[np.ndarray, "_ _ 3"], UInt8[np.ndarray, "_ _ 3"]]],
        *,
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[StereoMatch]:
        """Return the matches of several pairs, each of any size, with one call of the network.

        With two where some of them are enlarged and others are not.

        Args:
            pairs: left and right view, rectified, RGB.
            sizes: height and width of each image, and of its match; None takes those of the pair.

        Raises:
            UserError: the views of a pair differ in size, or memory does not suffice.
        """
        for left, right in pairs:
            if left.shape != right.shape:
                raise UserError(
                    f"the left image is {left.shape[1]}x{left.shape[0]}, the right one {right.shape[1]}x"
                    f"{right.shape[0]}; the views of a rectified pair have one size"
                )
        if not pairs:
            return []
        predictions: dict[int, tuple[Float32[np.ndarray, "h w"], Float32[np.ndarray, "h w"]]] = {}
        sizes = sizes or [left.shape[:2] for left, _ in pairs]
        # Rectified at the network's size, a pair is smaller than its image.
        factors = [self._factor_of(max(size[1], left.shape[1])) for (left, _), size in zip(pairs, sizes, strict=True)]
        for factor in sorted(set(factors)):
            chosen = [i for i in range(len(pairs)) if factors[i] == factor]
            inputs = np.stack([np.stack([self._resized(view, factor) for view in pairs[i]]) for i in chosen])
            predictions |= zip(chosen, zip(*self._predict(inputs), strict=True), strict=True)
        disparities_px, sigmas_px = zip(*(predictions[i] for i in range(len(pairs))), strict=True)
        if not all(np.isfinite(disparity_px).any() for disparity_px in disparities_px):
            raise CheckpointError(
                f"the network predicts nothing finite, NaN or infinity at every pixel ({self.description}); are its "
                "weights damaged?"
            )
        return [
            self._match_at_size(disparity_px, sigma_px, *size)
            for disparity_px, sigma_px, size in zip(disparities_px, sigmas_px, sizes, strict=True)
        ]

    def _factor_of(self, image_width_px: int) -> int:
        """Return by what the network's size is multiplied for images of this width."""
        return 2 if self._enlarges and image_width_px <= _NO_LARGER * self.width else 1

    def _resized(self, view: UInt8[np.ndarray, "_ _ 3"], factor: int) -> UInt8[np.ndarray, "H W 3"]:
        """Return the view at the network's size times the factor."""
        if factor == 1:
            return resize_image(view, self.height, self.width)
        height, width = factor * self.height, factor * self.width
        shrunk = resize_image(view, min(height, view.shape[0]), min(width, view.shape[1]))
        # Where images grow by linear interpolation bad-1 on seven scenes is 10.9 %, by cubic 10.1 %.
        return np.asarray(cv2.resize(shrunk, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)

    def _predict(
        self, pairs: UInt8[np.ndarray, "B 2 H W 3"]
    ) -> tuple[Float32[np.ndarray, "B H W"], Float32[np.ndarray, "B H W"]]:
        """Return disparity, and the standard deviation of its error, of pairs of the network's size or a multiple."""
        scale = self.facts.disparity_scale
        try:
            if self.facts.model.model == COARSE_TO_FINE_MODEL:
                only_size = self._backend.fixed_size is not None
                return predict_coarse_to_fine(
                    self._backend, pairs, self.facts.sigma_scale, disparity_scale=scale, only_size=only_size
                )
            disparity_px, log_variance = self._backend(pairs)
            sigma_px = sigma_with_rig(log_variance, pairs.shape[3], self.facts.sigma_scale * scale)
            return disparity_px * np.float32(scale), sigma_px
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            raise UserError(
                f"out of memory with {count_of(len(pairs), 'pair')} at {pairs.shape[3]}x{pairs.shape[2]} "
                f"({self._backend.description}); try a lower --batch-size, or a smaller --width and --height"
            ) from error

    def _match_at_size(
        self,
        disparity_px: Float32[np.ndarray, "h w"],
        sigma_px: Float32[np.ndarray, "h w"],
        height: int,
        width: int,
    ) -> StereoMatch:
        # Nearest samples: on seven Middlebury maps shrunk to 320x240 and enlarged again they give EPE 0.24 px and bad-1
        # 3.4 %, linear interpolation 0.27 px and 5.1 %, since it puts surfaces between foreground and background.
        resized_px = resize_disparity(disparity_px, height, width)
        if not self.facts.predicts_uncertainty:
            return StereoMatch(disparity_px=resized_px, valid=np.isfinite(resized_px))
        own_width = disparity_px.shape[1]
        # Computed at the network's size, mostly the smaller one, and for an error in px of the other.
        sigma_at_size_px = sigma_px * np.float32(width / own_width)
        confidence = probability_within(CONFIDENT_WITHIN_PX, sigma_at_size_px, self.facts.distribution)
        return StereoMatch(
            disparity_px=resized_px,
            valid=np.isfinite(resized_px),
            sigma_px=resize_disparity(sigma_px, height, width),
            confidence=nearest_samples(confidence, height, width),
        )


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Return True for a GPU's or a CPU's lack of memory."""
    return any(words in str(error) for words in OUT_OF_MEMORY)
