//! Random numbers that belong to a sample rather than to a stream, bit for bit those of the Python program.
//!
//! Every sample of every epoch has a key; every number is a hash of (key, purpose, position). So a batch of any size,
//! with any number of threads, gives each sample the same numbers, and nothing needs to be saved to repeat them.

// Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, figure 17 (variant 13).
const GOLDEN_GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;
const MULTIPLIERS: (u64, u64) = (0xBF58_476D_1CE4_E5B9, 0x94D0_49BB_1331_11EB);

/// The finaliser of SplitMix64.
fn mix(state: u64) -> u64 {
    let state = (state ^ (state >> 30)).wrapping_mul(MULTIPLIERS.0);
    let state = (state ^ (state >> 27)).wrapping_mul(MULTIPLIERS.1);
    state ^ (state >> 31)
}

/// What all random numbers of one sample in one epoch follow from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Key(u64);

/// Numbers that belong together: from `low` to below `high`.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    pub low: f64,
    pub high: f64,
}

/// From 0 to below 1.
pub const UNIT: Range = Range { low: 0.0, high: 1.0 };

impl Key {
    /// Return the key of a sample; epochs below 0 are free for other uses than training.
    pub fn new(seed: i64, epoch: i64, index: usize) -> Self {
        let mut state = seed as u64;
        for part in [epoch as u64, index as u64] {
            state = mix(state.wrapping_mul(GOLDEN_GAMMA).wrapping_add(part));
        }
        Self(state)
    }

    /// Return `N` numbers in a range, float32; `purpose` keeps the numbers of one key apart.
    pub fn uniform<const N: usize>(self, purpose: &str, range: Range) -> [f32; N] {
        let start = mix(self.0.wrapping_add(u64::from(crc32fast::hash(purpose.as_bytes())) << 20));
        let (low, high) = (range.low as f32, range.high as f32);
        let step = (high - low) / (1 << 24) as f32;
        std::array::from_fn(|i| {
            let bits = mix(start.wrapping_add((i as u64 + 1).wrapping_mul(GOLDEN_GAMMA))) >> 40;
            // One rounding: PyTorch uses a fused multiply-add.
            (bits as f32).mul_add(step, low)
        })
    }
}

/// Return the positions 0 to length - 1 in the order in which an epoch visits them: NumPy's
/// `Generator(Philox(key=[seed, epoch])).permutation(length)`, so that both programs see the same batches.
pub fn permutation(length: usize, seed: i64, epoch: i64) -> Vec<usize> {
    let mut random = Philox::new([seed as u64, epoch as u64]);
    let mut order: Vec<usize> = (0..length).collect();
    for last in (1..length).rev() {
        order.swap(last, random.below_or_equal(last as u64) as usize);
    }
    order
}

/// Philox4x64-10: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
struct Philox {
    key: [u64; 2],
    counter: u64,
    words: Vec<u64>,
    upper_half: Option<u32>,
}

impl Philox {
    fn new(key: [u64; 2]) -> Self {
        Self { key, counter: 0, words: Vec::new(), upper_half: None }
    }

    fn next_u64(&mut self) -> u64 {
        if self.words.is_empty() {
            self.counter += 1;
            self.words = self.block().into_iter().rev().collect();
        }
        self.words.pop().unwrap_or_default()
    }

    /// The lower half of a word first, then its upper half.
    fn next_u32(&mut self) -> u32 {
        if let Some(upper) = self.upper_half.take() {
            return upper;
        }
        let word = self.next_u64();
        self.upper_half = Some((word >> 32) as u32);
        word as u32
    }

    fn block(&self) -> [u64; 4] {
        const MULTIPLIERS: [u64; 2] = [0xD2E7_470E_E14C_6C93, 0xCA5A_8263_9512_1157];
        const WEYL: [u64; 2] = [0x9E37_79B9_7F4A_7C15, 0xBB67_AE85_84CA_A73B];
        let (mut x, mut key) = ([self.counter, 0, 0, 0], self.key);
        for _ in 0..10 {
            let a = u128::from(MULTIPLIERS[0]) * u128::from(x[0]);
            let b = u128::from(MULTIPLIERS[1]) * u128::from(x[2]);
            x = [(b >> 64) as u64 ^ x[1] ^ key[0], b as u64, (a >> 64) as u64 ^ x[3] ^ key[1], a as u64];
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        x
    }

    /// A whole number from 0 to `largest`: masked bits, again until they are small enough.
    fn below_or_equal(&mut self, largest: u64) -> u64 {
        let mask = u64::MAX >> largest.leading_zeros();
        loop {
            let bits = if largest > u64::from(u32::MAX) { self.next_u64() } else { u64::from(self.next_u32()) };
            if bits & mask <= largest {
                return bits & mask;
            }
        }
    }
}

/// Return standard normal numbers: the same ones, up to rounding, as `torch.randn` with a generator of this seed.
///
/// Box and Muller's transform of uniform numbers in blocks of 16; a last, incomplete block is drawn again in full.
pub fn standard_normal(count: usize, seed: u32) -> Vec<f32> {
    const BLOCK: usize = 16;
    assert!(count >= BLOCK, "fewer numbers are drawn in another way");
    let mut random = MersenneTwister::new(seed);
    let mut numbers: Vec<f32> = (0..count).map(|_| random.next_unit()).collect();
    for block in numbers.chunks_exact_mut(BLOCK) {
        to_normal(block);
    }
    if !count.is_multiple_of(BLOCK) {
        let last = &mut numbers[count - BLOCK..];
        last.fill_with(|| random.next_unit());
        to_normal(last);
    }
    numbers
}

fn to_normal(block: &mut [f32]) {
    let (radii, angles) = block.split_at_mut(8);
    for (u, v) in radii.iter_mut().zip(angles) {
        let radius = (-2.0 * (1.0 - *u).ln()).sqrt();
        let angle = std::f32::consts::TAU * *v;
        (*u, *v) = (radius * angle.cos(), radius * angle.sin());
    }
}

/// MT19937: Matsumoto and Nishimura, "Mersenne Twister", ACM TOMACS 8(1), 1998.
struct MersenneTwister {
    state: [u32; 624],
    position: usize,
}

impl MersenneTwister {
    fn new(seed: u32) -> Self {
        let mut state = [seed; 624];
        for i in 1..624 {
            let before: u32 = state[i - 1];
            state[i] = 1_812_433_253u32.wrapping_mul(before ^ (before >> 30)).wrapping_add(i as u32);
        }
        Self { state, position: 624 }
    }

    fn refill(&mut self) {
        for i in 0..624 {
            let joined = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % 624] & 0x7FFF_FFFF);
            let odd = if joined & 1 == 1 { 0x9908_B0DF } else { 0 };
            self.state[i] = self.state[(i + 397) % 624] ^ (joined >> 1) ^ odd;
        }
        self.position = 0;
    }

    fn next_u32(&mut self) -> u32 {
        if self.position == 624 {
            self.refill();
        }
        let mut y = self.state[self.position];
        self.position += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9D2C_5680;
        y ^= (y << 15) & 0xEFC6_0000;
        y ^ (y >> 18)
    }

    /// 24 bits, from 0 to below 1.
    fn next_unit(&mut self) -> f32 {
        (self.next_u32() & 0x00FF_FFFF) as f32 / (1 << 24) as f32
    }
}
