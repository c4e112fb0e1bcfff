"""Training: one function that reads like a recipe, and the steps that it consists of."""

import logging
import math
import platform
import signal
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import NamedTuple, NoReturn, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from foundation_stereo_depth import __version__
from foundation_stereo_depth.checkpoint import Checkpoint
from foundation_stereo_depth.data.augment.pipeline import augmented_pair, flipped
from foundation_stereo_depth.data.batch import Positions, Source, StereoBatch, training_plan, validation_plan
from foundation_stereo_depth.data.prefetch import prefetch_next
from foundation_stereo_depth.data.random import sample_keys
from foundation_stereo_depth.device import Processes, autocast, check_compiler, pick_device, pick_precision
from foundation_stereo_depth.errors import NotFiniteError, UserError
from foundation_stereo_depth.log import count_of
from foundation_stereo_depth.metrics import DisparityErrors, disparity_errors
from foundation_stereo_depth.model import StereoPrediction, network_inputs, wants_prior
from foundation_stereo_depth.options.training import TrainOptions
from foundation_stereo_depth.signals import detach_lost_terminal, stop_signals
from foundation_stereo_depth.training.loss import loss_terms, loss_weights, weighted_loss
from foundation_stereo_depth.training.restart import find_earlier_start
from foundation_stereo_depth.training.run import SIGMA_SCALE, Record, Stopped
from foundation_stereo_depth.training.setup import first_network, open_data
from foundation_stereo_depth.training.state import (
    EPE,
    Metrics,
    Snapshot,
    TrainingState,
    learning_rate_at,
)
from foundation_stereo_depth.training.validate import Evaluation, compared_and_other, evaluate, has_others
from foundation_stereo_depth.uncertainty import fitted_scale, likelihood_figures, likelihood_sums

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Example = tuple[StereoBatch, tuple[Tensor, ...]]
"""A batch on the training device, and the inputs that the network makes of it."""

_AUGMENTATION_SEED = 1
"""Added to the seed for augmentation, so that a synthetic scene and its augmentation use different random numbers."""
_WATCHED_PIXELS = (..., slice(None, None, 2), slice(None, None, 2))
"""Training errors are counted at one pixel in four; the others would cost one percent of a step."""
_INTERRUPTS_AGAIN_AFTER_S = 1.0
_SNAPSHOT_EVERY = {"cpu": 1, "cuda": 10, "mps": 10}
"""Steps between snapshots of the figures: a snapshot waits for the device."""


