"""The one writer of results, for predict and for live snapshots: maps of numbers, a figure, a point cloud in metres."""

import io
import logging
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

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
from foundation_stereo_depth.options.fields import split_words
from foundation_stereo_depth.options.inference import DRAWN, OutputOptions
from foundation_stereo_depth.stereo.geometry import StereoCalibration, depth_from_disparity, point_cloud
from foundation_stereo_depth.stereo.match import StereoMatch

Output = tuple[str, str]
"""What is written, of `options.inference.MAPS` and `DRAWN`, and the suffix of its file: `("depth", ".npy")`."""

_PNG_STEPS = {"disparity": KITTI_STEPS_PER_PX, "sigma": KITTI_STEPS_PER_PX, "depth": 1000, "confidence": 2**16 - 1}
"""Steps per px, per metre and per 1 in 16-bit PNGs."""
_PNG_LARGEST = {what: (2**16 - 1) / steps for what, steps in _PNG_STEPS.items()}

logger = logging.getLogger(__name__)


def write_outputs(
    paths: Mapping[Output, Path],
    left: UInt8[np.ndarray, "H W 3"],
    match: StereoMatch,
    calibration: StereoCalibration | None,
    *,
    min_confidence: float = 0.0,
    max_depth_m: float = math.inf,
    title: str = "left",
    largest_shown: float = 1.0,
) -> list[Path]:
    """Write results of one pair, each to its own file, all or none; return the files.

    Outputs that cannot be computed, for want of a calibration or of an uncertainty, are left out. Logs a warning where
    a PNG cannot represent a disparity, which is then unknown in it.

    Args:
        paths: the outputs to write and their files; folders that do not exist are created.
        left: the left view, RGB.
        match: its disparity.
        calibration: of the pair, at this size; None writes no depth and no cloud.
        min_confidence: points of lower confidence are left out of the cloud.
        max_depth_m: points that are not nearer are left out of the cloud.
        title: of the left view in the figure.
        largest_shown: top of the figure's colour scale: metres, or px without a calibration.

    Raises:
        OSError: a file cannot be written; none of them is left then.
    """
    depth_m = None if calibration is None else depth_from_disparity(match.disparity_px, calibration)
    maps = {"disparity": match.disparity_px, "sigma": match.sigma_px, "confidence": match.confidence, "depth": depth_m}
    files: dict[Path, bytes] = {}  # all are encoded before the first is written
    for (what, suffix), path in paths.items():
        if what == "figure":
            files[path] = encode_figure(title, left, match, depth_m, largest_shown)
        elif what == "cloud":
            if depth_m is not None and calibration is not None:
                keep = depth_m < max_depth_m
                if match.confidence is not None:
                    keep &= match.confidence >= min_confidence
                files[path] = encode_ply(*point_cloud(depth_m, left, keep, calibration))
        elif (values := maps[what]) is not None:
            files[path] = _encode_map(what, suffix, values)
    try:
        for path, encoded in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda file, encoded=encoded: file.write(encoded), durable=False)
    except OSError:
        for path in files:
            path.unlink(missing_ok=True)
        raise
    _warn_of_clipped(paths.get(("disparity", ".png")), match)
    return list(files)


class OutputWriter:
    """Writes the outputs that the options ask for to `<folder>/<name>_<what>.<format>`.

    The colour scale of figures is set by the first pair, so that colours of one sequence are comparable.

    Args:
        options: what to write, where, and the calibration of the rig.

    Attributes:
        calibration: of the rig; None where the options name no file.

    Raises:
        UserError: the calibration cannot be read, or depth is asked for without one.
    """

    def __init__(self, options: OutputOptions) -> None:
        assert options.output is not None
        self._options = options
        self._folder = options.output
        self._largest_shown: float | None = None
        self._is_first = True
        needing = [word for word in ("depth", "cloud") if word in options.outputs]
        if needing and options.calibration is None and options.focal_px is None:
            raise UserError(f"--write {needing[0]}: needs --calibration, or --focal-px and --baseline-m")
        self.calibration = None if options.calibration is None else _read_rig(options.calibration, options)

    def paths(self, name: str) -> dict[Output, Path]:
        """Return the outputs that are asked for, and the files that they are written to."""
        formats = split_words(self._options.map_format)
        maps = [(what, "." + each) for what in self._options.outputs if what not in DRAWN for each in formats]
        drawn = [(what, DRAWN[what]) for what in self._options.outputs if what in DRAWN]
        return {(what, suffix): self._folder / f"{name}_{what}{suffix}" for what, suffix in maps + drawn}

    def is_done(self, name: str) -> bool:
        """Return True where all files exist and `--skip-existing` keeps them."""
        return self._options.skip_existing and all(path.exists() for path in self.paths(name).values())

    def check_free(self, name: str) -> None:
        """Check that no file exists that may not be replaced.

        Raises:
            UserError: one does, and `--overwrite` is off.
        """
        existing = [path for path in self.paths(name).values() if path.exists()]
        if existing and not (self._options.overwrite or self._options.skip_existing):
            raise UserError(f"{existing[0]}: exists; --overwrite replaces it, --skip-existing skips such pairs")

    def write(self, name: str, left: UInt8[np.ndarray, "H W 3"], match: StereoMatch) -> list[Path]:
        """Write the outputs of one pair, all or none; return the files.

        Raises:
            UserError: a file exists, or the calibration does not fit the images.
        """
        self.check_free(name)
        rig = self._rig(*match.disparity_px.shape)
        if self._largest_shown is None:
            self._largest_shown = _largest_shown(match, rig)
        if self._is_first and self._folder.exists():
            remove_abandoned(self._folder)  # temporary files of a run that was killed
        self._is_first = False
        return write_outputs(
            self.paths(name),
            left,
            match,
            rig,
            min_confidence=self._options.min_confidence,
            max_depth_m=self._options.max_depth_m,
            title=name,
            largest_shown=self._largest_shown,
        )

    def _rig(self, height: int, width: int) -> StereoCalibration | None:
        """Return the calibration for images of this size, None where none is given."""
        options = self._options
        if self.calibration is not None:
            self.calibration.check_size(height, width)
            return self.calibration.stereo_calibration.resized(height, width)
        if options.focal_px is None or options.baseline_m is None:
            return None
        return StereoCalibration.centred(
            height=height, width=width, focal_px=options.focal_px, baseline_m=options.baseline_m
        )


