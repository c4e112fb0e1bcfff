//! Group normalisation and ReLU in one operation, forward and backward.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::model::slices::{floats, with_floats};

const EPSILON: f64 = 1e-5;
/// Numbers that are summed side by side, and apart from the next so many: quick, and exact enough in float32.
const LANES: usize = 16;
const STRETCH: usize = 4096;

/// Return relu(group_norm(x) * scale + shift) of x [B, C, H, W].
pub fn group_norm_relu(x: &Tensor, groups: usize, scale: &Tensor, shift: &Tensor) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return composed(x, groups, scale, shift);
    }
    x.contiguous()?.apply_op3(scale, shift, GroupNormRelu { groups })
}

/// The same, composed of Candle's operations: for devices other than the CPU.
pub fn composed(x: &Tensor, groups: usize, scale: &Tensor, shift: &Tensor) -> Result<Tensor> {
    let (batch, channels, _, _) = x.dims4()?;
    let grouped = x.reshape((batch, groups, ()))?;
    let centred = grouped.broadcast_sub(&grouped.mean_keepdim(2)?)?;
    let deviation = (centred.sqr()?.mean_keepdim(2)? + EPSILON)?.sqrt()?;
    let normalised = centred.broadcast_div(&deviation)?.reshape(x.shape())?;
    let of_channels = |values: &Tensor| values.reshape((1, channels, 1, 1));
    normalised.broadcast_mul(&of_channels(scale)?)?.broadcast_add(&of_channels(shift)?)?.relu()
}

struct GroupNormRelu {
    groups: usize,
}

/// The sizes of a normalisation.
#[derive(Clone, Copy)]
struct Geometry {
    channels: usize,
    pixels: usize,
    channels_per_group: usize,
}

impl Geometry {
    fn new(x: &Shape, groups: usize) -> Result<Self> {
        let (_, channels, height, width) = x.dims4()?;
        Ok(Self { channels, pixels: height * width, channels_per_group: channels / groups })
    }

    fn group_size(&self) -> usize {
        self.channels_per_group * self.pixels
    }

    fn groups(&self) -> usize {
        self.channels / self.channels_per_group
    }
}

impl CustomOp3 for GroupNormRelu {
    fn name(&self) -> &'static str {
        "group_norm_relu"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        scale: &CpuStorage,
        scale_layout: &Layout,
        shift: &CpuStorage,
        shift_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let geometry = Geometry::new(x_layout.shape(), self.groups)?;
        let (x, scale, shift) = (floats(x, x_layout)?, floats(scale, scale_layout)?, floats(shift, shift_layout)?);
        let mut y = vec![0.0; x.len()];
        let groups = y.par_chunks_exact_mut(geometry.group_size()).zip(x.par_chunks_exact(geometry.group_size()));
        groups.enumerate().for_each(|(group, (y, x))| {
            let (mean, inverse_deviation) = moments(x);
            let channel = group % geometry.groups() * geometry.channels_per_group;
            let planes = y.chunks_exact_mut(geometry.pixels).zip(x.chunks_exact(geometry.pixels));
            for (i, (y, x)) in planes.enumerate() {
                let factor = scale[channel + i] * inverse_deviation;
                let offset = shift[channel + i] - mean * factor;
                for (y, x) in y.iter_mut().zip(x) {
                    *y = (x * factor + offset).max(0.0);
                }
            }
        });
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        scale: &Tensor,
        _shift: &Tensor,
        y: &Tensor,
        grad_y: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let geometry = Geometry::new(x.shape(), self.groups)?;
        let grad_y = grad_y.contiguous()?;
        let Gradients { of_x, of_scale, of_shift } = with_floats(x, |x| {
            with_floats(y, |y| {
                with_floats(&grad_y, |grad_y| with_floats(scale, |scale| Ok(gradients(&geometry, x, y, grad_y, scale))))
            })
        })?;
        let device = x.device();
        Ok((
            Some(Tensor::from_vec(of_x, x.shape(), device)?),
            Some(Tensor::from_vec(of_scale, geometry.channels, device)?),
            Some(Tensor::from_vec(of_shift, geometry.channels, device)?),
        ))
    }
}

/// Return the mean and one over the standard deviation of a group.
fn moments(x: &[f32]) -> (f32, f32) {
    let mean = sum(x, |value| value) / x.len() as f64;
    let centre = mean as f32;
    let variance =
        sum(x, |value| (value - centre) * (value - centre)) / x.len() as f64 - (mean - f64::from(centre)).powi(2);
    (centre, (1.0 / (variance + EPSILON).sqrt()) as f32)
}

/// Return the sum of a function of each number: in lanes of float32 over stretches, the stretches in float64.
fn sum(x: &[f32], of: impl Fn(f32) -> f32) -> f64 {
    x.chunks(STRETCH)
        .map(|stretch| {
            let mut lanes = [0f32; LANES];
            let (whole, rest) = stretch.as_chunks::<LANES>();
            for values in whole {
                for (lane, &value) in lanes.iter_mut().zip(values) {
                    *lane += of(value);
                }
            }
            lanes.iter().chain(&[rest.iter().map(|&value| of(value)).sum()]).map(|&lane| f64::from(lane)).sum::<f64>()
        })
        .sum()
}

