"""`foundation-stereo-predict`: read pairs, predict them in batches, and write the outputs that are asked for."""

import dataclasses
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from tqdm import tqdm

from foundation_stereo_depth.calibration.files import find_calibration_beside
from foundation_stereo_depth.calibration.rig import RigCalibration
from foundation_stereo_depth.data.pairs import (
    NamedPair,
    Pairs,
    check_views,
    describe_emptiness,
    find_pairs,
)
from foundation_stereo_depth.data.rectify import Rectifier, create_rectifier, warn_of_near_limit
from foundation_stereo_depth.data.row_check import Image, Rectify, check_first_pair
from foundation_stereo_depth.data.sample import resize_image
from foundation_stereo_depth.data.videos import read_fps
from foundation_stereo_depth.errors import DataError, UserError
from foundation_stereo_depth.log import count_of, warn_once
from foundation_stereo_depth.options.inference import OutputOptions, PredictOptions
from foundation_stereo_depth.outputs import OutputWriter
from foundation_stereo_depth.stereo import sgbm
from foundation_stereo_depth.stereo.match import StereoMatch
from foundation_stereo_depth.stereo.subpixel import warp

if TYPE_CHECKING:
    from foundation_stereo_depth.inference.predictor import Predictor

_SWAP_CHECK_WIDTH_PX = 320
SUSPICIOUS_RATIO = 0.85
"""Swapped views are suspected where swapping them leaves less than this fraction of the photometric residual.

On thirty real pairs in the right order, swapping leaves 2.4 times the residual or more. Swapped pairs give the inverse.
"""

_FEW_PAIRS = 6
"""Up to as many, the sooner start of onnxruntime is worth more than the speed of OpenVINO."""

logger = logging.getLogger(__name__)


def predict_files(left: str, right: str | None, options: PredictOptions) -> int:
    """Predict every pair that the arguments name and write the results; return how many pairs.

    Args:
        left: an image, a folder, a glob or a video; with both views side by side where `right` is None.
        right: the same for the right view.
        options: all options.

    Raises:
        UserError: the pairs, the network or the output cannot be used as asked.
    """
    pairs = find_pairs(left, right, side_by_side=options.output.side_by_side)
    pairs = dataclasses.replace(pairs, workers=options.inference.workers)
    options = dataclasses.replace(options, output=_with_calibration_beside(left, options.output))
    if pairs.files:  # a video, perhaps a recording, gets the depth that the live view shows
        options = dataclasses.replace(options, network=options.network.with_default_size())
    fps = None if pairs.files else read_fps(Path(pairs.left))
    with OutputWriter(options.output, options.figures, fps=fps) as writer:
        return _predict_pairs(pairs, writer, options)


def _predict_pairs(pairs: Pairs, writer: OutputWriter, options: PredictOptions) -> int:
    done = [name for name in pairs.files if writer.is_done(name)]
    if done:
        logger.info("%s: %d of %d pairs exist already", options.output.output, len(done), len(pairs.files))
        if len(done) == len(pairs.files):
            return 0
        pairs = pairs.without(done)
    for name in pairs.files:  # before a long run, not in the middle of it
        writer.check_free(name)
    checked = _check_views(pairs)
    missing = (pair for pair in _swap(checked, options.output.swap) if not writer.is_done(pair.name))
    predictor, missing = _open_matcher(options, missing, few=pairs.count is not None and pairs.count <= _FEW_PAIRS)
    _check_uncertainty(predictor, options)
    many = "frames" if pairs.count is None else count_of(pairs.count, "pair")
    logger.info("%s; %s of %s", predictor.description, many, pairs.left)
    rectification = Rectification(writer.calibration, predictor, rectify=options.output.rectify)
    written, predicting_s = 0, 0.0
    try:
        with tqdm(total=pairs.stated_count, unit="pair", desc="predicting", dynamic_ncols=True, leave=False) as bar:
            for batch in _batches(_check_first(missing, rectification, options), options):
                for pair in batch:
                    writer.check_free(pair.name)
                began_s = time.perf_counter()
                matches = predictor.batch(
                    [rectification.for_network(pair.left, pair.right) for pair in batch],
                    sizes=[pair.left.shape[:2] for pair in batch],
                )
                predicting_s += time.perf_counter() - began_s
                for pair, match in zip(batch, matches, strict=True):
                    writer.write(pair.name, rectification.at_full_size(pair.left, pair.right)[0], match)
                    written += 1
                    bar.update()
    except BaseException:
        if written:
            logger.info("%s: %s written before that", options.output.output, count_of(written, "pair"))
        raise
    first = writer.first_to_open
    opened = "" if first is None else f"; {first} can be opened"
    print(f"{options.output.output}: {count_of(written, 'pair')} written{opened}")
    logger.info("%.1f ms per pair to predict", 1000 * predicting_s / max(written, 1))
    return written


