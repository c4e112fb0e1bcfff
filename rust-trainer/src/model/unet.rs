//! The 6-channel U-Net: model/unet.py in Candle, with the same names of weights.

use std::collections::BTreeMap;

use candle_core::{Device, Result, Tensor, Var};

use crate::data::random::{Key, Range, UNIT};
use crate::model::{convolve, group_norm_relu, upsample_and_join};

/// A standard deviation below 0.01 px or above 100 px says nothing true about a stereo match.
const LARGEST_SIGMA_PX: f64 = 100.0;
/// The smallest disparity, as a share of the width; the largest is all of it.
const SMALLEST_SHARE: f64 = 1e-4;
/// What a network predicts before it has learnt anything.
const FRESH_SHARE: f64 = 0.06;
const FRESH_SIGMA_PX: f64 = 4.0;
/// The largest number of groups of a normalisation.
const GROUPS: usize = 8;

/// The size of a network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UNetSize {
    /// Channels at half resolution; they grow by this much with every level.
    pub base_channels: usize,
    /// Levels below half resolution.
    pub depth: usize,
}

/// Weights by name. Sorted, so that norms and files do not depend on a hash map's order.
pub type Weights = BTreeMap<String, Tensor>;

/// Disparity of the left view and the logarithm of its error's variance, [B, 1, H, W] each.
pub struct StereoPrediction {
    /// px of this size, at least 0.
    pub disparity_px: Tensor,
    /// Natural logarithm of px^2.
    pub log_variance: Tensor,
}

impl UNetSize {
    fn channels(self) -> Vec<usize> {
        (1..=self.depth + 1).map(|level| level * self.base_channels).collect()
    }

    /// Return what height and width are padded to a multiple of.
    pub fn multiple(self) -> usize {
        1 << (self.depth + 1)
    }

    /// Return the names and shapes of all weights.
    pub fn shapes(self) -> BTreeMap<String, Vec<usize>> {
        let channels = self.channels();
        let mut shapes = BTreeMap::new();
        let mut add = |name: String, inputs: usize, outputs: usize, side: usize| {
            shapes.insert(format!("{name}.convolution.weight"), vec![outputs, inputs, side, side]);
            for part in ["weight", "bias"] {
                shapes.insert(format!("{name}.norm.{part}"), vec![outputs]);
            }
        };
        add("stem".into(), 6, channels[0], 5);
        for level in 0..self.depth {
            let (above, below) = (channels[level], channels[level + 1]);
            add(format!("down.{level}.0"), above, below, 3);
            add(format!("down.{level}.1"), below, below, 3);
            let up = self.depth - 1 - level;
            add(format!("up.{up}.narrow"), below, above, 3);
            add(format!("up.{up}.join"), 2 * above, above, 3);
        }
        // Two numbers for each of the four full-resolution pixels under one of ours.
        shapes.insert("head.weight".into(), vec![8, channels[0], 3, 3]);
        shapes.insert("head.bias".into(), vec![8]);
        shapes
    }

    /// Return fresh weights, which follow from the seed alone.
    ///
    /// Convolutions are uniform within 1 / sqrt(inputs * kernel area), as in PyTorch; normalisations change nothing.
    /// The head is normal with deviation 0.01 and alike for the four sub-pixels, or the first epochs would draw a
    /// chequered pattern.
    pub fn fresh_weights(self, seed: i64) -> Result<Weights> {
        let numbers = |name: &str, shape: &[usize]| -> Vec<f32> {
            let count = shape.iter().product();
            match name {
                "head.bias" => vec![0.0; count],
                "head.weight" => {
                    let each = count / 8;
                    let two: Vec<f32> = (0..2 * each).map(|i| 0.01 * normal(seed, name, i)).collect();
                    (0..8).flat_map(|output| two[output / 4 * each..][..each].to_vec()).collect()
                }
                _ if name.ends_with("norm.weight") => vec![1.0; count],
                _ if name.ends_with("norm.bias") => vec![0.0; count],
                _ => {
                    let bound = 1.0 / ((count / shape[0]) as f64).sqrt();
                    let range = Range { low: -bound, high: bound };
                    (0..count).map(|i| Key::new(seed, FRESH_EPOCH, i).uniform::<1>(name, range)[0]).collect()
                }
            }
        };
        let tensor = |(name, shape): (String, Vec<usize>)| {
            let tensor = Tensor::from_vec(numbers(&name, &shape), shape, &Device::Cpu)?;
            Ok((name, tensor))
        };
        self.shapes().into_iter().map(tensor).collect()
    }
}

/// The epoch whose random numbers fresh weights use.
const FRESH_EPOCH: i64 = -2;

