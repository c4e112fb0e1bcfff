//! One stereo pair with its disparity, and its resizing.

use half::f16;

/// RGB, eight bits, row by row.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    pub height: usize,
    pub width: usize,
    pub pixels: Vec<u8>,
}

/// Two rectified views of one size and the left view's disparity in px of that size; NaN is unknown.
///
/// Disparity is float16, as in the cache: whether an epoch meets a hit or a miss must not show in the losses.
#[derive(Clone, Debug)]
pub struct StereoSample {
    pub left: Vec<u8>,
    pub right: Vec<u8>,
    pub disparity_px: Vec<f16>,
}

/// Sizes in bytes and times of the last change in ns of the left image, the right one, and the disparity map.
pub type SourceStamp = [[i64; 2]; 3];

/// Return for each of `target` cells the index of the source pixel that holds the cell's centre.
///
/// Cell i covers source coordinates [i, i + 1) * source / target; its centre lies in pixel floor((i + 1/2) * source /
/// target). In whole numbers there is no rounding to get wrong.
pub fn nearest_indices(source: usize, target: usize) -> Vec<usize> {
    (0..target).map(|i| (2 * i + 1) * source / (2 * target)).collect()
}

/// Return the image at another size: area averaging where an axis shrinks, linear interpolation where it grows.
pub fn resize_image(image: Image, height: usize, width: usize) -> Image {
    let (smaller_height, smaller_width) = (height.min(image.height), width.min(image.width));
    let shrunk = shrink(image, smaller_height, smaller_width);
    grow(shrunk, height, width)
}

fn shrink(image: Image, height: usize, width: usize) -> Image {
    if (image.height, image.width) == (height, width) {
        return image;
    }
    let (down, across) = (image.height / height, image.width / width);
    if down * height == image.height && across * width == image.width {
        average_boxes(&image, down, across)
    } else {
        average_areas(&image, height, width)
    }
}

/// Return the mean of each box of `down` x `across` pixels, halves rounded to the even number.
fn average_boxes(image: &Image, down: usize, across: usize) -> Image {
    let (height, width) = (image.height / down, image.width / across);
    let row_bytes = 3 * image.width;
    let mut pixels = Vec::with_capacity(height * width * 3);
    let mut columns = vec![0u32; row_bytes];
    // Halving both sides rounds halves up, as OpenCV does there and nowhere else.
    let halves_up = (down, across) == (2, 2);
    let scale = 1.0 / (down * across) as f32;
    for band in image.pixels.chunks_exact(row_bytes * down) {
        columns.fill(0);
        for row in band.chunks_exact(row_bytes) {
            for (sum, &value) in columns.iter_mut().zip(row) {
                *sum += u32::from(value);
            }
        }
        for span in columns.chunks_exact(3 * across) {
            for channel in 0..3 {
                let sum: u32 = span[channel..].iter().step_by(3).sum();
                let mean = if halves_up { (sum + 2) >> 2 } else { (sum as f32 * scale).round_ties_even() as u32 };
                pixels.push(mean as u8);
            }
        }
    }
    Image { height, width, pixels }
}

/// One source pixel and the share that it has of a target pixel.
struct Share {
    index: usize,
    weight: f32,
}

/// Return for each target cell the pixels that it covers, weighted by how much of each.
fn covered(source: usize, target: usize) -> Vec<Vec<Share>> {
    let scale = source as f64 / target as f64;
    (0..target)
        .map(|i| {
            let (begin, end) = (i as f64 * scale, ((i + 1) as f64 * scale).min(source as f64));
            let (first, last) = (begin.floor() as usize, (end.ceil() as usize).min(source));
            (first..last)
                .map(|index| (index, (end.min((index + 1) as f64) - begin.max(index as f64)) / (end - begin)))
                .filter(|&(_, weight)| weight > 1e-3 / scale)
                .map(|(index, weight)| Share { index, weight: weight as f32 })
                .collect()
        })
        .collect()
}

fn average_areas(image: &Image, height: usize, width: usize) -> Image {
    let (rows, columns) = (covered(image.height, height), covered(image.width, width));
    let mut pixels = Vec::with_capacity(height * width * 3);
    for row in &rows {
        let mut sums = vec![0f32; width * 3];
        for Share { index, weight } in row {
            let line = &image.pixels[index * image.width * 3..][..image.width * 3];
            for (sum, shares) in sums.chunks_exact_mut(3).zip(&columns) {
                for share in shares {
                    let pixel = &line[3 * share.index..][..3];
                    for channel in 0..3 {
                        sum[channel] += f32::from(pixel[channel]) * share.weight * weight;
                    }
                }
            }
        }
        pixels.extend(sums.iter().map(|sum| sum.round_ties_even() as u8));
    }
    Image { height, width, pixels }
}

/// Return for each target cell the two pixels between whose centres its centre lies, and the second one's weight.
fn neighbours(source: usize, target: usize) -> Vec<(usize, usize, f32)> {
    let scale = source as f32 / target as f32;
    (0..target)
        .map(|i| {
            let at = ((i as f32 + 0.5) * scale - 0.5).clamp(0.0, (source - 1) as f32);
            let first = at as usize;
            (first, (first + 1).min(source - 1), at - first as f32)
        })
        .collect()
}

fn grow(image: Image, height: usize, width: usize) -> Image {
    if (image.height, image.width) == (height, width) {
        return image;
    }
    let columns = neighbours(image.width, width);
    let mut pixels = Vec::with_capacity(height * width * 3);
    for (above, below, down) in neighbours(image.height, height) {
        let line = |y: usize| &image.pixels[y * image.width * 3..][..image.width * 3];
        let (above, below) = (line(above), line(below));
        for &(left, right, across) in &columns {
            for channel in 0..3 {
                let between = |line: &[u8]| {
                    let (a, b) = (f32::from(line[3 * left + channel]), f32::from(line[3 * right + channel]));
                    a + (b - a) * across
                };
                let (a, b) = (between(above), between(below));
                pixels.push((a + (b - a) * down).round_ties_even() as u8);
            }
        }
    }
    Image { height, width, pixels }
}
