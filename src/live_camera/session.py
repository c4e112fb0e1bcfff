"""The live loop: newest pair -> rectified -> disparity -> depth -> windows.

The next pair is matched in a thread while the windows show this one.
"""

import json
import logging
import math
import statistics
import time
from collections import deque
from collections.abc import Callable
from concurrent import futures
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from tqdm import tqdm

from foundation_stereo_depth.colours import colour_map_of
from foundation_stereo_depth.data.rectify import Rectifier, Resizer
from foundation_stereo_depth.errors import UserError
from live_camera.depth_files import open_depth_writer
from live_camera.diagnostics import Diagnostics
from live_camera.draw import Canvas
from live_camera.fusion import TemporalFusion
from live_camera.matcher import MatchedFrame, Matcher, WatchedMatcher
from live_camera.options import ShowOptions
from live_camera.recording import Recordings, Snapshots
from live_camera.rig import Rig, StereoFrame
from live_camera.view import Status, ViewState, Windows, centre_of, draw_windows, measure_box
from live_camera.web_view import WebView

logger = logging.getLogger(__name__)

_AVERAGED_PAIRS = 30
_UPDATE_TEXT_EVERY_S = 0.25
_WAIT_S = 0.05
_KEPT_LATENCIES = 1000
_JSON_EVERY_S = 1.0
_NOTICE_S = 4.0


class Prefetcher:
    """Matches the newest pairs, in order, in a thread of its own; to be used in a `with`.

    Once a result is taken the thread starts the next pair, which is matched while this one is shown. It is never more
    than one pair ahead, so that the shown pair stays recent.

    Args:
        rig: gives the pairs.
        rectify: makes a raw pair one that can be matched.
        matcher: computes its disparity.
        limit: number of results; None for all that the rig gives.
        fuse: averages the disparity over time, while `fusing`.

    Attributes:
        fusing: may be changed at any time.
        ended: no more results will come.
    """

    def __init__(
        self,
        rig: Rig,
        rectify: Rectifier | Resizer,
        matcher: Matcher | WatchedMatcher,
        *,
        limit: int | None,
        fuse: TemporalFusion,
        fusing: bool = False,
    ) -> None:
        self._rig = rig
        self._fuse = fuse
        self.fusing = fusing
        self._rectify = rectify
        self._matcher = matcher
        self._limit = limit
        self._thread = futures.ThreadPoolExecutor(1, "matching")
        self._pending: futures.Future[MatchedFrame | None] | None = None
        self._taken = 0
        self.ended = False

    def __enter__(self) -> "Prefetcher":
        self._pending = self._thread.submit(self._match_next)
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def next(self, timeout_s: float) -> MatchedFrame | None:
        """Take the next result; None where it is not ready in that time.

        Raises:
            UserError: its pair cannot be used.
        """
        assert self._pending is not None, "outside of `with`, or after the end"
        if not futures.wait([self._pending], timeout_s).done:
            return None
        matched = self._pending.result()
        self._taken += matched is not None
        self.ended = self._taken == self._limit or (matched is None and self._rig.ended)
        self._pending = None if self.ended else self._thread.submit(self._match_next)
        return matched

    def _match_next(self) -> MatchedFrame | None:
        frame = self._rig.next(_WAIT_S)
        if frame is None:
            return None
        left, right = self._rectify(frame.left_rgb, frame.right_rgb)
        match, calibration = self._matcher.match(left, right), self._rectify.stereo_calibration
        if self.fusing:
            match = self._fuse(left, match)
        else:
            self._fuse.restart()
        depth_m = None if calibration is None else match.depth_m(calibration)
        return MatchedFrame(frame=frame, left=left, right=right, match=match, depth_m=depth_m, calibration=calibration)


