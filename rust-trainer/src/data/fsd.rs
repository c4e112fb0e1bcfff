//! Finding the samples of a FoundationStereo tree, and dividing them into training and validation.
//!
//! ```text
//! <root>/<scene>/dataset/data/{left/rgb,right/rgb}/NNNN.{jpg,jpeg,png}   and   left/disparity/NNNN.png
//! ```
//!
//! The same tree gives the same samples, in the same order and divided in the same way, as in the Python program.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use half::f16;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::data::codecs::{decode_fsd_disparity, read_fsd_code, read_rgb};
use crate::data::sample::{Image, SourceStamp, StereoSample, resize_image};
use crate::errors::{Error, Result};
use crate::files::to_hex;

/// In order of preference, should one frame come in several; in small letters, but files may have capitals.
const IMAGE_SUFFIXES: [&str; 3] = [".jpg", ".jpeg", ".png"];
const DISPARITY_SUFFIXES: [&str; 1] = [".png"];
/// A suffix is kept as its position in such a list, and one bit for each of its letters that is a capital.
const LETTER_BITS: u8 = 4;
const DATA: &str = "dataset/data";
const LEFT: &str = "dataset/data/left/rgb";
const RIGHT: &str = "dataset/data/right/rgb";
const DISPARITY: &str = "dataset/data/left/disparity";

/// One sample: its scene, its frame, and which suffixes its two images have.
#[derive(Clone, Debug, PartialEq)]
struct Frame {
    scene: u32,
    stem: Box<str>,
    left_suffix: u8,
    right_suffix: u8,
    disparity_suffix: u8,
}

/// Samples by name, `<scene>/<stem>`, sorted by scene and then by stem.
#[derive(Debug)]
pub struct FsdIndex {
    root: Option<PathBuf>,
    scenes: Vec<String>,
    frames: Vec<Frame>,
    /// Frames that were left out, with what they lack.
    pub incomplete: Vec<String>,
}

