//! Values as Python writes them: `json.dumps`, and `str` inside `{{ … }}`.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Output, State, Value};
use std::fmt::Write;

/// Arguments of `json.dumps`.
#[derive(Debug, Default)]
pub(super) struct Style {
    /// write every character beyond ASCII as `\uXXXX`
    pub ensure_ascii: bool,
    /// what a level is indented by; one line when absent
    pub indent: Option<String>,
    /// between items, and between key and value
    pub separators: Option<Vec<String>>,
    /// keys in order of their text
    pub sort_keys: bool,
}

/// `json.dumps(value, …)`.
pub(super) fn dumps(value: &Value, style: &Style, state: &State<'_, '_>) -> Result<String, Error> {
    let (item, key) = match style.separators.as_deref() {
        Some([item, key]) => (item.as_str(), key.as_str()),
        Some(_) => return Err(fail("separators must be two strings".to_owned())),
        None if style.indent.is_some() => (",", ": "),
        None => (", ", ": "),
    };
    let mut out = String::new();
    Dump { style, item, key, state }.value(value, 1, &mut out)?;
    Ok(out)
}

fn fail(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

struct Dump<'a> {
    style: &'a Style,
    item: &'a str,
    key: &'a str,
    /// pays for what is written
    state: &'a State<'a, 'a>,
}

impl Dump<'_> {
    fn value(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        if depth > 200 {
            return Err(fail("tojson: nested more than 200 levels deep".to_owned()));
        }
        let text = value.as_str().map_or(0, str::len);
        self.state.consume_fuel(1 + text as u64 / 16)?;
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                self.state.consume_fuel(value.len().unwrap_or(0) as u64)?;
                let items: Vec<Value> = value.try_iter()?.collect();
                self.block(('[', ']'), items.len(), depth, out, |i, out| {
                    self.value(&items[i], depth + 1, out)
                })?;
            }
            ValueKind::Map => self.map(value, depth, out)?,
            other => return Err(fail(format!("tojson: {other} is not JSON serializable"))),
        }
        Ok(())
    }

    fn map(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        let mut pairs = Vec::new();
        for key in value.try_iter()? {
            let name = match key.kind() {
                ValueKind::String => key.as_str().unwrap_or_default().to_owned(),
                ValueKind::Number => number(&key),
                ValueKind::Bool => key.is_true().to_string(),
                ValueKind::None => "null".to_owned(),
                other => return Err(fail(format!("tojson: keys must be strings, not {other}"))),
            };
            pairs.push((name, value.get_item(&key)?));
        }
        if self.style.sort_keys {
            pairs.sort_by(|(a, _), (b, _)| a.cmp(b));
        }
        self.block(('{', '}'), pairs.len(), depth, out, |i, out| {
            self.string(&pairs[i].0, out);
            out.push_str(self.key);
            self.value(&pairs[i].1, depth + 1, out)
        })
    }

    /// Brackets around `n` items, on lines of their own when indented.
    fn block(
        &self,
        brackets: (char, char),
        n: usize,
        depth: usize,
        out: &mut String,
        mut item: impl FnMut(usize, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let line = |depth: usize, out: &mut String| {
            if let Some(indent) = self.style.indent.as_ref().filter(|_| n > 0) {
                out.push('\n');
                out.extend(std::iter::repeat_n(indent.as_str(), depth));
            }
        };
        out.push(brackets.0);
        let indent = self.style.indent.as_ref().map_or(0, |indent| indent.len() * depth);
        let between = 1 + (self.item.len() + self.key.len() + indent) as u64 / 16;
        for i in 0..n {
            self.state.consume_fuel(between)?;
            if i > 0 {
                out.push_str(self.item);
            }
            line(depth, out);
            item(i, out)?;
        }
        line(depth - 1, out);
        out.push(brackets.1);
        Ok(())
    }

    fn string(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || (self.style.ensure_ascii && c > '~') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(x) if !value.is_integer() => float(x, ["NaN", "Infinity", "-Infinity"]),
        _ => value.to_string(),
    }
}

