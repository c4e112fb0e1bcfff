//! Random numbers, divisions, decoding, entries and augmentation, held to the Python program's golden files.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use foundation_stereo_trainer::data::augment::Augmentation;
use foundation_stereo_trainer::data::batch::{ReadCounts, StereoBatch, training_plan};
use foundation_stereo_trainer::data::cache::SampleCache;
use foundation_stereo_trainer::data::codecs::read_rgb;
use foundation_stereo_trainer::data::fsd::{FsdIndex, read_fsd_sample};
use foundation_stereo_trainer::data::random::{Key, Range, UNIT, standard_normal};
use foundation_stereo_trainer::data::sample::resize_image;
use foundation_stereo_trainer::options::AugmentOptions;
use half::f16;
use serde_json::Value;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/rust").join(name)
}

fn json(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(golden(name)).unwrap()).unwrap()
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

fn wholes(value: &Value) -> Vec<usize> {
    value.as_array().unwrap().iter().map(|number| number.as_u64().unwrap() as usize).collect()
}

fn entry_paths() -> [PathBuf; 3] {
    ["left", "right", "disparity"].map(|part| golden(&format!("entry_{part}.png")))
}

#[test]
fn random_numbers_are_pythons_to_the_bit() {
    let expected = json("random.json");
    for (row, index) in [0, 1, 12345].into_iter().enumerate() {
        let key = Key::new(3, 7, index);
        assert_eq!(key.uniform::<4>("gamma", UNIT).to_vec(), floats(&expected["uniform"][row]));
        let range = Range { low: -0.4, high: 1.7 };
        assert_eq!(key.uniform::<3>("vertical field", range).to_vec(), floats(&expected["uniform_in_range"][row]));
    }
    assert_eq!(Key::new(0, -1, 5).uniform::<2>("blur", UNIT).to_vec(), floats(&expected["negative_epoch"][0]));
}

#[test]
fn epochs_visit_samples_in_pythons_order() {
    let expected: Vec<Vec<usize>> = json("random.json")["plan"].as_array().unwrap().iter().map(wholes).collect();
    assert_eq!(training_plan(37, 8, 5, 2), expected);
}

#[test]
fn noise_is_pytorchs_up_to_rounding() {
    let expected = floats(&json("random.json")["normal"]);
    let found = standard_normal(expected.len(), 0);
    assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 2e-6), "{:?} {:?}", &found[..4], &expected[..4]);
}

#[test]
fn splits_and_fingerprints_are_pythons() {
    let expected = json("splits.json");
    let names = expected["names"].as_array().unwrap().iter().map(|scene| {
        let stems = scene[1].as_array().unwrap().iter().map(|stem| stem.as_str().unwrap().to_string()).collect();
        (scene[0].as_str().unwrap().to_string(), stems)
    });
    let index = FsdIndex::from_names(names.collect());
    for case in expected["cases"].as_array().unwrap() {
        let taken = index.take_spread(case["max_samples"].as_u64().map(|count| count as usize));
        assert_eq!(index.fingerprint(&taken), case["fingerprint"].as_str().unwrap());
        let split = index.split(&taken, case["val_fraction"].as_f64().unwrap()).unwrap();
        assert_eq!(split.train, wholes(&case["train"]), "{case}");
        assert_eq!(split.validation, wholes(&case["validation"]), "{case}");
        assert_eq!(split.by, case["by"].as_str().unwrap());
    }
}

#[test]
fn frames_in_capitals_are_samples_and_hidden_files_are_not() {
    let root = std::env::temp_dir().join(format!("fsd-capitals-{}", std::process::id()));
    let folders = ["left/rgb", "right/rgb", "left/disparity"].map(|part| root.join("room/dataset/data").join(part));
    for (folder, names) in folders.iter().zip([["0.JPG", "._1.jpg"], ["0.Jpeg", "._1.jpg"], ["0.PNG", "._1.png"]]) {
        std::fs::create_dir_all(folder).unwrap();
        for name in names {
            std::fs::write(folder.join(name), b"?").unwrap();
        }
    }
    let (index, _) = FsdIndex::find(&root).unwrap();
    let paths = index.paths(0);
    std::fs::remove_dir_all(&root).unwrap();
    assert_eq!((index.len(), index.incomplete.len(), index.name(0)), (1, 0, "room/0".to_string()));
    assert_eq!(paths, [folders[0].join("0.JPG"), folders[1].join("0.Jpeg"), folders[2].join("0.PNG")]);
}

#[test]
fn entries_of_whole_ratios_are_pythons_to_the_byte() {
    for (height, width) in [(32, 32), (48, 64)] {
        let sample = read_fsd_sample(&entry_paths(), height, width).unwrap();
        assert!(sample.disparity_px.iter().any(|px| px.is_nan()));
        let folder = tempfile::tempdir().unwrap();
        let cache = SampleCache::open(folder.path(), height, width).unwrap();
        let expected = std::fs::read(golden(&format!("entries/{height}x{width}.npz"))).unwrap();
        assert!(cache.encode(&sample, &[[1, 2], [3, 4], [5, 6]]) == expected, "{height}x{width}");
    }
}