impl FsdIndex {
    /// Return the index of whatever subset of FSD's scenes lies below `root`, and warnings for the user.
    pub fn find(root: &Path) -> Result<(Self, Vec<String>)> {
        let entries = match fs::read_dir(root) {
            Ok(entries) => entries,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Err(Error::Data(format!(
                    "{}: no such folder; --dataset-root names the folder that holds the scenes",
                    root.display()
                )));
            }
            Err(error) => return Err(Error::io(root, error)),
        };
        let names = entries.map(|entry| entry.map(|entry| entry.file_name()).map_err(|error| Error::io(root, error)));
        let (mut scenes, mut warnings) = (Vec::new(), Vec::new());
        for name in names.collect::<Result<Vec<_>>>()? {
            match fs::metadata(root.join(&name).join(DATA)) {
                Ok(facts) if facts.is_dir() => scenes.push(as_utf8(&name)?.to_string()),
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
                Err(error) => {
                    let reason = Error::io(root.join(&name), error);
                    warnings.push(format!("{reason}: cannot be entered, and is left out"));
                }
            }
        }
        scenes.sort_unstable();
        let scans: Vec<(Vec<Frame>, Vec<String>)> =
            scenes.par_iter().enumerate().map(|(i, scene)| scan_scene(root, i as u32, scene)).collect::<Result<_>>()?;
        let index = Self {
            root: Some(root.to_path_buf()),
            incomplete: scans.iter().flat_map(|(_, incomplete)| incomplete.clone()).collect(),
            frames: scans.into_iter().flat_map(|(frames, _)| frames).collect(),
            scenes,
        };
        index.check_not_empty(root)?;
        Ok((index, warnings))
    }

    /// Return an index of names without files behind them: the entries of a cache.
    pub fn from_names(scenes: Vec<(String, Vec<String>)>) -> Self {
        let mut index = Self { root: None, scenes: Vec::new(), frames: Vec::new(), incomplete: Vec::new() };
        for (i, (scene, stems)) in scenes.into_iter().enumerate() {
            index.scenes.push(scene);
            let frame = |stem: String| Frame {
                scene: i as u32,
                stem: stem.into(),
                left_suffix: 0,
                right_suffix: 0,
                disparity_suffix: 0,
            };
            index.frames.extend(stems.into_iter().map(frame));
        }
        index
    }

    fn check_not_empty(&self, root: &Path) -> Result<()> {
        if self.scenes.is_empty() {
            let parent = root.parent().filter(|_| root.join(DATA).is_dir());
            let hint = parent.map(|parent| format!("; did you mean {}?", parent.display())).unwrap_or_default();
            return Err(Error::Data(format!("{}: holds no <scene>/{DATA} folder{hint}", root.display())));
        }
        if self.frames.is_empty() {
            let example = self.incomplete.first().map(|frame| format!("; for example {frame}")).unwrap_or_default();
            return Err(Error::Data(format!(
                "{}: none of its {} scenes holds a complete sample{example}",
                root.display(),
                self.scenes.len()
            )));
        }
        Ok(())
    }

    /// Return how many samples there are.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Return true where there is none.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Return true where there are files behind the names.
    pub fn has_files(&self) -> bool {
        self.root.is_some()
    }

    /// Return the scene of sample i.
    pub fn scene(&self, i: usize) -> &str {
        &self.scenes[self.frames[i].scene as usize]
    }

    /// Return the frame name of sample i, without suffix.
    pub fn stem(&self, i: usize) -> &str {
        &self.frames[i].stem
    }

    /// Return `<scene>/<stem>`: how messages and the cache name sample i.
    pub fn name(&self, i: usize) -> String {
        format!("{}/{}", self.scene(i), self.stem(i))
    }

    /// Return the files of sample i: left image, right image, disparity map.
    pub fn paths(&self, i: usize) -> [PathBuf; 3] {
        let root = self.root.as_deref().expect("only called where there are files");
        let (frame, scene) = (&self.frames[i], root.join(self.scene(i)));
        let file = |folder: &str, suffix: String| scene.join(folder).join(format!("{}{suffix}", frame.stem));
        [
            file(LEFT, spell_suffix(frame.left_suffix, &IMAGE_SUFFIXES)),
            file(RIGHT, spell_suffix(frame.right_suffix, &IMAGE_SUFFIXES)),
            file(DISPARITY, spell_suffix(frame.disparity_suffix, &DISPARITY_SUFFIXES)),
        ]
    }

    /// Return at most `at_most` positions, spread over all scenes in the same way on every machine, sorted.
    pub fn take_spread(&self, at_most: Option<usize>) -> Vec<usize> {
        match at_most {
            Some(count) if count < self.len() => {
                let mut taken = ranked((0..self.len()).map(|i| self.name(i)));
                taken.truncate(count);
                taken.sort_unstable();
                taken
            }
            _ => (0..self.len()).collect(),
        }
    }

    /// Divide samples by their names alone: no seed, no order, no machine changes what becomes of one.
    ///
    /// Frames of one scene are near-duplicates, so whole scenes are kept for validation where there are enough for the
    /// fraction to come out (at least 1 / val_fraction scenes); with fewer, single frames are.
    pub fn split(&self, taken: &[usize], val_fraction: f64) -> Result<Split> {
        if val_fraction == 0.0 {
            let by = "nothing: validation repeats the training samples".to_string();
            return Ok(Split { train: taken.to_vec(), validation: taken.to_vec(), by });
        }
        let scenes: Vec<u32> =
            taken.iter().map(|&i| self.frames[i].scene).collect::<BTreeSet<_>>().into_iter().collect();
        let share_of = |count: usize| ((count as f64 * val_fraction).round_ties_even() as usize).max(1);
        let (kept, by): (BTreeSet<usize>, String) = if scenes.len() as f64 * val_fraction >= 1.0 {
            let order = ranked(scenes.iter().map(|&scene| self.scenes[scene as usize].clone()));
            let kept: BTreeSet<u32> = order[..share_of(scenes.len())].iter().map(|&at| scenes[at]).collect();
            let by = format!("scene: {} of {} scenes validate", kept.len(), scenes.len());
            (taken.iter().copied().filter(|&i| kept.contains(&self.frames[i].scene)).collect(), by)
        } else {
            let order = ranked(taken.iter().map(|&i| self.name(i)));
            let by = format!(
                "frame: {} scenes are too few to keep some apart, so validation may be optimistic",
                scenes.len()
            );
            (order[..share_of(taken.len())].iter().map(|&at| taken[at]).collect(), by)
        };
        let (validation, train): (Vec<usize>, Vec<usize>) = taken.iter().partition(|i| kept.contains(i));
        if train.is_empty() {
            return Err(Error::Data(format!(
                "{} samples are too few to keep {:.0}% apart; use --val-fraction 0",
                taken.len(),
                100.0 * val_fraction
            )));
        }
        Ok(Split { train, validation, by })
    }

    /// Return twelve hex digits that identify a list of samples: the data set's identity in a run's record.
    pub fn fingerprint(&self, taken: &[usize]) -> String {
        let mut digest = Sha256::new();
        for &i in taken {
            digest.update(self.name(i).as_bytes());
            digest.update([0]);
        }
        to_hex(&digest.finalize())[..12].to_string()
    }
}