/// `repr` of a float: the shortest digits that read back, with an exponent below 1e-4 and from 1e16 on.
fn float(x: f64, [nan, inf, neg_inf]: [&str; 3]) -> String {
    if !x.is_finite() {
        return if x.is_nan() {
            nan
        } else if x > 0.0 {
            inf
        } else {
            neg_inf
        }
        .to_owned();
    }
    let scientific = format!("{x:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    match exponent.parse::<i32>() {
        Ok(e) if x != 0.0 && !(-4..16).contains(&e) => {
            format!("{digits}e{}{:02}", if e < 0 { '-' } else { '+' }, e.abs())
        }
        _ => format!("{x:?}"),
    }
}

/// The methods of Python's strings, dicts and lists. Those that can make much of little pay beforehand.
pub(super) fn method(
    state: &mut State<'_, '_>,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        let len = |v: Option<&Value>| v.and_then(Value::as_str).map_or(0, str::len) as u64;
        let bytes = match name {
            "replace" => {
                let old = args.first().and_then(Value::as_str).unwrap_or_default();
                let all = if old.is_empty() { text.len() + 1 } else { text.matches(old).count() };
                let most = args.get(2).and_then(Value::as_usize).map_or(all, |n| n.min(all));
                (most as u64).saturating_mul(len(args.get(1)))
            }
            "join" => {
                let items = args.first().and_then(Value::len).unwrap_or(0) as u64;
                items.saturating_mul(64 + text.len() as u64)
            }
            "format" => widest(text),
            _ => 0,
        };
        state.consume_fuel(bytes / 64)?;
    }
    match super::strings::method(state, value, name, args)? {
        Some(value) => Ok(value),
        None => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args),
    }
}

/// The sum of all numbers in a format string: no width or precision of it asks for more.
fn widest(format: &str) -> u64 {
    let numbers = format.split(|c: char| !c.is_ascii_digit()).filter(|n| !n.is_empty());
    numbers.fold(0, |sum, n| sum.saturating_add(n.parse().unwrap_or(u64::MAX)))
}

/// Prints an expression as Python's `str` would.
pub(super) fn format(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    match differs(value, 0, state)? {
        true => out.write_str(&text(value, state)?).map_err(Error::from),
        false => minijinja::escape_formatter(out, state, value),
    }
}

/// The `string` filter: Python's `str`.
pub(super) fn string(state: &mut State<'_, '_>, value: &Value) -> Result<Value, Error> {
    if value.as_str().is_some() { Ok(value.clone()) } else { text(value, state).map(Value::from) }
}

/// The `escape` filter: HTML's references as Python writes them; what is escaped already stays as it is.
pub(super) fn escape(state: &mut State<'_, '_>, value: &Value) -> Result<Value, Error> {
    if value.is_safe() {
        return Ok(value.clone());
    }
    let plain = match value.as_str() {
        Some(text) => text.to_owned(),
        None => text(value, state)?,
    };
    state.consume_fuel(plain.len() as u64 / 16)?;
    let mut out = String::with_capacity(plain.len());
    for c in plain.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    Ok(Value::from_safe_string(out))
}

/// Python's `str`. minijinja writes values as Python does, except for the exponents of floats and, inside lists, for
/// characters that are not printed.
fn text(value: &Value, state: &State<'_, '_>) -> Result<String, Error> {
    let items = |open: &str, close: &str, items: Vec<String>| format!("{open}{}{close}", items.join(", "));
    Ok(match value.kind() {
        _ if !differs(value, 0, state)? => value.to_string(),
        ValueKind::Number => float_text(value),
        ValueKind::Seq => {
            state.consume_fuel(value.len().unwrap_or(0) as u64 * 4)?;
            let list: Vec<String> = value.try_iter()?.map(|v| repr(&v, state)).collect::<Result<_, _>>()?;
            match value.is_tuple() {
                true if list.len() == 1 => format!("({},)", list[0]),
                true => items("(", ")", list),
                false => items("[", "]", list),
            }
        }
        ValueKind::Map => {
            let pair = |k: Value| {
                let v = value.get_item(&k).unwrap_or_default();
                Ok(format!("{}: {}", repr(&k, state)?, repr(&v, state)?))
            };
            items("{", "}", value.try_iter()?.map(pair).collect::<Result<_, Error>>()?)
        }
        _ => value.to_string(),
    })
}

