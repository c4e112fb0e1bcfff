"""The options of training and of the cache; a field is the flag, the default, the unit and the help."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.options.datasets import (
    DATASET_HELP,
    DATASET_ROOT_HELP,
    DATASET_ROOT_METAVAR,
    DatasetName,
    DatasetRoots,
    parse_dataset_sources,
)
from foundation_stereo_depth.options.fields import DEVICE_HELP, DEVICE_METAVAR, OptionGroup, check_device, option


@dataclass(frozen=True, kw_only=True)
class DataOptions(OptionGroup):
    """data: where samples come from, and how large they are"""

    dataset: DatasetName = option("fsd", DATASET_HELP)
    dataset_root: DatasetRoots = option(
        None,
        DATASET_ROOT_HELP + ", or NAME:WEIGHT=PATH, by which each sample is visited WEIGHT times per epoch",
        metavar=DATASET_ROOT_METAVAR,
    )
    cache_root: Path | None = option(None, "folder of NPZ entries: hits are read, misses are written for later epochs")
    require_cache: bool = option(False, "fail at the start if the cache lacks a sample")
    height: int = option(240, "height of images and disparity maps, px", minimum=32, maximum=4096, fixed=True)
    width: int = option(320, "width of images and disparity maps, px", minimum=32, maximum=4096, fixed=True)
    max_samples: int | None = option(None, "use at most so many samples, spread over all scenes", minimum=1, fixed=True)
    val_fraction: float = option(
        0.1,
        "fraction of the data kept for validation, by scene where there are enough scenes; 0 validates on the "
        "training samples",
        minimum=0.0,
        maximum=0.9,
        fixed=True,
    )
    skip_bad: bool = option(False, "skip unreadable samples, and count and list them at the end")
    procedural_samples: int = option(
        1000, "synthetic scenes per epoch, where there is no data set", minimum=1, fixed=True
    )
    procedural_val_samples: int = option(
        64, "synthetic scenes kept for validation, where there is no data set", minimum=1, fixed=True
    )
    procedural_half_size: float = option(
        0.6,
        "fraction of the epochs, the first ones, in which a U-Net gets synthetic scenes of half the height and width, "
        "which it learns from in a fifth of the time; where there is no data set",
        minimum=0.0,
        maximum=1.0,
        fixed=True,
    )
    num_workers: int | Literal["auto"] = option(
        "auto",
        "threads that read samples; auto takes four per core, at most 16; 0 reads in the main thread",
        minimum=0,
        aliases=("--workers",),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_dataset_sources(self.dataset_root, self.dataset)


@dataclass(frozen=True, kw_only=True)
class AugmentOptions(OptionGroup):
    """augmentation: random for each view of each sample in each epoch"""

    augment: bool = option(True, "augment the training pairs", fixed=True)
    brightness_jitter: float = option(0.25, "factor from 1 - x to 1 + x", minimum=0.0, maximum=1.0, fixed=True)
    contrast_jitter: float = option(0.25, "factor from 1 - x to 1 + x", minimum=0.0, maximum=1.0, fixed=True)
    saturation_jitter: float = option(0.25, "factor from 1 - x to 1 + x", minimum=0.0, maximum=1.0, fixed=True)
    hue_jitter: float = option(0.05, "turn of the hue circle, from -x to +x", minimum=0.0, maximum=0.5, fixed=True)
    gamma_jitter: float = option(0.2, "exponent from 1 / (1 + x) to 1 + x", minimum=0.0, maximum=4.0, fixed=True)
    lighting_jitter: float = option(
        0.1,
        "smooth factor from 1 - x to 1 + x across each image, as vignettes, shadows and reflections cause",
        minimum=0.0,
        maximum=1.0,
        fixed=True,
    )
    blur_prob: float = option(
        0.3, "probability that a view is blurred, by a sigma of its own", minimum=0.0, maximum=1.0, fixed=True
    )
    blur_sigma_max: float = option(1.2, "largest sigma of the blur, px", minimum=0.0, maximum=10.0, fixed=True)
    blur_kernel_size: int = option(5, "width of the blur kernel, px, odd", minimum=1, maximum=31, fixed=True)
    noise_std_max: float = option(
        0.03,
        "largest standard deviation of a view's sensor noise, of full scale; most views have far less",
        minimum=0.0,
        maximum=1.0,
        fixed=True,
    )
    jpeg_prob: float = option(
        0.2, "probability that both views are compressed, as webcams send them", minimum=0.0, maximum=1.0, fixed=True
    )
    erase_prob: float = option(
        0.5, "probability that patches of the right view are replaced", minimum=0.0, maximum=1.0, fixed=True
    )
    erase_size_max: float = option(
        0.15, "largest side of a replaced patch, fraction of the width", minimum=0.0, maximum=1.0, fixed=True
    )
    flip_prob: float = option(
        0.0, "probability that both views are turned upside down", minimum=0.0, maximum=1.0, fixed=True
    )
    vertical_offset_max_px: float = option(
        0.7,
        "largest smooth vertical offset of the right view, as an inexactly calibrated rig has, px",
        minimum=0.0,
        maximum=10.0,
        fixed=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blur_kernel_size % 2 == 0:
            raise UserError(f"--blur-kernel-size is {self.blur_kernel_size}, but has to be odd")


@dataclass(frozen=True, kw_only=True)
class ModelOptions(OptionGroup):
    """network"""

    model: Literal["unet", "guided", "fused", "predecessor"] = option(
        "unet",
        "unet: a 6-channel U-Net on both views at once; guided: corrects OpenCV's semi-global matcher; fused: chooses "
        "between two matches of it, one for textured and one for plain surfaces, and corrects them; predecessor: the "
        "full-resolution U-Net of this program's predecessor, for --initial-weights from its checkpoints",
        fixed=True,
    )
    base_channels: int = option(
        32, "channels at half resolution (predecessor: full)", minimum=1, maximum=512, fixed=True
    )
    depth: int = option(5, "unet: halvings after the first", minimum=1, maximum=7, fixed=True)


@dataclass(frozen=True, kw_only=True)
class LossOptions(OptionGroup):
    """loss: negative log-likelihood of the true disparity on valid pixels"""

    loss: Literal["laplace", "gaussian"] = option(
        "laplace", "distribution of the error; it is stored with the weights", fixed=True
    )
    region_weight: float = option(
        0.5, "guided, fused: weight of the region term of the loss", minimum=0.0, maximum=100.0, fixed=True
    )
    nll_beta: float = option(
        0.5,
        "weight each pixel by its predicted scale to this power, held constant in the gradient, so that hard pixels "
        "are still learned; 0 is the plain likelihood, 1 gives the disparity the gradient of L1 (L2)",
        minimum=0.0,
        maximum=1.0,
        fixed=True,
    )


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions(OptionGroup):
    """optimisation"""

    epochs: int = option(20, "passes over the training data", minimum=1)
    initial_weights: Path | Literal["default"] | None = option(
        None,
        "start from the network in this .pt or .safetensors file, or with default from the installed one; else from "
        "random weights",
        fixed=True,
    )
    batch_size: int = option(8, "samples per step, over all processes together", minimum=1, fixed=True)
    optimizer: Literal["muon", "adamw"] = option(
        "muon",
        "muon: orthogonalised momentum for the hidden convolutions, AdamW for the rest; adamw: AdamW alone",
        fixed=True,
    )
    learning_rate: float = option(2e-3, "peak of the one-cycle schedule", minimum=0.0, fixed=True, aliases=("--lr",))
    weight_decay: float = option(1e-4, "decoupled weight decay", minimum=0.0, fixed=True)
    warmup_fraction: float = option(
        0.1, "fraction of all steps in which the learning rate rises", minimum=0.0, maximum=1.0, fixed=True
    )
    clip_norm: float = option(1.0, "largest norm of the gradient", minimum=1e-6, fixed=True)
    ema_decay: float = option(
        0.995,
        "evaluate and save an exponential moving average of the weights with this decay per step; 0 switches it off",
        minimum=0.0,
        maximum=0.99999,
        fixed=True,
    )


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions(OptionGroup):
    """machine"""

    device: str = option("auto", DEVICE_HELP, metavar=DEVICE_METAVAR)
    precision: Literal["auto", "fp32", "bf16"] = option(
        "auto", "arithmetic of the network; auto takes bf16 where the device gains from it", fixed=True
    )
    compile: bool = option(False, "compile the network with torch.compile")
    compile_mode: str = option("default", "mode of torch.compile")
    compile_backend: str = option("inductor", "backend of torch.compile")
    seed: int = option(0, "seed of everything random", minimum=0, maximum=2**31 - 1, fixed=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_device(self.device)


EXPERIMENT_HELP = "MLflow experiment; else $MLFLOW_EXPERIMENT_NAME, else foundation-stereo-depth"


@dataclass(frozen=True, kw_only=True)
class TrackingOptions(OptionGroup):
    """results"""

    output_dir: Path | None = option(None, "folder of best.pt and last.pt; else runs/<run id>")
    resume: str | None = option(
        None, "resume a run: its MLflow run id, name or latest, or the path of its last.pt or folder"
    )
    mlflow_tracking_uri: str | None = option(
        None, "where MLflow keeps its runs: a database or a server; else $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db"
    )
    experiment_name: str | None = option(None, EXPERIMENT_HELP, aliases=("--mlflow-experiment",))
    run_name: str | None = option(None, "MLflow run name; else model, data and size")
    log_steps: int = option(
        50, "send the figures of training to MLflow every so many steps, as train_steps/* by samples seen", minimum=1
    )
    validate_every_minutes: float = option(
        20.0,
        "also validate within an epoch, every so many minutes, on at most 1024 of the validation samples, with preview "
        "and best.pt; charted as validation_steps/* by samples seen; 0 validates after epochs alone",
        minimum=0.0,
    )
    checkpoint_minutes: float = option(10.0, "also save last.pt within an epoch, every so many minutes", minimum=0.0)


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """All options of `foundation-stereo-depth`."""

    data: DataOptions = DataOptions()
    augment: AugmentOptions = AugmentOptions()
    model: ModelOptions = ModelOptions()
    loss: LossOptions = LossOptions()
    optimizer: OptimizerOptions = OptimizerOptions()
    runtime: RuntimeOptions = RuntimeOptions()
    tracking: TrackingOptions = TrackingOptions()

    def __post_init__(self) -> None:
        # Several processes divide the batch; the network itself checks the part of each.
        single = self.optimizer.batch_size == 1 and self.data.height == self.data.width == 32
        if self.model.model in ("guided", "fused") and single:
            raise UserError(
                f"--model {self.model.model} --height 32 --width 32 --batch-size 1: leaves one value per channel, too "
                "few for batch normalisation; raise one of them"
            )


@dataclass(frozen=True, kw_only=True)
class CacheBuildOptions(OptionGroup):
    """cache"""

    dataset: DatasetName = option("fsd", DATASET_HELP)
    dataset_root: DatasetRoots = option(None, DATASET_ROOT_HELP, metavar=DATASET_ROOT_METAVAR)
    procedural_samples: int | None = option(
        None, "fill it with so many synthetic scenes, always the same ones, in place of a data set", minimum=1
    )
    cache_root: Path | None = option(None, "folder to fill, one <scene>/<stem>.npz per sample")
    height: int = option(240, "height of the entries, px", minimum=32, maximum=4096)
    width: int = option(320, "width of the entries, px", minimum=32, maximum=4096)
    max_samples: int | None = option(None, "cache at most so many samples, the ones that training would use", minimum=1)
    workers: int | Literal["auto"] = option("auto", "threads; auto takes one per core", minimum=1)
    skip_bad: bool = option(False, "skip unreadable samples, and count them and list them in a file")
    overwrite: bool = option(False, "rebuild every entry, also those that are complete and up to date")
    compress: bool = option(False, "deflate new entries: smaller, but slower to read")
    shard: str | None = option(
        None, "I/N, from 1/N to N/N: take one of N equal parts, so that N machines fill one cache; torchrun does it too"
    )
    verify: bool = option(
        False,
        "read every entry of the cache, whatever made it, list the damaged ones (with --dataset-root also those whose "
        "files have changed), and write nothing; exit status 1 where there are any",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.verify and self.overwrite:
            raise UserError("--verify writes nothing, and --overwrite writes everything; give one of them")
        if self.dataset_root is not None and self.procedural_samples is not None:
            raise UserError("--dataset-root and --procedural-samples both name what to cache; give one of them")
        parse_dataset_sources(self.dataset_root, self.dataset)
        self.part()

    def part(self) -> tuple[int, int] | None:
        """Return which part, from 1, of how many `--shard` asks for; None without `--shard`."""
        if self.shard is None:
            return None
        words = self.shard.split("/")
        numbers = [int(word) for word in words if word.isascii() and word.isdigit()]
        if len(words) != 2 or len(numbers) != 2 or not 1 <= numbers[0] <= numbers[1]:
            raise UserError(f"--shard {self.shard}: has to be I/N with I from 1 to N, such as 1/4")
        return numbers[0], numbers[1]


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """All options of `foundation-stereo-cache`."""

    cache: CacheBuildOptions = CacheBuildOptions()
