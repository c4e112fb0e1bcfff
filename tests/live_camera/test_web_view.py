import http.client
import socket

import cv2
import numpy as np
import pytest

from foundation_stereo_depth.errors import UserError
from live_camera.options import ShowOptions
from live_camera.web_view import WebView, compose_page

IMAGES = {
    "pair": np.full((20, 60, 3), (0, 0, 255), np.uint8),
    "depth": np.full((12, 40, 3), (0, 255, 0), np.uint8),
    "confidence": np.full((10, 40, 3), (255, 0, 0), np.uint8),
}


def request(view: WebView, path: str, *, host: str | None = None) -> http.client.HTTPResponse:
    port = int(view.url.rstrip("/").rpartition(":")[2])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("GET", path, headers={} if host is None else {"Host": host})
    return connection.getresponse()


def read_jpeg(response: http.client.HTTPResponse) -> np.ndarray:
    assert response.readline() == b"--frame\r\n"
    length = 0
    while (line := response.readline()) != b"\r\n":
        length = int(line.split(b":")[1]) if line.startswith(b"Content-Length") else length
    image = cv2.imdecode(np.frombuffer(response.read(length), np.uint8), cv2.IMREAD_COLOR)
    response.readline()
    assert image is not None
    return image


def test_browser_gets_the_page_and_each_new_image() -> None:
    with WebView("0") as view:
        assert view.url.startswith("http://127.0.0.1:")
        page = request(view, "/").read()
        assert b'src="stream.mjpg"' in page
        assert not view.watched
        view.show(IMAGES)
        stream = request(view, "/stream.mjpg")
        assert stream.headers["Content-Type"] == "multipart/x-mixed-replace; boundary=frame"
        assert read_jpeg(stream).shape == (32, 80, 3)
        assert view.watched
        view.show(IMAGES | {"pair": np.full((20, 60, 3), 255, np.uint8)})
        assert read_jpeg(stream)[10, 10].tolist() == [255, 255, 255]
        assert request(view, "/etc/passwd").status == 404


def test_names_of_other_sites_and_too_many_browsers_are_refused() -> None:
    with WebView("0") as view:
        assert request(view, "/", host="example.com:80").status == 403
        assert request(view, "/", host="localhost:80").status == 200
        assert all(view.join() for _ in range(8))
        assert request(view, "/stream.mjpg").status == 404


def test_taken_port_and_wrong_address_are_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="cannot listen there"):
            WebView(str(taken.getsockname()[1]))
    for wrong in ("http", "8080x", ":8080", "localhost:", "70000"):
        with pytest.raises(UserError, match="has to be a port, or a host and a port"):
            ShowOptions(serve=wrong)


def test_page_has_the_first_image_above_the_others() -> None:
    page = compose_page(list(IMAGES.values()))
    assert page.shape == (32, 80, 3)
    assert page[5, 5].tolist() == [0, 0, 255]
    assert page[25, 5].tolist() == [0, 255, 0]
    assert page[25, 45].tolist() == [255, 0, 0]
    assert compose_page([IMAGES["pair"]]).shape == (20, 60, 3)