def train(options: TrainOptions, resumed: Checkpoint | None = None) -> Path:  # noqa: PLR0915 (the main road)
    """Train a network as the options say; return the folder of last.pt and best.pt.

    Args:
        options: all options.
        resumed: the state of an earlier run to resume from; `setup.resolve` finds it.

    Raises:
        UserError: the options, the data, the checkpoint or the tracking store do not allow it.
        NotFiniteError: the loss or its gradient became NaN or infinite.
        Stopped: an interrupt or termination signal came; everything is saved.
    """
    processes = Processes.from_environment()
    device = pick_device(options.runtime.device, processes)
    precision = pick_precision(options.runtime.precision, device)
    batch_size = _check_machine(options, processes, device)
    processes.join(device)
    resumed, run_id = find_earlier_start(options, resumed, processes)

    data = open_data(options, device)
    torch.manual_seed(options.runtime.seed)
    network = first_network(options, resumed).to(device)
    network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    state = TrainingState.create(network, options.optimizer, data.identity)
    if resumed is not None:
        state.restore(resumed, processes)
    forward = _wrap(network, options, processes, device)
    total_steps = len(_training_plan(data.train, 0, options, processes)) * options.optimizer.epochs

    with Record(options, run_id, processes) as record, StopSignals() as stop:
        facts = data.facts | _facts(network, device, precision, processes)
        record.start(facts, state)
        logger.info(_start_line(record, facts, options, state))
        _warn_of_little_work(data.train, options, state)

        for epoch in range(state.progress.epoch, options.optimizer.epochs):
            source = data.training_source(epoch)
            plan = _training_plan(source, epoch, options, processes)
            progress = EpochProgress(epoch, len(plan), state, options, processes)
            validate = partial(
                _validate, data.validation, state, options, processes,
                precision=autocast(device, precision), record=record, stop=stop,
            )  # fmt: skip
            network.train()
            _validate_if_pending(validate, state, options, processes, record=record, steps_per_epoch=len(plan))
            for batch, inputs in _examples(network, source, plan, options, epoch=epoch, progress=progress):
                # -------------------------------------------------------------------------------------- one step
                with autocast(device, precision):
                    prediction = forward(*inputs)
                terms = loss_terms(prediction, batch.disparity_px, options.loss)
                loss = weighted_loss(terms, options.loss)

                # The mean is over the valid pixels of all processes; DDP averages gradients, hence the factor.
                totals = [term.total.detach() for term in terms.values()]
                votes = [stop.vote(device), torch.tensor(float(record.is_validation_due()), device=device)]
                sums = processes.all_reduce(torch.stack([loss.total.detach(), loss.valid, *votes, *totals]))
                (loss.total * processes.world_size / sums[1].clamp(min=1)).backward()
                gradient_norm = nn.utils.clip_grad_norm_(network.parameters(), options.optimizer.clip_norm)
                state.change_weights(learning_rate_at(state.progress.step, total_steps, options.optimizer))
                # -----------------------------------------------------------------------------------------------
                errors, likelihood = _watched_figures(prediction, batch, options, processes)
                state.add_step(
                    sums, list(terms), gradient_norm, errors=errors, likelihood=likelihood, counts=batch.counts
                )
                state.advance(batch_size)
                done = state.progress.step_in_epoch
                is_logged = done % options.tracking.log_steps == 0 or done == len(plan)
                if is_logged or done % _SNAPSHOT_EVERY[device.type] == 0:
                    snapshot = state.snapshot()
                    if snapshot.first_bad_step >= 0:
                        raise _not_finite(snapshot.first_bad_step, epoch, plan, data.train, record)
                    progress.show(snapshot)
                    if is_logged:
                        record.log_steps(state.progress.samples, state.take_interval())
                    if snapshot.stop_votes > 0:
                        save_and_stop(record, state, stop.requested)
                    if snapshot.validation_votes > 0 and done < len(plan):
                        state.validation_is_pending = True
                        record.save(state)  # a run that resumes here validates at this step too
                    elif record.is_due():
                        record.save(state)
                    with progress.paused():
                        _validate_if_pending(
                            validate, state, options, processes, record=record, steps_per_epoch=len(plan)
                        )

            compared = validate()
            validated = compared.plus(validate(others=True)) if has_others(len(data.validation)) else compared
            reading = _gather_reading(state, validated, processes)
            metrics = state.training_metrics(processes) | progress.figures()
            metrics |= _validation_metrics(validated, processes, options) | reading.metrics
            is_best = state.finish_epoch(metrics, _validation_metrics(compared, processes, options))
            record.finish_epoch(state, is_best, validated.examples)
            record.list_bad_samples(reading.bad)
            record.list_rebuilt_entries(reading.rebuilt)
            logger.info(_epoch_line(epoch, options, metrics, is_halved=source is data.half_size))
    processes.leave()
    return record.folder


