//! Files to batches: samples from a cache, from the data set, or from both, and what reading them meets.

use std::path::Path;
use std::sync::Arc;
use std::sync::Once;

use half::f16;

use crate::data::batch::{ReadCounts, StereoBatch};
use crate::data::cache::{Destination, SampleCache};
use crate::data::fsd::{FsdIndex, read_fsd_sample, source_stamp};
use crate::data::prefetch::{Prefetch, pick_workers};
use crate::data::random::permutation;
use crate::data::sample::{SourceStamp, StereoSample};
use crate::errors::{Error, Result};
use crate::options::{DATASET_ROOT_VARIABLE, DataOptions, Workers};

/// Cache entries whose files are probed when training starts: a second at worst, on a disk that has to seek.
const PROBED: usize = 32;
/// Samples at most that are read to find out how many threads are of use.
const REHEARSED: usize = 4096;
/// Share of the cache's disk that training leaves free: checkpoints may have to go to the same one.
const LEFT_FREE: f64 = 0.01;

/// Samples at the network's size: from the cache, else from their files.
#[derive(Debug)]
pub struct FileReader {
    pub index: FsdIndex,
    pub cache: Option<SampleCache>,
    pub require_cache: bool,
    pub height: usize,
    pub width: usize,
    unwritable: Once,
}

impl FileReader {
    /// Read sample i into its place, and return what that met.
    pub fn read(&self, i: usize, into: &mut Destination) -> Result<ReadCounts> {
        let (scene, stem) = (self.index.scene(i), self.index.stem(i));
        let mut counts = ReadCounts::default();
        if let Some(cache) = &self.cache {
            match cache.read(scene, stem, into) {
                Ok(true) => return Ok(ReadCounts { cache_hits: 1, ..counts }),
                Ok(false) => {}
                Err(Error::CorruptEntry(_)) if !self.require_cache && self.index.has_files() => {
                    counts.rebuilt.push(cache.path(scene, stem).display().to_string());
                }
                Err(error) => return Err(error),
            }
            if self.require_cache || !self.index.has_files() {
                return Err(Error::MissingEntry(format!(
                    "{}: no such entry, and --require-cache allows no other source; fill the cache with \
                     --build-cache-only",
                    cache.path(scene, stem).display()
                )));
            }
        }
        let (sample, source) = self.read_files(i)?;
        into.left.copy_from_slice(&sample.left);
        into.right.copy_from_slice(&sample.right);
        into.disparity_px.copy_from_slice(&sample.disparity_px);
        if let Some(cache) = &self.cache {
            counts.cache_misses = 1;
            if let Err(error) = cache.write(scene, stem, &sample, &source, LEFT_FREE) {
                // The epoch does not need the entry, only later ones would gain from it.
                self.warn_unwritable(&error, !counts.rebuilt.is_empty());
                counts.rebuilt.clear();
                counts.unwritten = 1;
            }
        }
        Ok(counts)
    }

    fn warn_unwritable(&self, error: &Error, corrupt: bool) {
        self.unwritable.call_once(|| {
            let corrupt = if corrupt { ", and what is there is damaged" } else { "" };
            eprintln!(
                "the cache cannot be written ({error}{corrupt}): training continues from the data set itself, and \
                 data/cache_unwritten counts such samples"
            );
        });
    }

    /// Read sample i from its own files, and what they were.
    pub fn read_files(&self, i: usize) -> Result<(StereoSample, SourceStamp)> {
        let paths = self.index.paths(i);
        let source = source_stamp(&paths)?;
        Ok((read_fsd_sample(&paths, self.height, self.width)?, source))
    }

    /// Do the work of reading sample i and change nothing; errors are reported when it is read in earnest.
    fn rehearse(&self, i: usize) {
        if let Some(cache) = &self.cache
            && matches!(
                cache.read(self.index.scene(i), self.index.stem(i), &mut cache.empty_sample().destination()),
                Ok(true)
            )
        {
            return;
        }
        if self.index.has_files() {
            let _ = self.read_files(i);
        }
    }

