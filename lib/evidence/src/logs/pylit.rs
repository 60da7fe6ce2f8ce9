//! Python literals as they stand in logs (`{'a': 1, 'b': <Mode.X: 1>}`, `a=1, b='x', c=Config(…)`) to JSON.
//!
//! Best effort and bounded: what is no literal (an enum's repr, a constructor call) is kept as text, and a line
//! cut off in the middle yields the entries before the cut.

use serde_json::{Map, Value};

const MAX_DEPTH: usize = 16;

/// Entries of a dictionary literal; whether it was complete.
pub(crate) fn dict(text: &str) -> (Map<String, Value>, bool) {
    let mut p = Parser { b: text.as_bytes(), text, at: 0 };
    let mut out = Map::new();
    let complete = p.eat(b'{') && p.entries(&mut out, 0).is_some();
    (out, complete)
}

/// Entries of `key=value, key=value`; whether the last one was complete.
pub(crate) fn kwargs(text: &str) -> (Map<String, Value>, bool) {
    let mut p = Parser { b: text.as_bytes(), text, at: 0 };
    let mut out = Map::new();
    loop {
        p.space();
        let start = p.at;
        while p.peek().is_some_and(|c| c.is_ascii_alphanumeric() || c == b'_') {
            p.at += 1;
        }
        let key = p.slice(start);
        if key.is_empty() || !p.eat(b'=') {
            return (out, p.at >= p.b.len());
        }
        let Some(value) = p.value(0) else { return (out, false) };
        out.insert(key.to_owned(), value);
        p.space();
        if !p.eat(b',') {
            return (out, true);
        }
    }
}

struct Parser<'a> {
    b: &'a [u8],
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<u8> {
        self.b.get(self.at).copied()
    }

    fn slice(&self, from: usize) -> &'a str {
        self.text.get(from..self.at).unwrap_or_default()
    }

    fn space(&mut self) {
        while self.peek().is_some_and(|c| c.is_ascii_whitespace()) {
            self.at += 1;
        }
    }

    fn eat(&mut self, c: u8) -> bool {
        self.space();
        let hit = self.peek() == Some(c);
        self.at += usize::from(hit);
        hit
    }

    fn entries(&mut self, out: &mut Map<String, Value>, depth: usize) -> Option<()> {
        loop {
            if self.eat(b'}') {
                return Some(());
            }
            let key = match self.value(depth)? {
                Value::String(s) => s,
                other => other.to_string(),
            };
            if !self.eat(b':') {
                return None;
            }
            let value = self.value(depth)?;
            out.insert(key, value);
            if !self.eat(b',') {
                return self.eat(b'}').then_some(());
            }
        }
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        if depth >= MAX_DEPTH {
            return None;
        }
        self.space();
        match self.peek()? {
            b'{' => {
                self.at += 1;
                let mut map = Map::new();
                self.entries(&mut map, depth + 1)?;
                Some(Value::Object(map))
            }
            b'[' => self.items(b']', depth),
            b'(' => self.items(b')', depth),
            q @ (b'\'' | b'"') => self.string(q),
            _ => self.bare(),
        }
    }

    fn items(&mut self, close: u8, depth: usize) -> Option<Value> {
        self.at += 1;
        let mut out = Vec::new();
        loop {
            if self.eat(close) {
                return Some(Value::Array(out));
            }
            out.push(self.value(depth + 1)?);
            if !self.eat(b',') {
                return self.eat(close).then_some(Value::Array(out));
            }
        }
    }

    fn string(&mut self, quote: u8) -> Option<Value> {
        self.at += 1;
        let mut out = Vec::new();
        loop {
            match self.peek()? {
                b'\\' => {
                    let c = *self.b.get(self.at + 1)?;
                    out.push(match c {
                        b'n' => b'\n',
                        b't' => b'\t',
                        c => c,
                    });
                    self.at += 2;
                }
                c => {
                    self.at += 1;
                    if c == quote {
                        return Some(Value::String(String::from_utf8_lossy(&out).into_owned()));
                    }
                    out.push(c);
                }
            }
        }
    }

    /// A number, a word, an enum's repr or a call: everything up to `,`, `:` or a closing bracket on this level.
    fn bare(&mut self) -> Option<Value> {
        let start = self.at;
        let mut open = Vec::new();
        while let Some(c) = self.peek() {
            match c {
                b'\'' | b'"' => {
                    self.string(c)?;
                    continue;
                }
                b'(' => open.push(b')'),
                b'[' => open.push(b']'),
                b'{' => open.push(b'}'),
                b'<' => open.push(b'>'),
                c if open.last() == Some(&c) => {
                    open.pop();
                }
                b',' | b':' | b'}' | b']' | b')' if open.is_empty() => break,
                _ => {}
            }
            self.at += 1;
        }
        let word = self.slice(start).trim();
        if word.is_empty() || !open.is_empty() {
            return None;
        }
        Some(super::value::word(word.as_bytes()).to_value())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_servers_arguments_are_read_with_enums_and_calls_kept_as_text() {
        let (map, complete) = dict(
            "{'model': 'a/b', 'len': 65536, 'on': True, 'names': ['default'], 'n': None, 'u': 0.7, \
             'c': {'mode': <Mode.PIECEWISE: 1>, 'x': []}, 'k': Config(a=B(c=[]), d='auto, x')}",
        );
        assert!(complete);
        assert_eq!(
            Value::Object(map),
            json!({"model": "a/b", "len": 65536, "on": true, "names": ["default"], "n": null, "u": 0.7,
                   "c": {"mode": "<Mode.PIECEWISE: 1>", "x": []}, "k": "Config(a=B(c=[]), d='auto, x')"})
        );
    }

    #[test]
    fn a_dictionary_cut_off_in_the_middle_yields_what_came_before() {
        let (map, complete) = dict("{'a': 1, 'b': [1, 2");
        assert_eq!((Value::Object(map), complete), (json!({"a": 1}), false));
        let (map, complete) = dict(&"{'a': ".repeat(1000));
        assert!(map.is_empty() && !complete);
    }

    #[test]
    fn keyword_arguments_are_read_up_to_where_they_stop() {
        let (map, complete) = kwargs("model='x', len=5, dtype=torch.bfloat16, o=O(a='b', c=None), seed=0");
        assert!(complete);
        assert_eq!(
            Value::Object(map),
            json!({"model": "x", "len": 5, "dtype": "torch.bfloat16", "o": "O(a='b', c=None)", "seed": 0})
        );
    }
}
