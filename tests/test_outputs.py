import logging
from pathlib import Path

import cv2
import numpy as np
import pytest

from foundation_stereo_depth import outputs
from foundation_stereo_depth.colours import MASKED
from foundation_stereo_depth.data.codecs import decode_whole_steps, read_pfm, read_png16
from foundation_stereo_depth.errors import CalibrationError, UserError
from foundation_stereo_depth.figures import draw_frame, match_panel, scale_of_match
from foundation_stereo_depth.options.inference import FigureOptions, OutputOptions
from foundation_stereo_depth.outputs import OutputWriter, write_outputs
from foundation_stereo_depth.stereo.geometry import StereoCalibration, depth_from_disparity, point_cloud
from foundation_stereo_depth.stereo.match import StereoMatch

GOLDEN = Path(__file__).parent / "golden/calibration"
H, W = 21, 33
LEFT = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)


CENTRED = StereoCalibration.centred(height=H, width=W, focal_px=400.0, baseline_m=0.1)


def match_of(disparity_px: float = 8.0) -> StereoMatch:
    sigma_px, confidence = np.full((H, W), 0.5, np.float32), np.full((H, W), 0.95, np.float32)
    sigma_px[:, :10], confidence[:, :10] = 20.0, 0.04  # an uncertain stripe
    flat_px = np.full((H, W), disparity_px, np.float32)
    return StereoMatch(disparity_px=flat_px, valid=np.isfinite(flat_px), sigma_px=sigma_px, confidence=confidence)


def options_of(**changes) -> OutputOptions:
    return OutputOptions(**({"output": Path("out")} | changes))


def test_depth_is_focal_length_times_baseline_over_disparity() -> None:
    disparity_px = np.array([[8.0, 0.0, -1.0, np.nan, 0.5]], np.float32)
    depth_m = depth_from_disparity(
        disparity_px, StereoCalibration.centred(height=1, width=5, focal_px=400.0, baseline_m=0.1)
    )
    np.testing.assert_allclose(depth_m, [[5.0, np.nan, np.nan, np.nan, 80.0]])
    assert depth_m.dtype == np.float32


def test_every_map_in_every_format() -> None:
    options = options_of(
        write="disparity,depth,sigma,confidence", map_format="png,pfm,npy", focal_px=400.0, baseline_m=0.1
    )
    written = OutputWriter(options).write("a", LEFT, match_of())
    assert len(written) == len(list(Path("out").iterdir())) == 12
    confidence = match_of().confidence[0, 20]
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
    OutputWriter(options).write("a", LEFT, match_of(0.5))
    assert read_png16(Path("out/a_depth.png")).max() == 0
    assert np.load("out/a_depth.npy").max() == 80.0


def test_disparity_beyond_16_bits_is_unknown_in_a_png_and_sigma_stays_at_the_largest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    match = match_of()
    assert match.sigma_px is not None
    match.disparity_px[3, 4], match.disparity_px[3, 5] = 305.902, 255.99
    match.sigma_px[5, 6], match.sigma_px[5, 7] = 300.0, np.nan
    OutputWriter(options_of(write="disparity,sigma", map_format="png,npy")).write("a", LEFT, match)
    codes = {what: read_png16(Path(f"out/a_{what}.png")) for what in ("disparity", "sigma")}
    assert codes["disparity"][3, 4:7].tolist() == [0, 65533, 8 * 256]
    assert codes["sigma"][5, 6:8].tolist() == [65535, 0]
    assert np.load("out/a_disparity.npy")[3, 4] == np.float32(305.902)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "a_disparity.png: 1 pixels of more than 255.996 px (up to 305.902) are unknown in it" in record.message
    OutputWriter(options_of(write="disparity", map_format="npy")).write("b", LEFT, match)
    assert len(caplog.records) == 1


def test_nothing_is_written_if_one_output_cannot_be_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bytes:
        raise UserError("no")

    monkeypatch.setattr(outputs, "encode_figure", refuse)
    with pytest.raises(UserError, match="no"):
        OutputWriter(options_of(write="disparity,figure")).write("a", LEFT, match_of())
    assert not Path("out").exists()


def test_nothing_is_left_if_one_file_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    write = outputs.write_atomically

    def fill_the_disk(path: Path, *given: object, **settings: object) -> None:
        if path.name == "sigma.npy":
            raise OSError(28, "No space left on device", str(path))
        write(path, *given, **settings)

    monkeypatch.setattr(outputs, "write_atomically", fill_the_disk)
    paths = {(what, ".npy"): Path(f"snapshot/{what}.npy") for what in ("disparity", "sigma")}
    with pytest.raises(OSError, match="No space left"):
        write_outputs(paths, LEFT, match_of(), None)
    assert not list(Path("snapshot").iterdir())