/// Which samples of an index train and which validate, and how they were divided.
#[derive(Clone, Debug, PartialEq)]
pub struct Split {
    pub train: Vec<usize>,
    pub validation: Vec<usize>,
    pub by: String,
}

/// Return positions of names in an order that looks random and follows from the names alone.
fn ranked(names: impl Iterator<Item = String>) -> Vec<usize> {
    let ranks: Vec<u64> = names
        .map(|name| u64::from_be_bytes(Sha256::digest(name.as_bytes())[..8].try_into().expect("eight bytes")))
        .collect();
    let mut order: Vec<usize> = (0..ranks.len()).collect();
    order.sort_by_key(|&i| ranks[i]); // stable: of equal ranks the first stays first
    order
}

/// Return a name as text.
pub fn as_utf8(name: &OsStr) -> Result<&str> {
    name.to_str()
        .ok_or_else(|| Error::Data(format!("{name:?}: a name of a scene or frame that is not UTF-8; rename it")))
}

fn scan_scene(root: &Path, scene: u32, name: &str) -> Result<(Vec<Frame>, Vec<String>)> {
    let folder = root.join(name);
    let left = frames_in(&folder.join(LEFT), &IMAGE_SUFFIXES)?;
    let right = frames_in(&folder.join(RIGHT), &IMAGE_SUFFIXES)?;
    let disparity = frames_in(&folder.join(DISPARITY), &DISPARITY_SUFFIXES)?;
    let stems: BTreeSet<&OsString> = left.keys().chain(right.keys()).chain(disparity.keys()).collect();
    let (mut complete, mut incomplete) = (Vec::new(), Vec::new());
    for stem in stems {
        let parts =
            [("left image", left.get(stem)), ("right image", right.get(stem)), ("disparity map", disparity.get(stem))];
        if let [(_, Some(&left_suffix)), (_, Some(&right_suffix)), (_, Some(&disparity_suffix))] = parts {
            let stem = as_utf8(stem)?.into();
            complete.push(Frame { scene, stem, left_suffix, right_suffix, disparity_suffix });
        } else {
            let missing: Vec<&str> = parts.iter().filter(|(_, found)| found.is_none()).map(|(part, _)| *part).collect();
            incomplete.push(format!("{name}/{} (no {})", stem.display(), missing.join(", no ")));
        }
    }
    Ok((complete, incomplete))
}

