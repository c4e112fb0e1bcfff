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
_SURROUNDINGS_PX = 9
"""A change of the image restarts the box of this side around it: a matcher looks at the surroundings of a pixel too."""
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
        self._forgetting = np.float32(max(forgetting, 1e-6))
        self._mean_px: Map | None = None
        self._variance: Map | None = None
        self._grey: Map | None = None

    def __call__(self, left: UInt8[np.ndarray, "H W 3"], match: StereoMatch) -> StereoMatch:
        """Return the match with its disparity and standard deviation fused with those before.

        The state is changed in place: a new array for each step would take most of the time.

        Args:
            left: the left view of the match, RGB.
            match: of the next frame.
        """
        grey, new_px = _blurred_grey(left), match.disparity_px
        variance = _variance_of(match)
        if self._mean_px is None or self._mean_px.shape != new_px.shape:
            self._mean_px, self._variance, self._grey = new_px.copy(), variance, grey
            return match
        assert self._variance is not None
        assert self._grey is not None
        before, grey_change = self._variance, grey - self._grey
        before /= self._forgetting
        gain = before + variance
        difference_px = new_px - self._mean_px
        restart = _disagree(difference_px, gain)
        restart |= _change_near(grey_change) > np.float32(_IMAGE_CHANGE)
        np.divide(before, gain, out=gain)
        gain[restart] = 1
        difference_px *= gain
        self._mean_px += difference_px
        np.copyto(self._mean_px, new_px, where=restart)  # NaN before or now does not add up to the new value
        np.multiply(gain, variance, out=self._variance)
        grey_change *= gain
        self._grey += grey_change
        return _replace(match, self._mean_px.copy(), gain)


def _variance_of(match: StereoMatch) -> Map:
    if match.sigma_px is None:
        return np.full(match.disparity_px.shape, _SIGMA_WITHOUT_PX**2, np.float32)
    variance = np.maximum(match.sigma_px, np.float32(_MIN_SIGMA_PX))
    variance *= variance
    return variance


def _disagree(difference_px: Map, variance: Map) -> Bool[np.ndarray, "H W"]:
    """Return where a disparity differs by more than its uncertainty. NaN disagrees with everything: an unknown pixel
    stays unknown, and a known one restarts.
    """
    limit = variance * np.float32(_AGREES_WITHIN**2)
    np.minimum(limit, np.float32(_AGREES_PX**2), out=limit)
    limit -= difference_px * difference_px
    return ~(limit >= 0)


def _change_near(grey_change: Map) -> Map:
    """Return the largest change of the image around each pixel, of 255 levels."""
    box = cv2.getStructuringElement(cv2.MORPH_RECT, (_SURROUNDINGS_PX, _SURROUNDINGS_PX))
    return np.asarray(cv2.dilate(np.abs(grey_change), box), np.float32)


def _blurred_grey(left: UInt8[np.ndarray, "H W 3"]) -> Map:
    grey = cv2.cvtColor(left, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return np.asarray(cv2.blur(grey, (_BLUR_PX, _BLUR_PX)), np.float32)


def _replace(match: StereoMatch, mean_px: Map, gain: Map) -> StereoMatch:
    """Return the match with a fused disparity: its variance loses the noise that was averaged out, and nothing else.

    Args:
        match: of the newest frame.
        mean_px: the fused disparity.
        gain: weight of the newest frame in it, which is how much of its noise is left.
    """
    if match.sigma_px is None:
        return dataclasses.replace(match, disparity_px=mean_px)
    gain *= np.float32(_REMOVED)
    gain += np.float32(1 - _REMOVED)
    np.sqrt(gain, out=gain)
    gain *= match.sigma_px
    return dataclasses.replace(match, disparity_px=mean_px, sigma_px=gain)
