"""Training: one function that reads like a recipe, and the few steps it is made of."""

import math
import platform
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from types import FrameType, TracebackType
from typing import TypeVar

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
from foundation_stereo_depth.device import Processes, autocast, pick_device, pick_precision
from foundation_stereo_depth.errors import NotFiniteError, UserError
from foundation_stereo_depth.metrics import DisparityErrors, disparity_errors
from foundation_stereo_depth.model import network_inputs, wants_prior
from foundation_stereo_depth.options.training import TrainOptions
from foundation_stereo_depth.training.loss import training_loss
from foundation_stereo_depth.training.run import SIGMA_SCALE, Record, Stopped, open_record
from foundation_stereo_depth.training.setup import first_network, open_data
from foundation_stereo_depth.training.state import Look, Metrics, TrainingState, learning_rate_at
from foundation_stereo_depth.training.validate import Evaluation, evaluate
from foundation_stereo_depth.uncertainty import fitted_scale

Item = TypeVar("Item")

_AUGMENTATION_SEED = 1
"""Added to the seed for augmentation, so that a made-up scene and its augmentation do not share draws."""
_WATCHED_PIXELS = (..., slice(None, None, 2), slice(None, None, 2))
"""Training errors are counted at one pixel in four: enough to watch, and the rest would cost one percent of a step."""
_LOOK_EVERY = {"cpu": 1, "cuda": 10, "mps": 10}
"""Steps between looks at the numbers: a look waits for the device to finish what it was given."""


