//! lm-eval's `--log_samples` files: one JSON object a document and filter.

use super::json::Node;
use super::rows::{Notes, Part, Row, Source, list, need, short};
use cute_records::{Completion, Severity};
use serde_json::Value;
use std::collections::BTreeMap;

/// Metrics that say right or wrong, the first one present counts.
const METRICS: &[&str] =
    &["exact_match", "acc", "acc_norm", "em", "pass@1", "pass_at_1", "prompt_level_strict_acc"];

/// Reads samples from lines or from one array. With several filters the first one's rows are taken, so that no
/// document counts twice.
pub(crate) fn read(source: &Source, notes: &mut Notes) -> Part {
    let rows = if source.document().text.starts_with('[') {
        let elements = source.document().elements();
        if let Some(at) = elements.broken {
            notes.error("file_cut_off", source.place(at), "the list ends before it is complete");
        }
        parse_all(elements.items, source, notes)
    } else {
        super::lines::objects(source, notes)
    };
    let mut part = Part { file: source.name.clone(), ..Part::default() };
    let mut filters: BTreeMap<String, u64> = BTreeMap::new();
    let mut first: Option<String> = None;
    for (place, row) in rows {
        let filter = row.get("filter").and_then(Value::as_str).unwrap_or_default().to_owned();
        *filters.entry(filter.clone()).or_default() += 1;
        if *first.get_or_insert(filter.clone()) != filter {
            continue;
        }
        match completion(&row, &place) {
            Ok(row) => part.push(row, notes),
            Err(message) => notes.error("bad_row", place, message),
        }
    }
    if filters.len() > 1 {
        let names: Vec<&String> = filters.keys().collect();
        notes.add(
            "several_filters",
            Severity::Info,
            &source.name,
            format!(
                "filters {}: rows of {:?} are taken",
                list(&names, names.len() as u64),
                first.unwrap_or_default()
            ),
        );
    }
    part.check_rows(notes);
    part
}

fn parse_all<'a>(nodes: Vec<Node<'a>>, source: &Source, notes: &mut Notes) -> Vec<(String, Row)> {
    let mut out = Vec::new();
    for node in nodes {
        match Row::parse(node) {
            Ok(row) => out.push((source.place(node.at), row)),
            Err(message) => notes.error("bad_row", source.place(node.at), message),
        }
    }
    out
}

fn completion(row: &Row, place: &str) -> Result<Completion, String> {
    let index = need("doc_id", "a 0-based document", row.u64("doc_id")?)?;
    let target = row.word("target")?;
    let gold = target.as_deref().map(|t| t.rsplit("####").next().unwrap_or(t).trim().to_owned());
    let correct = METRICS.iter().find_map(|m| row.get(m)).map(|v| match v {
        Value::Bool(b) => Ok(*b),
        v => match v.as_f64() {
            Some(0.0) => Ok(false),
            Some(1.0) => Ok(true),
            _ => Err(format!("metric {}: expected 0 or 1", short(v))),
        },
    });
    Ok(Completion {
        id: format!("doc{index}"),
        index,
        gold,
        text: row.get("resps").and_then(innermost),
        extracted: row.get("filtered_resps").and_then(innermost),
        correct: correct.transpose()?,
        prompt_sha256: row.text("prompt_hash")?,
        source: Some(place.to_owned()),
        ..Completion::default()
    })
}

/// The first text of nested lists.
fn innermost(v: &Value) -> Option<String> {
    match v {
        Value::String(s) => Some(s.clone()),
        Value::Array(a) => innermost(a.first()?),
        Value::Number(n) => Some(n.to_string()),
        _ => None,
    }
}
