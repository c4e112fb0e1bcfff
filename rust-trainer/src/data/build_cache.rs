//! Filling a cache before training, on all cores, resuming where it was interrupted.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::data::cache::SampleCache;
use crate::data::fsd::{FsdIndex, source_stamp};
use crate::data::loader::{FileReader, cache_filler, named_dataset_root};
use crate::data::prefetch::available_cores;
use crate::errors::{Error, Result, on_one_line};
use crate::files::{disk_space, format_size};
use crate::options::{DATASET_ROOT_VARIABLE, TrainOptions, Workers};
use crate::stop::StopSignals;

/// The file in the cache's folder that names what a build found damaged, changed or bad: cache_faults.txt.
const FAULTS: &str = "cache_faults";
/// What an entry takes beside its pixels: names, shapes, checksums.
const HEADER_BYTES: u64 = 1500;

/// What became of one sample.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    /// Its entry is complete.
    Found,
    /// There was none.
    Missing,
    /// There was one, but it was damaged.
    Damaged,
    /// Its files were no longer those that the entry was made of.
    Changed,
    /// Its files cannot be read.
    Bad,
}

/// How many samples ended in which way, and how many bytes were written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CacheReport {
    pub found: usize,
    pub missing: usize,
    pub damaged: usize,
    pub changed: usize,
    pub bad: usize,
    pub size: u64,
}

impl CacheReport {
    fn count(&mut self, outcome: Outcome, size: u64) {
        *match outcome {
            Outcome::Found => &mut self.found,
            Outcome::Missing => &mut self.missing,
            Outcome::Damaged => &mut self.damaged,
            Outcome::Changed => &mut self.changed,
            Outcome::Bad => &mut self.bad,
        } += 1;
        self.size += size;
    }

    /// Return how many entries were written.
    pub fn written(&self) -> usize {
        self.missing + self.damaged + self.changed
    }

    fn done(&self) -> usize {
        self.written() + self.found + self.bad
    }
}

/// Fill the cache from the data set, and print at the end, or where it has to stop, what was done.
///
/// Entries that are there are verified and kept; those that are damaged, or whose files have changed, are rebuilt.
pub fn build_cache(options: &TrainOptions, stop: &StopSignals) -> Result<CacheReport> {
    let root = named_dataset_root(options.data.dataset_root.as_deref());
    let (Some(root), Some(cache_root)) = (root, &options.data.cache_root) else {
        return Err(Error::User(format!(
            "--build-cache-only: needs --dataset-root (or ${DATASET_ROOT_VARIABLE}), the folder to read, and \
             --cache-root, the folder to fill"
        )));
    };
    let cache = SampleCache::open(cache_root, options.data.height as usize, options.data.width as usize)?;
    let part = Part::of(options)?;
    let (index, warnings) = FsdIndex::find(&root)?;
    warnings.iter().for_each(|line| println!("{line}"));
    if let Some(first) = index.incomplete.first() {
        println!("{}{} frames lack a part and are left out, the first: {first}", part.name(), index.incomplete.len());
    }
    let taken = part.select(&index.take_spread(options.data.max_samples.map(|count| count as usize)));
    let workers = match options.data.num_workers {
        Workers::Auto => available_cores(),
        Workers::Fixed(workers) => workers.max(1),
    };
    cache.make_root()?;
    cache.check_case_collisions((0..index.len()).map(|i| index.name(i)))?;
    let faults = FaultList::cleared(&cache, &part)?;
    let removed = cache.remove_abandoned()?;
    if removed > 0 {
        println!("{}{}: removed {removed} temporary files whose writers are gone", part.name(), cache.root.display());
    }
    println!(
        "{}{}: {} samples of {}x{} take {} when all are there; {} are free",
        part.name(),
        cache.root.display(),
        taken.len(),
        cache.width,
        cache.height,
        format_size(room_for(taken.len(), &cache)),
        format_size(disk_space(&cache.root)?.0)
    );
    let build = Build {
        reader: cache_filler(index, cache),
        faults,
        overwrite: options.cache.overwrite,
        skip_bad: options.data.skip_bad,
    };
    build.run(&taken, workers, &part, stop)
}

