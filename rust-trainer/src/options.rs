//! The options of training and of the cache: flags, defaults, limits and help, as in the Python program.

use std::collections::BTreeSet;
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{Args, CommandFactory, FromArgMatches, Parser};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::errors::{Error, Result};

/// The name of the command, which begins its messages.
pub const COMMAND: &str = "foundation-stereo-train";
/// The environment variable that names the data set where no flag does.
pub const DATASET_ROOT_VARIABLE: &str = "FOUNDATION_STEREO_ROOT";

/// All options. A group of them is a group in `--help` and in config.json.
#[derive(Clone, Debug, Default, Deserialize, Parser, PartialEq, Serialize)]
#[command(
    name = COMMAND,
    version,
    args_override_self = true,
    about = "Train the 6-channel stereo U-Net with per-pixel uncertainty in Rust (Candle), on FoundationStereo data or \
             on a cache, the Python program's or its own."
)]
#[serde(default)]
pub struct TrainOptions {
    #[command(flatten)]
    pub data: DataOptions,
    #[command(flatten)]
    pub augment: AugmentOptions,
    #[command(flatten)]
    pub model: ModelOptions,
    #[command(flatten)]
    pub loss: LossOptions,
    #[command(flatten)]
    pub optimizer: OptimizerOptions,
    #[command(flatten)]
    pub runtime: RuntimeOptions,
    #[command(flatten)]
    pub tracking: TrackingOptions,
    #[command(flatten)]
    pub cache: CacheBuildOptions,
}

/// Where samples come from, and how large they are.
#[derive(Args, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[command(next_help_heading = "data: where samples come from, and how large they are")]
#[serde(default)]
pub struct DataOptions {
    /// FoundationStereo folder, <root>/<scene>/dataset/data/...; else $FOUNDATION_STEREO_ROOT
    #[arg(long, value_name = "PATH", value_parser = parse_path)]
    pub dataset_root: Option<PathBuf>,
    /// folder of NPZ entries: hits are read, misses are written for later epochs
    #[arg(long, value_name = "PATH", value_parser = parse_path)]
    pub cache_root: Option<PathBuf>,
    /// fail on the first sample that the cache does not hold (--no-require-cache)
    #[arg(long, default_value = "false", num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set, hide_possible_values = true, value_name = "BOOL")]
    pub require_cache: bool,
    /// height of images and disparity maps, px
    #[arg(long, value_name = "N", default_value = "240", allow_negative_numbers = true)]
    pub height: i64,
    /// width of images and disparity maps, px
    #[arg(long, value_name = "N", default_value = "320", allow_negative_numbers = true)]
    pub width: i64,
    /// use at most so many samples, spread over all scenes
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub max_samples: Option<i64>,
    /// share of the data kept for validation, by scene where there are enough scenes; 0 validates on the training samples
    #[arg(long, value_name = "X", default_value = "0.1", allow_negative_numbers = true)]
    pub val_fraction: f64,
    /// continue past unreadable samples, counting them and listing them at the end (--no-skip-bad)
    #[arg(long, default_value = "false", num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set, hide_possible_values = true, value_name = "BOOL")]
    pub skip_bad: bool,
    /// threads that read samples; auto measures how many are of use; 0 reads in the trainer
    #[arg(long, value_name = "auto|N", default_value = "auto", value_parser = parse_workers)]
    #[serde(with = "workers_as_json")]
    pub num_workers: Workers,
}

/// A number of threads, or `auto`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Workers {
    Auto,
    Fixed(usize),
}

