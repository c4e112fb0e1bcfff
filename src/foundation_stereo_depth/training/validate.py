"""Evaluation of the network on validation samples while it trains."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from foundation_stereo_depth.data.augment.pipeline import as_pair
from foundation_stereo_depth.data.batch import VALIDATION_EPOCH, Positions, ReadCounts, Source, StereoBatch
from foundation_stereo_depth.metrics import DisparityErrors, disparity_errors
from foundation_stereo_depth.model import StereoPrediction, network_inputs
from foundation_stereo_depth.options.training import LossOptions
from foundation_stereo_depth.training.loss import loss_terms
from foundation_stereo_depth.uncertainty import RATIO_BINS, error_ratio_counts, likelihood_sums

PREVIEW_PAIRS = 8
"""The first validation samples, which every preview shows."""
_COMPARED_SAMPLES = 1024
"""A validation within an epoch takes at most so many, and `best.pt` is the best on these."""


class Evaluation(NamedTuple):
    """Sums over the samples that one process evaluated, and its first batches with their predictions.

    Attributes:
        loss_sums: of each term of the loss, unweighted.
        valid: pixels that they are summed over.
    """

    loss_sums: dict[str, float]
    valid: float
    errors: DisparityErrors
    error_ratios: Tensor
    likelihood: Tensor
    counts: ReadCounts
    examples: list[tuple[StereoBatch, StereoPrediction]]

    def plus(self, other: "Evaluation") -> "Evaluation":
        """Return the sums over the samples of both, with the examples of this one."""
        names = [*self.loss_sums, *(name for name in other.loss_sums if name not in self.loss_sums)]
        return Evaluation(
            loss_sums={name: self.loss_sums.get(name, 0.0) + other.loss_sums.get(name, 0.0) for name in names},
            valid=self.valid + other.valid,
            errors=self.errors + other.errors,
            error_ratios=self.error_ratios + other.error_ratios,
            likelihood=self.likelihood + other.likelihood,
            counts=self.counts.plus(other.counts),
            examples=self.examples,
        )


def compared_and_other(length: int) -> tuple[Positions, Positions]:
    """Return which of the validation samples every validation takes, spread over all of them, and the others."""
    if length <= _COMPARED_SAMPLES:
        return np.arange(length), np.arange(0)
    compared = np.arange(_COMPARED_SAMPLES) * length // _COMPARED_SAMPLES
    return compared, np.setdiff1d(np.arange(length), compared)


def has_others(length: int) -> bool:
    """Return True where a validation within an epoch does not take all of so many validation samples."""
    return length > _COMPARED_SAMPLES


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
    """Evaluate `network` on the batches of `plan`, unaugmented.

    Args:
        network: in evaluation mode.
        source: of the samples.
        plan: positions in `source`, batch by batch.
        options: of the loss that is summed beside the errors.
        precision: the context to compute in, entered for each batch.
        after_batch: called between batches; may raise to stop.
    """
    device = next(network.parameters()).device
    loss_sums, valid = dict[str, float](), 0.0
    errors, counts = DisparityErrors.none(device), ReadCounts()
    error_ratios = torch.zeros(RATIO_BINS, dtype=torch.int64, device=device)
    likelihood = torch.zeros(3, dtype=torch.int64, device=device)
    examples: list[tuple[StereoBatch, StereoPrediction]] = []
    for host_batch in source.batches(plan, VALIDATION_EPOCH):
        batch = host_batch.to(device)
        inputs = network_inputs(network, as_pair(batch))
        with precision:
            prediction = network(*inputs)
        terms = loss_terms(prediction, batch.disparity_px, options)
        for name, term in terms.items():
            loss_sums[name] = loss_sums.get(name, 0.0) + float(term.total)
        valid += float(terms["nll"].valid)
        error_ratios += error_ratio_counts(prediction.disparity_px, prediction.log_variance, batch.disparity_px)
        errors += disparity_errors(prediction.disparity_px, batch.disparity_px)
        likelihood += likelihood_sums(
            prediction.disparity_px, prediction.log_variance, batch.disparity_px, options.loss
        )
        counts = counts.plus(batch.counts)
        if sum(len(shown.indices) for shown, _ in examples) < PREVIEW_PAIRS:
            examples.append((batch, prediction))
        after_batch()
    return Evaluation(loss_sums, valid, errors, error_ratios, likelihood, counts, examples)
