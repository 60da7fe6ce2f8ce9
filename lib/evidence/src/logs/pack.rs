//! Pattern tables and what they compile to.

use super::literals::{Ahead, Hit, Literals};
use super::packs::ALL;
use super::template::{self, Field, Template, TemplateError};
use std::sync::{Arc, OnceLock};

/// What a recognised line becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// a `dispatch` record
    Dispatch,
    /// part of a boot's `pool` record
    Pool,
    /// an `event` record
    Event,
    /// nothing: the line is known and says nothing
    Ignore,
}

impl Kind {
    /// The word for it in listings.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Dispatch => "dispatch",
            Kind::Pool => "pool",
            Kind::Event => "event",
            Kind::Ignore => "ignore",
        }
    }
}

/// One kind of line.
#[derive(Clone, Copy, Debug)]
pub struct Pattern {
    /// name, as it stands in `event` records
    pub name: &'static str,
    /// what a line becomes
    pub record: Kind,
    /// the line's words and values; syntax in `docs/PATTERNS.md`
    pub template: &'static str,
    /// the bytes the scanner looks for; the template's longest words when empty
    pub literal: &'static str,
    /// tried after every other pattern: words that many lines have
    pub generic: bool,
    /// what the line says
    pub doc: &'static str,
}

impl Pattern {
    pub(crate) const fn new(
        record: Kind,
        name: &'static str,
        template: &'static str,
        doc: &'static str,
    ) -> Self {
        Pattern { name, record, template, literal: "", generic: false, doc }
    }

    pub(crate) const fn looks_for(mut self, literal: &'static str) -> Self {
        self.literal = literal;
        self
    }

    pub(crate) const fn generic(mut self) -> Self {
        self.generic = true;
        self
    }

    /// The bytes the scanner looks for.
    pub fn literal(&self) -> &'static str {
        if self.literal.is_empty() { template::literal(self.template) } else { self.literal }
    }

    /// Names of the fields this pattern captures; `*` where the line itself names them.
    pub fn fields(&self) -> Vec<&'static str> {
        Template::new(self.template).map(|t| t.fields()).unwrap_or_default()
    }
}

/// The pattern table of one engine.
#[derive(Clone, Copy, Debug)]
pub struct Pack {
    /// `cute`, `nvllm`, `vllm`
    pub name: &'static str,
    /// the engine
    pub doc: &'static str,
    /// tables this one builds on
    pub extends: &'static [&'static str],
    /// its own patterns
    pub patterns: &'static [Pattern],
}

/// Every pattern table, the most specific first.
pub fn packs() -> &'static [Pack] {
    ALL
}

/// Pattern tables compiled together.
#[derive(Clone, Debug)]
pub struct PackSet(Arc<Compiled>);

#[derive(Debug)]
struct Compiled {
    packs: Vec<&'static Pack>,
    entries: Vec<Entry>,
    by_literal: Vec<Vec<usize>>,
    literals: Literals,
}

#[derive(Debug)]
pub(crate) struct Entry {
    pub pack: usize,
    pub pattern: &'static Pattern,
    template: Template,
}

/// Why pattern tables could not be chosen.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// there is no such table
    #[error("no pattern table {0:?}: expected auto, {names}", names = names())]
    Unknown(String),
    /// a table has a mistake
    #[error(transparent)]
    Table(#[from] TemplateError),
}

fn names() -> String {
    packs().iter().map(|p| p.name).collect::<Vec<_>>().join(", ")
}

impl PackSet {
    /// Every table: which one a log belongs to is decided line by line.
    ///
    /// # Errors
    /// [`PackError::Table`] when a table has a mistake (a test keeps it from happening).
    pub fn auto() -> Result<Self, PackError> {
        static COMPILED: OnceLock<PackSet> = OnceLock::new();
        if let Some(set) = COMPILED.get() {
            return Ok(set.clone());
        }
        let set = Self::compile(ALL.iter().collect())?;
        Ok(COMPILED.get_or_init(|| set).clone())
    }

    /// The table of one engine (`cute`, `nvllm`, `vllm`) and those it builds on; `auto` is all of them.
    ///
    /// # Errors
    /// [`PackError::Unknown`] when there is no such table.
    pub fn named(name: &str) -> Result<Self, PackError> {
        if name == "auto" {
            return Self::auto();
        }
        let Some(pack) = ALL.iter().find(|p| p.name == name) else {
            return Err(PackError::Unknown(name.to_owned()));
        };
        Self::compile(ALL.iter().filter(|p| p.name == name || pack.extends.contains(&p.name)).collect())
    }

    fn compile(packs: Vec<&'static Pack>) -> Result<Self, PackError> {
        let mut entries = Vec::new();
        let mut literals: Vec<&'static str> = Vec::new();
        let mut by_literal: Vec<Vec<usize>> = Vec::new();
        for (pack, pattern) in
            packs.iter().enumerate().flat_map(|(i, p)| p.patterns.iter().map(move |q| (i, q)))
        {
            let template = Template::new(pattern.template)?;
            let literal = pattern.literal();
            match literals.iter().position(|l| *l == literal) {
                Some(at) => by_literal[at].push(entries.len()),
                None => {
                    literals.push(literal);
                    by_literal.push(vec![entries.len()]);
                }
            }
            entries.push(Entry { pack, pattern, template });
        }
        let literals = Literals::new(&literals)?;
        Ok(PackSet(Arc::new(Compiled { packs, entries, by_literal, literals })))
    }

