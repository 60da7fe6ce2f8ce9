//! A recognised line, borrowed: it becomes an `event` record, or JSON without becoming one.

use super::template::Field;
use super::value::text;
use cute_records::{Event, Record, Source, VERSION};
use serde::ser::{SerializeMap, SerializeStruct};
use serde::{Serialize, Serializer};

/// A recognised line that is an event.
///
/// It serializes exactly as the `event` record it stands for ([`EventRef::to_record`]), without allocating one.
#[derive(Clone, Copy, Debug)]
pub struct EventRef<'a> {
    pub(crate) event: &'static str,
    pub(crate) pack: &'static str,
    /// sorted by name
    pub(crate) fields: &'a [Field<'a>],
    pub(crate) file: &'a str,
    pub(crate) line: u64,
    pub(crate) byte: u64,
    pub(crate) process: Option<&'a [u8]>,
    pub(crate) timestamp: Option<&'a [u8]>,
}

impl EventRef<'_> {
    /// Name of the pattern.
    pub fn name(&self) -> &'static str {
        self.event
    }

    /// The record.
    pub fn to_record(&self) -> Record {
        Record::Event(Event {
            event: self.event.to_owned(),
            pack: self.pack.to_owned(),
            fields: self.fields.iter().map(|(k, v)| (k.to_string(), v.to_value())).collect(),
            source: self.source(),
        })
    }

    pub(crate) fn source(&self) -> Source {
        Source {
            file: self.file.to_owned(),
            line: self.line,
            byte: self.byte,
            process: self.process.map(|p| text(p).into_owned()),
            timestamp: self.timestamp.map(|t| text(t).into_owned()),
        }
    }
}

impl Serialize for EventRef<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        struct Fields<'a>(&'a [Field<'a>]);
        impl Serialize for Fields<'_> {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                let mut map = s.serialize_map(Some(self.0.len()))?;
                for (name, value) in self.0 {
                    map.serialize_entry(name, value)?;
                }
                map.end()
            }
        }
        let mut out = s.serialize_struct("event", 10)?;
        out.serialize_field("type", "event")?;
        out.serialize_field("v", &VERSION)?;
        out.serialize_field("event", self.event)?;
        out.serialize_field("pack", self.pack)?;
        out.serialize_field("fields", &Fields(self.fields))?;
        out.serialize_field("file", self.file)?;
        out.serialize_field("line", &self.line)?;
        out.serialize_field("byte", &self.byte)?;
        if let Some(process) = self.process {
            out.serialize_field("process", &text(process))?;
        }
        if let Some(timestamp) = self.timestamp {
            out.serialize_field("timestamp", &text(timestamp))?;
        }
        out.end()
    }
}
