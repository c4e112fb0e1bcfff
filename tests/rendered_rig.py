"""Raw pictures of a plane as a real rig, with its distortion, would take them: the truth that live tests start from."""

from dataclasses import dataclass

import cv2
import numpy as np

from foundation_stereo_depth.calibration.rig import RigCalibration

FINER = 2
"""Samples a side of each rendered pixel."""


@dataclass(frozen=True, kw_only=True)
class Plane:
    """A picture in space, in metres and the left camera's axes.

    Attributes:
        picture: RGB.
        origin_m: where its top left corner is.
        right_m, down_m: one pixel's step to the right and down.
    """

    picture: np.ndarray
    origin_m: np.ndarray
    right_m: np.ndarray
    down_m: np.ndarray

    def point(self, column: float, row: float) -> np.ndarray:
        """Where a place of the picture, px from its top left corner, is."""
        return self.origin_m + column * self.right_m + row * self.down_m


def plane_at(
    picture: np.ndarray,
    pixel_m: float,
    centre_m: tuple[float, float, float],
    turn_rad: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Plane:
    """A picture whose middle is at a place, facing the camera and then turned."""
    turn = cv2.Rodrigues(np.array(turn_rad, np.float64))[0]
    right_m, down_m = turn[:, 0] * pixel_m, turn[:, 1] * pixel_m
    height, width = picture.shape[:2]
    origin_m = np.array(centre_m) - right_m * width / 2 - down_m * height / 2
    return Plane(picture=picture, origin_m=origin_m, right_m=right_m, down_m=down_m)


class RenderedRig:
    """Takes pictures of planes by a calibration; rays are worked out once."""

    def __init__(self, rig: RigCalibration) -> None:
        self._eyes = []
        for matrix, lens, turn, place_m in (
            (rig.left_matrix, rig.left_distortion, np.eye(3), np.zeros(3)),
            (rig.right_matrix, rig.right_distortion, rig.rotation, -rig.rotation.T @ rig.translation_m),
        ):
            rows, columns = np.mgrid[: rig.height * FINER, : rig.width * FINER]
            pixels = (np.stack([columns, rows], axis=-1).reshape(-1, 1, 2) + 0.5) / FINER - 0.5
            criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 50, 1e-9)
            if rig.distortion_model == "equidistant":
                seen = cv2.fisheye.undistortPoints(pixels, matrix, lens, criteria=criteria)
            else:
                seen = cv2.undistortPoints(pixels, matrix, lens, criteria=criteria)
            rays = cv2.convertPointsToHomogeneous(seen).reshape(-1, 3) @ turn
            self._eyes.append((place_m, rays.reshape(rig.height * FINER, rig.width * FINER, 3)))
        self._size = (rig.width, rig.height)

    def pair(self, plane: Plane, background: int = 90) -> tuple[np.ndarray, np.ndarray]:
        """Both raw eyes, RGB, of a plane before a grey background."""
        return self._seen(plane, 0, background), self._seen(plane, 1, background)

    def _seen(self, plane: Plane, eye: int, background: int) -> np.ndarray:
        place_m, rays = self._eyes[eye]
        # place + t ray = origin + a right + b down, solved for (a, b) by the planes that hold the ray.
        into = np.linalg.inv(np.column_stack([plane.right_m, plane.down_m, plane.origin_m - place_m]))
        on_plane = rays @ into.T
        columns, rows = (on_plane[..., axis] / on_plane[..., 2] - 0.5 for axis in (0, 1))
        fine = cv2.remap(
            plane.picture,
            columns.astype(np.float32),
            rows.astype(np.float32),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=(background,) * 3,
        )
        return cv2.resize(fine, self._size, interpolation=cv2.INTER_AREA)


def chessboard(columns: int, rows: int, square_px: int) -> np.ndarray:
    """An RGB chessboard of so many inner corners, with a white border one square wide."""
    down, across = np.mgrid[: rows + 1, : columns + 1]
    squares = np.where((down + across) % 2 == 0, 20, 235).astype(np.uint8)
    board = np.kron(squares, np.ones((square_px, square_px), np.uint8))
    return np.repeat(np.pad(board, square_px, constant_values=235)[..., None], 3, axis=2)


def noise_texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """RGB noise of several scales, so that every patch of it is unlike every other."""
    random = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for step in (2, 4, 8, 16, 32):
        coarse = random.normal(size=(height // step + 2, width // step + 2, 3))
        total += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(127 + 40 * total, 0, 255).astype(np.uint8)
