"""Where the user left the windows, kept from one run to the next: a JSON file per user, by screen and window."""

import json
import logging
import os
from pathlib import Path
from typing import NamedTuple

from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.files import read_regular_file, write_atomically

logger = logging.getLogger(__name__)

_LARGEST_BYTES = 100_000
_VISIBLE_PX = 80
"""A window whose kept place shows less than this of it on the screen is placed as if it were new."""
_SMALLEST_PX = 60


class Place(NamedTuple):
    """Position of a window on the screen, and the size of its image, px."""

    left: int
    top: int
    width: int
    height: int


def read_places(screen: tuple[int, int] | None) -> dict[str, Place]:
    """Return the kept places that are on a screen of this size, by the windows' titles; none if the file is damaged."""
    values = _read_all().get(_name_of(screen), {})
    places: dict[str, Place] = {}
    for title, numbers in values.items() if isinstance(values, dict) else ():
        if isinstance(numbers, list) and len(numbers) == 4 and all(isinstance(each, int) for each in numbers):
            place = Place(*numbers)
            if _is_visible(place, screen):
                places[title] = place
    return places


def keep_places(screen: tuple[int, int] | None, places: dict[str, Place]) -> None:
    """Keep the places of windows on a screen of this size; where that is not possible, the next run begins again."""
    kept = _read_all()
    before = kept.get(_name_of(screen))
    kept[_name_of(screen)] = (before if isinstance(before, dict) else {}) | {t: list(p) for t, p in places.items()}
    text = json.dumps(kept, indent=1)
    try:
        path = places_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: file.write(text.encode()), durable=False)
    except (OSError, RuntimeError) as error:  # a home folder that cannot be written to, or none
        logger.debug("the places of the windows are not kept: %s", error)


def places_file() -> Path:
    """Return the file that keeps the places.

    Raises:
        RuntimeError: the user has no home folder.
    """
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local/state") / "foundation-stereo-depth/windows.json"


def _read_all() -> dict[str, object]:
    try:
        content = json.loads(read_regular_file(places_file(), at_most_bytes=_LARGEST_BYTES, error_type=UserError))
    except (OSError, RuntimeError, UserError, ValueError):  # none yet, or not ours: the windows stand as for a new user
        return {}
    return content if isinstance(content, dict) else {}


def _name_of(screen: tuple[int, int] | None) -> str:
    return "unknown" if screen is None else f"{screen[0]}x{screen[1]}"


def _is_visible(place: Place, screen: tuple[int, int] | None) -> bool:
    width, height = screen or (10**5, 10**5)
    return (
        -place.width + _VISIBLE_PX < place.left < width - _VISIBLE_PX
        and 0 <= place.top < height - _VISIBLE_PX
        and _SMALLEST_PX <= place.width <= 2 * width
        and _SMALLEST_PX <= place.height <= 2 * height
    )
