//! Values captured from a line: numbers with thousands separators, Python words, `key=value` lists.

use cute_records::num::{MOST, whole};
use serde_json::Value;
use std::borrow::Cow;

/// A captured value; text borrows from the line where it can, numbers are read when somebody asks.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Val<'a> {
    /// a span of [`int_len`]
    Int(&'a [u8]),
    /// a span of [`num_len`]
    Num(&'a [u8]),
    Bool(bool),
    Null,
    Str(Cow<'a, str>),
    Json(Value),
}

impl Val<'_> {
    pub(crate) fn as_u64(&self) -> Option<u64> {
        match self {
            Val::Int(b) => u64::try_from(int(b)?).ok().filter(|n| *n <= MOST),
            Val::Json(v) => whole(v),
            _ => None,
        }
    }

    pub(crate) fn as_f64(&self) -> Option<f64> {
        match self {
            Val::Int(b) | Val::Num(b) => num(b),
            Val::Json(v) => v.as_f64(),
            _ => None,
        }
    }

    pub(crate) fn as_str(&self) -> Option<&str> {
        match self {
            Val::Str(s) => Some(s),
            Val::Json(v) => v.as_str(),
            _ => None,
        }
    }

    /// The JSON value; a number that JSON cannot hold is the text it was.
    pub(crate) fn to_value(&self) -> Value {
        match self {
            Val::Int(b) => int(b).map_or_else(|| Value::from(text(b)), Value::from),
            Val::Num(b) => num(b).map_or_else(|| Value::from(text(b)), Value::from),
            Val::Bool(b) => Value::from(*b),
            Val::Null => Value::Null,
            Val::Str(s) => Value::from(s.as_ref()),
            Val::Json(v) => v.clone(),
        }
    }

    /// Appends the JSON text of [`Val::to_value`]; numbers stay as they were printed.
    pub(crate) fn write_json(&self, out: &mut Vec<u8>) {
        match self {
            Val::Int(b) | Val::Num(b) if is_json_number(b) => out.extend_from_slice(b),
            Val::Str(s) => write_string(s.as_bytes(), out),
            Val::Bool(true) => out.extend_from_slice(b"true"),
            Val::Bool(false) => out.extend_from_slice(b"false"),
            Val::Null => out.extend_from_slice(b"null"),
            other => {
                let start = out.len();
                if serde_json::to_writer(&mut *out, &other.to_value()).is_err() {
                    out.truncate(start);
                    out.extend_from_slice(b"null");
                }
            }
        }
    }
}

/// A finite number spelled as JSON spells it.
fn is_json_number(b: &[u8]) -> bool {
    let digits = b.strip_prefix(b"-").unwrap_or(b);
    let plain = match digits {
        [b'0'] | [b'0', b'.', ..] | [b'1'..=b'9', ..] => digits.len() <= 17,
        _ => false,
    };
    plain && digits.iter().all(|c| c.is_ascii_digit() || *c == b'.')
}

/// Appends a decimal number.
pub(crate) fn write_u64(mut n: u64, out: &mut Vec<u8>) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Appends a JSON string; what is no UTF-8 becomes U+FFFD.
pub(crate) fn write_string(b: &[u8], out: &mut Vec<u8>) {
    // no early exit: the loop becomes vector instructions
    let special = b.iter().fold(false, |s, c| s | !(0x20..0x7f).contains(c) | (*c == b'"') | (*c == b'\\'));
    if !special {
        out.push(b'"');
        out.extend_from_slice(b);
        out.push(b'"');
        return;
    }
    let start = out.len();
    if serde_json::to_writer(&mut *out, &text(b)).is_err() {
        out.truncate(start);
        out.extend_from_slice(b"null");
    }
}

/// Text of a line; bytes that are no UTF-8 become U+FFFD.
pub(crate) fn text(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

/// Length of the integer at the start (`-`, digits, thousands separators), 0 when there is none.
pub(crate) fn int_len(b: &[u8]) -> usize {
    let sign = usize::from(b.first() == Some(&b'-'));
    let mut n = sign;
    while n < b.len() && (b[n].is_ascii_digit() || (b[n] == b',' && n > sign && digits3(&b[n + 1..]))) {
        n += 1;
    }
    if n == sign { 0 } else { n }
}

/// Length of the number at the start: an integer with an optional fraction and exponent, or `nan` and `inf`.
pub(crate) fn num_len(b: &[u8]) -> usize {
    let sign = usize::from(matches!(b.first(), Some(b'-' | b'+')));
    for word in [&b"nan"[..], b"inf", b"NaN", b"Infinity"] {
        if b[sign..].starts_with(word) {
            return sign + word.len();
        }
    }
    let mut n = match int_len(&b[sign..]) {
        0 => return 0,
        n => sign + n,
    };
    let digits = |b: &[u8]| b.iter().take_while(|c| c.is_ascii_digit()).count();
    if b.get(n) == Some(&b'.') {
        match digits(&b[n + 1..]) {
            0 => return n,
            d => n += 1 + d,
        }
    }
    if matches!(b.get(n), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(b.get(n + 1), Some(b'-' | b'+')));
        let d = b.get(n + 1 + sign..).map_or(0, digits);
        if d > 0 {
            n += 1 + sign + d;
        }
    }
    n
}

fn digits3(b: &[u8]) -> bool {
    b.len() >= 3 && b[..3].iter().all(u8::is_ascii_digit) && !b.get(3).is_some_and(u8::is_ascii_digit)
}

/// The integer a span of [`int_len`] spells; `None` when it does not fit.
pub(crate) fn int(b: &[u8]) -> Option<i64> {
    let (negative, digits) = match b.first()? {
        b'-' => (true, &b[1..]),
        _ => (false, b),
    };
    let mut x: i64 = 0;
    for d in digits.iter().filter(|c| **c != b',') {
        x = x.checked_mul(10)?.checked_add(i64::from(d.wrapping_sub(b'0')))?;
    }
    Some(if negative { -x } else { x })
}

/// The number a span of [`num_len`] spells, when it is finite.
pub(crate) fn num(b: &[u8]) -> Option<f64> {
    let spelled = std::str::from_utf8(b).ok()?;
    let parsed: Result<f64, _> =
        if spelled.contains(',') { spelled.replace(',', "").parse() } else { spelled.parse() };
    parsed.ok().filter(|x| x.is_finite())
}

/// What a bare word of Python's `repr` means: `None`, `True`, `False`, an integer, a float, a list, or itself.
pub(crate) fn word(b: &[u8]) -> Val<'_> {
    match b {
        b"None" | b"null" => return Val::Null,
        b"True" | b"true" => return Val::Bool(true),
        b"False" | b"false" => return Val::Bool(false),
        _ => {}
    }
    let plain = |b: &[u8]| !b.contains(&b',');
    if !b.is_empty() && plain(b) {
        if int_len(b) == b.len() {
            return Val::Int(b);
        }
        if num_len(b) == b.len() {
            return Val::Num(b);
        }
    }
    if let [b'[' | b'(', .., b']' | b')'] = b
        && let Some(v) = list(&b[1..b.len() - 1])
    {
        return Val::Json(v);
    }
    if let [q @ (b'\'' | b'"'), inner @ .., last] = b
        && q == last
        && !inner.contains(q)
    {
        return Val::Str(text(inner));
    }
    Val::Str(text(b))
}

