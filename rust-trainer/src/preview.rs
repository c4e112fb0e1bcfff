//! One image that shows how training goes: the pair, the truth, the prediction, its error and its own uncertainty.

use crate::data::batch::StereoBatch;
use crate::data::sample::Image;
use crate::metrics::is_valid;

const SHOWN: usize = 3;
const GAP: usize = 4;
const UNKNOWN: [u8; 3] = [128, 128, 128];
/// Seventeen colours, evenly spaced, of the maps that matplotlib calls turbo and magma; linear between them.
const TURBO: [[u8; 3]; 17] = [
    [48, 18, 59],
    [64, 64, 162],
    [70, 107, 227],
    [66, 148, 255],
    [40, 188, 235],
    [24, 221, 194],
    [50, 242, 152],
    [109, 254, 98],
    [164, 252, 60],
    [205, 236, 52],
    [238, 207, 58],
    [253, 172, 52],
    [251, 126, 33],
    [235, 80, 14],
    [208, 47, 5],
    [169, 22, 1],
    [122, 4, 3],
];
const MAGMA: [[u8; 3]; 17] = [
    [0, 0, 4],
    [10, 8, 34],
    [29, 17, 71],
    [54, 16, 107],
    [81, 18, 124],
    [106, 28, 129],
    [131, 38, 129],
    [156, 46, 127],
    [183, 55, 121],
    [208, 65, 111],
    [231, 82, 99],
    [245, 107, 92],
    [252, 137, 97],
    [254, 167, 114],
    [254, 196, 136],
    [253, 226, 163],
    [252, 253, 191],
];

/// A prediction in main memory, [B, H, W] each.
pub struct PredictedMaps {
    pub disparity_px: Vec<f32>,
    pub log_variance: Vec<f32>,
}

/// Return left, right, truth, prediction, absolute error and standard deviation of the first samples, side by side.
///
/// Truth and prediction share a scale, and so do error and deviation: where the network is honest the two look alike.
pub fn preview(batch: &StereoBatch, predicted: &PredictedMaps) -> Image {
    let rows = SHOWN.min(batch.len());
    let (height, width) = (batch.height, batch.width);
    let mut image = Image { height: rows * (height + GAP) - GAP, width: 6 * (width + GAP) - GAP, pixels: Vec::new() };
    image.pixels = vec![255; image.height * image.width * 3];
    let pixels = height * width;
    for row in 0..rows {
        let at = row * pixels..(row + 1) * pixels;
        let truth_px: Vec<f32> = batch.disparity_px[at.clone()]
            .iter()
            .map(|px| if is_valid(px.to_f32()) { px.to_f32() } else { f32::NAN })
            .collect();
        let disparity_px = &predicted.disparity_px[at.clone()];
        let sigma_px: Vec<f32> = predicted.log_variance[at].iter().map(|value| (0.5 * value).exp()).collect();
        let error_px: Vec<f32> = disparity_px.iter().zip(&truth_px).map(|(a, b)| (a - b).abs()).collect();
        let largest_px = percentile(&truth_px, 0.995).or_else(|| percentile(disparity_px, 0.995)).unwrap_or(1.0);
        let largest_error_px = percentile(&sigma_px, 0.95).unwrap_or(1.0).max(1.0);
        let bytes = 3 * row * pixels..3 * (row + 1) * pixels;
        let panels = [
            batch.left[bytes.clone()].to_vec(),
            batch.right[bytes].to_vec(),
            coloured(&truth_px, largest_px, &TURBO),
            coloured(disparity_px, largest_px, &TURBO),
            coloured(&error_px, largest_error_px, &MAGMA),
            coloured(&sigma_px, largest_error_px, &MAGMA),
        ];
        for (column, panel) in panels.iter().enumerate() {
            for (y, line) in panel.chunks_exact(3 * width).enumerate() {
                let at = ((row * (height + GAP) + y) * image.width + column * (width + GAP)) * 3;
                image.pixels[at..at + 3 * width].copy_from_slice(line);
            }
        }
    }
    image
}

fn coloured(values: &[f32], largest: f32, map: &[[u8; 3]; 17]) -> Vec<u8> {
    values.iter().flat_map(|&value| if value.is_nan() { UNKNOWN } else { colour(value / largest, map) }).collect()
}

fn colour(share: f32, map: &[[u8; 3]; 17]) -> [u8; 3] {
    let at = share.clamp(0.0, 1.0) * 16.0;
    let first = (at as usize).min(15);
    let between = at - first as f32;
    std::array::from_fn(|channel| {
        let (a, b) = (f32::from(map[first][channel]), f32::from(map[first + 1][channel]));
        (a + (b - a) * between).round() as u8
    })
}

/// Return the value below which a share of the known ones lies; None where none is known, or it is no scale.
fn percentile(values: &[f32], share: f64) -> Option<f32> {
    let mut known: Vec<f32> = values.iter().copied().filter(|value| value.is_finite()).collect();
    known.sort_by(f32::total_cmp);
    let at = (share * known.len().saturating_sub(1) as f64) as usize;
    known.get(at).copied().filter(|&value| value > 0.0)
}
