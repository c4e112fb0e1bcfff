from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import shifted_pair

from foundation_stereo_depth.data.fsd import open_fsd
from foundation_stereo_depth.data.sample import resize_image
from foundation_stereo_depth.inference.coarse_to_fine import predict_coarse_to_fine
from foundation_stereo_depth.inference.predictor import Predictor
from foundation_stereo_depth.network_facts import DEFAULT_WEIGHTS
from foundation_stereo_depth.stereo.confidence import RIG_SIGMA_PX
from foundation_stereo_depth.stereo.prior import TWO_PRIOR_PLANES, first_match
from foundation_stereo_depth.stereo.sgbm import find_search

TEXTURELESS_DEVIATION = 1.1
"""By what the deviation grows where there is no texture."""


class Recorder:
    """In place of a network: predicts a tenth of the width everywhere, and records with what it is called."""

    description = "recorder"
    fixed_size: tuple[int, int] | None = None

    def __init__(self, log_variance: float = 0.0) -> None:
        self.calls: list[tuple[tuple[int, int], np.ndarray | None]] = []
        self._log_variance = log_variance

    def __call__(self, pairs: np.ndarray, prior: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        height, width = pairs.shape[2:4]
        self.calls.append(((height, width), prior))
        shape = (len(pairs), height, width)
        return np.full(shape, width / 10, np.float32), np.full(shape, self._log_variance, np.float32)


def plain_pairs(height: int, width: int) -> np.ndarray:
    return np.full((1, 2, height, width, 3), 128, np.uint8)


def random_pairs(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 2, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), [(120, 160), (240, 320), (480, 640)]),
        ((241, 323), [(120, 161), (241, 323)]),
        ((240, 318), [(240, 318)]),
        ((62, 640), [(62, 640)]),
    ],
)
def test_half_the_size_is_predicted_first_down_to_160_by_32(
    size: tuple[int, int], expected: list[tuple[int, int]]
) -> None:
    network = Recorder()
    disparity_px, _ = predict_coarse_to_fine(network, random_pairs(2, *size), 1.0)
    assert [called for called, _ in network.calls] == expected
    for (height, width), prior in network.calls:
        if len(expected) == 1:
            assert prior is None  # the backend computes that of one size
        else:
            assert prior is not None
            assert prior.shape == (2, TWO_PRIOR_PLANES, height, width)
    assert disparity_px.shape == (2, *size)


def test_a_network_of_one_size_is_called_at_that_alone() -> None:
    network = Recorder()
    predict_coarse_to_fine(network, random_pairs(1, 480, 640), 1.0, only_size=True)
    assert [called for called, _ in network.calls] == [(480, 640)]


def test_prior_has_the_enlarged_disparity_and_its_certainty() -> None:
    network = Recorder(log_variance=2 * np.log(0.5))
    predict_coarse_to_fine(network, np.stack(shifted_pair(240, 320, 8))[None], 0.8)
    prior = network.calls[1][1]
    assert prior is not None
    # Predicted at 160 px: 16 px with a deviation of 0.5 px, of which the scale makes 0.4; here it is twice as many px.
    coarse_px, interpolated_px = prior[0, 0] + prior[0, 10], prior[0, 0] + prior[0, 13]
    np.testing.assert_allclose(coarse_px, 32, atol=0.61)  # flat surfaces are refined by up to 0.3 px of 160
    np.testing.assert_allclose(prior[0, 11], np.exp(-2 * np.hypot(0.4, RIG_SIGMA_PX)), rtol=1e-5)
    # The true 8 px, to which the smooth match comes, are too far from it.
    np.testing.assert_allclose(interpolated_px, coarse_px, atol=1e-5)