/// Box and Muller's transform of two uniform numbers.
fn normal(seed: i64, name: &str, i: usize) -> f32 {
    let [u, v] = Key::new(seed, FRESH_EPOCH, i).uniform(name, UNIT);
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f32::consts::TAU * v).cos()
}

/// The network with the weights that it computes with.
#[derive(Clone, Debug)]
pub struct UNet {
    size: UNetSize,
    weights: Weights,
}

impl UNet {
    /// Return the network with these weights, whose names and shapes have to be those of its size.
    pub fn new(size: UNetSize, weights: Weights) -> Self {
        Self { size, weights }
    }

    /// Return the network that computes with variables, so that its gradients can be taken.
    pub fn of_variables(size: UNetSize, variables: &BTreeMap<String, Var>) -> Self {
        let weights = variables.iter().map(|(name, variable)| (name.clone(), variable.as_tensor().clone())).collect();
        Self { size, weights }
    }

    /// Return the prediction for pairs [B, 6, H, W] (left RGB, right RGB, 0..1) of any size from 32x32 up.
    pub fn forward(&self, pair: &Tensor) -> Result<StereoPrediction> {
        let (_, _, height, width) = pair.dims4()?;
        let x = self.padded(&((pair - 0.5)? * 4.0)?)?; // about unit variance
        let padded_width = x.dim(3)?;
        let mut x = self.layer("stem", &x, 2)?;
        let mut skips = Vec::new();
        for level in 0..self.size.depth {
            let below = self.layer(&format!("down.{level}.1"), &self.layer(&format!("down.{level}.0"), &x, 2)?, 1)?;
            skips.push(std::mem::replace(&mut x, below));
        }
        for (level, skip) in skips.iter().rev().enumerate() {
            let narrow = self.layer(&format!("up.{level}.narrow"), &x, 1)?;
            x = self.layer(&format!("up.{level}.join"), &upsample_and_join(&narrow, skip)?, 1)?;
        }
        let bias = self.weights["head.bias"].reshape((1, 8, 1, 1))?;
        let raw = convolve(&x, &self.weights["head.weight"], 1)?.broadcast_add(&bias)?;
        let raw = shuffled(&raw)?.narrow(2, 0, height)?.narrow(3, 0, width)?;
        // In logarithms an error of 10 % weighs the same near and far, and no disparity is negative.
        let log_share = ((raw.narrow(1, 0, 1)?.contiguous()? * 2.0)? + FRESH_SHARE.ln())?;
        let log_share = clamp(&log_share, SMALLEST_SHARE.ln(), 0.0)?;
        let log_variance = ((raw.narrow(1, 1, 1)?.contiguous()? * 8.0)? + 2.0 * FRESH_SIGMA_PX.ln())?;
        let bound = 2.0 * LARGEST_SIGMA_PX.ln();
        Ok(StereoPrediction {
            disparity_px: (log_share.exp()? * padded_width as f64)?,
            log_variance: clamp(&log_variance, -bound, bound)?,
        })
    }

    /// Return x padded at the right and below by replication.
    fn padded(&self, x: &Tensor) -> Result<Tensor> {
        let (_, _, height, width) = x.dims4()?;
        let missing = |size: usize| size.next_multiple_of(self.size.multiple()) - size;
        let replicate = |x: Tensor, dimension: usize, count: usize| {
            if count == 0 { Ok(x) } else { x.pad_with_same(dimension, 0, count) }
        };
        replicate(replicate(x.clone(), 2, missing(height))?, 3, missing(width))
    }

    /// Convolution, group normalisation, ReLU.
    fn layer(&self, name: &str, x: &Tensor, stride: usize) -> Result<Tensor> {
        let weight = |part: &str| &self.weights[&format!("{name}.{part}")];
        let x = convolve(x, weight("convolution.weight"), stride)?;
        let channels = x.dim(1)?;
        group_norm_relu(&x, greatest_common_divisor(channels, GROUPS), weight("norm.weight"), weight("norm.bias"))
    }
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// Return [B, 2 * 4, h, w] as [B, 2, 2 h, 2 w]: PyTorch's pixel_shuffle by 2.
fn shuffled(raw: &Tensor) -> Result<Tensor> {
    let (batch, _, height, width) = raw.dims4()?;
    let split = raw.reshape(vec![batch, 2, 2, 2, height, width])?;
    split.permute(vec![0, 1, 4, 2, 5, 3])?.reshape((batch, 2, 2 * height, 2 * width))
}

/// Return x between bounds. Its gradient is 1 within them, bounds included, as PyTorch's is; Candle's is 1/2 at a bound.
fn clamp(x: &Tensor, low: f64, high: f64) -> Result<Tensor> {
    let inside = (x.ge(low as f32)? * x.le(high as f32)?)?;
    inside.where_cond(x, &x.detach().clamp(low as f32, high as f32)?)
}
