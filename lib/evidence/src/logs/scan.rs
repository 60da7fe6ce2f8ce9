//! One pass over a log: blocks, lines, candidates, records.
//!
//! A block is read, one automaton looks for the literals of all patterns, and only lines that hold one are looked
//! at. Everything else is counted at the speed of finding newlines. Memory is the block buffer, whatever the log.

use super::dispatch;
use super::event::EventRef;
use super::literals::Ahead;
use super::pack::{Kind, PackSet};
use super::packs::{DISPATCH, DISPATCH_MARK};
use super::pool::Pools;
use super::prefix::{DockerLine, Prefix, strip_ansi};
use super::value::text;
use super::{Counters, Error, Sink};
use cute_records::{Finding, Record, Severity, Source};
use std::borrow::Cow;
use std::io::Read;

/// Bytes read at once; a longer line is cut here.
const BLOCK: usize = 1 << 20;
/// Bytes of a line that are looked at.
const MAX_MATCH: usize = 256 << 10;

/// Events that say that a boot is through and its pool final.
const SETTLED: &[&str] = &["engine_ready", "server_ready", "http_request", "engine_stats", DISPATCH];

pub(super) struct Scanner<'a, S: ?Sized> {
    file: &'a str,
    packs: &'a PackSet,
    sink: &'a mut S,
    counters: Counters,
    pools: Pools,
    plain: Vec<u8>,
    records: Vec<Record>,
}

impl<'a, S: Sink + ?Sized> Scanner<'a, S> {
    pub(super) fn new(file: &'a str, packs: &'a PackSet, sink: &'a mut S) -> Self {
        let mut counters = Counters::default();
        counters.by_pack.extend(packs.packs().map(|p| (p.name, 0)));
        Scanner {
            file,
            packs,
            sink,
            counters,
            pools: Pools::default(),
            plain: Vec::new(),
            records: Vec::new(),
        }
    }

