"""What a calibration is worth, in words and pictures."""

import cv2
import numpy as np
from jaxtyping import UInt8

from foundation_stereo_depth.calibration.rig import RigCalibration
from foundation_stereo_depth.stereo.geometry import depth_std_from_disparity, disparity_from_depth
from live_camera.board import BoardView
from live_camera.rectify import Rectifier
from live_camera.solve import CalibrationResult, covered_cells

HIGH_RMS_PX = 0.6
"""Above this, measured on real webcams, something is wrong: a bent board, moving hands, unsynchronised eyes."""
LOW_COVERAGE = 0.5
_DISPARITY_ERROR_PX = 0.5
_DEPTHS_M = (0.5, 1.0, 2.0, 5.0)
_LINES = 24
_LINE_COLOURS = ((255, 60, 60), (60, 255, 60))
_SEEN, _UNSEEN, _CORNER = (60, 120, 60), (90, 45, 45), (255, 255, 255)

Picture = UInt8[np.ndarray, "H W 3"]
WidePicture = UInt8[np.ndarray, "H two_W 3"]
"""Both eyes side by side."""


def report(result: CalibrationResult, board: str) -> str:
    """The report of a calibration, px and metres.

    Args:
        result: what was found.
        board: what the board looks like.
    """
    rig = result.calibration
    rows_px = result.row_errors_px
    eyes = rig.stereo_calibration
    across_deg, down_deg = (
        2 * np.degrees(np.arctan(size / 2 / focal_px))
        for size, focal_px in ((rig.width, eyes.focal_px), (rig.height, eyes.focal_y_px))
    )
    worst = max(result.used, key=lambda pair: pair.largest_row_px)
    errors = [
        f"{depth_std_from_disparity(disparity_from_depth(depth_m, eyes), _DISPARITY_ERROR_PX, eyes) * 100:.1f} cm at "
        f"{depth_m:g} m"
        for depth_m in _DEPTHS_M
    ]
    mean_px, most_px = rows_px.mean(), np.percentile(rows_px, 95)
    lines = [
        f"board: {board}; {len(result.used)} of {len(result.used) + len(result.left_out)} pairs used",
        f"corners miss their places by (RMS): left {result.left_rms_px:.3f} px, right {result.right_rms_px:.3f} px, "
        f"both together {result.stereo_rms_px:.3f} px",
        f"rows after rectification differ by {mean_px:.3f} px (mean), {most_px:.3f} px (95 %), "
        f"{rows_px.max():.3f} px (at most, in pair {worst.name})",
        f"baseline {eyes.baseline_m * 1000:.2f} mm; rectified at {rig.width}x{rig.height}: focal length "
        f"{eyes.focal_px:.1f} px, field of view {across_deg:.0f} x {down_deg:.0f} degrees",
        f"corners were seen in {result.covered[0]:.0%} of the left picture, {result.covered[1]:.0%} of the right one",
        f"half a pixel of disparity is {', '.join(errors)}",
        "",
        f"{'pair':16} {'left':>8} {'right':>8} {'both':>8} {'rows':>8}   px: RMS, and the largest difference of rows",
    ]
    lines += [
        f"{pair.name:16} {pair.left_rms_px:8.3f} {pair.right_rms_px:8.3f} {pair.stereo_rms_px:8.3f} "
        f"{pair.largest_row_px:8.3f}"
        for pair in result.used
    ]
    lines += [f"{name:16} left out: {why}" for name, why in result.left_out.items()]
    return "\n".join([*lines, *(f"warning: {said}" for said in doubts(result))])


def doubts(result: CalibrationResult) -> list[str]:
    """What the user should know before trusting the calibration."""
    said: list[str] = []
    if result.stereo_rms_px > HIGH_RMS_PX:
        said.append(
            f"corners miss their places by {result.stereo_rms_px:.2f} px, where {HIGH_RMS_PX} is usual at most; is the "
            "board flat and stiff, and do both cameras see it at the same time?"
        )
    for eye, share in zip(("left", "right"), result.covered, strict=True):
        if share < LOW_COVERAGE:
            said.append(
                f"corners were seen in only {share:.0%} of the {eye} picture, so its lens is guessed elsewhere; hold "
                "the board into every corner"
            )
    return said


def rectified_picture(rig: RigCalibration, left: Picture, right: Picture) -> WidePicture:
    """A raw pair, RGB, rectified and side by side, with lines along the rows: what they cross on one side they should
    cross on the other.
    """
    pair = np.hstack(Rectifier(rig, height=rig.height, width=rig.width)(left, right))
    for index in range(1, _LINES):
        row = index * rig.height // _LINES
        cv2.line(pair, (0, row), (2 * rig.width, row), _LINE_COLOURS[index % 2], 1)
    return pair


def coverage_picture(left: list[BoardView], right: list[BoardView], height: int, width: int) -> WidePicture:
    """Both eyes side by side, RGB: green where corners have been seen, red where they are missing."""
    return np.hstack([_eye_coverage(views, height, width) for views in (left, right)])


def _eye_coverage(views: list[BoardView], height: int, width: int) -> Picture:
    cells = covered_cells(views, height, width)
    colours = np.where(cells[..., None], np.array(_SEEN, np.uint8), np.array(_UNSEEN, np.uint8))
    picture = np.asarray(cv2.resize(colours, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)
    for view in views:
        for column, row in view.corners_px:
            cv2.circle(picture, (round(float(column)), round(float(row))), max(1, width // 320), _CORNER, -1)
    return np.asarray(cv2.rectangle(picture, (0, 0), (width - 1, height - 1), (0, 0, 0), 1), np.uint8)
