//! The header of a safetensors file, read without its data: 8 bytes of length, then JSON.
//!
//! The `safetensors` crate checks a whole buffer; here only the header is read, so that a 50 GB checkpoint
//! opens in milliseconds, and every complaint names the tensor and its offset. The rules are the crate's:
//! tensors cover the data without gap or overlap, sizes follow from shape and dtype, the file ends where the
//! last tensor does, and the header has at most 100 MB.

use crate::Error;
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::de::{Deserializer as _, Error as _, IgnoredAny, MapAccess, Visitor};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Largest accepted header, in bytes; the limit of the `safetensors` crate.
pub(crate) const MAX_HEADER: u64 = 100_000_000;

/// A tensor of one file.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// full name
    pub name: String,
    /// element type
    pub dtype: Dtype,
    /// extent of each dimension
    pub shape: Vec<usize>,
    /// offset of its bytes in the file
    pub start: u64,
    /// number of its bytes
    pub bytes: u64,
}

/// Reads and checks the header of `handle`, a file of `len` bytes called `file` in errors.
pub(crate) fn read(handle: &File, len: u64, file: &str) -> Result<Vec<Entry>, Error> {
    let header = |reason: String| Error::Header { file: file.to_owned(), reason };
    let io = |error| Error::Io { file: file.to_owned(), error };
    if len < 8 {
        return Err(header(format!("the file has {len} bytes: expected at least the 8 of its length")));
    }
    let mut head = [0; 8];
    handle.read_exact_at(&mut head, 0).map_err(io)?;
    let n = u64::from_le_bytes(head);
    if n > MAX_HEADER {
        return Err(header(format!("its length field says {n} bytes: expected at most {MAX_HEADER}")));
    }
    if n > len - 8 {
        let rest = len - 8;
        return Err(header(format!(
            "its length field says {n} bytes: only {rest} follow, the file is cut off"
        )));
    }
    let mut text = vec![0; n as usize];
    handle.read_exact_at(&mut text, 8).map_err(io)?;
    let infos = parse(&text).map_err(|e| header(e.to_string()))?;
    layout(infos, 8 + n, len, file)
}

/// Sorts tensors by offset and checks that they tile the data.
fn layout(
    mut infos: Vec<(String, TensorInfo)>,
    data: u64,
    len: u64,
    file: &str,
) -> Result<Vec<Entry>, Error> {
    infos.sort_by(|(a, x), (b, y)| x.data_offsets.cmp(&y.data_offsets).then_with(|| a.cmp(b)));
    let mut entries: Vec<Entry> = Vec::with_capacity(infos.len());
    let mut end = 0u64;
    let mut cut = None;
    for (name, info) in infos {
        let (start, stop) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
        let bad = |reason: String| {
            Err(Error::HeaderEntry { file: file.to_owned(), tensor: name.clone(), offset: start, reason })
        };
        if stop < start {
            return bad(format!("it ends at {stop}, before it starts"));
        }
        if start < end {
            let other = entries.last().map_or("", |e| e.name.as_str());
            return bad(format!("it overlaps {other}, which ends at {end}"));
        }
        if start > end {
            return bad(format!("{} bytes before it belong to no tensor", start - end));
        }
        let Some(size) = size(&info) else {
            return bad(format!("shape {:?} of {:?} overflows", info.shape, info.dtype));
        };
        if size != stop - start {
            let found = stop - start;
            return bad(format!("{found} bytes: shape {:?} of {:?} takes {size}", info.shape, info.dtype));
        }
        end = stop;
        if cut.is_none() && data.checked_add(end).is_none_or(|e| e > len) {
            cut = Some(name.clone());
        }
        entries.push(Entry { name, dtype: info.dtype, shape: info.shape, start: data + start, bytes: size });
    }
    let expected = data.saturating_add(end);
    match cut {
        Some(tensor) => {
            let detail = format!(", the file is cut off in tensor {tensor}");
            Err(Error::FileLength { file: file.to_owned(), found: len, expected, detail })
        }
        None if expected != len => {
            let detail = format!(", {} bytes are left over", len - expected);
            Err(Error::FileLength { file: file.to_owned(), found: len, expected, detail })
        }
        None => Ok(entries),
    }
}

/// Bytes a shape takes, if that is a whole number that fits.
fn size(info: &TensorInfo) -> Option<u64> {
    let n = info.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64))?;
    let bits = n.checked_mul(info.dtype.bitsize() as u64)?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

/// The header's entries; a name that stands twice is an error.
fn parse(text: &[u8]) -> serde_json::Result<Vec<(String, TensorInfo)>> {
    let text = std::str::from_utf8(text)
        .map_err(|e| serde_json::Error::custom(format!("invalid UTF-8 at byte {}", e.valid_up_to())))?;
    let mut json = serde_json::Deserializer::from_str(text);
    let entries = json.deserialize_map(Entries)?;
    json.end()?;
    Ok(entries)
}

struct Entries;

impl<'de> Visitor<'de> for Entries {
    type Value = Vec<(String, TensorInfo)>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object of tensors by name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut entries, mut seen) = (Vec::new(), HashSet::new());
        while let Some(name) = map.next_key::<String>()? {
            if !seen.insert(name.clone()) {
                return Err(A::Error::custom(format!("{name:?} stands twice")));
            }
            let named = |e: A::Error| A::Error::custom(format!("{name:?}: {e}"));
            if name == "__metadata__" {
                map.next_value::<Option<HashMap<String, String>>>().map_err(named)?;
                continue;
            }
            let info = map.next_value::<TensorInfo>().map_err(named)?;
            entries.push((name, info));
        }
        Ok(entries)
    }
}

/// The pairs of a JSON object of strings, in order; a key that stands twice is an error.
pub(crate) fn string_map(text: &[u8], key: &str) -> serde_json::Result<Vec<(String, String)>> {
    struct Strings;
    impl<'de> Visitor<'de> for Strings {
        type Value = Vec<(String, String)>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object of file names by tensor")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let (mut pairs, mut seen) = (Vec::new(), HashSet::new());
            while let Some(name) = map.next_key::<String>()? {
                if !seen.insert(name.clone()) {
                    return Err(A::Error::custom(format!("{name:?} stands twice")));
                }
                let value = map.next_value::<String>();
                let value = value.map_err(|e| A::Error::custom(format!("{name:?}: {e}")))?;
                pairs.push((name, value));
            }
            Ok(pairs)
        }
    }
    struct Field<'k>(&'k str);
    impl<'de> Visitor<'de> for Field<'_> {
        type Value = Option<Vec<(String, String)>>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut found = None;
            while let Some(name) = map.next_key::<String>()? {
                if name == self.0 {
                    found = Some(map.next_value_seed(Seed)?);
                } else {
                    map.next_value::<IgnoredAny>()?;
                }
            }
            Ok(found)
        }
    }
    struct Seed;
    impl<'de> serde::de::DeserializeSeed<'de> for Seed {
        type Value = Vec<(String, String)>;
        fn deserialize<D: serde::Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
            d.deserialize_map(Strings)
        }
    }
    let mut json = serde_json::Deserializer::from_slice(text);
    let found = json.deserialize_map(Field(key))?;
    json.end()?;
    found.ok_or_else(|| serde_json::Error::custom(format!("no {key}")))
}