def test_outputs_that_cannot_be_computed_are_left_out() -> None:
    flat_px = np.full((H, W), 8.0, np.float32)
    block_match = StereoMatch(disparity_px=flat_px, valid=flat_px > 0)
    paths = {(what, ".npy"): Path(f"all/{what}_x.npy") for what in ("disparity", "sigma", "confidence", "depth")}
    paths |= {("cloud", ".ply"): Path("all/cloud.ply")}
    assert [path.name for path in write_outputs(paths, LEFT, block_match, None)] == ["disparity_x.npy"]
    written = write_outputs(paths, LEFT, block_match, CENTRED)
    assert [path.name for path in written] == ["disparity_x.npy", "depth_x.npy", "cloud.ply"]
    assert np.load("all/depth_x.npy")[0, 0] == 5.0
    assert len(read_cloud(Path("all/cloud.ply"))) == H * W


def test_existing_files_are_kept_without_overwrite() -> None:
    OutputWriter(options_of(write="disparity")).write("a", LEFT, match_of(1.0))
    with pytest.raises(UserError, match=r"a_disparity\.png: exists; --overwrite"):
        OutputWriter(options_of(write="disparity,sigma")).write("a", LEFT, match_of(2.0))
    assert read_png16(Path("out/a_disparity.png"))[0, 0] == 256
    assert len(list(Path("out").iterdir())) == 1
    OutputWriter(options_of(write="disparity", overwrite=True)).write("a", LEFT, match_of(2.0))
    assert read_png16(Path("out/a_disparity.png"))[0, 0] == 512


def read_cloud(path: Path) -> np.ndarray:
    header, body = path.read_bytes().split(b"end_header\n", 1)
    count = int(header.split(b"element vertex ")[1].split()[0])
    cloud = np.frombuffer(body, [("point", "<f4", 3), ("colour", "u1", 3)])
    assert len(cloud) == count
    return cloud


def test_cloud_is_metric_and_coloured_without_uncertain_and_distant_points() -> None:
    geometry = {"write": "cloud", "focal_px": 400.0, "baseline_m": 0.1}
    OutputWriter(options_of(**geometry)).write("all", LEFT, match_of())
    cloud = read_cloud(Path("out/all_cloud.ply"))
    assert len(cloud) == H * W
    np.testing.assert_allclose(cloud["point"][:, 2], 5.0)
    # The corner at the top left: left of and above the middle, so x and y are below 0.
    np.testing.assert_allclose(cloud["point"][0], [-16 * 5 / 400, -10 * 5 / 400, 5], rtol=1e-6)
    np.testing.assert_array_equal(cloud["colour"].reshape(H, W, 3), LEFT)
    OutputWriter(options_of(**geometry, min_confidence=0.5)).write("sure", LEFT, match_of())
    assert len(read_cloud(Path("out/sure_cloud.ply"))) == H * (W - 10)
    OutputWriter(options_of(**geometry, max_depth_m=4.9)).write("near", LEFT, match_of())
    assert len(read_cloud(Path("out/near_cloud.ply"))) == 0


def test_cloud_has_no_point_where_depth_is_unknown() -> None:
    depth_m = np.full((H, W), np.nan, np.float32)
    depth_m[3, 4] = 2.0
    points_m, colours = point_cloud(depth_m, LEFT, np.ones((H, W), bool), CENTRED)
    assert points_m.shape == (1, 3)
    np.testing.assert_array_equal(colours[0], LEFT[3, 4])


@pytest.mark.parametrize("geometry", [{}, {"focal_px": 400.0, "baseline_m": 0.1}])
def test_figure_is_drawn_even_without_valid_disparity(geometry: dict) -> None:
    for name, disparity_px in (("good", 8.0), ("none", np.nan)):
        OutputWriter(options_of(write="figure", **geometry)).write(name, LEFT, match_of(disparity_px))
        drawn = cv2.imread(f"out/{name}_figure.png")
        assert drawn.shape[1] == 1800


