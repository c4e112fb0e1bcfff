//! Batches, and what an epoch visits in which order.

use half::f16;

use crate::data::random::permutation;

/// The epoch whose random numbers validation uses.
pub const VALIDATION_EPOCH: i64 = -1;

/// What reading met and cost; the counts of two stretches add up.
#[derive(Clone, Debug, Default, PartialEq, serde::Deserialize, serde::Serialize)]
pub struct ReadCounts {
    /// Samples that were read from the cache.
    pub cache_hits: u64,
    /// Samples that were read from their own files though there is a cache.
    pub cache_misses: u64,
    /// Entries that were damaged and rebuilt.
    pub rebuilt: Vec<String>,
    /// Samples that could not be read, with the reason.
    pub bad: Vec<String>,
    /// Misses that could not be written to the cache.
    pub unwritten: u64,
}

impl ReadCounts {
    /// Add the counts of another stretch.
    pub fn add(&mut self, other: Self) {
        self.cache_hits += other.cache_hits;
        self.cache_misses += other.cache_misses;
        self.rebuilt.extend(other.rebuilt);
        self.bad.extend(other.bad);
        self.unwritten += other.unwritten;
    }
}

/// A batch as it is read: bytes for images (each sample [H, W, 3], one after the other), no float yet.
#[derive(Clone, Debug)]
pub struct StereoBatch {
    pub height: usize,
    pub width: usize,
    pub left: Vec<u8>,
    pub right: Vec<u8>,
    /// Of the left view, at this size; NaN or 0 where unknown.
    pub disparity_px: Vec<f16>,
    /// Each sample's position in its source, from which its random numbers follow.
    pub indices: Vec<usize>,
    pub counts: ReadCounts,
}

impl StereoBatch {
    /// Return how many samples it holds.
    pub fn len(&self) -> usize {
        self.indices.len()
    }

    /// Return true where it holds none.
    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }
}

/// Return the batches of one epoch: shuffled positions.
///
/// The last batch is filled from the beginning of the epoch's order, so that all batches have one size.
pub fn training_plan(length: usize, batch_size: usize, seed: i64, epoch: i64) -> Vec<Vec<usize>> {
    let order = permutation(length, seed, epoch);
    let steps = length.div_ceil(batch_size);
    (0..steps).map(|step| (0..batch_size).map(|i| order[(step * batch_size + i) % length]).collect()).collect()
}

/// Return every position exactly once, in order; the last batch may be smaller.
pub fn validation_plan(length: usize, batch_size: usize) -> Vec<Vec<usize>> {
    (0..length).collect::<Vec<_>>().chunks(batch_size).map(<[usize]>::to_vec).collect()
}