struct Gradients {
    of_x: Vec<f32>,
    of_scale: Vec<f32>,
    of_shift: Vec<f32>,
}

/// With n = (x - mean) / deviation, g = grad_y where y > 0, and h = g * scale:
/// grad_scale = sum g n, grad_shift = sum g, grad_x = (h - mean(h) - n * mean(h n)) / deviation.
fn gradients(geometry: &Geometry, x: &[f32], y: &[f32], grad_y: &[f32], scale: &[f32]) -> Gradients {
    let size = geometry.group_size();
    let mut of_x = vec![0.0; x.len()];
    let groups = of_x
        .par_chunks_exact_mut(size)
        .zip(x.par_chunks_exact(size))
        .zip(y.par_chunks_exact(size))
        .zip(grad_y.par_chunks_exact(size));
    let of_channels: Vec<Vec<(f64, f64)>> = groups
        .enumerate()
        .map(|(group, (((of_x, x), y), grad_y))| {
            let channel = group % geometry.groups() * geometry.channels_per_group;
            group_gradient(geometry, of_x, x, y, grad_y, &scale[channel..][..geometry.channels_per_group])
        })
        .collect();
    let (mut of_scale, mut of_shift) = (vec![0f64; geometry.channels], vec![0f64; geometry.channels]);
    for (i, &(with_n, plain)) in of_channels.iter().flatten().enumerate() {
        of_scale[i % geometry.channels] += with_n;
        of_shift[i % geometry.channels] += plain;
    }
    let narrowed = |sums: Vec<f64>| sums.into_iter().map(|sum| sum as f32).collect();
    Gradients { of_x, of_scale: narrowed(of_scale), of_shift: narrowed(of_shift) }
}

/// Fill the gradient of one group's x, and return (sum of g n, sum of g) of each of its channels.
fn group_gradient(
    geometry: &Geometry,
    of_x: &mut [f32],
    x: &[f32],
    y: &[f32],
    grad_y: &[f32],
    scale: &[f32],
) -> Vec<(f64, f64)> {
    let (mean, inverse_deviation) = moments(x);
    let pixels = geometry.pixels;
    let sums: Vec<(f64, f64)> = (0..scale.len())
        .map(|i| {
            let at = i * pixels..(i + 1) * pixels;
            channel_sums(&x[at.clone()], &y[at.clone()], &grad_y[at], mean, inverse_deviation)
        })
        .collect();
    let weighted = |pick: fn(&(f64, f64)) -> f64| {
        sums.iter().zip(scale).map(|(sums, &scale)| pick(sums) * f64::from(scale)).sum::<f64>()
    };
    let count = x.len() as f64;
    let (mean_h, mean_hn) = ((weighted(|sums| sums.1) / count) as f32, (weighted(|sums| sums.0) / count) as f32);
    // grad_x = a g - b x + c
    let slope = mean_hn * inverse_deviation * inverse_deviation;
    let offset = slope * mean - mean_h * inverse_deviation;
    for (i, &scale) in scale.iter().enumerate() {
        let at = i * pixels..(i + 1) * pixels;
        let factor = scale * inverse_deviation;
        let inputs = x[at.clone()].iter().zip(&y[at.clone()]).zip(&grad_y[at.clone()]);
        for (of_x, ((x, y), grad_y)) in of_x[at].iter_mut().zip(inputs) {
            let g = if *y > 0.0 { *grad_y } else { 0.0 };
            *of_x = factor * g - slope * x + offset;
        }
    }
    sums
}

/// Return (sum of g n, sum of g) of one channel of one image.
fn channel_sums(x: &[f32], y: &[f32], grad_y: &[f32], mean: f32, inverse_deviation: f32) -> (f64, f64) {
    let (mut with_n, mut plain) = (0f64, 0f64);
    for ((x, y), grad_y) in x.chunks(STRETCH).zip(y.chunks(STRETCH)).zip(grad_y.chunks(STRETCH)) {
        let (mut n_lanes, mut lanes) = ([0f32; LANES], [0f32; LANES]);
        let (x, y, grad_y) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>(), grad_y.as_chunks::<LANES>());
        for ((x, y), grad_y) in x.0.iter().zip(y.0).zip(grad_y.0) {
            for lane in 0..LANES {
                let g = if y[lane] > 0.0 { grad_y[lane] } else { 0.0 };
                n_lanes[lane] += g * (x[lane] - mean);
                lanes[lane] += g;
            }
        }
        for (lane, ((x, y), grad_y)) in x.1.iter().zip(y.1).zip(grad_y.1).enumerate() {
            let g = if *y > 0.0 { *grad_y } else { 0.0 };
            n_lanes[lane] += g * (x - mean);
            lanes[lane] += g;
        }
        with_n += n_lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>();
        plain += lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>();
    }
    (with_n * f64::from(inverse_deviation), plain)
}
