//! Replayed conversations (`sharegpt_outputs.jsonl`, `sharegpt.json`), their latency tables, two requests at once
//! (`concurrent/summary.json`), and long decodes (a text by itself, with its coherence figures).

use super::gsm8k::finish_reason;
use super::lines::objects;
use super::rows::{Notes, Part, Row, Source, ms, need};
use cute_records::{Completion, Event, FinishReason, Record, Timing};
use std::collections::BTreeMap;
use std::path::Path;

/// Reads `sharegpt_outputs.jsonl`: one request a line, in the order they were sent.
pub(crate) fn read(source: &Source, notes: &mut Notes) -> Part {
    let mut part = Part { file: source.name.clone(), ..Part::default() };
    let mut last = None;
    let rows = objects(source, notes);
    for (index, (place, row)) in rows.into_iter().filter(|(_, r)| r.get("_header").is_none()).enumerate() {
        let number = |name| row.u64(name).ok().flatten();
        let turn = number("conv_idx").zip(number("turn_idx"));
        if let Some((conv, at)) = turn
            && last >= turn
        {
            notes.error(
                "duplicate_row",
                &place,
                format!("conversation {conv} turn {at} does not follow the row before it"),
            );
        }
        last = turn.or(last);
        match reply(&row, index as u64, &place) {
            Ok(row) => part.push(row, notes),
            Err(message) => notes.error("bad_row", place, message),
        }
    }
    part.check_rows(notes);
    part
}

/// Reads the turns of a `sharegpt.json`.
pub(crate) fn read_turns(source: &Source, notes: &mut Notes) -> Part {
    let mut part = Part { file: source.name.clone(), ..Part::default() };
    let doc = source.document().members();
    if let Some(at) = doc.broken {
        notes.error("file_cut_off", source.place(at), "the document ends before it is complete");
    }
    for (key, node) in &doc.items {
        match key.as_str() {
            "turns" => {
                for (index, node) in node.elements().items.into_iter().enumerate() {
                    let place = source.place(node.at);
                    match Row::parse(node).and_then(|row| reply(&row, index as u64, &place)) {
                        Ok(row) => part.push(row, notes),
                        Err(message) => notes.error("bad_row", place, message),
                    }
                }
            }
            "seed" | "model" | "api" | "max_tokens" => {
                if let Ok(value) = node.value() {
                    part.settings.insert(key.clone(), value);
                }
            }
            _ => {}
        }
    }
    part.check_rows(notes);
    part
}

/// Reads `concurrent/summary.json` and the replies beside it.
pub(crate) fn read_concurrent(source: &Source, notes: &mut Notes) -> Part {
    let mut part = Part { file: source.name.clone(), ..Part::default() };
    let doc = source.document().members();
    if let Some(at) = doc.broken {
        notes.error("file_cut_off", source.place(at), "the document ends before it is complete");
    }
    let requests = doc.items.iter().find(|(key, _)| key == "requests").map(|(_, node)| node.elements());
    for (index, node) in requests.map(|r| r.items).unwrap_or_default().into_iter().enumerate() {
        let place = source.place(node.at);
        let parsed = Row::parse(node).and_then(|row| {
            let mut out = reply(&row, index as u64, &place)?;
            let name = need("request_id", "a name", row.text("request_id")?)?;
            let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
            if plain
                && let Ok(text) = std::fs::read_to_string(
                    Path::new(&source.name).with_file_name(format!("{name}_output.txt")),
                )
            {
                out.text = Some(text);
            }
            out.id = name;
            Ok(out)
        });
        match parsed {
            Ok(row) => part.push(row, notes),
            Err(message) => notes.error("bad_row", place, message),
        }
    }
    part.check_rows(notes);
    part
}

