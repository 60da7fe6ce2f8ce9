//! The record types: structs and their fields, no logic. Their names, envelope and schemas stand here.
//!
//! Units stand in the field names or comments: `_ms` milliseconds, `_bytes` bytes. Digests are sha256 in
//! hexadecimal. Indices are 0-based everywhere; `ordinal` counts requests over the whole stream.

use crate::{Line, ReadError};
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;

mod evidence;
mod serving;

pub use evidence::*;
pub use serving::*;

/// How many, by name.
pub type Count = BTreeMap<String, u64>;

macro_rules! records {
    ($($variant:ident = $kind:literal: $doc:literal),* $(,)?) => {
        /// A record: one line of the stream.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Record { $(#[doc = $doc] $variant($variant)),* }

        /// The names of the record types, as they stand in `type`.
        pub const TYPES: &[&str] = &[$($kind),*];

        impl Record {
            /// The name of this record's type, as it stands in `type`.
            pub fn kind(&self) -> &'static str {
                match self { $(Record::$variant(_) => $kind),* }
            }
        }

        $(impl From<$variant> for Record {
            fn from(body: $variant) -> Self { Record::$variant(body) }
        })*

        impl Serialize for Record {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                #[derive(Serialize)]
                struct Envelope<'a, T> { r#type: &'static str, v: u32, #[serde(flatten)] body: &'a T }
                match self { $(Record::$variant(body) =>
                    Envelope { r#type: $kind, v: crate::VERSION, body }.serialize(s)),* }
            }
        }

        /// Bodies by the name of their type.
        pub(crate) struct Body;

        impl Body {
            pub(crate) fn parse(kind: &str, line: &Line) -> Result<Record, ReadError> {
                match kind {
                    $($kind => line.json::<$variant>().map(Record::$variant),)*
                    other => Err(line.error(format!("unknown record type {other:?}"))),
                }
            }
            pub(crate) fn schema(kind: &str) -> Option<schemars::Schema> {
                let settings = schemars::generate::SchemaSettings::draft2020_12().with(|s| s.inline_subschemas = true);
                let generator = settings.into_generator();
                match kind {
                    $($kind => Some(generator.into_root_schema_for::<$variant>()),)*
                    _ => None,
                }
            }
        }
    };
}

records! {
    Run = "run": "who writes this stream, with which resolved configuration, on what",
    Model = "model": "a checkpoint, checked",
    Prompt = "prompt": "a request",
    Chunk = "chunk": "what a reply has grown by",
    Completion = "completion": "a reply",
    Dispatch = "dispatch": "one decision about the path of a layer",
    Pool = "pool": "the geometry of a cache pool",
    Event = "event": "a recognised log line that is no dispatch and no pool",
    State = "state": "one event in the life of a state slot or a KV page",
    Trace = "trace": "how a request was served, launch by launch",
    Timing = "timing": "a measured duration",
    Finding = "finding": "something that should not be so",
    Verdict = "verdict": "the judgment",
    End = "end": "the close of a stream",
}
