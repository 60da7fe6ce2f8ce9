//! Files of one JSON object a line.

use super::rows::{Notes, Row, Source};

/// The rows of a file and where they stand; a bad line is noted and costs only itself.
pub(crate) fn objects(source: &Source, notes: &mut Notes) -> Vec<(String, Row)> {
    let mut out = Vec::new();
    let mut lines = source.text.split('\n').enumerate().peekable();
    while let Some((i, line)) = lines.next() {
        let line = line.trim().trim_start_matches('\u{feff}');
        if line.is_empty() {
            continue;
        }
        let place = format!("{}:{}", source.name, i + 1);
        match Row::parse(super::json::Node { at: 0, text: line }) {
            Ok(row) => out.push((place, row)),
            Err(message) if lines.peek().is_none() => {
                notes.error("file_cut_off", place, format!("the last line is not whole: {message}"));
            }
            Err(message) => notes.error("bad_row", place, message),
        }
    }
    out
}
