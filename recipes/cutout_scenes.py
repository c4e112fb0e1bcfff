"""Scenes of photographs and of cut-outs from photographs, for `bake_pool.py`.

Cut-outs, images with a transparent background, stand before photographs, plain walls, or other scenes. Their outlines
and what is beside them are real, as far as a flat image of an object goes; the disparity is known everywhere.

The installed weights were trained with 213 photographs and 250 cut-outs, chosen by hand, of these Debian packages:
tuxpaint-stamps-default (cut-outs), gcompris-qt-data, gnome-backgrounds, mate-backgrounds, lomiri-wallpapers-16.04,
ukui-wallpapers, plasma-workspace-wallpapers and opencv-doc. No stereo pair is among them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from foundation_stereo_depth.data.synthetic.scenes import Views
from foundation_stereo_depth.stereo.sgbm import filled_from_background

HEIGHT, WIDTH = 480, 640
LARGEST_PX = 128.0  # of disparity
Y, X = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
Sample = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Returns colours, or disparities in px, at columns and rows of the left view."""


class SceneImages(NamedTuple):
    """What scenes are made of.

    Attributes:
        photographs: RGB.
        cutouts: RGBA.
    """

    photographs: list[np.ndarray]
    cutouts: list[np.ndarray]

    @classmethod
    def read(cls, folder: Path) -> "SceneImages":
        """Read all images of the folders `photographs` and `cutouts`."""
        photographs = [cv2.imread(str(path)) for path in sorted((folder / "photographs").iterdir())]
        cutouts = [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in sorted((folder / "cutouts").iterdir())]
        return cls(
            [np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB)) for image in photographs],
            [np.asarray(cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA)) for image in cutouts],
        )


