//! Convolution as products of matrices, forward and backward.
//!
//! Candle 0.11's own backward pass is right where one padding serves both axes, and slow: a matrix product nine columns
//! thin for each input channel, and a scalar loop. Here every product has the shape (outputs) x (inputs * kernel) x
//! (pixels). Input pixels are unfolded ("im2col") a tile at a time, so that a tile stays in a processor's second cache.
//! Results do not depend on the number of threads: what is summed, and in which order, is fixed.

use std::cell::RefCell;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use gemm::{Parallelism, gemm};
use rayon::prelude::*;

use crate::model::slices::{SharedMut, floats, with_floats};

/// Output pixels that are unfolded at a time.
const TILE_PIXELS: usize = 512;
/// Small maps of several images share a tile of so many pixels.
const SHARED_TILE_PIXELS: usize = 320;
/// Parts of the kernel's gradient that are summed apart, each by one thread.
const GRADIENT_PARTS: usize = 16;

/// Return the convolution of x [B, C, H, W] with kernels [O, C, k, k], k odd, padded by k / 2 on every side.
pub fn convolve(x: &Tensor, kernels: &Tensor, stride: usize) -> Result<Tensor> {
    let side = kernels.dim(3)?;
    if !x.device().is_cpu() {
        return x.conv2d(kernels, side / 2, stride, 1, 1);
    }
    x.contiguous()?.apply_op2(&kernels.contiguous()?, Convolution { stride })
}

struct Convolution {
    stride: usize,
}

impl CustomOp2 for Convolution {
    fn name(&self) -> &'static str {
        "convolution"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        kernels: &CpuStorage,
        kernels_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let geometry = Geometry::new(x_layout.shape(), kernels_layout.shape(), self.stride)?;
        let y = forward(&geometry, floats(x, x_layout)?, floats(kernels, kernels_layout)?);
        Ok((CpuStorage::F32(y), geometry.output_shape()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        kernels: &Tensor,
        _y: &Tensor,
        grad_y: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let geometry = Geometry::new(x.shape(), kernels.shape(), self.stride)?;
        let grad_y = grad_y.contiguous()?;
        let (grad_x, grad_kernels) = with_floats(&grad_y, |grad_y| {
            // The first layer's input is data, and wants no gradient.
            let grad_x = if x.track_op() {
                Some(with_floats(kernels, |kernels| Ok(input_gradient(&geometry, kernels, grad_y)))?)
            } else {
                None
            };
            Ok((grad_x, with_floats(x, |x| Ok(kernel_gradient(&geometry, x, grad_y)))?))
        })?;
        let grad_x = grad_x.map(|numbers| Tensor::from_vec(numbers, x.shape(), x.device())).transpose()?;
        Ok((grad_x, Some(Tensor::from_vec(grad_kernels, kernels.shape(), kernels.device())?)))
    }
}

/// The sizes of a convolution.
#[derive(Clone, Copy, Debug)]
struct Geometry {
    batch: usize,
    inputs: usize,
    height: usize,
    width: usize,
    outputs: usize,
    side: usize,
    stride: usize,
    out_height: usize,
    out_width: usize,
}

/// Some rows of the output of one image, or all rows of several.
#[derive(Clone, Copy, Debug)]
struct Tile {
    image: usize,
    images: usize,
    row: usize,
    rows: usize,
}

impl Geometry {
    fn new(x: &Shape, kernels: &Shape, stride: usize) -> Result<Self> {
        let (batch, inputs, height, width) = x.dims4()?;
        let (outputs, channels, side, side_across) = kernels.dims4()?;
        if channels != inputs || side != side_across || side % 2 == 0 {
            candle_core::bail!("kernels {kernels:?} do not fit {x:?}")
        }
        let output = |size: usize| (size - 1) / stride + 1; // with padding side / 2
        let (out_height, out_width) = (output(height), output(width));
        Ok(Self { batch, inputs, height, width, outputs, side, stride, out_height, out_width })
    }

    fn output_shape(&self) -> Shape {
        (self.batch, self.outputs, self.out_height, self.out_width).into()
    }

    fn out_pixels(&self) -> usize {
        self.out_height * self.out_width
    }