class StopSignals:
    """A context in which Ctrl-C, termination and a closed terminal request a stop between two steps.

    Ctrl-C once more interrupts at once. Only a second after the first: torchrun passes on what its processes received
    already.

    Attributes:
        requested: the number of the signal that came; 0 while none has.
    """

    def __init__(self) -> None:
        self.requested: int = 0
        self._requested_at_s = 0.0

    def __enter__(self) -> "StopSignals":
        self._before = {number: signal.signal(number, self._request) for number in stop_signals()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            # A closed terminal sends several; the run still has to be marked in MLflow.
            if not (self.requested and number == getattr(signal, "SIGHUP", None)):
                signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 (what signal.signal calls)
        detach_lost_terminal()
        now_s = time.monotonic()
        if not self.requested:
            self.requested, self._requested_at_s = number, now_s
        elif number == signal.SIGINT and now_s - self._requested_at_s > _INTERRUPTS_AGAIN_AFTER_S:
            raise KeyboardInterrupt

    def vote(self, device: torch.device) -> Tensor:
        """Return 1 if this process was asked to stop, else 0, for the sum over all processes."""
        return torch.tensor(float(bool(self.requested)), device=device)


def save_and_stop(record: Record, state: TrainingState, signal_number: int) -> NoReturn:
    """Save last.pt and end training.

    Args:
        record: writes it.
        state: to save.
        signal_number: of the signal that came; 0 where another process received it.

    Raises:
        Stopped: always.
    """
    record.save(state)
    where = f"after step {state.progress.step_in_epoch} of epoch {state.progress.epoch + 1}"
    raise Stopped(f"stopped {where}; resume with --resume {record.run_id}", signal_number or int(signal.SIGTERM))


class EpochProgress:
    """The progress bar of an epoch; it measures the speed, and how long the steps wait for data.

    Attributes:
        first_step: the step of the epoch that it begins at, after a resume.
    """

    def __init__(
        self, epoch: int, steps: int, state: TrainingState, options: TrainOptions, processes: Processes
    ) -> None:
        self._batch_size = options.optimizer.batch_size
        self._bar = tqdm(
            desc=f"epoch {epoch + 1}/{options.optimizer.epochs}",
            total=steps * self._batch_size,
            initial=state.progress.step_in_epoch * self._batch_size,
            unit="sample",
            disable=not processes.is_first,
            dynamic_ncols=True,
            leave=False,
        )
        self.first_step = state.progress.step_in_epoch
        self._steps = 0
        self._waited_s = 0.0
        self._elapsed_s = 0.0
        self._began_s = time.perf_counter()

    @contextmanager
    def paused(self) -> Generator[None]:
        """Leave the time in this context out of the speed."""
        paused_at_s = time.perf_counter()
        yield
        paused_s = time.perf_counter() - paused_at_s
        self._began_s += paused_s
        if not self._bar.disable:
            self._bar.start_t += paused_s
            self._bar.last_print_t += paused_s

    def count_steps(self, items: Iterable[Item]) -> Generator[Item]:
        """Yield the same items, one per step; the time until each one comes counts as waiting for data.

        Reading and rendering count; augmentation is a part of the step, like the network, unless it is prefetched.
        """
        iterator = iter(items)
        try:
            while True:
                asked_s = time.perf_counter()
                item = next(iterator, None)
                self._waited_s += time.perf_counter() - asked_s
                if item is None:
                    return
                yield item
                self._steps += 1
                self._bar.update(self._batch_size)
        finally:  # also where the loop is left by an exception
            self._elapsed_s = time.perf_counter() - self._began_s
            self._bar.close()

    def show(self, snapshot: Snapshot) -> None:
        """Show the figures of the epoch so far beside the bar."""
        waiting = self._waited_s / max(time.perf_counter() - self._began_s, 1e-9)
        self._bar.set_postfix_str(
            f"loss {snapshot.loss:.3f}, EPE {snapshot.epe_px:.2f} px, waiting {waiting:.0%}", refresh=False
        )

    def figures(self) -> Metrics:
        """Return the speed of the epoch, or of its part since a resume; nothing where no step was left of it."""
        if not self._steps:
            return {}
        return {
            "speed/samples_per_s": self._steps * self._batch_size / max(self._elapsed_s, 1e-9),
            "speed/data_wait_percent": 100 * self._waited_s / max(self._elapsed_s, 1e-9),
        }


def _check_machine(options: TrainOptions, processes: Processes, device: torch.device) -> int:
    """Return the batch size, after checking what would fail in the middle of the first step."""
    if options.runtime.compile:
        check_compiler(device, options.runtime.compile_backend)
    batch_size = options.optimizer.batch_size
    if batch_size % processes.world_size:
        raise UserError(f"--batch-size {batch_size}: has to be a multiple of the {processes.world_size} processes")
    return batch_size


def _warn_of_little_work(source: Source, options: TrainOptions, state: TrainingState) -> None:
    batch_size, epochs = options.optimizer.batch_size, state.progress.epoch
    if epochs >= options.optimizer.epochs:
        logger.warning(
            "the run has finished its %s, so nothing is trained; --epochs with a larger number continues it",
            count_of(epochs, "epoch"),
        )
    elif batch_size > len(source):
        logger.warning(
            "--batch-size %d: there are only %d training samples, so each step takes some of them several times; lower "
            "it, or use more data",
            batch_size, len(source),
        )  # fmt: skip


def _wrap(network: nn.Module, options: TrainOptions, processes: Processes, device: torch.device) -> nn.Module:
    """Return the network as training calls it, compiled and data-parallel if requested; it shares the weights."""
    forward = network
    if options.runtime.compile:
        mode, backend = options.runtime.compile_mode, options.runtime.compile_backend
        try:
            forward.compile(mode=mode, backend=backend)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"--compile-mode {mode} --compile-backend {backend}: torch refuses ({reason})") from error
    if processes.world_size > 1:
        forward = DistributedDataParallel(forward, device_ids=[device.index] if device.type == "cuda" else None)
    return forward