def train(options: TrainOptions, resumed: Checkpoint | None = None) -> None:
    """Trains a network as the options say; the run's folder and MLflow have the results.

    Args:
        options: all options.
        resumed: a moment of an earlier run to go on from; `start.resolve` finds it.

    Raises:
        UserError: the options, the data, the checkpoint or the tracking store do not allow it.
        NotFiniteError: the loss or its gradient became NaN or infinite.
        Stopped: an interrupt or termination signal came; everything learnt so far is saved.
    """
    processes = Processes.from_environment()
    tell = _teller(processes)
    device = pick_device(options.runtime.device, processes)
    precision = pick_precision(options.runtime.precision, device)
    batch_size = _checked_batch_size(options, processes)
    processes.join(device)

    data = open_data(options, device)
    torch.manual_seed(options.runtime.seed)
    network = first_network(options, resumed).to(device)
    network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    state = TrainingState.fresh(network, options.optimizer, data.identity)
    if resumed is not None:
        state.restore(resumed, processes)
    forward = _wrapped(network, options, processes, device)

    def plan_of(epoch: int) -> list[Positions]:
        seed, rank, world_size = options.runtime.seed, processes.rank, processes.world_size
        return training_plan(len(data.train), batch_size, seed=seed, epoch=epoch, rank=rank, world_size=world_size)

    def prepared(batches: Iterable[StereoBatch], epoch: int) -> Iterator[tuple[StereoBatch, tuple[Tensor, ...]]]:
        for batch in batches:
            on_device = batch.to(device)
            keys = sample_keys(options.runtime.seed + _AUGMENTATION_SEED, epoch, on_device.indices)
            on_device = flipped(on_device, keys, options.augment)
            yield on_device, network_inputs(network, augmented_pair(on_device, keys, options.augment))

    def examples(plan: list[Positions], epoch: int, bar: _Bar) -> Iterator[tuple[StereoBatch, tuple[Tensor, ...]]]:
        batches = data.train.batches(plan, epoch)
        if wants_prior(network):
            # What a classical matcher says takes the CPU a while; meanwhile the device can be at work.
            yield from bar.timed(prefetch_next(prepared(batches, epoch)))
            return
        with closing(bar.timed(batches)) as timed:
            yield from prepared(timed, epoch)

    validated = validation_plan(len(data.validation), batch_size, rank=processes.rank, world_size=processes.world_size)
    total_steps = len(plan_of(0)) * options.optimizer.epochs

    with open_record(options, resumed, processes, tell) as record, StopSignals() as stop:
        facts = data.facts | _facts(network, device, precision, processes)
        record.start(facts, state.history)
        tell(_start_line(record, facts, options, state))

        for epoch in range(state.progress.epoch, options.optimizer.epochs):
            plan = plan_of(epoch)
            network.train()
            bar = _Bar(f"epoch {epoch + 1}/{options.optimizer.epochs}", len(plan), state, batch_size, processes)
            for batch, inputs in examples(plan[state.progress.step_in_epoch :], epoch, bar):
                # -------------------------------------------------------------------------------------- one step
                with autocast(device, precision):
                    prediction = forward(*inputs)
                loss = training_loss(prediction, batch.disparity_px, options.loss)

                # The mean is over the valid pixels of all processes; DDP averages gradients, hence the factor.
                sums = processes.all_reduce(torch.stack([loss.total.detach(), loss.valid, stop.vote(device)]))
                (loss.total * processes.world_size / sums[1].clamp(min=1)).backward()
                gradient_norm = nn.utils.clip_grad_norm_(network.parameters(), options.optimizer.clip_norm)
                for group in state.optimizer.param_groups:
                    group["lr"] = learning_rate_at(state.progress.step, total_steps, options.optimizer)
                state.optimizer.step()
                state.optimizer.zero_grad(set_to_none=True)
                if state.average is not None:
                    state.average.update_parameters(network)
                # -----------------------------------------------------------------------------------------------
                errors = disparity_errors(
                    prediction.disparity_px.detach()[_WATCHED_PIXELS], batch.disparity_px[_WATCHED_PIXELS]
                )
                processes.all_reduce(errors.counts)
                state.observe(sums, gradient_norm, errors, batch.counts)
                state.advance(batch_size)
                done = state.progress.step_in_epoch
                if done % _LOOK_EVERY[device.type] == 0 or done == len(plan):
                    look = state.look()
                    if look.first_bad_step >= 0:
                        raise _not_finite(look.first_bad_step, epoch, plan, data.train, record)
                    bar.show(look)
                    if look.stop_votes > 0:
                        raise stop.ended(record, state)
                    if record.is_due():
                        record.save(state)

            def between_batches() -> None:
                if record.is_due():
                    record.save(state)
                # Several processes have to agree on the moment, which they do at their next training step.
                if stop.requested and processes.world_size == 1:
                    raise stop.ended(record, state)

            evaluated = state.evaluated.eval()
            # Each process has normalised its own part of every batch; the first one's network is the one that is saved.
            for statistics in evaluated.buffers():
                processes.broadcast(statistics)
            seen = evaluate(
                evaluated,
                data.validation,
                validated,
                options.loss,
                precision=autocast(device, precision),
                after_batch=between_batches,
            )
            metrics = state.training_metrics(processes) | bar.figures() | _validation_metrics(seen, processes, options)
            metrics["data/cache_unwritten"] = sum(processes.all_gather(state.counts.unwritten + seen.counts.unwritten))
            bad = sorted({line for lines in processes.all_gather(state.counts.bad + seen.counts.bad) for line in lines})
            rebuilt = [
                path for paths in processes.all_gather(state.counts.rebuilt + seen.counts.rebuilt) for path in paths
            ]
            is_best = state.finish_epoch(metrics)
            record.finish_epoch(state, is_best, seen.example)
            record.bad_samples(bad)
            record.rebuilt_entries(rebuilt)
            tell(_epoch_line(epoch, options, metrics))
        tell(record.weights())
    processes.leave()


class StopSignals:
    """While this context lasts, Ctrl-C and termination ask for an end between two steps; a second Ctrl-C insists."""

    def __init__(self) -> None:
        self.requested: int = 0

    def __enter__(self) -> "StopSignals":
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 (what signal.signal calls)
        if self.requested:
            raise KeyboardInterrupt
        self.requested = number

    def vote(self, device: torch.device) -> Tensor:
        """1 where this process was asked to stop, else 0, for the sum over all processes."""
        return torch.tensor(float(bool(self.requested)), device=device)

    def ended(self, record: Record, state: TrainingState) -> Stopped:
        """Saves everything, and says so."""
        record.save(state)
        where = f"after step {state.progress.step_in_epoch} of epoch {state.progress.epoch + 1}"
        return Stopped(f"stopped {where}; go on with --resume {record.run_id}", self.requested or int(signal.SIGTERM))


