from pathlib import Path

import cv2
import numpy as np
import pytest

from foundation_stereo_depth.data.codecs import decode_whole_steps, read_pfm, read_png16
from foundation_stereo_depth.errors import CalibrationError, UserError
from foundation_stereo_depth.inference import outputs
from foundation_stereo_depth.inference.outputs import Writer, centred_calibration, point_cloud
from foundation_stereo_depth.inference.predictor import Prediction
from foundation_stereo_depth.options.inference import OutputOptions
from foundation_stereo_depth.stereo.geometry import depth_from_disparity

GOLDEN = Path(__file__).parents[1] / "golden/calibration"
H, W = 21, 33
LEFT = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)


def prediction_of(disparity_px: float = 8.0) -> Prediction:
    sigma_px = np.full((H, W), 0.5, np.float32)
    sigma_px[:, :10] = 20.0  # a doubtful stripe
    return Prediction(
        disparity_px=np.full((H, W), disparity_px, np.float32), sigma_px=sigma_px, distribution="gaussian"
    )


def options_of(**changes) -> OutputOptions:
    return OutputOptions(**({"output": Path("out")} | changes))


def test_depth_is_focal_length_times_baseline_over_disparity() -> None:
    disparity_px = np.array([[8.0, 0.0, -1.0, np.nan, 0.5]], np.float32)
    depth_m = depth_from_disparity(disparity_px, centred_calibration(1, 5, focal_px=400.0, baseline_m=0.1))
    np.testing.assert_allclose(depth_m, [[5.0, np.nan, np.nan, np.nan, 80.0]])
    assert depth_m.dtype == np.float32


def test_every_map_in_every_format() -> None:
    options = options_of(
        write="disparity,depth,sigma,confidence", map_format="png,pfm,npy", focal_px=400.0, baseline_m=0.1
    )
    written = Writer(options).write("a", LEFT, prediction_of())
    assert len(written) == len(list(Path("out").iterdir())) == 12
    confidence = prediction_of().confidence[0, 20]
    for what, steps, value in [
        ("disparity", 256, 8.0), ("depth", 1000, 5.0), ("sigma", 256, 0.5), ("confidence", 65535, confidence),
    ]:  # fmt: skip
        maps = [
            decode_whole_steps(read_png16(Path(f"out/a_{what}.png")), steps),
            read_pfm(Path(f"out/a_{what}.pfm")),
            np.load(f"out/a_{what}.npy"),
        ]
        for values in maps:
            assert values.shape == (H, W)
            assert values[0, 20] == pytest.approx(value, abs=1 / steps)


def test_depth_beyond_16_bits_is_unknown_in_a_png() -> None:
    options = options_of(write="depth", map_format="png,npy", focal_px=400.0, baseline_m=0.1)
    Writer(options).write("a", LEFT, prediction_of(0.5))
    assert read_png16(Path("out/a_depth.png")).max() == 0
    assert np.load("out/a_depth.npy").max() == 80.0


def test_disparity_beyond_16_bits_is_unknown_in_a_png_and_sigma_stays_at_the_largest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    prediction = prediction_of()
    prediction.disparity_px[3, 4], prediction.disparity_px[3, 5] = 305.902, 255.99
    prediction.sigma_px[5, 6], prediction.sigma_px[5, 7] = 300.0, np.nan
    Writer(options_of(write="disparity,sigma", map_format="png,npy")).write("a", LEFT, prediction)
    codes = {what: read_png16(Path(f"out/a_{what}.png")) for what in ("disparity", "sigma")}
    assert codes["disparity"][3, 4:7].tolist() == [0, 65533, 8 * 256]
    assert codes["sigma"][5, 6:8].tolist() == [65535, 0]
    assert np.load("out/a_disparity.npy")[3, 4] == np.float32(305.902)
    error = capsys.readouterr().err
    assert "a_disparity.png: 1 pixels of more than 255.996 px (up to 305.902) are unknown in it" in error
    assert error.count("warning:") == 1
    Writer(options_of(write="disparity", map_format="npy")).write("b", LEFT, prediction)
    assert capsys.readouterr().err == ""


def test_a_pair_that_cannot_be_encoded_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bytes:
        raise UserError("no")

    monkeypatch.setattr(outputs, "result_picture", refuse)
    with pytest.raises(UserError, match="no"):
        Writer(options_of(write="disparity,picture")).write("a", LEFT, prediction_of())
    assert not Path("out").exists()


def test_nothing_is_overwritten_unasked() -> None:
    Writer(options_of(write="disparity")).write("a", LEFT, prediction_of(1.0))
    with pytest.raises(UserError, match=r"a_disparity\.png: is there already; --overwrite"):
        Writer(options_of(write="disparity,sigma")).write("a", LEFT, prediction_of(2.0))
    assert read_png16(Path("out/a_disparity.png"))[0, 0] == 256
    assert len(list(Path("out").iterdir())) == 1
    Writer(options_of(write="disparity", overwrite=True)).write("a", LEFT, prediction_of(2.0))
    assert read_png16(Path("out/a_disparity.png"))[0, 0] == 512


