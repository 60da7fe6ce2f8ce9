//! `perq.jsonl`: one line a question, `run_index` 0-based, `prompt_index` 1-based, appended to on every re-run.

use super::gsm8k::measurements;
use super::lines::objects;
use super::rows::{Notes, Part, Row, Source, need};
use cute_records::Completion;
use std::collections::BTreeSet;

/// Reads a `perq.jsonl`: every run of it.
pub(crate) fn read(source: &Source, notes: &mut Notes) -> Part {
    let mut part = Part { file: source.name.clone(), ..Part::default() };
    let mut labels = BTreeSet::new();
    for (place, row) in objects(source, notes) {
        labels.extend(row.get("label").and_then(|v| v.as_str()).map(str::to_owned));
        match completion(&row, &place) {
            Ok(row) => part.push(row, notes),
            Err(message) => notes.error("bad_row", place, message),
        }
    }
    if labels.len() > 1 {
        let names: Vec<&str> = labels.iter().map(String::as_str).collect();
        notes.error(
            "label_mismatch",
            &source.name,
            format!("rows of several evaluations: {}", names.join(", ")),
        );
    }
    part.label = labels.into_iter().next();
    part.check_rows(notes);
    part
}

fn completion(row: &Row, place: &str) -> Result<Completion, String> {
    let number = need("prompt_index", "a 1-based index", row.u64("prompt_index")?)?;
    let index = number.checked_sub(1).ok_or("prompt_index=0: expected a 1-based index")?;
    let mut out = Completion {
        id: row.text("request_id")?.unwrap_or_else(|| format!("q{index}")),
        run: row.u64("run_index")?.unwrap_or(0),
        index,
        gold: row.word("gold")?,
        extracted: row.word("pred")?.filter(|p| !p.is_empty()),
        correct: row.bool("correct")?,
        source: Some(place.to_owned()),
        ..Completion::default()
    };
    measurements(row, &mut out)?;
    Ok(out)
}
