"""The options of the commands that use a trained network, grouped as `--help` shows them."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from foundation_stereo_depth.errors import CheckpointError, UserError
from foundation_stereo_depth.options.datasets import DatasetName
from foundation_stereo_depth.options.fields import (
    DEVICE_HELP,
    DEVICE_METAVAR,
    OptionGroup,
    check_device,
    check_words,
    flag_of,
    option,
    parse_two_numbers,
    split_words,
)

BackendName = Literal["auto", "torch", "onnxruntime", "openvino"]
DeviceName = str
"""auto, cpu, mps, cuda, or cuda:N for one of several GPUs; `check_device` checks it."""
PrecisionName = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class NetworkSourceOptions(OptionGroup):
    """network: a file, or a run"""

    checkpoint: Path | Literal["default"] | None = option(
        None, "file of the network: .pt, .safetensors or .onnx; default or not given: the network that is installed"
    )
    run_id: str | None = option(
        None,
        "MLflow run whose network to use, in place of --checkpoint: its id, the beginning of it, its name, or latest",
    )
    weights: Literal["auto", "best", "last", "best.pt", "last.pt"] = option(
        "auto", "which checkpoint of the run; auto takes the best", aliases=("--checkpoint-name",)
    )
    disparity_scale: float = option(
        1.0, "factor on the network's disparity, for weights whose scale is unknown", minimum=1e-3, maximum=1e3
    )
    mlflow_tracking_uri: str | None = option(
        None, "where MLflow keeps its runs: a database or a server; else $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.checkpoint is not None and self.run_id is not None:
            raise UserError("--checkpoint and --run-id both name a network; give one of them")
        if self.weights != "auto" and self.run_id is None:
            raise UserError(f"--weights {self.weights}: chooses among the checkpoints of a run; give --run-id")
        if self.mlflow_tracking_uri is not None and self.run_id is None:
            raise UserError(f"--mlflow-tracking-uri {self.mlflow_tracking_uri}: is where a run is kept; give --run-id")

    @property
    def run_file(self) -> str:
        """The name of the run's checkpoint that `--weights` chooses."""
        return "last.pt" if self.weights.startswith("last") else "best.pt"


@dataclass(frozen=True, kw_only=True)
class NetworkOptions(NetworkSourceOptions):
    """network: a file, or a run"""

    height: int | None = option(
        None, "height that the network works at, px; else the one it was trained at", minimum=32, maximum=4096
    )
    width: int | None = option(
        None, "width that the network works at, px; else the one it was trained at", minimum=32, maximum=4096
    )


def check_network_file(checkpoint: Path | str | None) -> None:
    """Check that a network's file exists; a command does so before it imports heavy packages.

    Raises:
        CheckpointError: it does not.
    """
    if isinstance(checkpoint, Path) and not checkpoint.exists():
        raise CheckpointError(f"{checkpoint}: cannot be read (No such file or directory)")


SIZE_HELP = (
    "both at once, as 640x480; auto takes 640x480 for images at least 384 px wide, 320x240 for smaller ones; else "
    "predict takes auto for images and the installed network"
)
AUTO_SIZES = ((640, 480), (320, 240))
"""Width and height, px, among which `--size auto` chooses, the largest first."""
_USED_FRACTION = 0.6
"""An image has at least this fraction of the width of the size that is chosen for it."""


def check_size(size: str | None, **sides: int | None) -> None:
    """Check `--size`: auto, or a width and a height; it excludes the options that name one side.

    Raises:
        UserError: it has another form, a side is out of range, or another option names one.
    """
    if size is None:
        return
    if given := [flag_of(name) for name, side in sides.items() if side is not None]:
        raise UserError(f"--size {size}: names what {' and '.join(given)} names too; leave one of them out")
    if size != "auto" and not all(32 <= side <= 4096 for side in parse_two_numbers("--size", size)):
        raise UserError(f"--size {size}: both sides have to be from 32 to 4096 px")


def size_for(size: str, image_width_px: int) -> tuple[int, int]:
    """Return the height and width that `--size` means for images of this width, px.

    >>> size_for("auto", 1280), size_for("auto", 320), size_for("416x128", 1280)
    ((480, 640), (240, 320), (128, 416))
    """
    if size == "auto":
        used = (each for each in AUTO_SIZES if image_width_px >= _USED_FRACTION * each[0])
        width, height = next(used, AUTO_SIZES[-1])
    else:
        width, height = parse_two_numbers("--size", size)
    return height, width


