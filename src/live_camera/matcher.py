"""What turns a rectified pair into disparity: OpenCV's matcher, or a network whose file may be replaced meanwhile.

Networks come in as functions, so that this package never sees torch.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.stereo import sgbm

_LOOK_EVERY_S = 0.5


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """Disparity of the left eye, px of the rectified pair.

    Attributes:
        disparity_px: NaN where there is none.
        std_px: its standard deviation; None from a matcher that knows none.
        confidence: P(|error| < 1 px), 0 to 1; None likewise.
        doubtful: what the matcher did not find itself; None where `confidence` says it.
    """

    disparity_px: Float[np.ndarray, "H W"]
    std_px: Float32[np.ndarray, "H W"] | None = None
    confidence: Float32[np.ndarray, "H W"] | None = None
    doubtful: Bool[np.ndarray, "H W"] | None = None


@runtime_checkable
class Matcher(Protocol):
    """Disparity of pairs of one size.

    Attributes:
        height, width: of the pairs, px.
    """

    height: int
    width: int

    @property
    def name(self) -> str:
        """What is running, for the overlay: the network and its training step."""
        ...

    def __call__(self, left: UInt8[np.ndarray, "H W 3"], right: UInt8[np.ndarray, "H W 3"]) -> Answer:
        """The answer for one rectified pair, RGB."""
        ...


class BlockMatcher:
    """OpenCV's semi-global matcher; its holes are filled, and count as doubtful."""

    name = "OpenCV SGBM"

    def __init__(self, *, height: int, width: int) -> None:
        self.height, self.width = height, width

    def __call__(self, left: UInt8[np.ndarray, "H W 3"], right: UInt8[np.ndarray, "H W 3"]) -> Answer:
        """The answer for one rectified pair, RGB."""
        found = sgbm.match(left, right)
        return Answer(disparity_px=found.disparity_px, doubtful=~found.valid)


@runtime_checkable
class Prediction(Protocol):
    """What `foundation_stereo_depth.predict.Predictor` answers; spelled out here, since that module needs torch."""

    @property
    def disparity_px(self) -> Float32[np.ndarray, "H W"]:
        """Of the left eye."""
        ...

    @property
    def sigma_px(self) -> Float32[np.ndarray, "H W"] | None:
        """Its standard deviation."""
        ...

    @property
    def confidence(self) -> Float32[np.ndarray, "H W"] | None:
        """P(|error| < 1 px)."""
        ...


class NetworkMatcher:
    """A network behind its predictor.

    Args:
        predict: the predictor.
        name: what it is, and of which step.
        height, width: the size it works at, px.
    """

    def __init__(
        self, predict: Callable[[np.ndarray, np.ndarray], Prediction], *, name: str, height: int, width: int
    ) -> None:
        self._predict = predict
        self.name = name
        self.height, self.width = height, width

    def __call__(self, left: UInt8[np.ndarray, "H W 3"], right: UInt8[np.ndarray, "H W 3"]) -> Answer:
        """The answer for one rectified pair, RGB."""
        prediction = self._predict(left, right)
        return Answer(
            disparity_px=prediction.disparity_px, std_px=prediction.sigma_px, confidence=prediction.confidence
        )


class WatchedMatcher:
    """A network that is replaced whenever its file is, between two pairs; to be used in a `with`.

    A thread looks at the file, loads it, and tries it on a pair, so that its first pair costs nothing either. What
    cannot be loaded, or answers with nothing but NaN, is left alone: the old network stays, and `problem` says why.

    Args:
        path: the file.
        load: file -> network; the first one is loaded at once.

    Attributes:
        problem: why the newest file is not running; None where it is.
        replaced: how many files were taken over.
    """

    def __init__(self, path: Path, load: Callable[[Path], Matcher]) -> None:
        self._path = path
        self._load = load
        self._seen = _signature(path)  # before it is read: what is replaced meanwhile is read again
        first = load(path)
        self._running = first
        self._next: Matcher | None = None
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._watch, name="checkpoint", daemon=True)
        self.problem: str | None = None
        self.replaced = 0
        self.height, self.width = first.height, first.width

    @property
    def name(self) -> str:
        """What is running now."""
        return self._running.name

    def __enter__(self) -> "WatchedMatcher":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def __call__(self, left: UInt8[np.ndarray, "H W 3"], right: UInt8[np.ndarray, "H W 3"]) -> Answer:
        """The answer for one rectified pair, by the newest network that is fit to run."""
        if self._failure is not None:
            raise self._failure
        ready, self._next = self._next, None
        if ready is not None:
            self._running = ready
            self.replaced += 1
        return self._running(left, right)

    def _watch(self) -> None:
        try:
            while not self._stop.wait(_LOOK_EVERY_S):
                self._look()
        except BaseException as error:  # raised again where pairs are answered
            self._failure = error

    def _look(self) -> None:
        try:
            found = _signature(self._path)
        except OSError as error:  # of a folder on a network, perhaps for a moment
            self.problem = f"{self._path.name} cannot be looked at ({error.strerror or error})"
            self._seen = None  # so that it is read again when it is back
            return
        if found == self._seen:
            return
        self._seen = found  # before it is read: what is replaced meanwhile is read again
        if found is None:
            self.problem = f"{self._path.name} is gone"
            return
        try:
            network = self._load(self._path)
            self._try(network)
        except (UserError, OSError) as error:
            self.problem = f"{self._path.name} not taken over: {error}"
            return
        self._next, self.problem = network, None

    def _try(self, network: Matcher) -> None:
        if (network.height, network.width) != (self.height, self.width):
            raise UserError(f"works at {network.width}x{network.height}, but the view at {self.width}x{self.height}")
        # Noise: any network that works at all gives it some disparity.
        left, right = np.random.default_rng(0).integers(0, 256, (2, self.height, self.width, 3), dtype=np.uint8)
        if not np.isfinite(network(left, right).disparity_px).any():
            raise UserError("its network answers with NaN")


def _signature(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is replaced; None where there is none."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
