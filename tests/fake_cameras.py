"""Fake cameras in place of `cv2.VideoCapture`, with faults on request."""

import time
from typing import Any

import cv2
import numpy as np
import pytest


class FakeCamera:
    """A webcam of a fake machine: it obeys, unless it offers another value than the requested one, or refuses."""

    def __init__(self, image: np.ndarray, *, fps: float = 100.0, late_s: float = 0.0) -> None:
        self.image = image
        self.fps = fps
        self.late_s = late_s
        self.connected = True
        self.silent = False
        self.frozen = False
        self.corrupt = 0
        self.opened = 0
        self.offers: dict[int, float] = {}
        self.refused: set[int] = set()
        self.driver_times = True
        self.settings: dict[int, float] = {
            cv2.CAP_PROP_FRAME_WIDTH: image.shape[1],
            cv2.CAP_PROP_FRAME_HEIGHT: image.shape[0],
            cv2.CAP_PROP_FPS: fps,
            cv2.CAP_PROP_EXPOSURE: 156.0,
            cv2.CAP_PROP_GAIN: 8.0,
            cv2.CAP_PROP_WB_TEMPERATURE: 4600.0,
        }


class FakeCapture:
    """An open fake camera; a frame arrives at every multiple of its interval."""

    def __init__(self, camera: FakeCamera | None) -> None:
        self.camera = camera
        self.number = 0
        self.at_s = 0.0
        self.began_s = time.monotonic()
        if camera is not None:
            camera.opened += 1

    def isOpened(self) -> bool:
        return self.camera is not None and self.camera.connected

    def set(self, name: int, value: float) -> bool:
        assert self.camera is not None
        if name in self.camera.refused:
            return False
        self.camera.settings[name] = self.camera.offers.get(name, value)
        return True

    def get(self, name: int) -> float:
        assert self.camera is not None
        if name == cv2.CAP_PROP_POS_MSEC:
            return 1000 * self.at_s if self.camera.driver_times else 0.0
        return self.camera.settings.get(name, 0.0)

    def grab(self) -> bool:
        if not self.isOpened():
            return False
        assert self.camera is not None
        if self.camera.silent:
            return False
        interval_s = 1 / self.camera.fps
        self.number += 1
        self.at_s = self.began_s + self.number * interval_s + self.camera.late_s
        time.sleep(max(0.0, self.at_s - time.monotonic()))
        return True

    def retrieve(self) -> tuple[bool, Any]:
        assert self.camera is not None
        if self.camera.corrupt:
            self.camera.corrupt -= 1
            return False, None
        image = self.camera.image
        if not self.camera.frozen:
            noise = np.random.default_rng(self.number).integers(0, 3, image.shape, dtype=np.uint8)
            image = np.minimum(image, 252) + noise
        return True, cv2.cvtColor(image, cv2.COLOR_RGB2BGR)

    def release(self) -> None:
        pass


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[int, FakeCamera]:
    """Return the cameras of a fake machine by index; empty at first."""
    cameras: dict[int, FakeCamera] = {}
    original = cv2.VideoCapture

    def open_capture(address: Any, *rest: Any) -> Any:
        return FakeCapture(cameras.get(address)) if isinstance(address, int) else original(address, *rest)

    monkeypatch.setattr(cv2, "VideoCapture", open_capture)
    monkeypatch.setattr("live_camera.camera.stable_path", lambda _: None)
    return cameras
