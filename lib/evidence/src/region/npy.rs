//! `.npy` files of region ticks: int64, `[ctas, regions, 2]`, C order.

use super::Error;
use serde_json::Value;
use std::borrow::Cow;
use std::path::Path;

/// Largest buffer that is read: far above any device's thread blocks.
const MAX_BYTES: u64 = 1 << 28;

/// Entry and exit ticks by thread block and region; zero where a block never ran a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// the file
    pub file: String,
    /// thread blocks
    pub ctas: usize,
    /// regions
    pub regions: usize,
    ticks: Vec<i64>,
}

impl Buffer {
    /// Takes ticks in C order.
    ///
    /// # Errors
    /// [`Error`] when there are not `ctas · regions · 2` of them.
    pub fn new(file: &str, ctas: usize, regions: usize, ticks: Vec<i64>) -> Result<Self, Error> {
        let expected = ctas.checked_mul(regions).and_then(|n| n.checked_mul(2));
        if expected != Some(ticks.len()) {
            return Err(Error::new(file, format!("{} ticks: expected {ctas} x {regions} x 2", ticks.len())));
        }
        Ok(Buffer { file: file.to_owned(), ctas, regions, ticks })
    }

    /// Entry and exit of a region in a thread block.
    pub fn row(&self, cta: usize, region: usize) -> (i64, i64) {
        let at = (cta * self.regions + region) * 2;
        match self.ticks.get(at..at + 2) {
            Some([entry, exit]) if region < self.regions => (*entry, *exit),
            _ => (0, 0),
        }
    }
}

/// Reads a buffer.
///
/// # Errors
/// [`Error`] names the file, what stands there and what was expected.
pub fn read(path: &Path) -> Result<Buffer, Error> {
    let file = path.display().to_string();
    let io = |e: std::io::Error| Error::new(&file, e.to_string());
    let len = std::fs::metadata(path).map_err(io)?.len();
    if len > MAX_BYTES {
        return Err(Error::new(&file, format!("{len} bytes: expected at most {MAX_BYTES}")));
    }
    parse(&file, &std::fs::read(path).map_err(io)?)
}

/// Parses a buffer from the bytes of a file.
///
/// # Errors
/// [`Error`] names the file, what stands there and what was expected.
pub fn parse(file: &str, bytes: &[u8]) -> Result<Buffer, Error> {
    let bad = |message: String| Error::new(file, message);
    let (header, data) = split(bytes).map_err(bad)?;
    let (header, complete) = crate::logs::python_dict(&header);
    if !complete {
        return Err(bad(
            "the header is no dictionary: expected {'descr': …, 'fortran_order': …, 'shape': …}".to_owned(),
        ));
    }
    match header.get("descr").and_then(|d| d.as_str()) {
        Some("<i8") => {}
        _ => return Err(bad(format!("dtype {}: expected '<i8' (int64 ticks)", show(header.get("descr"))))),
    }
    if header.get("fortran_order").and_then(Value::as_bool) != Some(false) {
        return Err(bad(format!("fortran_order {}: expected False", show(header.get("fortran_order")))));
    }
    let shape: Option<Vec<u64>> =
        header.get("shape").and_then(Value::as_array).and_then(|s| s.iter().map(Value::as_u64).collect());
    let Some(&[ctas, regions, 2]) = shape.as_deref() else {
        return Err(bad(format!("shape {}: expected [ctas, regions, 2]", show(header.get("shape")))));
    };
    let words = ctas.checked_mul(regions).and_then(|n| n.checked_mul(2)).filter(|n| *n <= MAX_BYTES / 8);
    match words {
        Some(words) if words * 8 == data.len() as u64 && words > 0 => {}
        _ => {
            return Err(bad(format!(
                "shape {shape:?} and {} bytes of data: expected 8 bytes a tick",
                data.len()
            )));
        }
    }
    let (ticks, _) = data.as_chunks::<8>();
    Buffer::new(file, ctas as usize, regions as usize, ticks.iter().map(|t| i64::from_le_bytes(*t)).collect())
}

fn show(value: Option<&Value>) -> String {
    value.map_or("missing".to_owned(), Value::to_string)
}

/// Header and data; a header that lies about its length is refused.
fn split(bytes: &[u8]) -> Result<(Cow<'_, str>, &[u8]), String> {
    if !bytes.starts_with(b"\x93NUMPY") {
        return Err("no .npy file: the magic bytes are missing".to_owned());
    }
    let (start, len) = match (bytes.get(6), bytes.get(8..10), bytes.get(8..12)) {
        (Some(1), Some(&[a, b]), _) => (10, usize::from(u16::from_le_bytes([a, b]))),
        (Some(2 | 3), _, Some(&[a, b, c, d])) => (12, u32::from_le_bytes([a, b, c, d]) as usize),
        (version, ..) => return Err(format!(".npy version {version:?}: expected 1, 2 or 3")),
    };
    match (bytes.get(start..start + len), bytes.get(start + len..)) {
        (Some(header), Some(data)) => Ok((String::from_utf8_lossy(header), data)),
        _ => {
            Err(format!("{} bytes: the header alone says {}: the file is cut off", bytes.len(), start + len))
        }
    }
}