/// One filling of a cache.
struct Build {
    reader: FileReader,
    faults: FaultList,
    overwrite: bool,
    skip_bad: bool,
}

impl Build {
    fn cache(&self) -> &SampleCache {
        self.reader.cache.as_ref().expect("a filler has a cache")
    }

    fn run(&self, taken: &[usize], workers: usize, part: &Part, stop: &StopSignals) -> Result<CacheReport> {
        let began = Instant::now();
        let report = Mutex::new(CacheReport::default());
        let failed = Mutex::new(None);
        let next = AtomicUsize::new(0);
        let bar = progress_bar(taken.len() as u64);
        std::thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| {
                    while !stop.requested() && failed.lock().is_ok_and(|failed| failed.is_none()) {
                        let Some(&i) = taken.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
                        match self.fill(i) {
                            Ok((outcome, size)) => {
                                report.lock().unwrap_or_else(PoisonError::into_inner).count(outcome, size);
                                bar.inc(1);
                            }
                            Err(error) => {
                                failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                            }
                        }
                    }
                });
            }
        });
        bar.finish_and_clear();
        let report = report.into_inner().unwrap_or_else(PoisonError::into_inner);
        println!("{}{}", part.name(), self.summary(&report, workers, began.elapsed()));
        match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) if error.is_disk_full() => Err(self.disk_full(&error, taken.len() - report.done())),
            Some(error) => Err(error),
            None if stop.requested() => {
                Err(stop.error("stopped; what is written is kept, and the next start resumes".into()))
            }
            None => Ok(report),
        }
    }

    /// Bring the entry of a sample up to date, and return what had to be done and how many bytes were written.
    fn fill(&self, i: usize) -> Result<(Outcome, u64)> {
        match self.bring_up_to_date(i) {
            Err(error) if self.skip_bad && matches!(error, Error::Data(_)) => {
                self.faults.add("bad", &error.to_string())?;
                Ok((Outcome::Bad, 0))
            }
            other => other,
        }
    }

    fn bring_up_to_date(&self, i: usize) -> Result<(Outcome, u64)> {
        let (index, cache) = (&self.reader.index, self.cache());
        let (scene, stem) = (index.scene(i), index.stem(i));
        let (mut outcome, mut fault) = (Outcome::Missing, None);
        if !self.overwrite {
            let now = source_stamp(&index.paths(i))?;
            match cache.verify(scene, stem) {
                Ok(None) => {}
                Ok(Some((Some(made_of), _))) if made_of != now => {
                    let path = cache.path(scene, stem);
                    outcome = Outcome::Changed;
                    fault = Some((
                        "changed, rebuilt",
                        format!("{}: its files have changed since it was made", path.display()),
                    ));
                }
                Ok(Some(_)) => return Ok((Outcome::Found, 0)),
                Err(Error::CorruptEntry(reason)) => {
                    outcome = Outcome::Damaged;
                    fault = Some(("damaged, rebuilt", reason));
                }
                Err(error) => return Err(error),
            }
        }
        let (sample, source) = self.reader.read_files(i)?;
        let size = cache.write(scene, stem, &sample, &source, 0.0)?;
        if let Some((kind, reason)) = fault {
            self.faults.add(kind, &reason)?;
        }
        Ok((outcome, size))
    }

    fn summary(&self, report: &CacheReport, workers: usize, elapsed: Duration) -> String {
        let rate = report.done() as f64 / elapsed.as_secs_f64().max(1e-9);
        let threads = if workers == 1 { "thread" } else { "threads" };
        let seconds = elapsed.as_secs();
        format!(
            "{}: {} entries written ({}; {} of them in place of damaged ones, {} in place of ones whose files have \
             changed), {} found, {} samples bad; {rate:.0} entries/s with {workers} {threads} in {:02}:{:02}{}",
            self.cache().root.display(),
            report.written(),
            format_size(report.size),
            report.damaged,
            report.changed,
            report.found,
            report.bad,
            seconds / 60,
            seconds % 60,
            self.faults.summary()
        )
    }

    fn disk_full(&self, error: &Error, left: usize) -> Error {
        let free = disk_space(&self.cache().root).map_or(0, |(free, _)| free);
        Error::User(format!(
            "{}: the disk is full ({error}): up to {left} entries are still to be written and need {}, but {} are free; \
             make room and start again, what is written is kept; or take fewer by --max-samples",
            self.cache().root.display(),
            format_size(room_for(left, self.cache())),
            format_size(free)
        ))
    }
}