/// Python's `repr`: what stands inside a printed list.
fn repr(value: &Value, state: &State<'_, '_>) -> Result<String, Error> {
    if let Some(text) = value.as_str() {
        return Ok(quoted(text));
    }
    if differs(value, 0, state)? {
        return text(value, state);
    }
    let list = Value::from(vec![value.clone()]).to_string();
    Ok(list.strip_prefix('[').and_then(|l| l.strip_suffix(']')).unwrap_or(&list).to_owned())
}

/// A string as Python's `repr` writes it.
fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        let code = u32::from(c);
        let _ = match c {
            '\n' => write!(out, "\\n"),
            '\r' => write!(out, "\\r"),
            '\t' => write!(out, "\\t"),
            '\\' => write!(out, "\\\\"),
            c if c == quote => write!(out, "\\{c}"),
            c if is_printable(c) => write!(out, "{c}"),
            _ if code < 0x100 => write!(out, "\\x{code:02x}"),
            _ if code < 0x1_0000 => write!(out, "\\u{code:04x}"),
            _ => write!(out, "\\U{code:08x}"),
        };
    }
    out.push(quote);
    out
}

/// Python's `isprintable`: behind another character, Rust escapes the same ones, and quotes.
fn is_printable(c: char) -> bool {
    let escaped = || ['a', c].iter().collect::<String>().escape_debug().nth(1) != Some(c);
    if c.is_ascii() { (' '..='~').contains(&c) } else { !escaped() }
}

/// Whether minijinja would write a value in another way than Python.
///
/// Deeper values than a template is ever given are left to minijinja. Each value looked at is paid for, as is its text:
/// a list that holds another twice, and so on, is small to make and endless to print.
fn differs(value: &Value, depth: usize, state: &State<'_, '_>) -> Result<bool, Error> {
    let size = value.as_str().map_or(0, |text| text.len() / 32) + value.len().unwrap_or(0);
    state.consume_fuel(2 + size as u64)?;
    match value.kind() {
        ValueKind::Number => Ok(!value.is_integer()),
        ValueKind::String if depth > 0 => {
            Ok(value.as_str().is_some_and(|text| text.chars().any(|c| !c.is_ascii() && !is_printable(c))))
        }
        ValueKind::Seq if depth < 100 => {
            for item in value.try_iter()? {
                if differs(&item, depth + 1, state)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        ValueKind::Map if depth < 100 => {
            for key in value.try_iter()? {
                let item = value.get_item(&key).unwrap_or_default();
                if differs(&key, depth + 1, state)? || differs(&item, depth + 1, state)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        _ => Ok(false),
    }
}

fn float_text(value: &Value) -> String {
    f64::try_from(value.clone()).map_or_else(|_| value.to_string(), |x| float(x, ["nan", "inf", "-inf"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_python_writes_them() {
        // Left: repr() of CPython.
        for (want, x) in [
            ("0.1", 0.1),
            ("1.0", 1.0),
            ("-0.0", -0.0),
            ("1e+20", 1e20),
            ("1e+16", 1e16),
            ("1234567890123456.0", 1234567890123456.0),
            ("0.0001", 1e-4),
            ("1e-05", 1e-5),
            ("1.5e-07", 1.5e-7),
            ("1.7976931348623157e+308", f64::MAX),
        ] {
            assert_eq!(float(x, ["NaN", "Infinity", "-Infinity"]), want);
        }
    }
}
