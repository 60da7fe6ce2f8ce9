//! A directory of results as one leg: stretches of requests in the order they were sent, one ordinal over all.
//!
//! The order is the runners': a result file beside the runs, then for each run its questions, its replay and its
//! long decode, then the requests sent at once. What is missing keeps its place: the ordinals behind it are those it
//! would leave if it had its usual length, and a finding says so.

use super::rows::{Notes, Part, list};
use super::verdict::Stated;
use super::walk::{MAX_RUN, Seen, entries, follow_on, join, leg_name, name, run_number};
use super::{Evidence, Kind};
use cute_records::{Completion, Severity};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Directories below the one given that are looked into.
const MAX_DEPTH: usize = 4;

/// Which stretch of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Section {
    Questions,
    Replay,
    Text,
}

/// Reads one directory; legs below it come one after the other, each with its own ordinals.
pub(crate) fn read(path: &Path) -> Result<Evidence, super::Error> {
    read_below(path, 0)
}

fn read_below(path: &Path, depth: usize) -> Result<Evidence, super::Error> {
    let (files, dirs) = entries(path)?;
    let mut leg = Leg { name: leg_name(path), ..Leg::default() };
    let mut below = Vec::new();
    for file in files {
        leg.file(&file, None);
    }
    for dir in dirs {
        match run_number(&dir) {
            Some(run) => leg.run_dir(&dir, run)?,
            None if dir.join("summary.json").is_file() && name(&dir) == "concurrent" => {
                leg.file(&dir.join("summary.json"), None);
            }
            None => below.push(dir),
        }
    }
    let mut out = leg.finish();
    let own = !out.completions.is_empty();
    let mut legs = Vec::from_iter(own.then(|| leg_name(path)));
    for dir in below.into_iter().filter(|_| depth < MAX_DEPTH) {
        let mut more = read_below(&dir, depth + 1)?;
        if more.sources.is_empty() {
            continue;
        }
        if !more.completions.is_empty() {
            legs.push(leg_name(&dir));
        }
        out.completions.append(&mut more.completions);
        out.records.append(&mut more.records);
        out.findings.append(&mut more.findings);
        out.logs.append(&mut more.logs);
        out.sources.append(&mut more.sources);
        out.skipped.append(&mut more.skipped);
    }
    if legs.len() > 1
        && !out
            .findings
            .iter()
            .any(|f| f.check == "several_legs" && f.at.as_deref() == Some(&*leg_name(path)))
    {
        let mut notes = Notes::default();
        let message = format!("{} legs, each with its own ordinals: {}", legs.len(), legs.join(", "));
        notes.add("several_legs", Severity::Info, path.display().to_string(), message);
        out.findings.extend(notes.0);
    }
    Ok(out)
}

#[derive(Default)]
struct Leg {
    name: String,
    /// stretches beside the runs
    top: Vec<Part>,
    runs: BTreeMap<u64, BTreeMap<Section, Part>>,
    concurrent: Option<Part>,
    /// replies of this project's own engine
    own: Vec<Completion>,
    seen: Seen,
    per_question: Vec<Part>,
    stated: Option<(String, Stated)>,
    notes: Notes,
    out: Evidence,
}

impl Leg {
    fn run_dir(&mut self, dir: &Path, run: u64) -> Result<(), super::Error> {
        let (files, dirs) = entries(dir)?;
        self.runs.entry(run).or_default();
        for file in files {
            self.file(&file, Some(run));
        }
        for dir in dirs.into_iter().filter(|d| name(d) == "concurrent") {
            self.file(&dir.join("summary.json"), None);
        }
        Ok(())
    }

    /// Takes a file into its place. Trouble with one file is a finding: the others still count.
    fn file(&mut self, path: &Path, run: Option<u64>) {
        let mut read = match super::file::read_path(path, false) {
            Ok(Some(read)) => read,
            Ok(None) => {
                self.out.skipped.push(path.to_owned());
                return;
            }
            Err(e) => {
                self.notes.error("unreadable_file", path.display().to_string(), e.to_string());
                return;
            }
        };
        let kind = read.kind;
        self.out.sources.push((path.to_owned(), kind));
        self.notes.0.append(&mut read.notes.0);
        if kind == Kind::Records {
            // a filter's output repeats its input: what is there already is not taken twice
            self.seen.retain_new(&mut read.records);
        }
        self.out.records.append(&mut read.records);
        if kind == Kind::Log {
            self.out.logs.push(path.to_owned());
        }
        if let Some(stated) = read.stated {
            self.stated = Some((path.display().to_string(), stated));
        }
        let Some(part) = read.part else { return };
        if kind == Kind::Records {
            self.own.extend(part.rows);
            return;
        }
        match (kind, run) {
            (Kind::PerQuestion, Some(run)) => {
                let mut part = part;
                part.rows.iter_mut().for_each(|r| r.run = run - 1);
                self.per_question.push(part);
            }
            (Kind::PerQuestion, None) => self.per_question.push(part),
            (Kind::Concurrent, _) => self.concurrent = Some(part),
            (_, None) => self.top.push(part),
            (kind, Some(run)) => {
                let section = match kind {
                    Kind::ShareGpt | Kind::ShareGptTurns => Section::Replay,
                    Kind::Text => Section::Text,
                    _ => Section::Questions,
                };
                self.in_run(run, section, kind, part);
            }
        }
    }

