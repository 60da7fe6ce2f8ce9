//! Expected layers on the expected path.
//!
//! What counts is the path that ran (`outcome=`). Lines that only state what was chosen before the launch are
//! compared by that, with a warning. Sets are compared exactly: a layer too many is as wrong as one too few,
//! and "no layer" must be said as `none`, never as an empty list.

use super::{Case, FindingExt, finding};
use cute_records::{Dispatch, Finding, Severity};
use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

/// The path of a full-attention layer in a decode step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Path {
    /// one cooperative launch
    Coop,
    /// paged attention, then one fused MLP
    Lite,
    /// separate kernels
    Paged,
}

impl Path {
    /// All paths.
    pub const ALL: [Path; 3] = [Path::Coop, Path::Lite, Path::Paged];

    /// The name as it stands in logs.
    pub fn name(self) -> &'static str {
        match self {
            Path::Coop => "coop",
            Path::Lite => "lite",
            Path::Paged => "paged",
        }
    }

    fn parse(word: &str) -> Option<Path> {
        Path::ALL.into_iter().find(|p| p.name() == word)
    }
}

/// A set of layers as typed: `3,7`, `3-11`, or `none`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Layers(pub BTreeSet<u32>);

impl FromStr for Layers {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        if s.trim() == "none" {
            return Ok(Layers::default());
        }
        if s.trim().is_empty() {
            return Err(
                "an empty list expects nothing and proves nothing: write `none` for no layer".to_owned()
            );
        }
        let mut set = BTreeSet::new();
        for word in s.split(',') {
            let id: u32 = word
                .trim()
                .parse()
                .map_err(|_| format!("{word:?} is no layer: expected numbers such as `3,7`, or `none`"))?;
            if !set.insert(id) {
                return Err(format!("layer {id} stands there twice"));
            }
        }
        Ok(Layers(set))
    }
}

/// What is expected of each path; absent where nothing was said.
#[derive(Clone, Debug, Default)]
pub struct Expectations {
    /// layers on `coop`
    pub coop: Option<Layers>,
    /// layers on `lite`
    pub lite: Option<Layers>,
    /// layers on `paged`
    pub paged: Option<Layers>,
    /// at least one dispatch record must be there
    pub require_records: bool,
}

impl Expectations {
    fn of(&self, path: Path) -> Option<&BTreeSet<u32>> {
        let layers = match path {
            Path::Coop => &self.coop,
            Path::Lite => &self.lite,
            Path::Paged => &self.paged,
        };
        layers.as_ref().map(|l| &l.0)
    }

    fn any(&self) -> bool {
        Path::ALL.into_iter().any(|p| self.of(p).is_some())
    }

    fn names(&self, layer: u32) -> bool {
        Path::ALL.into_iter().any(|p| self.of(p).is_some_and(|set| set.contains(&layer)))
    }
}

/// The path that was chosen.
pub fn intent(d: &Dispatch) -> Path {
    let chosen = d.path.as_deref().and_then(Path::parse);
    chosen.unwrap_or(match (d.use_beta_coop, d.use_beta_lite) {
        (true, _) => Path::Coop,
        (_, true) => Path::Lite,
        _ => Path::Paged,
    })
}

/// The path that ran, or else the one that was chosen.
pub fn effective(d: &Dispatch) -> Path {
    d.outcome.as_deref().and_then(Path::parse).unwrap_or_else(|| intent(d))
}

/// What is known of one layer.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// lines by the path that ran, and where the first of them stands
    pub paths: BTreeMap<Path, (u64, String)>,
    /// lines whose intent and outcome differ
    pub differ: u64,
    /// lines that state no outcome
    pub intent_only: u64,
    /// dotted name
    pub name: String,
    /// batch sizes seen
    pub num_seqs: BTreeSet<u64>,
    /// reasons given, with their number
    pub reasons: BTreeMap<String, u64>,
}

/// Layers against the paths they took; `None` collects lines that name no layer.
pub fn by_layer<'a>(lines: impl IntoIterator<Item = &'a Dispatch>) -> BTreeMap<Option<u32>, Seen> {
    let mut out: BTreeMap<Option<u32>, Seen> = BTreeMap::new();
    for d in lines {
        let seen = out.entry(d.layer_idx).or_default();
        seen.name = d.layer_name.clone();
        seen.paths.entry(effective(d)).or_insert_with(|| (0, at(d))).0 += 1;
        seen.num_seqs.insert(d.num_seqs);
        seen.differ += u64::from(effective(d) != intent(d));
        seen.intent_only += u64::from(d.outcome.is_none());
        if let Some(reason) = &d.reason {
            *seen.reasons.entry(reason.clone()).or_default() += 1;
        }
    }
    out
}

fn at(d: &Dispatch) -> String {
    format!("{}:{}", d.source.file, d.source.line)
}

/// Compares what the layers did with what is expected of them.
pub fn check(case: &Case, expected: &Expectations) -> Vec<Finding> {
    let decode: Vec<&Dispatch> = case.dispatch().filter(|d| d.is_decode_only).collect();
    let mut out = Vec::new();
    if decode.is_empty() {
        if expected.require_records || expected.any() {
            let others = case.dispatch().count();
            let message =
                format!("no dispatch record of a decode step ({others} of other steps): nothing to compare");
            out.push(finding("no_dispatch_records", Severity::Warning, message));
        }
        return out;
    }
    let layers = by_layer(decode.iter().copied());
    for (layer, seen) in &layers {
        match layer {
            Some(layer) => out.extend(one_layer(*layer, seen, expected)),
            None => out.push(nameless(seen, expected)),
        }
    }
    for path in Path::ALL {
        for layer in expected.of(path).into_iter().flatten().filter(|l| !layers.contains_key(&Some(**l))) {
            let message = format!("layer {layer}: expected on {}, no dispatch record names it", path.name());
            out.push(finding("dispatch_expected_absent", Severity::Error, message).layer(Some(*layer)));
        }
    }
    out.extend(differing(&decode));
    out.extend(weak(&decode, &layers, expected));
    out
}

