"""Train `--model fused` from guided weights, or further, on a pool of `bake_pool.py`; several processes.

For a machine that other programs use too: each process takes its own steps, and after every eight the weights are
averaged (local SGD; Stich, "Local SGD converges fast and communicates little", ICLR 2019). The learning rate follows
the time, so that a run ends after the given minutes. Shards may be added meanwhile.

    for rank in 0 1; do
        OMP_NUM_THREADS=1 uv run python recipes/learn_on.py run pool --minutes 60 --rank $rank --processes 2 &
    done; wait
    uv run foundation-stereo-export --checkpoint run/last.safetensors -o default.safetensors
"""

import argparse
import dataclasses
import datetime
import math
import time
from pathlib import Path

import numpy as np
import torch
from bake_pool import SMALL
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from foundation_stereo_depth.checkpoint import (
    CHECKPOINT_FORMAT,
    CHECKPOINT_KIND,
    TrainedNetwork,
    read_trained,
    save_safetensors,
)
from foundation_stereo_depth.model import create_network, fused_from_guided
from foundation_stereo_depth.network_facts import DEFAULT_WEIGHTS
from foundation_stereo_depth.options.training import LossOptions, ModelOptions, OptimizerOptions
from foundation_stereo_depth.training.loss import loss_terms, weighted_loss
from foundation_stereo_depth.training.optimizer import create_optimizers
from foundation_stereo_depth.uncertainty import error_ratio_counts, fitted_scale

OPEN_SHARDS = 6  # entries are drawn from so many at a time
AVERAGED_EVERY = 8  # steps
SAVED_EVERY_S = 240
EMA_DECAY = 0.998
SQUARE_PX = 16
SMALL_STEPS = 0.2  # fraction of the steps on pairs of 160x120, of which a batch has four times as many
SCALED_BY = 300  # entries, by whose errors the standard deviation is scaled