class Layers:
    """Both views while objects are put before what is there already, and the disparity of each."""

    def __init__(self, left: np.ndarray, right: np.ndarray, disparity_px: np.ndarray, of_right_px: np.ndarray) -> None:
        self.left, self.right = left.astype(np.float32), right.astype(np.float32)
        self.disparity_px, self.of_right_px = disparity_px.copy(), of_right_px.copy()

    def darken(self, shade: np.ndarray) -> None:
        """Cast a shadow, 0 to 1 at each pixel of the left view, on whatever surface is there."""
        of_right = cv2.remap(shade, X + self.of_right_px, Y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        self.left *= (1 - shade)[..., None]
        self.right *= (1 - of_right)[..., None]

    def put(
        self, sprite: np.ndarray, place: Sample, disparity_px: Sample, centre: tuple[float, float], radius_px: float
    ) -> None:
        """Put an object before the rest.

        Args:
            sprite: colours times alpha, and alpha.
            place: where in the sprite a pixel of the left view is.
            disparity_px: of the object.
            centre: column and row of the object in the left view.
            radius_px: around it, what the object may cover there.
        """
        column, row = centre
        rows = slice(max(0, int(row - radius_px)), max(0, int(row + radius_px)))
        first, last = max(0, int(column - radius_px)), max(0, int(column + radius_px))
        moved_to = max(0, int(column - radius_px - 1.5 * LARGEST_PX))
        for is_right, window in ((False, np.s_[rows, first:last]), (True, np.s_[rows, moved_to:last])):
            x, y = X[window], Y[window]
            if not x.size:
                continue
            seen_at = _seen_at(x, y, disparity_px) if is_right else x
            u, v = place(seen_at, y).astype(np.float32)
            drawn = np.asarray(cv2.remap(sprite, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT))
            view, map_px = (self.right, self.of_right_px) if is_right else (self.left, self.disparity_px)
            view[window] = view[window] * (1 - drawn[..., 3:]) + drawn[..., :3]
            np.copyto(map_px[window], disparity_px(seen_at, y), where=drawn[..., 3] > 0.5)


def render_cutouts(images: SceneImages, seed: int, index: int, behind: Views | None) -> Views:
    """Return a scene of 640x480: cut-outs before another scene, or before photographs and plain surfaces."""
    rng = np.random.default_rng((seed, index, 9))
    if behind is None:
        farthest_px = _log_uniform(rng, 3, 70)
        layers = _background(images, rng, farthest_px)
    else:
        disparity_px = behind.disparity_px[0]
        farthest_px = float(np.median(disparity_px))
        layers = Layers(behind.left[0], behind.right[0], disparity_px, _of_right(disparity_px))
    depth_px = _log_uniform(rng, 4, max(5.0, min(100.0, LARGEST_PX - farthest_px)))
    for nearness in np.sort(rng.uniform(0.05, 1, int(rng.integers(2, 18)))):
        _add_object(images, rng, layers, float(nearness * depth_px), farthest_px)
    left, right = (np.clip(view + 0.5, 0, 255).astype(np.uint8)[None] for view in (layers.left, layers.right))
    return Views(left, right, layers.disparity_px[None].astype(np.float32))


def _add_object(
    images: SceneImages, rng: np.random.Generator, layers: Layers, before_px: float, farthest_px: float
) -> None:
    """Add one object, so many px of disparity before the background; half of them cast a shadow."""
    size_px = _log_uniform(rng, 40, 420)
    sprite, is_round = _cutout(images, rng, size_px)
    height, width = sprite.shape[:2]
    angle = rng.uniform(-0.35, 0.35) if rng.random() < 0.6 else 0.0
    cosine, sine = float(np.cos(angle)), float(np.sin(angle))
    centre_x, centre_y = rng.uniform(-0.05, 1.05) * WIDTH, rng.uniform(0, 1.05) * HEIGHT
    slope_x, slope_y = rng.normal(0, 0.03, 2)
    bulge_px = rng.uniform(0, 0.12) * min(width, height) / 2 if is_round else 0.0
    behind_px = -0.3 * before_px - 2  # how far its own far side may be behind its centre

    def place(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        dx, dy = x - centre_x, y - centre_y
        return np.stack([cosine * dx + sine * dy + width / 2, cosine * dy - sine * dx + height / 2])

    def disparity_px(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        u, v = place(x, y)
        outward = np.clip((2 * u / width - 1) ** 2 + (2 * v / height - 1) ** 2, 0, 1)
        slant = np.clip(slope_x * (x - centre_x), behind_px, 20) + np.clip(slope_y * (y - centre_y), behind_px, 20)
        return farthest_px + before_px + slant + bulge_px * (1 - outward)

    if rng.random() < 0.45:
        at = place(X - rng.normal(0, 0.06) * size_px, Y - rng.uniform(-0.02, 0.1) * size_px).astype(np.float32)
        shade = cv2.remap(sprite[..., 3], at[0], at[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
        # Blurred at a quarter of the size, which is enough for a soft shadow.
        small = cv2.resize(shade, (WIDTH // 4, HEIGHT // 4), interpolation=cv2.INTER_AREA)
        small = cv2.GaussianBlur(small, (0, 0), max(0.4, _log_uniform(rng, 0.02, 0.15) * size_px / 4))
        layers.darken(np.asarray(cv2.resize(small, (WIDTH, HEIGHT))) * np.float32(rng.uniform(0.15, 0.7)))
    layers.put(sprite, place, disparity_px, (centre_x, centre_y), float(np.hypot(width, height)) / 2 + 4)


def _cutout(images: SceneImages, rng: np.random.Generator, size_px: float) -> tuple[np.ndarray, bool]:
    """Return an object of about that size, colours times alpha and alpha; and whether it is round."""
    if rng.random() < 0.7:
        image = images.cutouts[rng.integers(len(images.cutouts))]
        image = np.ascontiguousarray(image[:, ::-1] if rng.random() < 0.5 else image)
        factor = min(size_px / max(image.shape[:2]), 1.6)
        mode = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
        image = np.asarray(cv2.resize(image, None, fx=factor, fy=factor, interpolation=mode))
        colours, alpha = _tint(image[..., :3], rng, 0.5, 1.3), image[..., 3:].astype(np.float32) / 255
        is_round = rng.random() < 0.7
    else:
        colours, alpha, is_round = _piece(images, rng, size_px)
    sprite = np.concatenate([colours * alpha, alpha], axis=2).astype(np.float32)
    return np.asarray(cv2.copyMakeBorder(sprite, 2, 2, 2, 2, cv2.BORDER_CONSTANT)), is_round


def _piece(images: SceneImages, rng: np.random.Generator, size_px: float) -> tuple[np.ndarray, np.ndarray, bool]:
    """Return a rectangle, rod, ellipse or polygon of a photograph or of a plain surface; its alpha; if it is round."""
    height, width = (max(5, int(size_px * rng.uniform(0.3, 1))) for _ in range(2))
    if rng.random() < 0.3:
        height, width = max(5, int(size_px * rng.uniform(0.02, 0.1))), int(size_px)
    if rng.random() < 0.5:
        height, width = width, height
    mask, kind = np.zeros((2 * height, 2 * width), np.uint8), rng.random()
    if kind < 0.35:
        mask[:] = 255
    elif kind < 0.6:
        cv2.ellipse(mask, (width, height), (width - 1, height - 1), 0, 0, 360, 255, -1)
    else:
        corners = int(rng.integers(3, 9))
        angles, radii = np.sort(rng.uniform(0, 2 * np.pi, corners)), rng.uniform(0.4, 1, corners)
        outline = np.stack([width * (1 + radii * np.cos(angles)), height * (1 + radii * np.sin(angles))], axis=1)
        cv2.fillPoly(mask, [outline.astype(np.int32)], 255)
    alpha = np.asarray(cv2.resize(mask, (width, height), interpolation=cv2.INTER_AREA))[..., None] / np.float32(255)
    paint = _photograph(images, rng) if rng.random() < 0.65 else _plain(images, rng)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    colours = paint(x + np.float32(rng.uniform(0, WIDTH)), y + np.float32(rng.uniform(0, HEIGHT)))
    is_round = kind >= 0.35 and bool(rng.random() < 0.5)
    if is_round:
        outward = np.clip((2 * x / width - 1) ** 2 + (2 * y / height - 1) ** 2, 0, 1)[..., None]
        colours = colours * (1 - np.float32(rng.uniform(0.1, 0.6)) * outward**2)
    return colours, alpha, is_round


def _background(images: SceneImages, rng: np.random.Generator, farthest_px: float) -> Layers:
    """Return a wall, often with a floor or with a second wall, each a photograph or plain."""

    def surface() -> Sample:
        return _photograph(images, rng) if rng.random() < 0.6 else _plain(images, rng)

    def plane(x0: float, y0: float, slope_x: float, slope_y: float) -> Sample:
        return lambda x, y: farthest_px + slope_x * (x - x0) + slope_y * (y - y0)

    walls = [(plane(WIDTH / 2, HEIGHT / 2, rng.normal(0, 0.012), rng.normal(0, 0.006)), surface())]
    if rng.random() < 0.45:
        floor = plane(WIDTH / 2, rng.uniform(0.45, 0.95) * HEIGHT, rng.normal(0, 0.02), rng.uniform(0.08, 0.3))
        walls.append((floor, surface()))
    if rng.random() < 0.25:
        x0 = rng.uniform(0.1, 0.9) * WIDTH
        walls.append((plane(x0, 0, np.copysign(rng.uniform(0.05, 0.3), x0 - WIDTH / 2), 0), surface()))

    def disparity_px(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.maximum(np.max([wall(x, y) for wall, _ in walls], axis=0), 0.5).astype(np.float32)

    def paint(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        nearest = np.argmax([wall(x, y) for wall, _ in walls], axis=0)
        return np.choose(nearest[..., None], [colours(x, y) for _, colours in walls])

    seen_at = _seen_at(X, Y, disparity_px)
    return Layers(paint(X, Y), paint(seen_at, Y), disparity_px(X, Y), disparity_px(seen_at, Y))


def _photograph(images: SceneImages, rng: np.random.Generator) -> Sample:
    """Return a photograph as an endless surface, mirrored beyond its borders."""
    image = images.photographs[rng.integers(len(images.photographs))]
    factor = max(WIDTH / image.shape[1], HEIGHT / image.shape[0]) * _log_uniform(rng, 0.5, 2)
    if factor < 1:
        image = np.asarray(cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA))
    texels_per_px = 1 / max(factor, 1.0)
    colours = np.ascontiguousarray(_tint(image, rng, 0.45, 1.25)[:, :: rng.choice((-1, 1))])
    angle = rng.uniform(-0.2, 0.2) if rng.random() < 0.5 else 0.0
    cosine, sine = np.cos(angle) * texels_per_px, np.sin(angle) * texels_per_px
    u0, v0 = rng.uniform(0, colours.shape[1]), rng.uniform(0, colours.shape[0])

    def paint(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        dx, dy = x - WIDTH / 2, y - HEIGHT / 2
        at = [(cosine * dx + sine * dy + u0), (cosine * dy - sine * dx + v0)]
        u, v = (each.astype(np.float32) for each in at)
        return np.asarray(cv2.remap(colours, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101))

    return paint


def _plain(images: SceneImages, rng: np.random.Generator) -> Sample:
    """Return a surface of nearly one colour: lit unevenly, with the faint texture of a photograph."""
    colour = np.clip(rng.uniform(20, 245) + rng.uniform(-20, 20, 3), 5, 250).astype(np.float32)
    texture, contrast, slopes = _photograph(images, rng), _log_uniform(rng, 0.01, 0.2), rng.normal(0, 0.15, 3)

    def paint(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        detail = texture(x, y)
        across, down = x / WIDTH - 0.5, y / HEIGHT - 0.5
        light = 1 + slopes[0] * across + slopes[1] * down + slopes[2] * across * down
        painted = colour * light[..., None] + (detail - detail.mean(axis=(0, 1))) * contrast
        return np.clip(painted, 0, 255).astype(np.float32)

    return paint


def _tint(image: np.ndarray, rng: np.random.Generator, darkest: float, brightest: float) -> np.ndarray:
    """Return the image less saturated, in half of the cases of another contrast, brighter or darker."""
    colours = image.astype(np.float32)
    grey = colours.mean(axis=2, keepdims=True)
    colours = grey + (colours - grey) * np.float32(rng.uniform(0.2, 1.1))
    contrast = _log_uniform(rng, 0.35, 1.15) if rng.random() < 0.5 else 1.0
    mean = colours.mean()
    lit = (mean + (colours - mean) * contrast) * _log_uniform(rng, darkest, brightest) + rng.uniform(-15, 15)
    return np.clip(lit * (1 + rng.uniform(-0.1, 0.1, 3)), 0, 255).astype(np.float32)


def _seen_at(x: np.ndarray, y: np.ndarray, disparity_px: Sample) -> np.ndarray:
    """Return where the left view shows what the right one shows at each pixel, by fixed-point iteration."""
    seen_at = x + disparity_px(x, y)
    for _ in range(8):
        seen_at = x + disparity_px(seen_at, y)
    return seen_at.astype(np.float32)


def _of_right(disparity_px: np.ndarray) -> np.ndarray:
    """Return the disparity of the right view, px: that of the left one moved there, the nearest last; holes filled."""
    columns, rows = np.rint(X - disparity_px).astype(np.intp), Y.astype(np.intp)
    order = np.argsort(disparity_px, axis=None)
    order = order[(columns.ravel()[order] >= 0) & (columns.ravel()[order] < WIDTH)]
    moved = np.zeros_like(disparity_px)
    moved[rows.ravel()[order], columns.ravel()[order]] = disparity_px.ravel()[order]
    return filled_from_background(moved, moved > 0)


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