fn list(inner: &[u8]) -> Option<Value> {
    if inner.iter().any(|c| matches!(c, b'[' | b'(' | b'{')) {
        return None;
    }
    let parts = inner.split(|c| *c == b',').map(<[u8]>::trim_ascii).filter(|p| !p.is_empty());
    Some(Value::Array(parts.map(|p| word(p).to_value()).collect()))
}

/// `key=value` tokens of a line; a value ends at white space outside brackets and quotes.
pub(crate) struct Pairs<'a>(pub(crate) &'a [u8]);

/// One token of [`Pairs`].
#[derive(Debug, PartialEq)]
pub(crate) enum Token<'a> {
    /// `key=value`
    Pair(&'a [u8], &'a [u8]),
    /// anything else
    Bare(&'a [u8]),
}

impl<'a> Iterator for Pairs<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        let b = self.0.trim_ascii_start();
        if b.is_empty() {
            self.0 = b;
            return None;
        }
        let key =
            b.iter().take_while(|c| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'.' | b'-')).count();
        if key == 0 || b.get(key) != Some(&b'=') {
            let end = b.iter().position(u8::is_ascii_whitespace).unwrap_or(b.len());
            self.0 = &b[end..];
            return Some(Token::Bare(&b[..end]));
        }
        let value = &b[key + 1..];
        let end = value_len(value);
        self.0 = &value[end..];
        Some(Token::Pair(&b[..key], &value[..end]))
    }
}

