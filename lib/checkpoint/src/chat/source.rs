//! A template's text before it is compiled: as Jinja reads it, with the tags that minijinja does not know in other words.

/// Ends lines as Jinja does, and makes `{% generation %}`, which marks replies for training, a scope of its own.
///
/// Comments, strings and what stands between `{% raw %}` and `{% endraw %}` are left as they are.
pub(super) fn prepared(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let (mut out, mut rest) = (String::with_capacity(source.len()), source.as_str());
    let mut raw = false;
    while let Some(open) = rest.find("{").filter(|_| !rest.is_empty()) {
        let (before, tag) = rest.split_at(open);
        out.push_str(before);
        let long = match tag.as_bytes().get(1) {
            Some(b'#') if !raw => tag.find("#}").map(|at| at + 2),
            Some(b'{') if !raw => end(tag, "}}"),
            Some(b'%') if raw => tag.find("%}").map(|at| at + 2),
            Some(b'%') => end(tag, "%}"),
            _ => Some(1),
        };
        // what has no end is for the compiler to refuse
        let (tag, behind) = tag.split_at(long.unwrap_or(tag.len()));
        let name = tag.strip_prefix("{%").and_then(|t| t.strip_suffix("%}")).unwrap_or_default();
        match name.trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace()) {
            "endraw" => raw = false,
            _ if raw && tag.len() > 1 => {
                // `{% {% endraw %}`: the first of the two opens nothing
                out.push('{');
                rest = &rest[open + 1..];
                continue;
            }
            "raw" => raw = true,
            "generation" => {
                out.push_str(&tag.replacen("generation", "with", 1));
                rest = behind;
                continue;
            }
            "endgeneration" => {
                out.push_str(&tag.replacen("endgeneration", "endwith", 1));
                rest = behind;
                continue;
            }
            _ => {}
        }
        out.push_str(tag);
        rest = behind;
    }
    out.push_str(rest);
    out
}

/// Bytes of a tag up to its end, which is not looked for in strings.
fn end(tag: &str, close: &str) -> Option<usize> {
    let (mut quote, mut at) = (None, 2);
    while let Some(c) = tag.as_bytes().get(at).copied() {
        match quote {
            None if tag[at..].starts_with(close) => return Some(at + 2),
            None if matches!(c, b'"' | b'\'') => quote = Some(c),
            Some(q) if c == q => quote = None,
            Some(_) if c == b'\\' => at += 1,
            _ => {}
        }
        at = tag.ceil_char_boundary(at + 1);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::prepared;

    #[test]
    fn generation_is_a_scope_where_it_is_a_tag_and_a_word_elsewhere() {
        for (source, want) in [
            ("{% generation %}a{%- endgeneration +%}", "{% with %}a{%- endwith +%}"),
            ("{%generation%}{{ '{% generation %}' }}", "{%with%}{{ '{% generation %}' }}"),
            ("{# {% generation %} #}{% if 'a%}' %}", "{# {% generation %} #}{% if 'a%}' %}"),
            (
                "{% raw %}{% generation %}{{ '{% endraw %}{% generation %}",
                "{% raw %}{% generation %}{{ '{% endraw %}{% with %}",
            ),
            ("{% if \"\\\"é%}\" %}{% generation %}", "{% if \"\\\"é%}\" %}{% with %}"),
            ("{ {a} {% generation", "{ {a} {% generation"),
            ("a\r\nb\rc{{ 'é", "a\nb\nc{{ 'é"),
            ("{{ {'a': {'b': 1}} }}{% generation %}", "{{ {'a': {'b': 1}} }}{% with %}"),
            ("{{ 'no end and a backslash\\", "{{ 'no end and a backslash\\"),
            ("{% \"\\é", "{% \"\\é"),
        ] {
            assert_eq!(prepared(source), want, "{source}");
        }
    }
}
