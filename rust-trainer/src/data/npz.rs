//! Reading and writing NPZ files of known arrays. An NPZ is a ZIP of NPY files.
//!
//! Files are written byte for byte as `numpy.savez` writes them. Every legal NPZ is read (stored or deflated, ZIP64,
//! Fortran order, either byte order, with members that no one asked for); every checksum is verified, and every size
//! is checked before memory is taken. The fields of a ZIP's records are named as in PKWARE's APPNOTE.TXT, 4.3.

use std::borrow::Cow;
use std::io::Read;

use flate2::read::DeflateDecoder;

/// Bytes that the NPY header of one array may take; NumPy writes 128.
const LARGEST_HEADER: usize = 4096;
const LOCAL_HEADER_BYTES: usize = 30;
const CENTRAL_HEADER_BYTES: usize = 46;
const END_RECORD_BYTES: usize = 22;
const END_SEARCH_BYTES: usize = END_RECORD_BYTES + (1 << 16);
const ZIP64_EXTRA: u16 = 1;
const STORED: u16 = 0;
const DEFLATED: u16 = 8;
const ENCRYPTED: u16 = 1;

/// Why a file is no NPZ with the wanted arrays in it; the text continues a line that begins with the file's name.
pub type NpzError = String;

/// A number type that arrays of ours have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    U8,
    F16,
    F32,
    I64,
}

impl Kind {
    fn bytes(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::F16 => 2,
            Self::F32 => 4,
            Self::I64 => 8,
        }
    }

    fn descr(self) -> &'static str {
        match self {
            Self::U8 => "|u1",
            Self::F16 => "<f2",
            Self::F32 => "<f4",
            Self::I64 => "<i8",
        }
    }

    fn from_code(code: &str) -> Option<Self> {
        match code {
            "u1" => Some(Self::U8),
            "f2" => Some(Self::F16),
            "f4" => Some(Self::F32),
            "i8" => Some(Self::I64),
            _ => None,
        }
    }
}

/// One array as it stands in a file: little-endian bytes in C order.
#[derive(Debug)]
pub struct Array<'a> {
    pub kind: Kind,
    pub bytes: Cow<'a, [u8]>,
}

/// A ZIP in memory whose directory was read.
pub struct NpzFile<'a> {
    encoded: &'a [u8],
    members: Vec<Member>,
}

#[derive(Clone, Debug)]
struct Member {
    name: Vec<u8>,
    flags: u16,
    method: u16,
    crc: u32,
    stored_size: u64,
    size: u64,
    start: u64,
}

impl<'a> NpzFile<'a> {
    /// Read the directory of a ZIP.
    pub fn open(encoded: &'a [u8]) -> Result<Self, NpzError> {
        let members = read_directory(encoded).ok_or("is damaged (it is not a complete ZIP file)")?;
        Ok(Self { encoded, members })
    }

    /// Return true where there is an array of this name.
    pub fn contains(&self, key: &str) -> bool {
        self.member(key).is_some()
    }

