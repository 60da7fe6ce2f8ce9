//! `KEY=value` files (`c2_diag_ENV.txt`): the knobs a leg was started with. An empty value is a knob not set.

use super::rows::{Notes, Source, excerpt};
use super::sharegpt::figures;
use cute_records::Record;
use serde_json::Value;
use std::collections::BTreeMap;

/// Reads the knobs into one `environment` event.
pub(crate) fn read(source: &Source, notes: &mut Notes) -> Vec<Record> {
    let mut fields: BTreeMap<String, Value> = BTreeMap::new();
    for (i, line) in source.text.lines().enumerate() {
        let line = line.trim();
        let place = || format!("{}:{}", source.name, i + 1);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((key, value)) = pair(line) else {
            notes.error("bad_row", place(), format!("{:?}: expected KEY=value", excerpt(line)));
            continue;
        };
        let value = if value.is_empty() { Value::Null } else { Value::from(value) };
        if fields.contains_key(key) {
            notes.error(
                "duplicate_row",
                place(),
                format!("{key} stands already above: the first value is kept"),
            );
            continue;
        }
        fields.insert(key.to_owned(), value);
    }
    vec![figures(source, "environment", fields)]
}

/// `KEY=value` with a shell's idea of a name.
pub(crate) fn pair(line: &str) -> Option<(&str, &str)> {
    let (key, value) = line.trim().strip_prefix("export ").unwrap_or(line.trim()).split_once('=')?;
    let name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let named = !key.is_empty() && key.chars().all(name) && !key.starts_with(|c: char| c.is_ascii_digit());
    named.then(|| (key, value.trim_matches(['"', '\''])))
}
