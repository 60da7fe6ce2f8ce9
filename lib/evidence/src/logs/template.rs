//! Patterns as people write them: the message's own words with `{name:type}` where a value stands.
//!
//! | in a template | stands for |
//! |---|---|
//! | `{n:int}` | an integer, thousands separators allowed |
//! | `{x:num}` | a number with fraction or exponent, or `nan` and `inf` |
//! | `{w:word}` | text without white space, up to the words that follow |
//! | `{t:text}` | any text up to the words that follow, or to the end of the line |
//! | `{m:msg}` | the line's message behind its time and `[file.py:123]`, to the end |
//! | `{b:bool}` | `True` or `False` |
//! | `{r:HIT\|MISS}` | one of these words |
//! | `{:kv}` | the rest as `key=value` tokens, each a field |
//! | `{:dict}`, `{:kwargs}` | a Python dictionary or keyword arguments, each entry a field |
//! | `(?…?)` | may be missing |
//!
//! Words match exactly and anywhere in the line; a template that starts with a value starts at the word before
//! its first literal. What follows a template is not looked at. No backtracking: time is linear in the line.

use super::value::{self, Pairs, Token, Val};
use memchr::memmem::Finder;
use std::borrow::Cow;

#[derive(Clone, Debug)]
enum Type {
    Int,
    Num,
    Word,
    Text,
    Msg,
    Bool,
    OneOf(Vec<&'static str>),
    Kv,
    Dict,
    Kwargs,
}

#[derive(Clone, Debug)]
enum Piece {
    Words(&'static str),
    Value(&'static str, Type),
    Maybe(Vec<Piece>),
}

/// A field's name and value.
pub(crate) type Field<'a> = (Cow<'a, str>, Val<'a>);

/// A compiled template.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    lead: Option<&'static str>,
    first: Finder<'static>,
    rest: Vec<Piece>,
    /// fields there may be
    width: usize,
}

/// A mistake in a pattern table.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("template {template:?}: {message}")]
pub struct TemplateError {
    /// the template
    pub template: String,
    /// what is wrong with it
    pub message: String,
}

impl Template {
    /// Compiles a template.
    pub(crate) fn new(template: &'static str) -> Result<Self, TemplateError> {
        let error = |message: &str| TemplateError { template: template.into(), message: message.into() };
        let mut pieces = parse(template).map_err(|m| error(&m))?;
        let lead = match pieces.first() {
            Some(Piece::Value(name, Type::Word)) => {
                let name = *name;
                pieces.remove(0);
                Some(name)
            }
            Some(Piece::Words(_)) => None,
            _ => return Err(error("starts with something other than words or {name:word}")),
        };
        match pieces.first() {
            Some(Piece::Words(words)) => {
                let first = Finder::new(words.as_bytes()).into_owned();
                pieces.remove(0);
                Ok(Template { lead, first, rest: pieces, width: template.matches('{').count() })
            }
            _ => Err(error("no words to look for")),
        }
    }

    /// The fields, and the offset at which the template starts, when `line` matches.
    pub(crate) fn matches<'a>(&self, line: &'a [u8], fields: &mut Vec<Field<'a>>) -> Option<usize> {
        let at = self.first.find(line)?;
        fields.clear();
        fields.reserve(self.width);
        let mut start = at;
        if let Some(name) = self.lead {
            start = line[..at].iter().rposition(u8::is_ascii_whitespace).map_or(0, |p| p + 1);
            if start == at {
                return None;
            }
            fields.push((name.into(), Val::Str(value::text(&line[start..at]))));
        }
        let mut cursor = Cursor { line, at: at + self.first.needle().len() };
        cursor.pieces(&self.rest, fields)?;
        Some(start)
    }

    /// Names of the fields, for the documentation; `*` where the line itself names them.
    pub(crate) fn fields(&self) -> Vec<&'static str> {
        fn walk(pieces: &[Piece], out: &mut Vec<&'static str>) {
            for piece in pieces {
                match piece {
                    Piece::Words(_) => {}
                    Piece::Value("", _) => out.push("*"),
                    Piece::Value(name, _) => out.push(name),
                    Piece::Maybe(inner) => walk(inner, out),
                }
            }
        }
        let mut out: Vec<_> = self.lead.into_iter().collect();
        walk(&self.rest, &mut out);
        out
    }
}

