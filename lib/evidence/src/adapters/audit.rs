//! `dispatch_audit.json`: what a dispatch-log extractor kept, and the sets it drew from it.

use super::rows::{Notes, Row, Source};
use cute_records::{Dispatch, Record};
use std::collections::BTreeSet;

/// Reads the records; the sets are checked against them.
pub(crate) fn read(source: &Source, notes: &mut Notes) -> Vec<Record> {
    let doc = source.document().members();
    if let Some(at) = doc.broken {
        notes.error("file_cut_off", source.place(at), "the document ends before it is complete");
    }
    let member = |name: &str| doc.items.iter().find(|(key, _)| key == name).map(|(_, node)| *node);
    let mut out: Vec<Dispatch> = Vec::new();
    for node in member("records").map(|n| n.elements().items).unwrap_or_default() {
        let place = source.place(node.at);
        let line = source.line(node.at) as u64;
        match Row::parse(node).and_then(dispatch) {
            Ok(mut d) => {
                d.source = cute_records::Source {
                    file: source.name.clone(),
                    line,
                    byte: node.at as u64,
                    ..Default::default()
                };
                out.push(d);
            }
            Err(message) => notes.error("bad_row", place, message),
        }
    }
    if out.is_empty() {
        notes.error("no_rows", &source.name, "no dispatch record: an audit of nothing");
    }
    for (name, chosen) in [
        ("coop_layers", out.iter().filter(|d| d.use_beta_coop).collect::<Vec<_>>()),
        ("lite_layers", out.iter().filter(|d| d.use_beta_lite).collect()),
    ] {
        let layers: BTreeSet<u64> = chosen.iter().filter_map(|d| d.layer_idx).map(u64::from).collect();
        let unknown = chosen.iter().filter(|d| d.layer_idx.is_none()).count();
        if unknown > 0 {
            notes.error(
                "layer_unknown",
                &source.name,
                format!("{unknown} record(s) of {name} without a layer index"),
            );
        }
        let stated = member(name).and_then(|node| node.value().ok());
        let stated: Option<BTreeSet<u64>> =
            stated.and_then(|v| v.as_array()?.iter().map(serde_json::Value::as_u64).collect());
        match stated {
            Some(stated) if stated == layers => {}
            Some(stated) => notes.error(
                "count_mismatch",
                &source.name,
                format!("states {name} {stated:?}, its records say {layers:?}"),
            ),
            None => notes.error("bad_field", &source.name, format!("{name}: expected a list of layers")),
        }
    }
    out.into_iter().map(Record::Dispatch).collect()
}

fn dispatch(mut row: Row) -> Result<Dispatch, String> {
    let layers = match row.0.remove("restricted_layers") {
        None | Some(serde_json::Value::Null) => None,
        Some(v) => {
            let ids = v.as_array().and_then(|a| a.iter().map(layer).collect::<Option<Vec<u32>>>());
            Some(ids.ok_or_else(|| format!("restricted_layers={v}: expected a list of layers"))?)
        }
    };
    let need_bool =
        |name: &str| row.bool(name)?.ok_or_else(|| format!("no {name:?}: expected true or false"));
    let count = |name: &str| row.u64(name)?.ok_or_else(|| format!("no {name:?}: expected a count"));
    let layer_idx = match row.get("layer_idx") {
        None => None,
        Some(v) => Some(layer(v).ok_or_else(|| format!("layer_idx={v}: expected a layer"))?),
    };
    Ok(Dispatch {
        layer_name: row.text("layer_name")?.ok_or("no \"layer_name\": expected a module name")?,
        layer_idx,
        restricted_layers: layers,
        enabled: need_bool("enabled")?,
        is_decode_only: need_bool("is_decode_only")?,
        use_fusion: need_bool("use_fusion")?,
        use_beta_coop: need_bool("use_beta_coop")?,
        use_beta_lite: need_bool("use_beta_lite")?,
        num_seqs: count("num_seqs")?,
        resident_cap: count("resident_cap")?,
        path: row.text("path")?,
        outcome: row.text("outcome")?,
        reason: row.text("reason")?,
        wo_split: row.u64("wo_split")?,
        ..Dispatch::default()
    })
}

fn layer(v: &serde_json::Value) -> Option<u32> {
    v.as_u64().and_then(|i| u32::try_from(i).ok())
}
