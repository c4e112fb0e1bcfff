//! The loops of augmentation over the pixels of one image. data/augment/kernels.py; the numbers come from augment.rs.

use crate::data::augment::Patch;

/// The three colour planes of an image, one after the other, 0..1.
pub struct Planes<'a> {
    values: &'a mut [f32],
    height: usize,
    width: usize,
}

impl<'a> Planes<'a> {
    /// Take memory of three planes of (height, width).
    pub fn new(values: &'a mut [f32], (height, width): (usize, usize)) -> Self {
        assert_eq!(values.len(), 3 * height * width);
        Self { values, height, width }
    }

    fn planes(&mut self) -> impl Iterator<Item = &mut [f32]> {
        self.values.chunks_exact_mut(self.height * self.width)
    }

    /// Limit all values to 0..1.
    pub fn clamp(&mut self) {
        for value in self.values.iter_mut() {
            *value = value.clamp(0.0, 1.0);
        }
    }
}

/// Write bytes R, G, B, R, G, B, ... as three planes, 0..1.
pub fn separate(image: &[u8], planes: &mut [f32]) {
    let pixels = image.len() / 3;
    for (channel, plane) in planes.chunks_exact_mut(pixels).enumerate() {
        for (value, pixel) in plane.iter_mut().zip(image.chunks_exact(3)) {
            *value = f32::from(pixel[channel]) / 255.0;
        }
    }
}

/// Write matrix * v + pivot * m, where v is the image in 0..1 to the power of `exponent`, and m its mean luminance to
/// the same power.
pub fn recolour(image: &[u8], exponent: f32, matrix: &[[f32; 3]; 3], pivot: f32, luma: &[f32; 3], into: &mut Planes) {
    let pixels = image.len() / 3;
    let mut sums = [0u64; 3];
    for pixel in image.chunks_exact(3) {
        for (sum, &value) in sums.iter_mut().zip(pixel) {
            *sum += u64::from(value);
        }
    }
    let luminance: f64 = sums.iter().zip(luma).map(|(&sum, &weight)| sum as f64 * f64::from(weight)).sum::<f64>()
        / (255.0 * pixels as f64);
    let offset = (f64::from(pivot) * luminance.powf(f64::from(exponent))) as f32;
    // A byte has but 256 levels: their powers are looked up.
    let levels: [f32; 256] = std::array::from_fn(|level| (level as f32 / 255.0).powf(exponent));
    let (red, rest) = into.values.split_at_mut(pixels);
    let (green, blue) = rest.split_at_mut(pixels);
    for (i, pixel) in image.chunks_exact(3).enumerate() {
        let v = [levels[usize::from(pixel[0])], levels[usize::from(pixel[1])], levels[usize::from(pixel[2])]];
        let row = |row: &[f32; 3]| row[0] * v[0] + row[1] * v[1] + row[2] * v[2] + offset;
        (red[i], green[i], blue[i]) = (row(&matrix[0]), row(&matrix[1]), row(&matrix[2]));
    }
}

/// A few values over an image, between which it is bilinear: the outer ones in the corners, or inside.
pub struct Field<'a> {
    pub rows: usize,
    pub columns: usize,
    pub values: &'a [f32],
    pub reaches_corners: bool,
}

impl Field<'_> {
    /// Return the field at every pixel.
    fn over(&self, height: usize, width: usize) -> Vec<f32> {
        let across = between(self.columns, width, self.reaches_corners);
        let mut full = Vec::with_capacity(height * width);
        for (above, below, down) in between(self.rows, height, self.reaches_corners) {
            let line: Vec<f32> = (0..self.columns)
                .map(|column| {
                    let value = |row: usize| self.values[row * self.columns + column];
                    value(above) * (1.0 - down) + value(below) * down
                })
                .collect();
            full.extend(across.iter().map(|&(left, right, share)| line[left] * (1.0 - share) + line[right] * share));
        }
        full
    }
}

/// Return for each of many places the two of a few values that it lies between, and the second one's share.
fn between(few: usize, many: usize, reaches_corners: bool) -> Vec<(usize, usize, f32)> {
    let place = |i: usize| {
        if reaches_corners {
            i as f32 * ((few - 1) as f32 / (many - 1).max(1) as f32)
        } else {
            ((i as f32 + 0.5) * (few as f32 / many as f32) - 0.5).max(0.0)
        }
    };
    (0..many)
        .map(|i| {
            let at = place(i);
            let first = (at as usize).min(few - 1);
            (first, (first + 1).min(few - 1), (at - first as f32).min(1.0))
        })
        .collect()
}

