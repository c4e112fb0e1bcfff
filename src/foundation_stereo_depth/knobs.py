"""What a knob is: a dataclass field that is a command-line flag too.

A field `val_fraction` becomes `--val-fraction`; a boolean becomes `--x/--no-x`; the first docstring line of each
class is the heading of its group in `--help`. Ranges are checked when an instance is made, wherever it comes from:
the command line, a checkpoint, or Python.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from foundation_stereo_depth.errors import UserError


def knob(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    fixed: bool = False,
    short: str | None = None,
) -> Any:
    """A dataclass field that is also a command-line flag.

    Args:
        default: the value when nobody says anything.
        help: what it does, with the unit.
        minimum: the smallest sensible number.
        maximum: the largest sensible number.
        fixed: a resumed run may not change it, because it would no longer be the same run.
        short: a second, one-letter flag such as `-o`.
    """
    return dataclasses.field(
        default=default,
        metadata={"help": help, "minimum": minimum, "maximum": maximum, "fixed": fixed, "short": short},
    )


def flag_of(name: str) -> str:
    """The command-line flag of a field: `val_fraction` -> `--val-fraction`."""
    return "--" + name.replace("_", "-")


@dataclass(frozen=True, kw_only=True)
class Group:
    """A group of knobs whose ranges are checked on construction."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            minimum, maximum = field.metadata.get("minimum"), field.metadata.get("maximum")
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            # Written so that NaN, which compares false with everything, is refused too.
            if (minimum is not None and not value >= minimum) or (maximum is not None and not value <= maximum):
                allowed = f"at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
                raise UserError(f"{flag_of(field.name)} is {value}, but has to be {allowed}")
