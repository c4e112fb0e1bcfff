"""The view in a web browser: one page, with all images as a Motion-JPEG stream, by Python's own HTTP server."""

import logging
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import cv2
import numpy as np

from foundation_stereo_depth.colours import Canvas
from foundation_stereo_depth.errors import UserError
from live_camera import draw
from live_camera.options import parse_address

logger = logging.getLogger(__name__)

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_MOST_CLIENTS = 8
_QUALITY = 85
_NEXT_IMAGE_S = 1.0
"""A stream without a new image for so long repeats the last one, which shows whether the browser is still there."""
_BOUNDARY = "frame"
_PAGE = b"""<!doctype html><meta charset="utf-8"><title>foundation-stereo-live-view</title>
<style>body{margin:0;background:#1a1c1e}img{display:block;margin:auto;max-width:100vw;max-height:100vh}</style>
<img src="stream.mjpg" alt="left and right view, depth, confidence">
"""


class WebView:
    """Serves the images of the view; to be used in a `with`.

    Args:
        address: PORT, for this machine alone, or HOST:PORT.

    Attributes:
        host: as given.
        url: the page.

    Raises:
        UserError: the address cannot be listened on.
    """

    def __init__(self, address: str) -> None:
        host, port = parse_address(address)
        self.host = host
        self._changed = threading.Condition()
        self._image: Canvas | None = None
        self._number = 0
        self._closed = False
        self._clients = 0
        try:
            self._server = _Server((host, port), self)
        except OSError as error:
            raise UserError(f"--serve {address}: cannot listen there ({error.strerror or error})") from error
        self.url = f"http://{host}:{self._server.server_port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, name="web view", daemon=True)

    @property
    def watched(self) -> bool:
        """True while a browser is connected."""
        return self._clients > 0

    def __enter__(self) -> "WebView":
        self._thread.start()
        logger.info("%s shows the view", self.url)
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def show(self, images: dict[str, Canvas]) -> None:
        """Show the images of all windows, BGR, by their titles; the first one stands above the others."""
        page = compose_page(list(images.values()))
        with self._changed:
            self._image, self._number = page, self._number + 1
            self._changed.notify_all()

    def join(self) -> bool:
        """Count a browser that begins to watch; return False where there are too many."""
        with self._changed:
            if self._clients >= _MOST_CLIENTS:
                return False
            self._clients += 1
            return True

    def leave(self) -> None:
        """Count a browser that has gone."""
        with self._changed:
            self._clients -= 1

    def next_jpeg(self, after: int) -> tuple[int, bytes] | None:
        """Return number and JPEG of an image that is newer than the one of that number; None at the end.

        Where no new one comes, the last one is returned again.
        """
        with self._changed:
            while not self._closed:
                self._changed.wait_for(lambda: self._closed or self._number > after, _NEXT_IMAGE_S)
                if self._image is not None and not self._closed:
                    image, number = self._image, self._number
                    break
            else:
                return None
        encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1]
        return number, encoded.tobytes()


def compose_page(images: list[Canvas]) -> Canvas:
    """Return the first image with the others side by side below it, BGR."""
    below = images[1:]
    height = max((image.shape[0] for image in below), default=0)
    width = max(images[0].shape[1], sum(image.shape[1] for image in below))
    page = np.full((images[0].shape[0] + height, width, 3), draw.BACKGROUND, np.uint8)
    page[: images[0].shape[0], : images[0].shape[1]] = images[0]
    left, top = 0, images[0].shape[0]
    for image in below:
        page[top : top + image.shape[0], left : left + image.shape[1]] = image
        left += image.shape[1]
    return page


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], view: WebView) -> None:
        self.view = view
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of browsers that go away in the middle of an image."""
        del request, client_address


class _Handler(BaseHTTPRequestHandler):
    timeout = 30

    @property
    def _view(self) -> WebView:
        assert isinstance(self.server, _Server)
        return self.server.view

    def do_GET(self) -> None:
        """Answer with the page, or with the stream."""
        if not self._is_meant_for_us():
            self.send_error(HTTPStatus.FORBIDDEN)
        elif self.path == "/":
            self._send(_PAGE, "text/html; charset=utf-8")
        elif self.path == "/stream.mjpg" and self._view.join():
            try:
                self._stream()
            finally:
                self._view.leave()
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def log_message(self, format: str, *args: Any) -> None:
        """Log requests for debugging alone."""
        logger.debug(format, *args)

    def _is_meant_for_us(self) -> bool:
        """Return False where a page of another site has a name of its own resolved to this machine alone."""
        if self._view.host not in _LOOPBACK:
            return True
        return self.headers.get("Host", "").rpartition(":")[0].strip("[]") in _LOOPBACK

    def _send(self, body: bytes, kind: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={_BOUNDARY}")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        number = 0
        while (following := self._view.next_jpeg(number)) is not None:
            number, jpeg = following
            head = f"--{_BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
            self.wfile.write(head.encode() + jpeg + b"\r\n")
