//! A recognised line, borrowed: it becomes an `event` record, or JSON without becoming one.

use super::template::Field;
use super::value::{text, write_string, write_u64};
use cute_records::{Event, Record, Source, VERSION};
use std::borrow::Cow;

/// A recognised line that is an event.
///
/// [`EventRef::write_json`] writes what the `event` record it stands for ([`EventRef::to_record`]) would be, without
/// allocating one.
#[derive(Clone, Copy, Debug)]
pub struct EventRef<'a> {
    pub(crate) event: &'static str,
    pub(crate) pack: &'static str,
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

    /// Appends the record as JSON, without a newline; numbers stay as the log printed them.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"type\":\"event\",\"v\":");
        write_u64(VERSION.into(), out);
        out.extend_from_slice(b",\"event\":\"");
        out.extend_from_slice(self.event.as_bytes());
        out.extend_from_slice(b"\",\"pack\":\"");
        out.extend_from_slice(self.pack.as_bytes());
        out.extend_from_slice(b"\",\"fields\":{");
        for (i, (name, value)) in self.fields.iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            match name {
                // a template's own name, or a key of letters, digits and `_.-`
                Cow::Borrowed(name) => {
                    out.push(b'"');
                    out.extend_from_slice(name.as_bytes());
                    out.extend_from_slice(b"\":");
                }
                Cow::Owned(name) => {
                    write_string(name.as_bytes(), out);
                    out.push(b':');
                }
            }
            value.write_json(out);
        }
        out.extend_from_slice(b"},\"file\":");
        write_string(self.file.as_bytes(), out);
        out.extend_from_slice(b",\"line\":");
        write_u64(self.line, out);
        out.extend_from_slice(b",\"byte\":");
        write_u64(self.byte, out);
        for (key, value) in [(&b",\"process\":"[..], self.process), (b",\"timestamp\":", self.timestamp)] {
            if let Some(value) = value {
                out.extend_from_slice(key);
                write_string(value, out);
            }
        }
        out.push(b'}');
    }
}
