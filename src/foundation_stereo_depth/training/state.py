"""The state of training: everything that a step changes, and so everything that a resumed run needs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from foundation_stereo_depth.checkpoint import Checkpoint, Progress
from foundation_stereo_depth.data.batch import ReadCounts
from foundation_stereo_depth.device import Processes
from foundation_stereo_depth.errors import CheckpointError, UserError
from foundation_stereo_depth.metrics import DisparityErrors
from foundation_stereo_depth.options.training import OptimizerOptions
from foundation_stereo_depth.training.optimizer import create_optimizers
from foundation_stereo_depth.uncertainty import likelihood_figures

Metrics = dict[str, float]

COMPARED_EPE = "validation/compared_epe_px"
"""The validation EPE of the samples that every validation takes, where they are not all; it decides which is best."""
EPE = "validation/epe_px"


def compared_epe_px(metrics: Metrics) -> float:
    """Return the EPE by which validations are compared; infinite where no pixel was known."""
    return metrics.get(COMPARED_EPE, metrics.get(EPE, math.inf))


class StepValidation(NamedTuple):
    """The result of a validation within an epoch, and of those after epochs in a run that has any of these.

    Attributes:
        epoch: epochs done, with the fraction of the one in progress.
        samples: training samples seen.
        metrics: `validation/*`, of the samples that every validation takes.
    """

    epoch: float
    samples: int
    metrics: Metrics


class Interval(NamedTuple):
    """The sums of the epoch when the figures of steps were last taken: those since then are the difference.

    Attributes:
        sums: loss, valid pixels, and each term of the loss by name, as in `TrainingState`.
        errors: the counts.
        likelihood: `likelihood_sums`.
    """

    sums: Tensor
    term_sums: dict[str, Tensor]
    errors: Tensor
    likelihood: Tensor


class Snapshot(NamedTuple):
    """The figures of the epoch so far, fetched from the device at once."""

    loss: float
    epe_px: float
    stop_votes: float
    validation_votes: float
    first_bad_step: int


@dataclass(kw_only=True)
class TrainingState:
    """Everything that changes while training, apart from random numbers, which follow from seed, epoch and index.

    Attributes:
        average: the moving average of the weights; None where none is kept.
        progress: how far training has progressed.
        errors, sums, likelihood: of the epoch so far, over all processes; on the device. `sums` holds loss and valid
            pixels, `likelihood` is of `likelihood_sums`.
        term_sums: the same for each term of the loss, unweighted; None in an epoch that a version without terms began.
        stop_votes: how often a process was asked to stop; it ends this process, and is no part of the run's state.
        validation_votes: how often a validation within the epoch was due since the last one; no part of it either.
        validation_is_pending: one is to be done at this step, also by a run that resumes here.
        first_bad_step: the first step of the epoch whose loss or gradient was not finite; -1 while there is none.
        counts: cache hits, bad samples and so on of the epoch so far, in this process.
        data: `Data.identity` of the training data.
        history: the metrics of every finished epoch.
        validations: those within epochs, oldest first.
        interval: where the present interval of steps began; None at the beginning of an epoch.
    """

    network: nn.Module
    optimizers: tuple[torch.optim.Optimizer, ...]
    average: AveragedModel | None
    errors: DisparityErrors
    sums: Float[Tensor, "2"]
    likelihood: Int64[Tensor, "3"]
    stop_votes: Tensor
    validation_votes: Tensor
    first_bad_step: Tensor
    data: str
    term_sums: dict[str, Tensor] | None = field(default_factory=dict[str, Tensor])
    progress: Progress = Progress()
    counts: ReadCounts = ReadCounts()
    validation_is_pending: bool = False
    history: list[Metrics] = field(default_factory=list[Metrics])
    validations: list[StepValidation] = field(default_factory=list[StepValidation])
    interval: Interval | None = None

    @classmethod
    def create(cls, network: nn.Module, options: OptimizerOptions, data: str) -> "TrainingState":
        """Return the state before the first step."""
        device = next(network.parameters()).device
        average = None
        if options.ema_decay > 0:

            def update(averages: Any, currents: Any, taken: Any) -> None:
                # The decay grows with the number of steps, or the first weights would dominate a short run.
                decay = min((1 + int(taken)) / (10 + int(taken)), options.ema_decay)
                if averages[0].is_floating_point():
                    torch._foreach_lerp_(averages, currents, 1 - decay)  # pyright: ignore
                else:  # the number of batches that a normalisation has counted
                    torch._foreach_copy_(averages, currents)  # pyright: ignore

            # Averaged weights need averaged statistics: those of the newest weights cost up to 4 % of EPE.
            average = AveragedModel(network, multi_avg_fn=update, use_buffers=True)
        return cls(
            network=network,
            optimizers=create_optimizers(network, options),
            average=average,
            errors=DisparityErrors.none(device),
            # MPS has no float64; there the epoch's mean loss is rounded a little more.
            sums=torch.zeros(2, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device),
            likelihood=torch.zeros(3, dtype=torch.int64, device=device),
            stop_votes=torch.zeros((), device=device),
            validation_votes=torch.zeros((), device=device),
            first_bad_step=torch.tensor(-1, device=device),
            data=data,
        )

    @property
    def evaluated(self) -> nn.Module:
        """The network whose weights are evaluated and shipped: the moving average where one is kept."""
        return self.network if self.average is None else self.average.module

    @property
    def learning_rate(self) -> float:
        """The rate of the newest step."""
        return self.optimizers[0].param_groups[0]["lr"]

    def change_weights(self, learning_rate: float) -> None:
        """Take a step along the gradients, which are then cleared, and update the average."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.step()
        self.network.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.network)

    def add_step(
        self,
        sums: Tensor,
        terms: Sequence[str],
        gradient_norm: Tensor,
        *,
        errors: DisparityErrors,
        likelihood: Int64[Tensor, "3"],
        counts: ReadCounts,
    ) -> None:
        """Add the figures of one step to those of the epoch, without waiting for the device.

        Args:
            sums: loss, valid pixels, votes to stop and to validate, and one sum for each of `terms`, over all
                processes.
            terms: names of the terms of the loss.
            gradient_norm: before clipping.
            errors: over all processes.
            likelihood: the `likelihood_sums` over all processes.
            counts: of this process.
        """
        finite = sums.isfinite().all() & gradient_norm.isfinite()
        newly_bad = ~finite & (self.first_bad_step < 0)
        self.first_bad_step = torch.where(newly_bad, self.progress.step_in_epoch, self.first_bad_step)
        self.sums += sums[:2]
        self.stop_votes += sums[2]
        self.validation_votes += sums[3]
        if self.term_sums is not None:
            for name, total in zip(terms, sums[4:].to(self.sums.dtype), strict=True):
                self.term_sums[name] = self.term_sums[name] + total if name in self.term_sums else total
        self.errors += errors
        self.likelihood += likelihood
        self.counts = self.counts.plus(counts)

    def snapshot(self) -> Snapshot:
        """Wait for the device; return the figures of the epoch so far."""
        loss, valid = self.sums.tolist()
        epe_px = self.errors.figures().get("epe_px", math.nan)
        votes = float(self.stop_votes), float(self.validation_votes)
        return Snapshot(loss / max(valid, 1), epe_px, *votes, int(self.first_bad_step))

    def advance(self, samples: int) -> None:
        """Count one more step."""
        now = self.progress
        self.progress = replace(
            now, step_in_epoch=now.step_in_epoch + 1, step=now.step + 1, samples=now.samples + samples
        )

    def training_metrics(self, processes: Processes) -> Metrics:
        """Return the metrics of the epoch so far, over all processes."""
        loss, valid = self.sums.tolist()
        reading = ReadCounts()
        for counts in processes.all_gather(self.counts):
            reading = reading.plus(counts)
        return {
            "train/loss": loss / max(valid, 1),
            **{f"train/loss_{name}": float(total) / max(valid, 1) for name, total in (self.term_sums or {}).items()},
            **{f"train/{name}": value for name, value in self.errors.figures().items()},
            **{f"train/{name}": value for name, value in likelihood_figures(self.likelihood).items()},
            "learning_rate": self.learning_rate,
            "data/cache_hits": reading.cache_hits,
            "data/cache_misses": reading.cache_misses,
            "data/cache_rebuilt": len(reading.rebuilt),
            "data/bad_samples": len(set(reading.bad)),
        }

    def take_interval(self) -> Metrics:
        """Return the means since the last call in this epoch, over all processes, and begin the next interval."""
        now = self._interval()
        before = self.interval
        self.interval = now
        if before is None:
            sums, errors, terms, likelihood = now.sums, now.errors, now.term_sums, now.likelihood
        else:
            sums, errors = now.sums - before.sums, now.errors - before.errors
            likelihood = now.likelihood - before.likelihood
            terms = {name: total - before.term_sums.get(name, 0.0) for name, total in now.term_sums.items()}
        loss, valid = sums.tolist()
        return {
            "loss": loss / max(valid, 1),
            **{f"loss_{name}": float(total) / max(valid, 1) for name, total in terms.items()},
            **{
                name: value
                for name, value in DisparityErrors(errors).figures().items()
                if name in ("epe_px", "bad_1_percent", "bad_3_percent")
            },
            **likelihood_figures(likelihood),
            "learning_rate": self.learning_rate,
        }

    def _interval(self) -> Interval:
        terms = dict(self.term_sums or {})
        return Interval(self.sums.clone(), terms, self.errors.counts.clone(), self.likelihood.clone())

    @property
    def newest_metrics(self) -> Metrics:
        """The metrics of the newest validation, and of its epoch where it has ended; empty before the first."""
        if self.validations and self.validations[-1].epoch > len(self.history):
            return self.validations[-1].metrics
        return self.history[-1] if self.history else {}

    def find_best(self) -> tuple[float, float]:
        """Return the lowest compared EPE so far in px, infinite if there is none, and the epochs done by then."""
        within = [(compared_epe_px(metrics), epoch) for epoch, _, metrics in self.validations]
        after = [(compared_epe_px(metrics), float(epoch)) for epoch, metrics in enumerate(self.history, start=1)]
        return min(within + after, default=(math.inf, 0.0))

    def finish_validation(self, metrics: Metrics, steps_per_epoch: int) -> bool:
        """Record a validation within the epoch; return True if its EPE is the lowest so far."""
        best_px, _ = self.find_best()
        now = self.progress
        self.validations.append(StepValidation(now.epoch + now.step_in_epoch / steps_per_epoch, now.samples, metrics))
        self.validation_is_pending = False
        self.validation_votes = torch.zeros_like(self.validation_votes)
        return compared_epe_px(metrics) < best_px

    def finish_epoch(self, metrics: Metrics, compared: Metrics) -> bool:
        """Close the epoch; return True if its validation EPE is the lowest so far.

        Args:
            metrics: of the epoch.
            compared: of the validation samples that every validation takes, for a run that has validated within epochs.
        """
        best_px, _ = self.find_best()
        if EPE in compared and compared[EPE] != metrics[EPE]:
            metrics = metrics | {COMPARED_EPE: compared[EPE]}
        self.history.append(metrics)
        if self.validations:
            self.validations.append(StepValidation(float(len(self.history)), self.progress.samples, compared))
        now = self.progress
        self.progress = replace(now, epoch=now.epoch + 1, step_in_epoch=0)
        self.errors = DisparityErrors.none(self.errors.counts.device)
        self.sums = torch.zeros_like(self.sums)
        self.likelihood = torch.zeros_like(self.likelihood)
        self.validation_votes = torch.zeros_like(self.validation_votes)
        self.term_sums = {}
        self.interval = None
        self.counts = ReadCounts()
        return compared_epe_px(metrics) < best_px

    def to_plain(self) -> dict[str, Any]:
        """Return what `restore` takes, as tensors and plain values."""
        return {
            "weights": self.network.state_dict(),
            "averaged": None if self.average is None else self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "random_state": torch.get_rng_state(),
            "errors": self.errors.counts,
            "sums": self.sums,
            "likelihood": self.likelihood,
            "term_sums": self.term_sums,
            "counts": tuple(self.counts),
            "data": self.data,
            "history": self.history,
            "validations": [tuple(validation) for validation in self.validations],
            "validation_is_pending": self.validation_is_pending,
            "interval": None if self.interval is None else tuple(self.interval),
        }

    def restore(self, checkpoint: Checkpoint, processes: Processes) -> None:
        """Restore the state that was saved.

        Raises:
            CheckpointError: the checkpoint holds no training state (it is for inference alone), or another network's.
            UserError: the run was trained on other samples than are found now.
        """
        saved = checkpoint.training
        if saved.get("data", self.data) != self.data:
            raise UserError(
                f"--resume: run {checkpoint.run_id} was trained on other samples than are found now; restore them "
                "(--dataset-root, --cache-root), or start a new run with its weights by --initial-weights"
            )
        try:
            self.network.load_state_dict(saved["weights"])
            if self.average is not None:
                self.average.load_state_dict(saved["averaged"])
            optimizers = saved["optimizers"] if "optimizers" in saved else [saved["optimizer"]]  # version 0.1.0
            for optimizer, values in zip(self.optimizers, optimizers, strict=True):
                optimizer.load_state_dict(values)
            torch.set_rng_state(saved["random_state"])
            self.errors = DisparityErrors(saved["errors"].to(self.errors.counts))
            self.sums = saved["sums"].to(self.sums)
            if "likelihood" in saved:  # not in version 0.1.0
                self.likelihood = saved["likelihood"].to(self.likelihood).reshape(3)
            self.term_sums = self._restored_term_sums(saved, checkpoint.progress)
            self.interval = self._restored_interval(saved)
            if processes.is_first:  # which saved its own
                self.counts = ReadCounts(*saved["counts"])
            self.history = list(saved["history"])
            self.validations = [
                StepValidation(float(epoch), int(samples), {str(name): float(value) for name, value in metrics.items()})
                for epoch, samples, metrics in saved.get("validations", [])
            ]
            self.validation_is_pending = bool(saved.get("validation_is_pending", False))
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[-1].strip() if str(error) else type(error).__name__
            raise CheckpointError(f"the checkpoint of run {checkpoint.run_id} cannot be resumed: {reason}") from error
        self.progress = checkpoint.progress

    def _restored_interval(self, saved: dict[str, Any]) -> Interval | None:
        if "interval" not in saved:  # version 0.1.0: the interval begins here
            return self._interval()
        if saved["interval"] is None:
            return None
        sums, terms, errors, *likelihood = saved["interval"]
        return Interval(
            sums.to(self.sums),
            {str(name): total.to(self.sums).reshape(()) for name, total in terms.items()},
            errors.to(self.errors.counts),
            likelihood[0].to(self.likelihood).reshape(3) if likelihood else torch.zeros_like(self.likelihood),
        )

    def _restored_term_sums(self, saved: dict[str, Any], progress: Progress) -> dict[str, Tensor] | None:
        if "term_sums" not in saved:  # version 0.1.0, which summed the loss alone
            return None if progress.step_in_epoch else {}
        sums: dict[str, Tensor] | None = saved["term_sums"]
        return None if sums is None else {str(name): total.to(self.sums).reshape(()) for name, total in sums.items()}


def learning_rate_at(step: int, total_steps: int, options: OptimizerOptions) -> float:
    """Return the learning rate of a step: it rises linearly, then falls to zero along half a cosine.

    After Smith and Topin, "Super-convergence", 2018: one cycle whose height is the peak.
    """
    rising = max(1, round(total_steps * options.warmup_fraction))
    if step < rising:
        return options.learning_rate * (step + 1) / rising
    falling = max(1, total_steps - rising)
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rising) / falling))
