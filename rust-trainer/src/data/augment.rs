//! Asymmetric augmentation: two cheap webcams never agree on colour, focus, noise or height. data/augment/pipeline.py.
//!
//! Each view of each sample draws for itself, from the sample's key; the numbers are those of the Python program. JPEG
//! compression is not in Rust.

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use crate::data::batch::StereoBatch;
use crate::data::kernels::{self, Field, Planes};
use crate::data::random::{Key, Range, UNIT, standard_normal};
use crate::options::AugmentOptions;

/// Numbers beyond the first image's own; more would not stay in a processor's cache.
const NOISE_BANK: usize = 1 << 19;
const NOISE_SEED: u32 = 0;
const ERASED_PATCHES: usize = 2;
/// ITU-R BT.601, section 2.5.1: the weights of R, G and B in luminance.
const LUMA: [f32; 3] = [0.299, 0.587, 0.114];

/// Return the batch as a network takes it, nothing changed: [B, 6, H, W], left RGB, right RGB, 0..1.
pub fn as_pair(batch: &StereoBatch, device: &Device) -> Result<Tensor> {
    pairs(batch, device, |row, pair| {
        for (view, planes) in views(batch, row).into_iter().zip(pair.chunks_exact_mut(pair.len() / 2)) {
            kernels::separate(view, planes);
        }
    })
}

/// Return the true disparity [B, 1, H, W], px, float32.
pub fn true_disparity(batch: &StereoBatch, device: &Device) -> Result<Tensor> {
    let disparity_px: Vec<f32> = batch.disparity_px.iter().map(|px| px.to_f32()).collect();
    Tensor::from_vec(disparity_px, (batch.len(), 1, batch.height, batch.width), device)
}

fn pairs(batch: &StereoBatch, device: &Device, fill: impl Fn(usize, &mut [f32]) + Sync) -> Result<Tensor> {
    let size = 6 * batch.height * batch.width;
    let mut pairs = vec![0f32; batch.len() * size];
    pairs.par_chunks_exact_mut(size).enumerate().for_each(|(row, pair)| fill(row, pair));
    Tensor::from_vec(pairs, (batch.len(), 6, batch.height, batch.width), device)
}

fn views(batch: &StereoBatch, row: usize) -> [&[u8]; 2] {
    let bytes = 3 * batch.height * batch.width;
    [&batch.left[row * bytes..][..bytes], &batch.right[row * bytes..][..bytes]]
}

/// Changes pairs of one size.
pub struct Augmentation {
    options: AugmentOptions,
    noise: Vec<f32>,
}

impl Augmentation {
    /// Prepare for images of a size.
    pub fn new(options: &AugmentOptions, height: usize, width: usize) -> Self {
        // The same in every process; drawing it again for each pixel would cost ten times more.
        let wanted = options.augment && options.noise_std_max > 0.0;
        let noise = if wanted { standard_normal(NOISE_BANK + 3 * height * width, NOISE_SEED) } else { Vec::new() };
        Self { options: options.clone(), noise }
    }

    /// Turn some samples upside down, both views and the disparity; rows stay rows.
    pub fn flip(&self, batch: &mut StereoBatch, keys: &[Key]) {
        if !self.options.augment || self.options.flip_prob <= 0.0 {
            return;
        }
        let (pixels, width) = (batch.height * batch.width, batch.width);
        for (row, key) in keys.iter().enumerate() {
            if f64::from(key.uniform::<1>("flip", UNIT)[0]) < self.options.flip_prob {
                for view in [&mut batch.left, &mut batch.right] {
                    reverse_rows(&mut view[3 * row * pixels..][..3 * pixels], 3 * width);
                }
                reverse_rows(&mut batch.disparity_px[row * pixels..][..pixels], width);
            }
        }
    }

