//! What stands before a message: process, level, time, source file; docker's JSON wrapping; ANSI colours.

use serde::Deserialize;
use std::borrow::Cow;
use std::ops::Range;

/// Where a prefix is looked for, in bytes before the message.
const REACH: usize = 256;

/// Process and time of a line, as they stand there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Prefix<'a> {
    /// `EngineCore pid=146`
    pub process: Option<&'a [u8]>,
    /// `05-13 13:32:02`, or an ISO time
    pub timestamp: Option<&'a [u8]>,
}

impl<'a> Prefix<'a> {
    /// Reads the prefix of a line whose recognised part starts at `at`.
    pub(crate) fn read(line: &'a [u8], at: usize) -> Self {
        let head = &line[..at];
        let near = &head[at.saturating_sub(REACH)..];
        let mut out = Prefix::default();
        let mut after = near;
        // the last prefix counts: progress bars and other processes may stand before it without a newline
        if let Some(pid) = memchr::memmem::rfind(near, b" pid=")
            && let Some(open) = memchr::memrchr(b'(', &near[..pid])
            && let Some(close) = memchr::memchr(b')', &near[pid..])
        {
            out.process = Some(&near[open + 1..pid + close]);
            after = &near[pid + close + 1..];
        }
        out.timestamp = time_in(after).map(|t| &after[t]).or_else(|| iso(head));
        out
    }
}

/// The message of a line: what follows its time and `[file.py:123]`, or all of it.
pub(crate) fn message(line: &[u8]) -> &[u8] {
    let mut b = line.trim_ascii();
    if let Some(time) = time_in(&b[..b.len().min(48)]) {
        b = b[time.end..].trim_ascii_start();
    }
    if b.first() == Some(&b'[')
        && let Some(close) = memchr::memchr(b']', &b[..b.len().min(REACH)])
        && memchr::memchr(b':', &b[..close]).is_some_and(|c| b[c + 1..close].iter().all(u8::is_ascii_digit))
    {
        b = b[close + 1..].trim_ascii_start();
    }
    b
}

/// Where the first `MM-DD HH:MM:SS` stands, a fraction after it and a year before it included.
fn time_in(b: &[u8]) -> Option<Range<usize>> {
    let mut from = 0;
    while let Some(colon) = memchr::memchr(b':', &b[from..]).map(|c| c + from) {
        from = colon + 1;
        let Some(start) = colon.checked_sub(8) else { continue };
        if b.get(start..start + 14).is_some_and(|t| shape(t, b"dd-dd dd:dd:dd")) {
            let mut end = start + 14;
            if matches!(b.get(end), Some(b'.' | b',')) {
                end += 1 + b[end + 1..].iter().take_while(|c| c.is_ascii_digit()).count();
            }
            let year = start.checked_sub(5).filter(|s| shape(&b[*s..start], b"dddd-"));
            return Some(year.unwrap_or(start)..end);
        }
    }
    None
}

/// An ISO time at the start of a line, as container runtimes and our own tools put it.
fn iso(head: &[u8]) -> Option<&[u8]> {
    let word = &head[..head.iter().take(40).position(u8::is_ascii_whitespace).unwrap_or(head.len().min(40))];
    let date = word.get(..10).is_some_and(|d| shape(d, b"dddd-dd-dd"));
    let time = word.get(11..19).is_some_and(|t| shape(t, b"dd:dd:dd"));
    (date && time).then_some(word)
}

fn shape(b: &[u8], pattern: &[u8]) -> bool {
    b.len() == pattern.len()
        && b.iter().zip(pattern).all(|(c, p)| if *p == b'd' { c.is_ascii_digit() } else { c == p })
}

/// Removes ANSI escape sequences (colours, cursor movement, titles).
pub(crate) fn strip_ansi(line: &[u8], out: &mut Vec<u8>) {
    out.clear();
    let mut rest = line;
    while let Some(esc) = memchr::memchr(0x1b, rest) {
        out.extend_from_slice(&rest[..esc]);
        rest = &rest[esc + 1..];
        let skip = match rest.first() {
            // CSI: parameters, then one final byte
            Some(b'[') => rest.iter().skip(1).position(|c| (0x40..=0x7e).contains(c)).map(|p| p + 2),
            // OSC: up to BEL or ESC
            Some(b']') => {
                rest.iter().position(|c| matches!(c, 0x07 | 0x1b)).map(|p| p + usize::from(rest[p] == 7))
            }
            Some(_) => Some(1),
            None => None,
        };
        rest = &rest[skip.unwrap_or(rest.len())..];
    }
    out.extend_from_slice(rest);
}

/// A line of docker's `json-file` log driver.
#[derive(Deserialize)]
pub(crate) struct DockerLine<'a> {
    /// what the container wrote
    #[serde(borrow)]
    pub log: Cow<'a, str>,
    /// when
    #[serde(borrow, default)]
    pub time: Option<Cow<'a, str>>,
}

impl<'a> DockerLine<'a> {
    /// Unwraps the line when it is one.
    pub(crate) fn parse(line: &'a [u8]) -> Option<Self> {
        if !line.starts_with(b"{\"log\":") {
            return None;
        }
        serde_json::from_slice(line).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, process: Option<&str>, timestamp: Option<&str>) {
        let at = line.find("MSG").unwrap();
        let got = Prefix::read(line.as_bytes(), at);
        assert_eq!(got.process.map(|p| std::str::from_utf8(p).unwrap()), process, "{line}");
        assert_eq!(got.timestamp.map(|p| std::str::from_utf8(p).unwrap()), timestamp, "{line}");
    }

    #[test]
    fn prefixes_of_every_kind_are_read() {
        check(
            "(EngineCore pid=146) INFO 05-13 13:32:02 [_backend.py:1397] MSG",
            Some("EngineCore pid=146"),
            Some("05-13 13:32:02"),
        );
        check("(APIServer pid=1) INFO:     MSG", Some("APIServer pid=1"), None);
        check("INFO 05-10 20:14:02.123 [a.py:1] MSG", None, Some("05-10 20:14:02.123"));
        check("2026-05-01 20:48:54,029 | MSG", None, Some("2026-05-01 20:48:54,029"));
        check("2026-05-01T20:48:54.029Z MSG", None, Some("2026-05-01T20:48:54.029Z"));
        check("MSG", None, None);
        check(
            "(A pid=1) 100% 4/4 [00:00<00:00](Worker_TP0 pid=77) INFO 05-13 13:32:03 [x.py:1] MSG",
            Some("Worker_TP0 pid=77"),
            Some("05-13 13:32:03"),
        );
    }

    #[test]
    fn a_message_is_what_follows_time_and_source() {
        assert_eq!(message(b" 05-10 20:14:23 [backends.py:1010] Failed to read"), b"Failed to read");
        assert_eq!(message(b"plain words [not a source]"), b"plain words [not a source]");
    }

    #[test]
    fn escape_sequences_are_removed_even_when_torn() {
        let mut out = Vec::new();
        strip_ansi(b"\x1b[0;36m(E pid=1)\x1b[0m a\x1b]0;t\x07b\x1bMc\x1b[", &mut out);
        assert_eq!(out, b"(E pid=1) abc");
        strip_ansi(b"\x1b", &mut out);
        assert!(out.is_empty());
    }
}