class Statistics:
    """Rate and latency of the newest pairs, in constant memory, and what was written.

    Attributes:
        pairs: number of pairs shown.
        written: recordings and snapshots that are complete.
        incomplete_recordings: number of recordings that stopped by themselves.
    """

    def __init__(self) -> None:
        self.pairs = 0
        self.written: list[Path] = []
        self.incomplete_recordings = 0
        self._shown_at_s: deque[float] = deque(maxlen=_AVERAGED_PAIRS)
        self._latencies_ms: deque[float] = deque(maxlen=_KEPT_LATENCIES)
        self._text, self._text_at_s = "", 0.0

    def count(self, frame: StereoFrame) -> None:
        """Count a pair that is shown now."""
        now_s = time.monotonic()
        self.pairs += 1
        self._shown_at_s.append(now_s)
        self._latencies_ms.append(1000 * (now_s - frame.captured_at_s))

    @property
    def fps(self) -> float:
        """Pairs per second, over the newest ones."""
        if len(self._shown_at_s) < 2:
            return 0.0
        return (len(self._shown_at_s) - 1) / (self._shown_at_s[-1] - self._shown_at_s[0])

    @property
    def latency_ms(self) -> float:
        """From the camera's grab to the window, median of the newest pairs."""
        newest = list(self._latencies_ms)[-_AVERAGED_PAIRS:]
        return statistics.median(newest) if newest else 0.0

    def text(self, rig: Rig) -> str:
        """Return the summary of a moment ago, which changes slowly enough to be read."""
        now_s = time.monotonic()
        if now_s - self._text_at_s > _UPDATE_TEXT_EVERY_S:
            self._text, self._text_at_s = self.summary(rig), now_s
        return self._text

    def summary(self, rig: Rig) -> str:
        """Return rate, latency, skew and lost frames on one line."""
        text = f"{self.fps:.1f} fps  ·  latency {self.latency_ms:.0f} ms  ·  skew {rig.skew_ms:+.1f} ms"
        text += f"  ·  {rig.skew_dropped} pairs dropped for skew" if rig.skew_dropped else ""
        return text + (f"  ·  {rig.corrupt_frames} corrupt frames" if rig.corrupt_frames else "")


def live_view(
    rig: Rig,
    rectify: Rectifier | Resizer,
    matcher: Matcher | WatchedMatcher,
    options: ShowOptions,
    *,
    extra_view: Callable[[MatchedFrame], None] | None = None,
    after_pair: Callable[[MatchedFrame], None] | None = None,
) -> Statistics:
    """Show pairs until the user quits, a recording ends, or `--frames` are shown; return the statistics.

    Args:
        rig: gives the pairs; it is started and stopped here.
        rectify: makes a raw pair one that can be matched.
        matcher: computes its disparity.
        options: all options of the view.
        extra_view: shows each result as well.
        after_pair: called after each pair, for measurements.

    Raises:
        UserError: the cameras, the calibration, the display or the disk do not allow it.
    """
    stats, diagnostics, notice = Statistics(), Diagnostics(rig, rectify, matcher), Notice()
    matched: MatchedFrame | None = None
    with ExitStack() as stack:
        windows = None if options.headless else stack.enter_context(Windows())
        web = None if options.serve is None else stack.enter_context(WebView(options.serve))
        state = _set_state(ViewState() if windows is None else windows.state, options)
        snapshots = stack.enter_context(Snapshots(options.save_dir, rectify.calibration))
        bar = stack.enter_context(
            tqdm(total=options.frames, unit="pair", desc="live", disable=not options.headless, dynamic_ncols=True)
        )
        if isinstance(matcher, WatchedMatcher):
            stack.enter_context(matcher)
        recordings = stack.enter_context(Recordings(rig, rectify.calibration))
        if options.record is not None:
            recordings.start(options.record)
        views = _open_views(stack, options, rectify, rig, JsonReport(stats, rig))
        views += [] if extra_view is None else [extra_view]
        stack.enter_context(rig)
        fuse, fusing = TemporalFusion(options.forgetting), state.temporal_fusion
        prefetcher = stack.enter_context(
            Prefetcher(rig, rectify, matcher, limit=options.frames, fuse=fuse, fusing=fusing)
        )
        while not prefetcher.ended:
            # -------- the newest pair and its disparity
            paused = state.paused and matched is not None
            fresh = None if paused else prefetcher.next(_WAIT_S)
            matched = matched if fresh is None else fresh
            # -------- problems of the cameras, the frames, the network or the disk
            warnings = diagnostics.update(None if fresh is None else fresh.frame)
            notice.set(recordings.stop_if_failed() or snapshots.log_finished())
            # -------- windows and keys
            text = stats.text(rig)
            bar.set_postfix_str(f"{text}  ·  {matcher.description}", refresh=False)
            watched = windows is not None or (web is not None and web.watched)
            if watched and matched is not None:
                status = Status(
                    matcher=matcher.description,
                    statistics=text,
                    warnings=warnings,
                    recording=recordings.running,
                    notice=notice.text,
                )
                images = draw_windows(matched, state, status, options.min_confidence)
                if web is not None:
                    web.show(images)
                if windows is not None:
                    keys = windows.show(images, (rectify.height, rectify.width))
                    if windows.closed:
                        break
                    notice.set(_save_by_key(keys, matched, images, snapshots, recordings))
                    prefetcher.fusing = state.temporal_fusion
            if paused:
                time.sleep(_WAIT_S)
            # -------- statistics and other views of the new pair
            if fresh is not None:
                stats.count(fresh.frame)
                bar.update()
                for view in views:
                    view(fresh)
                if after_pair is not None:
                    after_pair(fresh)
        bar.set_postfix_str(f"{stats.summary(rig)}  ·  {matcher.description}")
    stats.written = [*recordings.written, *snapshots.written]
    stats.incomplete_recordings = recordings.incomplete
    return stats