/// Augmentation, drawn again for each view of each sample in each epoch.
#[derive(Args, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[command(next_help_heading = "augmentation: drawn again for each view of each sample in each epoch")]
#[serde(default)]
pub struct AugmentOptions {
    /// augment the training pairs (--no-augment)
    #[arg(long, default_value = "true", num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set, hide_possible_values = true, value_name = "BOOL")]
    pub augment: bool,
    /// factor from 1 - x to 1 + x
    #[arg(long, value_name = "X", default_value = "0.25", allow_negative_numbers = true)]
    pub brightness_jitter: f64,
    /// factor from 1 - x to 1 + x
    #[arg(long, value_name = "X", default_value = "0.25", allow_negative_numbers = true)]
    pub contrast_jitter: f64,
    /// factor from 1 - x to 1 + x
    #[arg(long, value_name = "X", default_value = "0.25", allow_negative_numbers = true)]
    pub saturation_jitter: f64,
    /// turn of the colour circle, from -x to +x
    #[arg(long, value_name = "X", default_value = "0.05", allow_negative_numbers = true)]
    pub hue_jitter: f64,
    /// exponent from 1 / (1 + x) to 1 + x
    #[arg(long, value_name = "X", default_value = "0.2", allow_negative_numbers = true)]
    pub gamma_jitter: f64,
    /// smooth factor from 1 - x to 1 + x across each image, as vignettes, shadows and reflections give
    #[arg(long, value_name = "X", default_value = "0.1", allow_negative_numbers = true)]
    pub lighting_jitter: f64,
    /// probability that a view is blurred, by a sigma of its own
    #[arg(long, value_name = "X", default_value = "0.3", allow_negative_numbers = true)]
    pub blur_prob: f64,
    /// largest sigma of the blur, px
    #[arg(long, value_name = "X", default_value = "1.2", allow_negative_numbers = true)]
    pub blur_sigma_max: f64,
    /// width of the blur kernel, px, odd
    #[arg(long, value_name = "N", default_value = "5", allow_negative_numbers = true)]
    pub blur_kernel_size: i64,
    /// largest standard deviation of a view's sensor noise, of full scale; most views have far less
    #[arg(long, value_name = "X", default_value = "0.03", allow_negative_numbers = true)]
    pub noise_std_max: f64,
    /// not in Rust: has to be 0
    #[arg(long, value_name = "X", default_value = "0", allow_negative_numbers = true)]
    pub jpeg_prob: f64,
    /// probability that patches of the right view are replaced
    #[arg(long, value_name = "X", default_value = "0.5", allow_negative_numbers = true)]
    pub erase_prob: f64,
    /// largest side of a replaced patch, share of the width
    #[arg(long, value_name = "X", default_value = "0.15", allow_negative_numbers = true)]
    pub erase_size_max: f64,
    /// probability that both views are turned upside down
    #[arg(long, value_name = "X", default_value = "0", allow_negative_numbers = true)]
    pub flip_prob: f64,
    /// largest smooth vertical offset of the right view, as a rig slightly out of true has
    #[arg(long, value_name = "X", default_value = "0.7", allow_negative_numbers = true)]
    pub vertical_offset_max_px: f64,
}

/// The network.
#[derive(Args, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[command(next_help_heading = "network")]
#[serde(default)]
pub struct ModelOptions {
    /// unet: a 6-channel U-Net on both views at once; the Python program has another one besides
    #[arg(long, value_name = "unet", default_value = "unet")]
    pub model: String,
    /// channels at half resolution
    #[arg(long, value_name = "N", default_value = "32", allow_negative_numbers = true)]
    pub base_channels: i64,
    /// halvings after the first
    #[arg(long, value_name = "N", default_value = "5", allow_negative_numbers = true)]
    pub depth: i64,
}

/// The distribution of the error.
#[derive(clap::ValueEnum, Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Distribution {
    #[default]
    Laplace,
    Gaussian,
}

/// The loss: negative log-likelihood of the true disparity on valid pixels.
#[derive(Args, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[command(next_help_heading = "loss: negative log-likelihood of the true disparity on valid pixels")]
#[serde(default)]
pub struct LossOptions {
    /// distribution of the error; it is stored with the weights
    #[arg(long, value_enum, default_value = "laplace")]
    pub loss: Distribution,
    /// weight each pixel by its predicted scale to this power, held constant in the gradient, so that hard pixels are not starved; 0 is the plain likelihood
    #[arg(long, value_name = "X", default_value = "0.5", allow_negative_numbers = true)]
    pub nll_beta: f64,
}