class _Bar:
    """The progress bar of an epoch, and the clock behind its figures."""

    def __init__(self, name: str, steps: int, state: TrainingState, batch_size: int, processes: Processes) -> None:
        self._first = state.progress.step_in_epoch
        self._batch_size = batch_size
        self._bar = tqdm(
            desc=name,
            total=steps * batch_size,
            initial=self._first * batch_size,
            unit="sample",
            disable=not processes.is_first,
            dynamic_ncols=True,
            leave=False,
        )
        self._done = 0
        self._waited_s = 0.0
        self._began_s = time.perf_counter()

    def timed(self, items: Iterable[Item]) -> Generator[Item]:
        """The same items, one per step; the time until each one comes counts as waiting for data.

        Reading and rendering are waited for; augmentation is a part of the step, like the network, unless it is done
        ahead of it.
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
                self._done += 1
                self._bar.update(self._batch_size)
        finally:  # also where the loop is left by an exception
            self._elapsed_s = time.perf_counter() - self._began_s
            self._bar.close()

    def show(self, look: Look) -> None:
        share = self._waited_s / max(time.perf_counter() - self._began_s, 1e-9)
        self._bar.set_postfix_str(f"loss {look.loss:.3f}, EPE {look.epe_px:.2f} px, waiting {share:.0%}", refresh=False)

    def figures(self) -> Metrics:
        """Speed of the epoch, or of its part since a resume."""
        return {
            "speed/samples_per_s": self._done * self._batch_size / max(self._elapsed_s, 1e-9),
            "speed/data_wait_percent": 100 * self._waited_s / max(self._elapsed_s, 1e-9),
        }


def _teller(processes: Processes) -> Callable[[str], None]:
    def tell(line: str) -> None:
        if processes.is_first:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()

    return tell


def _checked_batch_size(options: TrainOptions, processes: Processes) -> int:
    batch_size = options.optimizer.batch_size
    if batch_size % processes.world_size:
        raise UserError(f"--batch-size {batch_size}: has to be a multiple of the {processes.world_size} processes")
    return batch_size


def _wrapped(network: nn.Module, options: TrainOptions, processes: Processes, device: torch.device) -> nn.Module:
    """The network as training calls it: compiled and data-parallel where that is asked for; the weights are shared."""
    forward = network
    if options.runtime.compile:
        mode, backend = options.runtime.compile_mode, options.runtime.compile_backend
        try:
            forward.compile(mode=mode, backend=backend)
        except RuntimeError as error:
            said = str(error).splitlines()[0]
            raise UserError(f"--compile-mode {mode} --compile-backend {backend}: torch refuses ({said})") from error
    if processes.world_size > 1:
        forward = DistributedDataParallel(forward, device_ids=[device.index] if device.type == "cuda" else None)
    return forward


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


def _validation_metrics(seen: Evaluation, processes: Processes, options: TrainOptions) -> Metrics:
    errors = DisparityErrors(processes.all_reduce(seen.errors.counts))
    totals = processes.all_gather((seen.loss_total, seen.valid))
    valid = sum(valid for _, valid in totals)
    loss = math.fsum(total for total, _ in totals) / max(valid, 1)
    scale = fitted_scale(processes.all_reduce(seen.error_ratios), options.loss.loss)
    return {
        "validation/loss": loss,
        SIGMA_SCALE: scale,
        **{f"validation/{name}": value for name, value in errors.figures().items()},
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
    begun = f", going on after step {state.progress.step}" if state.progress.step else ""
    return (
        f"run {record.run_id}{begun}: {options.model.model} of {facts['parameters']:,} parameters, "
        f"{facts['computed_in']} on {facts['device_name']}; {facts['train_samples']} training and "
        f"{facts['validation_samples']} validation samples of {options.data.width}x{options.data.height}; results in "
        f"{record.folder}"
    )


def _epoch_line(epoch: int, options: TrainOptions, metrics: Metrics) -> str:
    def of(part: str) -> str:
        if f"{part}/epe_px" not in metrics:
            return f"{part}: no pixel with known disparity"
        return (
            f"{part} loss {metrics[f'{part}/loss']:.3f} EPE {metrics[f'{part}/epe_px']:.2f} px "
            f"bad-3 {metrics[f'{part}/bad_3_percent']:.1f} %"
        )

    unwritten = metrics["data/cache_unwritten"]
    return (
        f"epoch {epoch + 1}/{options.optimizer.epochs}: {of('train')}; {of('validation')}; "
        f"{metrics['speed/samples_per_s']:.1f} samples/s, {metrics['speed/data_wait_percent']:.1f} % waiting for data"
        + (f"; {unwritten:.0f} samples read could not be kept in the cache" if unwritten else "")
    )