def _training_plan(source: Source, epoch: int, options: TrainOptions, processes: Processes) -> list[Positions]:
    return training_plan(
        len(source),
        options.optimizer.batch_size,
        seed=options.runtime.seed,
        epoch=epoch,
        rank=processes.rank,
        world_size=processes.world_size,
    )


def _examples(
    network: nn.Module,
    source: Source,
    plan: list[Positions],
    options: TrainOptions,
    *,
    epoch: int,
    progress: EpochProgress,
) -> Iterator[Example]:
    """Yield what remains of the epoch: augmented batches, and the inputs of the network."""
    batches = source.batches(plan[progress.first_step :], epoch)
    if wants_prior(network):
        # The classical matcher runs on the CPU; meanwhile the device works on the batch before.
        yield from progress.count_steps(prefetch_next(_augment(batches, epoch, network, options)))
        return
    with closing(progress.count_steps(batches)) as counted:
        yield from _augment(counted, epoch, network, options)


def _augment(
    batches: Iterable[StereoBatch], epoch: int, network: nn.Module, options: TrainOptions
) -> Iterator[Example]:
    device = next(network.parameters()).device
    for batch in batches:
        on_device = batch.to(device)
        keys = sample_keys(options.runtime.seed + _AUGMENTATION_SEED, epoch, on_device.indices)
        on_device = flipped(on_device, keys, options.augment)
        yield on_device, network_inputs(network, augmented_pair(on_device, keys, options.augment))


def _validate(
    source: Source,
    state: TrainingState,
    options: TrainOptions,
    processes: Processes,
    *,
    precision: AbstractContextManager[object],
    record: Record,
    stop: StopSignals,
    others: bool = False,
) -> Evaluation:
    """Evaluate the weights that are shipped on this process's part of the samples that every validation takes.

    With `others` it is on its part of all other validation samples.
    """
    network = state.evaluated.eval()
    # Each process has normalised its own part of every batch; the first one's network is the one that is saved.
    for statistics in network.buffers():
        processes.broadcast(statistics)

    def save_or_stop() -> None:
        if record.is_due():
            record.save(state)
        # Several processes have to agree on the moment, which they do at their next training step.
        if stop.requested and processes.world_size == 1:
            save_and_stop(record, state, stop.requested)

    batch_size, rank, world_size = options.optimizer.batch_size, processes.rank, processes.world_size
    positions = compared_and_other(len(source))[others]
    plan = [positions[batch] for batch in validation_plan(len(positions), batch_size, rank=rank, world_size=world_size)]
    return evaluate(network, source, plan, options.loss, precision=precision, after_batch=save_or_stop)


def _validate_if_pending(
    validate: Callable[[], Evaluation],
    state: TrainingState,
    options: TrainOptions,
    processes: Processes,
    *,
    record: Record,
    steps_per_epoch: int,
) -> None:
    """Validate between two steps, if that is to be done now, and record it; the state of training stays the same."""
    if not state.validation_is_pending:
        return
    validated = validate()
    metrics = _validation_metrics(validated, processes, options)
    rebuilt = [path for counts in processes.all_gather(validated.counts) for path in counts.rebuilt]
    state.network.train()
    is_best = state.finish_validation(metrics, steps_per_epoch)
    record.finish_validation(state, is_best, validated.examples)
    record.list_rebuilt_entries(rebuilt)
    if EPE in metrics:
        logger.info(
            "%.2f epochs, %s samples: validation EPE %.2f px%s",
            state.validations[-1].epoch, f"{state.progress.samples:,}", metrics[EPE], ", best so far" * is_best,
        )  # fmt: skip


def _watched_figures(
    prediction: StereoPrediction, batch: StereoBatch, options: TrainOptions, processes: Processes
) -> tuple[DisparityErrors, Tensor]:
    """Return the errors of a step, and its `likelihood_sums`, over all processes."""
    maps = prediction.disparity_px.detach(), prediction.log_variance.detach(), batch.disparity_px
    disparity_px, log_variance, true_disparity_px = (values[_WATCHED_PIXELS] for values in maps)
    errors = disparity_errors(disparity_px, true_disparity_px).counts
    likelihood = likelihood_sums(disparity_px, log_variance, true_disparity_px, options.loss.loss)
    counts = processes.all_reduce(torch.cat([errors, likelihood]))
    return DisparityErrors(counts[: len(errors)]), counts[len(errors) :]