/// Optimisation.
#[derive(Args, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[command(next_help_heading = "optimisation")]
#[serde(default)]
pub struct OptimizerOptions {
    /// passes over the training data
    #[arg(long, value_name = "N", default_value = "20", allow_negative_numbers = true)]
    pub epochs: i64,
    /// begin with the U-Net in this .safetensors file instead of a random one
    #[arg(long, value_name = "PATH", value_parser = parse_path)]
    pub initial_weights: Option<PathBuf>,
    /// samples per step
    #[arg(long, value_name = "N", default_value = "8", allow_negative_numbers = true)]
    pub batch_size: i64,
    /// muon: orthogonalised momentum for the hidden convolutions, AdamW for the rest; adamw: AdamW alone
    #[arg(long, value_enum, default_value = "muon")]
    #[serde(default = "algorithm_of_old_runs")]
    pub optimizer: Algorithm,
    /// peak of the one-cycle schedule
    #[arg(long, alias = "lr", value_name = "X", default_value = "0.002", allow_negative_numbers = true)]
    pub learning_rate: f64,
    /// decoupled weight decay
    #[arg(long, value_name = "X", default_value = "0.0001", allow_negative_numbers = true)]
    pub weight_decay: f64,
    /// share of all steps in which the learning rate rises
    #[arg(long, value_name = "X", default_value = "0.1", allow_negative_numbers = true)]
    pub warmup_fraction: f64,
    /// largest norm of the gradient
    #[arg(long, value_name = "X", default_value = "1", allow_negative_numbers = true)]
    pub clip_norm: f64,
    /// evaluate and ship an exponential moving average of the weights with this decay per step; 0 switches it off
    #[arg(long, value_name = "X", default_value = "0.995", allow_negative_numbers = true)]
    pub ema_decay: f64,
}

/// What turns gradients into changes of the weights.
#[derive(clap::ValueEnum, Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    #[default]
    Muon,
    Adamw,
}

/// Runs of before the option were trained by AdamW.
const fn algorithm_of_old_runs() -> Algorithm {
    Algorithm::Adamw
}

/// Where the network runs.
#[derive(clap::ValueEnum, Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceChoice {
    #[default]
    Auto,
    Cpu,
    Cuda,
    Metal,
}

/// The machine.
#[derive(Args, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[command(next_help_heading = "machine")]
#[serde(default)]
pub struct RuntimeOptions {
    /// auto takes what the program was built for (--features cuda or metal), else the CPU
    #[arg(long, value_enum, default_value = "auto")]
    pub device: DeviceChoice,
    /// seed of everything random
    #[arg(long, value_name = "N", default_value = "0", allow_negative_numbers = true)]
    pub seed: i64,
}

/// Results.
#[derive(Args, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[command(next_help_heading = "results")]
#[serde(default)]
pub struct TrackingOptions {
    /// folder of the runs; each has a folder <run id> in it
    #[arg(long, value_name = "PATH", default_value = "outputs-rs", value_parser = parse_path)]
    pub output_dir: PathBuf,
    /// resume a run: its run id, its folder, or its last.resume.safetensors
    #[arg(long, value_name = "TEXT")]
    pub resume: Option<String>,
    /// a name for the run, for people
    #[arg(long, value_name = "TEXT")]
    pub run_name: Option<String>,
    /// also save the last checkpoint so often within an epoch
    #[arg(long, value_name = "X", default_value = "10", allow_negative_numbers = true)]
    pub checkpoint_minutes: f64,
}

/// Filling a cache instead of training.
#[derive(Args, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[command(next_help_heading = "cache")]
#[serde(default)]
pub struct CacheBuildOptions {
    /// fill --cache-root from --dataset-root, and train nothing (--no-build-cache-only)
    #[arg(long, default_value = "false", num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set, hide_possible_values = true, value_name = "BOOL")]
    pub build_cache_only: bool,
    /// write every entry again, also those that are complete and made of the present files (--no-overwrite)
    #[arg(long, default_value = "false", num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set, hide_possible_values = true, value_name = "BOOL")]
    pub overwrite: bool,
    /// I/N, from 1/N to N/N: fill one of N equal parts, so that N machines fill one cache
    #[arg(long, value_name = "I/N")]
    pub shard: Option<String>,
}

