"""Render raw images of a plane as a rig with distortion would take them: ground truth for the tests."""

from dataclasses import dataclass

import cv2
import numpy as np

from foundation_stereo_depth.calibration.rig import RigCalibration

SUPERSAMPLING = 2
"""Samples a side of each rendered pixel."""


@dataclass(frozen=True, kw_only=True)
class Plane:
    """An image on a plane in space, in metres and the left camera's axes.

    Attributes:
        image: RGB.
        origin_m: where its top left corner is.
        right_m, down_m: one pixel's step to the right and down.
    """

    image: np.ndarray
    origin_m: np.ndarray
    right_m: np.ndarray
    down_m: np.ndarray

    def point(self, column: float, row: float) -> np.ndarray:
        """Return the position of an image point, px from the top left corner."""
        return self.origin_m + column * self.right_m + row * self.down_m


def converging_rig(*, height: int = 240, width: int = 320) -> RigCalibration:
    """Return a rig with distortion whose right camera is turned by a degree about each axis: raw rows are off."""
    matrix = np.array([[0.8 * width, 0, 0.49 * width], [0, 0.8 * width, 0.51 * height], [0, 0, 1]])
    return RigCalibration(
        width=width,
        height=height,
        left_matrix=matrix,
        left_distortion=np.array([-0.1, 0.02, 0.001, 0.0, 0.0]),
        right_matrix=matrix,
        right_distortion=np.array([-0.12, 0.02, 0.0, 0.001, 0.0]),
        rotation=cv2.Rodrigues(np.array([0.02, 0.02, -0.02]))[0],
        translation_m=np.array([-0.06, 0.002, 0.001]),
    )


def plane_at(
    image: np.ndarray,
    pixel_m: float,
    centre_m: tuple[float, float, float],
    rotation_rad: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Plane:
    """Return an image centred at a position, facing the camera and then rotated."""
    rotation = cv2.Rodrigues(np.array(rotation_rad, np.float64))[0]
    right_m, down_m = rotation[:, 0] * pixel_m, rotation[:, 1] * pixel_m
    height, width = image.shape[:2]
    origin_m = np.array(centre_m) - right_m * width / 2 - down_m * height / 2
    return Plane(image=image, origin_m=origin_m, right_m=right_m, down_m=down_m)


class RenderedRig:
    """Renders planes by a calibration; rays are computed once."""

    def __init__(self, rig: RigCalibration) -> None:
        self._views = []
        for matrix, distortion, rotation, camera_m in (
            (rig.left_matrix, rig.left_distortion, np.eye(3), np.zeros(3)),
            (rig.right_matrix, rig.right_distortion, rig.rotation, -rig.rotation.T @ rig.translation_m),
        ):
            rows, columns = np.mgrid[: rig.height * SUPERSAMPLING, : rig.width * SUPERSAMPLING]
            pixels = (np.stack([columns, rows], axis=-1).reshape(-1, 1, 2) + 0.5) / SUPERSAMPLING - 0.5
            criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 50, 1e-9)
            if rig.distortion_model == "equidistant":
                normalised = cv2.fisheye.undistortPoints(pixels, matrix, distortion, criteria=criteria)
            else:
                normalised = cv2.undistortPoints(pixels, matrix, distortion, criteria=criteria)
            rays = cv2.convertPointsToHomogeneous(normalised).reshape(-1, 3) @ rotation
            self._views.append((camera_m, rays.reshape(rig.height * SUPERSAMPLING, rig.width * SUPERSAMPLING, 3)))
        self._size = (rig.width, rig.height)

    def pair(self, plane: Plane, background: int = 90) -> tuple[np.ndarray, np.ndarray]:
        """Return both raw views, RGB, of a plane before a grey background."""
        return self._render(plane, 0, background), self._render(plane, 1, background)

    def _render(self, plane: Plane, view: int, background: int) -> np.ndarray:
        camera_m, rays = self._views[view]
        # camera + t ray = origin + a right + b down, solved for a/t and b/t.
        to_plane = np.linalg.inv(np.column_stack([plane.right_m, plane.down_m, plane.origin_m - camera_m]))
        on_plane = rays @ to_plane.T
        columns, rows = (on_plane[..., axis] / on_plane[..., 2] - 0.5 for axis in (0, 1))
        fine = cv2.remap(
            plane.image,
            columns.astype(np.float32),
            rows.astype(np.float32),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=(background,) * 3,
        )
        return cv2.resize(fine, self._size, interpolation=cv2.INTER_AREA)


def chessboard(columns: int, rows: int, square_px: int) -> np.ndarray:
    """Return an RGB chessboard with a white border one square wide; columns and rows count inner corners."""
    down, across = np.mgrid[: rows + 1, : columns + 1]
    squares = np.where((down + across) % 2 == 0, 20, 235).astype(np.uint8)
    board = np.kron(squares, np.ones((square_px, square_px), np.uint8))
    return np.repeat(np.pad(board, square_px, constant_values=235)[..., None], 3, axis=2)


def noise_texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return RGB noise of several scales, so that every patch is distinctive."""
    random = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for step in (2, 4, 8, 16, 32):
        coarse = random.normal(size=(height // step + 2, width // step + 2, 3))
        total += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(127 + 40 * total, 0, 255).astype(np.uint8)