    /// Return an array whose shape has to be `shape` and whose type has to be one of `kinds`, its checksum verified.
    pub fn array(&self, key: &str, kinds: &[Kind], shape: &[usize]) -> Result<Array<'a>, NpzError> {
        let member = self.member(key).ok_or_else(|| format!("lacks {key}"))?;
        let widest = kinds.iter().map(|kind| kind.bytes()).max().unwrap_or(1);
        let largest = shape.iter().product::<usize>() * widest + LARGEST_HEADER;
        let body = self.body(key, member, largest)?;
        let header = NpyHeader::parse(&body[..body.len().min(LARGEST_HEADER)])
            .ok_or_else(|| format!("is damaged (its {key} does not begin as an NPY array does)"))?;
        let expected =
            || format!("holds {key} {} {:?}, not {} {shape:?}", header.descr, header.shape, kinds[0].descr());
        let kind = Kind::from_code(&header.descr[1..]).filter(|kind| kinds.contains(kind)).ok_or_else(expected)?;
        if header.shape != shape {
            return Err(expected());
        }
        if body.len() != header.length + shape.iter().product::<usize>() * kind.bytes() {
            return Err(format!("is damaged (its {key} has not the length that its header names)"));
        }
        Ok(Array { kind, bytes: in_our_order(body, &header, kind) })
    }

    fn member(&self, key: &str) -> Option<&Member> {
        self.members.iter().rev().find(|member| member.name.strip_suffix(b".npy") == Some(key.as_bytes()))
    }

    /// Return what a member unpacks to, at most `largest` bytes of it, its checksum verified.
    fn body(&self, key: &str, member: &Member, largest: usize) -> Result<Cow<'a, [u8]>, NpzError> {
        let packed = self
            .packed(member)
            .ok_or_else(|| format!("is damaged (its {key} is not where the directory places it)"))?;
        if member.size > largest as u64 {
            return Err(format!(
                "is damaged (its {key} unpacks to {} bytes, more than the {largest} expected)",
                member.size
            ));
        }
        let body: Cow<'a, [u8]> = match member.method {
            STORED if member.size == member.stored_size => packed.into(),
            DEFLATED => inflate(packed, member.size as usize)
                .ok_or_else(|| format!("is damaged (its {key} cannot be inflated)"))?
                .into(),
            method => return Err(format!("is damaged (its {key} is packed by method {method})")),
        };
        if crc32fast::hash(&body) != member.crc {
            return Err(format!("is damaged (its {key} has another checksum)"));
        }
        Ok(body)
    }

    /// Return the bytes of a member, whose local header has to agree with the directory.
    fn packed(&self, member: &Member) -> Option<&'a [u8]> {
        let start = usize::try_from(member.start).ok()?;
        let header = self.encoded.get(start..)?.get(..LOCAL_HEADER_BYTES)?;
        let (flags, method) = (u16_at(header, 6), u16_at(header, 8));
        let (name, extra) = (usize::from(u16_at(header, 26)), usize::from(u16_at(header, 28)));
        let name_at = start + LOCAL_HEADER_BYTES;
        let agrees = header.starts_with(b"PK\x03\x04")
            && method == member.method
            && (flags | member.flags) & ENCRYPTED == 0
            && self.encoded.get(name_at..name_at + name)? == member.name;
        let begin = name_at + name + extra;
        let end = begin.checked_add(usize::try_from(member.stored_size).ok()?)?;
        agrees.then(|| self.encoded.get(begin..end)).flatten()
    }
}

fn inflate(packed: &[u8], size: usize) -> Option<Vec<u8>> {
    let mut body = Vec::with_capacity(size);
    // One byte more, to see that there is no more.
    DeflateDecoder::new(packed).take(size as u64 + 1).read_to_end(&mut body).ok()?;
    (body.len() == size).then_some(body)
}

/// Return the members that a ZIP's directory lists; None where it is no complete ZIP.
fn read_directory(encoded: &[u8]) -> Option<Vec<Member>> {
    let from = encoded.len().saturating_sub(END_SEARCH_BYTES);
    let end = from + encoded[from..].windows(4).rposition(|window| window == b"PK\x05\x06")?;
    let record = encoded.get(end..)?.get(..END_RECORD_BYTES)?;
    if end + END_RECORD_BYTES + usize::from(u16_at(record, 20)) != encoded.len() {
        return None;
    }
    let (mut count, mut length, mut start) =
        (u64::from(u16_at(record, 10)), u64::from(u32_at(record, 12)), u64::from(u32_at(record, 16)));
    let mut directory_end = end as u64;
    if count == 0xFFFF || length == 0xFFFF_FFFF || start == 0xFFFF_FFFF {
        let locator = encoded.get(end.checked_sub(20)?..end)?;
        if locator.starts_with(b"PK\x06\x07") {
            let at = u64_at(locator, 8);
            let record = encoded.get(usize::try_from(at).ok()?..)?.get(..56)?;
            if !record.starts_with(b"PK\x06\x06") {
                return None;
            }
            (count, length, start) = (u64_at(record, 32), u64_at(record, 40), u64_at(record, 48));
            directory_end = at;
        }
    }
    if start.checked_add(length)? != directory_end {
        return None;
    }
    read_members(encoded.get(usize::try_from(start).ok()?..usize::try_from(directory_end).ok()?)?, count)
}

fn read_members(mut directory: &[u8], count: u64) -> Option<Vec<Member>> {
    let mut members = Vec::new();
    for _ in 0..count {
        let header = directory.get(..CENTRAL_HEADER_BYTES)?;
        let [name, extra, comment] = [28, 30, 32].map(|at| usize::from(u16_at(header, at)));
        if !header.starts_with(b"PK\x01\x02") {
            return None;
        }
        let name_end = CENTRAL_HEADER_BYTES + name;
        let mut member = Member {
            name: directory.get(CENTRAL_HEADER_BYTES..name_end)?.to_vec(),
            flags: u16_at(header, 8),
            method: u16_at(header, 10),
            crc: u32_at(header, 16),
            stored_size: u64::from(u32_at(header, 20)),
            size: u64::from(u32_at(header, 24)),
            start: u64::from(u32_at(header, 42)),
        };
        member.read_zip64(directory.get(name_end..name_end + extra)?)?;
        members.push(member);
        directory = directory.get(name_end + extra + comment..)?;
    }
    directory.is_empty().then_some(members)
}

