//! Integers of a request that 64 bits do not hold: read as floats they would reach the chat template with other digits.

use serde_json::value::RawValue;

/// What of a request a chat template sees, as it is written.
#[derive(serde::Deserialize)]
struct Seen<'a> {
    #[serde(borrow)]
    messages: Option<&'a RawValue>,
    #[serde(borrow)]
    tools: Option<&'a RawValue>,
    #[serde(borrow)]
    chat_template_kwargs: Option<&'a RawValue>,
}

/// The first such integer that a template would see, in a line that is a request.
pub fn too_wide_for_a_template(line: &str) -> Option<&str> {
    let seen: Seen<'_> = serde_json::from_str(line).ok()?;
    let all = [seen.messages, seen.tools, seen.chat_template_kwargs];
    all.into_iter().flatten().find_map(|value| too_wide(value.get()))
}

/// The first such integer of a JSON text.
pub fn too_wide(json: &str) -> Option<&str> {
    let mut rest = json;
    while let Some(at) = rest.find(|c: char| c == '"' || c == '-' || c.is_ascii_digit()) {
        rest = &rest[at..];
        let long = match rest.strip_prefix('"') {
            Some(text) => 1 + end_of_string(text),
            None => rest.find(|c: char| !"+-.eE0123456789".contains(c)).unwrap_or(rest.len()),
        };
        let (token, behind) = rest.split_at(long);
        let whole = !token.starts_with('"') && !token.contains(['.', 'e', 'E']);
        if whole && token.parse::<i64>().is_err() && token.parse::<u64>().is_err() {
            return Some(token);
        }
        rest = behind;
    }
    None
}

/// Bytes up to and with the quote that ends a string.
fn end_of_string(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'"' if !escaped => return at + 1,
            b'\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_beyond_64_bits_are_found_where_a_template_sees_them() {
        for (json, want) in [
            ("[18446744073709551615, -9223372036854775808, -0, 1e400, 1.5e-7]", None),
            ("[18446744073709551616]", Some("18446744073709551616")),
            (r#"{"n": -9223372036854775809}"#, Some("-9223372036854775809")),
            (r#"["99999999999999999999", "\\", "\"99999999999999999999", "é"]"#, None),
            (
                r#"{"99999999999999999999\\": 100000000000000000000000000}"#,
                Some("100000000000000000000000000"),
            ),
            ("123456789012345678901234.0", None),
        ] {
            assert_eq!(too_wide(json), want, "{json}");
        }
        let line =
            r#"{"id": 99999999999999999999, "messages": [], "tools": [{"maximum": 99999999999999999998}]}"#;
        assert_eq!(too_wide_for_a_template(line), Some("99999999999999999998"));
        assert_eq!(too_wide_for_a_template(r#"{"id": 99999999999999999999, "prompt": "x"}"#), None);
    }
}