#[test]
fn other_ratios_differ_by_one_level_at_most_and_disparity_not_at_all() {
    for (height, width) in [(40, 36), (120, 48)] {
        let sample = read_fsd_sample(&entry_paths(), height, width).unwrap();
        let mut expected = sample.clone();
        // Where there is no manifest, entries of any one size are read.
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("a")).unwrap();
        std::fs::copy(golden(&format!("entries/{height}x{width}.npz")), folder.path().join("a/b.npz")).unwrap();
        let cache = SampleCache::open(folder.path(), height, width).unwrap();
        assert!(cache.read("a", "b", &mut expected.destination()).unwrap());
        for (found, expected) in [(&sample.left, &expected.left), (&sample.right, &expected.right)] {
            let largest = found.iter().zip(expected).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(largest <= 1, "{height}x{width}: {largest} levels");
        }
        let bits = |disparity_px: &[f16]| disparity_px.iter().map(|px| px.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&sample.disparity_px), bits(&expected.disparity_px));
    }
}

#[test]
fn averaged_jpegs_are_near_those_of_libjpeg_turbo() {
    let averaged = resize_image(read_rgb(&golden("entry_left.jpg")).unwrap(), 32, 32);
    let expected = read_rgb(&golden("entry_left_jpeg_32x32.png")).unwrap();
    let differences: Vec<u8> = averaged.pixels.iter().zip(&expected.pixels).map(|(a, b)| a.abs_diff(*b)).collect();
    let mean = differences.iter().map(|&levels| f64::from(levels)).sum::<f64>() / differences.len() as f64;
    let largest = differences.iter().max().unwrap();
    println!("{mean:.3} levels in the mean, {largest} at most");
    let allowed = if cfg!(feature = "turbojpeg") { (0.0, 0) } else { (0.3, 4) };
    assert!(mean <= allowed.0 && *largest <= allowed.1, "{mean} levels in the mean, {largest} at most");
}

#[test]
fn cut_or_damaged_images_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["entry_left.jpg", "entry_left.png"] {
        let whole = std::fs::read(golden(name)).unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, &whole).unwrap();
        read_rgb(&path).unwrap();
        for end in (0..whole.len()).step_by(97) {
            std::fs::write(&path, &whole[..end]).unwrap();
            let error = read_rgb(&path).expect_err(&format!("{name} cut at {end}"));
            assert!(error.to_string().contains(name));
        }
        let mut zeros = whole.clone();
        let half = zeros.len() / 2;
        zeros[half..].fill(0);
        std::fs::write(&path, &zeros).unwrap();
        assert!(read_rgb(&path).is_err(), "{name} that ends in zeros");
    }
}

#[test]
fn augmented_pairs_are_pythons() {
    let expected = candle_core::safetensors::load(golden("augmented.safetensors"), &Device::Cpu).unwrap();
    let plain = AugmentOptions { jpeg_prob: 0.0, ..AugmentOptions::default() };
    let user = AugmentOptions {
        lighting_jitter: 0.0,
        erase_prob: 0.0,
        vertical_offset_max_px: 0.0,
        blur_prob: 1.0,
        noise_std_max: 0.1,
        ..plain.clone()
    };
    let all = AugmentOptions {
        blur_prob: 0.6,
        erase_prob: 0.8,
        vertical_offset_max_px: 2.5,
        flip_prob: 0.5,
        ..plain.clone()
    };
    for (name, options) in [("user", user), ("all", all), ("default", plain)] {
        let mut batch = repeated(&expected["small"]);
        let keys: Vec<Key> = batch.indices.iter().map(|&index| Key::new(6, 3, index)).collect();
        let augmentation = Augmentation::new(&options, batch.height, batch.width);
        augmentation.flip(&mut batch, &keys);
        let pair = augmentation.pair(&batch, &keys, &Device::Cpu).unwrap();
        let (found, expected_pair) = (strided(&pair, 3, 2), flat(&expected[name]));
        let largest = found.iter().zip(&expected_pair).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!("{name}: {largest:.1e}");
        assert!(largest < 1e-5, "{name}: {largest}");
        let firsts: Vec<f32> = (0..3)
            .flat_map(|row| (0..48).step_by(12).map(move |y| (row * 48 + y) * 64))
            .map(|at| batch.disparity_px[at].to_f32())
            .collect();
        let halved =
            |values: Vec<f32>| values.into_iter().map(|value| f16::from_f32(value).to_f32()).collect::<Vec<_>>();
        assert_eq!(firsts, halved(flat(&expected[&format!("{name}.disparity_px")])), "{name}");
    }
}

/// Bytes [B, 6, h, w], each repeated over 4x4 pixels; disparity counts the pixels.
fn repeated(small: &Tensor) -> StereoBatch {
    let (count, _, h, w) = small.dims4().unwrap();
    let values: Vec<u8> = small.flatten_all().unwrap().to_vec1().unwrap();
    let (height, width) = (4 * h, 4 * w);
    let view = |first: usize| {
        let mut bytes = Vec::new();
        for (image, y, x) in (0..count).flat_map(|i| (0..height).flat_map(move |y| (0..width).map(move |x| (i, y, x))))
        {
            bytes.extend((first..first + 3).map(|channel| values[((image * 6 + channel) * h + y / 4) * w + x / 4]));
        }
        bytes
    };
    StereoBatch {
        height,
        width,
        left: view(0),
        right: view(3),
        disparity_px: (0..count * height * width).map(|at| f16::from_f32(at as f32)).collect(),
        indices: vec![0, 5, 9],
        counts: ReadCounts::default(),
    }
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn strided(tensor: &Tensor, down: usize, across: usize) -> Vec<f32> {
    let (_, _, height, width) = tensor.dims4().unwrap();
    let values = flat(tensor);
    let kept = values.chunks_exact(width).enumerate().filter(|(row, _)| row % height % down == 0);
    kept.flat_map(|(_, row)| row.iter().copied().step_by(across)).collect()
}