/// A run of words long enough to look for.
const ENOUGH: usize = 12;

/// What the scanner looks for: the first run of words that is long enough and survives JSON escaping, else the
/// longest. The earlier in the line it stands, the less there is to scan.
pub(crate) fn literal(template: &'static str) -> &'static str {
    let Ok(pieces) = parse(template) else { return "" };
    let safe = |c: char| c.is_ascii() && !c.is_ascii_control() && !matches!(c, '"' | '\\' | '<' | '>' | '&');
    let words = pieces.iter().filter_map(|p| if let Piece::Words(w) = p { Some(*w) } else { None });
    let runs = words.flat_map(|w| w.split(move |c| !safe(c)));
    runs.fold("", |best, run| if best.len() < ENOUGH && run.len() > best.len() { run } else { best })
}

struct Cursor<'a> {
    line: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn pieces(&mut self, pieces: &[Piece], fields: &mut Vec<Field<'a>>) -> Option<()> {
        for (i, piece) in pieces.iter().enumerate() {
            match piece {
                Piece::Words(words) => {
                    if !self.left().starts_with(words.as_bytes()) {
                        return None;
                    }
                    self.at += words.len();
                }
                Piece::Value(name, ty) => {
                    let next = match pieces.get(i + 1) {
                        Some(Piece::Words(words)) => Some(words.as_bytes()),
                        _ => None,
                    };
                    self.value(name, ty, next, fields)?;
                }
                Piece::Maybe(inner) => {
                    let (at, len) = (self.at, fields.len());
                    if self.pieces(inner, fields).is_none() {
                        self.at = at;
                        fields.truncate(len);
                    }
                }
            }
        }
        Some(())
    }

    fn left(&self) -> &'a [u8] {
        &self.line[self.at..]
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        if len == 0 {
            return None;
        }
        let taken = &self.left()[..len];
        self.at += len;
        Some(taken)
    }

    fn value(
        &mut self,
        name: &'static str,
        ty: &Type,
        next: Option<&[u8]>,
        fields: &mut Vec<Field<'a>>,
    ) -> Option<()> {
        let left = self.left();
        let val = match ty {
            Type::Int => Val::Int(self.take(value::int_len(left))?),
            Type::Num => Val::Num(self.take(value::num_len(left))?),
            Type::Word => {
                let span = left.iter().position(u8::is_ascii_whitespace).unwrap_or(left.len());
                let len = match next {
                    Some(next) if !next[0].is_ascii_whitespace() => {
                        memchr::memmem::find(&left[..(span + next.len()).min(left.len())], next)?
                    }
                    _ => span,
                };
                Val::Str(value::text(self.take(len)?))
            }
            Type::Text => {
                let len = match next {
                    Some(next) => memchr::memmem::find(left, next)?,
                    None => left.len(),
                };
                self.at += len;
                Val::Str(value::text(left[..len].trim_ascii()))
            }
            Type::Msg => {
                self.at = self.line.len();
                Val::Str(value::text(super::prefix::message(left)))
            }
            Type::Bool => match left {
                [b'T', b'r', b'u', b'e', ..] => self.take(4).map(|_| Val::Bool(true))?,
                [b'F', b'a', b'l', b's', b'e', ..] => self.take(5).map(|_| Val::Bool(false))?,
                _ => return None,
            },
            Type::OneOf(words) => {
                let word = words.iter().find(|w| left.starts_with(w.as_bytes()))?;
                self.at += word.len();
                Val::Str((*word).into())
            }
            Type::Kv => {
                self.at = self.line.len();
                for token in Pairs(left) {
                    if let Token::Pair(key, value) = token {
                        push(fields, value::text(key), value::word(value));
                    }
                }
                return Some(());
            }
            Type::Dict | Type::Kwargs => {
                self.at = self.line.len();
                let text = value::text(left);
                let dict = matches!(ty, Type::Dict);
                let (map, complete) =
                    if dict { super::pylit::dict(&text) } else { super::pylit::kwargs(&text) };
                fields.extend(map.into_iter().map(|(k, v)| (k.into(), Val::Json(v))));
                if !complete {
                    push(fields, "line_cut_off".into(), Val::Bool(true));
                }
                return Some(());
            }
        };
        fields.push((name.into(), val));
        Some(())
    }
}

