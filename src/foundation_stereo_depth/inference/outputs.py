"""What a prediction is written as: maps of numbers, a picture for people, a point cloud in metres."""

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tqdm import tqdm

from foundation_stereo_depth.calibration.files import read_calibration
from foundation_stereo_depth.calibration.rig import RigCalibration
from foundation_stereo_depth.data.codecs import (
    KITTI_STEPS_PER_PX,
    encode_npy,
    encode_pfm,
    encode_ply,
    encode_png16,
    encode_whole_steps,
)
from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.files import remove_abandoned, write_atomically
from foundation_stereo_depth.inference.predictor import Prediction
from foundation_stereo_depth.options.fields import split_words
from foundation_stereo_depth.options.inference import PICTURES, OutputOptions
from foundation_stereo_depth.stereo.geometry import StereoCalibration, depth_from_disparity, point_cloud

_PNG_STEPS = {"disparity": KITTI_STEPS_PER_PX, "sigma": KITTI_STEPS_PER_PX, "depth": 1000, "confidence": 2**16 - 1}
"""Steps per px, per metre and per 1 in 16-bit PNGs."""
_PNG_LARGEST = {what: (2**16 - 1) / steps for what, steps in _PNG_STEPS.items()}
_PICTURE_SUFFIXES = {"picture": ".png", "cloud": ".ply"}


def centred_calibration(height: int, width: int, focal_px: float, baseline_m: float) -> StereoCalibration:
    """A rig whose optical axes pass through the middle of its pictures."""
    return StereoCalibration(
        width=width,
        height=height,
        focal_px=focal_px,
        focal_y_px=focal_px,
        cx_left_px=(width - 1) / 2,
        cx_right_px=(width - 1) / 2,
        cy_px=(height - 1) / 2,
        baseline_m=baseline_m,
    )


class Writer:
    """Writes what was asked for, under `<folder>/<name>_<what>.<format>`; each file is complete or absent.

    The colour scale of pictures is set by the first one, so that colours of one sequence mean one thing.

    Args:
        options: what to write, where, and the rig's geometry.

    Raises:
        UserError: the rig's calibration cannot be read.
    """

    def __init__(self, options: OutputOptions) -> None:
        assert options.output is not None
        self._options = options
        self._folder = options.output
        self._wanted = split_words(options.write)
        self._largest: float | None = None
        self._fresh = True
        self._calibration = None if options.calibration is None else _read_rig(options.calibration, options)

    def paths(self, name: str) -> dict[tuple[str, str], Path]:
        """(what, format) -> the file that it is written to."""
        formats = split_words(self._options.map_format)
        maps = [(what, "." + each) for what in self._wanted if what not in PICTURES for each in formats]
        drawn = [(what, _PICTURE_SUFFIXES[what]) for what in self._wanted if what in PICTURES]
        return {(what, suffix): self._folder / f"{name}_{what}{suffix}" for what, suffix in maps + drawn}

    def is_done(self, name: str) -> bool:
        """True where everything is there already, and `--skip-existing` leaves it."""
        return self._options.skip_existing and all(path.exists() for path in self.paths(name).values())

    def check_free(self, name: str) -> None:
        """Lets pass a name under which nothing is there yet.

        Raises:
            UserError: something is, and `--overwrite` is off.
        """
        there = [path for path in self.paths(name).values() if path.exists()]
        if there and not (self._options.overwrite or self._options.skip_existing):
            raise UserError(
                f"{there[0]}: is there already; --overwrite replaces it, --skip-existing goes on with the others"
            )

    def write(self, name: str, left: UInt8[np.ndarray, "H W 3"], prediction: Prediction) -> list[Path]:
        """Writes everything that was asked for; returns the files.

        Says on standard error where a PNG does not hold a disparity, which stands there as unknown.

        Raises:
            UserError: a file is there already, or the rig does not fit the pictures; then nothing is written.
        """
        self.check_free(name)
        files = list(self._encoded(name, left, prediction))  # all before the first is written: a pair is there or not
        if self._fresh:
            self._folder.mkdir(parents=True, exist_ok=True)
            remove_abandoned(self._folder)  # what a run that was killed while it wrote has left
            self._fresh = False
        try:
            for path, encoded in files:
                write_atomically(path, lambda file, encoded=encoded: file.write(encoded), durable=False)
        except OSError:
            for path, _ in files:
                path.unlink(missing_ok=True)
            raise
        self._tell_of_unheld(name, prediction)
        return [path for path, _ in files]

    def _tell_of_unheld(self, name: str, prediction: Prediction) -> None:
        path = self.paths(name).get(("disparity", ".png"))
        beyond = prediction.disparity_px > _PNG_LARGEST["disparity"]
        if path is not None and beyond.any():
            tqdm.write(
                f"warning: {path}: {beyond.sum()} pixels of more than {_PNG_LARGEST['disparity']:.3f} px (up to "
                f"{prediction.disparity_px[beyond].max():.3f}) are unknown in it, since 16 bits hold no more; "
                "--map-format pfm or npy keeps them",
                file=sys.stderr,
            )

    def _encoded(
        self, name: str, left: UInt8[np.ndarray, "H W 3"], prediction: Prediction
    ) -> Iterator[tuple[Path, bytes]]:
        options = self._options
        depth_m = None
        rig = self._rig(*prediction.disparity_px.shape)
        if rig is not None:
            depth_m = depth_from_disparity(prediction.disparity_px, rig)
        maps = {
            "disparity": prediction.disparity_px,
            "sigma": prediction.sigma_px,
            "confidence": prediction.confidence,
            "depth": depth_m,
        }
        for (what, suffix), path in self.paths(name).items():
            if what == "picture":
                yield path, self._picture(name, left, prediction, depth_m)
            elif what == "cloud":
                assert depth_m is not None
                assert rig is not None
                keep = (depth_m < options.max_depth_m) & (prediction.confidence >= options.min_confidence)
                yield path, encode_ply(*point_cloud(depth_m, left, keep, rig))
            else:
                values = maps[what]
                assert values is not None
                yield path, _encode_map(what, suffix, values)

    def _rig(self, height: int, width: int) -> StereoCalibration | None:
        """The rig for pictures of this size, if one is known."""
        if self._calibration is not None:
            self._calibration.check_size(height, width)
            return self._calibration.stereo_calibration.resized(height, width)
        if self._options.focal_px is None or self._options.baseline_m is None:
            return None
        return centred_calibration(height, width, self._options.focal_px, self._options.baseline_m)

    def _picture(
        self,
        name: str,
        left: UInt8[np.ndarray, "H W 3"],
        prediction: Prediction,
        depth_m: Float[np.ndarray, "H W"] | None,
    ) -> bytes:
        if self._largest is None:
            shown = prediction.disparity_px if depth_m is None else depth_m
            valid = shown[np.isfinite(shown)]
            self._largest = float(np.percentile(valid, 99 if depth_m is None else 90)) if valid.size else 1.0
        return result_picture(name, left, prediction, depth_m, self._largest)