/// Give a group the defaults that stand at its flags: a default is written once.
macro_rules! defaults_from_flags {
    ($($group:ty),+) => {$(
        impl Default for $group {
            fn default() -> Self {
                #[derive(Parser)]
                struct Alone {
                    #[command(flatten)]
                    group: $group,
                }
                Alone::parse_from([COMMAND]).group
            }
        }
    )+};
}
defaults_from_flags!(
    DataOptions,
    AugmentOptions,
    ModelOptions,
    LossOptions,
    OptimizerOptions,
    RuntimeOptions,
    TrackingOptions
);

/// Flags that have a `--no-...` form.
const SWITCHES: [&str; 5] = ["require-cache", "skip-bad", "augment", "build-cache-only", "overwrite"];

/// What a resumed run may not change, because it would no longer be the same run.
const FIXED: [&str; 36] = [
    "height",
    "width",
    "max_samples",
    "val_fraction",
    "augment",
    "brightness_jitter",
    "contrast_jitter",
    "saturation_jitter",
    "hue_jitter",
    "gamma_jitter",
    "lighting_jitter",
    "blur_prob",
    "blur_sigma_max",
    "blur_kernel_size",
    "noise_std_max",
    "jpeg_prob",
    "erase_prob",
    "erase_size_max",
    "flip_prob",
    "vertical_offset_max_px",
    "model",
    "base_channels",
    "depth",
    "loss",
    "nll_beta",
    "initial_weights",
    "batch_size",
    "optimizer",
    "learning_rate",
    "weight_decay",
    "warmup_fraction",
    "clip_norm",
    "ema_decay",
    "seed",
    "build_cache_only",
    "shard",
];

/// Options, and which of them the user typed: a resumed run can tell a wish from a default.
#[derive(Clone, Debug)]
pub struct Explicit {
    pub options: TrainOptions,
    pub typed: BTreeSet<String>,
}

/// Parse a command line without the program's name.
///
/// `--help` and `--version` print and end the process, as does clap itself.
pub fn parse<I: IntoIterator<Item = std::ffi::OsString>>(arguments: I) -> Result<Explicit> {
    let arguments = std::iter::once(COMMAND.into()).chain(arguments.into_iter().map(with_switch_value));
    let matches = match TrainOptions::command().try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(error) if error.use_stderr() => return Err(Error::User(message_of(&error))),
        Err(error) => error.exit(),
    };
    let options = TrainOptions::from_arg_matches(&matches).map_err(|error| Error::User(message_of(&error)))?;
    options.check()?;
    let typed = matches
        .ids()
        .map(|id| id.as_str().to_string())
        .filter(|id| matches.value_source(id) == Some(ValueSource::CommandLine))
        .filter(|id| id.chars().next().is_some_and(char::is_lowercase)) // groups have the names of types
        .collect();
    Ok(Explicit { options, typed })
}

/// Turn `--no-augment` into `--augment=false`.
fn with_switch_value(argument: std::ffi::OsString) -> std::ffi::OsString {
    let Some(name) = argument.to_str().and_then(|text| text.strip_prefix("--no-")) else { return argument };
    if SWITCHES.contains(&name) { format!("--{name}=false").into() } else { argument }
}

fn message_of(error: &clap::Error) -> String {
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_string();
    format!("{first}; --help lists every flag")
}

impl Explicit {
    /// Return the options of a saved run with what was typed put over them.
    ///
    /// Errors where a flag would make it another run.
    pub fn over(&self, saved: &TrainOptions) -> Result<TrainOptions> {
        let conflicts = self.conflicts(saved);
        if !conflicts.is_empty() {
            return Err(Error::User(format!(
                "--resume: a resumed run keeps its {}; leave that out, or start a new run",
                conflicts.join(", ")
            )));
        }
        self.merged(saved)
    }

    /// Return `base` with the values that were typed.
    pub fn merged(&self, base: &TrainOptions) -> Result<TrainOptions> {
        let typed = to_plain(&self.options);
        let mut merged = to_plain(base);
        for (group, values) in &typed {
            for (name, value) in values.as_object().into_iter().flatten() {
                if self.typed.contains(name) {
                    merged[group][name] = value.clone();
                }
            }
        }
        from_plain(&Value::Object(merged))
    }

