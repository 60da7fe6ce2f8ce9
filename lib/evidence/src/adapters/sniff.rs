//! What a file is, by its content; its name only settles what content cannot.

use super::json::Node;
use super::{Error, Kind};
use crate::logs::PackSet;
use std::io::Read;
use std::path::Path;

/// Bytes looked at.
const HEAD: u64 = 256 << 10;

/// Decides what `path` is; `None` when nothing fits.
pub(crate) fn sniff(path: &Path) -> Result<Option<Kind>, Error> {
    let io = |error| Error::Io { file: path.display().to_string(), error };
    let mut head = Vec::new();
    std::fs::File::open(path).map_err(io)?.take(HEAD).read_to_end(&mut head).map_err(io)?;
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(kind(&head, &name))
}

/// Decides from the first bytes and the name.
pub(crate) fn kind(head: &[u8], name: &str) -> Option<Kind> {
    if head.starts_with(b"\x93NUMPY") {
        return Some(Kind::Region);
    }
    let text = String::from_utf8_lossy(head);
    let text = text.trim_start_matches('\u{feff}').trim_start();
    if text.starts_with("{\"log\":") {
        return Some(Kind::Log);
    }
    if text.starts_with('{') {
        return object(text);
    }
    if text.starts_with('[') && text.contains("\"doc_id\"") && text.contains("\"resps\"") {
        return Some(Kind::LmEval);
    }
    let first = text.lines().next().unwrap_or_default();
    if first.starts_with("arm,") || (first.contains("phase_e_layers") && first.contains(',')) {
        return Some(Kind::Arms);
    }
    if first.contains("conv_idx,") && first.contains("wall_s") {
        return Some(Kind::TpotCsv);
    }
    if super::gsm8k::is_log_line(first) {
        return Some(Kind::EvalLog);
    }
    let mut lines = text.lines().filter(|l| !l.trim().is_empty()).peekable();
    if lines.peek().is_some() && lines.take(50).all(|l| super::env::pair(l).is_some()) {
        return Some(Kind::Env);
    }
    if PackSet::auto().is_ok_and(|packs| packs.knows(head)) || name.ends_with(".log") {
        return Some(Kind::Log);
    }
    (name.contains("output") && name.ends_with(".txt")).then_some(Kind::Text)
}

fn object(text: &str) -> Option<Kind> {
    // one object a line, unless the first line is not one by itself
    let line = text.lines().next().unwrap_or_default();
    if let Ok(serde_json::Value::Object(row)) = (Node { at: 0, text: line }).value() {
        let has = |names: &[&str]| names.iter().all(|n| row.contains_key(*n));
        if has(&["type", "v"]) {
            return Some(Kind::Records);
        }
        if has(&["prompt_index"]) {
            return Some(Kind::PerQuestion);
        }
        if has(&["conv_idx", "turn_idx"]) {
            return Some(Kind::ShareGpt);
        }
        if has(&["doc_id"]) && (row.contains_key("resps") || row.contains_key("filtered_resps")) {
            return Some(Kind::LmEval);
        }
    }
    let doc = Node::document(text).members();
    let mut keys: Vec<&str> = doc.items.iter().map(|(k, _)| k.as_str()).collect();
    // the head may end inside a long list, whose key then is no complete member
    let open = ["results", "records", "turns", "requests"];
    if doc.broken.is_some() {
        keys.extend(open.iter().filter(|k| text.contains(&format!("\"{k}\""))));
    }
    let has = |names: &[&str]| names.iter().all(|n| keys.contains(n));
    let any = |names: &[&str]| names.iter().any(|n| keys.contains(n));
    Some(if has(&["results"]) && any(&["accuracy", "correct", "label", "seed"]) {
        Kind::Gsm8k
    } else if has(&["records"]) && any(&["coop_layers", "lite_layers"]) {
        Kind::DispatchAudit
    } else if has(&["turns", "phase"]) {
        Kind::ShareGptTurns
    } else if has(&["requests"]) && any(&["total_wall_s", "phase"]) {
        Kind::Concurrent
    } else if any(&["repeated_4gram_fraction", "unique_trigram_ratio"]) {
        Kind::Coherence
    } else if any(&["runner", "out_dir"]) && has(&["arms"]) {
        Kind::Manifest
    } else if has(&["metrics", "tag"]) || has(&["error", "tag"]) {
        Kind::Metrics
    } else if keys.iter().any(|k| k.starts_with("gate") && k.ends_with("_pass"))
        || (has(&["arm"]) && any(&["runs", "ok", "reason", "gsm8k_correct"]))
    {
        Kind::Verdict
    } else {
        return None;
    })
}