/// Multiply every plane by a field.
pub fn light(image: &mut Planes, lights: &Field) {
    let factors = lights.over(image.height, image.width);
    for plane in image.planes() {
        for (value, factor) in plane.iter_mut().zip(&factors) {
            *value *= factor;
        }
    }
}

/// Move the content up or down by a smooth field of at most `largest_px`; linear between rows.
///
/// A value at row y + offset is the one at y plus so much of each step between rows that lies on the way.
pub fn move_vertically(image: &mut Planes, offset_px: &Field, largest_px: f64) {
    let (height, width) = (image.height, image.width);
    let field_px = offset_px.over(height, width);
    let reach = (largest_px.ceil() as usize).min(height - 1);
    let mut original = vec![0.0; height * width];
    for plane in image.planes() {
        original.copy_from_slice(plane);
        let step = |row: usize, x: usize| original[(row + 1) * width + x] - original[row * width + x];
        for k in 0..reach {
            let part = k as f32;
            for y in 0..height - 1 - k {
                for x in 0..width {
                    plane[y * width + x] += step(y + k, x) * (field_px[y * width + x].clamp(part, part + 1.0) - part);
                }
            }
            for y in k + 1..height {
                for x in 0..width {
                    plane[y * width + x] +=
                        step(y - k - 1, x) * (field_px[y * width + x].clamp(-part - 1.0, -part) + part);
                }
            }
        }
    }
}

/// Blur by one column and one row of weights; borders are mirrored about the outermost pixel.
pub fn blur(image: &mut Planes, weights: &[f32]) {
    let (height, width, radius) = (image.height, image.width, weights.len() / 2);
    let mut rows = vec![0.0; height * width];
    let mut padded = vec![0.0; width + 2 * radius];
    for plane in image.planes() {
        for (line, into) in plane.chunks_exact(width).zip(rows.chunks_exact_mut(width)) {
            for (i, value) in padded.iter_mut().enumerate() {
                *value = line[mirrored(i as isize - radius as isize, width)];
            }
            weigh(into, weights.iter().enumerate().map(|(k, &weight)| (weight, &padded[k..k + width])));
        }
        for (y, into) in plane.chunks_exact_mut(width).enumerate() {
            let line = |k: usize| &rows[mirrored((y + k) as isize - radius as isize, height) * width..][..width];
            weigh(into, weights.iter().enumerate().map(|(k, &weight)| (weight, line(k))));
        }
    }
}

fn weigh<'l>(into: &mut [f32], lines: impl Iterator<Item = (f32, &'l [f32])>) {
    into.fill(0.0);
    for (weight, line) in lines {
        for (sum, value) in into.iter_mut().zip(line) {
            *sum += weight * value;
        }
    }
}

/// Return the index that lies within 0..size, mirrored about both outermost ones as often as needed.
fn mirrored(index: isize, size: usize) -> usize {
    let last = size as isize - 1;
    if last == 0 {
        return 0;
    }
    let folded = index.rem_euclid(2 * last);
    folded.min(2 * last - folded) as usize
}

/// Add a stretch of noise times its standard deviation.
pub fn add_noise(image: &mut Planes, noise: &[f32], std: f32) {
    for (value, noise) in image.values.iter_mut().zip(noise) {
        *value += noise * std;
    }
}

/// Replace patches by what stands elsewhere in the image (foreign), or by its mean colour.
pub fn replace_patches(image: &mut Planes, patches: &[Patch], foreign: bool) {
    let (height, width) = (image.height, image.width);
    let within = |centre: f32, half: f32, size: usize| {
        let first = ((centre - half).floor() + 1.0).max(0.0) as usize;
        first..((centre + half).ceil().max(0.0) as usize).min(size)
    };
    let areas = patches.iter().map(|patch| {
        let half = patch.half.map(|half| half * width as f32);
        let rows = within(patch.centre[0] * height as f32, half[0], height);
        (rows, within(patch.centre[1] * width as f32, half[1], width))
    });
    let areas: Vec<_> = areas.collect();
    for plane in image.planes() {
        // All is read before any is written: what comes from elsewhere is what stood there at first.
        let original = if foreign { plane.to_vec() } else { Vec::new() };
        let mean = (plane.iter().map(|&value| f64::from(value)).sum::<f64>() / plane.len() as f64) as f32;
        for (rows, columns) in &areas {
            for y in rows.clone() {
                let from = (y + height - height / 3) % height * width;
                for x in columns.clone() {
                    plane[y * width + x] =
                        if foreign { original[from + (x + width - width / 3) % width] } else { mean };
                }
            }
        }
    }
}
