"""Fusion of disparity over time: noise averages out where nothing moves, by the variance that the matcher predicts.

A pixel keeps a mean and the variance of its noise. A new disparity that agrees with the mean enters by inverse-variance
weights, as in a Kalman filter whose state is constant. One that does not agree is left out, unless that lasts for some
frames: where the image stays as it is, a matcher that jumps is wrong more often than right. A change of the left image
restarts the pixel at once; it shows a moving edge before the disparity does.
"""

import dataclasses
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8

from foundation_stereo_depth.stereo.match import StereoMatch

_AGREES_WITHIN, _AGREES_PX = 3.0, 2.0
"""A disparity agrees within so many standard deviations, and never beyond so many px."""
_LASTING_FRAMES = 5
"""So many disparities in a row that do not agree restart a pixel."""
_IMAGE_CHANGE = 3.0
"""Change of the blurred left image, of 255 levels, that restarts a pixel."""
_SURROUNDINGS_PX = 9
"""A change of the image restarts the box of this side around it: a matcher looks at the surroundings of a pixel too."""
_SURROUNDINGS = np.ones((_SURROUNDINGS_PX, _SURROUNDINGS_PX), np.uint8)
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
        self._state: _State | None = None

    def restart(self) -> None:
        """Forget all matches so far."""
        self._state = None

    def __call__(self, left: UInt8[np.ndarray, "H W 3"], match: StereoMatch) -> StereoMatch:
        """Return the match with its disparity and standard deviation fused with those before.

        Args:
            left: the left view of the match, RGB.
            match: of the next frame.
        """
        grey, new_px = _blurred_grey(left), match.disparity_px
        if self._state is None or self._state.mean_px.shape != new_px.shape:
            self._state = _State.begin(match, grey)
            return match
        state = self._state
        mean_px, before, reference, disagreements = state.mean_px, state.variance, state.grey, state.disagreements
        gain, difference, scratch = state.gain, state.difference, state.scratch
        variance = _variance_of(match, state.new_variance)
        before /= self._forgetting
        np.add(before, variance, out=gain)
        np.subtract(new_px, mean_px, out=difference)
        restart = np.not_equal(difference, difference)  # NaN, before or now
        left_out = _disagree(difference, gain, scratch)
        disagreements += 1
        disagreements *= left_out
        restart |= disagreements >= _LASTING_FRAMES
        np.subtract(grey, reference, out=scratch)
        restart |= _is_changed_near(scratch)
        left_out &= ~restart
        np.divide(before, gain, out=gain)
        _put(state.zeros, gain, where=left_out)
        _put(state.ones, gain, where=restart)
        difference *= gain
        mean_px += difference
        _put(new_px, mean_px, where=restart)  # NaN before or now does not add up to the new value
        disagreements *= ~restart
        scratch *= gain
        reference += scratch
        np.multiply(gain, variance, out=scratch)
        _put(scratch, before, where=~left_out)
        return _replace(match, mean_px.copy(), gain)


@dataclass(frozen=True, kw_only=True)
class _State:
    """What is known of each pixel, and arrays that are used again for each frame: new ones would take half of the time.

    Attributes:
        mean_px, variance: the fused disparity, and the variance of its noise.
        grey: the blurred left image, averaged as the disparity is.
        disagreements: how many of the latest disparities, in a row, did not agree with the mean.
        new_variance, gain, difference, scratch: of the present frame.
        zeros, ones: constant.
    """

    mean_px: Map
    variance: Map
    grey: Map
    disagreements: UInt8[np.ndarray, "H W"]
    new_variance: Map
    gain: Map
    difference: Map
    scratch: Map
    zeros: Map
    ones: Map

    @classmethod
    def begin(cls, match: StereoMatch, grey: Map) -> "_State":
        """Return the state after a first frame."""
        new_variance, gain, difference, scratch = (np.empty_like(match.disparity_px) for _ in range(4))
        return cls(
            mean_px=match.disparity_px.copy(),
            variance=_variance_of(match, new_variance).copy(),
            grey=grey,
            disagreements=np.zeros(grey.shape, np.uint8),
            new_variance=new_variance,
            gain=gain,
            difference=difference,
            scratch=scratch,
            zeros=np.zeros_like(grey),
            ones=np.ones_like(grey),
        )


def _put(source: Map, target: Map, *, where: Bool[np.ndarray, "H W"]) -> None:
    """Copy the marked pixels; in a twentieth of the time of `numpy.copyto`."""
    cv2.copyTo(source, where.view(np.uint8), target)


def _variance_of(match: StereoMatch, out: Map) -> Map:
    if match.sigma_px is None:
        out.fill(_SIGMA_WITHOUT_PX**2)
        return out
    np.maximum(match.sigma_px, np.float32(_MIN_SIGMA_PX), out=out)
    out *= out
    return out


def _disagree(difference: Map, variance: Map, scratch: Map) -> Bool[np.ndarray, "H W"]:
    """Return where a disparity differs by more than its uncertainty, or is NaN."""
    np.multiply(difference, difference, out=scratch)
    agrees = scratch <= np.float32(_AGREES_PX**2)
    scratch *= np.float32(_AGREES_WITHIN**-2)
    agrees &= scratch <= variance
    return np.logical_not(agrees, out=agrees)


def _is_changed_near(grey_change: Map) -> Bool[np.ndarray, "H W"]:
    """Return where the image changed, or does in the surroundings."""
    changed = np.abs(grey_change) > np.float32(_IMAGE_CHANGE)
    if not changed.any():
        return changed
    return np.asarray(cv2.dilate(changed.view(np.uint8), _SURROUNDINGS)).view(np.bool_)


def _blurred_grey(left: UInt8[np.ndarray, "H W 3"]) -> Map:
    return cv2.blur(cv2.cvtColor(left, cv2.COLOR_RGB2GRAY), (_BLUR_PX, _BLUR_PX)).astype(np.float32)


def _replace(match: StereoMatch, mean_px: Map, gain: Map) -> StereoMatch:
    """Return the match with a fused disparity: its variance loses the noise that was averaged out, and nothing else.

    Args:
        match: of the newest frame.
        mean_px: the fused disparity.
        gain: weight of the newest frame in it, which is how much of its noise is left.
    """
    if match.sigma_px is None:
        return dataclasses.replace(match, disparity_px=mean_px)
    sigma_px = gain * np.float32(_REMOVED)
    sigma_px += np.float32(1 - _REMOVED)
    np.sqrt(sigma_px, out=sigma_px)
    sigma_px *= match.sigma_px
    return dataclasses.replace(match, disparity_px=mean_px, sigma_px=sigma_px)