class ClassicalMatcher:
    """OpenCV's semi-global matcher, at the size of the images, with the members of `Predictor` that predict uses."""

    description = "OpenCV SGBM at the size of the images"
    height, width = 240, 320
    """Of the pair by which swapped views are noticed."""

    def batch(
        self,
        pairs: Sequence[tuple[UInt8[np.ndarray, "_ _ 3"], UInt8[np.ndarray, "_ _ 3"]]],
        *,
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[StereoMatch]:
        """Return the match of each pair; filled-in pixels are not valid."""
        assert sizes is None or list(sizes) == [left.shape[:2] for left, _ in pairs]
        return [sgbm.match(left, right) for left, right in pairs]


def _open_matcher(
    options: PredictOptions, pairs: Iterator[NamedPair], *, few: bool
) -> tuple["Predictor | ClassicalMatcher", Iterator[NamedPair]]:
    """Return the matcher, and the pairs; the size of the first one decides on the network's, which all are run at."""
    if options.network.method == "sgbm":
        return ClassicalMatcher(), pairs
    # It opens what --method sgbm does not need.
    from foundation_stereo_depth.inference.predictor import open_network  # noqa: PLC0415

    network, width_px = options.network, 0
    if network.size == "auto":
        first = next(pairs, None)
        width_px = 0 if first is None else first.left.shape[1]
        pairs = pairs if first is None else chain([first], pairs)
    height, width = network.size_for(width_px)
    return open_network(network, options.inference, height=height, width=width, few_pairs=few), pairs


def _check_uncertainty(predictor: "Predictor | ClassicalMatcher", options: PredictOptions) -> None:
    """Check that the network predicts what is to be written.

    Raises:
        UserError: it predicts no uncertainty, and an output needs it.
    """
    if isinstance(predictor, ClassicalMatcher) or predictor.facts.predicts_uncertainty:
        return
    missing = [word for word in options.output.outputs if word in ("sigma", "confidence")]
    if missing:
        raise UserError(f"--write {','.join(missing)}: this network predicts disparity alone; leave that out")
    if "cloud" in options.output.outputs and options.output.min_confidence > 0:
        raise UserError(
            f"--min-confidence {options.output.min_confidence}: this network predicts disparity alone, without "
            "confidence; leave that out"
        )


def _with_calibration_beside(left: str, options: OutputOptions) -> OutputOptions:
    """Return the options with the calibration that a recording carries, where the user names none."""
    if options.calibration is not None or options.focal_px is not None:
        return options
    beside = find_calibration_beside(left)
    if beside is None:
        return options
    logger.info("%s: the calibration that was kept with %s", beside, left)
    return dataclasses.replace(options, calibration=beside)


class Rectification:
    """Rectifies pairs for a network exactly as the live view does, and at their own size for the outputs.

    Where there is nothing to rectify, pairs are returned as they are.

    Args:
        calibration: of the rig; None where it is unknown.
        predictor: the network; pairs are rectified at its size.
        rectify: pairs are raw.
    """

    def __init__(
        self, calibration: RigCalibration | None, predictor: "Predictor | ClassicalMatcher", *, rectify: bool
    ) -> None:
        self.rectifier = create_rectifier(calibration, height=predictor.height, width=predictor.width, rectify=rectify)
        self._runs_at_image_size = isinstance(predictor, ClassicalMatcher)
        warn_of_near_limit(self.rectifier.stereo_calibration)
        self._at_full_size: Rectifier | None = None

    def for_network(self, left: Image, right: Image) -> tuple[Image, Image]:
        """Return a pair, RGB, rectified at the network's size; unchanged where nothing is to be rectified."""
        if self._runs_at_image_size or not isinstance(self.rectifier, Rectifier):
            return self.at_full_size(left, right)
        return self.rectifier(left, right)

    def at_full_size(self, left: Image, right: Image) -> tuple[Image, Image]:
        """Return a pair, RGB, rectified at its own size; unchanged where nothing is to be rectified."""
        if not isinstance(self.rectifier, Rectifier) or self.rectifier.given is None:
            return left, right
        (height, width), full = left.shape[:2], self._at_full_size
        if full is None or (full.height, full.width) != (height, width):
            full = self._at_full_size = Rectifier(self.rectifier.given, height=height, width=width)
        return full(left, right)


def _check_views(pairs: Pairs) -> Iterator[NamedPair]:
    """Yield the pairs; raise where the first one can be no pair, or the only one shows nothing; warn of later ones."""
    for number, pair in enumerate(pairs):
        if number == 0:
            check_views(pair)
        empty = describe_emptiness(pair)
        if empty is not None and pairs.count == 1:
            raise DataError(empty)
        if empty is not None:
            warn_once(logger, "empty view", empty)
        yield pair


def _swap(pairs: Iterable[NamedPair], swap: bool) -> Iterator[NamedPair]:
    for pair in pairs:
        yield NamedPair(name=pair.name, left=pair.right, right=pair.left) if swap else pair


def _batches(pairs: Iterator[NamedPair], options: PredictOptions) -> Iterator[list[NamedPair]]:
    """Yield the pairs in batches; the readable pairs before an unreadable one are yielded before its error."""
    batch: list[NamedPair] = []
    try:
        for pair in pairs:
            batch.append(pair)
            if len(batch) == options.inference.batch_size:
                yield batch
                batch = []
    except DataError:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def _check_first(
    pairs: Iterator[NamedPair], rectification: Rectification, options: PredictOptions
) -> Iterator[NamedPair]:
    """Yield the pairs; stop if the views of the first one seem to be swapped, unless that is allowed.

    Logs a warning if it should be rectified though it is not, or the other way round.

    Raises:
        DataError: its views seem to be swapped.
    """
    first = next(pairs, None)
    if first is None:
        return
    if not seem_swapped(first.left, first.right, rectification.for_network):
        problem = check_first_pair(first.left, first.right, rectification.rectifier)
        if problem is not None:
            logger.warning("%s: %s", first.name, problem)
    else:
        remedy = "leave --swap out" if options.output.swap else "--swap swaps them back"
        problem = (
            f"{first.name}: the left and right views seem to be swapped, the images match better the other way round; "
            f"{remedy}"
        )
        if not options.output.allow_swapped:
            raise DataError(f"{problem}, --allow-swapped takes them as they are")
        logger.warning(problem)
    yield from chain([first], pairs)


def seem_swapped(
    left: UInt8[np.ndarray, "H W 3"],
    right: UInt8[np.ndarray, "H W 3"],
    rectify: Rectify = lambda left, right: (left, right),
) -> bool:
    """Return True where the swapped pair has a clearly lower photometric residual than the pair as given.

    In either order the pair is rectified, shrunk and matched by SGBM, the second view is warped by the disparity onto
    the first, and the residuals are compared. A disparity of swapped views has the wrong direction, so its residual is
    large: of real pairs 2.4 times as large or more (docs/experiments/reliability.md).
    """
    residuals: list[float] = []
    for pair in (rectify(left, right), rectify(right, left)):
        height, width = pair[0].shape[:2]
        scale = min(1.0, _SWAP_CHECK_WIDTH_PX / width)
        first, second = (resize_image(view, max(1, round(height * scale)), round(width * scale)) for view in pair)
        residuals.append(photometric_residual(first, second, sgbm.match(first, second).disparity_px))
    given, swapped = residuals
    return swapped < SUSPICIOUS_RATIO * given


def photometric_residual(
    first: UInt8[np.ndarray, "H W 3"], second: UInt8[np.ndarray, "H W 3"], disparity_px: Float[np.ndarray, "H W"]
) -> float:
    """Return the mean absolute difference of the first view and the second warped onto it by a disparity, in levels.

    Each view is first freed of its local brightness, since two cameras differ in exposure. Pixels that come from
    outside the second view are not counted; infinity where all do.
    """
    width = disparity_px.shape[1]
    columns = np.arange(width, dtype=np.float32)[None] - disparity_px
    warped = warp(_details(second), np.asarray(disparity_px, np.float32))
    inside = (columns >= 0) & (columns <= width - 1)
    return float(np.abs(_details(first) - warped)[inside].mean()) if inside.any() else float("inf")


def _details(image: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W"]:
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return grey - cv2.GaussianBlur(grey, (0, 0), 8)
