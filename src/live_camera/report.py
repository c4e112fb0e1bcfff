"""The results of a calibration: its file, a report, and images of the coverage and of a rectified pair."""

from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from foundation_stereo_depth.calibration.files import save_calibration
from foundation_stereo_depth.calibration.rig import RigCalibration
from foundation_stereo_depth.data.codecs import write_rgb
from foundation_stereo_depth.data.rectify import Rectifier
from foundation_stereo_depth.files import write_atomically
from foundation_stereo_depth.stereo.geometry import depth_std_from_disparity, disparity_from_depth
from live_camera.board import Board, BoardView
from live_camera.options import BoardOptions
from live_camera.precision import DEPTHS_M
from live_camera.solve import BoardPair, CalibrationResult, covered_cells

HIGH_RMS_PX = 0.6
"""Above this, measured on real webcams, something is wrong: a bent board, motion, unsynchronised cameras."""
LOW_COVERAGE = 0.5
HIGH_DEPTH_STD = 0.02
"""Of depth at one metre: twenty good pairs of a webcam rig reach 0.003 to 0.004 (measured)."""
_DISPARITY_ERROR_PX = 0.5
_DEPTHS_M = (0.5, 1.0, 2.0, 5.0)
_LINES = 24
_LINE_COLOURS = ((255, 60, 60), (60, 255, 60))
_COVERED, _UNCOVERED, _CORNER = (60, 120, 60), (90, 45, 45), (255, 255, 255)

Image = UInt8[np.ndarray, "H W 3"]
PairImage = UInt8[np.ndarray, "H two_W 3"]
"""Both views side by side."""


def write_results(
    result: CalibrationResult, pairs: list[BoardPair], example: tuple[Image, Image], options: BoardOptions, output: Path
) -> str:
    """Write a calibration, its report and its images; return the report.

    Args:
        result: the calibration.
        pairs: all pairs in which the board was found.
        example: a raw pair, RGB, to show rectified.
        options: the board.
        output: the .npz file; the others lie beside it, `rig.npz` with `rig_report.txt`, `rig_coverage.png` and
            `rig_rectified.png`.
    """
    rig, board = result.calibration, Board(options)
    output.parent.mkdir(parents=True, exist_ok=True)
    figures: dict[str, float | int | str] = {
        "pattern": options.pattern,
        "rows": board.rows,
        "cols": board.columns,
        "square_size": (options.square_mm or 0) / 1000,
        "pairs": len(result.used),
        "stereo_rms": result.stereo_rms_px,
        "mono_rms_l": result.left_rms_px,
        "mono_rms_r": result.right_rms_px,
        "row_error_mean": float(result.row_errors_px.mean()),
        "row_error_max": float(result.row_errors_px.max()),
        "focal_std": result.precision.focal_px,
        "baseline_std": result.precision.baseline_m,
        "depth_std_1m": result.precision.depth_m[0],
        "depth_std_3m": result.precision.depth_m[1],
    }
    save_calibration(output, rig, figures)
    used = [pair for pair in pairs if pair.name not in result.rejected]
    views = [pair.left for pair in used], [pair.right for pair in used]
    write_rgb(_beside(output, "coverage.png"), draw_coverage(*views, rig.height, rig.width))
    write_rgb(_beside(output, "rectified.png"), draw_rectified_pair(rig, *example))
    text = format_report(result, f"{options.pattern} of {options.corners} inner corners, {options.square_mm} mm")
    write_atomically(_beside(output, "report.txt"), lambda file: file.write(f"{text}\n".encode()), durable=False)
    return text


def _beside(output: Path, what: str) -> Path:
    return output.with_name(f"{output.stem}_{what}")


