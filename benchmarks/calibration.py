"""Compare corner refinements and distortion models on real pairs of a board: tables.

Corners: sub-pixel windows of a fixed half width, or of a fraction of the smallest distance of two corners in the view.
Distortion models: error of a held-out pair (leave-one-out): differences of rows after rectification, and the lengths of
the board's sides.

    uv run python benchmarks/calibration.py --left 'left*.jpg' --right 'right*.jpg' --corners 9x6
"""

import argparse

import cv2
import numpy as np

from foundation_stereo_depth.data.pairs import find_pairs
from live_camera.board import Board, min_corner_distance_px
from live_camera.options import BoardOptions

CRITERIA = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 300, 1e-10)
FIXED_PX = (3, 5, 11)
FRACTIONS = (0.2, 0.25, 0.3, 0.35, 0.4, 0.5)
MODELS = {
    "5 coefficients": 0,
    "4 (k3 = 0)": cv2.CALIB_FIX_K3,
    "3 (no tangential)": cv2.CALIB_FIX_K3 | cv2.CALIB_ZERO_TANGENT_DIST,
    "8 (rational)": cv2.CALIB_RATIONAL_MODEL,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--left", required=True)
    parser.add_argument("--right", required=True)
    parser.add_argument("--corners", default="9x6")
    asked = parser.parse_args()

    board = Board(BoardOptions(corners=asked.corners, square_mm=1000))  # lengths in squares
    grey, coarse, names = [], [], []
    for pair in find_pairs(asked.left, asked.right):
        views = [cv2.cvtColor(view, cv2.COLOR_RGB2GRAY) for view in (pair.left, pair.right)]
        flags = cv2.CALIB_CB_ADAPTIVE_THRESH | cv2.CALIB_CB_NORMALIZE_IMAGE
        detections = [cv2.findChessboardCorners(view, (board.columns, board.rows), flags=flags) for view in views]
        if all(found for found, _ in detections):
            grey.append(views)
            coarse.append([corners for _, corners in detections])
            names.append(pair.name)
    size = grey[0][0].shape[::-1]

    def refined(window_of) -> list[list[np.ndarray]]:
        def fine(view: np.ndarray, corners: np.ndarray) -> np.ndarray:
            window_px = window_of(corners)
            return cv2.cornerSubPix(view, corners.copy(), (window_px, window_px), (-1, -1), (3, 100, 1e-4)).reshape(
                -1, 2
            )

        return [[fine(*one) for one in zip(*both, strict=True)] for both in zip(grey, coarse, strict=True)]

    def window(fraction: float):
        grid = (board.rows, board.columns, 2)
        return lambda corners: max(2, round(fraction * min_corner_distance_px(corners.reshape(grid))))

    print("corners             stereo RMS   baseline   rows mean    95 %     max   in pair")
    ways = {f"window {px} px": lambda _, px=px: px for px in FIXED_PX} | {f"fraction {s}": window(s) for s in FRACTIONS}
    for name, way in ways.items():
        corners_px = refined(way)
        rms, *rig = fit_rig(board, corners_px, size, 0, joint=True)
        rows, _ = measure_errors(board, rig, corners_px, size)
        worst = names[int(rows.max(axis=1).argmax())]
        print(
            f"{name:18} {rms:11.3f} {np.linalg.norm(rig[5]):10.3f} {rows.mean():11.3f} {np.percentile(rows, 95):7.3f} "
            f"{rows.max():7.2f}   {worst}"
        )

    print("\nheld-out pairs      rows mean    95 %     max   length error, median %")
    corners_px = refined(window(0.3))
    for name, flags in MODELS.items():
        for joint in (False, True):
            rows, lengths = [], []
            for index in range(len(corners_px)):
                others = corners_px[:index] + corners_px[index + 1 :]
                _, *rig = fit_rig(board, others, size, flags, joint=joint)
                row, length = measure_errors(board, rig, [corners_px[index]], size)
                rows.append(row)
                lengths.append(length)
            rows, lengths = np.concatenate(rows), np.concatenate(lengths)
            way = "together" if joint else "each camera alone"
            print(
                f"{name:18} {rows.mean():10.3f} {np.percentile(rows, 95):7.3f} {rows.max():7.2f} "
                f"{100 * np.median(np.abs(lengths)):8.3f}   {way}"
            )


def fit_rig(board: Board, corners_px: list, size: tuple[int, int], flags: int, *, joint: bool) -> tuple:
    points = [board.points_m] * len(corners_px)
    sides = [[pair[side] for pair in corners_px] for side in (0, 1)]
    cameras = [cv2.calibrateCamera(points, views, size, None, None, flags=flags)[1:3] for views in sides]
    how = cv2.CALIB_USE_INTRINSIC_GUESS if joint else cv2.CALIB_FIX_INTRINSIC
    found = cv2.stereoCalibrate(
        points, *sides, *cameras[0], *cameras[1], size, flags=flags | how, criteria=CRITERIA
    )  # fmt: skip
    return found[:7]


def measure_errors(board: Board, rig: list, corners_px: list, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return differences of rows in px, one line per pair, and relative errors of the lengths of the board's sides."""
    r1, r2, p1, p2 = cv2.stereoRectify(*rig[:4], size, *rig[4:6], alpha=0)[:4]
    rows, lengths = [], []
    for pair in corners_px:
        left = cv2.undistortPoints(pair[0][:, None], *rig[:2], R=r1, P=p1)[:, 0]
        right = cv2.undistortPoints(pair[1][:, None], *rig[2:4], R=r2, P=p2)[:, 0]
        rows.append(np.abs(left[:, 1] - right[:, 1]))
        depth = -p2[0, 3] / (left[:, 0] - right[:, 0])
        points = np.stack([(left[:, 0] - p1[0, 2]) / p1[0, 0], (left[:, 1] - p1[1, 2]) / p1[1, 1], np.ones(len(left))])
        grid = (points * depth).T.reshape(board.rows, board.columns, 3)
        lengths += [
            np.linalg.norm(grid[:, -1] - grid[:, 0], axis=-1) / (board.columns - 1) - 1,
            np.linalg.norm(grid[-1] - grid[0], axis=-1) / (board.rows - 1) - 1,
        ]
    return np.array(rows), np.concatenate(lengths)


if __name__ == "__main__":
    main()
