from pathlib import Path

import pytest

from live_camera.window_places import Place, keep_places, places_file, read_places

SCREEN = (1366, 768)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def test_places_are_kept_by_screen_and_window() -> None:
    assert read_places(SCREEN) == {}
    keep_places(SCREEN, {"Depth": Place(10, 20, 300, 200)})
    keep_places(SCREEN, {"Stereo pair": Place(400, 20, 300, 200)})
    keep_places(None, {"Depth": Place(0, 0, 900, 700)})
    assert read_places(SCREEN) == {"Depth": Place(10, 20, 300, 200), "Stereo pair": Place(400, 20, 300, 200)}
    assert read_places((1920, 1080)) == {}


def test_window_beyond_the_screen_is_placed_as_a_new_one() -> None:
    beyond = [Place(1340, 0, 300, 200), Place(-250, 0, 300, 200), Place(0, 760, 300, 200), Place(0, 0, 5, 5)]
    keep_places(SCREEN, {str(number): place for number, place in enumerate(beyond)} | {"ok": Place(0, 0, 300, 200)})
    assert set(read_places(SCREEN)) == {"ok"}


@pytest.mark.parametrize("content", ["", "[1]", '{"1366x768": 3}', '{"1366x768": {"Depth": ["a", 1, 2, 3]}}', "\0"])
def test_damaged_file_is_replaced(content: str) -> None:
    places_file().parent.mkdir(parents=True)
    places_file().write_text(content)
    assert read_places(SCREEN) == {}
    keep_places(SCREEN, {"Depth": Place(10, 20, 300, 200)})
    assert read_places(SCREEN) == {"Depth": Place(10, 20, 300, 200)}


def test_folder_that_cannot_be_written_to_is_no_error(state: Path) -> None:
    state.write_text("a file")
    keep_places(SCREEN, {"Depth": Place(10, 20, 300, 200)})
    assert read_places(SCREEN) == {}
