"""Focus, exposure, gain and white balance: cameras that obey, that refuse, and that report another value."""

import logging
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import shifted_pair
from fake_cameras import FakeCamera, machine  # noqa: F401
from rendered_rig import converging_rig

from foundation_stereo_depth.calibration.files import read_calibration, save_calibration
from foundation_stereo_depth.calibration.settings import CameraSettings
from foundation_stereo_depth.errors import CalibrationError
from live_camera import camera_settings
from live_camera import rig as rig_module
from live_camera.camera_settings import read_settings_beside, write_settings
from live_camera.diagnostics import check_frame_size
from live_camera.options import CameraOptions, SourceOptions
from live_camera.rig import StereoFrame, open_rig

LEFT, RIGHT = shifted_pair(48, 64, 5)
CALIBRATED = (
    CameraSettings(focus=30.0, exposure=80.0, gain=4.0, white_balance=5000.0),
    CameraSettings(focus=35.0, exposure=80.0, gain=4.0, white_balance=5000.0),
)
BOTH = SourceOptions(left="0", right="2")


@pytest.fixture
def webcams(machine: dict[int, FakeCamera], monkeypatch: pytest.MonkeyPatch) -> dict[int, FakeCamera]:
    """Return two webcams with autofocus, whose lenses stand at 10 and 12."""
    monkeypatch.setattr(camera_settings, "SETTLING_S", 0.02)
    machine[0], machine[2] = FakeCamera(LEFT), FakeCamera(RIGHT)
    for camera, focus in ((machine[0], 10.0), (machine[2], 12.0)):
        camera.settings |= {cv2.CAP_PROP_AUTOFOCUS: 1.0, cv2.CAP_PROP_FOCUS: focus}
    return machine


def test_each_lens_is_fixed_where_it_is_and_colours_are_alike(
    webcams: dict[int, FakeCamera], caplog: pytest.LogCaptureFixture
) -> None:
    webcams[2].settings[cv2.CAP_PROP_EXPOSURE] = 20.0
    with open_rig(BOTH, CameraOptions()) as rig:
        assert rig.settings == (
            CameraSettings(focus=10.0, exposure=156.0, gain=8.0, white_balance=4600.0),
            CameraSettings(focus=12.0, exposure=156.0, gain=8.0, white_balance=4600.0),
        )
    assert [webcams[index].settings[cv2.CAP_PROP_AUTOFOCUS] for index in (0, 2)] == [0.0, 0.0]
    assert caplog.messages == []


@pytest.mark.parametrize("swap", [False, True])
def test_settings_of_the_calibration_are_applied(
    webcams: dict[int, FakeCamera], caplog: pytest.LogCaptureFixture, swap: bool
) -> None:
    with open_rig(replace(BOTH, swap=swap), CameraOptions(), calibrated=CALIBRATED) as rig:
        assert rig.settings == CALIBRATED
    assert webcams[0].settings[cv2.CAP_PROP_FOCUS] == (35.0 if swap else 30.0)
    assert caplog.messages == []


