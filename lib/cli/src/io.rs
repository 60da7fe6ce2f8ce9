//! Standard streams and files as records, and progress for people.

use crate::closed;
use anyhow::Context;
use cute_records::{Reader, Writer};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{self, BufRead, BufReader, IsTerminal, Read};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// stdout as a record writer.
pub fn stdout() -> Writer<'static> {
    Writer::new(io::stdout())
}

/// stdin as record lines; `None` when stdin is a terminal, where waiting would look like hanging.
pub fn stdin_records() -> Option<Reader<Box<dyn BufRead + Send>>> {
    if io::stdin().is_terminal() { None } else { Some(Reader::new("stdin", stdin())) }
}

/// stdin as bytes. A stdin that was closed is an error when it is read, not an empty input.
pub fn stdin() -> Box<dyn BufRead + Send> {
    if closed::stdin() {
        return Box::new(BufReader::new(Closed));
    }
    Box::new(BufReader::with_capacity(1 << 16, io::stdin()))
}

struct Closed;

impl Read for Closed {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::new(io::ErrorKind::NotConnected, "it is closed"))
    }
}

/// Opens a file, or stdin for `-`.
///
/// # Errors
/// When the file cannot be opened, naming it.
pub fn open(path: &Path) -> anyhow::Result<Reader<Box<dyn BufRead + Send>>> {
    if path == Path::new("-") {
        return Ok(Reader::new("stdin", stdin()));
    }
    let file = std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    Ok(Reader::new(&path.display().to_string(), Box::new(BufReader::with_capacity(1 << 16, file))))
}

/// A progress bar on stderr over `len` items; hidden when stderr is no terminal.
pub fn progress(len: u64, what: &str) -> ProgressBar {
    bar(len, what, "{msg} {wide_bar} {pos}/{len} {per_sec} eta {eta}")
}

/// A progress bar on stderr over `len` bytes; hidden when stderr is no terminal.
pub fn progress_bytes(len: u64, what: &str) -> ProgressBar {
    bar(len, what, "{msg} {wide_bar} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} eta {eta}")
}

/// Does work under a progress bar of bytes that asks `position` ten times a second how far it is.
pub fn watched<T>(len: u64, what: &str, position: impl Fn() -> u64 + Sync, work: impl FnOnce() -> T) -> T {
    let bar = progress_bytes(len, what);
    if bar.is_hidden() {
        return work();
    }
    std::thread::scope(|scope| {
        // it ends when this does, also by a panic
        let (working, ended) = mpsc::channel::<()>();
        scope.spawn(|| {
            let ended = ended;
            while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(Duration::from_millis(100)) {
                bar.set_position(position());
            }
            bar.finish_and_clear();
        });
        let done = work();
        drop(working);
        done
    })
}

fn bar(len: u64, what: &str, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(len).with_style(style).with_message(what.to_owned())
}