class Pool:
    """Entries at random from shards, some of which are open at a time."""

    def __init__(self, folder: Path, random: np.random.Generator) -> None:
        self._folder, self._random = folder, random
        self._open: list[tuple[dict[str, np.ndarray], list[int]]] = []

    def take(self) -> dict[str, np.ndarray]:
        """Return an entry; half of them upside down."""
        while len(self._open) < OPEN_SHARDS:
            paths = sorted(path for path in self._folder.glob("*.npz") if not path.name.startswith("."))
            with np.load(paths[self._random.integers(len(paths))]) as shard:
                entries = {name: shard[name] for name in shard.files}
            self._open.append((entries, self._random.permutation(len(entries["left"])).tolist()))
        k = int(self._random.integers(len(self._open)))
        entries, order = self._open[k]
        entry = {name: values[order[-1]] for name, values in entries.items()}
        order.pop()
        if not order:
            self._open.pop(k)
        turned = self._random.random() < 0.5
        return {name: np.flip(values, axis=-2) if turned else values for name, values in entry.items()}

    def batch(self, size: int, *, augment: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """Return pairs, priors and true disparities; contrast and brightness vary."""
        entries = [self.take() for _ in range(size)]
        of = {name: torch.from_numpy(np.stack([entry[name] for entry in entries])) for name in entries[0]}
        spread = float(augment)
        gain = torch.from_numpy(np.exp(self._random.uniform(-0.3, 0.3, (size, 1, 1, 1)) * spread)).float()
        shift = torch.from_numpy(self._random.uniform(-0.08, 0.08, (size, 1, 1, 1)) * spread).float()
        left = ((of["left"].float() / 255 - 0.5) * gain + 0.5 + shift).clamp(0, 1)
        unlike = of["unlike"].float() / 127 * gain
        first_px, others_px = of["first"].float()[:, None] / 16, of["others"].float()
        means_px = means_of_squares(first_px)
        matched, trust = of["matched"].float()[:, None], of["trust"].float()[:, None] / 255
        prior = [
            first_px,
            of["around"].float() / 16,
            matched,
            unlike[:, :5],
            first_px - means_px,
            others_px[:, :1],
            trust,
            unlike[:, 5:6],
            others_px[:, 1:],
            of["support"].float()[:, None] / 255,
            unlike[:, 6:],
        ]
        # Of the right view the network sees what the prior says of it.
        return torch.cat([left, left], dim=1), torch.cat(prior, dim=1), of["truth"].float()[:, None]


def means_of_squares(values: Tensor) -> Tensor:
    """Return at each pixel the mean over its square, as the prior has it."""
    height, width = values.shape[2:]
    whole = F.pad(values, (0, -width % SQUARE_PX, 0, -height % SQUARE_PX), mode="replicate")
    means = F.avg_pool2d(whole, SQUARE_PX).repeat_interleave(SQUARE_PX, 2).repeat_interleave(SQUARE_PX, 3)
    return means[..., :height, :width]


def learning_rate_at(done: float, peak: float, warmup: float) -> float:
    """Return the rate when this fraction of the time is over: a linear rise, then half a cosine."""
    rise = min(1.0, (done + 1e-3) / warmup)
    return peak * rise * 0.5 * (1 + math.cos(math.pi * max(0.0, (done - warmup) / (1 - warmup))))


def fused_weights(initial: TrainedNetwork) -> dict[str, Tensor]:
    """Return the weights of a fused network, converted from those of a guided one where needed."""
    return initial.weights if initial.facts.model.model == "fused" else fused_from_guided(initial.weights)


def interpolate_weights(old: dict[str, Tensor], new: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return weights between the two, which keep more accuracy on earlier data (Wortsman et al., CVPR 2022)."""
    return {
        name: old[name].lerp(values, share) if values.dtype.is_floating_point else values
        for name, values in new.items()
    }


def float_tensors(network: nn.Module) -> list[Tensor]:
    """Return weights and statistics, as they are."""
    return [values for values in network.state_dict().values() if values.dtype.is_floating_point]


@torch.no_grad()
def average(tensors: list[Tensor], done: float, processes: int) -> float:
    """Replace each tensor by its mean over the processes; return the mean fraction of the time that is over."""
    if processes == 1:
        return done
    flat = torch.cat([*(values.flatten() for values in tensors), torch.tensor([done])])
    distributed.all_reduce(flat)
    flat /= processes
    at = 0
    for values in tensors:
        values.copy_(flat[at : at + values.numel()].view_as(values))
        at += values.numel()
    return float(flat[-1])


@torch.inference_mode()
def fit_scale(network: nn.Module, pool: Pool) -> float:
    """Return the factor on the standard deviation with which 68 % intervals contain 68 % of the pool's errors."""
    counts = torch.zeros(1)
    for _ in range(SCALED_BY // 4):
        pair, prior, truth_px = pool.batch(4, augment=False)
        answer = network(pair, prior)
        counts = counts + error_ratio_counts(answer.disparity_px, answer.log_variance, truth_px)
    return fitted_scale(counts, "laplace")


def save(path: Path, network: nn.Module, initial: TrainedNetwork, model: ModelOptions, scale: float) -> None:
    """Write weights with the header that inference needs."""
    header = initial.facts.header | {
        "kind": CHECKPOINT_KIND,
        "format_version": CHECKPOINT_FORMAT,
        "model": dataclasses.asdict(model),
        "uncertainty": {"distribution": "laplace", "scale": scale},
        "metrics": {},
        "run_id": path.parent.name,
    }
    save_safetensors(path, network.state_dict(), header)


def parse_arguments() -> argparse.Namespace:
    """Return the flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("pool", type=Path, help="folder of its shards")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--warmup-fraction", type=float, default=0.03)
    parser.add_argument("--batch-size", type=int, default=4, help="of each process")
    parser.add_argument("--initial-weights", type=Path, default=DEFAULT_WEIGHTS, help="of guided or fused")
    parser.add_argument("--new-share", type=float, default=1.0, help="fraction of the learned weights in the result")
    parser.add_argument(
        "--old-weights", type=Path, default=DEFAULT_WEIGHTS, help="of guided or fused, which have the rest"
    )
    parser.add_argument("--sigma-scale", type=float, help="factor on the standard deviation; else fitted on the pool")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    """Train with the flags."""
    arguments = parse_arguments()
    torch.set_num_threads(1)
    arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.processes > 1:
        distributed.init_process_group(
            "gloo",
            init_method=f"file://{(arguments.output / 'rendezvous').absolute()}",
            rank=arguments.rank,
            world_size=arguments.processes,
            timeout=datetime.timedelta(minutes=20),
        )
    random = np.random.default_rng((arguments.seed, arguments.rank))
    pool, small = Pool(arguments.pool, random), Pool(arguments.pool / SMALL, random)
    initial = read_trained(arguments.initial_weights)
    model = ModelOptions(model="fused", base_channels=initial.facts.model.base_channels)
    network, averaged = create_network(model), create_network(model).eval()
    for one in (network, averaged):
        one.load_state_dict(fused_weights(initial))
    network.train().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizers = create_optimizers(network, OptimizerOptions())
    options, values, slow = LossOptions(), float_tensors(network), float_tensors(averaged)

    def loss_of(pair: Tensor, prior: Tensor, truth_px: Tensor) -> tuple[Tensor, Tensor]:
        prediction = network(pair, prior)
        loss = weighted_loss(loss_terms(prediction, truth_px, options), options)
        return loss.total / loss.valid.clamp(min=1), prediction.disparity_px

    compiled = torch.compile(loss_of, dynamic=False)  # a minute once, then a third less time
    began_s = saved_s = time.monotonic()
    step, done, running = 0, 0.0, np.zeros(2)
    while True:
        if step % AVERAGED_EVERY == 0:
            done = average(values, (time.monotonic() - began_s) / 60 / arguments.minutes, arguments.processes)
        if done >= 1:
            break
        is_small = random.random() < SMALL_STEPS
        pair, prior, truth_px = (small if is_small else pool).batch(arguments.batch_size * (4 if is_small else 1))
        loss, disparity_px = compiled(pair, prior, truth_px)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(done, arguments.learning_rate, arguments.warmup_fraction)
            optimizer.step()
        network.zero_grad(set_to_none=True)
        step += 1
        torch._foreach_lerp_(slow, values, 1 - min(EMA_DECAY, (1 + step) / (10 + step)))
        running += [float(loss.detach()), float((disparity_px.detach() - truth_px).abs().mean())]
        if step % 50 == 0:
            print(f"step {step}, {done:.0%}: loss {running[0] / 50:.3f}, EPE {running[1] / 50:.3f} px", flush=True)
            running[:] = 0
        if arguments.rank == 0 and time.monotonic() - saved_s > SAVED_EVERY_S:
            save(arguments.output / "last.safetensors", averaged, initial, model, 1.0)
            saved_s = time.monotonic()
    if arguments.rank == 0:
        old = fused_weights(read_trained(arguments.old_weights))
        averaged.load_state_dict(interpolate_weights(old, averaged.state_dict(), arguments.new_share))
        scale = arguments.sigma_scale or fit_scale(averaged, pool)
        save(arguments.output / "last.safetensors", averaged, initial, model, scale)


if __name__ == "__main__":
    main()