@dataclass(frozen=True, kw_only=True)
class SizedNetworkOptions(NetworkOptions):
    """network: a file, or a run"""

    size: str | None = option(None, SIZE_HELP, metavar="auto|WxH")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size(self.size, width=self.width, height=self.height)

    def size_for(self, image_width_px: int) -> tuple[int | None, int | None]:
        """Return the height and width to work at for images of this width, px; None is the network's own."""
        return (self.height, self.width) if self.size is None else size_for(self.size, image_width_px)


MethodName = Literal["network", "sgbm"]
METHOD_HELP = "sgbm: OpenCV's semi-global matcher, which needs no network"


@dataclass(frozen=True, kw_only=True)
class PredictNetworkOptions(SizedNetworkOptions):
    """network: a file, a run, or the classical matcher"""

    method: MethodName = option("network", METHOD_HELP)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method == "sgbm":
            check_no_network(
                checkpoint=self.checkpoint, run_id=self.run_id, height=self.height, width=self.width, size=self.size
            )

    def with_default_size(self) -> "PredictNetworkOptions":
        """Return the options with `--size auto` where they name neither a size nor another than the installed network.

        Other networks work at the size that they were trained at.
        """
        is_named = self.method == "sgbm" or self.run_id is not None or self.checkpoint not in (None, "default")
        if is_named or not (self.size is self.height is self.width is None):
            return self
        return replace(self, size="auto")


def check_no_network(**options: object) -> None:
    """Check that none of these options is given beside `--method sgbm`.

    Raises:
        UserError: one is.
    """
    for name, value in options.items():
        if value:
            raise UserError(f"--method sgbm takes no network; leave {flag_of(name)} out")


@dataclass(frozen=True, kw_only=True)
class InferenceOptions(OptionGroup):
    """machine"""

    backend: BackendName = option(
        "auto",
        "auto takes torch for weights; for an .onnx OpenVINO on x86 CPUs, else (or for few images) onnxruntime. The "
        "installed network is both: auto takes its .onnx in 8 bits on CPUs, torch on GPUs",
    )
    device: DeviceName = option("auto", DEVICE_HELP, metavar=DEVICE_METAVAR)
    precision: PrecisionName = option(
        "auto", "arithmetic of the network; auto takes bf16 where the device gains from it"
    )
    compile: bool = option(False, "compile the network with torch.compile: slow at first, faster for many pairs")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_device(self.device)


@dataclass(frozen=True, kw_only=True)
class BatchedInferenceOptions(InferenceOptions):
    """machine"""

    batch_size: int = option(1, "pairs per call of the network", minimum=1)
    workers: int = option(
        2,
        "threads that read image files ahead, each up to two pairs; 0 reads between predictions",
        minimum=0,
        maximum=64,
        aliases=("--num-workers",),
    )