fn one_layer(layer: u32, seen: &Seen, expected: &Expectations) -> Vec<Finding> {
    let mut out = Vec::new();
    let ran: Vec<String> =
        seen.paths.iter().map(|(p, (n, _))| format!("{} ({n} line(s))", p.name())).collect();
    let ran = ran.join(" and ");
    let first = |path: Path| seen.paths.get(&path).map(|(_, at)| at.clone());
    let any = seen.paths.values().next().map(|(_, at)| at.clone());
    for path in Path::ALL {
        let Some(set) = expected.of(path) else { continue };
        if set.contains(&layer) && !seen.paths.contains_key(&path) {
            let message = format!("layer {layer}: expected on {}, ran on {ran}", path.name());
            out.push(
                finding("dispatch_expected_absent", Severity::Error, message)
                    .layer(Some(layer))
                    .at(any.clone()),
            );
        }
        if !set.contains(&layer) && seen.paths.contains_key(&path) {
            let message = format!("layer {layer}: ran on {ran}, not expected on {}", path.name());
            out.push(
                finding("dispatch_unexpected", Severity::Error, message).layer(Some(layer)).at(first(path)),
            );
        }
    }
    // Where coop layers were named and nothing was said about lite, a lite layer is a silent fallback; and vice versa.
    for (path, other) in [(Path::Lite, Path::Coop), (Path::Coop, Path::Lite)] {
        let silent = expected.of(path).is_none() && expected.of(other).is_some();
        if silent && seen.paths.contains_key(&path) {
            let message =
                format!("layer {layer}: ran on {ran}; only {} was expected of any layer", other.name());
            out.push(
                finding("dispatch_unexpected", Severity::Error, message).layer(Some(layer)).at(first(path)),
            );
        }
    }
    if seen.paths.len() > 1 {
        let severity = if expected.names(layer) { Severity::Error } else { Severity::Warning };
        let batches: Vec<String> = seen.num_seqs.iter().map(u64::to_string).collect();
        let message = format!("layer {layer}: took two paths: {ran}, in batches of {}", batches.join(", "));
        out.push(finding("dispatch_two_paths", severity, message).layer(Some(layer)).at(any));
    }
    out
}

fn nameless(seen: &Seen, expected: &Expectations) -> Finding {
    let lines: u64 = seen.paths.values().map(|(n, _)| n).sum();
    let severity = if expected.any() { Severity::Error } else { Severity::Warning };
    let message =
        format!("{lines} dispatch line(s) name no layer index ({}): they cannot be compared", seen.name);
    finding("dispatch_layer_unknown", severity, message)
        .at(seen.paths.values().next().map(|(_, at)| at.clone()))
        .with("count", lines)
}

/// Lines whose outcome is not what was chosen: one finding, with the first.
fn differing(decode: &[&Dispatch]) -> Option<Finding> {
    let differ: Vec<&&Dispatch> = decode.iter().filter(|d| effective(d) != intent(d)).collect();
    let d = differ.first()?;
    let message = format!(
        "layer {}: chose {}, ran {}{}; {} of {} lines differ",
        d.layer_idx.map_or("?".to_owned(), |l| l.to_string()),
        intent(d).name(),
        effective(d).name(),
        d.reason.as_ref().map(|r| format!(" ({r})")).unwrap_or_default(),
        differ.len(),
        decode.len()
    );
    Some(
        finding("dispatch_intent_outcome", Severity::Error, message)
            .layer(d.layer_idx)
            .at(Some(at(d)))
            .with("count", differ.len()),
    )
}

/// What makes these records weaker evidence than they look.
fn weak(decode: &[&Dispatch], layers: &BTreeMap<Option<u32>, Seen>, expected: &Expectations) -> Vec<Finding> {
    let mut out = Vec::new();
    let silent = decode.iter().filter(|d| d.outcome.is_none()).count();
    if silent > 0 {
        let message = format!(
            "{silent} of {} dispatch lines state what was chosen before the launch, not what ran: \
             a launch that failed and fell back reads the same",
            decode.len()
        );
        out.push(finding("dispatch_intent_only", Severity::Warning, message).with("count", silent));
    }
    let none = expected.coop.as_ref().is_some_and(|l| l.0.is_empty());
    if none && decode.iter().any(|d| d.enabled && d.resident_cap == 0) {
        out.push(finding(
            "dispatch_not_built",
            Severity::Warning,
            "coop was expected of no layer, and none ran it; but fusion is enabled with a resident capacity of 0: \
             the kernel may have failed to build",
        ));
    }
    let repeats = layers.values().map(|s| s.paths.values().map(|(n, _)| n).sum::<u64>()).max().unwrap_or(0);
    if repeats == 1 && silent > 0 {
        let message =
            "every layer has one line only: the log was deduplicated and says nothing about later requests";
        out.push(finding("dispatch_deduplicated", Severity::Info, message));
    }
    out
}
