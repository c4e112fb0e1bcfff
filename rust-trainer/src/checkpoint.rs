//! Checkpoints: weights as safetensors with the Python program's header, and what resuming needs besides.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::data::batch::ReadCounts;
use crate::errors::{Error, Result};
use crate::files::{DURABLE, write_atomically};
use crate::metrics::DisparityErrors;
use crate::model::unet::{UNetSize, Weights};
use crate::options::{TrainOptions, to_plain};
use crate::uncertainty::Likelihood;

/// The key in the header under which the JSON stands.
const HEADER_KEY: &str = "foundation_stereo_depth";
const KIND: &str = "foundation-stereo-depth checkpoint";
const FORMAT: i64 = 1;
const RESUME_KEY: &str = "foundation_stereo_depth_resume";
const RESUME_FORMAT: i64 = 1;

/// Metrics by name, in the order in which they are reported.
pub type Metrics = Map<String, Value>;

/// How far training has come.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Progress {
    /// The epoch in progress, from 0.
    pub epoch: usize,
    pub step_in_epoch: usize,
    pub step: usize,
    /// Training samples seen in all.
    pub samples: usize,
}

/// What inference needs beside the weights.
pub fn inference_header(
    options: &TrainOptions,
    metrics: &Metrics,
    scale: f64,
    run_id: &str,
    progress: Progress,
) -> Value {
    let plain = to_plain(options);
    json!({
        "kind": KIND,
        "format_version": FORMAT,
        "model": plain["model"],
        "uncertainty": {"distribution": options.loss.loss, "scale": scale},
        "metrics": metrics,
        "run_id": run_id,
        "progress": progress,
        "height": options.data.height,
        "width": options.data.width,
        "augment": plain["augment"],
    })
}

/// Write `path` with the header of `inference_header`, and the header alone beside it as .json.
pub fn save_weights(path: &Path, weights: &Weights, header: &Value) -> Result<()> {
    let text = format!("{header:#}\n");
    write_atomically(&path.with_extension("json"), &[text.as_bytes()], DURABLE)?;
    save_tensors(
        path,
        weights.iter().map(|(name, tensor)| (name.clone(), tensor.clone())),
        HEADER_KEY,
        &header.to_string(),
    )
}

/// Everything that training changes, apart from tensors.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ResumeFacts {
    pub format_version: i64,
    pub run_id: String,
    pub options: Value,
    /// The same for the same samples, wherever they lie.
    pub data: String,
    pub progress: Progress,
    /// Loss and valid pixels of the epoch so far.
    pub sums: [f64; 2],
    pub errors: DisparityErrors,
    #[serde(default)] // older states lack it
    pub likelihood: Likelihood,
    pub counts: ReadCounts,
    pub history: Vec<EpochRecord>,
    /// Of the last step; an epoch may end right after resuming.
    pub learning_rate: f64,
    /// Updates of the moving average.
    pub average_updates: usize,
}

/// What metrics_history.json holds of an epoch.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct EpochRecord {
    /// From 1.
    pub epoch: usize,
    /// When it ended, ms since 1970.
    pub time_ms: u64,
    pub metrics: Metrics,
}

/// A moment of training.
pub struct ResumeState {
    pub facts: ResumeFacts,
    pub weights: Weights,
    pub average: Option<Weights>,
    pub moments: (Weights, Weights),
}

impl ResumeState {
    /// Write it, complete or not at all.
    pub fn save(&self, path: &Path) -> Result<()> {
        let facts = serde_json::to_string(&self.facts).expect("facts are plain values");
        let parts = [
            ("weights", Some(&self.weights)),
            ("average", self.average.as_ref()),
            ("moment1", Some(&self.moments.0)),
            ("moment2", Some(&self.moments.1)),
        ];
        let tensors = parts.into_iter().filter_map(|(part, weights)| Some((part, weights?)));
        let named = tensors.flat_map(|(part, weights)| {
            weights.iter().map(move |(name, tensor)| (format!("{part}/{name}"), tensor.clone()))
        });
        save_tensors(path, named, RESUME_KEY, &facts)
    }

    /// Read one.
    pub fn load(path: &Path) -> Result<Self> {
        let (header, tensors) = load_tensors(path)?;
        let foreign =
            |reason: &str| Error::User(format!("{}: holds no state to resume from ({reason})", path.display()));
        let text = header.get(RESUME_KEY).ok_or_else(|| foreign("it is for inference alone, or of another program"))?;
        let facts: ResumeFacts = serde_json::from_str(text).map_err(|error| foreign(&error.to_string()))?;
        if facts.format_version != RESUME_FORMAT {
            return Err(foreign(&format!("format {}, this program reads {RESUME_FORMAT}", facts.format_version)));
        }
        let part = |part: &str| -> Weights {
            let named =
                tensors.iter().filter_map(|(name, tensor)| Some((name.strip_prefix(part)?.strip_prefix('/')?, tensor)));
            named.map(|(name, tensor)| (name.to_string(), tensor.clone())).collect()
        };
        let average = Some(part("average")).filter(|average| !average.is_empty());
        Ok(Self { facts, weights: part("weights"), average, moments: (part("moment1"), part("moment2")) })
    }

    /// Return the version of the facts that are written.
    pub const fn format() -> i64 {
        RESUME_FORMAT
    }
}

/// A network that was read from a .safetensors file of either program.
pub struct GivenNetwork {
    pub size: UNetSize,
    pub weights: Weights,
    /// What its header says of augmentation; null where it says nothing.
    pub augment: Value,
}