@dataclass(frozen=True, kw_only=True)
class CalibrationFileOptions(OptionGroup):
    """calibration: of the rig, in any format that docs/formats.md lists"""

    calibration: Path | None = option(None, "the rig's calibration file; if it has two, their folder or either of them")
    calibration_unit: Literal["auto", "m", "cm", "mm"] = option(
        "auto", "unit of its lengths; auto takes the unit that its format defines, or metres where it defines none"
    )
    calibration_size: str | None = option(None, "size of the images it is for, as 640x480, if the file does not say")
    rectify: bool = option(
        True, "rectify raw images by it, as the live view does; off for images that are rectified by it already"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.calibration_image_size  # checks the format

    @property
    def calibration_image_size(self) -> tuple[int, int] | None:
        """Width and height that `--calibration-size` names, px."""
        return None if self.calibration_size is None else parse_two_numbers("--calibration-size", self.calibration_size)


MAPS = ("disparity", "depth", "sigma", "confidence")
"""Outputs that are maps of numbers, in any of the map formats."""
DRAWN = {"figure": ".png", "cloud": ".ply"}
"""The other outputs, and the suffixes of their files."""
_RENAMED_OUTPUTS = {"picture": "figure"}
"""Words of `--write` that older versions used."""
MAP_FORMATS = ("png", "pfm", "npy")
VIDEO = "video"
"""The word of `--write` for one video of all pairs."""

ColourMapName = Literal["turbo", "viridis", "magma", "inferno", "plasma", "cividis"]


@dataclass(frozen=True, kw_only=True)
class FigureOptions(OptionGroup):
    """figures: near is warm, far is cold, unknown is black, uncertain grey"""

    depth_range: tuple[float, float] | None = option(
        None,
        "nearest and farthest depth of the colours, metres; else those of the confident pixels: of each image, and of "
        "a video of its first frame",
    )
    colormap: ColourMapName = option("turbo", "colours of depth and disparity")
    grey_below: float = option(
        0.5, "grey out pixels whose confidence, P(|error| < 1 px), is lower", minimum=0.0, maximum=1.0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_depth_range(self.depth_range)


def check_depth_range(depth_range: tuple[float, float] | None) -> None:
    """Check that the ends of `--depth-range` are in order.

    Raises:
        UserError: they are not.
    """
    if depth_range is not None and not 0 <= depth_range[0] < depth_range[1] < math.inf:
        near, far = depth_range
        raise UserError(f"--depth-range {near:g} {far:g}: has to be two depths in metres, the nearer one first")


@dataclass(frozen=True, kw_only=True)
class OutputOptions(CalibrationFileOptions):
    """results: files <name>_<what>.<format> in a folder"""

    output: Path = option(Path("predictions"), "folder to write to; created if it does not exist", short="-o")
    write: str = option(
        "figure,disparity",
        f"what to write, separated by commas: {', '.join((*DRAWN, *MAPS, VIDEO))}; a figure is what any program shows, "
        "maps are numbers for programs; video: depth.mp4 (disparity.mp4 without a calibration) of all pairs in order",
    )
    map_format: str = option(
        "png",
        "formats of the maps, separated by commas: png (16 bits: disparity and sigma in 1/256 px, depth in mm, "
        "confidence in 1/65535; 0 unknown; from 256 px on disparity becomes unknown, with a warning, and sigma stays "
        "at 65535; from 65.536 m on depth becomes unknown), pfm (px, metres; infinite unknown), npy (NaN unknown)",
    )
    overwrite: bool = option(False, "replace existing files")
    skip_existing: bool = option(False, "skip pairs whose files all exist, as after an interruption")
    focal_px: float | None = option(
        None, "focal length in px of the input images, in place of --calibration", minimum=1e-3
    )
    baseline_m: float | None = option(
        None, "distance of the two cameras, metres, in place of --calibration", minimum=1e-6
    )
    min_confidence: float = option(
        0.0, "leave points out of the cloud whose P(|error| < 1 px) is lower", minimum=0.0, maximum=1.0
    )
    video_fps: float | None = option(
        None, "frames per second of the video; else the input's, for images 10", minimum=0.1, maximum=1000.0
    )
    max_depth_m: float = option(50.0, "leave points out of the cloud that are farther away, metres", minimum=0.0)
    swap: bool = option(False, "swap the views: LEFT was taken by the right camera")
    allow_swapped: bool = option(False, "take the views as they are named where they seem to be swapped")
    side_by_side: bool = option(
        False, "LEFT holds both views side by side, though it is less than twice as wide as high"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_words("--write", ",".join(self.outputs), (*MAPS, *DRAWN, VIDEO))
        check_words("--map-format", self.map_format, MAP_FORMATS)
        if self.overwrite and self.skip_existing:
            raise UserError("--overwrite --skip-existing: existing files are either replaced or skipped; give one")
        if self.skip_existing and VIDEO in self.outputs:
            raise UserError("--write video --skip-existing: a video needs every pair; leave one of them out")
        if (self.focal_px is None) != (self.baseline_m is None):
            raise UserError("--focal-px and --baseline-m belong together; give both or none")
        if self.calibration is not None and (self.focal_px is not None or self.baseline_m is not None):
            raise UserError(
                "--calibration contains the focal length and baseline; give it, or --focal-px and --baseline-m"
            )

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs that `--write` names, by their present names."""
        return tuple(dict.fromkeys(_RENAMED_OUTPUTS.get(word, word) for word in split_words(self.write)))


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """All options of `foundation-stereo-predict`."""

    network: PredictNetworkOptions = PredictNetworkOptions()
    output: OutputOptions = OutputOptions()
    figures: FigureOptions = FigureOptions()
    inference: BatchedInferenceOptions = BatchedInferenceOptions()


@dataclass(frozen=True, kw_only=True)
class ExportFileOptions(OptionGroup):
    """file"""

    output: Path | None = option(
        None, "file to write; its suffix, .onnx or .safetensors, is the format; else <network>.onnx", short="-o"
    )
    overwrite: bool = option(False, "replace an existing file")
    dynamic_size: bool = option(True, "ONNX: accept any height and width from 32 px up; else only the network's")
    half: bool = option(False, "store weights in 16 bits; ONNX also computes in 16 bits")
    int8: bool = option(False, "ONNX: convolutions in 8 bits, for CPUs, calibrated on synthetic scenes of this size")
    opset: int = option(20, "ONNX: version of the operators", minimum=18, maximum=23)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.half and self.int8:
            raise UserError("--half --int8: weights have either 16 bits or 8; give one")


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """All options of `foundation-stereo-export`."""

    network: NetworkOptions = NetworkOptions()
    file: ExportFileOptions = ExportFileOptions()


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions(OptionGroup):
    """evaluation"""

    baseline: Literal["none", "sgbm"] = option(
        "none",
        "sgbm: OpenCV's semi-global matcher beside the network, or alone with --checkpoint none; its holes are "
        "filled, and its density is the fraction of pixels that it matched itself",
    )
    dataset: DatasetName = option(
        "fsd",
        "what to evaluate on. Of benchmarks the training scenes, whose ground truth is public: of sceneflow "
        "FlyingThings3D's TEST scenes in the final pass, of sintel the final pass, of instereo2k the test scenes. "
        "folders: left, right and disparity. synthetic: --dataset-root is a number of scenes",
    )
    dataset_root: Path | None = option(
        None,
        "folder of the data set, laid out as torchvision.datasets documents it; for fsd the folder of the scenes, else "
        "$FOUNDATION_STEREO_ROOT, else ~/Reference/OffTopic/Datasets/FoundationStereo",
    )
    download: bool = option(False, "download middlebury2014 to --dataset-root; the others have to be there")
    split: Literal["all", "validation"] = option(
        "all", "validation: of fsd only the validation scenes of the network's own run, which its .pt lists"
    )
    max_samples: int | None = option(None, "evaluate at most so many scenes, evenly spread", minimum=1)
    at_native_size: bool = option(
        False,
        "score at each image's own size: the network runs at its size as always, and its disparity and sigma are "
        "resized back, their values scaled with the width; sgbm runs at the image's size",
    )
    output: Path | None = option(
        None,
        "also write results.json, table.txt, reliability.png and sparsification.png to this folder",
        short="-o",
    )
    workers: int | Literal["auto"] = option(
        "auto",
        "threads that read scenes ahead, each up to two; auto takes 2 with a GPU, 0 on a CPU, whose cores are timed",
        minimum=0,
        maximum=64,
        aliases=("--num-workers",),
    )
    json: bool = option(False, "print one JSON object instead of a table")


EvaluatedCheckpoint = Path | Literal["default", "none"] | None


@dataclass(frozen=True, kw_only=True)
class EvaluatedNetworkOptions(SizedNetworkOptions):
    """network: a file, or a run"""

    # Wider than in the base class, on purpose: evaluate opens no network where it is `none`.
    checkpoint: EvaluatedCheckpoint = option(  # pyright: ignore[reportIncompatibleVariableOverride]
        None,
        "file of the network: .pt, .safetensors or .onnx; default or not given: the network that is installed; none: "
        "the baseline alone",
    )
    method: MethodName = option("network", METHOD_HELP + "; the same as --checkpoint none --baseline sgbm")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method == "sgbm":
            checkpoint = None if self.checkpoint == "none" else self.checkpoint
            check_no_network(checkpoint=checkpoint, run_id=self.run_id)


@dataclass(frozen=True, kw_only=True)
class EvaluatedRigOptions(CalibrationFileOptions):
    """calibration: of raw images, whose disparity belongs to the rectified left view; benchmarks are rectified"""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """All options of `foundation-stereo-evaluate`."""

    network: EvaluatedNetworkOptions = EvaluatedNetworkOptions()
    evaluation: BenchmarkOptions = BenchmarkOptions()
    rig: EvaluatedRigOptions = EvaluatedRigOptions()
    inference: InferenceOptions = InferenceOptions()
