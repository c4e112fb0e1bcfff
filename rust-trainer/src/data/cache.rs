//! The NPZ cache: samples at the network's size on a fast disk, written once and read in every epoch. docs/formats.md.
//!
//! It is the Python program's cache: both may read and fill one folder at the same time.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use half::f16;
use serde_json::{Value, json};

use crate::data::npz::{Kind, NpzError, NpzFile, encode_npz};
use crate::data::sample::{SourceStamp, StereoSample};
use crate::errors::{Error, Result};
use crate::files::{DURABLE, Manner, QUICK, disk_space, remove_abandoned, write_atomically};

/// The name of the file that states a cache's size.
pub const MANIFEST: &str = "cache.json";
/// Ends the names of entries.
pub const ENTRY_SUFFIX: &str = ".npz";

const CACHE_FORMAT: i64 = 1;
const RESAMPLING: &str = "images by area average, disparity by nearest sample at the pixel centre";
const SOURCE_SHAPE: [usize; 2] = [3, 2];
/// A file may be so many times as large as its arrays (it may hold other members), and a mebibyte more.
const LARGEST_FILE: u64 = 8;
/// Entries of another program that are probed until one states its size.
const PROBED: usize = 16;

/// The entries below one root, all of one size.
#[derive(Debug)]
pub struct SampleCache {
    pub root: PathBuf,
    pub height: usize,
    pub width: usize,
    /// Folders in which this process has removed what killed writers left.
    tidied: Mutex<HashSet<PathBuf>>,
}

/// Where a sample goes when it is read.
pub struct Destination<'a> {
    pub left: &'a mut [u8],
    pub right: &'a mut [u8],
    pub disparity_px: &'a mut [f16],
}

impl SampleCache {
    /// Open the cache at `root`, where there may be nothing yet.
    ///
    /// Errors where the cache was made with another size or format version.
    pub fn open(root: &Path, height: usize, width: usize) -> Result<Self> {
        let cache = Self { root: root.to_path_buf(), height, width, tidied: Mutex::default() };
        cache.check_manifest()?;
        Ok(cache)
    }

    /// Return where the entry of a sample lies.
    pub fn path(&self, scene: &str, stem: &str) -> PathBuf {
        self.root.join(scene).join(format!("{stem}{ENTRY_SUFFIX}"))
    }

    /// Read an entry, its checksums verified; returns false where there is none.
    pub fn read(&self, scene: &str, stem: &str, into: &mut Destination) -> Result<bool> {
        let path = self.path(scene, stem);
        match self.read_entry(&path)? {
            None => Ok(false),
            Some(encoded) => {
                self.decode(&encoded, into).map_err(|error| corrupt(&path, &error))?;
                Ok(true)
            }
        }
    }

    /// Return what an entry was made of, and whether the entry is complete; None where there is no entry.
    ///
    /// An entry of another program does not state its source.
    pub fn verify(&self, scene: &str, stem: &str) -> Result<Option<(Option<SourceStamp>, u64)>> {
        let path = self.path(scene, stem);
        let Some(encoded) = self.read_entry(&path)? else { return Ok(None) };
        let mut sample = self.empty_sample();
        self.decode(&encoded, &mut sample.destination()).map_err(|error| corrupt(&path, &error))?;
        Ok(Some((read_source(&encoded), encoded.len() as u64)))
    }

    /// Return what an entry was made of, where it is there and says so.
    pub fn source(&self, scene: &str, stem: &str) -> Result<Option<SourceStamp>> {
        Ok(self.read_entry(&self.path(scene, stem))?.and_then(|encoded| read_source(&encoded)))
    }

