//! The wire format: one JSON object a line, UTF-8, `\n`, each `{"type":…,"v":1,…}`.
//!
//! A stream is a sequence of records. Every tool opens what it writes with a [`Run`] (who, with which
//! resolved configuration, on what) and closes it with an [`End`] (how many of each type, and whether the
//! work was completed). Filters forward the lines they read byte for byte, unknown fields and unknown types
//! included, and append what they found. A stream whose `run` has no `end` was cut off; [`Ledger`] says so.
//!
//! | module | for |
//! |---|---|
//! | [`record`] | the record types, one doc comment a field |
//! | [`read`] | lines with file, line and byte; typed records; bounded, never panics |
//! | [`write`] | one `write_all` a record, counted; appending repairs a torn tail |
//! | [`ledger`] | runs against their ends: complete, cut off, altered |
//! | [`num`] | numbers that may be NaN or infinite |
//! | [`answer`] | answers in the form of GSM8K |
//! | [`digest`] | sha256 of bytes and of token ids |

pub mod answer;
pub mod digest;
pub mod ledger;
pub mod num;
pub mod read;
pub mod record;
pub mod schema;
pub mod write;

pub use ledger::Ledger;
pub use num::Num;
pub use read::{Line, Parsed, ReadError, Reader};
pub use record::*;
pub use write::{WriteError, Writer};

/// The version every record of this format carries as `v`.
pub const VERSION: u32 = 1;