    pub(super) fn run(mut self, mut reader: impl Read) -> Result<Counters, Error> {
        let mut buffer = vec![0u8; BLOCK];
        let mut filled = 0;
        // the current line is longer than the buffer and its head has been looked at
        let mut inside = false;
        loop {
            let n = match reader.read(&mut buffer[filled..]) {
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Error::Io { file: self.file.to_owned(), error }),
            };
            if n == 0 {
                break;
            }
            self.sink.progress(n as u64);
            let old = filled;
            filled += n;
            let Some(last) = memchr::memrchr(b'\n', &buffer[old..filled]).map(|at| at + old) else {
                if inside || filled == BLOCK {
                    if !inside {
                        self.counters.overlong += 1;
                        self.lines(&buffer[..MAX_MATCH])?;
                        self.counters.lines += 1;
                    }
                    inside = true;
                    self.counters.bytes += filled as u64;
                    filled = 0;
                }
                continue;
            };
            let mut start = 0;
            if inside {
                start = memchr::memchr(b'\n', &buffer[..filled]).map_or(last, |at| at) + 1;
                self.counters.bytes += start as u64;
                inside = false;
            }
            if start <= last {
                self.lines(&buffer[start..=last])?;
                self.counters.bytes += (last + 1 - start) as u64;
            }
            buffer.copy_within(last + 1..filled, 0);
            filled -= last + 1;
            self.sink.block_end()?;
        }
        if filled > 0 && !inside {
            self.counters.torn = true;
            self.lines(&buffer[..filled])?;
            self.counters.lines += 1;
        }
        self.counters.bytes += filled as u64;
        self.pools.finish(&mut self.records);
        self.drain()?;
        self.sink.block_end()?;
        Ok(self.counters)
    }

    /// Whole lines, or the head of one. Counts the newlines in it.
    fn lines(&mut self, region: &[u8]) -> Result<(), Error> {
        let base = self.counters.bytes;
        let escape = |from: usize| memchr::memchr(0x1b, &region[from..]).map(|n| from + n);
        let mut ahead = Ahead::default();
        let mut next_escape = escape(0);
        let mut at = 0;
        while at < region.len() {
            if next_escape.is_some_and(|e| e < at) {
                next_escape = escape(at);
            }
            // the next line to look at holds a literal, or an escape sequence that may split one
            let hit = self.packs.find_from(region, at, &mut ahead);
            let Some(found) = hit.map(|h| h.start).into_iter().chain(next_escape).min() else {
                self.skip(&region[at..]);
                return Ok(());
            };
            let line = at + memchr::memrchr(b'\n', &region[at..found]).map_or(0, |n| n + 1);
            self.skip(&region[at..line]);
            let newline = memchr::memchr(b'\n', &region[found..]);
            let end = newline.map_or(region.len(), |n| found + n);
            let plain = next_escape.is_none_or(|e| e >= end);
            let literal = hit.filter(|_| plain).map(|h| h.literal);
            self.line(&region[line..end.min(line + MAX_MATCH)], base + line as u64, literal)?;
            self.counters.lines += u64::from(newline.is_some());
            at = end + 1;
        }
        Ok(())
    }

    /// Lines without any literal.
    fn skip(&mut self, region: &[u8]) {
        let mut start = 0;
        for end in memchr::memchr_iter(b'\n', region) {
            self.counters.lines += 1;
            self.unknown(&region[start..end]);
            start = end + 1;
        }
        if start < region.len() {
            self.unknown(&region[start..]);
        }
    }

    fn unknown(&mut self, line: &[u8]) {
        match line.trim_ascii_start() {
            b"" => self.counters.ignored += 1,
            _ => self.counters.unmatched += 1,
        }
    }

    fn line(&mut self, raw: &[u8], byte: u64, literal: Option<usize>) -> Result<(), Error> {
        let raw = raw.strip_suffix(b"\r").unwrap_or(raw);
        if literal.is_some() && raw.first() != Some(&b'{') {
            return self.plain_line(raw, byte, None, literal);
        }
        let docker = DockerLine::parse(raw);
        let inner = match &docker {
            Some(d) => d.log.trim_end_matches(['\n', '\r']).as_bytes(),
            None => raw,
        };
        let mut plain = std::mem::take(&mut self.plain);
        let line = if memchr::memchr(0x1b, inner).is_some() {
            strip_ansi(inner, &mut plain);
            &plain[..]
        } else {
            inner
        };
        let time = docker.as_ref().and_then(|d| d.time.as_deref()).map(str::as_bytes);
        let done = self.plain_line(line, byte, time, None);
        self.plain = plain;
        done
    }

    fn plain_line(
        &mut self,
        line: &[u8],
        byte: u64,
        docker_time: Option<&[u8]>,
        literal: Option<usize>,
    ) -> Result<(), Error> {
        let mut fields = Vec::new();
        let literal = literal.or_else(|| self.packs.find(line).map(|hit| hit.literal));
        let found = literal.and_then(|literal| self.packs.recognise(literal, line, &mut fields));
        let Some((entry, at)) = found else {
            self.unknown(line);
            return Ok(());
        };
        let (pattern, pack) = (entry.pattern, self.packs.pack(entry));
        if pattern.record == Kind::Ignore {
            self.counters.ignored += 1;
            return Ok(());
        }
        self.counters.matched += 1;
        self.counters.by_pack[entry.pack].1 += 1;
        if self.pools.waiting && SETTLED.contains(&pattern.name) {
            self.pools.settle(&mut self.records);
        }
        let prefix = Prefix::read(line, at);
        let event = EventRef {
            event: pattern.name,
            pack: pack.name,
            fields: &fields,
            file: self.file,
            line: self.counters.lines + 1,
            byte,
            process: prefix.process,
            timestamp: prefix.timestamp.or(docker_time),
        };
        match pattern.record {
            Kind::Dispatch => {
                let rest = memchr::memmem::find(line, DISPATCH_MARK.as_bytes())
                    .map_or(&line[at..], |mark| &line[mark + DISPATCH_MARK.len()..]);
                self.records.push(dispatch_record(rest, event.source()));
            }
            Kind::Pool => self.pools.note(pattern.name, &fields, &event.source(), &mut self.records),
            Kind::Event | Kind::Ignore => {
                if matches!(pattern.name, "args" | "version" | "engine_config") {
                    self.pools.note(pattern.name, &fields, &event.source(), &mut self.records);
                }
                self.drain()?;
                self.sink.event(&event)?;
            }
        }
        self.drain()
    }

    fn drain(&mut self) -> Result<(), Error> {
        for record in self.records.drain(..) {
            self.sink.record(record)?;
        }
        Ok(())
    }
}

fn dispatch_record(rest: &[u8], source: Source) -> Record {
    match dispatch::parse(rest) {
        Ok(dispatch) => Record::Dispatch(cute_records::Dispatch { source, ..dispatch }),
        Err(expected) => {
            let at = format!("{}:{}", source.file, source.line);
            let excerpt: Cow<'_, str> = text(&rest[..rest.len().min(200)]);
            Record::Finding(Finding {
                check: "dispatch_line_malformed".to_owned(),
                severity: Severity::Error,
                message: format!("{at}: {DISPATCH_MARK} {expected}"),
                ordinal: None,
                layer: None,
                at: Some(at),
                data: [
                    ("excerpt".to_owned(), excerpt.trim().into()),
                    ("byte".to_owned(), source.byte.into()),
                    ("process".to_owned(), source.process.into()),
                ]
                .into(),
            })
        }
    }
}