    fn conflicts(&self, saved: &TrainOptions) -> Vec<String> {
        let (typed, old) = (to_plain(&self.options), to_plain(saved));
        let values = typed.iter().flat_map(|(group, values)| {
            values.as_object().into_iter().flatten().map(move |(name, value)| (group, name, value))
        });
        values
            .filter(|(group, name, value)| {
                self.typed.contains(*name) && FIXED.contains(&name.as_str()) && old[*group][*name] != **value
            })
            .map(|(group, name, value)| format!("{} {value} (the run has {})", flag_of(name), old[group][name]))
            .collect()
    }
}

/// Return groups of plain values, fit for JSON.
pub fn to_plain(options: &TrainOptions) -> serde_json::Map<String, Value> {
    match serde_json::to_value(options) {
        Ok(Value::Object(groups)) => groups,
        other => unreachable!("options are groups of plain values, not {other:?}"),
    }
}

/// Return the options in a JSON value that `to_plain` made; checked again, since files come from anywhere.
pub fn from_plain(plain: &Value) -> Result<TrainOptions> {
    let options: TrainOptions = serde_json::from_value(plain.clone())
        .map_err(|error| Error::User(format!("its options are not as this version writes them ({error})")))?;
    options.check()?;
    Ok(options)
}

/// Return the flag of a field: `val_fraction` -> `--val-fraction`.
fn flag_of(name: &str) -> String {
    format!("--{}", name.replace('_', "-"))
}

impl TrainOptions {
    /// Check every range, and what Rust does not have.
    pub fn check(&self) -> Result<()> {
        self.check_numbers()?;
        if self.augment.blur_kernel_size % 2 == 0 {
            return Err(Error::User(format!(
                "--blur-kernel-size is {}, but has to be odd",
                self.augment.blur_kernel_size
            )));
        }
        if self.augment.jpeg_prob > 0.0 {
            return Err(Error::User("--jpeg-prob: JPEG compression is not in Rust; leave it at 0".into()));
        }
        if self.model.model != "unet" {
            return Err(Error::User(format!(
                "--model {}: only unet is in Rust; foundation-stereo-depth trains the others",
                self.model.model
            )));
        }
        let one_process = |flag: &str| Error::User(format!("{flag}: goes with --build-cache-only alone"));
        if !self.cache.build_cache_only && self.cache.overwrite {
            return Err(one_process("--overwrite"));
        }
        if !self.cache.build_cache_only && self.cache.shard.is_some() {
            return Err(one_process("--shard"));
        }
        self.cache.part().map(|_| ())
    }