    /// Return how many of a few entries were made of other files than there are now.
    ///
    /// Probing the files of every entry would cost what the cache is there to save.
    fn count_outdated(&self, probed: &[usize]) -> usize {
        let Some(cache) = self.cache.as_ref().filter(|_| self.index.has_files()) else { return 0 };
        let is_outdated = |&&i: &&usize| {
            // What is damaged or missing is reported when it is read.
            let made_of = cache.source(self.index.scene(i), self.index.stem(i)).ok().flatten();
            made_of.is_some_and(|made_of| source_stamp(&self.index.paths(i)).is_ok_and(|now| now != made_of))
        };
        probed.iter().filter(is_outdated).count()
    }
}

/// Batches of some of a reader's samples.
#[derive(Clone, Debug)]
pub struct FileSource {
    reader: Arc<FileReader>,
    positions: Arc<Vec<usize>>,
    workers: usize,
    skip_bad: bool,
}

impl FileSource {
    /// Return how many samples it has.
    pub fn len(&self) -> usize {
        self.positions.len()
    }

    /// Return true where it has none.
    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// Return `<scene>/<stem>` of a sample.
    pub fn name(&self, index: usize) -> String {
        self.reader.index.name(self.positions[index])
    }

    /// Return one batch per entry of `plan`, in order, prefetched by threads.
    pub fn batches(&self, plan: Vec<Vec<usize>>) -> Prefetch<StereoBatch> {
        let source = self.clone();
        Prefetch::new(plan.len(), self.workers, move |step| source.read_batch(&plan[step]))
    }

    fn read_batch(&self, indices: &[usize]) -> Result<StereoBatch> {
        let (height, width, count) = (self.reader.height, self.reader.width, indices.len());
        let pixels = height * width;
        let mut batch = StereoBatch {
            height,
            width,
            left: vec![0; count * pixels * 3],
            right: vec![0; count * pixels * 3],
            disparity_px: vec![f16::NAN; count * pixels],
            indices: indices.to_vec(),
            counts: ReadCounts::default(),
        };
        let mut unread = Vec::new();
        for (row, &index) in indices.iter().enumerate() {
            let mut into = Destination {
                left: &mut batch.left[row * pixels * 3..][..pixels * 3],
                right: &mut batch.right[row * pixels * 3..][..pixels * 3],
                disparity_px: &mut batch.disparity_px[row * pixels..][..pixels],
            };
            match self.reader.read(self.positions[index], &mut into) {
                Ok(counts) => batch.counts.add(counts),
                Err(error) if self.skip_bad && error.is_bad_sample() => {
                    batch.counts.bad.push(error.to_string());
                    unread.push(row);
                }
                Err(error) => return Err(error),
            }
        }
        blank(&mut batch, &unread);
        Ok(batch)
    }
}

/// Give samples that could not be read the images of a good one and no known disparity: they keep their place in the
/// batch and add nothing to loss or metrics.
fn blank(batch: &mut StereoBatch, unread: &[usize]) {
    let pixels = batch.height * batch.width;
    let good = (0..batch.len()).find(|row| !unread.contains(row));
    for &row in unread {
        let at = row * pixels * 3..(row + 1) * pixels * 3;
        for images in [&mut batch.left, &mut batch.right] {
            match good {
                Some(good) => images.copy_within(good * pixels * 3..(good + 1) * pixels * 3, at.start),
                None => images[at.clone()].fill(0),
            }
        }
        batch.disparity_px[row * pixels..][..pixels].fill(f16::NAN);
    }
}

/// Both parts of a data set on disk, with what a run records about it.
#[derive(Debug)]
pub struct FileData {
    pub train: FileSource,
    pub validation: FileSource,
    pub facts: serde_json::Map<String, serde_json::Value>,
    pub incomplete: Vec<String>,
    /// How samples are divided and read, for the user.
    pub summary: String,
}

/// Return the data set's folder: the one that the flag names, else the environment's, else None.
pub fn named_dataset_root(named: Option<&Path>) -> Option<std::path::PathBuf> {
    let variable = || std::env::var_os(DATASET_ROOT_VARIABLE).filter(|value| !value.is_empty()).map(Into::into);
    named.map(Path::to_path_buf).or_else(variable)
}

