"""The one writer of results, for predict and for live snapshots: maps of numbers, a figure, a point cloud in metres."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from foundation_stereo_depth.calibration.files import read_calibration
from foundation_stereo_depth.calibration.rig import LARGEST_BASELINE_M, SMALLEST_BASELINE_M, RigCalibration
from foundation_stereo_depth.colours import ColourScale
from foundation_stereo_depth.data.codecs import (
    KITTI_STEPS_PER_PX,
    encode_npy,
    encode_pfm,
    encode_ply,
    encode_png16,
    encode_whole_steps,
)
from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.figures import confidence_panel, draw_frame, encode_figure, match_panel, scale_of_match
from foundation_stereo_depth.files import name_for_opencv, remove_abandoned, write_atomically
from foundation_stereo_depth.options.fields import split_words
from foundation_stereo_depth.options.inference import DRAWN, VIDEO, FigureOptions, OutputOptions
from foundation_stereo_depth.stereo.geometry import StereoCalibration, depth_from_disparity, point_cloud
from foundation_stereo_depth.stereo.match import StereoMatch

Output = tuple[str, str]
"""What is written, of `options.inference.MAPS` and `DRAWN`, and the suffix of its file: `("depth", ".npy")`."""

_PNG_STEPS = {"disparity": KITTI_STEPS_PER_PX, "sigma": KITTI_STEPS_PER_PX, "depth": 1000, "confidence": 2**16 - 1}
"""Steps per px, per metre and per 1 in 16-bit PNGs."""
_NOTHING_KNOWN = ColourScale(low=0.0, high=1.0, unit="")
_FPS_OF_IMAGES = 10.0
_PNG_LARGEST = {what: (2**16 - 1) / steps for what, steps in _PNG_STEPS.items()}

_NARROWEST_VIEW_DEGREES, _WIDEST_VIEW_DEGREES = 5.0, 150.0

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
    figures: FigureOptions = FigureOptions(),  # noqa: B008 (it is frozen)
    scale: ColourScale | None = None,
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
        figures: how the figure looks.
        scale: the colours of its depth, or disparity; None fits them to this pair.

    Raises:
        OSError: a file cannot be written; none of them is left then.
    """
    depth_m = None if calibration is None else depth_from_disparity(match.disparity_px, calibration)
    maps = {"disparity": match.disparity_px, "sigma": match.sigma_px, "confidence": match.confidence, "depth": depth_m}
    files: dict[Path, bytes] = {}  # all are encoded before the first is written
    for (what, suffix), path in paths.items():
        if what == "figure":
            files[path] = encode_match(left, match, depth_m, title=title, figures=figures, scale=scale)
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


def encode_match(
    left: UInt8[np.ndarray, "H W 3"],
    match: StereoMatch,
    depth_m: Float[np.ndarray, "H W"] | None,
    *,
    title: str = "left",
    figures: FigureOptions = FigureOptions(),  # noqa: B008 (it is frozen)
    scale: ColourScale | None = None,
) -> bytes:
    """Return the figure of a match as a PNG: the left view, depth (without one disparity), confidence."""
    shown = scale or scale_of_match(match, depth_m, figures) or _NOTHING_KNOWN
    panels = [match_panel(match, depth_m, shown, figures.grey_below), confidence_panel(match)]
    return encode_figure(title, left, panels)


