"""What a scene is made of, and the loops that render it.

A primitive's disparity is a quadratic in left-image coordinates about its centre,

    d(u, v) = d0 + gx u + gy v + qx u^2 + qy v^2,      (u, v) = (x, y) - centre,

which a plane's is exactly: all its second-order terms are zero. Outline, texture and pattern are functions of
coordinates (a_x u + a_y v + a_1) w, where w is 1 for primitives drawn in the image, and 1 / d for planes in space,
whose coordinates in metres are such quotients. A pixel (x_right, y) of the right view asks for the u that solves
u - d(u, v) = u_right, which has a closed form. In both views the largest disparity wins, the nearest surface; so
disparity is exact, occlusion is right in both views, and each view sees texture of its own behind an edge.

The walls of a convex room, seen from inside, need nothing more: the nearest of them is the one in front.

Loops over the samples of a row are written so that LLVM vectorises them: float32 throughout, no branches, one job each,
scratch arrays between them.
"""

# Types of compiled functions are numba's to infer.
# pyright: basic

from typing import NamedTuple

import numpy as np

SAMPLES = 2
"""Samples across and down each pixel, whose colours are averaged."""
BAND_ROWS = 16
"""Rows of pixels rendered at a time."""
MOST_PRIMITIVES = 400

NO_PATTERN, CHESS, CELLS, BOOKS, FOLDS = range(5)
"""Patterns: chessboard; tiles, bricks or planks; backs of books; folds of a curtain."""

_GEOMETRY = ["centre_x", "centre_y", "d0", "gx", "gy", "qx", "qy"]
_FRAME = ["left_from", "left_to", "top", "bottom"]
_OUTLINE = ["p_x", "p_y", "p_1", "q_x", "q_y", "q_1", "roundness", "wobble", "wobble_rate", "wobble_phase", "hollow"]
_OUTLINE += ["gratings", "grating_share"]
_TEXTURE = ["a_x", "a_y", "a_1", "b_x", "b_y", "b_1", "red", "green", "blue", "red_c", "green_c", "blue_c"]
_LIGHT = ["shade_x", "shade_y", "normal_x", "normal_y", "normal_z"]
_PATTERN = ["m_x", "m_y", "m_1", "n_x", "n_y", "n_1", "joint_m", "joint_n", "shift", "vary", "tint"]
_PATTERN += ["red_2", "green_2", "blue_2"]
_FLAGS = ["unbounded", "projective", "content", "texture", "mipmapped", "lit", "pattern", "pattern_seed"]

PRIMITIVE = np.dtype(
    [(name, np.float32) for name in [*_GEOMETRY, *_FRAME, *_OUTLINE, *_TEXTURE, *_LIGHT, *_PATTERN]]
    + [(name, np.int32) for name in _FLAGS],
    align=True,
)
"""Fields by group.

- Geometry: px; disparity in px.
- Frame: px; holds the primitive in the left view.
- Outline: inside where a mix of max(|p|, |q|) (roundness 0) and p^2 + q^2 (roundness 1) lies between `hollow` and 1;
  p varies by `wobble` along q; of `gratings` gaps per unit of q only `grating_share` is solid. `unbounded`: everywhere.
- Texture: coordinates in texels, number of the texture, colour of its mean, and contrast, per channel.
- Light: relative change per px of (u, v), or (`lit`) a normal in camera axes that faces the lamps.
- Pattern: coordinates in cells, width of the joints as a share of a cell, shift of every other row, variation from
  cell to cell, and the second colour.
- `content`: where this primitive is nearest, one sees that one instead, as through a window; -1: itself.
"""

SETTING = np.dtype(
    [
        (name, np.float32)
        for name in ("focal_px", "baseline_m", "principal_x", "principal_y", "ambient", "exposure", "sharpening")
    ]
    + [(name, np.int32) for name in ("count", "walls", "exact", "lamps")],
    align=True,
)
"""A scene as a whole.

`walls`: so many of the first primitives are walls of a convex room. `exact`: every sample is shaded, not only those of
pixels that see several primitives.
"""


class Scene(NamedTuple):
    """Arrays that a scene is described by.

    Attributes:
        primitives: PRIMITIVE records, of which the first `count` are in use; walls and backgrounds come first.
        setting: one SETTING record.
        shadows: [2, 7], float32: how dark, and of two soft half planes 1/px across x, across y, and where.
        highlights: [2, 6], float32: how bright, centre x and y in the left view, 1/reach in x and y, disparity.
        lamps: [4, 4], float32: x, y, z in camera axes, m; power.
    """

    primitives: np.ndarray
    setting: np.ndarray
    shadows: np.ndarray
    highlights: np.ndarray
    lamps: np.ndarray


def empty_scene() -> Scene:
    """Return room for a scene."""
    return Scene(
        np.zeros(MOST_PRIMITIVES, PRIMITIVE),
        np.zeros(1, SETTING),
        np.zeros((2, 7), np.float32),
        np.zeros((2, 6), np.float32),
        np.zeros((4, 4), np.float32),
    )