def read_cloud(path: Path) -> np.ndarray:
    header, body = path.read_bytes().split(b"end_header\n", 1)
    count = int(header.split(b"element vertex ")[1].split()[0])
    cloud = np.frombuffer(body, [("point", "<f4", 3), ("colour", "u1", 3)])
    assert len(cloud) == count
    return cloud


def test_a_cloud_is_metric_coloured_and_leaves_doubt_and_distance_out() -> None:
    geometry = {"write": "cloud", "focal_px": 400.0, "baseline_m": 0.1}
    Writer(options_of(**geometry)).write("all", LEFT, prediction_of())
    cloud = read_cloud(Path("out/all_cloud.ply"))
    assert len(cloud) == H * W
    np.testing.assert_allclose(cloud["point"][:, 2], 5.0)
    # The corner at the top left: left of and above the middle, so x and y are below 0.
    np.testing.assert_allclose(cloud["point"][0], [-16 * 5 / 400, -10 * 5 / 400, 5], rtol=1e-6)
    np.testing.assert_array_equal(cloud["colour"].reshape(H, W, 3), LEFT)
    Writer(options_of(**geometry, min_confidence=0.5)).write("sure", LEFT, prediction_of())
    assert len(read_cloud(Path("out/sure_cloud.ply"))) == H * (W - 10)
    Writer(options_of(**geometry, max_depth_m=4.9)).write("near", LEFT, prediction_of())
    assert len(read_cloud(Path("out/near_cloud.ply"))) == 0


def test_unknown_depth_is_no_point() -> None:
    depth_m = np.full((H, W), np.nan, np.float32)
    depth_m[3, 4] = 2.0
    points_m, colours = point_cloud(depth_m, LEFT, np.ones((H, W), bool), centred_calibration(H, W, 100.0, 0.1))
    assert points_m.shape == (1, 3)
    np.testing.assert_array_equal(colours[0], LEFT[3, 4])


@pytest.mark.parametrize("geometry", [{}, {"focal_px": 400.0, "baseline_m": 0.1}])
def test_the_picture_is_a_picture_also_of_nothing_valid(geometry: dict) -> None:
    for name, disparity_px in (("good", 8.0), ("none", np.nan)):
        Writer(options_of(write="picture", **geometry)).write(name, LEFT, prediction_of(disparity_px))
        drawn = cv2.imread(f"out/{name}_picture.png")
        assert drawn.shape[1] == 1800


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"write": "disparity,dept"}, "--write disparity,dept: has to be one or more of disparity, depth"),
        ({"write": ""}, "--write : has to be"),
        ({"map_format": "exr"}, "--map-format exr: has to be one or more of png, pfm, npy"),
        ({"write": "depth"}, "--write depth: needs --calibration, or --focal-px and --baseline-m"),
        ({"write": "cloud"}, "--write cloud: needs"),
        ({"focal_px": 3.0}, "--focal-px and --baseline-m belong together"),
        ({"overwrite": True, "skip_existing": True}, "--overwrite --skip-existing: files that are there"),
        ({"min_confidence": 1.5}, "--min-confidence is 1.5"),
    ],
)
def test_what_cannot_be_written_is_said(changes: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        options_of(**changes)


def flat_prediction(height: int, width: int, disparity_px: float) -> Prediction:
    flat = np.full((height, width), disparity_px, np.float32)
    return Prediction(disparity_px=flat, sigma_px=np.ones_like(flat), distribution="laplace")


def test_a_calibration_gives_depth_at_the_size_of_the_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    options = options_of(write="depth", map_format="npy", calibration=GOLDEN / "middlebury_calib.txt")
    half = np.zeros((240, 320, 3), np.uint8)
    Writer(options).write("half", half, flat_prediction(240, 320, 5.0))
    # 0.12 m * 500 px / (2 * 5 px + doffs 20 px): at half the width a disparity counts twice.
    np.testing.assert_allclose(np.load("out/half_depth.npy"), 2.0, rtol=1e-6)
    with pytest.raises(CalibrationError, match="pictures of 320x200 do not fit a calibration made at 640x480"):
        Writer(options).write("wide", half[:200], flat_prediction(200, 320, 5.0))
    assert capsys.readouterr().err == ""


def test_a_calibration_of_unrectified_eyes_says_what_it_assumes(capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"calibration_unit": "mm", "calibration_size": "640x480"}
    Writer(options_of(write="depth", calibration=GOLDEN / "mtxL_mm.npz", **settings))
    assert "mtxL_mm.npz: does not say how it rectifies; depth is right for" in capsys.readouterr().err
    with pytest.raises(UserError, match="--calibration-size 640,480: has to be two whole numbers"):
        options_of(calibration_size="640,480")
