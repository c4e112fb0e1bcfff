"""Options: dataclass fields that are command-line flags too.

A field `val_fraction` becomes `--val-fraction`; a boolean becomes `--x/--no-x`; the first docstring line of each
class is the heading of its group in `--help`. Ranges are checked when an instance is made, wherever it comes from:
the command line, a checkpoint, or Python.
"""

import dataclasses
import os
import re
from dataclasses import dataclass
from typing import Any

from foundation_stereo_depth.errors import UserError


def option(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    fixed: bool = False,
    short: str | None = None,
    metavar: str | None = None,
    aliases: tuple[str, ...] = (),
) -> Any:
    """Return a dataclass field that is also a command-line flag.

    Args:
        default: the value where it is not given.
        help: what it does, with the unit.
        minimum: the smallest number allowed.
        maximum: the largest number allowed.
        fixed: a resumed run may not change it, because it would no longer be the same run.
        short: a second, one-letter flag such as `-o`.
        metavar: how `--help` shows the value; else the type says it.
        aliases: other flags for it, such as `--lr`.
    """
    return dataclasses.field(
        default=default,
        metadata={
            "help": help,
            "minimum": minimum,
            "maximum": maximum,
            "fixed": fixed,
            "short": short,
            "metavar": metavar,
            "aliases": aliases,
        },
    )


def flag_of(name: str) -> str:
    """Return the command-line flag of a field: `val_fraction` -> `--val-fraction`."""
    return "--" + name.replace("_", "-")


def expand_home(text: str) -> str:
    """Return a path with the home folder in place of a leading `~`, which a shell leaves alone in `--flag=~/x`."""
    return os.path.expanduser(text)  # noqa: PTH111 (pathlib raises for a user that does not exist)


DEVICE_METAVAR = "auto|cpu|cuda|cuda:N|mps"
DEVICE_HELP = "auto takes cuda, else mps, else cpu; cuda:1 is the second GPU"


def check_device(name: str) -> None:
    """Check the form of a `--device`: auto, cpu, mps, cuda, or cuda and a number.

    Raises:
        UserError: it has another form.
    """
    if re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", name, re.ASCII) is None:
        raise UserError(f"--device {name}: has to be auto, cpu, cuda, cuda:N or mps")


@dataclass(frozen=True, kw_only=True)
class OptionGroup:
    """A group of options whose ranges are checked on construction."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            minimum, maximum = field.metadata.get("minimum"), field.metadata.get("maximum")
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            # Negated, so that NaN, which compares false with everything, is refused too.
            if (minimum is not None and not value >= minimum) or (maximum is not None and not value <= maximum):
                allowed = f"at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
                raise UserError(f"{flag_of(field.name)} is {value}, but has to be {allowed}")


def split_words(text: str) -> tuple[str, ...]:
    """Return the words of a comma-separated flag, each once, in the order given.

    >>> split_words("png, npy,,png")
    ('png', 'npy')
    """
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def check_words(flag: str, text: str, allowed: tuple[str, ...]) -> None:
    """Check that a comma-separated flag consists of allowed words.

    Raises:
        UserError: it contains another word, or none.
    """
    wrong = [word for word in split_words(text) if word not in allowed]
    if wrong or not split_words(text):
        raise UserError(f"{flag} {text}: has to be one or more of {', '.join(allowed)}, with commas between")


def parse_two_numbers(flag: str, text: str) -> tuple[int, int]:
    """Return the two whole numbers of a flag such as `640x480` (px, width and height) or `9x6` (corners).

    >>> parse_two_numbers("--corners", "9x6")
    (9, 6)

    Raises:
        UserError: it has another form.
    """
    if re.fullmatch(r"[1-9]\d*x[1-9]\d*", text, re.ASCII) is None:
        raise UserError(f"{flag} {text}: has to be two whole numbers, across and down, as in 640x480 or 9x6")
    across, down = text.split("x")
    return int(across), int(down)