    fn check_numbers(&self) -> Result<()> {
        let (data, augment, optimizer) = (&self.data, &self.augment, &self.optimizer);
        let whole = [
            ("height", Some(data.height), 32, 4096),
            ("width", Some(data.width), 32, 4096),
            ("max_samples", data.max_samples, 1, i64::MAX),
            ("blur_kernel_size", Some(augment.blur_kernel_size), 1, 31),
            ("base_channels", Some(self.model.base_channels), 4, 512),
            ("depth", Some(self.model.depth), 1, 7),
            ("epochs", Some(optimizer.epochs), 1, i64::MAX),
            ("batch_size", Some(optimizer.batch_size), 1, i64::MAX),
            ("seed", Some(self.runtime.seed), 0, (1 << 31) - 1),
        ];
        for (name, value, minimum, maximum) in whole {
            let Some(value) = value else { continue };
            if value < minimum || value > maximum {
                return Err(out_of_range(name, value, minimum, (maximum < i64::MAX).then_some(maximum)));
            }
        }
        let infinity = f64::INFINITY;
        let numbers = [
            ("val_fraction", data.val_fraction, 0.0, 0.9),
            ("brightness_jitter", augment.brightness_jitter, 0.0, 1.0),
            ("contrast_jitter", augment.contrast_jitter, 0.0, 1.0),
            ("saturation_jitter", augment.saturation_jitter, 0.0, 1.0),
            ("hue_jitter", augment.hue_jitter, 0.0, 0.5),
            ("gamma_jitter", augment.gamma_jitter, 0.0, 4.0),
            ("lighting_jitter", augment.lighting_jitter, 0.0, 1.0),
            ("blur_prob", augment.blur_prob, 0.0, 1.0),
            ("blur_sigma_max", augment.blur_sigma_max, 0.0, 10.0),
            ("noise_std_max", augment.noise_std_max, 0.0, 1.0),
            ("jpeg_prob", augment.jpeg_prob, 0.0, 1.0),
            ("erase_prob", augment.erase_prob, 0.0, 1.0),
            ("erase_size_max", augment.erase_size_max, 0.0, 1.0),
            ("flip_prob", augment.flip_prob, 0.0, 1.0),
            ("vertical_offset_max_px", augment.vertical_offset_max_px, 0.0, 10.0),
            ("nll_beta", self.loss.nll_beta, 0.0, 1.0),
            ("learning_rate", optimizer.learning_rate, 0.0, infinity),
            ("weight_decay", optimizer.weight_decay, 0.0, infinity),
            ("warmup_fraction", optimizer.warmup_fraction, 0.0, 1.0),
            ("clip_norm", optimizer.clip_norm, 1e-6, infinity),
            ("ema_decay", optimizer.ema_decay, 0.0, 0.99999),
            ("checkpoint_minutes", self.tracking.checkpoint_minutes, 0.0, infinity),
        ];
        for (name, value, minimum, maximum) in numbers {
            // NaN is in no range.
            if !(minimum..=maximum).contains(&value) {
                return Err(out_of_range(name, value, minimum, maximum.is_finite().then_some(maximum)));
            }
        }
        Ok(())
    }
}

fn out_of_range<T: std::fmt::Display>(name: &str, value: T, minimum: T, maximum: Option<T>) -> Error {
    let allowed = match maximum {
        None => format!("at least {minimum}"),
        Some(maximum) => format!("from {minimum} to {maximum}"),
    };
    Error::User(format!("{} is {value}, but has to be {allowed}", flag_of(name)))
}

impl CacheBuildOptions {
    /// Return which part of how many `--shard` names, from 1; None without it.
    pub fn part(&self) -> Result<Option<(usize, usize)>> {
        let Some(text) = &self.shard else { return Ok(None) };
        let digits =
            |part: &str| part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse::<usize>().ok()).flatten();
        match text.split_once('/').map(|(number, parts)| (digits(number), digits(parts))) {
            Some((Some(number), Some(parts))) if (1..=parts).contains(&number) => Ok(Some((number, parts))),
            _ => Err(Error::User(format!("--shard {text}: has to be I/N with I from 1 to N, such as 1/4"))),
        }
    }
}

/// Refuse an empty path: an unset variable, say; the current folder would be taken.
fn parse_path(text: &str) -> std::result::Result<PathBuf, String> {
    if text.trim().is_empty() { Err("an empty path".into()) } else { Ok(PathBuf::from(text)) }
}

fn parse_workers(text: &str) -> std::result::Result<Workers, String> {
    match text {
        "auto" => Ok(Workers::Auto),
        number => number.parse().map(Workers::Fixed).map_err(|_| "has to be auto or a whole number from 0".into()),
    }
}

/// `Workers` in JSON: a number, or "auto".
mod workers_as_json {
    use super::Workers;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use serde_json::Value;

    pub fn serialize<S: Serializer>(workers: &Workers, serializer: S) -> Result<S::Ok, S::Error> {
        match workers {
            Workers::Auto => serializer.serialize_str("auto"),
            Workers::Fixed(count) => serializer.serialize_u64(*count as u64),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Workers, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(text) if text == "auto" => Ok(Workers::Auto),
            Value::Number(number) if number.as_u64().is_some() => {
                Ok(Workers::Fixed(number.as_u64().unwrap_or(0) as usize))
            }
            other => Err(D::Error::custom(format!("{other} is neither auto nor a number of threads"))),
        }
    }
}