    fn in_run(&mut self, run: u64, section: Section, kind: Kind, part: Part) {
        let sections = self.runs.entry(run).or_default();
        // an evaluation's log and the list of turns say again what the result file says
        let second = matches!(kind, Kind::EvalLog | Kind::ShareGptTurns);
        match sections.get_mut(&section) {
            Some(_) if second => {}
            Some(have) if have.rows.is_empty() || have.file.ends_with(".log") => *have = part,
            Some(have) => self.notes.error(
                "duplicate_row",
                &part.file,
                format!("run {run} has these rows already from {}: they are not counted again", have.file),
            ),
            None => _ = sections.insert(section, part),
        }
    }

    fn finish(mut self) -> Evidence {
        self.join_per_question();
        self.top_parts();
        let first_run = u64::from(!self.top.is_empty() && !self.runs.is_empty());
        let mut ordinal = 0;
        let mut rows: Vec<Completion> = Vec::new();
        let separate = self.top.len() > 1 && !follow_on(&self.top);
        let mut place = |part: Part, run: u64, index: u64, ordinal: u64, leg: &str| {
            rows.extend(part.rows.into_iter().map(|mut r| {
                r.run = run;
                r.ordinal = ordinal.saturating_add(r.index);
                r.index = index.saturating_add(r.index);
                r.leg = Some(leg.to_owned());
                r
            }));
        };
        for (i, part) in std::mem::take(&mut self.top).into_iter().enumerate() {
            let len = part.len();
            if separate {
                let stem = Path::new(&part.file).file_stem().map(|s| s.to_string_lossy().into_owned());
                let leg = format!("{}/{}", self.name, stem.unwrap_or_default());
                let run = part.run_index.unwrap_or(0);
                place(part, run, 0, 0, &leg);
            } else {
                let run = part.run_index.unwrap_or(i as u64);
                place(part, run, 0, ordinal, &self.name);
                ordinal = ordinal.saturating_add(len);
            }
        }
        let lengths = self.usual_lengths();
        let last = self.runs.keys().next_back().copied().unwrap_or(0);
        let last = last.max(self.stated.as_ref().and_then(|(_, s)| s.n_runs).unwrap_or(0).min(MAX_RUN));
        if self.runs.is_empty() && self.stated.is_none() || lengths.is_empty() {
            // no runs at all: nothing to place
        } else {
            self.report_missing(last, &lengths);
            for run in 1..=last {
                let mut sections = self.runs.remove(&run).unwrap_or_default();
                let mut index = 0;
                for (section, usual) in &lengths {
                    let len = match sections.remove(section) {
                        Some(part) => {
                            let len = part.len();
                            place(part, run - 1 + first_run, index, ordinal, &self.name);
                            len
                        }
                        None => *usual,
                    };
                    index += len;
                    ordinal = ordinal.saturating_add(len);
                }
            }
        }
        if let Some(part) = self.concurrent.take() {
            place(part, last + first_run, 0, ordinal, &self.name);
        }
        self.check_stated(&rows, first_run);
        let mut taken: BTreeSet<_> = rows.iter().map(|r| (r.run, r.index, r.id.clone())).collect();
        for mut row in std::mem::take(&mut self.own) {
            if taken.insert((row.run, row.index, row.id.clone())) {
                row.leg.get_or_insert_with(|| self.name.clone());
                rows.push(row);
            }
        }
        self.out.completions = rows;
        self.out.findings.extend(self.notes.0);
        self.out
    }

    /// Gives each question what the per-question log adds, or stands in for it.
    fn join_per_question(&mut self) {
        for log in std::mem::take(&mut self.per_question) {
            let by_run: BTreeSet<u64> = log.rows.iter().map(|r| r.run).collect();
            let mut rest = Part { file: log.file.clone(), declared: log.declared, ..Part::default() };
            for run in by_run {
                let rows = log.rows.iter().filter(|r| r.run == run);
                let in_runs = self.runs.get_mut(&(run + 1)).and_then(|s| s.get_mut(&Section::Questions));
                let part = match in_runs {
                    Some(part) => Some(part),
                    None => self.top.iter_mut().find(|p| p.run_index.unwrap_or(0) == run),
                };
                match part {
                    Some(part) => join(part, rows, &log.file, &mut self.notes),
                    None => rows.for_each(|r| rest.push(r.clone(), &mut self.notes)),
                }
            }
            let runs: BTreeSet<u64> = rest.rows.iter().map(|r| r.run).collect();
            for run in runs {
                let rows: Vec<Completion> = rest.rows.iter().filter(|r| r.run == run).cloned().collect();
                let mut part = Part {
                    file: log.file.clone(),
                    run_index: Some(run),
                    label: log.label.clone(),
                    ..Part::default()
                };
                rows.into_iter().for_each(|r| part.push(r, &mut self.notes));
                self.top.push(part);
            }
        }
    }