impl Member {
    /// Take sizes of 64 bits from the extra fields, for those that did not fit into 32.
    fn read_zip64(&mut self, mut extra: &[u8]) -> Option<()> {
        while extra.len() >= 4 {
            let (tag, length) = (u16_at(extra, 0), usize::from(u16_at(extra, 2)));
            let mut values = extra.get(4..4 + length)?;
            if tag == ZIP64_EXTRA {
                for field in [&mut self.size, &mut self.stored_size, &mut self.start] {
                    if *field == 0xFFFF_FFFF {
                        *field = u64_at(values.get(..8)?, 0);
                        values = &values[8..];
                    }
                }
            }
            extra = &extra[4 + length..];
        }
        Some(())
    }
}

/// What stands before an array in an NPY file.
struct NpyHeader {
    descr: String,
    fortran_order: bool,
    shape: Vec<usize>,
    length: usize,
}

impl NpyHeader {
    /// Read a header of version 1 to 3; matched rather than evaluated, since it is a Python expression.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let (prefix, length): (usize, usize) = match bytes.strip_prefix(b"\x93NUMPY")?.get(..2)? {
            [1, 0] => (10, usize::from(u16_at(bytes.get(..10)?, 8))),
            [2 | 3, 0] => (12, u32_at(bytes.get(..12)?, 8) as usize),
            _ => return None,
        };
        let text = std::str::from_utf8(bytes.get(prefix..prefix.checked_add(length)?)?).ok()?;
        let mut fields = text.trim().strip_prefix('{')?.strip_suffix('}')?.trim();
        fields = value_after(fields, "descr")?;
        let (descr, fields) = fields.strip_prefix('\'')?.split_once('\'')?;
        let fields = value_after(fields, "fortran_order")?;
        let (fortran_order, fields) = match fields.strip_prefix("True") {
            Some(fields) => (true, fields),
            None => (false, fields.strip_prefix("False")?),
        };
        let (shape, rest) = value_after(fields, "shape")?.strip_prefix('(')?.split_once(')')?;
        let shape = shape.split(',').map(str::trim).filter(|number| !number.is_empty());
        let shape = shape.map(|number| number.parse().ok()).collect::<Option<Vec<usize>>>()?;
        let is_plain = descr.len() == 3 && descr.is_ascii() && "<>|=".contains(&descr[..1]);
        (is_plain && rest.trim().trim_end_matches(',').trim().is_empty()).then(|| Self {
            descr: descr.to_string(),
            fortran_order,
            shape,
            length: prefix + length,
        })
    }
}

/// Return what stands behind `, 'name':`.
fn value_after<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let text = text.trim_start();
    let text = text.strip_prefix(',').unwrap_or(text).trim_start();
    let text = text.strip_prefix('\'')?.strip_prefix(name)?.strip_prefix('\'')?;
    Some(text.trim_start().strip_prefix(':')?.trim_start())
}

/// Return the numbers behind a header, little-endian and in C order.
fn in_our_order<'a>(body: Cow<'a, [u8]>, header: &NpyHeader, kind: Kind) -> Cow<'a, [u8]> {
    let swapped = header.descr.starts_with('>') && kind.bytes() > 1;
    if !swapped && !header.fortran_order {
        return match body {
            Cow::Borrowed(bytes) => bytes[header.length..].into(),
            Cow::Owned(mut bytes) => {
                bytes.drain(..header.length);
                bytes.into()
            }
        };
    }
    let mut numbers: Vec<u8> = body[header.length..].to_vec();
    if header.fortran_order {
        numbers = from_fortran_order(&numbers, &header.shape, kind.bytes());
    }
    if swapped {
        numbers.chunks_exact_mut(kind.bytes()).for_each(<[u8]>::reverse);
    }
    numbers.into()
}

