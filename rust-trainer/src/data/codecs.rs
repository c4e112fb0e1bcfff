//! File encodings: bytes to RGB images, bytes to disparity in px.

use std::fs;
use std::io::Cursor;
use std::path::Path;

use half::f16;
use png::{BitDepth, ColorType, Transformations};
#[cfg(not(feature = "turbojpeg"))]
use zune_jpeg::{
    JpegDecoder,
    zune_core::{colorspace::ColorSpace, options::DecoderOptions},
};

use crate::data::sample::{Image, nearest_indices};
use crate::errors::{Error, Result};

/// Digits of the FSD code run from 0 to 254: its encoder works in base 255.
const FSD_BASE: u32 = 255;
const FSD_STEPS_PER_PX: f32 = 1000.0;
/// As many pixels as OpenCV decodes.
const LARGEST_PIXELS: usize = 1 << 30;
const JPEG_BEGINS: &[u8] = b"\xff\xd8\xff";
const PNG_BEGINS: &[u8] = b"\x89PNG\r\n\x1a\n";

/// Return the image of a JPEG or PNG file in RGB; grey gets three equal channels, 16 bits become 8.
///
/// An EXIF orientation is ignored: a rotated view would no longer be rectified, and disparity maps carry none.
pub fn read_rgb(path: &Path) -> Result<Image> {
    let encoded = read_bytes(path)?;
    if encoded.starts_with(JPEG_BEGINS) {
        decode_jpeg(path, &encoded)
    } else {
        let (header, bytes) = decode_png(path, &encoded, Transformations::EXPAND | Transformations::STRIP_16)?;
        Ok(Image { height: header.height, width: header.width, pixels: to_rgb(&bytes, header.channels) })
    }
}

/// Return the three digits of each pixel of an FSD disparity PNG.
pub fn read_fsd_code(path: &Path) -> Result<Image> {
    let encoded = read_bytes(path)?;
    let (header, pixels) = decode_png(path, &encoded, Transformations::IDENTITY)?;
    if (header.channels, header.bits) != (3, 8) {
        return Err(Error::Data(format!(
            "{}: a FoundationStereo disparity map is an 8-bit RGB PNG, but this one has {} channels of {} bits; was it \
             converted to grey or to depth?",
            path.display(),
            header.channels,
            header.bits
        )));
    }
    Ok(Image { height: header.height, width: header.width, pixels })
}

/// Return an FSD code as disparity in px at another size, NaN where unknown, rounded to float16.
///
/// disparity_px = (R * 255 * 255 + G * 255 + B) / 1000 at the code's own size. Each target pixel takes the sample at
/// its centre, and values follow the widths: an average of foreground and background would be a surface that is not
/// there. Only what is sampled is decoded.
///
/// Errors where a sampled disparity is larger than the file is wide.
pub fn decode_fsd_disparity(path: &Path, code: &Image, height: usize, width: usize) -> Result<Vec<f16>> {
    let (rows, columns) = (nearest_indices(code.height, height), nearest_indices(code.width, width));
    let ratio = (width as f64 / code.width as f64) as f32;
    let mut disparity_px = Vec::with_capacity(height * width);
    let mut largest_px = 0f32;
    for row in rows {
        let line = &code.pixels[row * code.width * 3..][..code.width * 3];
        for &column in &columns {
            let digits = &line[3 * column..][..3];
            let steps =
                u32::from(digits[0]) * FSD_BASE * FSD_BASE + u32::from(digits[1]) * FSD_BASE + u32::from(digits[2]);
            // The largest code has 24 bits, so it is exact in float32.
            let native_px = if steps == 0 { f32::NAN } else { steps as f32 / FSD_STEPS_PER_PX };
            largest_px = largest_px.max(native_px);
            disparity_px.push(f16::from_f32(native_px * ratio));
        }
    }
    if largest_px > code.width as f32 {
        return Err(Error::Data(format!(
            "{}: holds a disparity of {largest_px:.1} px in an image {} px wide; were its red and blue channels swapped, \
             or the map resized?",
            path.display(),
            code.width
        )));
    }
    Ok(disparity_px)
}