def _read_rig(path: Path, options: OutputOptions) -> RigCalibration:
    rig = read_calibration(path, unit=options.calibration_unit, image_size=options.calibration_image_size)
    if options.rectify:
        return rig.with_far_in_view()
    if rig.rectification is None:
        logger.warning(
            "%s: contains no rectification; depth is right for images rectified by OpenCV's stereoRectify with "
            "alpha=0, as this program does it",
            path,
        )
    return rig


def _largest_shown(match: StereoMatch, rig: StereoCalibration | None) -> float:
    """Return the top of a colour scale: a high percentile of the depth, or of the disparity without a calibration."""
    shown = match.disparity_px if rig is None else depth_from_disparity(match.disparity_px, rig)
    known = shown[np.isfinite(shown)]
    return float(np.percentile(known, 99 if rig is None else 90)) if known.size else 1.0


def encode_figure(
    title: str,
    left: UInt8[np.ndarray, "H W 3"],
    match: StereoMatch,
    depth_m: Float[np.ndarray, "H W"] | None,
    largest: float,
) -> bytes:
    """Return a PNG of the left view, of the depth in metres (or disparity in px), and of the confidence, with bars."""
    # The live view writes maps without figures, and Matplotlib takes half a second to import.
    import matplotlib as mpl  # noqa: PLC0415
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    aspect = left.shape[0] / left.shape[1]
    figure = Figure(figsize=(18, 5.4 * aspect + 0.6), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3)
    heading, values, colours = (
        ("disparity, px", match.disparity_px, "turbo") if depth_m is None else ("depth, m", depth_m, "turbo_r")
    )
    confidence = np.full(left.shape[:2], np.nan) if match.confidence is None else match.confidence
    panels = [
        (title, left, None, 0.0),
        (heading, values, colours, largest),
        ("confidence, P(|error| < 1 px)", confidence, "viridis", 1.0),
    ]
    for axis, (text, shown, colour_map, top) in zip(axes, panels, strict=True):
        axis.set_axis_off()
        # A file name is not mathtext, and may contain bytes that are not valid UTF-8.
        axis.set_title(text.encode(errors="replace").decode(), fontsize=11, parse_math=False)
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
    """Return the bytes of a map. Values beyond 16 bits are unknown in a PNG, except sigma, which is clipped."""
    if suffix == ".pfm":
        return encode_pfm(values)
    if suffix == ".npy":
        return encode_npy(values)
    if what == "sigma":
        # Unknown would read as certain; a clipped sigma is still a lower bound, and large enough to be rejected.
        values = np.minimum(values, np.float32(_PNG_LARGEST[what]))
    elif what in ("disparity", "depth"):
        # A clipped disparity or depth would be a plausible, wrong surface.
        values = np.where(values <= _PNG_LARGEST[what], values, np.float32(np.nan))
    return encode_png16(encode_whole_steps(values, _PNG_STEPS[what]))


def _warn_of_clipped(path: Path | None, match: StereoMatch) -> None:
    beyond = match.disparity_px > _PNG_LARGEST["disparity"]
    if path is not None and beyond.any():
        logger.warning(
            "%s: %d pixels of more than %.3f px (up to %.3f) are unknown in it, since 16 bits cannot represent them; "
            "--map-format pfm or npy keeps them",
            path,
            beyond.sum(),
            _PNG_LARGEST["disparity"],
            match.disparity_px[beyond].max(),
        )
