"""The live loop: newest pair -> rectified -> disparity -> depth -> windows. One function that reads like a recipe.

The next pair is matched in a thread while the windows show this one.
"""

import statistics
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent import futures
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from foundation_stereo_depth.calibration.rig import RigCalibration
from foundation_stereo_depth.data.sample import resize_image
from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.stereo.geometry import StereoCalibration, depth_from_disparity
from live_camera.draw import Canvas
from live_camera.matcher import Matcher, WatchedMatcher
from live_camera.options import ShowOptions
from live_camera.recording import Recorder, Snapshots, check_recordable
from live_camera.rectify import Rectifier
from live_camera.rig import Rig, StereoFrame
from live_camera.view import Result, Status, Windows, panels
from live_camera.watch import FrameWatch, arrangement_complaint

_AVERAGED_PAIRS = 30
_FIGURES_EVERY_S = 0.25
"""Figures that change faster cannot be read."""
_WAIT_S = 0.05
_ARRANGEMENT_EVERY = 300
_KEPT_LATENCIES = 1000


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """Raw eyes -> the pair that is matched.

    Attributes:
        height, width: of that pair, px.
        rectifier: None for eyes that are rectified already.
        calibration: of the pair; None where nobody knows.
        rig: what the eyes were rectified by already, where nothing is left to rectify.
    """

    height: int
    width: int
    rectifier: Rectifier | None
    calibration: StereoCalibration | None
    rig: RigCalibration | None = None

    def __call__(self, frame: StereoFrame) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w 3"]]:
        """The pair at the matcher's size, RGB.

        Raises:
            CalibrationError: the eyes are not of the calibration's aspect.
        """
        if self.rectifier is not None:
            return self.rectifier(frame.left_rgb, frame.right_rgb)
        if self.rig is not None:
            self.rig.check_size(*frame.left_rgb.shape[:2])
        return (
            resize_image(frame.left_rgb, self.height, self.width),
            resize_image(frame.right_rgb, self.height, self.width),
        )


class Finder:
    """Results of the newest pairs, in order, found in a thread of its own; to be used in a `with`.

    Once a result is taken the thread goes on to the next pair, which is matched while this one is shown. It is never
    further ahead, so that what is shown stays new.

    Args:
        rig: gives pairs.
        prepare: makes a raw pair one that can be matched.
        matcher: disparity of that pair.
        most: results to be found; None for all that the rig gives.

    Attributes:
        ended: no more results will come.
    """

    def __init__(self, rig: Rig, prepare: Preparation, matcher: Matcher, *, most: int | None) -> None:
        self._rig = rig
        self._prepare = prepare
        self._matcher = matcher
        self._most = most
        self._thread = futures.ThreadPoolExecutor(1, "matching")
        self._coming: futures.Future[Result | None] | None = None
        self._taken = 0
        self.ended = False

    def __enter__(self) -> "Finder":
        self._coming = self._thread.submit(self._find)
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def next(self, timeout_s: float) -> Result | None:
        """The next result; None where it is not there in that time.

        Raises:
            UserError: its pair cannot be used.
        """
        assert self._coming is not None, "outside of `with`, or after the end"
        if not futures.wait([self._coming], timeout_s).done:
            return None
        result = self._coming.result()
        self._taken += result is not None
        self.ended = self._taken == self._most or (result is None and self._rig.ended)
        self._coming = None if self.ended else self._thread.submit(self._find)
        return result

    def _find(self) -> Result | None:
        frame = self._rig.next(_WAIT_S)
        if frame is None:
            return None
        left, right = self._prepare(frame)
        answer, calibration = self._matcher(left, right), self._prepare.calibration
        depth_m = None if calibration is None else depth_from_disparity(answer.disparity_px, calibration)
        return Result(frame=frame, left=left, right=right, answer=answer, depth_m=depth_m, calibration=calibration)


class Meter:
    """Rates and delays of the newest pairs; always the same few numbers, however long the view runs.

    Attributes:
        pairs: shown so far.
        recordings_cut: recordings that had to stop by themselves.
    """

    def __init__(self) -> None:
        self.pairs = 0
        self.recordings_cut = 0
        self._shown_at_s: deque[float] = deque(maxlen=_AVERAGED_PAIRS)
        self._latencies_ms: deque[float] = deque(maxlen=_KEPT_LATENCIES)

    def count(self, frame: StereoFrame) -> None:
        """A pair is on the screen now."""
        now_s = time.monotonic()
        self.pairs += 1
        self._shown_at_s.append(now_s)
        self._latencies_ms.append(1000 * (now_s - frame.captured_at_s))

    @property
    def fps(self) -> float:
        """Pairs a second, over the newest ones."""
        if len(self._shown_at_s) < 2:
            return 0.0
        return (len(self._shown_at_s) - 1) / (self._shown_at_s[-1] - self._shown_at_s[0])

    @property
    def latency_ms(self) -> float:
        """From the camera's grab to the window, median of the newest pairs."""
        newest = list(self._latencies_ms)[-_AVERAGED_PAIRS:]
        return statistics.median(newest) if newest else 0.0

    def figures(self, rig: Rig) -> str:
        """All of it on one line."""
        text = f"{self.fps:.1f} fps  ·  {self.latency_ms:.0f} ms from grab to window  ·  skew {rig.skew_ms:+.1f} ms"
        text += f"  ·  {rig.skew_dropped} dropped for skew" if rig.skew_dropped else ""
        return text + (f"  ·  {rig.damaged} damaged" if rig.damaged else "")