/// Write an RGB image as PNG, complete or not at all.
pub fn encode_png(image: &Image) -> Vec<u8> {
    let mut encoded = Vec::new();
    let mut encoder = png::Encoder::new(&mut encoded, image.width as u32, image.height as u32);
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    let written = encoder.write_header().and_then(|mut writer| writer.write_image_data(&image.pixels));
    written.expect("an image of ours in memory can be encoded");
    encoded
}

fn decode_jpeg(path: &Path, encoded: &[u8]) -> Result<Image> {
    let damaged = |reason: String| Error::Data(format!("{}: is damaged ({reason})", path.display()));
    if !ends_as_jpeg(encoded) {
        return Err(damaged("premature end of JPEG file".into()));
    }
    jpeg_pixels(encoded).map_err(damaged)
}

/// Decode by libjpeg-turbo, as the Python program does: the same pixels.
#[cfg(feature = "turbojpeg")]
fn jpeg_pixels(encoded: &[u8]) -> std::result::Result<Image, String> {
    let decode = || -> turbojpeg::Result<Image> {
        let mut decompressor = turbojpeg::Decompressor::new()?;
        let header = decompressor.read_header(encoded)?;
        let (height, width) = (header.height, header.width);
        let mut image = Image { height, width, pixels: vec![0; 3 * height * width] };
        let format = turbojpeg::PixelFormat::RGB;
        decompressor.decompress(
            encoded,
            turbojpeg::Image { pixels: &mut image.pixels[..], width, pitch: 3 * width, height, format },
        )?;
        Ok(image)
    };
    decode().map_err(|error| error.to_string())
}

/// Decode in Rust alone: luminance is libjpeg-turbo's, colours are its in the mean.
#[cfg(not(feature = "turbojpeg"))]
fn jpeg_pixels(encoded: &[u8]) -> std::result::Result<Image, String> {
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX))
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(Cursor::new(encoded), options);
    decoder.decode_headers().map_err(|error| error.to_string())?;
    let (width, height) = decoder.dimensions().unwrap_or_default();
    if width * height > LARGEST_PIXELS || width * height == 0 {
        return Err(format!("it says that it is {width}x{height}"));
    }
    let axes = if decoder.input_colorspace() == Some(ColorSpace::YCbCr) { enlarged_axes(encoded) } else { 0 };
    if axes > 0 {
        decoder.set_options(options.jpeg_set_out_colorspace(ColorSpace::YCbCr));
    }
    let mut pixels = decoder.decode().map_err(|error| error.to_string())?;
    if axes > 0 {
        convert_from_ycbcr(&mut pixels, axes);
    }
    Ok(Image { height, width, pixels })
}

/// Return along how many axes, 0 to 2, the colour planes of a JPEG have half the size of its luminance.
#[cfg(not(feature = "turbojpeg"))]
fn enlarged_axes(encoded: &[u8]) -> i32 {
    let mut at = 2;
    while let Some(&[0xff, marker, high, low]) = encoded.get(at..at + 4) {
        // A frame header is any of 0xc0 to 0xcf, but for those of tables: DHT, JPG and DAC.
        if matches!(marker, 0xc0..=0xcf) && !matches!(marker, 0xc4 | 0xc8 | 0xcc) {
            // Length, precision, height, width, components; of the first one its name and its factors, four bits each.
            let factors = encoded.get(at + 11).copied().unwrap_or(0x11);
            return i32::from(factors >> 4 == 2) + i32::from(factors & 15 == 2);
        }
        at += 2 + usize::from(u16::from_be_bytes([high, low]));
    }
    0
}