fn from_fortran_order(numbers: &[u8], shape: &[usize], bytes: usize) -> Vec<u8> {
    let mut ordered = Vec::with_capacity(numbers.len());
    let mut at = vec![0; shape.len()];
    for _ in 0..numbers.len() / bytes {
        let position = at.iter().zip(shape).rev().fold(0, |position, (&i, &size)| position * size + i);
        ordered.extend_from_slice(&numbers[position * bytes..][..bytes]);
        for (i, &size) in at.iter_mut().zip(shape).rev() {
            *i = (*i + 1) % size;
            if *i > 0 {
                break;
            }
        }
    }
    ordered
}

/// Return the bytes of an NPZ that holds these arrays, stored, as `numpy.savez` writes it.
///
/// Each array is its name, type, shape and little-endian bytes in C order.
pub fn encode_npz(arrays: &[(&str, Kind, &[usize], &[u8])]) -> Vec<u8> {
    let size: usize = arrays.iter().map(|(.., bytes)| bytes.len() + 512).sum();
    let mut file = Vec::with_capacity(size);
    let mut directory = Vec::new();
    for (name, kind, shape, bytes) in arrays {
        let header = npy_header(*kind, shape);
        let mut crc = crc32fast::Hasher::new();
        crc.update(&header);
        crc.update(bytes);
        let (crc, size) = (crc.finalize(), (header.len() + bytes.len()) as u64);
        let name = format!("{name}.npy");
        let start = file.len() as u32;
        // NumPy reserves room for sizes of 64 bits in each local header; the directory does not need them.
        file.extend_from_slice(b"PK\x03\x04");
        push_common_fields(&mut file, crc);
        file.extend_from_slice(&[0xff; 8]);
        file.extend_from_slice(&(name.len() as u16).to_le_bytes());
        file.extend_from_slice(&20u16.to_le_bytes());
        file.extend_from_slice(name.as_bytes());
        file.extend_from_slice(&ZIP64_EXTRA.to_le_bytes());
        file.extend_from_slice(&16u16.to_le_bytes());
        file.extend_from_slice(&size.to_le_bytes());
        file.extend_from_slice(&size.to_le_bytes());
        file.extend_from_slice(&header);
        file.extend_from_slice(bytes);

        directory.extend_from_slice(b"PK\x01\x02\x2d\x03");
        push_common_fields(&mut directory, crc);
        directory.extend_from_slice(&(size as u32).to_le_bytes());
        directory.extend_from_slice(&(size as u32).to_le_bytes());
        directory.extend_from_slice(&(name.len() as u16).to_le_bytes());
        directory.extend_from_slice(&[0; 8]); // no extra field, no comment, disk 0, no internal attributes
        directory.extend_from_slice(&(0o600u32 << 16).to_le_bytes());
        directory.extend_from_slice(&start.to_le_bytes());
        directory.extend_from_slice(name.as_bytes());
    }
    push_end(&mut file, &directory, arrays.len() as u16);
    file
}

/// Version 4.5, no flags, stored, 1 January 1980 at midnight, and the checksum.
fn push_common_fields(record: &mut Vec<u8>, crc: u32) {
    record.extend_from_slice(&[0x2d, 0, 0, 0, 0, 0, 0, 0, 0x21, 0]);
    record.extend_from_slice(&crc.to_le_bytes());
}

fn push_end(file: &mut Vec<u8>, directory: &[u8], count: u16) {
    let start = file.len() as u32;
    file.extend_from_slice(directory);
    file.extend_from_slice(b"PK\x05\x06\0\0\0\0");
    file.extend_from_slice(&count.to_le_bytes());
    file.extend_from_slice(&count.to_le_bytes());
    file.extend_from_slice(&(directory.len() as u32).to_le_bytes());
    file.extend_from_slice(&start.to_le_bytes());
    file.extend_from_slice(&[0, 0]);
}

/// Return what NumPy writes before an array: padded with spaces to a multiple of 64 bytes.
fn npy_header(kind: Kind, shape: &[usize]) -> Vec<u8> {
    let sizes = shape.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    let sizes = if shape.len() == 1 { format!("{sizes},") } else { sizes };
    let mut text = format!("{{'descr': '{}', 'fortran_order': False, 'shape': ({sizes}), }}", kind.descr());
    let length = (10 + text.len() + 1).next_multiple_of(64) - 10;
    text += &" ".repeat(length - 1 - text.len());
    text.push('\n');
    let mut header = b"\x93NUMPY\x01\0".to_vec();
    header.extend_from_slice(&(length as u16).to_le_bytes());
    header.extend_from_slice(text.as_bytes());
    header
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
