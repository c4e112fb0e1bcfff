//! Tensors in main memory as slices, and slices that several threads fill.

use candle_core::{CpuStorage, Layout, Result, Storage, Tensor, bail};

/// Return the numbers of a contiguous float32 storage.
pub fn floats<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let Some((begin, end)) = layout.contiguous_offsets() else {
        bail!("a custom operation was given a tensor that is not contiguous")
    };
    match storage {
        CpuStorage::F32(numbers) => Ok(&numbers[begin..end]),
        _ => bail!("a custom operation was given numbers other than float32"),
    }
}

/// Call `use_it` with the numbers of a contiguous float32 tensor in main memory.
pub fn with_floats<T>(tensor: &Tensor, use_it: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => use_it(floats(storage, layout)?),
        _ => bail!("a custom operation was given a tensor that is not in main memory"),
    }
}

/// Numbers of which several threads write parts that do not overlap.
#[derive(Clone, Copy)]
pub struct SharedMut {
    start: *mut f32,
    length: usize,
}

// SAFETY: all access goes through `slice`, whose callers keep the parts of different threads apart.
unsafe impl Send for SharedMut {}
// SAFETY: as above.
unsafe impl Sync for SharedMut {}

impl SharedMut {
    /// Share numbers that stay in place while the result is in use.
    pub fn new(numbers: &mut [f32]) -> Self {
        Self { start: numbers.as_mut_ptr(), length: numbers.len() }
    }

    /// Return a pointer into the numbers, for strided writes.
    pub fn pointer(self, at: usize) -> *mut f32 {
        assert!(at < self.length);
        // SAFETY: within the numbers, as just checked.
        unsafe { self.start.add(at) }
    }

    /// Return a part.
    ///
    /// # Safety
    /// No two parts that are in use at a time may overlap.
    pub unsafe fn slice<'a>(self, at: usize, length: usize) -> &'a mut [f32] {
        assert!(at + length <= self.length);
        // SAFETY: within the numbers, as just checked; the caller keeps parts apart.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), length) }
    }
}