    /// The tables, the most specific first.
    pub fn packs(&self) -> impl Iterator<Item = &'static Pack> + '_ {
        self.0.packs.iter().copied()
    }

    pub(crate) fn pack(&self, entry: &Entry) -> &'static Pack {
        self.0.packs[entry.pack]
    }

    /// The first literal in a line.
    pub(crate) fn find(&self, line: &[u8]) -> Option<Hit> {
        self.0.literals.find(line)
    }

    /// True when some line of `head` is one these tables know (generic words like `ERROR` do not count).
    pub fn knows(&self, head: &[u8]) -> bool {
        let mut ahead = Ahead::default();
        let mut from = 0;
        while let Some(hit) = self.find_from(head, from, &mut ahead) {
            let start = memchr::memrchr(b'\n', &head[..hit.start]).map_or(0, |n| n + 1);
            let end = memchr::memchr(b'\n', &head[hit.start..]).map_or(head.len(), |n| hit.start + n);
            let mut fields = Vec::new();
            if self
                .recognise(hit.literal, &head[start..end], &mut fields)
                .is_some_and(|(e, _)| !e.pattern.generic)
            {
                return true;
            }
            from = end;
        }
        false
    }

    /// The first literal of a block at or behind `from`.
    pub(crate) fn find_from(&self, block: &[u8], from: usize, ahead: &mut Ahead) -> Option<Hit> {
        self.0.literals.find_from(block, from, ahead)
    }

    /// The pattern a line matches: those of its first literal, then all others, generic ones last.
    pub(crate) fn recognise<'s, 'l>(
        &'s self,
        literal: usize,
        line: &'l [u8],
        fields: &mut Vec<Field<'l>>,
    ) -> Option<(&'s Entry, usize)> {
        let c = &*self.0;
        let near = &c.by_literal[literal];
        for &i in near.iter().filter(|i| !c.entries[**i].pattern.generic) {
            if let Some(at) = c.entries[i].template.matches(line, fields) {
                return Some((&c.entries[i], at));
            }
        }
        for generic in [false, true] {
            for (i, entry) in c.entries.iter().enumerate().filter(|(_, e)| e.pattern.generic == generic) {
                if (generic || !near.contains(&i))
                    && let Some(at) = entry.template.matches(line, fields)
                {
                    return Some((entry, at));
                }
            }
        }
        None
    }
}

/// Compiles every pattern of every table.
///
/// # Errors
/// The first mistake found.
pub fn check_tables() -> Result<(), TemplateError> {
    for pattern in ALL.iter().flat_map(|p| p.patterns) {
        Template::new(pattern.template)?;
        if pattern.literal().len() < 4 {
            return Err(TemplateError {
                template: pattern.template.into(),
                message: format!("literal {:?}: fewer than 4 bytes to look for", pattern.literal()),
            });
        }
    }
    Ok(())
}

/// The tables as a document: `docs/PATTERNS.md` below its introduction.
pub fn markdown() -> String {
    let mut out = String::new();
    for pack in packs() {
        let on = match pack.extends {
            [] => String::new(),
            names => format!(" Builds on `{}`.", names.join("`, `")),
        };
        out.push_str(&format!(
            "## {}\n\n{}.{on}\n\n| becomes | name | fields | the line says |\n|---|---|---|---|\n",
            pack.name, pack.doc
        ));
        for p in pack.patterns {
            let fields = p.fields().join("`, `");
            let fields = if fields.is_empty() { String::new() } else { format!("`{fields}`") };
            let last = if p.generic { " (tried last)" } else { "" };
            out.push_str(&format!("| {} | `{}` | {fields} | {}{last} |\n", p.record.word(), p.name, p.doc));
        }
        out.push_str("\n```text\n");
        for p in pack.patterns {
            out.push_str(p.template.trim_end());
            out.push('\n');
        }
        out.push_str("```\n\n");
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

/// A listing for people: every table, or the patterns of one.
pub fn listing(pack: Option<&str>) -> Option<String> {
    let mut out = String::new();
    let line = |out: &mut String, text: &str| {
        out.push_str(text.trim_end());
        out.push('\n');
    };
    let Some(name) = pack.filter(|p| *p != "all") else {
        for p in packs() {
            line(&mut out, &format!("{:8} {:3} patterns  {}", p.name, p.patterns.len(), p.doc));
        }
        return Some(out);
    };
    let pack = packs().iter().find(|p| p.name == name)?;
    line(&mut out, &format!("{}: {}", pack.name, pack.doc));
    if !pack.extends.is_empty() {
        line(&mut out, &format!("builds on: {}", pack.extends.join(", ")));
    }
    for p in pack.patterns {
        line(&mut out, "");
        line(
            &mut out,
            &format!("{:8} {}  {}", p.record.word(), p.name, if p.generic { "(tried last)" } else { "" }),
        );
        line(&mut out, &format!("         {}", p.doc));
        line(&mut out, &format!("         {}", p.template));
    }
    Some(out)
}