def test_exposure_of_the_calibration_is_not_used_where_images_become_dark(
    webcams: dict[int, FakeCamera], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    webcams[0].image = LEFT // 20
    webcams[0].settings[cv2.CAP_PROP_EXPOSURE] = 156.0
    with open_rig(BOTH, CameraOptions(), calibrated=CALIBRATED) as rig:
        assert rig.settings is not None
        assert rig.settings[0].white_balance == 5000.0
    assert "the calibration's exposure does not fit the light; the left camera chooses another one" in caplog.messages


@pytest.mark.parametrize(
    ("offers", "options", "message"),
    [
        ({cv2.CAP_PROP_FOCUS: 45.0}, {}, "--left 0: was calibrated at focus 30, and is at 45: depth is wrong"),
        ({}, {"focus": 50.0}, "--left 0: was calibrated at focus 30, and is at 50: depth is wrong"),
        ({}, {"focus": "auto"}, "with --focus auto the lens moves"),
    ],
)
def test_other_focus_than_the_calibrations_is_told(
    webcams: dict[int, FakeCamera],
    caplog: pytest.LogCaptureFixture,
    offers: dict[int, float],
    options: dict[str, str | float],
    message: str,
) -> None:
    webcams[0].offers = offers
    with open_rig(BOTH, CameraOptions(**options), calibrated=CALIBRATED):  # pyright: ignore[reportArgumentType]
        pass
    assert message in caplog.text


def test_autofocus_that_the_driver_does_not_switch_off_is_told(
    webcams: dict[int, FakeCamera], caplog: pytest.LogCaptureFixture
) -> None:
    webcams[0].refused = {cv2.CAP_PROP_AUTOFOCUS}
    webcams[2].offers = {cv2.CAP_PROP_AUTOFOCUS: 1.0}
    with open_rig(BOTH, CameraOptions()):
        pass
    reason = "; a calibration holds only while the lens does not move"
    assert caplog.messages == [
        f"--left 0: autofocus off was requested, the camera refuses it and uses on{reason}",
        f"--right 2: autofocus off was requested, the camera uses on{reason}",
    ]


def test_fixed_lens_is_no_warning_but_another_camera_than_the_calibrated_one_is(
    webcams: dict[int, FakeCamera], caplog: pytest.LogCaptureFixture
) -> None:
    for camera in webcams.values():
        camera.refused = {cv2.CAP_PROP_AUTOFOCUS, cv2.CAP_PROP_FOCUS}
        camera.settings |= dict.fromkeys(camera.refused, -1.0)
    with open_rig(BOTH, CameraOptions()) as rig:
        assert rig.settings is not None
        assert rig.settings[1].focus is None
    assert caplog.messages == []
    with open_rig(BOTH, CameraOptions(), calibrated=CALIBRATED):
        pass
    assert "--right 2: was calibrated at focus 35, and reports no focus now; is it another camera?" in caplog.messages


def test_lens_that_moves_later_is_told_by_the_running_rig(
    webcams: dict[int, FakeCamera], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rig_module, "_SETTINGS_EVERY_S", 0.0)
    with open_rig(BOTH, CameraOptions()) as rig:
        assert rig.next(5) is not None
        assert rig.changed_setting is None
        webcams[2].settings[cv2.CAP_PROP_FOCUS] = 99.0
        assert any(rig.changed_setting is not None for _ in range(50) if rig.next(5))
    assert rig.changed_setting == "--right 2: focus was locked at 12, and is 99 now"


def test_settings_are_kept_in_the_calibration_and_beside_images(tmp_path: Path) -> None:
    left = CameraSettings(focus=30.0, exposure=-6.0)
    rig = replace(converging_rig(), settings=(left, CALIBRATED[1]))
    save_calibration(tmp_path / "rig.npz", rig)
    assert read_calibration(tmp_path / "rig.npz").settings == (left, CALIBRATED[1])
    save_calibration(tmp_path / "plain.npz", converging_rig())
    assert read_calibration(tmp_path / "plain.npz").settings is None
    assert read_settings_beside(tmp_path / "left_00.png") is None
    write_settings(tmp_path, (left, CALIBRATED[1]))
    assert read_settings_beside(tmp_path / "left_00.png") == (left, CALIBRATED[1])
    for damaged in ("[", "{}", '{"left": {"focus": 1}}', "[" * 5000):
        (tmp_path / "camera_settings.json").write_text(damaged)
        with pytest.raises(CalibrationError, match=r"camera_settings\.json"):
            read_settings_beside(tmp_path / "left_00.png")


def test_other_frame_size_than_the_calibrations_is_told() -> None:
    rig = converging_rig(height=240, width=320)
    frame = np.zeros((480, 640, 3), np.uint8)
    raw = StereoFrame(left_rgb=frame, right_rgb=frame, captured_at_s=0.0, skew_ms=0.0)
    assert check_frame_size(raw, converging_rig(height=480, width=640)) is None
    told = check_frame_size(raw, rig)
    assert told is not None
    assert "frames are 640x480, the calibration was made at 320x240" in told
