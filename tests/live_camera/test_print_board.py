"""Boards to print: what is printed is found at the right millimetres."""

import io
import re
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from foundation_stereo_depth.errors import UserError
from live_camera.board import Board
from live_camera.cli import calibrate_command
from live_camera.options import BoardOptions
from live_camera.print_board import PAPER_MM, RULER_MM, Page, draw_board, encode_page

BOARDS = {
    "chessboard": BoardOptions(),
    "charuco": BoardOptions(pattern="charuco", corners="7x5"),
    "circles": BoardOptions(pattern="circles", corners="4x11"),
}


def corners_mm(page: Page, image: np.ndarray, dpi: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the corners that are found in an image of the page, and where they should be; both from the first, mm."""
    board = Board(page.board)
    view = board.detect(np.dstack([image] * 3))
    assert view is not None
    found_mm = view.corners_px * 25.4 / dpi
    if found_mm[0, 0] > found_mm[-1, 0]:  # a chessboard may be counted from either end
        found_mm = found_mm[::-1]
    true_mm = 1000 * board.points_m[view.ids, :2]
    return found_mm - found_mm[0], true_mm - true_mm[0]


@pytest.mark.parametrize("pattern", BOARDS)
@pytest.mark.parametrize("paper", ["a4", "letter"])
def test_corners_of_a_png_are_where_the_calibration_expects_them(pattern: str, paper) -> None:
    page = draw_board(BOARDS[pattern], paper)
    assert sorted((page.width_mm, page.height_mm)) == sorted(PAPER_MM[paper])
    with Image.open(io.BytesIO(encode_page(page, ".png"))) as file:
        assert file.info["dpi"] == pytest.approx((600, 600), abs=0.1)
        assert file.size == pytest.approx((page.width_mm * 600 / 25.4, page.height_mm * 600 / 25.4), abs=1)
        small = file.convert("L").resize((file.width // 4, file.height // 4), Image.Resampling.BOX)
    found_mm, true_mm = corners_mm(page, np.asarray(small), 150)
    assert len(found_mm) == len(Board(page.board).points_m)
    assert np.abs(found_mm - true_mm).max() < 0.15


def rasterise(command: list[str], output: str) -> np.ndarray:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    subprocess.run(command, check=True, capture_output=True)
    image = cv2.imread(output, cv2.IMREAD_GRAYSCALE)
    assert image is not None
    return np.asarray(image)


@pytest.mark.parametrize("pattern", BOARDS)
@pytest.mark.parametrize("program", ["pdftoppm", "gs", "rsvg-convert"])
def test_a_page_as_other_programs_print_it_is_true_to_scale(pattern: str, program: str) -> None:
    page = draw_board(BOARDS[pattern], "a4")
    Path("b.pdf").write_bytes(encode_page(page, ".pdf"))
    Path("b.svg").write_bytes(encode_page(page, ".svg"))
    image = rasterise(
        {
            "pdftoppm": ["pdftoppm", "-r", "150", "-png", "-singlefile", "b.pdf", "b"],
            "gs": ["gs", "-q", "-dBATCH", "-dNOPAUSE", "-sDEVICE=pnggray", "-r150", "-dGraphicsAlphaBits=4",
                   "-sOutputFile=b.png", "b.pdf"],
            "rsvg-convert": ["rsvg-convert", "-d", "150", "-p", "150", "-o", "b.png", "b.svg"],
        }[program],
        "b.png",
    )  # fmt: skip
    assert image.shape[::-1] == pytest.approx((page.width_mm / 25.4 * 150, page.height_mm / 25.4 * 150), abs=1)
    found_mm, true_mm = corners_mm(page, image, 150)
    assert np.abs(found_mm - true_mm).max() < 0.15
    # The ruler is the longest dark line below the board.
    foot = image[-round(20 / 25.4 * 150) :] < 160
    longest_mm = (
        max(len(run) for row in foot for run in re.findall("1+", "".join(map(str, row.astype(int))))) / 150 * 25.4
    )
    assert longest_mm == pytest.approx(RULER_MM, abs=0.5)


def test_all_of_a_page_is_inside_the_printable_part() -> None:
    for options in BOARDS.values():
        for paper in PAPER_MM:
            page = draw_board(options, paper)  # pyright: ignore
            shapes = [(r.x, r.y, r.x + r.width, r.y + r.height) for r in page.rectangles]
            shapes += [(c.x - c.radius, c.y - c.radius, c.x + c.radius, c.y + c.radius) for c in page.circles]
            left, top, right, bottom = np.array(shapes).T
            assert min(left.min(), top.min()) > 7.9
            assert right.max() < page.width_mm - 7.9
            assert bottom.max() < page.height_mm - 7.9


def test_a_board_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match=r"--square-mm 40: a chessboard of 9x6 on a4 has squares of at most 25\.7 mm"):
        draw_board(BoardOptions(square_mm=40), "a4")


def test_the_command_writes_the_board_and_names_the_next_one(capsys) -> None:
    assert calibrate_command(["--print-board", "new/board.pdf", "--pattern", "charuco", "--corners", "7x5"]) == 0
    out, error = capsys.readouterr()
    assert out == "new/board.pdf\n"
    assert "--pattern charuco --corners 7x5 --square-mm 30 --marker-mm 22.5" in error
    assert Path("new/board.pdf").read_bytes().startswith(b"%PDF-1.7")
    assert calibrate_command(["--print-board", "new/board.pdf"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert calibrate_command(["--print-board", "board.docx"]) == 2
    assert "has to end in .pdf, .svg or .png" in capsys.readouterr().err