@pytest.mark.parametrize(
    ("side_px", "log_variance", "is_kept"),
    [(120, 1.0, True), (120, -4.0, False), (10, 1.0, False)],  # a wall; the larger size is surer there; a thin thing
)
def test_a_wall_keeps_the_coarse_prediction(side_px: int, log_variance: float, is_kept: bool) -> None:
    class DiffersAt640(Recorder):
        def __call__(self, pairs: np.ndarray, prior: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
            disparity_px, variance = super().__call__(pairs, prior)
            if pairs.shape[3] == 640:
                disparity_px[:, 200 : 200 + side_px, 300 : 300 + side_px] += 20
                variance[:] = log_variance
            return disparity_px, variance

    disparity_px, sigma_px = predict_coarse_to_fine(DiffersAt640(), plain_pairs(480, 640), 1.0)
    middle = (0, 200 + side_px // 2, 300 + side_px // 2)
    assert disparity_px[middle] == pytest.approx(64 if is_kept else 84, abs=2)
    # The deviation of 1 px at half the size is 2 px here.
    network_px = 2.0 if is_kept else np.exp(log_variance / 2)
    assert sigma_px[middle] == pytest.approx(TEXTURELESS_DEVIATION * np.hypot(network_px, 2 * RIG_SIGMA_PX))
    assert disparity_px[0, 20, 20] == pytest.approx(64, abs=2)


def test_textureless_surfaces_have_the_first_match_of_half_the_size_above_480_px_alone() -> None:
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 256, (480, 700), dtype=np.uint8)
    left, right = (np.repeat(view[..., None], 3, axis=2) for view in (texture[:, 30:670], texture[:, 60:700]))
    for view in (left, right):
        view[:, 400:] = rng.integers(150, 154, (480, 240, 1))  # a plain wall, and noise
    network = Recorder()
    predict_coarse_to_fine(network, np.stack([left, right])[None], 1.0)
    _, half_px, whole_px = (prior[0, 0] for _, prior in network.calls if prior is not None)
    search = find_search(left, right)
    half = first_match(*(resize_image(view, 240, 320) for view in (left, right)), search)
    np.testing.assert_array_equal(half_px, half.planes[0])
    np.testing.assert_array_equal(whole_px, first_match(left, right, search, half).planes[0])
    assert (whole_px != first_match(left, right, search).planes[0])[:, 420:].mean() > 0.05


def test_pairs_of_a_batch_are_predicted_as_they_are_alone() -> None:
    pairs = np.stack([np.stack(shifted_pair(96, 320, shift, seed=shift)) for shift in (3, 9)])
    predictor = Predictor.open(DEFAULT_WEIGHTS, backend="torch", device="cpu", precision="fp32", height=96, width=320)
    together = predictor.batch([tuple(pair) for pair in pairs])
    for match, pair in zip(together, pairs, strict=True):
        [alone] = predictor.batch([tuple(pair)])
        np.testing.assert_allclose(match.disparity_px, alone.disparity_px, atol=1e-3)


@pytest.mark.parametrize("backend", ["torch", "openvino", "onnxruntime"])
def test_a_plain_wall_between_textured_borders_is_found_from_the_small_images(backend: str) -> None:
    rng = np.random.default_rng(1)
    texture = rng.integers(0, 256, (480, 700), dtype=np.uint8)
    texture[60:420, 120:600] = 150  # 480 px of nothing
    left, right = (np.repeat(view[..., None], 3, axis=2) for view in (texture[:, 30:670], texture[:, 60:700]))
    predictor = Predictor.open(DEFAULT_WEIGHTS, backend=backend, device="cpu", height=480, width=640)  # pyright: ignore[reportArgumentType]
    disparity_px = predictor.batch([(left, right)])[0].disparity_px
    assert np.abs(disparity_px[80:400, 120:560] - 30).mean() < 1.0


def sizes_called(network: Recorder, predictor: Predictor, *image_sizes: tuple[int, int]) -> list[tuple[int, int]]:
    network.calls.clear()
    matches = predictor.batch([tuple(random_pairs(1, *size)[0]) for size in image_sizes])
    assert [match.disparity_px.shape for match in matches] == list(image_sizes)
    for match, (_, width) in zip(matches, image_sizes, strict=True):
        np.testing.assert_allclose(match.disparity_px, width / 10, atol=0.01 * width)
    return [called for called, _ in network.calls]


def test_small_images_are_predicted_at_twice_their_size_and_larger_ones_are_not() -> None:
    network, facts = Recorder(), Predictor.open(DEFAULT_WEIGHTS, backend="torch", device="cpu").facts
    small = [(120, 160), (240, 320)]
    predictor = Predictor(network, facts, height=240, width=320)
    assert predictor.batch([]) == []
    assert sizes_called(network, predictor, (240, 320)) == [*small, (480, 640)]
    assert sizes_called(network, predictor, (200, 280)) == [*small, (480, 640)]
    assert sizes_called(network, predictor, (480, 640)) == small
    assert sizes_called(network, predictor, (480, 640), (240, 320)) == [*small, *small, (480, 640)]
    # A large image, rectified at the network's size.
    network.calls.clear()
    [match] = predictor.batch([tuple(random_pairs(1, 240, 320)[0])], sizes=[(480, 640)])
    assert match.disparity_px.shape == (480, 640)
    assert [called for called, _ in network.calls] == small
    not_enlarged = Predictor(network, facts, height=240, width=320, enlarge=False)
    assert sizes_called(network, not_enlarged, (240, 320)) == small
    at_640 = Predictor(network, facts, height=480, width=640)
    assert sizes_called(network, at_640, (480, 640)) == [*small, (480, 640)]
    network.fixed_size = (240, 320)
    assert sizes_called(network, Predictor(network, facts), (240, 320)) == [(240, 320)]


def test_an_image_between_both_sizes_is_not_shrunk_before_it_is_enlarged() -> None:
    facts = Predictor.open(DEFAULT_WEIGHTS, backend="torch", device="cpu").facts
    view = random_pairs(1, 285, 380)[0, 0]
    resized = Predictor(Recorder(), facts, height=240, width=320)._resized(view, 2)
    np.testing.assert_array_equal(resized, cv2.resize(view, (640, 480), interpolation=cv2.INTER_CUBIC))


def test_deviation_of_an_enlarged_image_is_in_px_of_the_image() -> None:
    network = Recorder(log_variance=2 * np.log(3.0))
    facts = Predictor.open(DEFAULT_WEIGHTS, backend="torch", device="cpu").facts
    [match] = Predictor(network, facts, height=240, width=320).batch([tuple(plain_pairs(240, 320)[0])])
    assert match.sigma_px is not None
    expected_px = TEXTURELESS_DEVIATION * np.hypot(3.0 * facts.sigma_scale / 2, RIG_SIGMA_PX)
    np.testing.assert_allclose(match.sigma_px, expected_px, rtol=1e-5)


@pytest.mark.slow
def test_enlarging_finds_edges_better(shared_data: Path) -> None:
    index = open_fsd(shared_data / "fsd-sample")
    samples = [index.read(i, (240, 320)) for i in range(3)]
    bad_1 = []
    for enlarge in (True, False):
        predictor = Predictor.open(height=240, width=320, enlarge=enlarge)
        errors_px = [
            np.abs(predictor.batch([(sample.left, sample.right)])[0].disparity_px - sample.disparity_px)
            for sample in samples
        ]
        bad_1.append(np.mean([(each[np.isfinite(each)] > 1).mean() for each in errors_px]))
    assert bad_1[0] < 0.9 * bad_1[1]