/// Length of a value: up to white space, or behind the bracket or quote that closes what it opens with.
fn value_len(b: &[u8]) -> usize {
    let close = match b.first() {
        Some(b'[') => b']',
        Some(b'(') => b')',
        Some(b'{') => b'}',
        Some(q @ (b'\'' | b'"')) => *q,
        _ => 0,
    };
    let space = |b: &[u8]| b.iter().position(u8::is_ascii_whitespace).unwrap_or(b.len());
    if close == 0 {
        return space(b);
    }
    match b.iter().skip(1).position(|c| *c == close) {
        Some(at) => at + 2 + space(&b[at + 2..]),
        None => b.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_take_thousands_separators_but_not_list_commas() {
        assert_eq!(int(&b"344,000 tokens"[..int_len(b"344,000 tokens")]), Some(344_000));
        assert_eq!(int_len(b"3, 7"), 1);
        assert_eq!(int_len(b"3,7"), 1);
        assert_eq!(int_len(b"1,2345"), 1);
        assert_eq!(int(b"99999999999999999999"), None);
        assert_eq!(num_len(b"9.1875e+00 x"), 10);
        assert_eq!(num_len(b"0.5%"), 3);
        assert_eq!(num_len(b"19.61x"), 5);
        assert_eq!(num_len(b"7."), 1);
    }

    #[test]
    fn words_are_read_as_python_prints_them() {
        assert_eq!(word(b"None"), Val::Null);
        assert_eq!(word(b"[3, 7]").to_value(), serde_json::json!([3, 7]));
        assert_eq!(word(b"(4, 5120)").to_value(), serde_json::json!([4, 5120]));
        assert_eq!(word(b"[]").to_value(), serde_json::json!([]));
        assert_eq!(word(b"-0.90").to_value(), serde_json::json!(-0.9));
        assert_eq!(word(b"fp8_e4m3"), Val::Str("fp8_e4m3".into()));
        assert_eq!(word(b"nan").to_value(), serde_json::json!("nan"));
    }

    #[test]
    fn json_is_written_as_the_value_would_be() {
        for b in [
            "0",
            "-0.90",
            "344,000",
            "007",
            "+5",
            "nan",
            "1e9",
            "7.70",
            "99999999999999999999",
            "a\"b\n",
            "β",
            "x",
        ] {
            let val = word(b.as_bytes());
            let mut out = Vec::new();
            val.write_json(&mut out);
            let back: Value = serde_json::from_slice(&out).unwrap();
            assert_eq!(back, val.to_value(), "{b}");
        }
        for n in [0, 9, 10, u64::MAX] {
            let mut out = Vec::new();
            write_u64(n, &mut out);
            assert_eq!(out, n.to_string().as_bytes());
        }
        let mut out = Vec::new();
        write_string(b"\xff\x00", &mut out);
        assert_eq!(serde_json::from_slice::<Value>(&out).unwrap(), "\u{fffd}\0");
    }

    #[test]
    fn pairs_keep_brackets_together_and_report_what_is_no_pair() {
        let tokens: Vec<_> = Pairs(b" a=1 b=[3, 7] torn c='x y' d=[1, 2").collect();
        assert_eq!(tokens[0], Token::Pair(b"a", b"1"));
        assert_eq!(tokens[1], Token::Pair(b"b", b"[3, 7]"));
        assert_eq!(tokens[2], Token::Bare(b"torn"));
        assert_eq!(tokens[3], Token::Pair(b"c", b"'x y'"));
        assert_eq!(tokens[4], Token::Pair(b"d", b"[1, 2"));
    }
}