fn reply(row: &Row, index: u64, place: &str) -> Result<Completion, String> {
    let id = match (row.u64("conv_idx")?, row.u64("turn_idx")?) {
        (Some(conv), Some(turn)) => format!("conv{conv}.turn{turn}"),
        _ => format!("r{index}"),
    };
    let deltas = match row.get("token_deltas_ms") {
        None => None,
        Some(v) => {
            let list = v
                .as_array()
                .and_then(|a| a.iter().map(serde_json::Value::as_f64).collect::<Option<Vec<_>>>());
            Some(list.ok_or("token_deltas_ms: expected a list of numbers")?)
        }
    };
    Ok(Completion {
        id,
        index,
        text: row.text("output_text")?,
        text_chars: row.u64("output_chars")?,
        prompt_chars: row.u64("prompt_chars")?,
        completion_tokens: row.u64("n_stream_chunks")?,
        finish_reason: finish_reason(row)?,
        wall_ms: row.f64("wall_s")?.map(ms),
        ttft_ms: row.f64("ttft_ms")?,
        decode_ms: deltas.map(|d| d.iter().sum()),
        source: Some(place.to_owned()),
        ..Completion::default()
    })
}

/// Reads a generated text: one reply, whole.
pub(crate) fn read_text(source: &Source, notes: &mut Notes) -> Part {
    if source.lossy {
        notes.warning("invalid_utf8", &source.name, "holds bytes that are no UTF-8: they are read as U+FFFD");
    }
    let mut part = Part { file: source.name.clone(), declared: Some(1), ..Part::default() };
    let name =
        Path::new(&source.name).file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    part.push(
        Completion {
            id: name.strip_suffix("_output").unwrap_or(&name).to_owned(),
            text: Some(source.text.clone()),
            // the long decode ignores the end of sequence: its runner always goes to the token limit
            finish_reason: name.starts_with("longdecode").then_some(FinishReason::Length),
            source: Some(format!("{}:1", source.name)),
            ..Completion::default()
        },
        notes,
    );
    part
}

/// Reads figures beside a result (`longdecode_coherence.json`, `metrics_*.json`, a manifest): one event.
pub(crate) fn read_figures(source: &Source, name: &str, notes: &mut Notes) -> Vec<Record> {
    match Row::parse(source.document()) {
        Ok(row) => vec![figures(source, name, row.0.into_iter().collect())],
        Err(message) => {
            notes.error("bad_field", &source.name, message);
            Vec::new()
        }
    }
}

/// An event of what a result file states.
pub(crate) fn figures(source: &Source, name: &str, fields: BTreeMap<String, serde_json::Value>) -> Record {
    debug_assert!(super::FIGURES.contains(&name), "{name}");
    let at = cute_records::Source { file: source.name.clone(), line: 1, ..Default::default() };
    Record::Event(Event { event: name.to_owned(), pack: super::PACK.to_owned(), fields, source: at })
}

/// Reads a latency table: one timing a request, with its percentiles as figures.
pub(crate) fn read_tpot(source: &Source, notes: &mut Notes) -> Vec<Record> {
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(source.text.as_bytes());
    let Ok(header) = reader.headers().cloned() else { return Vec::new() };
    let mut out = Vec::new();
    for (i, record) in reader.records().enumerate() {
        let place = format!("{}:{}", source.name, i + 2);
        let row = match record {
            Ok(row) if row.len() == header.len() => row,
            Ok(row) => {
                notes.error("bad_row", place, format!("{} columns: expected {}", row.len(), header.len()));
                continue;
            }
            Err(e) => {
                notes.error("bad_row", place, e.to_string());
                continue;
            }
        };
        let cell = |name: &str| header.iter().position(|h| h == name).and_then(|at| row.get(at));
        let mut figures = BTreeMap::new();
        for (name, value) in header.iter().zip(row.iter()).filter(|(_, v)| !v.is_empty()) {
            match value.parse::<f64>() {
                Ok(x) => _ = figures.insert(name.to_owned(), x.into()),
                Err(_) if name.ends_with("_ms") || name.ends_with("_s") => {
                    notes.error("bad_row", &place, format!("{name}={value:?}: expected a number"));
                }
                Err(_) => {}
            }
        }
        let number = |name: &str| cell(name).and_then(|v| v.parse::<f64>().ok());
        out.push(Record::Timing(Timing {
            name: format!("{} request", cell("phase").unwrap_or("replayed")),
            ms: ms(number("wall_s").unwrap_or_default()),
            count: 1,
            tokens: cell("n_stream_chunks").and_then(|v| v.parse().ok()),
            figures,
            ..Timing::default()
        }));
    }
    out
}
