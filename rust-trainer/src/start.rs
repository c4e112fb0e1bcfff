//! What a run begins with: its options, its device, and the weights of its first step. training/setup.py.

use std::path::{Path, PathBuf};

use candle_core::Device;
use serde_json::{Value, json};

use crate::checkpoint::{GivenNetwork, ResumeState, load_given};
use crate::data::loader::named_dataset_root;
use crate::errors::{Error, Result};
use crate::model::unet::{UNetSize, Weights};
use crate::options::{DeviceChoice, Explicit, TrainOptions, from_plain, to_plain};
use crate::record::{CHECKPOINTS, LAST_RESUME};

/// What a run begins with.
pub struct Start {
    pub options: TrainOptions,
    /// A moment of an earlier run to resume from, and that run's folder.
    pub resumed: Option<(ResumeState, PathBuf)>,
    /// The network of --initial-weights.
    pub given: Option<GivenNetwork>,
}

/// Return the options that flags and the environment make, and what `--resume` or `--initial-weights` name.
///
/// A run that begins with given weights takes over their network and their augmentation, unless flags name others. A
/// resumed run keeps its options; flags that do not change what it computes may be given again, and so may --epochs,
/// which stretches the schedule.
pub fn resolve(explicit: &Explicit) -> Result<Start> {
    if let Some(resume) = &explicit.options.tracking.resume {
        let path = resume_path(resume, &explicit.options.tracking.output_dir)?;
        let state = ResumeState::load(&path)?;
        let saved =
            from_plain(&state.facts.options).map_err(|error| Error::User(format!("--resume {resume}: {error}")))?;
        let folder = path.parent().and_then(Path::parent).unwrap_or(Path::new(".")).to_path_buf();
        return Ok(Start { options: explicit.over(&saved)?, resumed: Some((state, folder)), given: None });
    }
    let mut base = TrainOptions::default();
    // A run resumes with the data that it began with, whatever the environment says by then.
    base.data.dataset_root = named_dataset_root(explicit.options.data.dataset_root.as_deref());
    let given = explicit.options.optimizer.initial_weights.as_deref().map(load_given).transpose()?;
    if let Some(given) = &given {
        base = take_over(base, given)?;
    }
    let options = explicit.merged(&base)?;
    if let Some(given) = &given {
        check_size(given, &options)?;
    }
    Ok(Start { options, resumed: None, given })
}

/// Return where the state of a run lies: a file, a folder, or a run id below the folder of runs.
fn resume_path(resume: &str, output_dir: &Path) -> Result<PathBuf> {
    let named = Path::new(resume);
    let mut places = vec![output_dir.join(resume).join(CHECKPOINTS).join(LAST_RESUME)];
    if named.is_dir() {
        places = vec![named.join(CHECKPOINTS).join(LAST_RESUME), named.join(LAST_RESUME)];
    } else if named.is_file() {
        // last.safetensors holds what to ship; what resuming needs lies beside it.
        places = vec![named.with_file_name(LAST_RESUME), named.to_path_buf()];
    }
    places.iter().find(|path| path.is_file()).cloned().ok_or_else(|| {
        Error::User(format!(
            "--resume {resume}: neither a run's folder nor the id of one in {}; {} is what a run is resumed from",
            output_dir.display(),
            places[0].display()
        ))
    })
}

/// Return options with the network and the augmentation of given weights.
fn take_over(mut base: TrainOptions, given: &GivenNetwork) -> Result<TrainOptions> {
    base.model.base_channels = given.size.base_channels as i64;
    base.model.depth = given.size.depth as i64;
    let augment = match &given.augment {
        Value::Null => return Ok(base),
        Value::Bool(augment) => json!({"augment": augment}),
        other => other.clone(),
    };
    let mut plain = to_plain(&base);
    plain["augment"] = augment;
    if plain["augment"]["jpeg_prob"].as_f64().is_some_and(|probability| probability > 0.0) {
        plain["augment"]["jpeg_prob"] = json!(0.0);
        eprintln!(
            "--initial-weights: learnt from JPEG-compressed pairs as well, which is not in Rust; --jpeg-prob is 0"
        );
    }
    from_plain(&Value::Object(plain)).map_err(|error| Error::User(format!("--initial-weights: {error}")))
}

fn check_size(given: &GivenNetwork, options: &TrainOptions) -> Result<()> {
    let asked = size_of(options);
    if given.size == asked {
        return Ok(());
    }
    let named = |size: UNetSize| format!("--base-channels {} --depth {}", size.base_channels, size.depth);
    Err(Error::User(format!(
        "--initial-weights: holds a network of {}, and the flags ask for {}",
        named(given.size),
        named(asked)
    )))
}

/// Return the size of the network that the options ask for.
pub fn size_of(options: &TrainOptions) -> UNetSize {
    UNetSize { base_channels: options.model.base_channels as usize, depth: options.model.depth as usize }
}

/// Return the weights of the first step: fresh, or those of --initial-weights.
pub fn first_weights(start: &Start) -> Result<Weights> {
    match &start.given {
        Some(given) => Ok(given.weights.clone()),
        None => Ok(size_of(&start.options).fresh_weights(start.options.runtime.seed)?),
    }
}

/// Return the device that --device names, or the fastest that this program was built for.
pub fn pick_device(choice: DeviceChoice) -> Result<Device> {
    let refused = |device: &str, error: candle_core::Error| {
        let reason = error.to_string();
        let reason = reason.lines().next().unwrap_or_default().to_string();
        Error::User(format!(
            "--device {device}: cannot be used ({reason}); build with --features {device} on a machine that has one"
        ))
    };
    match choice {
        DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Cuda => Device::new_cuda(0).map_err(|error| refused("cuda", error)),
        DeviceChoice::Metal => Device::new_metal(0).map_err(|error| refused("metal", error)),
        DeviceChoice::Auto if cfg!(feature = "cuda") => Ok(Device::new_cuda(0).unwrap_or(Device::Cpu)),
        DeviceChoice::Auto if cfg!(feature = "metal") => Ok(Device::new_metal(0).unwrap_or(Device::Cpu)),
        DeviceChoice::Auto => Ok(Device::Cpu),
    }
}
