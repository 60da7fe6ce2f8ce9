//! Records of a log to stdout: those asked for, whole blocks at a time.

use clap::ValueEnum;
use cute_evidence::logs::{EventRef, Sink};
use cute_records::{Record, WriteError, Writer};
use indicatif::ProgressBar;

/// A record type to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Only {
    /// dispatch decisions
    Dispatch,
    /// cache pools
    Pool,
    /// every other recognised line
    Event,
}

/// stdout, filtered. Records collect until the block of the log they came from is done.
pub struct ToWriter {
    pub writer: Writer<'static>,
    pub bar: ProgressBar,
    dispatch: bool,
    pool: bool,
    event: bool,
}

impl ToWriter {
    pub fn new(only: &[Only], bar: ProgressBar) -> Self {
        ToWriter {
            writer: Writer::new(std::io::stdout()).batched(1 << 18),
            bar,
            dispatch: only.contains(&Only::Dispatch),
            pool: only.contains(&Only::Pool),
            event: only.contains(&Only::Event),
        }
    }
}

impl Sink for ToWriter {
    fn record(&mut self, record: Record) -> Result<(), WriteError> {
        let wanted = match record {
            Record::Dispatch(_) => self.dispatch,
            Record::Pool(_) => self.pool,
            Record::Event(_) => self.event,
            _ => true,
        };
        if wanted { self.writer.write(&record) } else { Ok(()) }
    }

    fn event(&mut self, event: &EventRef<'_>) -> Result<(), WriteError> {
        if self.event { self.writer.write_json("event", |out| event.write_json(out)) } else { Ok(()) }
    }

    fn block_end(&mut self) -> Result<(), WriteError> {
        self.writer.flush()
    }

    fn progress(&mut self, bytes: u64) {
        self.bar.inc(bytes);
    }
}
