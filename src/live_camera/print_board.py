"""A calibration board to print: chessboard, ChArUco board or circle grid on one page, true to scale, with a ruler."""

import dataclasses
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from foundation_stereo_depth.errors import UserError
from live_camera.board import Board
from live_camera.options import BoardOptions, PaperName

PAPER_MM = {"a4": (210.0, 297.0), "letter": (215.9, 279.4)}
RULER_MM = 100
_MARGIN_MM = 8.0
"""Few printers print nearer to the edge."""
_FOOT_MM = 14.0
"""The ruler and the text below the board."""
_TEXT_MM = 3.2
_MARKER_FRACTION = 0.75
_CIRCLE_FRACTION = 0.5
"""Radius of a circle, of half the distance of two neighbours in a row."""
_POINTS_PER_MM = 72 / 25.4
_PNG_DPI = 600
_BEZIER = 4 / 3 * math.tan(math.pi / 8)
"""Distance of control points for a quarter of a circle."""


class Rectangle(NamedTuple):
    """A black rectangle, mm from the upper left corner of the page."""

    x: float
    y: float
    width: float
    height: float


class Circle(NamedTuple):
    """A black disc, mm from the upper left corner of the page."""

    x: float
    y: float
    radius: float


class Text(NamedTuple):
    """A line of text that begins at x, on the line y, mm from the upper left corner of the page."""

    x: float
    y: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Page:
    """What is printed on one page.

    Attributes:
        board: the options of the board, with its sizes.
        width_mm, height_mm: of the paper.
    """

    board: BoardOptions
    width_mm: float
    height_mm: float
    rectangles: list[Rectangle]
    circles: list[Circle]
    texts: list[Text]


def draw_board(options: BoardOptions, paper: PaperName) -> Page:
    """Return the page of a board; where no size of squares is given it is the largest in whole mm that fits.

    Raises:
        UserError: the board does not fit on the paper.
    """
    across, down = _size_in_squares(options)
    upright = PAPER_MM[paper]
    width_mm, height_mm = max(
        (upright, upright[::-1]), key=lambda size: min(_usable(size)[0] / across, _usable(size)[1] / down)
    )
    usable = _usable((width_mm, height_mm))
    largest_mm = min(usable[0] / across, usable[1] / down)
    square_mm = options.square_mm or float(math.floor(largest_mm))
    if not 0 < square_mm <= largest_mm:
        raise UserError(
            f"--square-mm {square_mm:g}: a {options.pattern} of {options.corners} on {paper} has squares of at most "
            f"{math.floor(10 * largest_mm) / 10:g} mm; fewer --corners have larger ones"
        )
    marker_mm = options.marker_mm or round(_MARKER_FRACTION * square_mm, 1)
    if options.pattern == "charuco":
        options = dataclasses.replace(options, marker_mm=marker_mm)
    options = dataclasses.replace(options, square_mm=square_mm)
    x_mm = (width_mm - across * square_mm) / 2
    y_mm = _MARGIN_MM + (usable[1] - down * square_mm) / 2
    board = Board(options)
    rectangles: list[Rectangle] = []
    circles: list[Circle] = []
    if options.pattern == "circles":
        radius_mm = _CIRCLE_FRACTION * square_mm
        centres_mm = 1000 * board.points_m[:, :2] + (x_mm + radius_mm, y_mm + radius_mm)
        circles = [Circle(float(x), float(y), radius_mm) for x, y in centres_mm]
    else:
        rectangles = [
            Rectangle(x_mm + square_mm * column, y_mm + square_mm * row, square_mm, square_mm)
            for column, row in board.black_squares()
        ]
        for left_mm, top_mm, cells in board.markers():
            rectangles += _marker_cells(x_mm + left_mm, y_mm + top_mm, marker_mm, cells)
    ruler, texts = _draw_foot(options, height_mm)
    return Page(
        board=options,
        width_mm=width_mm,
        height_mm=height_mm,
        rectangles=rectangles + ruler,
        circles=circles,
        texts=texts,
    )


def calibrate_flags(options: BoardOptions) -> str:
    """Return the flags of `foundation-stereo-calibrate` for a printed board."""
    flags = f"--corners {options.corners} --square-mm {options.square_mm:g}"
    if options.pattern != "chessboard":
        flags = f"--pattern {options.pattern} {flags}"
    if options.pattern == "charuco":
        flags += f" --marker-mm {options.marker_mm:g}"
        if options.dictionary != BoardOptions().dictionary:
            flags += f" --dictionary {options.dictionary}"
    return flags


def encode_page(page: Page, suffix: str) -> bytes:
    """Return the file of a page: `.pdf`, `.svg` or `.png`."""
    return ENCODERS[suffix](page)


def _usable(size_mm: tuple[float, float]) -> tuple[float, float]:
    return size_mm[0] - 2 * _MARGIN_MM, size_mm[1] - 2 * _MARGIN_MM - _FOOT_MM


def _size_in_squares(options: BoardOptions) -> tuple[float, float]:
    columns, rows = options.inner_corners
    if options.pattern == "circles":
        return 2 * columns - 1 + 1 + 2 * _CIRCLE_FRACTION - 1, rows - 1 + 2 * _CIRCLE_FRACTION
    return columns + 1, rows + 1


def _marker_cells(x_mm: float, y_mm: float, side_mm: float, cells: np.ndarray) -> list[Rectangle]:
    """Return the black cells of a marker, those beside each other as one."""
    cell_mm = side_mm / len(cells)
    found: list[Rectangle] = []
    for row, line in enumerate(cells):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], line == 0, [0]])))
        for first, end in edges.reshape(-1, 2).tolist():
            found.append(Rectangle(x_mm + first * cell_mm, y_mm + row * cell_mm, (end - first) * cell_mm, cell_mm))
    return found


