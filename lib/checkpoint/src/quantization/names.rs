//! Lists of modules as the three methods write them: exact names, parts of a path, wildcards, regular expressions.

use fancy_regex::Regex;
use std::collections::HashSet;

/// Names of modules, and rules that match them.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    exact: HashSet<String>,
    /// names of modules or of what holds them, whole steps of a path
    steps: Vec<String>,
    /// Python's fnmatch, as written and compiled
    wildcards: Vec<Rule>,
    /// Python's `re.match`, as written and compiled
    expressions: Vec<Rule>,
}

/// A rule as written, and compiled.
type Rule = (String, Regex);

/// A rule, and why it is none.
type Broken = (String, String);

impl Names {
    /// Takes names as transformers' `modules_to_not_convert`: a module, what is below it, or the end of its path.
    pub fn below(&mut self, names: &[&str]) {
        self.steps.extend(names.iter().map(|n| (*n).to_owned()));
    }

    /// Takes names with the wildcards of Python's fnmatch.
    pub fn wildcards(&mut self, names: &[&str]) -> Result<(), Broken> {
        for name in names {
            if name.contains(['*', '?', '[']) {
                self.wildcards.push(rule(name, &format!("^(?s:{})$", from_wildcard(name)))?);
            } else {
                self.exact.insert((*name).to_owned());
            }
        }
        Ok(())
    }

    /// Takes names as compressed-tensors: exact, or a regular expression behind `re:` that matches from the start.
    pub fn expressions(&mut self, names: &[&str]) -> Result<(), Broken> {
        for name in names {
            match name.strip_prefix("re:") {
                Some(expression) => {
                    self.expressions.push(rule(name, &format!("^(?:{expression})"))?);
                }
                None => _ = self.exact.insert((*name).to_owned()),
            }
        }
        Ok(())
    }

    /// Takes over another list.
    pub fn merge(&mut self, other: Names) {
        self.exact.extend(other.exact);
        self.steps.extend(other.steps);
        self.wildcards.extend(other.wildcards);
        self.expressions.extend(other.expressions);
    }

    /// Whether the list names a module or one that holds it.
    pub fn holds(&self, full: &str, short: &str) -> bool {
        let up = |name: &str| name.rfind('.').map_or(0, |at| at);
        let (mut full, mut short) = (full, short);
        while !short.is_empty() {
            if self.find(full, short).is_some() {
                return true;
            }
            (full, short) = (&full[..up(full)], &short[..up(short)]);
        }
        false
    }

    /// The entry that names a module. Lists are written with any of the prefixes that the text model has in one
    /// exporter or another, so all of them count, but for an expression: it may say what a name must not be, and is
    /// matched with the name that the file has.
    pub fn find(&self, full: &str, short: &str) -> Option<&str> {
        let prefixed =
            ["model.", "model.language_model.", "language_model.model."].map(|p| format!("{p}{short}"));
        let all = || [full, short].into_iter().chain(prefixed.iter().map(String::as_str));
        if let Some(name) = all().find_map(|n| self.exact.get(n)) {
            return Some(name);
        }
        let on_path = |step: &str| {
            all().any(|n| {
                n.strip_prefix(step).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
                    || n.strip_suffix(step).is_some_and(|rest| rest.ends_with('.'))
            })
        };
        if let Some(step) = self.steps.iter().find(|step| on_path(step)) {
            return Some(step);
        }
        // An expression that backtracks beyond its limit matches nothing.
        let matches = |r: &Regex, n: &str| r.is_match(n).unwrap_or(false);
        let wildcard = self.wildcards.iter().find(|(_, r)| all().any(|n| matches(r, n)));
        let found = wildcard.or_else(|| self.expressions.iter().find(|(_, r)| matches(r, full)));
        found.map(|(written, _)| written.as_str())
    }
}

fn rule(written: &str, expression: &str) -> Result<Rule, Broken> {
    Regex::new(expression).map(|regex| (written.to_owned(), regex)).map_err(|e| {
        let why = e.to_string().lines().next().unwrap_or_default().to_owned();
        (format!("{written:?}"), format!("a name or a pattern: {why}"))
    })
}