def test_colour_range_is_that_of_the_confident_pixels() -> None:
    match = match_of()
    assert match.confidence is not None
    match.disparity_px[:, 10:] = np.linspace(4.0, 8.0, W - 10, dtype=np.float32)
    match.disparity_px[:, :10] = 90.0  # where confidence is low
    scale = scale_of_match(match, None, FigureOptions())
    assert scale is not None
    assert (scale.low, scale.high, scale.reverse) == (pytest.approx(4, abs=0.2), pytest.approx(8, abs=0.2), False)
    depth_m = depth_from_disparity(match.disparity_px, CENTRED)
    fixed = scale_of_match(match, depth_m, FigureOptions(depth_range=(1.0, 3.0), colormap="viridis"))
    assert fixed is not None
    assert (fixed.low, fixed.high, fixed.reverse) == (1.0, 3.0, True)
    match.confidence[:] = 0.0  # no pixel is confident: all count
    everywhere = scale_of_match(match, None, FigureOptions())
    assert everywhere is not None
    assert everywhere.high > 80


def test_figure_greys_uncertain_pixels_and_near_is_warm() -> None:
    match = match_of()
    match.disparity_px[:, 20:] = 4.0
    depth_m = depth_from_disparity(match.disparity_px, CENTRED)
    scale = scale_of_match(match, depth_m, FigureOptions())
    assert scale is not None
    frame = draw_frame(LEFT, match_panel(match, depth_m, scale, 0.5))
    assert frame.shape == (H - 1, 2 * W, 3)
    uncertain, near, far = frame[5, W + 5], frame[5, W + 15], frame[5, W + 25]
    assert tuple(uncertain) == MASKED
    assert near[2] > near[0]  # red over blue
    assert far[0] > far[2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"write": "disparity,dept"}, "--write disparity,dept: has to be one or more of disparity, depth"),
        ({"write": ""}, "--write : has to be"),
        ({"map_format": "exr"}, "--map-format exr: has to be one or more of png, pfm, npy"),
        ({"focal_px": 3.0}, "--focal-px and --baseline-m belong together"),
        ({"overwrite": True, "skip_existing": True}, "--overwrite --skip-existing: existing files"),
        ({"min_confidence": 1.5}, "--min-confidence is 1.5"),
    ],
)
def test_options_that_cannot_be_met_are_rejected(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        options_of(**changes)


@pytest.mark.parametrize("what", ["depth", "cloud"])
def test_depth_without_a_calibration_is_rejected(what: str) -> None:
    with pytest.raises(UserError, match=f"--write {what}: needs --calibration, or --focal-px and --baseline-m"):
        OutputWriter(options_of(write=what))


def test_former_name_of_the_figure_is_accepted() -> None:
    options = options_of(write="picture,disparity,figure")
    assert options.outputs == ("figure", "disparity")
    assert set(OutputWriter(options).paths("a").values()) == {Path("out/a_figure.png"), Path("out/a_disparity.png")}


def flat_match(height: int, width: int, disparity_px: float) -> StereoMatch:
    flat_px = np.full((height, width), disparity_px, np.float32)
    return StereoMatch(disparity_px=flat_px, valid=np.isfinite(flat_px), sigma_px=np.ones_like(flat_px))


def test_calibration_is_scaled_to_the_size_of_the_images(caplog: pytest.LogCaptureFixture) -> None:
    options = options_of(write="depth", map_format="npy", calibration=GOLDEN / "middlebury_calib.txt")
    half = np.zeros((240, 320, 3), np.uint8)
    OutputWriter(options).write("half", half, flat_match(240, 320, 5.0))
    # 0.12 m * 500 px / (2 * 5 px + doffs 20 px): at half the width a disparity counts twice.
    np.testing.assert_allclose(np.load("out/half_depth.npy"), 2.0, rtol=1e-6)
    with pytest.raises(CalibrationError, match="of 320x200 do not fit a calibration made at 640x480"):
        OutputWriter(options).write("wide", half[:200], flat_match(200, 320, 5.0))
    assert not caplog.records


def test_calibration_without_rectification_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    settings = {"calibration_unit": "mm", "calibration_size": "640x480"}
    OutputWriter(options_of(write="depth", calibration=GOLDEN / "mtxL_mm.npz", **settings))
    assert not caplog.records
    OutputWriter(options_of(write="depth", calibration=GOLDEN / "mtxL_mm.npz", rectify=False, **settings))
    assert "mtxL_mm.npz: contains no rectification; depth is right for" in caplog.text
    with pytest.raises(UserError, match="--calibration-size 640,480: has to be two whole numbers"):
        options_of(calibration_size="640,480")