    /// Numbers under one kernel.
    fn unfolded(&self) -> usize {
        self.inputs * self.side * self.side
    }

    fn input_size(&self) -> usize {
        self.inputs * self.height * self.width
    }

    fn output_size(&self) -> usize {
        self.outputs * self.out_pixels()
    }

    fn tiles(&self) -> Vec<Tile> {
        if self.out_pixels() < SHARED_TILE_PIXELS {
            let images = (SHARED_TILE_PIXELS / self.out_pixels()).max(1);
            let tile = |image| Tile { image, images: images.min(self.batch - image), row: 0, rows: self.out_height };
            return (0..self.batch).step_by(images).map(tile).collect();
        }
        (0..self.batch).flat_map(|image| self.tiles_of(image)).collect()
    }

    fn tiles_of(&self, image: usize) -> impl Iterator<Item = Tile> + use<> {
        let (rows, height) = ((TILE_PIXELS / self.out_width).max(1), self.out_height);
        (0..height).step_by(rows).map(move |row| Tile { image, images: 1, row, rows: rows.min(height - row) })
    }

    fn tile_pixels(&self, tile: &Tile) -> usize {
        tile.images * tile.rows * self.out_width
    }
}

thread_local! {
    static UNFOLDED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    static PRODUCT: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Call `use_it` with this thread's memory for so many numbers, which hold anything.
fn with_scratch<T>(
    scratch: &'static std::thread::LocalKey<RefCell<Vec<f32>>>,
    length: usize,
    use_it: impl FnOnce(&mut [f32]) -> T,
) -> T {
    scratch.with_borrow_mut(|numbers| {
        if numbers.len() < length {
            numbers.resize(length, 0.0);
        }
        use_it(&mut numbers[..length])
    })
}

/// A matrix in memory: where it begins, and how far apart its rows and columns are.
#[derive(Clone, Copy)]
struct Matrix {
    start: *const f32,
    row_stride: usize,
    column_stride: usize,
}

/// Compute `result (m x n) = left (m x k) * right (k x n)`, or add the product to the result.
///
/// # Safety
/// All three lie within memory that is theirs, the result's not shared.
unsafe fn multiply(
    result: (*mut f32, usize, usize),
    add: bool,
    left: Matrix,
    right: Matrix,
    (m, n, k): (usize, usize, usize),
) {
    let (start, row_stride, column_stride) = result;
    // SAFETY: the caller's promise.
    unsafe {
        gemm(
            m,
            n,
            k,
            start,
            column_stride as isize,
            row_stride as isize,
            add,
            left.start,
            left.column_stride as isize,
            left.row_stride as isize,
            right.start,
            right.column_stride as isize,
            right.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

fn forward(geometry: &Geometry, x: &[f32], kernels: &[f32]) -> Vec<f32> {
    let mut y = vec![0.0; geometry.batch * geometry.output_size()];
    let shared = SharedMut::new(&mut y);
    geometry.tiles().into_par_iter().for_each(|tile| {
        let pixels = geometry.tile_pixels(&tile);
        with_scratch(&UNFOLDED, geometry.unfolded() * pixels, |columns| {
            unfold(geometry, &tile, x, columns);
            let left = Matrix { start: columns.as_ptr(), row_stride: 1, column_stride: pixels };
            let right = Matrix { start: kernels.as_ptr(), row_stride: 1, column_stride: geometry.unfolded() };
            let size = (pixels, geometry.outputs, geometry.unfolded());
            if tile.images == 1 {
                let start = shared.pointer(tile.image * geometry.output_size() + tile.row * geometry.out_width);
                // SAFETY: tiles are disjoint parts of `y`, and the strides stay within one image.
                unsafe { multiply((start, 1, geometry.out_pixels()), false, left, right, size) };
            } else {
                with_scratch(&PRODUCT, pixels * geometry.outputs, |product| {
                    // SAFETY: `product` is this thread's own.
                    unsafe { multiply((product.as_mut_ptr(), 1, pixels), false, left, right, size) };
                    // SAFETY: tiles are disjoint images of `y`.
                    let images = unsafe {
                        shared.slice(tile.image * geometry.output_size(), tile.images * geometry.output_size())
                    };
                    scatter_images(geometry, product, images, pixels);
                });
            }
        });
    });
    y
}

/// Copy a product [outputs, images * pixels] to images [images, outputs, pixels].
fn scatter_images(geometry: &Geometry, product: &[f32], images: &mut [f32], pixels: usize) {
    let each = geometry.out_pixels();
    for (image, into) in images.chunks_exact_mut(geometry.output_size()).enumerate() {
        for (output, into) in into.chunks_exact_mut(each).enumerate() {
            into.copy_from_slice(&product[output * pixels + image * each..][..each]);
        }
    }
}

/// Write what lies under each kernel position: one row of `columns` per number of a kernel, one column per output pixel.
fn unfold(geometry: &Geometry, tile: &Tile, x: &[f32], columns: &mut [f32]) {
    let pixels = geometry.tile_pixels(tile);
    let plane = geometry.height * geometry.width;
    for (position, row) in columns.chunks_exact_mut(pixels).enumerate() {
        let (input, within) = (position / (geometry.side * geometry.side), position % (geometry.side * geometry.side));
        let (down, across) = (within / geometry.side, within % geometry.side);
        for (i, of_image) in row.chunks_exact_mut(tile.rows * geometry.out_width).enumerate() {
            let plane = &x[(tile.image + i) * geometry.input_size() + input * plane..][..plane];
            for (y, line) in of_image.chunks_exact_mut(geometry.out_width).enumerate() {
                let source = ((tile.row + y) * geometry.stride + down).wrapping_sub(geometry.side / 2);
                match plane.get(source.wrapping_mul(geometry.width)..).filter(|_| source < geometry.height) {
                    Some(rest) => unfold_line(&rest[..geometry.width], across, geometry, line),
                    None => line.fill(0.0),
                }
            }
        }
    }
}

/// Write the input at column x * stride + across - side / 2 for each x; zero outside.
fn unfold_line(source: &[f32], across: usize, geometry: &Geometry, line: &mut [f32]) {
    let (padding, stride) = (geometry.side / 2, geometry.stride);
    let first = padding.saturating_sub(across).div_ceil(stride);
    let begin = first * stride + across - padding;
    let count = (source.len() - begin.min(source.len())).div_ceil(stride).min(line.len() - first);
    line[..first].fill(0.0);
    line[first + count..].fill(0.0);
    let line = &mut line[first..first + count];
    if stride == 1 {
        line.copy_from_slice(&source[begin..begin + count]);
    } else {
        for (value, source) in line.iter_mut().zip(source[begin..].iter().step_by(stride)) {
            *value = *source;
        }
    }
}

/// Return the gradient of the kernels: for each tile, grad_y (outputs x pixels) * unfolded x (pixels x unfolded).
fn kernel_gradient(geometry: &Geometry, x: &[f32], grad_y: &[f32]) -> Vec<f32> {
    let (unfolded, outputs) = (geometry.unfolded(), geometry.outputs);
    let tiles = geometry.tiles();
    let parts: Vec<Vec<f32>> = tiles
        .par_chunks(tiles.len().div_ceil(GRADIENT_PARTS))
        .map(|tiles| {
            let mut part = vec![0.0; unfolded * outputs];
            for tile in tiles {
                add_kernel_gradient(geometry, tile, x, grad_y, &mut part);
            }
            part
        })
        .collect();
    let mut gradient = vec![0.0; unfolded * outputs];
    gradient.par_chunks_exact_mut(unfolded).enumerate().for_each(|(output, gradient)| {
        for part in &parts {
            for (sum, value) in gradient.iter_mut().zip(part[output..].iter().step_by(outputs)) {
                *sum += value;
            }
        }
    });
    gradient
}

/// Add a tile's part to a gradient [unfolded, outputs].
fn add_kernel_gradient(geometry: &Geometry, tile: &Tile, x: &[f32], grad_y: &[f32], part: &mut [f32]) {
    let (pixels, unfolded, outputs) = (geometry.tile_pixels(tile), geometry.unfolded(), geometry.outputs);
    let each = tile.rows * geometry.out_width;
    with_scratch(&UNFOLDED, unfolded * pixels, |columns| {
        unfold(geometry, tile, x, columns);
        for image in 0..tile.images {
            let start = (tile.image + image) * geometry.output_size() + tile.row * geometry.out_width;
            let of_tile = &grad_y[start..][..(outputs - 1) * geometry.out_pixels() + each];
            let left = Matrix { start: of_tile.as_ptr(), row_stride: geometry.out_pixels(), column_stride: 1 };
            let right = Matrix { start: columns[image * each..].as_ptr(), row_stride: 1, column_stride: pixels };
            // SAFETY: the sizes are those of the three slices.
            unsafe { multiply((part.as_mut_ptr(), 1, outputs), true, left, right, (outputs, unfolded, each)) };
        }
    });
}

/// Return the gradient of the input.
fn input_gradient(geometry: &Geometry, kernels: &[f32], grad_y: &[f32]) -> Vec<f32> {
    if geometry.stride == 1 {
        // A convolution of the output's gradient with the kernels turned about, inputs and outputs exchanged.
        let exchanged = Geometry { inputs: geometry.outputs, outputs: geometry.inputs, ..*geometry };
        return forward(&exchanged, grad_y, &turned(geometry, kernels));
    }
    let mut gradient = vec![0.0; geometry.batch * geometry.input_size()];
    gradient.par_chunks_exact_mut(geometry.input_size()).enumerate().for_each(|(image, gradient)| {
        for tile in geometry.tiles_of(image) {
            add_input_gradient(geometry, &tile, kernels, grad_y, gradient);
        }
    });
    gradient
}

/// Return kernels [O, C, k, k] as [C, O, k, k], each turned by half a turn.
fn turned(geometry: &Geometry, kernels: &[f32]) -> Vec<f32> {
    let area = geometry.side * geometry.side;
    let mut turned = Vec::with_capacity(kernels.len());
    for input in 0..geometry.inputs {
        for output in 0..geometry.outputs {
            turned.extend(kernels[(output * geometry.inputs + input) * area..][..area].iter().rev());
        }
    }
    turned
}

/// Add a tile's part to the gradient of one image: kernels^T (unfolded x outputs) * grad_y (outputs x pixels), folded.
fn add_input_gradient(geometry: &Geometry, tile: &Tile, kernels: &[f32], grad_y: &[f32], gradient: &mut [f32]) {
    let (pixels, unfolded) = (geometry.tile_pixels(tile), geometry.unfolded());
    let start = tile.image * geometry.output_size() + tile.row * geometry.out_width;
    let of_tile = &grad_y[start..][..(geometry.outputs - 1) * geometry.out_pixels() + pixels];
    with_scratch(&UNFOLDED, unfolded * pixels, |columns| {
        let left = Matrix { start: of_tile.as_ptr(), row_stride: 1, column_stride: geometry.out_pixels() };
        let right = Matrix { start: kernels.as_ptr(), row_stride: unfolded, column_stride: 1 };
        // SAFETY: the sizes are those of the three slices.
        unsafe {
            multiply((columns.as_mut_ptr(), 1, pixels), false, left, right, (pixels, unfolded, geometry.outputs))
        };
        fold(geometry, tile, columns, gradient);
    });
}

/// Add each number of `columns` to the pixel that `unfold` takes it from.
fn fold(geometry: &Geometry, tile: &Tile, columns: &[f32], image: &mut [f32]) {
    let (plane, padding) = (geometry.height * geometry.width, geometry.side / 2);
    for (position, row) in columns.chunks_exact(geometry.tile_pixels(tile)).enumerate() {
        let (input, within) = (position / (geometry.side * geometry.side), position % (geometry.side * geometry.side));
        let (down, across) = (within / geometry.side, within % geometry.side);
        for (y, line) in row.chunks_exact(geometry.out_width).enumerate() {
            let target = ((tile.row + y) * geometry.stride + down).wrapping_sub(padding);
            if target >= geometry.height {
                continue;
            }
            let target = &mut image[input * plane + target * geometry.width..][..geometry.width];
            let first = padding.saturating_sub(across).div_ceil(geometry.stride);
            let begin = first * geometry.stride + across - padding;
            let targets = target[begin.min(geometry.width)..].iter_mut().step_by(geometry.stride);
            for (sum, value) in targets.zip(&line[first.min(line.len())..]) {
                *sum += value;
            }
        }
    }
}