/// Adds a field; of two with one name the first stays.
fn push<'a>(fields: &mut Vec<Field<'a>>, name: Cow<'a, str>, value: Val<'a>) {
    if fields.len() < 256 && !fields.iter().any(|(n, _)| *n == name) {
        fields.push((name, value));
    }
}

fn parse(template: &'static str) -> Result<Vec<Piece>, String> {
    let mut out = Vec::new();
    let mut rest = template;
    while !rest.is_empty() {
        if let Some(inner) = rest.strip_prefix("(?") {
            let end = inner.find("?)").ok_or("`(?` without `?)`")?;
            out.push(Piece::Maybe(parse(&inner[..end])?));
            rest = &inner[end + 2..];
        } else if let Some(inner) = rest.strip_prefix('{') {
            let end = inner.find('}').ok_or("`{` without `}`")?;
            let (name, ty) = inner[..end].split_once(':').ok_or("a value without `:type`")?;
            out.push(Piece::Value(name, parse_type(ty)?));
            rest = &inner[end + 1..];
        } else {
            let end = rest.find('{').into_iter().chain(rest.find("(?")).min().unwrap_or(rest.len());
            out.push(Piece::Words(&rest[..end]));
            rest = &rest[end..];
        }
    }
    Ok(out)
}

fn parse_type(ty: &'static str) -> Result<Type, String> {
    Ok(match ty {
        "int" => Type::Int,
        "num" => Type::Num,
        "word" => Type::Word,
        "text" => Type::Text,
        "msg" => Type::Msg,
        "bool" => Type::Bool,
        "kv" => Type::Kv,
        "dict" => Type::Dict,
        "kwargs" => Type::Kwargs,
        words if words.contains('|') => Type::OneOf(words.split('|').collect()),
        other => {
            return Err(format!(
                "type {other:?}: expected int, num, word, text, msg, bool, kv, dict, kwargs or A|B"
            ));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn check(template: &'static str, line: &str, expect: Option<Value>) {
        let template = Template::new(template).unwrap();
        let mut fields = Vec::new();
        let got = template
            .matches(line.as_bytes(), &mut fields)
            .map(|_| Value::Object(fields.iter().map(|(k, v)| (k.to_string(), v.to_value())).collect()));
        assert_eq!(got, expect, "{line}");
    }

    #[test]
    fn words_and_values_match_where_they_stand() {
        check("size: {n:int} tokens", "x size: 344,000 tokens", Some(json!({"n": 344_000})));
        check("size: {n:int} tokens", "x size: many tokens", None);
        check("hit {r:HIT|MISS} key={k:word}", "hit MISS key=ab cd", Some(json!({"r": "MISS", "k": "ab"})));
        check("to {p:text} in {s:num} s", "to a b in 1.5 s", Some(json!({"p": "a b", "s": 1.5})));
        check("mode '{m:word}'(? for {a:word}?) end", "mode 'none' end", Some(json!({"m": "none"})));
        check("a={a:int}(?, b={b:int}?)", "a=1, b=x", Some(json!({"a": 1})));
        check("a={a:int}(?, b={b:int}?)", "a=1, b=2", Some(json!({"a": 1, "b": 2})));
        check("check {:kv}", "check n=x e=True n=y torn", Some(json!({"n": "x", "e": true})));
    }

    #[test]
    fn a_template_may_start_with_the_word_before_its_first_literal() {
        let http = "{client:word} - \"{method:word} {path:word} HTTP/{version:word}\" {status:int}";
        check(
            http,
            "INFO:     10.0.0.1:5 - \"GET /a HTTP/1.1\" 404 Not Found",
            Some(
                json!({"client": "10.0.0.1:5", "method": "GET", "path": "/a", "version": "1.1", "status": 404}),
            ),
        );
        check(http, " - \"GET /a HTTP/1.1\" 404", None);
        assert_eq!(literal(http), " HTTP/");
    }

    #[test]
    fn mistakes_in_a_table_are_named() {
        for bad in ["{n:int} x", "", "{n:float}x", "a{n", "a(?b"] {
            assert!(Template::new(bad).is_err(), "{bad}");
        }
        assert_eq!(literal("a <b> longer words {x:int} β words"), " longer words ");
    }
}
