//! JSON documents member by member, so that one bad row, or a file cut off in the middle, costs only itself.

use serde_json::Value;
use std::borrow::Cow;

/// A piece of a document: its text and where it starts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Node<'a> {
    pub at: usize,
    pub text: &'a str,
}

/// The pieces of an object or array; `broken` is where it stops being one.
#[derive(Debug)]
pub(crate) struct Split<T> {
    pub items: Vec<T>,
    pub broken: Option<usize>,
}

impl<'a> Node<'a> {
    pub(crate) fn document(text: &'a str) -> Self {
        let start = text.len() - text.trim_start_matches(['\u{feff}', ' ', '\t', '\r', '\n']).len();
        Node { at: start, text: &text[start..] }
    }

    /// The members of an object.
    pub(crate) fn members(&self) -> Split<(String, Node<'a>)> {
        let mut p = Cursor { node: *self, at: 0 };
        let mut items = Vec::new();
        if !p.eat(b'{') {
            return Split { items, broken: Some(self.at) };
        }
        if p.eat(b'}') {
            return Split { items, broken: None };
        }
        loop {
            let member = p.value().and_then(|key| {
                let key: String = serde_json::from_str(key.text).ok()?;
                p.eat(b':').then_some(())?;
                Some((key, p.value()?))
            });
            match member {
                Some(member) => items.push(member),
                None => return p.broken(items),
            }
            if p.eat(b',') {
                continue;
            }
            return if p.eat(b'}') { Split { items, broken: None } } else { p.broken(items) };
        }
    }

    /// The elements of an array.
    pub(crate) fn elements(&self) -> Split<Node<'a>> {
        let mut p = Cursor { node: *self, at: 0 };
        let mut items = Vec::new();
        if !p.eat(b'[') {
            return Split { items, broken: Some(self.at) };
        }
        if p.eat(b']') {
            return Split { items, broken: None };
        }
        loop {
            match p.value() {
                Some(value) => items.push(value),
                None => return p.broken(items),
            }
            if p.eat(b',') {
                continue;
            }
            return if p.eat(b']') { Split { items, broken: None } } else { p.broken(items) };
        }
    }

    /// The value. Python writes `NaN` and `Infinity`, which JSON does not know: they become text.
    pub(crate) fn value(&self) -> Result<Value, serde_json::Error> {
        serde_json::from_str(self.text).or_else(|e| match quote_words(self.text) {
            Cow::Owned(text) => serde_json::from_str(&text),
            Cow::Borrowed(_) => Err(e),
        })
    }
}

/// Puts Python's `NaN`, `Infinity` and `-Infinity` into quotes where they stand outside strings.
fn quote_words(text: &str) -> Cow<'_, str> {
    const WORDS: [&str; 3] = ["NaN", "-Infinity", "Infinity"];
    if !WORDS.iter().any(|w| text.contains(w)) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    let (mut rest, mut inside) = (text, false);
    while let Some(c) = rest.chars().next() {
        let word = WORDS.iter().find(|w| !inside && rest.starts_with(**w));
        let len = match (word, c) {
            (Some(word), _) => {
                out.push('"');
                out.push_str(word);
                out.push('"');
                rest = &rest[word.len()..];
                continue;
            }
            (None, '\\') if inside => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
            (None, c) => {
                inside ^= c == '"';
                c.len_utf8()
            }
        };
        out.push_str(&rest[..len]);
        rest = &rest[len..];
    }
    Cow::Owned(out)
}

struct Cursor<'a> {
    node: Node<'a>,
    at: usize,
}

impl<'a> Cursor<'a> {
    fn bytes(&self) -> &'a [u8] {
        self.node.text.as_bytes()
    }

    fn broken<T>(&self, items: Vec<T>) -> Split<T> {
        Split { items, broken: Some(self.node.at + self.at.min(self.node.text.len())) }
    }

    fn space(&mut self) {
        while self.bytes().get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
    }

    fn eat(&mut self, c: u8) -> bool {
        self.space();
        let hit = self.bytes().get(self.at) == Some(&c);
        self.at += usize::from(hit);
        hit
    }

    /// The next value's text, found by brackets and quotes alone.
    fn value(&mut self) -> Option<Node<'a>> {
        self.space();
        let b = self.bytes();
        let start = self.at;
        let mut at = start;
        let mut depth = 0usize;
        loop {
            match *b.get(at)? {
                b'"' => {
                    at = string_end(b, at)?;
                    if depth == 0 {
                        break;
                    }
                }
                b'{' | b'[' => {
                    depth += 1;
                    at += 1;
                }
                b'}' | b']' if depth == 0 => break,
                b'}' | b']' => {
                    depth -= 1;
                    at += 1;
                    if depth == 0 {
                        break;
                    }
                }
                b',' | b':' if depth == 0 => break,
                c if depth == 0 && c.is_ascii_whitespace() => break,
                _ => at += 1,
            }
        }
        if at == start {
            return None;
        }
        self.at = at;
        Some(Node { at: self.node.at + start, text: self.node.text.get(start..at)? })
    }
}

/// Where a string that opens at `at` ends, its quote included.
fn string_end(b: &[u8], at: usize) -> Option<usize> {
    let mut i = at + 1;
    loop {
        match *b.get(i)? {
            b'\\' => i += 2,
            b'"' => return Some(i + 1),
            _ => i += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_cut_off_anywhere_yields_its_whole_rows() {
        let text = r#"{"n": 2, "results": [{"i": 0, "t": "a]}\"{"}, {"i": 1, "x": NaN}, {"i": 2}]}"#;
        let whole = Node::document(text).members();
        assert_eq!((whole.items.len(), whole.broken), (2, None));
        let rows = whole.items[1].1.elements();
        assert_eq!((rows.items.len(), rows.broken), (3, None));
        assert_eq!(rows.items[1].value().unwrap()["x"], "NaN");
        for cut in 0..text.len() {
            let doc = Node::document(&text[..cut]).members();
            assert!(doc.broken.is_some(), "cut at {cut}");
        }
        let torn = Node { at: 100, text: &text[text.find('[').unwrap()..text.len() - 10] };
        let rows = torn.elements();
        assert_eq!(rows.items.len(), 2);
        assert!(rows.broken.unwrap() > 100);
    }

    #[test]
    fn words_inside_strings_stay_as_they_are() {
        assert_eq!(
            quote_words(r#"{"a":"NaN \" Infinity","b":-Infinity}"#),
            r#"{"a":"NaN \" Infinity","b":"-Infinity"}"#
        );
        assert!(Node::document("[1, nan]").value().is_err());
    }
}