def _read_rig(path: Path, options: OutputOptions) -> RigCalibration:
    rig = read_calibration(path, unit=options.calibration_unit, image_size=options.calibration_image_size)
    if rig.rectification is None:
        print(
            f"warning: {path}: does not say how it rectifies; depth is right for pictures rectified by OpenCV's "
            "stereoRectify with alpha=0, as foundation-stereo-live-view does it",
            file=sys.stderr,
        )
    return rig


def result_picture(
    name: str,
    left: UInt8[np.ndarray, "H W 3"],
    prediction: Prediction,
    depth_m: Float[np.ndarray, "H W"] | None,
    largest: float,
) -> bytes:
    """A PNG: the left view, disparity in px (or depth in metres) with its bar, confidence with its bar."""
    aspect = left.shape[0] / left.shape[1]
    figure = Figure(figsize=(18, 5.4 * aspect + 0.6), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3)
    title, values, colours = (
        ("disparity, px", prediction.disparity_px, "turbo") if depth_m is None else ("depth, m", depth_m, "turbo_r")
    )
    panels = [
        (name, left, None, 0.0),
        (title, values, colours, largest),
        ("confidence, P(|error| < 1 px)", prediction.confidence, "viridis", 1.0),
    ]
    for axis, (heading, shown, colour_map, top) in zip(axes, panels, strict=True):
        axis.set_axis_off()
        # A file's name is no mathematics, and may hold bytes that are no text.
        axis.set_title(heading.encode(errors="replace").decode(), fontsize=11, parse_math=False)
        if colour_map is None:
            axis.imshow(shown)
            continue
        drawn = axis.imshow(
            shown, cmap=mpl.colormaps[colour_map].with_extremes(bad="black"), vmin=0, vmax=top, interpolation="nearest"
        )
        figure.colorbar(drawn, ax=axis, shrink=0.85, extend="neither" if top == 1 else "max")
    file = io.BytesIO()
    canvas.print_png(file)
    return file.getvalue()


def _encode_map(what: str, suffix: str, values: Float[np.ndarray, "H W"]) -> bytes:
    """The bytes of a map. What 16 bits do not hold is unknown in a PNG; but sigma, a bound, stays at the largest."""
    if suffix == ".pfm":
        return encode_pfm(values)
    if suffix == ".npy":
        return encode_npy(values)
    if what == "sigma":
        # Unknown doubt would look like none; "at least so much" is true, and no reader trusts such a pixel.
        values = np.minimum(values, np.float32(_PNG_LARGEST[what]))
    elif what in ("disparity", "depth"):
        # A smaller disparity would be a wrong surface that looks right, and a nearer depth too: both are unknown
        # rather. One such pixel is no reason to stop a long batch.
        values = np.where(values <= _PNG_LARGEST[what], values, np.float32(np.nan))
    return encode_png16(encode_whole_steps(values, _PNG_STEPS[what]))
