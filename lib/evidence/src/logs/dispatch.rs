//! `[PHASE_E_DISPATCH]` lines: every field, strictly.
//!
//! A line that is not whole (cut off, glued to another process's line, a value of the wrong kind) yields an error
//! that says what was expected; a field nobody knows is kept as text.

use super::value::{self, Pairs, Token, Val, word};
use cute_records::Dispatch;

const KNOWN: &[&str] = &[
    "layer_name",
    "layer_idx",
    "enabled",
    "restricted_layers",
    "is_decode_only",
    "use_fusion",
    "num_seqs",
    "resident_cap",
    "use_beta_coop",
    "use_beta_lite",
    "path",
    "outcome",
    "reason",
    "wo_split",
];

/// Reads what follows the mark.
pub(crate) fn parse(rest: &[u8]) -> Result<Dispatch, String> {
    let mut out = Dispatch::default();
    let mut seen = 0u32;
    for token in Pairs(rest) {
        let (key, value) = match token {
            Token::Pair(key, value) => (key, value),
            Token::Bare(word) => return Err(format!("expected key=value, found {:?}", short(word))),
        };
        let Some(known) = KNOWN.iter().position(|k| k.as_bytes() == key) else {
            out.other.insert(value::text(key).into_owned(), value::text(value).into_owned());
            continue;
        };
        if seen & (1 << known) != 0 {
            return Err(format!("{}= stands there twice: two lines written into one another", KNOWN[known]));
        }
        seen |= 1 << known;
        set(&mut out, KNOWN[known], value)?;
    }
    match KNOWN[..10].iter().enumerate().find(|(i, _)| seen & (1 << i) == 0) {
        Some((_, missing)) => Err(format!("expected {missing}=, found the end of the line")),
        None => Ok(out),
    }
}

fn set(out: &mut Dispatch, key: &str, value: &[u8]) -> Result<(), String> {
    let wrong = |expected: &str| format!("{key}={}: expected {expected}", short(value));
    let boolean = || match word(value) {
        Val::Bool(b) => Ok(b),
        _ => Err(wrong("True or False")),
    };
    let number = || word(value).as_u64().ok_or_else(|| wrong("a count"));
    let name = || match value {
        [] => Err(wrong("a word")),
        v => Ok(value::text(v).into_owned()),
    };
    match key {
        "layer_name" => out.layer_name = name()?,
        "layer_idx" => {
            out.layer_idx = match word(value) {
                Val::Null => None,
                v => Some(
                    v.as_u64().and_then(|i| u32::try_from(i).ok()).ok_or_else(|| wrong("a layer or None"))?,
                ),
            }
        }
        "enabled" => out.enabled = boolean()?,
        "restricted_layers" => {
            out.restricted_layers = match word(value) {
                Val::Null => None,
                Val::Json(serde_json::Value::Array(layers)) => {
                    let ids = layers.iter().map(|l| l.as_u64().and_then(|i| u32::try_from(i).ok()));
                    Some(ids.collect::<Option<Vec<u32>>>().ok_or_else(|| wrong("a list of layers"))?)
                }
                _ => return Err(wrong("[layers] or None")),
            }
        }
        "is_decode_only" => out.is_decode_only = boolean()?,
        "use_fusion" => out.use_fusion = boolean()?,
        "num_seqs" => out.num_seqs = number()?,
        "resident_cap" => out.resident_cap = number()?,
        "use_beta_coop" => out.use_beta_coop = boolean()?,
        "use_beta_lite" => out.use_beta_lite = boolean()?,
        "path" => out.path = Some(name()?),
        "outcome" => out.outcome = Some(name()?),
        "reason" => out.reason = Some(name()?),
        _ => out.wo_split = Some(number()?),
    }
    Ok(())
}

fn short(bytes: &[u8]) -> String {
    value::text(&bytes[..bytes.len().min(60)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "layer_name=model.layers.3.self_attn.attn layer_idx=3 enabled=True restricted_layers=[3, 7] \
        is_decode_only=True use_fusion=True num_seqs=1 resident_cap=96 use_beta_coop=True use_beta_lite=False";

    #[test]
    fn every_field_of_the_line_is_read() {
        let d = parse(LINE.as_bytes()).unwrap();
        assert_eq!(d.layer_name, "model.layers.3.self_attn.attn");
        assert_eq!((d.layer_idx, d.enabled, d.restricted_layers), (Some(3), true, Some(vec![3, 7])));
        assert_eq!((d.is_decode_only, d.use_fusion, d.num_seqs, d.resident_cap), (true, true, 1, 96));
        assert_eq!((d.use_beta_coop, d.use_beta_lite, d.path), (true, false, None));
    }

    #[test]
    fn our_own_fields_and_unknown_ones_are_kept() {
        let d = parse(
            format!("{LINE} path=coop outcome=lite reason=launch_failed wo_split=8 step=12").as_bytes(),
        );
        let d = d.unwrap();
        assert_eq!((d.path.as_deref(), d.outcome.as_deref()), (Some("coop"), Some("lite")));
        assert_eq!((d.reason.as_deref(), d.wo_split), (Some("launch_failed"), Some(8)));
        assert_eq!(d.other["step"], "12");
    }

    #[test]
    fn none_and_empty_lists_differ() {
        let none = LINE.replace("[3, 7]", "None").replace("layer_idx=3", "layer_idx=None");
        let d = parse(none.as_bytes()).unwrap();
        assert_eq!((d.layer_idx, d.restricted_layers), (None, None));
        let empty = LINE.replace("[3, 7]", "[]");
        assert_eq!(parse(empty.as_bytes()).unwrap().restricted_layers, Some(vec![]));
    }

    #[test]
    fn a_line_that_is_not_whole_says_what_was_expected() {
        let check = |line: String, expect: &str| {
            let error = parse(line.as_bytes()).unwrap_err();
            assert!(error.contains(expect), "{error}");
        };
        check(LINE[..LINE.len() - 20].to_owned(), "expected use_beta_lite=, found the end");
        check(LINE.replace("num_seqs=1", "num_seqs=-1"), "num_seqs=-1: expected a count");
        check(LINE.replace("use_beta_coop=True", "use_beta_coop=Tru"), "expected True or False");
        check(LINE.replace("[3, 7]", "[3, x]"), "a list of layers");
        check(LINE.replace("[3, 7]", "0..7"), "[layers] or None");
        check(LINE.replace("layer_idx=3", "layer_idx=99999999999"), "a layer or None");
        check(format!("{LINE}(EngineCore pid=2) INFO {LINE}"), "expected True or False");
        check(format!("{LINE} {LINE}"), "stands there twice");
    }
}