    fn read_entry(&self, path: &Path) -> Result<Option<Vec<u8>>> {
        let refused = |error: std::io::Error| corrupt(path, &format!("cannot be read ({})", error.kind()));
        let mut file = match open_without_waiting(path) {
            Ok(file) => file,
            Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(error) => return Err(refused(error)),
        };
        let metadata = file.metadata().map_err(refused)?;
        let largest = LARGEST_FILE * (8 * self.height * self.width) as u64 + (1 << 20);
        if !metadata.is_file() || metadata.len() > largest {
            return Err(corrupt(path, &format!("is damaged (no file of at most {largest} bytes)")));
        }
        let mut encoded = Vec::with_capacity(metadata.len() as usize + 1);
        file.read_to_end(&mut encoded).map_err(refused)?;
        Ok(Some(encoded))
    }

    fn decode(&self, encoded: &[u8], into: &mut Destination) -> std::result::Result<(), NpzError> {
        let (height, width) = (self.height, self.width);
        let file = NpzFile::open(encoded)?;
        into.left.copy_from_slice(&file.array("left", &[Kind::U8], &[height, width, 3])?.bytes);
        into.right.copy_from_slice(&file.array("right", &[Kind::U8], &[height, width, 3])?.bytes);
        let disparity = file.array("disparity", &[Kind::F16, Kind::F32], &[height, width])?;
        if disparity.kind == Kind::F16 {
            for (px, bytes) in into.disparity_px.iter_mut().zip(disparity.bytes.chunks_exact(2)) {
                *px = f16::from_le_bytes([bytes[0], bytes[1]]);
            }
        } else {
            for (px, bytes) in into.disparity_px.iter_mut().zip(disparity.bytes.chunks_exact(4)) {
                *px = f16::from_f32(f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
            }
        }
        Ok(())
    }

    /// Make or replace an entry, and return its size in bytes.
    ///
    /// `leave_free`: the disk counts as full when no more than this share of it is free.
    pub fn write(
        &self,
        scene: &str,
        stem: &str,
        sample: &StereoSample,
        source: &SourceStamp,
        leave_free: f64,
    ) -> Result<u64> {
        for part in [scene, &format!("{stem}{ENTRY_SUFFIX}")] {
            if part.is_empty() || part.contains('/') || [".", "..", MANIFEST].contains(&part) {
                return Err(Error::RefusedEntry(format!(
                    "{}: no entry can be written for {scene}/{stem}; rename its folder",
                    self.root.display()
                )));
            }
        }
        let path = self.path(scene, stem);
        let folder = self.root.join(scene);
        self.make_folder(&folder)?;
        let (free, total) = disk_space(&folder)?;
        if (free as f64) < leave_free * total as f64 {
            return Err(Error::io(&path, std::io::ErrorKind::StorageFull.into()));
        }
        let encoded = self.encode(sample, source);
        // Not forced to the disk: an entry torn by a power cut fails its checksum and is rebuilt.
        write_atomically(&path, &[&encoded], QUICK)?;
        Ok(encoded.len() as u64)
    }

    /// Return the bytes of an entry: those that the Python program writes.
    pub fn encode(&self, sample: &StereoSample, source: &SourceStamp) -> Vec<u8> {
        let image = [self.height, self.width, 3];
        let disparity: Vec<u8> = sample.disparity_px.iter().flat_map(|px| px.to_le_bytes()).collect();
        let source: Vec<u8> = source.iter().flatten().flat_map(|number| number.to_le_bytes()).collect();
        encode_npz(&[
            ("left", Kind::U8, &image, &sample.left),
            ("right", Kind::U8, &image, &sample.right),
            ("disparity", Kind::F16, &image[..2], &disparity),
            ("source", Kind::I64, &SOURCE_SHAPE, &source),
        ])
    }

    /// Return room for one sample.
    pub fn empty_sample(&self) -> StereoSample {
        let pixels = self.height * self.width;
        StereoSample { left: vec![0; 3 * pixels], right: vec![0; 3 * pixels], disparity_px: vec![f16::NAN; pixels] }
    }

    /// Remove what killed writers left in the whole cache, and return how many files that was.
    pub fn remove_abandoned(&self) -> Result<usize> {
        let mut removed = remove_abandoned(&self.root)?;
        for folder in self.folders()? {
            if !folder.is_symlink() {
                removed += remove_abandoned(&folder)?;
            }
        }
        Ok(removed)
    }

    /// Return the scenes and stems of all entries, sorted.
    ///
    /// Errors where there is none, or a name is not UTF-8.
    pub fn names(&self) -> Result<Vec<(String, Vec<String>)>> {
        if !self.root.is_dir() {
            return Err(Error::Data(format!(
                "{}: no such folder; --cache-root names the folder of the entries",
                self.root.display()
            )));
        }
        let mut scenes = Vec::new();
        for folder in self.folders()? {
            let mut stems = Vec::new();
            for name in file_names(&folder)? {
                let name = crate::data::fsd::as_utf8(&name)?;
                stems.extend(name.strip_suffix(ENTRY_SUFFIX).map(str::to_string));
            }
            stems.sort_unstable();
            let name = crate::data::fsd::as_utf8(folder.file_name().unwrap_or_default())?;
            if !stems.is_empty() {
                scenes.push((name.to_string(), stems));
            }
        }
        scenes.sort_unstable();
        if scenes.is_empty() {
            return Err(Error::Data(format!(
                "{}: holds no <scene>/<stem>{ENTRY_SUFFIX}; fill it with --build-cache-only",
                self.root.display()
            )));
        }
        Ok(scenes)
    }

    /// Check that no two samples share an entry, as `Room` and `room` do on a disk that ignores case.
    pub fn check_case_collisions(&self, names: impl Iterator<Item = String>) -> Result<()> {
        let manifest = self.root.join(MANIFEST);
        if !manifest.exists() || !self.root.join(MANIFEST.to_uppercase()).exists() {
            return Ok(()); // this disk tells capitals apart
        }
        let mut seen = HashMap::new();
        for name in names {
            if let Some(other) = seen.insert(name.to_lowercase(), name.clone()) {
                return Err(Error::Data(format!(
                    "{}: this disk takes {other} and {name} for one name; rename one of them, or name a --cache-root on \
                     a disk that tells capitals apart",
                    self.root.display()
                )));
            }
        }
        Ok(())
    }

    /// Make the cache's folder and its manifest, where there is nothing yet.
    pub fn make_root(&self) -> Result<()> {
        fs::create_dir_all(&self.root).map_err(|error| Error::io(&self.root, error))?;
        let manifest = self.root.join(MANIFEST);
        if !manifest.exists() && self.first_entries(1)?.is_empty() {
            remove_abandoned(&self.root)?;
            let text = self.manifest_text();
            match write_atomically(&manifest, &[text.as_bytes()], Manner { replace: false, ..DURABLE }) {
                // Another program was quicker.
                Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::AlreadyExists => {}
                written => written?,
            }
        }
        self.check_manifest()
    }

    fn make_folder(&self, folder: &Path) -> Result<()> {
        if folder.is_symlink() {
            return Err(Error::RefusedEntry(format!(
                "{}: is a link that may lead out of the cache; replace it by a folder",
                folder.display()
            )));
        }
        if !folder.is_dir() {
            self.make_root()?;
            match fs::create_dir(folder) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(Error::io(folder, error));
                }
                _ => {}
            }
        }
        let mut tidied = self.tidied.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if tidied.insert(folder.to_path_buf()) {
            remove_abandoned(folder)?;
        }
        Ok(())
    }

    /// The folders that may hold entries. Every disk has a folder of its own, which only its system may enter.
    fn folders(&self) -> Result<Vec<PathBuf>> {
        let names = file_names(&self.root)?;
        Ok(names
            .into_iter()
            .filter(|name| name != "lost+found")
            .map(|name| self.root.join(name))
            .filter(|path| path.is_dir())
            .collect())
    }

    fn first_entries(&self, at_most: usize) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for folder in self.folders()? {
            for name in file_names(&folder)? {
                if found.len() == at_most {
                    return Ok(found);
                }
                if name.as_encoded_bytes().ends_with(ENTRY_SUFFIX.as_bytes()) {
                    found.push(folder.join(name));
                }
            }
        }
        Ok(found)
    }

    fn manifest_text(&self) -> String {
        let manifest = json!({
            "format_version": CACHE_FORMAT, "height": self.height, "width": self.width, "resampling": RESAMPLING,
        });
        format!("{manifest:#}\n")
    }

    fn check_manifest(&self) -> Result<()> {
        let path = self.root.join(MANIFEST);
        if !path.exists() {
            return self.check_foreign_size();
        }
        let foreign =
            || Error::Data(format!("{}: is not a manifest of this program; name another --cache-root", path.display()));
        let text = fs::read_to_string(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::InvalidData => foreign(),
            _ => Error::io(&path, error),
        })?;
        let found: Value = serde_json::from_str(&text).map_err(|_| foreign())?;
        let number = |key: &str| found.get(key).and_then(Value::as_i64).ok_or_else(foreign);
        let (format, height, width) = (number("format_version")?, number("height")?, number("width")?);
        if (format, height, width) != (CACHE_FORMAT, self.height as i64, self.width as i64) {
            return Err(Error::Data(format!(
                "{}: was made at {width}x{height}, format {format}, but {}x{}, format {CACHE_FORMAT} is asked for; name \
                 another --cache-root, or use its --height and --width",
                self.root.display(),
                self.width,
                self.height
            )));
        }
        Ok(())
    }

    /// Refuse entries of another program that have another size; a damaged one says nothing about size.
    fn check_foreign_size(&self) -> Result<()> {
        if !self.root.is_dir() {
            return Ok(());
        }
        for path in self.first_entries(PROBED)? {
            let Ok(Some(encoded)) = self.read_entry(&path) else { continue };
            let Ok(file) = NpzFile::open(&encoded) else { continue };
            match file.array("left", &[Kind::U8], &[self.height, self.width, 3]) {
                Ok(_) => return Ok(()),
                Err(reason) if reason.starts_with("holds") || reason.contains("unpacks to") => {
                    return Err(Error::Data(format!(
                        "{}: {reason}: {}x{} is asked for; name another --cache-root, or use its --height and --width",
                        path.display(),
                        self.width,
                        self.height
                    )));
                }
                Err(_) => {}
            }
        }
        Ok(())
    }
}

