"""Fusion of disparity over time: noise averages out where nothing moves, by the variance that the matcher predicts.

A pixel keeps a mean and the variance of its noise. A new disparity that agrees with the mean enters by inverse-variance
weights, as in a Kalman filter whose state is constant; one that does not agree restarts the pixel, and so does a change
of the left image there, which shows a moving edge before the disparity does.
"""

import dataclasses

import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8

from foundation_stereo_depth.stereo.match import StereoMatch

_AGREES_WITHIN, _AGREES_PX = 3.0, 2.0
"""A disparity agrees within so many standard deviations, and never beyond so many px."""
_IMAGE_CHANGE = 3.0
"""Change of the blurred left image, of 255 levels, that restarts a pixel."""
_REMOVED = 0.25
"""Share of the predicted variance that changes from frame to frame, so that an average removes it; the rest is the same
error in all frames of a still scene. Measured (docs/experiments/live.md): still and moving, the 68 % interval holds at
least as much as before."""
_BLUR_PX = 5
_SIGMA_WITHOUT_PX = 0.5
"""Assumed for a matcher that predicts no standard deviation."""
_MIN_SIGMA_PX = 1e-3

Map = Float32[np.ndarray, "H W"]


class TemporalFusion:
    """Averages matches of a sequence; call it with each match in turn.

    Args:
        forgetting: how much of what a pixel has learnt is kept from one frame to the next, 0 to 1: with 0.9 the average
            extends over about ten frames, with 0 over one.
    """

    def __init__(self, forgetting: float) -> None:
        self._forgetting = np.float32(forgetting)
        self._mean_px: Map | None = None
        self._variance: Map | None = None
        self._grey: Map | None = None

    def __call__(self, left: UInt8[np.ndarray, "H W 3"], match: StereoMatch) -> StereoMatch:
        """Return the match with its disparity and standard deviation fused with those before.

        Args:
            left: the left view of the match, RGB.
            match: of the next frame.
        """
        grey = _blurred_grey(left)
        sigma_px = np.float32(_SIGMA_WITHOUT_PX) if match.sigma_px is None else match.sigma_px
        variance = np.broadcast_to(np.maximum(sigma_px, np.float32(_MIN_SIGMA_PX)) ** 2, match.disparity_px.shape)
        if self._mean_px is None or self._mean_px.shape != match.disparity_px.shape:
            self._mean_px, self._variance, self._grey = match.disparity_px.copy(), variance.copy(), grey
            return match
        assert self._variance is not None
        assert self._grey is not None
        before = self._variance / max(self._forgetting, np.float32(1e-6))
        keep = self._agrees(match.disparity_px, variance, before, grey)
        gain = np.where(keep, before / (before + variance), np.float32(1))
        difference = match.disparity_px - self._mean_px
        mean_px = np.where(keep, self._mean_px + gain * difference, match.disparity_px)
        fused = np.where(keep, gain * variance, variance)
        self._mean_px, self._variance = mean_px, fused
        self._grey = np.where(keep, self._grey + gain * (grey - self._grey), grey)
        return _replace(match, mean_px, variance, fused)

    def _agrees(self, disparity_px: Map, variance: Map, before: Map, grey: Map) -> Bool[np.ndarray, "H W"]:
        assert self._mean_px is not None
        assert self._grey is not None
        limit = np.minimum((before + variance) * np.float32(_AGREES_WITHIN**2), np.float32(_AGREES_PX**2))
        difference = disparity_px - self._mean_px
        # NaN agrees with nothing, so that an unknown pixel stays unknown, and a known one restarts.
        return (difference * difference <= limit) & (np.abs(grey - self._grey) <= np.float32(_IMAGE_CHANGE))


def _blurred_grey(left: UInt8[np.ndarray, "H W 3"]) -> Map:
    grey = cv2.blur(cv2.cvtColor(left, cv2.COLOR_RGB2GRAY), (_BLUR_PX, _BLUR_PX))
    return np.asarray(grey, np.float32)


def _replace(match: StereoMatch, mean_px: Map, variance: Map, fused: Map) -> StereoMatch:
    """Return the match with a fused disparity: its variance loses the noise that was averaged out, and nothing else."""
    if match.sigma_px is None:
        return dataclasses.replace(match, disparity_px=mean_px)
    sigma_px = match.sigma_px * np.sqrt(1 - np.float32(_REMOVED) * (1 - fused / variance))
    return dataclasses.replace(match, disparity_px=mean_px, sigma_px=sigma_px)
