"""How good a network is on a source of samples."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from foundation_stereo_depth.data.augment.pipeline import as_pair
from foundation_stereo_depth.data.batch import VALIDATION_EPOCH, Positions, ReadCounts, Source, StereoBatch
from foundation_stereo_depth.metrics import DisparityErrors, disparity_errors
from foundation_stereo_depth.model import StereoPrediction, network_inputs
from foundation_stereo_depth.options.training import LossOptions
from foundation_stereo_depth.training.loss import heteroscedastic_loss
from foundation_stereo_depth.uncertainty import RATIO_BINS, error_ratio_counts


class Evaluation(NamedTuple):
    """Sums over the samples that one process saw, and its first batch to look at."""

    loss_total: float
    valid: float
    errors: DisparityErrors
    error_ratios: Tensor
    counts: ReadCounts
    example: tuple[StereoBatch, StereoPrediction] | None


@torch.inference_mode()
def evaluate(
    network: nn.Module,
    source: Source,
    plan: Sequence[Positions],
    options: LossOptions,
    *,
    precision: AbstractContextManager[object],
    after_batch: Callable[[], None],
) -> Evaluation:
    """Runs `network` over the batches of `plan`, unaugmented.

    Args:
        network: in evaluation mode.
        source: what to evaluate on.
        plan: positions in `source`, batch by batch.
        options: the loss to sum beside the errors.
        precision: the context to compute in, entered for each batch.
        after_batch: called between batches; may raise to stop.
    """
    device = next(network.parameters()).device
    loss_total, valid = 0.0, 0.0
    errors, counts = DisparityErrors.none(device), ReadCounts()
    error_ratios = torch.zeros(RATIO_BINS, dtype=torch.int64, device=device)
    example: tuple[StereoBatch, StereoPrediction] | None = None
    for host_batch in source.batches(plan, VALIDATION_EPOCH):
        batch = host_batch.to(device)
        inputs = network_inputs(network, as_pair(batch))
        with precision:
            prediction = network(*inputs)
        loss = heteroscedastic_loss(prediction, batch.disparity_px, options)
        loss_total += float(loss.total)
        valid += float(loss.valid)
        error_ratios += error_ratio_counts(prediction.disparity_px, prediction.log_variance, batch.disparity_px)
        errors += disparity_errors(prediction.disparity_px, batch.disparity_px)
        counts = counts.plus(batch.counts)
        example = example or (batch, prediction)
        after_batch()
    return Evaluation(loss_total, valid, errors, error_ratios, counts, example)