def format_report(result: CalibrationResult, board: str) -> str:
    """Return the report of a calibration, px and metres.

    Args:
        result: the calibration.
        board: description of the board.
    """
    rig = result.calibration
    rows_px = result.row_errors_px
    stereo = rig.stereo_calibration
    across_deg, down_deg = (
        2 * np.degrees(np.arctan(size / 2 / focal_px))
        for size, focal_px in ((rig.width, stereo.focal_px), (rig.height, stereo.focal_y_px))
    )
    worst = max(result.used, key=lambda pair: pair.max_row_px)
    errors = [
        f"{depth_std_from_disparity(disparity_from_depth(depth_m, stereo), _DISPARITY_ERROR_PX, stereo) * 100:.1f} cm "
        f"at {depth_m:g} m"
        for depth_m in _DEPTHS_M
    ]
    mean_px, percentile_px = rows_px.mean(), np.percentile(rows_px, 95)
    lines = [
        f"board: {board}; {len(result.used)} of {len(result.used) + len(result.rejected)} pairs used",
        f"reprojection error (RMS): left {result.left_rms_px:.3f} px, right {result.right_rms_px:.3f} px, "
        f"both together {result.stereo_rms_px:.3f} px",
        f"row difference after rectification: mean {mean_px:.3f} px, 95th percentile {percentile_px:.3f} px, "
        f"maximum {rows_px.max():.3f} px (in pair {worst.name})",
        f"baseline {stereo.baseline_m * 1000:.2f} mm; rectified at {rig.width}x{rig.height}: focal length "
        f"{stereo.focal_px:.1f} px, field of view {across_deg:.0f} x {down_deg:.0f} degrees",
        "standard deviations, by the covariance of the fit: " + describe_precision(result),
        f"coverage: corners in {result.coverage[0]:.0%} of the left image, {result.coverage[1]:.0%} of the right one",
        f"half a pixel of disparity is {', '.join(errors)}",
        *_describe_settings(rig),
        "",
        f"{'pair':16} {'left':>8} {'right':>8} {'both':>8} {'rows':>8}   RMS, and largest row difference, px",
    ]
    lines += [
        f"{pair.name:16} {pair.left_rms_px:8.3f} {pair.right_rms_px:8.3f} {pair.stereo_rms_px:8.3f} "
        f"{pair.max_row_px:8.3f}"
        for pair in result.used
    ]
    lines += [f"{name:16} rejected: {reason}" for name, reason in result.rejected.items()]
    lines += [f"warning: {warning}" for warning in list_warnings(result)]
    if result.proposed:
        lines += ["", "further pairs that would help most, and the standard deviation of depth at 3 m after each:"]
        depth_m = result.precision.depth_m[-1]
        lines += [
            f"  the board {view.description}: {1000 * depth_m * view.depth_ratio:.0f} mm" for view in result.proposed
        ]
    return "\n".join(lines)


def _describe_settings(rig: RigCalibration) -> list[str]:
    if rig.settings is None:
        return []
    sides = zip(("left", "right"), rig.settings, strict=True)
    return [f"settings of the {side} camera, in its driver's units: {settings}" for side, settings in sides]


def describe_precision(result: CalibrationResult) -> str:
    """Return the standard deviations of focal length, baseline and depth, in px and mm."""
    precision = result.precision
    depths = [
        f"depth ± {_two_digits(1000 * std_m)} mm at {depth_m:g} m"
        for depth_m, std_m in zip(DEPTHS_M, precision.depth_m, strict=True)
    ]
    lengths = (
        f"focal length ± {_two_digits(precision.focal_px)} px, baseline ± {_two_digits(1000 * precision.baseline_m)} mm"
    )
    return ", ".join([lengths, *depths])


def _two_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def list_warnings(result: CalibrationResult) -> list[str]:
    """Return what the user should know before relying on the calibration."""
    warnings = list(result.warnings)
    if result.precision.depth_m[0] > HIGH_DEPTH_STD * DEPTHS_M[0]:
        warnings.append(
            f"depth at {DEPTHS_M[0]:g} m is known to {result.precision.depth_m[0] / DEPTHS_M[0]:.0%} only (standard "
            "deviation); more pairs, as proposed below, improve it"
        )
    if result.stereo_rms_px > HIGH_RMS_PX:
        warnings.append(
            f"the reprojection error is {result.stereo_rms_px:.2f} px, usually at most {HIGH_RMS_PX} px; is the board "
            "flat and stiff, and do both cameras see it at the same time?"
        )
    for side, coverage in zip(("left", "right"), result.coverage, strict=True):
        if coverage < LOW_COVERAGE:
            warnings.append(
                f"corners cover only {coverage:.0%} of the {side} image, so the distortion is extrapolated elsewhere; "
                "hold the board into every corner of the image"
            )
    return warnings


def draw_rectified_pair(rig: RigCalibration, left: Image, right: Image) -> PairImage:
    """Return a raw pair, RGB, rectified and side by side, with lines along the rows: epipolar lines of both views."""
    pair = np.hstack(Rectifier(rig, height=rig.height, width=rig.width)(left, right))
    for index in range(1, _LINES):
        row = index * rig.height // _LINES
        cv2.line(pair, (0, row), (2 * rig.width, row), _LINE_COLOURS[index % 2], 1)
    return pair


def draw_coverage(left: list[BoardView], right: list[BoardView], height: int, width: int) -> PairImage:
    """Return both views side by side, RGB: green where corners were detected, red where they are missing."""
    return np.hstack([_draw_view_coverage(views, height, width) for views in (left, right)])


def _draw_view_coverage(views: list[BoardView], height: int, width: int) -> Image:
    cells = covered_cells(views, height, width)
    colours = np.where(cells[..., None], np.array(_COVERED, np.uint8), np.array(_UNCOVERED, np.uint8))
    image = np.asarray(cv2.resize(colours, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)
    for view in views:
        for column, row in view.corners_px:
            cv2.circle(image, (round(float(column)), round(float(row))), max(1, width // 320), _CORNER, -1)
    return np.asarray(cv2.rectangle(image, (0, 0), (width - 1, height - 1), (0, 0, 0), 1), np.uint8)