impl StereoSample {
    /// Return the sample as a place to read another one to.
    pub fn destination(&mut self) -> Destination<'_> {
        Destination { left: &mut self.left, right: &mut self.right, disparity_px: &mut self.disparity_px }
    }
}

fn read_source(encoded: &[u8]) -> Option<SourceStamp> {
    let source = NpzFile::open(encoded).ok()?.array("source", &[Kind::I64], &SOURCE_SHAPE).ok()?;
    let mut numbers = source.bytes.chunks_exact(8).filter_map(|bytes| bytes.try_into().ok().map(i64::from_le_bytes));
    let mut stamp = [[0; 2]; 3];
    for number in stamp.iter_mut().flatten() {
        *number = numbers.next()?;
    }
    Some(stamp)
}

/// Open a file, not waiting for the writer of a pipe: a pipe is no entry.
fn open_without_waiting(path: &Path) -> std::io::Result<fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)
}

fn file_names(folder: &Path) -> Result<Vec<std::ffi::OsString>> {
    let entries = fs::read_dir(folder).map_err(|error| Error::io(folder, error))?;
    entries.map(|entry| entry.map(|entry| entry.file_name()).map_err(|error| Error::io(folder, error))).collect()
}

fn corrupt(path: &Path, reason: &str) -> Error {
    Error::CorruptEntry(format!("{}: {reason}; delete it to have it rebuilt", path.display()))
}