    /// Return the batch as a network takes it, each view changed on its own; the disparity stays true.
    ///
    /// Only the right view moves (vertically, by less than a pixel or so): the truth belongs to the left one.
    pub fn pair(&self, batch: &StereoBatch, keys: &[Key], device: &Device) -> Result<Tensor> {
        if !self.options.augment {
            return as_pair(batch, device);
        }
        pairs(batch, device, |row, pair| {
            let (left, right) = pair.split_at_mut(pair.len() / 2);
            let changes = Changes::draw(keys[row], &self.options);
            let [left_view, right_view] = views(batch, row);
            let size = (batch.height, batch.width);
            self.change(left_view, &mut Planes::new(left, size), &changes, 0);
            self.change(right_view, &mut Planes::new(right, size), &changes, 1);
        })
    }

    fn change(&self, view: &[u8], planes: &mut Planes, changes: &Changes, which: usize) {
        let options = &self.options;
        let of_view = &changes.views[which];
        kernels::recolour(view, of_view.exponent, &of_view.colours, of_view.pivot, &LUMA, planes);
        let is_right = which == 1;
        if is_right && options.vertical_offset_max_px > 0.0 {
            let offset = Field { rows: 3, columns: 3, values: &changes.offset_px, reaches_corners: true };
            kernels::move_vertically(planes, &offset, options.vertical_offset_max_px);
        }
        if options.lighting_jitter > 0.0 {
            kernels::light(planes, &Field { rows: 3, columns: 4, values: &of_view.lights, reaches_corners: false });
        }
        if of_view.blurred && options.blur_prob > 0.0 && options.blur_sigma_max > 0.0 {
            kernels::blur(planes, &blur_weights(of_view.blur_sigma, options.blur_kernel_size as usize));
        }
        if options.noise_std_max > 0.0 {
            kernels::add_noise(planes, &self.noise[of_view.noise_start..], of_view.noise_std);
        }
        planes.clamp();
        if is_right && changes.erased && options.erase_prob > 0.0 && options.erase_size_max > 0.0 {
            kernels::replace_patches(planes, &changes.patches, changes.foreign);
        }
    }
}

fn reverse_rows<T: Copy>(rows: &mut [T], width: usize) {
    let height = rows.len() / width;
    for y in 0..height / 2 {
        let (above, below) = rows.split_at_mut((height - 1 - y) * width);
        above[y * width..][..width].swap_with_slice(&mut below[..width]);
    }
}

/// What is to happen to one sample.
struct Changes {
    views: [ViewChanges; 2],
    /// A few vertical offsets over the right view, px.
    offset_px: [f32; 9],
    erased: bool,
    /// Whether patches are replaced by other content or by the mean colour.
    foreign: bool,
    patches: [Patch; ERASED_PATCHES],
}

/// Centre (y, x), share of height and of width, and half the size, share of the width alone.
#[derive(Clone, Copy)]
pub struct Patch {
    pub centre: [f32; 2],
    pub half: [f32; 2],
}

/// What is to happen to one view.
struct ViewChanges {
    /// Of brightness (gamma).
    exponent: f32,
    colours: [[f32; 3]; 3],
    /// The share of the mean luminance that is added to each channel.
    pivot: f32,
    /// A few factors over the image.
    lights: [f32; 12],
    blurred: bool,
    blur_sigma: f32,
    /// Which stretch of the noise bank is added, times what.
    noise_start: usize,
    noise_std: f32,
}