/// Python's fnmatch as a regular expression.
fn from_wildcard(name: &str) -> String {
    let mut out = String::new();
    let mut rest = name;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        // A set holds at least one character, so `]` right behind `[` is one of them.
        let first = rest.chars().next().map_or(0, char::len_utf8);
        match (c, rest[first..].find(']')) {
            ('*', _) => out.push_str(".*"),
            ('?', _) => out.push('.'),
            ('[', Some(end)) => {
                let set = &rest[..first + end];
                let (not, set) = set.strip_prefix('!').map_or(("", set), |set| ("^", set));
                let set = set.replace('\\', "\\\\").replace('[', "\\[").replace('^', "\\^");
                out.push_str(&format!("[{not}{set}]"));
                rest = &rest[first + end + 1..];
            }
            _ => out.push_str(&fancy_regex::escape(c.encode_utf8(&mut [0; 4]))),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(names: &Names, short: &str, expect: Option<&str>) {
        assert_eq!(names.find(&format!("model.language_model.{short}"), short), expect, "{short}");
    }

    #[test]
    fn wildcards_match_as_pythons_do() {
        let mut n = Names::default();
        n.wildcards(&["lm_head", "model.layers.0.linear_attn*", "*.mlp.gate", "x[!a].y?", "odd[.z"]).unwrap();
        check(&n, "lm_head", Some("lm_head"));
        let mut flat = Names::default();
        flat.wildcards(&["model.layers.0.linear_attn*"]).unwrap();
        assert!(flat.find("model.layers.0.linear_attn.out_proj", "layers.0.linear_attn.out_proj").is_some());
        assert!(flat.find("model.layers.1.linear_attn.out_proj", "layers.1.linear_attn.out_proj").is_none());
        check(&n, "layers.3.mlp.gate", Some("*.mlp.gate"));
        check(&n, "layers.3.mlp.gate_proj", None);
        assert_eq!(n.find("xb.yz", "xb.yz"), Some("x[!a].y?"));
        assert_eq!(n.find("xa.yz", "xa.yz"), None);
        assert_eq!(n.find("odd[.z", "odd[.z"), Some("odd[.z"));
    }

    #[test]
    fn expressions_match_from_the_start_and_names_exactly() {
        let mut n = Names::default();
        n.expressions(&["re:.*linear_attn.*", "re:^(?!model).*gate$", "model.lm_head"]).unwrap();
        check(&n, "layers.0.linear_attn.in_proj_z", Some("re:.*linear_attn.*"));
        check(&n, "layers.0.self_attn.q_proj", None);
        assert_eq!(n.find("mlp.gate", "mlp.gate"), Some("re:^(?!model).*gate$"));
        let broken = n.expressions(&["re:("]).unwrap_err();
        assert_eq!(broken.0, "\"re:(\"");
    }

    #[test]
    fn an_expression_is_matched_with_the_name_in_the_file_and_with_no_other() {
        let mut n = Names::default();
        n.expressions(&[r"re:^(?!model\.language_model\.layers\.0\.).*mlp.*", "re:layers.*"]).unwrap();
        check(&n, "layers.0.mlp.up_proj", None);
        check(&n, "layers.1.mlp.up_proj", Some(r"re:^(?!model\.language_model\.layers\.0\.).*mlp.*"));
        check(&n, "layers.1.self_attn.q_proj", None);
        // A plain name is lenient: either prefix will do.
        n.expressions(&["model.layers.2.mlp.up_proj"]).unwrap();
        check(&n, "layers.2.mlp.up_proj", Some("model.layers.2.mlp.up_proj"));
    }

    #[test]
    fn a_module_to_leave_alone_is_a_whole_step_of_the_path() {
        let mut n = Names::default();
        n.below(&["mlp.gate", "model.language_model.layers.0.linear_attn", "lm_head"]);
        check(&n, "layers.7.mlp.gate", Some("mlp.gate"));
        check(&n, "layers.7.mlp.gate_proj", None);
        check(&n, "layers.0.linear_attn.in_proj_a", Some("model.language_model.layers.0.linear_attn"));
        check(&n, "layers.0.linear_attn2.in_proj_a", None);
        check(&n, "lm_head", Some("lm_head"));
    }
}