class Teller:
    """Says each complaint once while it lasts, on standard error."""

    def __init__(self) -> None:
        self._last: set[str] = set()

    def __call__(self, complaints: list[str]) -> None:
        """Says what is new among these."""
        for line in complaints:
            if line not in self._last:
                tqdm.write(line, file=sys.stderr)
        self._last = set(complaints)


def live_view(
    rig: Rig,
    prepare: Preparation,
    matcher: Matcher,
    options: ShowOptions,
    *,
    extra_view: Callable[[Result], None] | None = None,
    after_pair: Callable[[Result], None] | None = None,
) -> Meter:
    """Shows pairs until the user ends it, a recording ends, or `--frames` are shown; returns what was measured.

    Args:
        rig: gives pairs; it is started and stopped here.
        prepare: makes a raw pair one that can be matched.
        matcher: disparity of that pair.
        options: all options of the view.
        extra_view: shows each result as well.
        after_pair: called after each pair, for measurements.

    Raises:
        UserError: the cameras, the calibration, the display or the disk do not allow it.
    """
    meter, teller, pictures_watch = Meter(), Teller(), FrameWatch()
    result: Result | None = None
    pictures: dict[str, Canvas] = {}
    recorder: Recorder | None = None
    arrangement: str | None = None
    of_pictures: list[str] = []
    figures, figures_at_s = "", 0.0
    if options.record is not None:
        check_recordable(options.record)
    with ExitStack() as stack:
        windows = None if options.headless else stack.enter_context(Windows())
        snapshots = stack.enter_context(Snapshots(options.save_dir))
        bar = stack.enter_context(
            tqdm(total=options.frames, unit="pair", desc="live", disable=not options.headless, dynamic_ncols=True)
        )
        if isinstance(matcher, WatchedMatcher):
            stack.enter_context(matcher)
        if options.record is not None:
            recorder = _start_recording(options.record, rig)
        # However the view ends, what is recorded by then is closed as a video has to be.
        stack.callback(lambda: None if recorder is None else _stop_recording(recorder, rig, meter))
        stack.enter_context(rig)
        finder = stack.enter_context(Finder(rig, prepare, matcher, most=options.frames))
        while not finder.ended:
            # -------- the newest pair, and what is in it
            holding = windows is not None and windows.state.hold and result is not None
            fresh = None if holding else finder.next(_WAIT_S)
            if fresh is not None:
                result = fresh
                if meter.pairs % _ARRANGEMENT_EVERY == 0:
                    arrangement = arrangement_complaint(fresh.frame, prepare, rig.source)
                if rig.live:
                    of_pictures = pictures_watch.complaints(fresh.frame)
            # -------- what there is to say
            complaints = list(of_pictures)
            if rig.complaint is not None:
                complaints.append(rig.complaint)
            if arrangement is not None:
                complaints.append(arrangement)
            if isinstance(matcher, WatchedMatcher) and matcher.problem is not None:
                complaints.append(matcher.problem)
            if recorder is not None and recorder.failure is not None:
                recorder = _stop_recording(recorder, rig, meter)
            teller(complaints)
            # -------- the windows
            now_s = time.monotonic()
            if now_s - figures_at_s > _FIGURES_EVERY_S:
                figures, figures_at_s = meter.figures(rig), now_s
                bar.set_postfix_str(f"{figures}  ·  {matcher.name}", refresh=False)
            keys = ""
            if windows is not None and result is not None:
                status = Status(
                    running=matcher.name, figures=figures, complaints=complaints, recording=recorder is not None
                )
                pictures = panels(result, windows.state, status, options.min_confidence)
                keys = windows.show(pictures, (prepare.height, prepare.width))
                if windows.closed:
                    break
            if holding:
                time.sleep(_WAIT_S)
            if fresh is not None:
                meter.count(fresh.frame)
                bar.update()
                if extra_view is not None:
                    extra_view(fresh)
                if after_pair is not None:
                    after_pair(fresh)
            # -------- what the keys ask for
            try:
                if "s" in keys and result is not None:
                    snapshots.save(result, pictures)
                if "r" in keys:
                    if recorder is not None:
                        recorder = _stop_recording(recorder, rig, meter)
                    else:
                        recorder = _start_recording(_recording_name(options.save_dir), rig)
            except (UserError, OSError) as error:  # the view is worth more than what a key asked for
                tqdm.write(f"not saved: {error}", file=sys.stderr)
            snapshots.tell()
        bar.set_postfix_str(f"{meter.figures(rig)}  ·  {matcher.name}")
    snapshots.tell()
    return meter


def _start_recording(path: Path, rig: Rig) -> Recorder:
    recorder = Recorder(path, fps=rig.fps, live=rig.live)
    rig.tap = recorder.add
    return recorder


def _stop_recording(recorder: Recorder, rig: Rig, meter: Meter) -> None:
    """Ends a recording and says what became of it; the view goes on whatever became of it."""
    rig.tap = None
    try:
        tqdm.write(recorder.finish())
    except UserError as error:
        meter.recordings_cut += 1
        tqdm.write(str(error), file=sys.stderr)


def _recording_name(folder: Path) -> Path:
    name = time.strftime("%Y%m%d-%H%M%S")
    return next(path for n in range(10**6) if not (path := folder / f"{name}{f'-{n}' if n else ''}.avi").exists())