def _draw_foot(options: BoardOptions, height_mm: float) -> tuple[list[Rectangle], list[Text]]:
    x_mm, y_mm = _MARGIN_MM + 2, height_mm - _MARGIN_MM - 7
    line_mm = 0.25
    ruler = [Rectangle(x_mm, y_mm, RULER_MM, line_mm)]
    for mark_mm in range(0, RULER_MM + 1, 10):
        tall_mm = 4.0 if mark_mm % 50 == 0 else 2.5
        ruler.append(Rectangle(x_mm + mark_mm - line_mm / 2, y_mm - tall_mm, line_mm, tall_mm))
    text = f"{options.pattern} {options.corners}, squares of {options.square_mm:g} mm"
    if options.pattern == "charuco":
        text += f", markers {options.marker_mm:g} mm, {options.dictionary}"
    return ruler, [
        Text(x_mm + RULER_MM + 4, y_mm, f"{RULER_MM} mm: measure it; print at 100 %"),
        Text(x_mm, y_mm + 5, text),
    ]


def _encode_pdf(page: Page) -> bytes:
    """Return a PDF of one page; its unit is 1/72 inch, from the lower left corner."""

    def number(mm: float) -> str:
        return f"{mm * _POINTS_PER_MM:.4f}"

    def point(x: float, y: float) -> str:
        return f"{number(x)} {number(page.height_mm - y)}"

    # One path for all: no seams between cells that touch.
    drawn = ["0 g"]
    drawn += [f"{point(r.x, r.y + r.height)} {number(r.width)} {number(r.height)} re" for r in page.rectangles]
    for x, y, radius in page.circles:
        k = _BEZIER * radius
        drawn.append(f"{point(x + radius, y)} m")
        for quarter in range(4):
            c, s = round(math.cos(quarter * math.pi / 2)), round(math.sin(quarter * math.pi / 2))
            first, second = (radius * c - k * s, radius * s + k * c), (k * c - radius * s, k * s + radius * c)
            ends = [first, second, (-radius * s, radius * c)]
            drawn.append(" ".join(point(x + dx, y + dy) for dx, dy in ends) + " c")
    drawn.append("f")
    drawn += [
        f"BT /F1 {number(_TEXT_MM)} Tf {point(text.x, text.y)} Td ({_escape_pdf(text.text)}) Tj ET"
        for text in page.texts
    ]
    stream = "\n".join(drawn).encode("latin-1")
    size = f"{number(page.width_mm)} {number(page.height_mm)}"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R /ViewerPreferences << /PrintScaling /None >> >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {size}] /Contents 4 0 R "
        "/Resources << /Font << /F1 5 0 R >> >> >>".encode(),
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    file, offsets = io.BytesIO(), list[int]()
    file.write(b"%PDF-1.7\n")
    for index, content in enumerate(objects, start=1):
        offsets.append(file.tell())
        file.write(b"%d 0 obj\n%s\nendobj\n" % (index, content))
    start = file.tell()
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    count = len(objects) + 1
    file.write(f"xref\n0 {count}\n0000000000 65535 f \n{table}".encode())
    file.write(f"trailer\n<< /Size {count} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n".encode())
    return file.getvalue()


def _escape_pdf(text: str) -> str:
    return text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")


def _encode_svg(page: Page) -> bytes:
    size = f'width="{page.width_mm}mm" height="{page.height_mm}mm" viewBox="0 0 {page.width_mm} {page.height_mm}"'
    path = "".join(f"M{r.x:.4f} {r.y:.4f}h{r.width:.4f}v{r.height:.4f}h{-r.width:.4f}z" for r in page.rectangles)
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', '<rect width="100%" height="100%" fill="white"/>']
    lines.append(f'<path d="{path}"/>')
    lines += [f'<circle cx="{x:.4f}" cy="{y:.4f}" r="{radius:.4f}"/>' for x, y, radius in page.circles]
    lines += [
        f'<text x="{x:.4f}" y="{y:.4f}" font-size="{_TEXT_MM}" font-family="Helvetica, Arial, sans-serif">{text}</text>'
        for x, y, text in page.texts
    ]
    return "\n".join([*lines, "</svg>\n"]).encode()


def _encode_png(page: Page) -> bytes:
    px_per_mm = _PNG_DPI / 25.4

    def px(mm: float) -> int:
        return round(mm * px_per_mm)

    image = np.full((px(page.height_mm), px(page.width_mm)), 255, np.uint8)
    for x, y, width, height in page.rectangles:
        image[px(y) : px(y + height), px(x) : px(x + width)] = 0
    for x, y, radius in page.circles:
        fraction_bits = 4
        centre = [round(mm * px_per_mm * 2**fraction_bits) for mm in (x, y)]
        cv2.circle(image, centre, round(radius * px_per_mm * 2**fraction_bits), 0, -1, cv2.LINE_AA, fraction_bits)
    for x, y, text in page.texts:
        scale = _TEXT_MM * px_per_mm / 30  # Hershey's letters are about 21 px high
        cv2.putText(image, text, (px(x), px(y)), cv2.FONT_HERSHEY_SIMPLEX, scale, 0, 4, cv2.LINE_AA)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", dpi=(_PNG_DPI, _PNG_DPI))
    return file.getvalue()


ENCODERS: dict[str, Callable[[Page], bytes]] = {".pdf": _encode_pdf, ".svg": _encode_svg, ".png": _encode_png}
"""By the suffix of the file."""