class Reading(NamedTuple):
    """What reading the samples of an epoch met, in all processes.

    Attributes:
        bad: samples that could not be read, with the reason.
        rebuilt: cache entries that were damaged and have been rebuilt.
        metrics: the number of samples that could not be written to the cache.
    """

    bad: list[str]
    rebuilt: list[str]
    metrics: Metrics


def _gather_reading(state: TrainingState, validated: Evaluation, processes: Processes) -> Reading:
    every = processes.all_gather(state.counts.plus(validated.counts))
    return Reading(
        bad=sorted({line for counts in every for line in counts.bad}),
        rebuilt=[path for counts in every for path in counts.rebuilt],
        metrics={"data/cache_unwritten": sum(counts.unwritten for counts in every)},
    )


def _validation_metrics(validated: Evaluation, processes: Processes, options: TrainOptions) -> Metrics:
    errors = DisparityErrors(processes.all_reduce(validated.errors.counts.clone()))
    every = processes.all_gather((validated.loss_sums, validated.valid))
    valid = max(sum(valid for _, valid in every), 1)
    weights = loss_weights(options.loss)
    terms = {
        name: math.fsum(sums.get(name, 0.0) for sums, _ in every) / valid
        for name in weights
        if any(name in sums for sums, _ in every)
    }
    scale = fitted_scale(processes.all_reduce(validated.error_ratios.clone()), options.loss.loss)
    return {
        "validation/loss": math.fsum(weights[name] * mean for name, mean in terms.items()),
        **{f"validation/loss_{name}": mean for name, mean in terms.items()},
        SIGMA_SCALE: scale,
        **{f"validation/{name}": value for name, value in errors.figures().items()},
        **{
            f"validation/{name}": value
            for name, value in likelihood_figures(processes.all_reduce(validated.likelihood.clone())).items()
        },
    }


def _facts(network: nn.Module, device: torch.device, precision: torch.dtype, processes: Processes) -> dict[str, object]:
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "computed_in": str(precision).removeprefix("torch."),
        "processes": processes.world_size,
        "threads": torch.get_num_threads(),
        "version": __version__,
        "torch_version": torch.__version__,
        "python_version": platform.python_version(),
    }


def _not_finite(step: int, epoch: int, plan: Sequence[Positions], source: Source, record: Record) -> NotFiniteError:
    names = ", ".join(source.name(int(index)) for index in plan[step])
    last = record.folder / "last.pt"
    kept = f"the last good checkpoint is {last}" if last.exists() else "no checkpoint had been saved yet"
    return NotFiniteError(
        f"the loss or its gradient is not finite in step {step + 1} of epoch {epoch + 1}, samples {names}; {kept}; try "
        "a lower --learning-rate or --precision fp32"
    )


def _start_line(record: Record, facts: Mapping[str, object], options: TrainOptions, state: TrainingState) -> str:
    resumed = f", resumed after step {state.progress.step}" if state.progress.step else ""
    halved = facts.get("half_size_epochs", 0)
    sizes = f", the first {count_of(int(str(halved)), 'epoch')} at half the size" if halved else ""
    return (
        f"run {record.run_id}{resumed}: {options.model.model} of {facts['parameters']:,} parameters, "
        f"{facts['computed_in']} on {facts['device_name']}; {facts['train_samples']} training and "
        f"{facts['validation_samples']} validation samples of {options.data.width}x{options.data.height}{sizes}; "
        f"results in {record.folder}"
    )


def _epoch_line(epoch: int, options: TrainOptions, metrics: Metrics, *, is_halved: bool) -> str:
    def of(part: str, size: str = "") -> str:
        if f"{part}/epe_px" not in metrics:
            return f"{part}: no pixel with known disparity"
        return (
            f"{part}{size} loss {metrics[f'{part}/loss']:.3f} EPE {metrics[f'{part}/epe_px']:.2f} px "
            f"bad-3 {metrics[f'{part}/bad_3_percent']:.1f} %"
        )

    speed = ""
    if "speed/samples_per_s" in metrics:
        speed = (
            f"; {metrics['speed/samples_per_s']:.1f} samples/s, {metrics['speed/data_wait_percent']:.1f} % waiting for "
            "data"
        )
    unwritten = metrics["data/cache_unwritten"]
    trained = of("train", " at half the size" if is_halved else "")
    return f"epoch {epoch + 1}/{options.optimizer.epochs}: {trained}; {of('validation')}{speed}" + (
        f"; {unwritten:.0f} samples could not be written to the cache" if unwritten else ""
    )
