"""Every knob of every command on one page. A field is the flag, the default, the unit and the help, all at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.knobs import Group, check_words, knob, two_numbers, words_of


@dataclass(frozen=True, kw_only=True)
class DataOptions(Group):
    """data: where samples come from, and how large they are"""

    dataset_root: Path | None = knob(
        None, "FoundationStereo folder, <root>/<scene>/dataset/data/...; else $FOUNDATION_STEREO_ROOT"
    )
    cache_root: Path | None = knob(None, "folder of NPZ entries: hits are read, misses are written for later epochs")
    require_cache: bool = knob(False, "fail on the first sample that the cache does not hold")
    height: int = knob(240, "height of images and disparity maps, px", minimum=32, maximum=4096, fixed=True)
    width: int = knob(320, "width of images and disparity maps, px", minimum=32, maximum=4096, fixed=True)
    max_samples: int | None = knob(None, "use at most so many samples, spread over all scenes", minimum=1, fixed=True)
    val_fraction: float = knob(
        0.1,
        "share of the data kept for validation, by scene where there are enough scenes; 0 validates on the "
        "training samples",
        minimum=0.0,
        maximum=0.9,
        fixed=True,
    )
    skip_bad: bool = knob(False, "go on past unreadable samples, counting them and listing them at the end")
    procedural_samples: int = knob(800, "made-up scenes per epoch, where there is no data set", minimum=1, fixed=True)
    procedural_val_samples: int = knob(
        64, "made-up scenes kept for validation, where there is no data set", minimum=1, fixed=True
    )
    num_workers: int | Literal["auto"] = knob(
        "auto", "threads that read samples; auto measures how many are of use; 0 reads in the trainer", minimum=0
    )


@dataclass(frozen=True, kw_only=True)
class AugmentOptions(Group):
    """augmentation: drawn anew for each eye of each sample in each epoch"""

    augment: bool = knob(True, "augment the training pairs", fixed=True)
    brightness_jitter: float = knob(0.25, "factor from 1 - x to 1 + x", minimum=0.0, maximum=1.0, fixed=True)
    contrast_jitter: float = knob(0.25, "factor from 1 - x to 1 + x", minimum=0.0, maximum=1.0, fixed=True)
    saturation_jitter: float = knob(0.25, "factor from 1 - x to 1 + x", minimum=0.0, maximum=1.0, fixed=True)
    hue_jitter: float = knob(0.05, "turn of the colour circle, from -x to +x", minimum=0.0, maximum=0.5, fixed=True)
    gamma_jitter: float = knob(0.2, "exponent from 1 / (1 + x) to 1 + x", minimum=0.0, maximum=4.0, fixed=True)
    lighting_jitter: float = knob(
        0.1,
        "smooth factor from 1 - x to 1 + x across each picture, as vignettes, shadows and reflections give",
        minimum=0.0,
        maximum=1.0,
        fixed=True,
    )
    blur_prob: float = knob(0.3, "probability of a Gaussian blur", minimum=0.0, maximum=1.0, fixed=True)
    blur_sigma_max: float = knob(1.2, "largest sigma of the blur, px", minimum=0.0, maximum=10.0, fixed=True)
    blur_kernel_size: int = knob(5, "width of the blur kernel, px, odd", minimum=1, maximum=31, fixed=True)
    noise_std_max: float = knob(
        0.03, "largest standard deviation of the sensor noise, of full scale", minimum=0.0, maximum=1.0, fixed=True
    )
    jpeg_prob: float = knob(
        0.2, "probability that both views are compressed, as webcams send them", minimum=0.0, maximum=1.0, fixed=True
    )
    erase_prob: float = knob(
        0.5, "probability that patches of the right view are replaced", minimum=0.0, maximum=1.0, fixed=True
    )
    erase_size_max: float = knob(
        0.15, "largest side of a replaced patch, share of the width", minimum=0.0, maximum=1.0, fixed=True
    )
    flip_prob: float = knob(
        0.0, "probability that both views are turned upside down", minimum=0.0, maximum=1.0, fixed=True
    )
    vertical_offset_max_px: float = knob(
        0.7,
        "largest smooth vertical offset of the right view, as a rig slightly out of true has",
        minimum=0.0,
        maximum=10.0,
        fixed=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blur_kernel_size % 2 == 0:
            raise UserError(f"--blur-kernel-size is {self.blur_kernel_size}, but has to be odd")


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Group):
    """network"""

    model: Literal["unet", "guided"] = knob(
        "unet",
        "unet: a 6-channel U-Net on both eyes at once; guided: corrects OpenCV's semi-global matcher",
        fixed=True,
    )
    base_channels: int = knob(32, "channels at half resolution", minimum=4, maximum=512, fixed=True)
    depth: int = knob(5, "unet: halvings after the first", minimum=1, maximum=7, fixed=True)


@dataclass(frozen=True, kw_only=True)
class LossOptions(Group):
    """loss: negative log-likelihood of the true disparity on valid pixels"""

    loss: Literal["laplace", "gaussian"] = knob(
        "laplace", "distribution of the error; it is stored with the weights", fixed=True
    )
    region_weight: float = knob(
        0.5, "guided: weight of the errors of its own values", minimum=0.0, maximum=100.0, fixed=True
    )
    nll_beta: float = knob(
        0.5,
        "weight each pixel by its predicted scale to this power, held constant in the gradient, so that hard pixels "
        "are not starved; 0 is the plain likelihood, 1 gives the disparity the gradient of L1 (L2)",
        minimum=0.0,
        maximum=1.0,
        fixed=True,
    )


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions(Group):
    """optimisation"""

    epochs: int = knob(20, "passes over the training data", minimum=1)
    batch_size: int = knob(8, "samples per step, over all processes together", minimum=1, fixed=True)
    learning_rate: float = knob(1e-3, "peak of the one-cycle schedule of AdamW", minimum=0.0, fixed=True)
    weight_decay: float = knob(1e-4, "decoupled weight decay of AdamW", minimum=0.0, fixed=True)
    warmup_fraction: float = knob(
        0.1, "share of all steps in which the learning rate rises", minimum=0.0, maximum=1.0, fixed=True
    )
    clip_norm: float = knob(1.0, "largest norm of the gradient", minimum=1e-6, fixed=True)
    ema_decay: float = knob(
        0.995,
        "evaluate and ship an exponential moving average of the weights with this decay per step; 0 switches it off",
        minimum=0.0,
        maximum=0.99999,
        fixed=True,
    )


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions(Group):
    """machine"""

    device: Literal["auto", "cpu", "cuda", "mps"] = knob("auto", "auto takes cuda, else mps, else cpu")
    precision: Literal["auto", "fp32", "bf16"] = knob(
        "auto", "arithmetic of the network; auto takes bf16 where the device gains from it", fixed=True
    )
    compile: bool = knob(False, "compile the network with torch.compile")
    compile_mode: str = knob("default", "mode of torch.compile")
    compile_backend: str = knob("inductor", "backend of torch.compile")
    seed: int = knob(0, "seed of everything random", minimum=0, maximum=2**31 - 1, fixed=True)


@dataclass(frozen=True, kw_only=True)
class TrackingOptions(Group):
    """results"""

    output_dir: Path | None = knob(None, "folder of best.pt and last.pt; else runs/<run id>")
    resume: str | None = knob(None, "go on with a run: its MLflow run id, or the path of a last.pt")
    mlflow_tracking_uri: str | None = knob(
        None, "where MLflow keeps its runs: a database or a server; else $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db"
    )
    experiment_name: str = knob("foundation-stereo-depth", "MLflow experiment")
    run_name: str | None = knob(None, "MLflow run name")
    checkpoint_minutes: float = knob(10.0, "also save last.pt so often within an epoch", minimum=0.0)


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """All knobs of `foundation-stereo-depth`."""

    data: DataOptions = DataOptions()
    augment: AugmentOptions = AugmentOptions()
    model: ModelOptions = ModelOptions()
    loss: LossOptions = LossOptions()
    optimizer: OptimizerOptions = OptimizerOptions()
    runtime: RuntimeOptions = RuntimeOptions()
    tracking: TrackingOptions = TrackingOptions()


@dataclass(frozen=True, kw_only=True)
class CacheBuildOptions(Group):
    """cache"""

    dataset_root: Path | None = knob(
        None, "FoundationStereo folder, <root>/<scene>/dataset/data/...; else $FOUNDATION_STEREO_ROOT"
    )
    procedural_samples: int | None = knob(
        None, "fill it with so many made-up scenes, always the same ones, in place of a data set", minimum=1
    )
    cache_root: Path | None = knob(None, "folder to fill, one <scene>/<stem>.npz per sample")
    height: int = knob(240, "height of the entries, px", minimum=32, maximum=4096)
    width: int = knob(320, "width of the entries, px", minimum=32, maximum=4096)
    max_samples: int | None = knob(None, "cache at most so many samples, the ones that training would use", minimum=1)
    workers: int | Literal["auto"] = knob("auto", "threads; auto takes one per core", minimum=1)
    skip_bad: bool = knob(False, "go on past unreadable samples, counting them and listing them in a file")
    overwrite: bool = knob(False, "make every entry anew, also those that are whole and of the present files")
    shard: str | None = knob(
        None, "I/N, from 1/N to N/N: take one of N equal parts, so that N machines fill one cache; torchrun does it too"
    )
    verify: bool = knob(
        False,
        "read every entry of the cache, whatever made it, name the damaged ones (with --dataset-root also those whose "
        "files have changed), and write nothing; exit status 1 where there are any",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.verify and self.overwrite:
            raise UserError("--verify writes nothing, and --overwrite writes everything; give one of them")
        if self.dataset_root is not None and self.procedural_samples is not None:
            raise UserError("--dataset-root and --procedural-samples both say what to fill it with; give one of them")
        self.part()

    def part(self) -> tuple[int, int] | None:
        """What `--shard` says: which part, from 1, of how many; None where it says nothing."""
        if self.shard is None:
            return None
        words = self.shard.split("/")
        numbers = [int(word) for word in words if word.isascii() and word.isdigit()]
        if len(words) != 2 or len(numbers) != 2 or not 1 <= numbers[0] <= numbers[1]:
            raise UserError(f"--shard {self.shard}: has to be I/N with I from 1 to N, such as 1/4")
        return numbers[0], numbers[1]


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """All knobs of `foundation-stereo-cache`."""

    cache: CacheBuildOptions = CacheBuildOptions()


@dataclass(frozen=True, kw_only=True)
class NetworkSourceOptions(Group):
    """network: a file, or a run"""

    checkpoint: Path | None = knob(
        None,
        "file that holds it: .pt, .safetensors or .onnx; default, as where none is named: the one that is installed "
        "with the program",
    )
    run_id: str | None = knob(None, "MLflow run whose network to use, in place of --checkpoint")
    weights: Literal["best", "last"] = knob("best", "which checkpoint of the run")
    mlflow_tracking_uri: str | None = knob(
        None, "where MLflow keeps its runs: a database or a server; else $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db"
    )
    height: int | None = knob(None, "height that the network works at, px; else its own", minimum=32, maximum=4096)
    width: int | None = knob(None, "width that the network works at, px; else its own", minimum=32, maximum=4096)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.checkpoint is not None and self.run_id is not None:
            raise UserError("--checkpoint and --run-id both name a network; give one of them")


@dataclass(frozen=True, kw_only=True)
class InferenceOptions(Group):
    """machine"""

    backend: Literal["auto", "torch", "onnxruntime", "openvino"] = knob(
        "auto", "auto takes torch for weights; for an .onnx OpenVINO on Intel CPUs, else onnxruntime"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = knob("auto", "auto takes cuda, else mps, else cpu")
    precision: Literal["auto", "fp32", "bf16"] = knob(
        "auto", "arithmetic of the network; auto takes bf16 where the device gains from it"
    )
    compile: bool = knob(False, "compile the network with torch.compile: slow at first, faster for many pairs")


@dataclass(frozen=True, kw_only=True)
class BatchedInferenceOptions(InferenceOptions):
    """machine"""

    batch_size: int = knob(1, "pairs that go through the network together", minimum=1)


@dataclass(frozen=True, kw_only=True)
class CalibrationFileOptions(Group):
    """calibration: of the rig, in any format that docs/formats.md lists"""

    calibration: Path | None = knob(None, "the rig's calibration file; of two files their folder, or either of them")
    calibration_unit: Literal["auto", "m", "cm", "mm"] = knob(
        "auto", "unit of its lengths; auto takes what its format defines, or metres where that says nothing"
    )
    calibration_size: str | None = knob(None, "size of the pictures it was made for, as 640x480, where it is unclear")

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.calibration_image_size  # a mistake is told at once

    @property
    def calibration_image_size(self) -> tuple[int, int] | None:
        """Width and height that `--calibration-size` names, px."""
        return None if self.calibration_size is None else two_numbers("--calibration-size", self.calibration_size)


MAPS = ("disparity", "depth", "sigma", "confidence")
"""What can be written as a map of numbers."""
PICTURES = ("picture", "cloud")
"""What else can be written."""
MAP_FORMATS = ("png", "pfm", "npy")


@dataclass(frozen=True, kw_only=True)
class OutputOptions(CalibrationFileOptions):
    """results: files <name>_<what>.<format> in a folder"""

    output: Path | None = knob(None, "folder to write to; made where it does not exist", short="-o")
    write: str = knob("disparity,picture", f"what to write, with commas between: {', '.join(MAPS + PICTURES)}")
    map_format: str = knob(
        "png",
        "formats of the maps, with commas between: png (16 bits: disparity and sigma in 1/256 px, depth in mm, "
        "confidence in 1/65535; 0 unknown), pfm, npy (px, metres; NaN unknown)",
    )
    overwrite: bool = knob(False, "replace files that are there")
    focal_px: float | None = knob(
        None, "focal length in px of the input pictures, in place of --calibration", minimum=1e-3
    )
    baseline_m: float | None = knob(
        None, "distance of the two cameras, metres, in place of --calibration", minimum=1e-6
    )
    min_confidence: float = knob(
        0.0, "leave points out of the cloud whose P(|error| < 1 px) is lower", minimum=0.0, maximum=1.0
    )
    max_depth_m: float = knob(50.0, "leave points out of the cloud that are farther away, metres", minimum=0.0)
    swap: bool = knob(False, "exchange the eyes: LEFT is what the right camera saw")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_words("--write", self.write, MAPS + PICTURES)
        check_words("--map-format", self.map_format, MAP_FORMATS)
        needing = [word for word in ("depth", "cloud") if word in words_of(self.write)]
        numbers = self.focal_px is not None and self.baseline_m is not None
        if needing and self.calibration is None and not numbers:
            raise UserError(f"--write {needing[0]}: needs --calibration, or --focal-px and --baseline-m")
        if self.calibration is not None and (self.focal_px is not None or self.baseline_m is not None):
            raise UserError("--calibration says what --focal-px and --baseline-m say; give one or the other")


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """All knobs of `foundation-stereo-predict`."""

    network: NetworkSourceOptions = NetworkSourceOptions()
    output: OutputOptions = OutputOptions()
    inference: BatchedInferenceOptions = BatchedInferenceOptions()


@dataclass(frozen=True, kw_only=True)
class ExportFileOptions(Group):
    """file"""

    output: Path | None = knob(None, "file to write; .onnx or .safetensors decides what it is", short="-o")
    overwrite: bool = knob(False, "replace the file if it is there")
    dynamic_size: bool = knob(True, "ONNX: any height and width from 32 px up; else the network's alone")
    half: bool = knob(False, "weights of 16 bits; an ONNX computes in them too")
    opset: int = knob(20, "ONNX: version of the operators", minimum=18, maximum=23)


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """All knobs of `foundation-stereo-export`."""

    network: NetworkSourceOptions = NetworkSourceOptions()
    file: ExportFileOptions = ExportFileOptions()


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions(Group):
    """evaluation"""

    baseline: Literal["none", "sgbm"] = knob(
        "none",
        "sgbm: OpenCV's semi-global matcher beside the network, or alone with --checkpoint none; its holes are "
        "filled, and its density is the share of pixels that it answers itself",
    )
    dataset: Literal[
        "fsd",
        "middlebury2014",
        "eth3d",
        "kitti2012",
        "kitti2015",
        "sceneflow",
        "sintel",
        "fallingthings",
        "instereo2k",
        "crestereo",
        "carla",
    ] = knob(
        "fsd",
        "what to evaluate on: the training scenes of a benchmark, whose truth is public; of sceneflow FlyingThings3D's "
        "TEST scenes in the final pass, of sintel the final pass, of instereo2k the test scenes",
    )
    dataset_root: Path | None = knob(
        None,
        "folder of the data set, laid out as torchvision.datasets documents it; for fsd the folder of the scenes, else "
        "$FOUNDATION_STEREO_ROOT",
    )
    download: bool = knob(False, "fetch middlebury2014, the only one that can be, to --dataset-root")
    max_samples: int | None = knob(None, "evaluate at most so many scenes, evenly spread", minimum=1)
    at_native_size: bool = knob(
        False,
        "score at each picture's own size: the network runs at its size as ever, and its disparity and uncertainty are "
        "stretched back, their values with the width; sgbm runs at the picture's size",
    )
    json: bool = knob(False, "print one JSON object instead of a table")


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """All knobs of `foundation-stereo-evaluate`."""

    network: NetworkSourceOptions = NetworkSourceOptions()
    evaluation: BenchmarkOptions = BenchmarkOptions()
    inference: InferenceOptions = InferenceOptions()
