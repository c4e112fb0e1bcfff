from dataclasses import replace

import cv2
import numpy as np
import pytest

from foundation_stereo_depth.colours import MASKED, ColourScale, apply_colours
from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.stereo.geometry import StereoCalibration, depth_from_disparity
from foundation_stereo_depth.stereo.match import StereoMatch
from live_camera import draw, view
from live_camera.matcher import MatchedFrame
from live_camera.rig import StereoFrame
from live_camera.view import CONFIDENCE_WINDOW, DEPTH_WINDOW, DISPARITY_WINDOW, PAIR_WINDOW, Status, ViewState

H, W = 48, 64
CALIBRATION = StereoCalibration(
    width=W, height=H, focal_px=50.0, focal_y_px=50.0, cx_left_px=32.0, cx_right_px=32.0, cy_px=24.0, baseline_m=0.1
)
RED = (255, 0, 0)


def matched_frame(*, depth: bool = True, network: bool = True) -> MatchedFrame:
    left = np.full((90, 160, 3), RED, np.uint8)
    disparity_px = np.full((H, W), 5.0, np.float32)
    disparity_px[:, W // 2 :] = 2.5
    disparity_px[0, 0] = np.nan
    confidence = np.full((H, W), 0.9, np.float32)
    confidence[: H // 2] = 0.2
    match = StereoMatch(
        disparity_px=disparity_px,
        valid=confidence >= 0.5,
        sigma_px=np.full((H, W), 0.5, np.float32) if network else None,
        confidence=confidence if network else None,
    )
    return MatchedFrame(
        frame=StereoFrame(left_rgb=left, right_rgb=left, captured_at_s=0.0, skew_ms=0.0),
        left=left[:H, :W],
        right=left[:H, :W],
        match=match,
        depth_m=depth_from_disparity(disparity_px, CALIBRATION) if depth else None,
        calibration=CALIBRATION if depth else None,
    )


def shown(images: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Return the map in a window, without bar and text."""
    body = images[name][draw.ROW_PX : -2 * draw.ROW_PX]
    return body if name == PAIR_WINDOW else body[:, : -draw.BAR_PX]


def test_network_with_calibration_has_three_windows_of_the_cameras_aspect() -> None:
    images = view.draw_windows(matched_frame(), ViewState(), Status(), 0.5)
    assert set(images) == {PAIR_WINDOW, DEPTH_WINDOW, "DL Confidence"}
    assert shown(images, PAIR_WINDOW).shape == (270, 960, 3)  # frames of 160x90, though the map is 64x48
    assert shown(images, DEPTH_WINDOW).shape == (270, 480, 3)
    assert shown(images, PAIR_WINDOW)[100, 100].tolist() == [0, 0, 255]  # red, in the order of the screen


@pytest.mark.parametrize("screen", [(1366, 768), (1400, 900), (1920, 1080)])
@pytest.mark.parametrize("size", [(497, 741), (480, 640), (720, 1280)])
def test_windows_fit_the_screen(screen: tuple[int, int], size: tuple[int, int]) -> None:
    width = view.fit_view_width(max(480, size[1]), size[0] / size[1], screen)
    height = round(width * size[0] / size[1])
    assert width > 200
    assert 2 * (width + draw.BAR_PX) + 10 + 40 <= screen[0]
    assert 2 * (height + 3 * draw.ROW_PX + 40) + 10 + 40 <= screen[1] + 1
    assert view.fit_view_width(640, 0.75, None) == 640


def test_middle_is_read_out_without_a_mouse_and_missing_calibration_is_named() -> None:
    images = view.draw_windows(matched_frame(), ViewState(), Status(), 0.5)
    text = view.describe_pixel(matched_frame(), 32, 24)
    row = draw.draw_text_row(text, images[PAIR_WINDOW].shape[1], draw.TEXT)
    assert np.array_equal(images[PAIR_WINDOW][-draw.ROW_PX :], row)
    raw = view.draw_windows(matched_frame(depth=False), ViewState(), Status(), 0.5)[PAIR_WINDOW]
    title = draw.draw_text_row(
        "left and right view, not rectified: no calibration  ·  h: help", raw.shape[1], draw.TEXT
    )
    assert np.array_equal(raw[: draw.ROW_PX], title)


def test_windows_of_missing_depth_or_confidence_are_not_drawn() -> None:
    assert set(view.draw_windows(matched_frame(depth=False), ViewState(), Status(), 0.5)) == {
        PAIR_WINDOW,
        DISPARITY_WINDOW,
        CONFIDENCE_WINDOW,
    }
    assert set(view.draw_windows(matched_frame(network=False), ViewState(), Status(), 0.5)) == {
        PAIR_WINDOW,
        DEPTH_WINDOW,
    }


def test_near_surfaces_are_red_in_depth_and_in_disparity() -> None:
    for depth, name in ((True, DEPTH_WINDOW), (False, DISPARITY_WINDOW)):
        state = ViewState(low=0.0, high=5.0)
        body = shown(view.draw_windows(matched_frame(depth=depth), state, Status(), 0.5), name).astype(int)
        near, far = body[100, 50], body[100, 400]
        assert near[2] == near.max(), "red is the strongest channel"
        assert near[2] / near.sum() > 1.3 * far[2] / far.sum(), "the near surface is redder than the far one"
        assert body[0, 0].tolist() == [0, 0, 0]  # unknown


def test_low_confidence_is_hidden_on_request() -> None:
    for network in (True, False):
        visible = shown(view.draw_windows(matched_frame(network=network), ViewState(), Status(), 0.5), DEPTH_WINDOW)
        hidden = shown(
            view.draw_windows(matched_frame(network=network), ViewState(hide_uncertain=True), Status(), 0.5),
            DEPTH_WINDOW,
        )
        assert hidden[50, 50].tolist() == list(MASKED)
        assert np.array_equal(hidden[200], visible[200])


def test_colour_range_is_kept_until_it_adapts() -> None:
    state = ViewState()
    state.fit_range(np.full((8, 8), 2.0), is_depth=True)
    assert (state.low, state.high) == (pytest.approx(1.8), pytest.approx(2.2))
    state.fit_range(np.full((8, 8), 20.0), is_depth=True)
    assert state.high == pytest.approx(2.2)
    state.press(ord("]"))
    assert state.high == pytest.approx(2.64)
    state.press(ord("["))
    assert state.high == pytest.approx(2.2)
    state.press(ord("a"))
    for _ in range(60):
        state.fit_range(np.full((8, 8), 20.0), is_depth=True)
    assert state.high == pytest.approx(22, rel=0.01)
    state.press(ord("["))
    assert not state.adapt_range


@pytest.mark.parametrize("depth_m", [0.5, 3.0, 12.5, 90.0])
def test_narrowed_colour_range_never_becomes_empty(depth_m: float) -> None:
    state = ViewState()
    state.fit_range(np.linspace(0.97 * depth_m, 1.03 * depth_m, 64).reshape(8, 8), is_depth=True)
    for _ in range(10):
        state.press(ord("["))
        matched = replace(matched_frame(), depth_m=np.full((H, W), depth_m, np.float32))
        assert DEPTH_WINDOW in view.draw_windows(matched, state, Status(matcher="x"), 0.5)


def test_map_without_values_does_not_set_the_colour_range() -> None:
    state = ViewState()
    state.fit_range(np.full((8, 8), np.nan), is_depth=True)
    assert state.high is None


def test_pixel_text_has_disparity_depth_sigma_and_confidence() -> None:
    matched = matched_frame()
    # Z = f B / d = 1 m; sigma = Z^2 sigma_d / (f B) = 0.1 m.
    assert view.describe_pixel(matched, 10, 40) == (
        "(10, 40)  5.00 px ± 0.50  1.000 m ± 0.100  P 90 %    9x9:  5.00 px ± 0.50  1.000 m ± 0.100  P 90 %"
    )
    assert view.describe_pixel(matched, 0, 0).startswith("(0, 0)  no disparity")
    assert view.describe_pixel(matched_frame(network=False), 10, 40).startswith("(10, 40)  5.00 px  1.000 m    9x9")
    assert (
        view.describe_pixel(matched_frame(depth=False, network=False), 63, 47) == "(63, 47)  2.50 px    9x9:  2.50 px"
    )


def test_mouse_over_a_colour_bar_has_no_cursor() -> None:
    windows = view.Windows.__new__(view.Windows)
    windows.state, windows._body_size, windows._map_size = ViewState(), (240, 320), (120, 160)
    row = view.draw.ROW_PX + 100
    for name, column, cursor in (
        (DEPTH_WINDOW, 300, (150, 50)),
        (DEPTH_WINDOW, 330, None),
        (PAIR_WINDOW, 330, (5, 50)),
    ):
        windows._track_mouse(0, column, row, 0, name)
        assert windows.state.cursor == cursor


def test_lines_help_and_cursor_change_their_windows() -> None:
    plain = view.draw_windows(matched_frame(), ViewState(), Status(), 0.5)
    lines = view.draw_windows(matched_frame(), ViewState(lines=True), Status(), 0.5)
    assert not np.array_equal(plain[PAIR_WINDOW], lines[PAIR_WINDOW])
    assert np.array_equal(plain[DEPTH_WINDOW], lines[DEPTH_WINDOW])
    cursor = view.draw_windows(matched_frame(), ViewState(cursor=(10, 40)), Status(), 0.5)
    assert all(not np.array_equal(plain[name], cursor[name]) for name in plain)
    with_help = view.draw_windows(matched_frame(), ViewState(show_help=True), Status(), 0.5)
    assert not (shown(with_help, PAIR_WINDOW) == (0, 0, 255)).all(axis=2).any()


def test_warnings_replace_the_pixel_text_in_another_colour() -> None:
    images = view.draw_windows(matched_frame(), ViewState(), Status(warnings=["the left view is black"]), 0.5)
    expected = draw.draw_text_row("the left view is black", images[PAIR_WINDOW].shape[1], draw.WARNING)
    assert np.array_equal(images[PAIR_WINDOW][-draw.ROW_PX :], expected)


def test_long_text_is_cut_to_its_row() -> None:
    row = draw.draw_text_row("depth " * 100, 300, draw.TEXT)
    assert row.shape == (draw.ROW_PX, 300, 3)
    assert (row[:, -5:] == draw.BACKGROUND).all()
    assert (draw.draw_text_row("", 300, draw.TEXT) == draw.BACKGROUND).all()


def test_colour_bar_has_the_colours_of_the_map() -> None:
    scale = ColourScale(low=0.0, high=4.0, unit="m", reverse=True)
    bar = draw.draw_colour_bar(scale, 270)
    values = np.array([[0.0, 4.0]], np.float32)
    nearest, farthest = apply_colours(values, scale, 1, 2, None)[0]
    assert np.abs(bar[34:255, 15].astype(int)[-1] - nearest).max() < 12
    assert np.abs(bar[34:255, 15].astype(int)[0] - farthest).max() < 12
    first = cv2.applyColorMap(np.zeros((1, 1), np.uint8), cv2.COLORMAP_TURBO)[0, 0]
    assert np.array_equal(apply_colours(values, replace(scale, reverse=False), 1, 2, None)[0, 0], first)


def test_missing_display_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(UserError, match="no display was found; use --headless to run without one"):
        view.check_display()
    monkeypatch.setenv("DISPLAY", ":8765")
    with pytest.raises(UserError, match="DISPLAY is :8765, but no window opens there"):
        view.check_display()


def test_contours_are_drawn_into_the_left_view_where_depth_passes_half_a_metre() -> None:
    matched = matched_frame()  # 1 m on the left half, 2 m on the right one
    plain = view.draw_windows(matched, ViewState(depth_range=(0.5, 3.0)), Status(), 0.5)
    state = ViewState(depth_range=(0.5, 3.0))
    state.press(ord("d"))
    images = view.draw_windows(matched, state, Status(), 0.5)
    changed = (shown(images, PAIR_WINDOW) != shown(plain, PAIR_WINDOW)).any(axis=2)
    columns = np.flatnonzero(changed.any(axis=0))
    assert columns.min() > 220
    assert columns.max() < 260  # the step in the middle of the left view, 480 px wide; nothing in the right view
    assert changed[:, columns.min() : columns.max() + 1].any(axis=1).mean() > 0.9
    no_depth = view.draw_windows(matched_frame(depth=False), state, Status(), 0.5)
    assert shown(no_depth, PAIR_WINDOW).shape == shown(plain, PAIR_WINDOW).shape


def test_answer_to_a_key_is_shown_in_place_of_the_values() -> None:
    images = view.draw_windows(matched_frame(), ViewState(), Status(notice="a: snapshot saved"), 0.5)
    row = draw.draw_text_row("a: snapshot saved", images[PAIR_WINDOW].shape[1], draw.NOTICE)
    assert np.array_equal(images[PAIR_WINDOW][-draw.ROW_PX :], row)


def test_all_keys_fit_the_help_of_a_small_window() -> None:
    image = draw.draw_help(view.KEYS, 250, 666)
    rows = np.flatnonzero((image != np.array(draw.BACKGROUND, np.uint8)).any(axis=(1, 2)))
    assert rows.max() < 249