impl Changes {
    fn draw(key: Key, options: &AugmentOptions) -> Self {
        let gamma = options.gamma_jitter.ln_1p();
        let turn = std::f64::consts::TAU * options.hue_jitter;
        let gammas: [f32; 2] = key.uniform("gamma", about(0.0, gamma));
        let brightness: [f32; 2] = key.uniform("brightness", about(1.0, options.brightness_jitter));
        let contrast: [f32; 2] = key.uniform("contrast", about(1.0, options.contrast_jitter));
        let saturation: [f32; 2] = key.uniform("saturation", about(1.0, options.saturation_jitter));
        let angle: [f32; 2] = key.uniform("hue", about(0.0, turn));
        let lights: [f32; 24] = key.uniform("lighting", about(1.0, options.lighting_jitter));
        // A sigma of 0 would divide by zero; at 0.1 px the neighbours' weight is already below 1e-20.
        let sigma: [f32; 2] = key.uniform("blur sigma", Range { low: 0.1, high: options.blur_sigma_max.max(0.1) });
        let start: [f32; 2] = key.uniform("noise", UNIT);
        let blur: [f32; 2] = key.uniform("blur", UNIT);
        // Few rooms are dark: most views have little noise, some have much.
        let level: [f32; 2] = key.uniform("noise level", UNIT);
        let of_each: [f32; 2] = key.uniform("noise of each", Range { low: 0.5, high: 1.0 });
        let views = [0, 1].map(|view| ViewChanges {
            exponent: gammas[view].exp(),
            colours: colour_matrix(contrast[view] * brightness[view], saturation[view], angle[view]),
            pivot: (1.0 - contrast[view]) * brightness[view],
            lights: std::array::from_fn(|i| lights[12 * view + i]),
            blurred: f64::from(blur[view]) < options.blur_prob,
            blur_sigma: sigma[view],
            noise_start: (start[view] * (NOISE_BANK + 1) as f32) as usize,
            noise_std: options.noise_std_max as f32 * level[view].powi(3) * of_each[view],
        });
        let [reach] = key.uniform("vertical reach", Range { low: 0.0, high: options.vertical_offset_max_px });
        let field: [f32; 9] = key.uniform("vertical field", about(0.0, 1.0));
        let is_below = |purpose: &str, probability: f64| f64::from(key.uniform::<1>(purpose, UNIT)[0]) < probability;
        let centres: [f32; 2 * ERASED_PATCHES] = key.uniform("erase centre", UNIT);
        let largest = options.erase_size_max;
        let halves: [f32; 2 * ERASED_PATCHES] =
            key.uniform("erase size", Range { low: 0.05 * largest, high: 0.5 * largest });
        Self {
            views,
            offset_px: field.map(|value| value * reach),
            erased: is_below("erase", options.erase_prob),
            foreign: is_below("erase foreign", 0.5),
            patches: std::array::from_fn(|i| Patch {
                centre: [centres[2 * i], centres[2 * i + 1]],
                half: [halves[2 * i], halves[2 * i + 1]],
            }),
        }
    }
}

fn about(centre: f64, jitter: f64) -> Range {
    Range { low: centre - jitter, high: centre + jitter }
}

/// Return saturation, then a rotation of RGB about the grey axis (Rodrigues' formula), times a factor, as one matrix.
fn colour_matrix(factor: f32, saturation: f32, angle: f32) -> [[f32; 3]; 3] {
    let grey = 1.0 / 3.0;
    let across = 1.0 / 3f32.sqrt();
    let quarter_turn = [[0.0, -across, across], [across, 0.0, -across], [-across, across, 0.0]];
    let one = |i: usize, j: usize| if i == j { 1.0 } else { 0.0 };
    let turn = |i: usize, j: usize| angle.cos() * (one(i, j) - grey) + grey + angle.sin() * quarter_turn[i][j];
    let saturate = |i: usize, j: usize| saturation * one(i, j) + (1.0 - saturation) * LUMA[j];
    std::array::from_fn(|i| std::array::from_fn(|j| factor * (0..3).map(|k| turn(i, k) * saturate(k, j)).sum::<f32>()))
}

fn blur_weights(sigma: f32, size: usize) -> Vec<f32> {
    let radius = (size / 2) as f32;
    let weights: Vec<f32> = (0..size).map(|i| (-0.5 * ((i as f32 - radius) / sigma).powi(2)).exp()).collect();
    let sum: f32 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}