_BY_SUFFIX = {".png": "figure", ".npy": "depth", ".pfm": "depth", ".ply": "cloud"}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PairMatch(StereoMatch):
    """A match with the view that it belongs to, so that it can be saved and shown.

    Attributes:
        left: the left view, RGB.
    """

    left: UInt8[np.ndarray, "H W 3"]

    @classmethod
    def of(cls, match: StereoMatch, left: UInt8[np.ndarray, "H W 3"]) -> "PairMatch":
        """Return a match with its left view."""
        return cls(
            disparity_px=match.disparity_px,
            valid=match.valid,
            sigma_px=match.sigma_px,
            confidence=match.confidence,
            left=left,
        )

    def save(self, path: Path | str, calibration: StereoCalibration | None = None) -> Path:
        """Write a file of the kind that its suffix names, replacing an existing one; return its path.

        `.png` is a figure of depth, or of disparity without a calibration, and of confidence; `.npy` and `.pfm` are
        maps of numbers, of the same; `.ply` is a point cloud in metres.

        Args:
            path: where to; folders that do not exist are created.
            calibration: of the pair, at any size of the same aspect.

        Raises:
            UserError: no file has this suffix, or a point cloud is asked for without a calibration.
            CalibrationError: the calibration has another aspect.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix not in _BY_SUFFIX:
            raise UserError(f"{path}: a match is saved as {', '.join(_BY_SUFFIX)}")
        what = _BY_SUFFIX[suffix]
        if calibration is None:
            if what == "cloud":
                raise UserError(f"{path}: a point cloud needs a calibration: match.save(path, calibration)")
            what = "disparity" if what == "depth" else what
        rig = None if calibration is None else calibration.scaled_to(*self.disparity_px.shape)
        write_outputs({(what, suffix): path}, self.left, self, rig)
        return path

    def _repr_png_(self) -> bytes:
        """Return what a notebook shows of the match: a figure of disparity and confidence."""
        return encode_match(self.left, self, None)


class OutputWriter:
    """Writes the outputs that the options ask for to `<folder>/<name>_<what>.<format>`; to be used in a `with`.

    Args:
        options: what to write, where, and the calibration of the rig.
        figures: how figures and the video look.
        fps: frames per second of the input, if it is a video: then the range of the colours is that of its first
            frame, so that one colour means one depth; else each image has its own.

    Attributes:
        calibration: of the rig; None where the options name no file.

    Raises:
        UserError: the calibration cannot be read, depth is asked for without one, or the video exists.
    """

    def __init__(
        self,
        options: OutputOptions,
        figures: FigureOptions = FigureOptions(),  # noqa: B008 (it is frozen)
        *,
        fps: float | None = None,
    ) -> None:
        self._options = options
        self._figures = figures
        self._folder = options.output
        self._is_steady = fps is not None or VIDEO in options.outputs
        self._scale: ColourScale | None = None
        self._is_first = True
        self._warned = False
        needing = [word for word in ("depth", "cloud") if word in options.outputs]
        if needing and options.calibration is None and options.focal_px is None:
            raise UserError(f"--write {needing[0]}: needs --calibration, or --focal-px and --baseline-m")
        self._first_figure: Path | None = None
        self.calibration = None if options.calibration is None else _read_rig(options.calibration, options)
        has_depth = self.calibration is not None or options.focal_px is not None
        self._video: VideoFile | None = None
        if VIDEO in options.outputs:
            path = self._folder / ("depth.mp4" if has_depth else "disparity.mp4")
            if path.exists() and not options.overwrite:
                raise UserError(f"{path}: exists; --overwrite replaces it")
            self._video = VideoFile(path, options.video_fps or fps or _FPS_OF_IMAGES)

    def __enter__(self) -> "OutputWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._video is not None:
            self._video.close()

    @property
    def first_to_open(self) -> Path | None:
        """The first file that shows something in any program: the video, or the first figure; None before either."""
        if self._video is not None:
            return self._video.path
        return self._first_figure

    def paths(self, name: str) -> dict[Output, Path]:
        """Return the outputs that are asked for, and the files that they are written to."""
        formats = split_words(self._options.map_format)
        names = [what for what in self._options.outputs if what != VIDEO]
        maps = [(what, "." + each) for what in names if what not in DRAWN for each in formats]
        drawn = [(what, DRAWN[what]) for what in names if what in DRAWN]
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
        depth_m = None if rig is None else depth_from_disparity(match.disparity_px, rig)
        scale = self._scale or scale_of_match(match, depth_m, self._figures)
        if self._is_steady:
            self._scale = scale
        if self._is_first and self._folder.exists():
            remove_abandoned(self._folder)  # temporary files of a run that was killed
        self._is_first = False
        if self._video is not None:
            panel = match_panel(match, depth_m, scale or _NOTHING_KNOWN, self._figures.grey_below)
            self._video.add(draw_frame(left, panel))
        written = write_outputs(
            self.paths(name),
            left,
            match,
            rig,
            min_confidence=self._options.min_confidence,
            max_depth_m=self._options.max_depth_m,
            title=name,
            figures=self._figures,
            scale=scale,
        )
        self._first_figure = self._first_figure or self.paths(name).get(("figure", ".png"))
        return written

    def _rig(self, height: int, width: int) -> StereoCalibration | None:
        """Return the calibration for images of this size, None where none is given."""
        options = self._options
        if self.calibration is not None:
            self.calibration.check_size(height, width)
            return self.calibration.stereo_calibration.resized(height, width)
        if options.focal_px is None or options.baseline_m is None:
            return None
        if not self._warned:
            self._warned = True
            for line in odd_numbers(options.focal_px, options.baseline_m, width):
                logger.warning(line)
        return StereoCalibration.centred(
            height=height, width=width, focal_px=options.focal_px, baseline_m=options.baseline_m
        )


def odd_numbers(focal_px: float, baseline_m: float, width: int) -> list[str]:
    """Return a sentence on each of the two that no usual rig has: a number in another unit, mostly."""
    lines: list[str] = []
    if not SMALLEST_BASELINE_M <= baseline_m <= LARGEST_BASELINE_M:
        unit = f"; in millimetres, that would be --baseline-m {baseline_m / 1000:g}" if baseline_m > 1 else ""
        lines.append(
            f"--baseline-m {baseline_m:g}: the cameras would be {baseline_m:g} m apart, where {SMALLEST_BASELINE_M} to "
            f"{LARGEST_BASELINE_M} m are usual{unit}"
        )
    view_degrees = math.degrees(2 * math.atan(width / (2 * focal_px)))
    if not _NARROWEST_VIEW_DEGREES <= view_degrees <= _WIDEST_VIEW_DEGREES:
        lines.append(
            f"--focal-px {focal_px:g}: images {width} px wide would see {view_degrees:.3g} degrees, where "
            f"{_NARROWEST_VIEW_DEGREES:g} to {_WIDEST_VIEW_DEGREES:g} are usual; it is in pixels of these images"
        )
    return lines


class VideoFile:
    """A video that appears under its name once it is closed; frames are BGR, all of the first one's size.

    Args:
        path: the file, .mp4; MPEG-4, which every player shows.
        fps: frames per second.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path = path
        self._fps = fps
        self._temporary = path.with_name(f".writing-{path.name}")
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)

    def add(self, frame: UInt8[np.ndarray, "H W 3"]) -> None:
        """Append a frame.

        Raises:
            UserError: it has another size than the first one, or the file cannot be written.
        """
        size = (frame.shape[1], frame.shape[0])
        if self._writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            code = cv2.VideoWriter.fourcc(*"mp4v")
            name = name_for_opencv(self._temporary.absolute(), UserError)
            self._writer, self._size = cv2.VideoWriter(name, code, self._fps, size), size
            if not self._writer.isOpened():
                raise UserError(f"{self.path}: a video of {size[0]}x{size[1]} cannot be written there")
        if size != self._size:
            raise UserError(
                f"{self.path}: one video holds images of one size, but after {self._size[0] // 2}x{self._size[1]} "
                f"comes {size[0] // 2}x{size[1]}; leave video out of --write"
            )
        self._writer.write(frame)

    def close(self) -> None:
        """Finish the file; its frames so far stay, also after an error."""
        if self._writer is not None:
            self._writer.release()
            self._temporary.replace(self.path)
            self._writer = None


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