/// Read the U-Net in a .safetensors file, for `--initial-weights`.
pub fn load_given(path: &Path) -> Result<GivenNetwork> {
    let refused = |reason: String| Error::User(format!("--initial-weights {}: {reason}", path.display()));
    if path.as_os_str() == "default" {
        return Err(refused("the network that is installed with the Python program is a guided one, which is not in Rust; name the .safetensors of a U-Net".into()));
    }
    if path.extension().is_none_or(|suffix| suffix != "safetensors") {
        return Err(refused(
            "has to be a .safetensors file; foundation-stereo-depth writes one beside each .pt".into(),
        ));
    }
    let (header, tensors) = load_tensors(path)?;
    let weights: Weights = tensors.into_iter().collect();
    let header: Value = match header.get(HEADER_KEY) {
        Some(text) => {
            serde_json::from_str(text).map_err(|error| refused(format!("its header is no JSON ({error})")))?
        }
        None => guessed_header(&weights).ok_or_else(|| refused("is no network of foundation-stereo-depth".into()))?,
    };
    if header["kind"] != KIND || header["format_version"] != FORMAT {
        return Err(refused(format!(
            "is of kind {}, format {}, not {KIND}, format {FORMAT}",
            header["kind"], header["format_version"]
        )));
    }
    let model = &header["model"];
    if model["model"] != "unet" {
        return Err(refused(format!(
            "holds a network of --model {}; only unet is in Rust",
            model["model"].as_str().unwrap_or("unknown")
        )));
    }
    let number = |name: &str| {
        model[name].as_u64().ok_or_else(|| refused(format!("its header lacks {name}"))).map(|number| number as usize)
    };
    let size = UNetSize { base_channels: number("base_channels")?, depth: number("depth")? };
    if !(4..=512).contains(&size.base_channels) || !(1..=7).contains(&size.depth) {
        return Err(refused(format!("its header asks for {size:?}")));
    }
    check_weights(&weights, size).map_err(refused)?;
    Ok(GivenNetwork { size, weights, augment: header["augment"].clone() })
}

/// Check names, shapes and numbers.
fn check_weights(weights: &Weights, size: UNetSize) -> std::result::Result<(), String> {
    let shapes = size.shapes();
    if let Some(name) = shapes.keys().find(|name| !weights.contains_key(*name)) {
        return Err(format!("the weights do not fit their network: {name} is missing"));
    }
    for (name, tensor) in weights {
        match shapes.get(name) {
            None => return Err(format!("the weights do not fit their network: {name} is unknown")),
            Some(shape) if tensor.dims() != shape.as_slice() => {
                return Err(format!(
                    "the weights do not fit their network: {name} is {:?}, not {shape:?}",
                    tensor.dims()
                ));
            }
            Some(_) => {}
        }
        let largest = tensor.abs().and_then(|tensor| tensor.sum_all()).and_then(|sum| sum.to_scalar::<f32>());
        if !largest.is_ok_and(f32::is_finite) {
            return Err("holds weights that are not finite".into());
        }
    }
    Ok(())
}

/// Return a header made of the shapes of bare weights; None where they are no U-Net's.
fn guessed_header(weights: &Weights) -> Option<Value> {
    let stem = weights.get("stem.convolution.weight")?;
    let depth = (0..8).take_while(|level| weights.contains_key(&format!("down.{level}.0.norm.weight"))).count();
    let model = json!({"model": "unet", "base_channels": stem.dims().first()?, "depth": depth});
    Some(json!({"kind": KIND, "format_version": FORMAT, "model": model}))
}

fn save_tensors(path: &Path, tensors: impl Iterator<Item = (String, Tensor)>, key: &str, header: &str) -> Result<()> {
    let mut named: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for (name, tensor) in tensors {
        let numbers: Vec<f32> = tensor.flatten_all()?.to_vec1()?;
        named.push((name, tensor.dims().to_vec(), numbers.iter().flat_map(|number| number.to_le_bytes()).collect()));
    }
    let views = named.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).expect("as many bytes as the shape asks for");
        (name.clone(), view)
    });
    let metadata = HashMap::from([(key.to_string(), header.to_string())]);
    let encoded = safetensors::serialize(views, Some(metadata)).expect("names and views of ours are valid");
    write_atomically(path, &[&encoded], DURABLE)
}

type Header = HashMap<String, String>;

fn load_tensors(path: &Path) -> Result<(Header, HashMap<String, Tensor>)> {
    // Read whole first: the file may be replaced by its writer at any moment, what is in memory may not.
    let encoded = std::fs::read(path).map_err(|error| Error::io(path, error))?;
    let damaged = |error: &dyn std::fmt::Display| {
        Error::User(format!("{}: is not a whole safetensors file ({error})", path.display()))
    };
    let (_, metadata) = SafeTensors::read_metadata(&encoded).map_err(|error| damaged(&error))?;
    let file = SafeTensors::deserialize(&encoded).map_err(|error| damaged(&error))?;
    let mut tensors = HashMap::new();
    for (name, view) in file.tensors() {
        if view.dtype() != Dtype::F32 {
            return Err(damaged(&format!("{name} is not float32")));
        }
        let numbers: Vec<f32> = view
            .data()
            .chunks_exact(4)
            .map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
            .collect();
        tensors.insert(name, Tensor::from_vec(numbers, view.shape(), &Device::Cpu)?);
    }
    Ok((metadata.metadata().clone().unwrap_or_default(), tensors))
}

/// Return the scale of the newest epoch, or 1.
pub fn scale_of(metrics: &Metrics) -> f64 {
    metrics.get(SIGMA_SCALE).and_then(Value::as_f64).unwrap_or(1.0)
}

/// The factor on the predicted deviation that makes its 68 % interval hold 68 % of the validation pixels.
pub const SIGMA_SCALE: &str = "validation/sigma_scale";