    /// Several result files beside the runs: drops those that repeat another, checks that they belong together.
    fn top_parts(&mut self) {
        let logs = |p: &Part| p.file.ends_with(".log");
        if self.top.iter().any(|p| !logs(p)) {
            self.top.retain(|p| !logs(p));
        }
        self.top.sort_by_key(|p| p.run_index);
        let parts: Vec<&Part> = self
            .top
            .iter()
            .chain(self.runs.values().flat_map(BTreeMap::values))
            .filter(|p| !p.settings.is_empty())
            .collect();
        if let Some(first) = parts.first() {
            for part in &parts[1..] {
                for (name, value) in &part.settings {
                    if let Some(other) = first.settings.get(name).filter(|o| *o != value) {
                        let message = format!("{name} {value}, in {} {other}", first.file);
                        self.notes.error("settings_differ", &part.file, message);
                    }
                }
            }
        }
        let mut stems = BTreeSet::new();
        for (run, part) in self.runs.iter().filter_map(|(run, s)| Some((run, s.get(&Section::Questions)?))) {
            let Some(label) = &part.label else { continue };
            let stem = label.trim_end_matches(|c: char| c.is_ascii_digit());
            let number = label[stem.len()..].parse::<u64>().ok();
            if stem.ends_with("run") && number.is_some_and(|n| n != *run) {
                self.notes.error(
                    "label_mismatch",
                    &part.file,
                    format!("label {label:?} in the directory of run {run}"),
                );
            }
            stems.insert(stem.to_owned());
        }
        if stems.len() > 1 {
            let names: Vec<&String> = stems.iter().collect();
            let message = format!("runs of several evaluations: {}", list(&names, names.len() as u64));
            self.notes.error("label_mismatch", &self.name, message);
        }
    }

    /// Sections the runs have, and the most frequent length of each.
    fn usual_lengths(&self) -> Vec<(Section, u64)> {
        let mut lengths: BTreeMap<Section, BTreeMap<u64, u64>> = BTreeMap::new();
        for (section, part) in self.runs.values().flatten() {
            *lengths.entry(*section).or_default().entry(part.len()).or_default() += 1;
        }
        let usual =
            |counts: BTreeMap<u64, u64>| counts.into_iter().max_by_key(|(_, n)| *n).map_or(0, |(len, _)| len);
        lengths.into_iter().map(|(section, counts)| (section, usual(counts))).collect()
    }

    fn report_missing(&mut self, last: u64, lengths: &[(Section, u64)]) {
        let at = self.name.clone();
        let absent = |run: &u64| self.runs.get(run).is_none_or(BTreeMap::is_empty);
        let missing: Vec<u64> = (1..=last).filter(absent).collect();
        if !missing.is_empty() {
            let each: u64 = lengths.iter().map(|(_, n)| n).sum();
            let shown = &missing[..missing.len().min(20)];
            self.notes.error(
                "missing_run",
                &at,
                format!(
                    "run(s) {} of {last} have no results; ordinals count {each} requests for each of them",
                    list(shown, missing.len() as u64)
                ),
            );
        }
        for (run, sections) in self.runs.iter().filter(|(_, s)| !s.is_empty()) {
            for (section, usual) in lengths {
                match sections.get(section) {
                    None => self.notes.warning(
                        "missing_rows",
                        &at,
                        format!("run {run} has no {section:?} results, other runs have: ordinals count {usual} for them"),
                    ),
                    Some(part) if part.len() != *usual => self.notes.error(
                        "length_differs",
                        &part.file,
                        format!("{} rows, other runs have {usual}", part.len()),
                    ),
                    Some(_) => {}
                }
            }
        }
    }

    /// What the recorded verdict states against the results.
    fn check_stated(&mut self, rows: &[Completion], first_run: u64) {
        let Some((file, stated)) = self.stated.take() else { return };
        let recount = |run: u64| {
            let of = || rows.iter().filter(move |r| r.run == run && r.correct.is_some());
            let errors = of().filter(|r| r.error.is_some()).count() as u64;
            (of().count(), of().filter(|r| r.correct == Some(true)).count() as u64, errors)
        };
        let single = stated.correct.map(|c| (1, Some(c), stated.errors));
        for (run, correct, errors) in stated.runs.iter().copied().chain(single) {
            let Some(at) = run.checked_sub(1) else { continue };
            let (n, counted, failed) = recount(at + first_run);
            if n == 0 {
                continue;
            }
            if let Some(c) = correct.filter(|c| *c != counted) {
                self.notes.error(
                    "count_mismatch",
                    &file,
                    format!("states {c} correct in run {run}, the results say {counted}"),
                );
            }
            if let Some(e) = errors.filter(|e| *e != failed) {
                self.notes.error(
                    "count_mismatch",
                    &file,
                    format!("states {e} errors in run {run}, the results say {failed}"),
                );
            }
        }
    }
}
