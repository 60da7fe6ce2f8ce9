//! Methods of Python's strings, lists and dicts that minijinja's table lacks, or that do another thing there: positions
//! count characters, `split` takes a maximum by name, every line separator of Unicode ends a line.

use minijinja::value::{Kwargs, Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

/// Calls a method; `None` when it is none of these.
pub(super) fn method(
    state: &State<'_, '_>,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Option<Value>, Error> {
    match (value.as_str(), value.kind()) {
        (Some(text), _) => string(state, text, name, args),
        (_, ValueKind::Seq) => list(value, name, args),
        (_, ValueKind::Map) if name == "copy" => {
            let () = from_args(args)?;
            Ok(Some(value.clone()))
        }
        _ => Ok(None),
    }
}

fn list(value: &Value, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(match name {
        "copy" => {
            let () = from_args(args)?;
            Some(value.clone())
        }
        "index" => {
            let (wanted,): (&Value,) = from_args(args)?;
            let at = value.try_iter()?.position(|item| item == *wanted);
            Some(Value::from(at.ok_or_else(|| fail(format!("{wanted} is not in list")))?))
        }
        _ => None,
    })
}

fn string(state: &State<'_, '_>, text: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let pad = |width: usize| state.consume_fuel(width as u64 / 16).map(|()| width);
    Ok(Some(match name {
        "split" | "rsplit" => split(text, args, name == "rsplit")?,
        "splitlines" => {
            let (keep, kwargs): (Option<bool>, Kwargs) = from_args(args)?;
            let keep = kwargs.get::<Option<bool>>("keepends")?.or(keep).unwrap_or(false);
            kwargs.assert_all_used()?;
            Value::from(lines(text, keep).into_iter().map(Value::from).collect::<Vec<_>>())
        }
        "partition" | "rpartition" => {
            let (by,): (&str,) = from_args(args)?;
            let parts = if name == "partition" { text.split_once(by) } else { text.rsplit_once(by) };
            let parts = match parts {
                _ if by.is_empty() => return Err(fail("empty separator".to_owned())),
                Some((head, tail)) => [head, by, tail],
                None if name == "partition" => [text, "", ""],
                None => ["", "", text],
            };
            Value::from(Tuple::from(parts.map(Value::from)))
        }
        "find" | "rfind" | "index" | "rindex" => {
            let (wanted, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
            match position(text, wanted, start, end, name.starts_with('r')) {
                None if name.ends_with("index") => return Err(fail("substring not found".to_owned())),
                at => Value::from(at.map_or(-1, |at| at as i64)),
            }
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "title" => {
            let () = from_args(args)?;
            Value::from(title(text))
        }
        "swapcase" => {
            let () = from_args(args)?;
            let swap = |c: char| match c.is_uppercase() {
                true => c.to_lowercase().collect::<String>(),
                false => c.to_uppercase().collect(),
            };
            Value::from(text.chars().map(swap).collect::<String>())
        }
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
            let zeros = "0".repeat(pad(width)?.saturating_sub(text.chars().count()));
            Value::from(format!("{sign}{zeros}{digits}"))
        }
        "ljust" | "rjust" | "center" => {
            let (width, fill): (usize, Option<char>) = from_args(args)?;
            let missing = pad(width)?.saturating_sub(text.chars().count());
            let left = match name {
                "ljust" => 0,
                "rjust" => missing,
                _ => missing / 2 + (missing & width & 1),
            };
            let fill = |n: usize| fill.unwrap_or(' ').to_string().repeat(n);
            Value::from(format!("{}{text}{}", fill(left), fill(missing - left)))
        }
        _ => return Ok(None),
    }))
}

/// `split(sep=None, maxsplit=-1)` and `rsplit`.
fn split(text: &str, args: &[Value], right: bool) -> Result<Value, Error> {
    let (sep, most, kwargs): (Option<Value>, Option<i64>, Kwargs) = from_args(args)?;
    let sep = kwargs.get::<Option<Value>>("sep")?.or(sep).filter(|sep| !sep.is_none());
    let most = kwargs.get::<Option<i64>>("maxsplit")?.or(most).unwrap_or(-1);
    kwargs.assert_all_used()?;
    let most = usize::try_from(most).unwrap_or(usize::MAX - 1);
    let mut out: Vec<&str> = match &sep {
        None => words(text, most, right),
        Some(sep) => match sep.as_str() {
            Some("") => return Err(fail("empty separator".to_owned())),
            Some(sep) if right => text.rsplitn(most + 1, sep).collect(),
            Some(sep) => text.splitn(most + 1, sep).collect(),
            None => return Err(fail(format!("split: expected a string or none, not {}", sep.kind()))),
        },
    };
    if right {
        out.reverse();
    }
    Ok(Value::from(out.into_iter().map(Value::from).collect::<Vec<_>>()))
}

/// Words between white space; the rest after so many, from the right those before, in the order in which they are found.
fn words(text: &str, most: usize, right: bool) -> Vec<&str> {
    let (mut rest, mut out) = (text, Vec::new());
    loop {
        rest = if right { rest.trim_end_matches(is_space) } else { rest.trim_start_matches(is_space) };
        let cut = if right { rest.rfind(is_space) } else { rest.find(is_space) };
        match cut {
            _ if rest.is_empty() => return out,
            Some(at) if out.len() < most => {
                let after = at + rest[at..].chars().next().map_or(0, char::len_utf8);
                let (word, left) =
                    if right { (&rest[after..], &rest[..at]) } else { (&rest[..at], &rest[at..]) };
                out.push(word);
                rest = left;
            }
            _ => {
                out.push(rest);
                return out;
            }
        }
    }
}

fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

fn lines(text: &str, keep: bool) -> Vec<&str> {
    let ends = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let (mut out, mut rest) = (Vec::new(), text);
    while let Some(at) = rest.find(ends) {
        let long = if rest[at..].starts_with("\r\n") {
            2
        } else {
            rest[at..].chars().next().map_or(1, char::len_utf8)
        };
        out.push(&rest[..if keep { at + long } else { at }]);
        rest = &rest[at + long..];
    }
    out.extend((!rest.is_empty()).then_some(rest));
    out
}

/// Where a text stands in another, in characters, within a slice of it.
fn position(text: &str, wanted: &str, start: Option<i64>, end: Option<i64>, last: bool) -> Option<usize> {
    let n = text.chars().count() as i64;
    let place = |i: i64| (if i < 0 { i + n } else { i }).clamp(0, n);
    let (from, to) = (start.map_or(0, place), end.map_or(n, place));
    if start.is_some_and(|s| s > n) || from > to {
        return None;
    }
    let byte = |i: i64| text.char_indices().nth(i as usize).map_or(text.len(), |(at, _)| at);
    let slice = &text[byte(from)..byte(to)];
    let at = if last { slice.rfind(wanted) } else { slice.find(wanted) };
    at.map(|at| from as usize + slice[..at].chars().count())
}

/// Letters behind anything that has no case are capital, the others small.
fn title(text: &str) -> String {
    let mut inside = false;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if inside {
            out.extend(c.to_lowercase())
        } else {
            out.extend(c.to_uppercase())
        }
        inside = c.is_lowercase() || c.is_uppercase();
    }
    out
}

/// The `int` filter: a number, or the digits of a text in a base; the default for whatever is neither.
pub(super) fn int(value: &Value, default: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    defined(value, "int")?;
    let base = kwargs.get::<Option<u32>>("base")?.unwrap_or(10);
    let default = kwargs.get::<Option<Value>>("default")?.or(default).unwrap_or_else(|| Value::from(0));
    kwargs.assert_all_used()?;
    let whole = |x: f64| (x.abs() < 1e30).then(|| Value::from(x.trunc() as i128));
    let found = match (value.as_str(), value.kind()) {
        (Some(text), _) => {
            let text = text.trim_matches(is_space);
            digits(text, base).map(Value::from).or_else(|| number(text).and_then(whole))
        }
        (_, ValueKind::Bool) => Some(Value::from(i64::from(value.is_true()))),
        (_, ValueKind::Number) if value.is_integer() => Some(value.clone()),
        (_, ValueKind::Number) => f64::try_from(value.clone()).ok().and_then(whole),
        _ => None,
    };
    Ok(found.unwrap_or(default))
}

/// The `float` filter.
pub(super) fn float(value: &Value, default: Option<f64>) -> Result<f64, Error> {
    defined(value, "float")?;
    let found = match (value.as_str(), value.kind()) {
        (Some(text), _) => number(text.trim_matches(is_space)),
        (_, ValueKind::Bool) => Some(f64::from(u8::from(value.is_true()))),
        (_, ValueKind::Number) => f64::try_from(value.clone()).ok(),
        _ => None,
    };
    Ok(found.or(default).unwrap_or(0.0))
}

/// Neither makes a number of nothing.
fn defined(value: &Value, filter: &str) -> Result<(), Error> {
    match value.is_undefined() {
        true => Err(Error::new(ErrorKind::UndefinedError, format!("{filter}: expected a value"))),
        false => Ok(()),
    }
}

/// `int(text, base)`, as far as an i128 reaches.
fn digits(text: &str, base: u32) -> Option<i128> {
    let (sign, rest) = text.split_at(usize::from(text.starts_with(['+', '-'])));
    let prefixes = [(16, "0x"), (8, "0o"), (2, "0b")];
    let lower = rest.to_ascii_lowercase();
    let prefix = prefixes.iter().find(|(b, p)| (*b == base || base == 0) && lower.starts_with(p));
    let (base, rest) =
        prefix.map_or((if base == 0 { 10 } else { base }, &lower[..]), |(b, p)| (*b, &lower[p.len()..]));
    let plain = underscores(rest)?;
    let fits = (2..=36).contains(&base) && plain.starts_with(|c: char| c.is_digit(base));
    i128::from_str_radix(&format!("{sign}{plain}"), base).ok().filter(|_| fits)
}

fn number(text: &str) -> Option<f64> {
    underscores(text)?.parse().ok()
}

/// Python allows one `_` between two digits.
fn underscores(text: &str) -> Option<String> {
    let odd = text.starts_with('_') || text.ends_with('_') || text.contains("__");
    (!odd).then(|| text.replace('_', ""))
}

fn fail(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}
