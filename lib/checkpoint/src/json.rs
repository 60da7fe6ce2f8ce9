//! JSON of files somebody else wrote: nothing stands twice, nothing costs more than it should, and what the
//! parser says of it fits on a line.

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

/// Most tensors a file or an index may name; published checkpoints have fewer than a hundred thousand.
pub(crate) const MAX_TENSORS: usize = 1 << 20;
/// Longest name of a tensor or file, in bytes.
const MAX_NAME: usize = 512;

/// At most 80 characters of a value, for messages; control characters are escaped.
pub(crate) fn short(text: &str) -> String {
    cut(text, 80)
}

/// At most 200 characters of a sentence with words of the file in it; control characters are escaped.
pub(crate) fn line(text: &str) -> String {
    cut(text, 200)
}

/// What the parser said, on one line of readable length; the place it ends with is kept.
pub(crate) fn reason(e: &serde_json::Error) -> String {
    let said = e.to_string();
    match said.rfind(" at line ") {
        Some(place) => line(&said[..place]) + &said[place..],
        None => line(&said),
    }
}

fn cut(text: &str, most: usize) -> String {
    let (mut out, mut rest) = (String::new(), text.chars());
    for c in rest.by_ref().take(most) {
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    if rest.next().is_some() {
        out.push('…');
    }
    out
}

/// Parses a value in which no key of an object stands twice: which of the two counts would be anybody's guess.
pub(crate) fn strict(text: &[u8]) -> serde_json::Result<Value> {
    let mut json = serde_json::Deserializer::from_slice(text);
    let value = Strict.deserialize(&mut json)?;
    json.end()?;
    Ok(value)
}

/// Reads any value as [`Value`] reads it, except that a key that stands twice is an error.
struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E>(self, x: bool) -> Result<Value, E> {
        Ok(Value::Bool(x))
    }
    fn visit_i64<E>(self, x: i64) -> Result<Value, E> {
        Ok(Value::from(x))
    }
    fn visit_u64<E>(self, x: u64) -> Result<Value, E> {
        Ok(Value::from(x))
    }
    fn visit_f64<E>(self, x: f64) -> Result<Value, E> {
        Ok(Number::from_f64(x).map_or(Value::Null, Value::Number))
    }
    fn visit_str<E>(self, x: &str) -> Result<Value, E> {
        Ok(Value::from(x))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        while let Some(item) = items.next_element_seed(Strict)? {
            out.push(item);
        }
        Ok(Value::Array(out))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if out.contains_key(&key) {
                return Err(A::Error::custom(format!("{:?} stands twice", short(&key))));
            }
            let value = entries.next_value_seed(Strict)?;
            out.insert(key, value);
        }
        Ok(Value::Object(out))
    }
}

/// Checks a text for what [`strict`] refuses, and keeps nothing of it: for files too large to hold twice.
pub(crate) fn check(text: &[u8]) -> serde_json::Result<()> {
    let text = std::str::from_utf8(text)
        .map_err(|e| serde_json::Error::custom(format!("invalid UTF-8 at byte {}", e.valid_up_to())))?;
    let mut json = serde_json::Deserializer::from_str(text);
    Check.deserialize(&mut json)?;
    json.end()
}

/// Reads any value as [`Strict`] reads it, and forgets it.
struct Check;

impl<'de> DeserializeSeed<'de> for Check {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Check {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(Check)?.is_some() {}
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(key) = entries.next_key::<Cow<'de, str>>()? {
            if seen.contains(&key) {
                return Err(A::Error::custom(format!("{:?} stands twice", short(&key))));
            }
            seen.insert(key);
            entries.next_value_seed(Check)?;
        }
        Ok(())
    }
}

/// The name of a tensor or file: of ordinary length, and safe to print.
pub(crate) struct Name(pub String);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let name = String::deserialize(d)?;
        if name.len() > MAX_NAME {
            let head = short(&name);
            return Err(D::Error::custom(format!(
                "a name of {} bytes, {head:?}: expected at most {MAX_NAME}",
                name.len()
            )));
        }
        match name.chars().any(char::is_control) {
            true => Err(D::Error::custom(format!("name {name:?}: expected no control characters"))),
            false => Ok(Name(name)),
        }
    }
}

/// The pairs of a JSON object, at most [`MAX_TENSORS`], in order; a key that stands twice is an error, and an
/// error in a value names its key.
pub(crate) fn pairs<'de, A: MapAccess<'de>, T>(
    mut map: A,
    mut value: impl FnMut(&str, &mut A) -> Result<Option<T>, A::Error>,
) -> Result<Vec<(String, T)>, A::Error> {
    let (mut out, mut seen) = (Vec::new(), HashSet::new());
    while let Some(Name(name)) = map.next_key()? {
        if seen.len() == MAX_TENSORS {
            return Err(A::Error::custom(format!("more than {MAX_TENSORS} tensors")));
        }
        if !seen.insert(name.clone()) {
            return Err(A::Error::custom(format!("{name:?} stands twice")));
        }
        let value = value(&name, &mut map).map_err(|e| A::Error::custom(format!("{name:?}: {e}")))?;
        out.extend(value.map(|v| (name, v)));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strict_reads_what_serde_json_reads() {
        for text in [
            r#"{"a": [1, -2, 2.5, 1e300, null, true, "é\u0000", {}], "b": {"a": {"a": []}}}"#,
            "18446744073709551615",
            "1e999",
            "[",
            "{} x",
        ] {
            let (ours, theirs) = (strict(text.as_bytes()), serde_json::from_str::<Value>(text));
            assert_eq!(ours.ok(), theirs.as_ref().ok().cloned(), "{text}");
            assert_eq!(check(text.as_bytes()).is_ok(), theirs.is_ok(), "{text}");
        }
        assert!(check(br#"[{"a": {"b": 1, "c": 2, "b": 1}}]"#).is_err());
        assert!(strict(br#"{"a": {"b": 1, "c": 2, "b": 1}}"#).is_err());
    }

    #[test]
    fn a_long_complaint_keeps_its_head_and_its_place() {
        let text = format!("[\"{}\", 1]", "x".repeat(10_000));
        let e = serde_json::from_str::<Vec<u64>>(&text).unwrap_err();
        let said = reason(&e);
        assert!(said.starts_with("invalid type: string \"xxx") && said.len() < 300, "{said}");
        assert!(said.contains("… at line 1 column "), "{said}");
        assert_eq!(short("a\u{1b}[31m\n"), "a\\u{1b}[31m\\n");
    }
}
