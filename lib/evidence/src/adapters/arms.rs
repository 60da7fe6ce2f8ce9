//! `arms.csv`: the arms of a sweep, with the seed's rules. Rows are numbered from 2, as the file's lines are.

use super::rows::{Notes, Source};
use super::sharegpt::figures;
use cute_records::Record;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

const COLUMNS: [&str; 6] =
    ["arm", "phase_e_fusion", "phase_e_layers", "wo_split", "expected_coop_layers", "description"];

/// One arm of a sweep.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arm {
    /// its row in the file, counted from 2
    pub row: u64,
    /// name
    pub arm: String,
    /// fusion on
    pub fusion: bool,
    /// layers allowed on the cooperative path
    pub layers: Vec<u32>,
    /// pieces of the output projection
    pub wo_split: u32,
    /// layers expected on the cooperative path
    pub expected_coop_layers: String,
    /// for people
    pub description: String,
}

/// What the rows are checked against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// the model's full-attention layers; every listed layer must be one
    pub full_attention_layers: Vec<u32>,
    /// accepted values of `wo_split`
    pub wo_split: Vec<u32>,
}

impl Default for Rules {
    /// The incident's: 64 layers, every fourth a full-attention layer, `wo_split` 8.
    fn default() -> Self {
        Rules { full_attention_layers: (3..64).step_by(4).collect(), wo_split: vec![8] }
    }
}

/// The arms of a file and what violates the rules, as (row, message).
pub fn parse(text: &str, rules: &Rules) -> (Vec<Arm>, Vec<(u64, String)>) {
    let mut reader =
        csv::ReaderBuilder::new().flexible(true).from_reader(text.trim_start_matches('\u{feff}').as_bytes());
    let mut wrong = Vec::new();
    let header = match reader.headers() {
        Ok(header) => header.clone(),
        Err(e) => return (Vec::new(), vec![(1, e.to_string())]),
    };
    let at: BTreeMap<&str, usize> = header.iter().enumerate().map(|(i, h)| (h.trim(), i)).collect();
    let missing: Vec<&str> = COLUMNS.into_iter().filter(|c| !at.contains_key(c)).collect();
    if !missing.is_empty() {
        return (
            Vec::new(),
            vec![(1, format!("missing column(s) {}: found {:?}", missing.join(", "), header))],
        );
    }
    let mut arms: Vec<Arm> = Vec::new();
    let mut rows = 0;
    for (i, record) in reader.records().enumerate() {
        let row = i as u64 + 2;
        rows += 1;
        let record = match record {
            Ok(record) => record,
            Err(e) => {
                wrong.push((row, e.to_string()));
                continue;
            }
        };
        let cell = |name: &str| at.get(name).and_then(|i| record.get(*i)).unwrap_or_default();
        let (arm, mut complaints) = check(row, &cell, rules);
        if !arm.arm.is_empty() && arms.iter().any(|a| a.arm == arm.arm) {
            complaints.push(format!("arm={:?}: stands already above", arm.arm));
        }
        if record.len() < header.len() {
            complaints.push(format!("{} columns: expected {}", record.len(), header.len()));
        }
        if complaints.is_empty() {
            arms.push(arm);
        }
        wrong.extend(complaints.into_iter().map(|c| (row, c)));
    }
    if rows == 0 {
        wrong.push((2, "no arm: expected at least one row".to_owned()));
    }
    (arms, wrong)
}

fn check<'a>(row: u64, cell: &dyn Fn(&str) -> &'a str, rules: &Rules) -> (Arm, Vec<String>) {
    let mut wrong = Vec::new();
    let text = cell("phase_e_layers");
    let mut arm = Arm {
        row,
        arm: cell("arm").to_owned(),
        expected_coop_layers: cell("expected_coop_layers").to_owned(),
        description: cell("description").to_owned(),
        ..Arm::default()
    };
    if arm.arm.trim().is_empty() {
        wrong.push("arm is empty: expected a name".to_owned());
    }
    match cell("phase_e_fusion") {
        "0" => {}
        "1" => arm.fusion = true,
        other => wrong.push(format!("phase_e_fusion={other:?}: expected 0 or 1")),
    }
    if text.contains("...") {
        wrong.push(format!("phase_e_layers={text:?}: an ellipsis stands for layers"));
    }
    let mut seen = BTreeSet::new();
    for id in text.split(',').map(str::trim).filter(|_| !text.trim().is_empty()) {
        match id.parse::<u32>() {
            Err(_) => wrong.push(format!("phase_e_layers: {id:?} is no layer")),
            Ok(id) if !rules.full_attention_layers.contains(&id) => {
                wrong.push(format!("phase_e_layers: {id} is no full-attention layer"));
            }
            Ok(id) if !seen.insert(id) => wrong.push(format!("phase_e_layers: {id} stands there twice")),
            Ok(id) => arm.layers.push(id),
        }
    }
    if arm.fusion && text.trim().is_empty() {
        wrong.push("phase_e_fusion=1 without a layer: an empty list means every layer".to_owned());
    }
    if !arm.fusion && !text.trim().is_empty() {
        wrong.push(format!("phase_e_fusion=0 with phase_e_layers={text:?}: expected none"));
    }
    let joined = arm.layers.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    if arm.fusion && arm.expected_coop_layers != joined {
        wrong.push(format!("expected_coop_layers={:?}: expected {joined:?}", arm.expected_coop_layers));
    }
    match cell("wo_split").parse() {
        Ok(w) if rules.wo_split.contains(&w) => arm.wo_split = w,
        _ => wrong.push(format!("wo_split={:?}: expected one of {:?}", cell("wo_split"), rules.wo_split)),
    }
    (arm, wrong)
}

/// Reads the arms into events; violations become findings with their rows.
pub(crate) fn read(source: &Source, notes: &mut Notes) -> Vec<Record> {
    let (arms, wrong) = parse(&source.text, &Rules::default());
    for (row, message) in wrong {
        notes.error("bad_arm", format!("{}:{row}", source.name), message);
    }
    let event = |arm: Arm| {
        let fields = [
            ("row", json!(arm.row)),
            ("arm", json!(arm.arm)),
            ("fusion", json!(arm.fusion)),
            ("layers", json!(arm.layers)),
            ("wo_split", json!(arm.wo_split)),
            ("expected_coop_layers", json!(arm.expected_coop_layers)),
            ("description", json!(arm.description)),
        ];
        figures(source, "arm", fields.map(|(k, v)| (k.to_owned(), v)).into())
    };
    arms.into_iter().map(event).collect()
}
