//! The header of a safetensors file, read without its data: 8 bytes of length, then JSON.
//!
//! The `safetensors` crate checks a whole buffer; here only the header is read, so that a 50 GB checkpoint
//! opens in milliseconds, and every complaint names the tensor and its offset. The rules are the crate's:
//! tensors cover the data without gap or overlap, sizes follow from shape and dtype, the file ends where the
//! last tensor does, and the header has at most 100 MB. Beyond them a header names at most a million tensors
//! of at most eight dimensions, so that a hostile one takes no more than a few times its own size in memory.

use crate::Error;
use crate::json::{Name, pairs, reason, short};
use safetensors::Dtype;
use serde::de::value::StrDeserializer;
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Largest accepted header, in bytes; the limit of the `safetensors` crate.
pub(crate) const MAX_HEADER: u64 = 100_000_000;
/// Most dimensions of a tensor; this family's have at most three, its vision tower's five.
const MAX_RANK: usize = 8;

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
    if &head == b"version " {
        return Err(header("it is a Git LFS pointer: fetch the file itself with git lfs pull".to_owned()));
    }
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
    let infos = parse(&text).map_err(|e| header(reason(&e)))?;
    drop(text);
    layout(infos, 8 + n, len, file)
}

/// Sorts tensors by offset and checks that they tile the data.
fn layout(mut infos: Vec<(String, Info)>, data: u64, len: u64, file: &str) -> Result<Vec<Entry>, Error> {
    infos.sort_by(|(a, x), (b, y)| x.data_offsets.cmp(&y.data_offsets).then_with(|| a.cmp(b)));
    let mut entries: Vec<Entry> = Vec::with_capacity(infos.len());
    let mut end = 0u64;
    let mut cut = None;
    for (name, info) in infos {
        let Offsets(start, stop) = info.data_offsets;
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
        let size = match size(&info) {
            Ok(size) => size,
            Err(why) => return bad(format!("shape {:?} of {:?} {why}", info.shape.0, info.dtype.0)),
        };
        if size != stop - start {
            let found = stop - start;
            return bad(format!(
                "{found} bytes: shape {:?} of {:?} takes {size}",
                info.shape.0, info.dtype.0
            ));
        }
        end = stop;
        if cut.is_none() && data.checked_add(end).is_none_or(|e| e > len) {
            cut = Some(name.clone());
        }
        let (dtype, shape) = (info.dtype.0, info.shape.0);
        entries.push(Entry { name, dtype, shape, start: data.saturating_add(start), bytes: size });
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
fn size(info: &Info) -> Result<u64, &'static str> {
    let n = info.shape.0.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64));
    let bits = n.and_then(|n| n.checked_mul(info.dtype.0.bitsize() as u64)).ok_or("overflows")?;
    if bits.is_multiple_of(8) { Ok(bits / 8) } else { Err("takes no whole number of bytes") }
}

/// The header's entries; a name that stands twice is an error.
fn parse(text: &[u8]) -> serde_json::Result<Vec<(String, Info)>> {
    let text = std::str::from_utf8(text)
        .map_err(|e| serde_json::Error::custom(format!("invalid UTF-8 at byte {}", e.valid_up_to())))?;
    let mut json = serde_json::Deserializer::from_str(text);
    let entries = json.deserialize_map(Entries)?;
    json.end()?;
    Ok(entries)
}

/// What a header says of a tensor.
#[derive(serde::Deserialize)]
#[serde(expecting = "an object with dtype, shape and data_offsets")]
struct Info {
    dtype: Word,
    shape: Shape,
    data_offsets: Offsets,
}

/// An element type by its name.
struct Word(Dtype);

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let word = Cow::<str>::deserialize(d).map_err(|e| D::Error::custom(format!("dtype: {e}")))?;
        let dtype = Dtype::deserialize(StrDeserializer::<D::Error>::new(&word));
        let expected = "a type of safetensors, such as BF16, F16 or F32";
        dtype
            .map(Word)
            .map_err(|_| D::Error::custom(format!("dtype is {:?}: expected {expected}", short(&word))))
    }
}

/// Extents of at most [`MAX_RANK`] dimensions.
struct Shape(Vec<usize>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Extents;
        impl<'de> Visitor<'de> for Extents {
            type Value = Vec<usize>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of extents")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
                let mut out = Vec::new();
                while let Some(extent) = items.next_element()? {
                    if out.len() == MAX_RANK {
                        return Err(A::Error::custom(format!("more than {MAX_RANK} dimensions")));
                    }
                    out.push(extent);
                }
                Ok(out)
            }
        }
        let shape = d.deserialize_seq(Extents);
        shape.map(Shape).map_err(|e| D::Error::custom(format!("shape: {e}")))
    }
}

/// Where a tensor's bytes begin and end, behind the header.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Offsets(u64, u64);

impl<'de> Deserialize<'de> for Offsets {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let pair = <(u64, u64)>::deserialize(d);
        pair.map(|(a, b)| Offsets(a, b)).map_err(|e| D::Error::custom(format!("data_offsets: {e}")))
    }
}

struct Entries;

impl<'de> Visitor<'de> for Entries {
    type Value = Vec<(String, Info)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors by name")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        pairs(map, |name, map| match name {
            "__metadata__" => map.next_value::<Option<Metadata>>().map(|_| None),
            _ => map.next_value().map(Some),
        })
    }
}

/// Strings by name, of which nothing is kept.
struct Metadata;

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Strings;
        impl<'de> Visitor<'de> for Strings {
            type Value = Metadata;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Metadata, A::Error> {
                while map.next_entry::<Cow<'de, str>, Cow<'de, str>>()?.is_some() {}
                Ok(Metadata)
            }
        }
        d.deserialize_map(Strings)
    }
}

/// The pairs of strings of an index under `key`, in order; a name that stands twice is an error.
pub(crate) fn string_map(text: &[u8], key: &str) -> serde_json::Result<Vec<(String, String)>> {
    struct Strings;
    impl<'de> Visitor<'de> for Strings {
        type Value = Vec<(String, String)>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object of file names by tensor")
        }
        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
            pairs(map, |_, map| map.next_value().map(|Name(file)| Some(file)))
        }
    }
    struct Field<'k>(&'k str);
    impl<'de> Visitor<'de> for Field<'_> {
        type Value = Option<Vec<(String, String)>>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut found = None;
            while let Some(name) = map.next_key::<Cow<'de, str>>()? {
                if name != self.0 {
                    map.next_value::<IgnoredAny>()?;
                } else if found.replace(map.next_value_seed(Seed)?).is_some() {
                    return Err(A::Error::custom(format!("{name:?} stands twice")));
                }
            }
            Ok(found)
        }
    }
    struct Seed;
    impl<'de> serde::de::DeserializeSeed<'de> for Seed {
        type Value = Vec<(String, String)>;
        fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
            d.deserialize_map(Strings)
        }
    }
    let mut json = serde_json::Deserializer::from_slice(text);
    let found = json.deserialize_map(Field(key))?;
    json.end()?;
    found.ok_or_else(|| serde_json::Error::custom(format!("no {key}")))
}
