//! Doubling a map's size and joining another one, in one operation.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::model::slices::{floats, with_floats};

/// Return [B, C + S, 2 H, 2 W]: x [B, C, H, W], each pixel repeated twice in both directions, then skip [B, S, 2 H, 2 W].
pub fn upsample_and_join(x: &Tensor, skip: &Tensor) -> Result<Tensor> {
    if !x.device().is_cpu() {
        let (batch, channels, height, width) = x.dims4()?;
        // Candle's own nearest upsampling overwrites gradients that its input has collected before.
        let doubled =
            x.reshape((batch, channels, height, 1, width, 1))?.broadcast_as((batch, channels, height, 2, width, 2))?;
        return Tensor::cat(&[&doubled.reshape((batch, channels, 2 * height, 2 * width))?, skip], 1);
    }
    x.contiguous()?.apply_op2(&skip.contiguous()?, UpsampleAndJoin)
}

struct UpsampleAndJoin;

impl CustomOp2 for UpsampleAndJoin {
    fn name(&self) -> &'static str {
        "upsample_and_join"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        skip: &CpuStorage,
        skip_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (batch, channels, height, width) = x_layout.shape().dims4()?;
        let (_, more, tall, wide) = skip_layout.shape().dims4()?;
        if (tall, wide) != (2 * height, 2 * width) {
            candle_core::bail!("a skip of {tall}x{wide} does not fit a map of {height}x{width}")
        }
        let (x, skip) = (floats(x, x_layout)?, floats(skip, skip_layout)?);
        let plane = tall * wide;
        let mut joined = vec![0.0; batch * (channels + more) * plane];
        joined.par_chunks_exact_mut(plane).enumerate().for_each(|(i, into)| {
            let (image, channel) = (i / (channels + more), i % (channels + more));
            if channel < channels {
                double(&x[(image * channels + channel) * height * width..][..height * width], width, into);
            } else {
                into.copy_from_slice(&skip[(image * more + channel - channels) * plane..][..plane]);
            }
        });
        Ok((CpuStorage::F32(joined), (batch, channels + more, tall, wide).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        skip: &Tensor,
        _joined: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (_, channels, height, width) = x.dims4()?;
        let (_, more, tall, wide) = skip.dims4()?;
        let plane = tall * wide;
        let (mut grad_x, mut grad_skip) = (vec![0.0; x.elem_count()], vec![0.0; skip.elem_count()]);
        with_floats(&grad.contiguous()?, |grad| {
            grad_x.par_chunks_exact_mut(height * width).enumerate().for_each(|(i, into)| {
                let from = (i / channels * (channels + more) + i % channels) * plane;
                add_blocks(&grad[from..][..plane], width, into);
            });
            grad_skip.par_chunks_exact_mut(plane).enumerate().for_each(|(i, into)| {
                let from = (i / more * (channels + more) + channels + i % more) * plane;
                into.copy_from_slice(&grad[from..][..plane]);
            });
            Ok(())
        })?;
        let of = |numbers: Vec<f32>, like: &Tensor| Tensor::from_vec(numbers, like.shape(), like.device());
        Ok((Some(of(grad_x, x)?), Some(of(grad_skip, skip)?)))
    }
}

fn double(plane: &[f32], width: usize, into: &mut [f32]) {
    for (line, pair) in plane.chunks_exact(width).zip(into.chunks_exact_mut(4 * width)) {
        let (above, below) = pair.split_at_mut(2 * width);
        for (value, pair) in line.iter().zip(above.chunks_exact_mut(2)) {
            pair.fill(*value);
        }
        below.copy_from_slice(above);
    }
}

/// Sum each block of two by two.
fn add_blocks(plane: &[f32], width: usize, into: &mut [f32]) {
    for (pair, line) in plane.chunks_exact(4 * width).zip(into.chunks_exact_mut(width)) {
        let (above, below) = pair.split_at(2 * width);
        for ((sum, above), below) in line.iter_mut().zip(above.chunks_exact(2)).zip(below.chunks_exact(2)) {
            *sum = (above[0] + above[1]) + (below[0] + below[1]);
        }
    }
}