fn room_for(entries: usize, cache: &SampleCache) -> u64 {
    entries as u64 * (8 * (cache.height * cache.width) as u64 + HEADER_BYTES)
}

fn progress_bar(length: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("caching {wide_bar} {pos}/{len} [{elapsed}<{eta}, {per_sec}]");
    ProgressBar::new(length).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// The part of the samples that this process takes: number `number`, from 1, of `parts`.
struct Part {
    number: usize,
    parts: usize,
}

impl Part {
    fn of(options: &TrainOptions) -> Result<Self> {
        let (number, parts) = options.cache.part()?.unwrap_or((1, 1));
        Ok(Self { number, parts })
    }

    /// Return this part: neighbours in the order of names, so that machines work in folders of their own.
    fn select(&self, taken: &[usize]) -> Vec<usize> {
        let (each, more) = (taken.len() / self.parts, taken.len() % self.parts);
        let begin = (self.number - 1) * each + (self.number - 1).min(more);
        taken[begin..begin + each + usize::from(self.number <= more)].to_vec()
    }

    /// Return what begins its lines.
    fn name(&self) -> String {
        if self.parts > 1 { format!("part {}/{}: ", self.number, self.parts) } else { String::new() }
    }

    /// Return what ends the names of its files.
    fn suffix(&self) -> String {
        if self.parts > 1 { format!("_{}_of_{}", self.number, self.parts) } else { String::new() }
    }
}

/// A file that names every fault as it is met; there is none before the first.
struct FaultList {
    path: PathBuf,
    lines: AtomicUsize,
}

impl FaultList {
    /// Forget those of an earlier build; a build of everything forgets those of parts too.
    fn cleared(cache: &SampleCache, part: &Part) -> Result<Self> {
        let path = cache.root.join(format!("{FAULTS}{}.txt", part.suffix()));
        let mut old = vec![path.clone()];
        if part.parts == 1 {
            let entries = fs::read_dir(&cache.root).map_err(|error| Error::io(&cache.root, error))?;
            let is_list = |name: &str| name.starts_with(FAULTS) && name.ends_with(".txt");
            let names = entries.flatten().filter(|entry| entry.file_name().to_str().is_some_and(is_list));
            old.extend(names.map(|entry| entry.path()));
        }
        for path in old {
            match fs::remove_file(&path) {
                Err(error)
                    if !matches!(
                        error.kind(),
                        ErrorKind::NotFound | ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied
                    ) =>
                {
                    return Err(Error::io(path, error));
                }
                _ => {}
            }
        }
        Ok(Self { path, lines: AtomicUsize::new(0) })
    }

    fn add(&self, kind: &str, reason: &str) -> Result<()> {
        let line = format!("{kind}: {}\n", on_one_line(reason));
        // Opened for each line: faults are rare, and a build that is killed leaves the list complete.
        let file = OpenOptions::new().append(true).create(true).custom_flags(libc::O_NOFOLLOW).open(&self.path);
        file.and_then(|mut file| file.write_all(line.as_bytes())).map_err(|error| Error::io(&self.path, error))?;
        self.lines.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn summary(&self) -> String {
        if self.lines.load(Ordering::Relaxed) == 0 {
            return String::new();
        }
        format!("; {} names the damaged, changed and bad ones", self.path.display())
    }
}
