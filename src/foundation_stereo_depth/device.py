"""Where and in which precision a network runs, and the processes of a data-parallel run."""

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed
from torch import Tensor

from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.options import RuntimeOptions

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Processes:
    """This process among those that train together; `torchrun` says which through the environment."""

    rank: int
    local_rank: int
    world_size: int

    @classmethod
    def from_environment(cls) -> "Processes":
        """One process alone, unless torchrun started us."""
        read = {name: int(os.environ.get(name.upper(), default)) for name, default in _ALONE.items()}
        return cls(**read)

    @property
    def is_first(self) -> bool:
        """Only this process writes files, speaks to MLflow and to the user."""
        return self.rank == 0

    def join(self, device: torch.device) -> None:
        """Waits for the others. A process alone waits for nobody."""
        if self.world_size > 1:
            torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")

    def leave(self) -> None:
        """Takes leave of the others."""
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.world_size > 1:
            torch.distributed.all_reduce(values)
        return values

    def broadcast(self, values: Tensor) -> None:
        """The values of the first process, in place."""
        if self.world_size > 1:
            torch.distributed.broadcast(values, src=0)

    def gathered(self, value: T) -> list[T]:
        """The value of every process, in the order of their ranks."""
        if self.world_size == 1:
            return [value]
        values: list[T | None] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values  # pyright: ignore[reportReturnType] (every None has been replaced)


_ALONE = {"rank": 0, "local_rank": 0, "world_size": 1}


def pick_device(options: RuntimeOptions, processes: Processes) -> torch.device:
    """The device that `--device` names, or the fastest there is.

    Raises:
        UserError: it is not there.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    kind = next(kind for kind, there in present.items() if there) if options.device == "auto" else options.device
    if not present[kind]:
        there = ", ".join(kind for kind, found in present.items() if found)
        raise UserError(f"--device {kind}: torch {torch.__version__} finds none here, only {there}")
    if kind != "cuda":
        return torch.device(kind)
    if processes.local_rank >= torch.cuda.device_count():
        raise UserError(
            f"torchrun started process {processes.local_rank} of this machine, which has {torch.cuda.device_count()} "
            "GPUs; use --nproc-per-node of at most that"
        )
    torch.cuda.set_device(processes.local_rank)
    return torch.device("cuda", processes.local_rank)


def pick_precision(options: RuntimeOptions, device: torch.device) -> torch.dtype:
    """The type that convolutions compute in: bf16 where the device has instructions for it."""
    if options.precision != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[options.precision]
    if device.type == "cuda":
        gains = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        able = torch.cpu.get_capabilities()
        gains = bool(able.get("amx_bf16") or able.get("avx512_bf16"))
    else:
        gains = False
    return torch.bfloat16 if gains else torch.float32


def autocast(device: torch.device, precision: torch.dtype) -> AbstractContextManager[object]:
    """Computes what gains from it in `precision`."""
    return torch.autocast(device.type, precision, enabled=precision != torch.float32)