/// Return frame names with their suffix, as `split_suffix` keeps it; the preferred one where a frame has several.
fn frames_in(folder: &Path, suffixes: &[&str]) -> Result<BTreeMap<OsString, u8>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(BTreeMap::new());
        }
        Err(error) => return Err(Error::io(folder, error)),
    };
    let mut frames: HashMap<OsString, u8> = HashMap::new();
    for entry in entries {
        let name = entry.map_err(|error| Error::io(folder, error))?.file_name();
        let Some((stem, suffix)) = split_suffix(&name, suffixes) else { continue };
        let best = frames.entry(stem).or_insert(suffix);
        *best = (*best).min(suffix);
    }
    Ok(frames.into_iter().collect())
}

/// Return a name's stem and its suffix, if it is one of these: the position, and which of its letters are capitals.
///
/// Names that begin with a dot are no frames: macOS leaves a `._0000.jpg` beside each file on disks of other systems.
fn split_suffix(name: &OsStr, suffixes: &[&str]) -> Option<(OsString, u8)> {
    use std::os::unix::ffi::OsStrExt;
    let bytes = name.as_bytes();
    let dot = bytes.iter().rposition(|&byte| byte == b'.').filter(|_| bytes[0] != b'.')?;
    let position = suffixes.iter().position(|suffix| suffix.as_bytes().eq_ignore_ascii_case(&bytes[dot..]))?;
    // The first letter is the highest bit, so that small letters are preferred as in the Python program.
    let capitals = bytes[dot + 1..].iter().fold(0, |bits, letter| 2 * bits + u8::from(letter.is_ascii_uppercase()));
    Some((OsStr::from_bytes(&bytes[..dot]).to_os_string(), ((position as u8) << LETTER_BITS) | capitals))
}

/// Return the suffix that `split_suffix` kept.
fn spell_suffix(kept: u8, suffixes: &[&str]) -> String {
    let letters = &suffixes[usize::from(kept >> LETTER_BITS)][1..];
    let spell = |(i, letter): (usize, char)| match (kept >> (letters.len() - 1 - i)) & 1 {
        1 => letter.to_ascii_uppercase(),
        _ => letter,
    };
    format!(".{}", letters.chars().enumerate().map(spell).collect::<String>())
}

/// Read one sample at another height and width.
///
/// Errors where a file cannot be decoded, or the three do not have one size.
pub fn read_fsd_sample(paths: &[PathBuf; 3], height: usize, width: usize) -> Result<StereoSample> {
    let [left_path, right_path, disparity_path] = paths;
    let (left, right, code) = (read_rgb(left_path)?, read_rgb(right_path)?, read_fsd_code(disparity_path)?);
    for (path, image) in [(right_path, &right), (disparity_path, &code)] {
        if (image.height, image.width) != (left.height, left.width) {
            return Err(Error::Data(format!(
                "{}: is {}, but {} is {}; left and right view must match",
                path.display(),
                size_of(image),
                left_path.display(),
                size_of(&left)
            )));
        }
    }
    let disparity_px: Vec<f16> = decode_fsd_disparity(disparity_path, &code, height, width)?;
    Ok(StereoSample {
        left: resize_image(left, height, width).pixels,
        right: resize_image(right, height, width).pixels,
        disparity_px,
    })
}

/// Return sizes and times of the last change of a sample's files; to be taken before they are read.
pub fn source_stamp(paths: &[PathBuf; 3]) -> Result<SourceStamp> {
    let mut stamp = [[0; 2]; 3];
    for (path, facts) in paths.iter().zip(&mut stamp) {
        let found = fs::metadata(path).map_err(|error| Error::Data(Error::io(path, error).to_string()))?;
        *facts = [found.len() as i64, found.mtime() * 1_000_000_000 + found.mtime_nsec()];
    }
    Ok(stamp)
}

fn size_of(image: &Image) -> String {
    format!("{}x{}", image.width, image.height)
}