/// Open the data set at `dataset_root`, or the one that a cache alone holds.
pub fn open_files(options: &DataOptions, dataset_root: Option<&Path>) -> Result<FileData> {
    if options.require_cache && options.cache_root.is_none() {
        return Err(Error::User("--require-cache: needs a --cache-root".into()));
    }
    let (height, width) = (options.height as usize, options.width as usize);
    let cache = options.cache_root.as_ref().map(|root| SampleCache::open(root, height, width)).transpose()?;
    let index = match (dataset_root, &cache) {
        (Some(root), _) => {
            let (index, warnings) = FsdIndex::find(root)?;
            warnings.iter().for_each(|line| eprintln!("{line}"));
            index
        }
        (None, Some(cache)) => FsdIndex::from_names(cache.names()?),
        (None, None) => {
            return Err(Error::User(format!(
                "no data set named: give --dataset-root (or ${DATASET_ROOT_VARIABLE}) or --cache-root; \
                 foundation-stereo-cache --procedural-samples fills a cache with synthetic scenes"
            )));
        }
    };
    if let Some(cache) = cache.as_ref().filter(|_| index.has_files()) {
        if !options.require_cache {
            let _ = cache.make_root(); // reading will meet it again, and report it
        }
        cache.check_case_collisions((0..index.len()).map(|i| index.name(i)))?;
    }
    let taken = index.take_spread(options.max_samples.map(|count| count as usize));
    let split = index.split(&taken, options.val_fraction)?;
    let reader =
        FileReader { index, cache, require_cache: options.require_cache, height, width, unwritable: Once::new() };
    let (workers, why) = prepare_reading(&reader, &taken, options.num_workers);
    let dataset =
        dataset_root.or(options.cache_root.as_deref()).map(|root| root.display().to_string()).unwrap_or_default();
    let facts = serde_json::json!({
        "dataset": dataset,
        "dataset_fingerprint": reader.index.fingerprint(&taken),
        "train_fingerprint": reader.index.fingerprint(&split.train),
        "validation_fingerprint": reader.index.fingerprint(&split.validation),
        "train_samples": split.train.len(),
        "validation_samples": split.validation.len(),
        "split_by": split.by,
        "incomplete_samples": reader.index.incomplete.len(),
        "reading_threads": workers,
    });
    let plural = if workers == 1 { "" } else { "s" };
    let summary = format!("{dataset}: split by {}; reading with {workers} thread{plural} ({why})", split.by);
    let (incomplete, reader) = (reader.index.incomplete.clone(), Arc::new(reader));
    let source = |positions: Vec<usize>| FileSource {
        reader: reader.clone(),
        positions: Arc::new(positions),
        workers,
        skip_bad: options.skip_bad,
    };
    Ok(FileData {
        train: source(split.train),
        validation: source(split.validation),
        facts: facts.as_object().cloned().unwrap_or_default(),
        incomplete,
        summary,
    })
}

/// Warn of an outdated cache, and return how many threads shall read, and why.
fn prepare_reading(reader: &FileReader, taken: &[usize], workers: Workers) -> (usize, String) {
    // In random order, and another one at each start.
    let order = permutation(taken.len(), i64::from(std::process::id()), 0);
    let some: Vec<usize> = order.into_iter().take(REHEARSED).map(|at| taken[at]).collect();
    let probed = &some[..some.len().min(PROBED)];
    let outdated = reader.count_outdated(probed);
    if outdated > 0 {
        eprintln!(
            "{outdated} of {} cache entries that were probed were made of files that have changed, and are used as they \
             are; --build-cache-only rebuilds all such entries",
            probed.len()
        );
    }
    match workers {
        Workers::Fixed(workers) => (workers, "as --num-workers says".into()),
        Workers::Auto => pick_workers(&some, |i| reader.rehearse(i)),
    }
}

/// Return a reader of the samples of an index, for filling a cache.
pub fn cache_filler(index: FsdIndex, cache: SampleCache) -> FileReader {
    let (height, width) = (cache.height, cache.width);
    FileReader { index, cache: Some(cache), require_cache: false, height, width, unwritable: Once::new() }
}