/// Turn Y, Cb and Cr (ITU-T T.871) into red, green and blue in place.
///
/// Each time zune-jpeg enlarges a colour plane it rounds multiples of a quarter, halves up: an eighth of a level too much
/// in the mean of noise, and nothing where colours are constant. A sixteenth is taken back here, measured on both.
#[cfg(not(feature = "turbojpeg"))]
fn convert_from_ycbcr(pixels: &mut [u8], enlarged_axes: i32) {
    const BITS: i32 = 16;
    let fixed = |factor: f64| (factor * f64::from(1 << BITS)).round() as i32;
    let (red, blue) = (fixed(1.402), fixed(1.772));
    let (green_of_cb, green_of_cr) = (fixed(0.344_136_286), fixed(0.714_136_286));
    let (zero, half) = (16 * 128 + enlarged_axes, 1 << (BITS + 3)); // sixteenths of a level
    for pixel in pixels.chunks_exact_mut(3) {
        let [y, cb, cr] = [i32::from(pixel[0]), 16 * i32::from(pixel[1]) - zero, 16 * i32::from(pixel[2]) - zero];
        let level = |colour: i32| (y + ((colour + half) >> (BITS + 4))).clamp(0, 255) as u8;
        pixel.copy_from_slice(&[level(red * cr), level(-green_of_cb * cb - green_of_cr * cr), level(blue * cb)]);
    }
}

/// Return true where an end-of-image marker follows the last scan: the decoder itself does not ask for it.
fn ends_as_jpeg(encoded: &[u8]) -> bool {
    // Neither marker can stand in compressed data; those of a thumbnail stand before the first scan.
    let last = |marker: [u8; 2]| encoded.windows(2).rposition(|pair| pair == marker);
    last([0xff, 0xd9]) > last([0xff, 0xda])
}

/// What a PNG's header says.
struct PngHeader {
    height: usize,
    width: usize,
    channels: usize,
    bits: u8,
}

fn decode_png(path: &Path, encoded: &[u8], transformations: Transformations) -> Result<(PngHeader, Vec<u8>)> {
    if !encoded.starts_with(PNG_BEGINS) {
        return Err(Error::Data(format!(
            "{}: {} bytes that are neither a JPEG nor a PNG; is the file damaged?",
            path.display(),
            encoded.len()
        )));
    }
    let damaged = |error: png::DecodingError| Error::Data(format!("{}: is damaged ({error})", path.display()));
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(encoded), png::Limits { bytes: 8 * LARGEST_PIXELS });
    decoder.set_transformations(transformations);
    let mut reader = decoder.read_info().map_err(damaged)?;
    let (width, height) = (reader.info().width as usize, reader.info().height as usize);
    let size = reader.output_buffer_size().filter(|_| width * height <= LARGEST_PIXELS);
    let Some(size) = size else {
        return Err(Error::Data(format!("{}: says that it is {width}x{height}; is the file damaged?", path.display())));
    };
    let mut pixels = vec![0; size];
    reader.next_frame(&mut pixels).map_err(damaged)?;
    reader.finish().map_err(damaged)?;
    let (colour, depth) = reader.output_color_type();
    Ok((PngHeader { height, width, channels: colour.samples(), bits: depth as u8 }, pixels))
}

/// Return grey, grey with alpha, RGB or RGBA as RGB; alpha is dropped.
fn to_rgb(pixels: &[u8], channels: usize) -> Vec<u8> {
    match channels {
        3 => pixels.to_vec(),
        4 => pixels.chunks_exact(4).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect(),
        _ => pixels.chunks_exact(channels).flat_map(|pixel| [pixel[0]; 3]).collect(),
    }
}

fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    let refused = |error: std::io::Error| {
        Error::Data(Error::io(path, error).to_string().replacen(": ", ": cannot be read (", 1) + ")")
    };
    let metadata = fs::metadata(path).map_err(refused)?;
    if !metadata.is_file() {
        return Err(Error::Data(format!("{}: is not a file", path.display())));
    }
    fs::read(path).map_err(refused)
}
