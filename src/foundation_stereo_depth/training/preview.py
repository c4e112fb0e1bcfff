"""A figure that shows the progress of training: pairs, ground truth, prediction, its error and its uncertainty."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from foundation_stereo_depth.data.batch import StereoBatch
from foundation_stereo_depth.model.prediction import StereoPrediction
from foundation_stereo_depth.stereo.disparity import valid_mask


def draw_preview(examples: Sequence[tuple[StereoBatch, StereoPrediction]], title: str, rows: int = 8) -> Figure:
    """Draw left, right, truth, prediction, absolute error and standard deviation of the first samples, in px."""
    samples = [(*example, row) for example in examples for row in range(len(example[0].indices))][:rows]
    rows = len(samples)
    figure = Figure(figsize=(19, 2.55 * rows + 0.5), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(rows, 6, squeeze=False)
    for number, (batch, prediction, row) in enumerate(samples):
        truth_px = _map_of(batch.disparity_px, row)
        truth_px = np.where(valid_mask(truth_px), truth_px, np.nan)
        disparity_px = _map_of(prediction.disparity_px, row)
        sigma_px = np.exp(0.5 * _map_of(prediction.log_variance, row))
        error_px = np.abs(disparity_px - truth_px)
        known = truth_px if np.isfinite(truth_px).any() else disparity_px
        largest_px = float(np.nanpercentile(known, 99.5))
        # One colour scale for error and sigma: where the uncertainty is well calibrated the two look alike.
        largest_error_px = max(1.0, float(np.nanpercentile(sigma_px, 95)))
        images = [
            ("left", batch.left[row].permute(1, 2, 0).cpu().numpy(), None),
            ("right", batch.right[row].permute(1, 2, 0).cpu().numpy(), None),
            ("true disparity, px", truth_px, ("turbo", largest_px)),
            ("predicted disparity, px", disparity_px, ("turbo", largest_px)),
            ("absolute error, px", error_px, ("magma", largest_error_px)),
            ("predicted standard deviation, px", sigma_px, ("magma", largest_error_px)),
        ]
        for axis, (name, image, colours) in zip(axes[number], images, strict=True):
            axis.set_axis_off()
            if number == 0:
                axis.set_title(name, fontsize=10)
            axis.set_facecolor("grey")
            if colours is None:
                axis.imshow(image)
            else:
                shown = axis.imshow(image, cmap=colours[0], vmin=0, vmax=colours[1], interpolation="nearest")
                figure.colorbar(shown, ax=axis, shrink=0.8)
    return figure


def _map_of(maps: Float[Tensor, "B 1 H W"], row: int) -> Float[np.ndarray, "H W"]:
    return maps[row, 0].float().cpu().numpy()