class JsonReport:
    """Prints one JSON line a second to standard output: rates, and what lies in the middle of the image."""

    def __init__(self, stats: Statistics, rig: Rig) -> None:
        self._stats = stats
        self._rig = rig
        self._printed_at_s = -math.inf

    def __call__(self, matched: MatchedFrame) -> None:
        """Print a line for this pair, if the last one is a second old."""
        now_s, stats, rig = time.monotonic(), self._stats, self._rig
        if now_s - self._printed_at_s < _JSON_EVERY_S:
            return
        self._printed_at_s = now_s
        centre = measure_box(matched, *centre_of(matched))
        line: dict[str, float | int | str | None] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "pairs": stats.pairs,
            "fps": round(stats.fps, 2),
            "latency_ms": round(stats.latency_ms, 1),
            "skew_ms": round(rig.skew_ms, 1),
            "known_percent": round(100 * float(np.isfinite(matched.match.disparity_px).mean()), 1),
        }
        for name, value in centre._asdict().items():
            line[f"centre_{name}"] = round(value, 4) if math.isfinite(value) else None
        print(json.dumps(line), flush=True)


def _set_state(state: ViewState, options: ShowOptions) -> ViewState:
    """Set the view as the options have it; return its state, which keys change."""
    state.depth_range, state.contours = options.depth_range, options.contours
    state.temporal_fusion = options.temporal_fusion
    state.colour_map = colour_map_of(options.colormap)
    return state


def _open_views(
    stack: ExitStack,
    options: ShowOptions,
    rectify: Rectifier | Resizer,
    rig: Rig,
    report: JsonReport,
) -> list[Callable[[MatchedFrame], None]]:
    """Return what takes each result beside the windows: files of depth, lines of JSON."""
    views: list[Callable[[MatchedFrame], None]] = []
    if options.save_depth is not None:
        if rectify.stereo_calibration is None:
            raise UserError("--save-depth: needs the rig's --calibration; without one there is no depth")
        writer = open_depth_writer(options.save_depth, rectify.stereo_calibration, rig.fps)
        views.append(stack.enter_context(writer))
    if options.json:
        views.append(report)
    return views


def _save_by_key(
    keys: str, matched: MatchedFrame, images: dict[str, Canvas], snapshots: Snapshots, recordings: Recordings
) -> str | None:
    """Save a snapshot by the key s, start or stop a recording by the key r; return what was done, None if nothing."""
    answer = None
    try:
        if "s" in keys:
            answer = f"saving {snapshots.save(matched, images)}"
        if "r" in keys:
            answer = recordings.toggle(snapshots.folder)
    except (UserError, OSError) as error:  # a full disk does not end the view
        answer = f"not saved: {error}"
        logger.warning(answer)
    return answer


class Notice:
    """The answer to a key, which is shown for a few seconds."""

    def __init__(self) -> None:
        self._text, self._until_s = "", 0.0

    def set(self, text: str | None) -> None:
        """Show a new answer; None leaves the one before."""
        if text is not None:
            self._text, self._until_s = text, time.monotonic() + _NOTICE_S

    @property
    def text(self) -> str:
        """What to show now."""
        return self._text if time.monotonic() < self._until_s else ""
