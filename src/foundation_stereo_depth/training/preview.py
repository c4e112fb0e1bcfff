"""One picture that shows how training goes: the pair, the truth, the prediction, its error and its own doubt."""

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from foundation_stereo_depth.data.batch import StereoBatch
from foundation_stereo_depth.model.prediction import StereoPrediction
from foundation_stereo_depth.stereo.disparity import valid_mask


def preview_figure(batch: StereoBatch, prediction: StereoPrediction, title: str, rows: int = 3) -> Figure:
    """Left, right, truth, prediction, absolute error and standard deviation of the first samples, in px."""
    rows = min(rows, len(batch.indices))
    figure = Figure(figsize=(19, 2.55 * rows + 0.5), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(rows, 6, squeeze=False)
    for row in range(rows):
        truth_px = _plane(batch.disparity_px, row)
        truth_px = np.where(valid_mask(truth_px), truth_px, np.nan)
        disparity_px = _plane(prediction.disparity_px, row)
        sigma_px = np.exp(0.5 * _plane(prediction.log_variance, row))
        error_px = np.abs(disparity_px - truth_px)
        known = truth_px if np.isfinite(truth_px).any() else disparity_px
        largest_px = float(np.nanpercentile(known, 99.5))
        # One scale for error and sigma: where the network is honest the two look alike.
        doubt_px = max(1.0, float(np.nanpercentile(sigma_px, 95)))
        pictures = [
            ("left", batch.left[row].permute(1, 2, 0).cpu().numpy(), None),
            ("right", batch.right[row].permute(1, 2, 0).cpu().numpy(), None),
            ("true disparity, px", truth_px, ("turbo", largest_px)),
            ("predicted disparity, px", disparity_px, ("turbo", largest_px)),
            ("absolute error, px", error_px, ("magma", doubt_px)),
            ("predicted standard deviation, px", sigma_px, ("magma", doubt_px)),
        ]
        for axis, (name, picture, colours) in zip(axes[row], pictures, strict=True):
            axis.set_axis_off()
            if row == 0:
                axis.set_title(name, fontsize=10)
            axis.set_facecolor("grey")
            if colours is None:
                axis.imshow(picture)
            else:
                shown = axis.imshow(picture, cmap=colours[0], vmin=0, vmax=colours[1], interpolation="nearest")
                figure.colorbar(shown, ax=axis, shrink=0.8)
    return figure


def _plane(maps: Float[Tensor, "B 1 H W"], row: int) -> Float[np.ndarray, "H W"]:
    return maps[row, 0].float().cpu().numpy()
