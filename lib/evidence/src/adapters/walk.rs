//! Directories of results: what lies in them, in which order, and which parts belong together.

use super::rows::{Notes, Part};
use cute_records::{Completion, Record};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

/// Largest run number that is believed.
pub(super) const MAX_RUN: u64 = 10_000;

/// Files and directories in the order of their names, numbers in them by value.
pub(super) fn entries(path: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>), super::Error> {
    let io = |error| super::Error::Io { file: path.display().to_string(), error };
    let (mut files, mut dirs) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(path).map_err(io)? {
        let entry = entry.map_err(io)?;
        let kind = entry.file_type().map_err(io)?;
        if name(&entry.path()).starts_with('.') || kind.is_symlink() {
            continue;
        }
        if kind.is_dir() {
            dirs.push(entry.path())
        } else if kind.is_file() {
            files.push(entry.path())
        }
    }
    let key = |p: &PathBuf| (run_number(p).unwrap_or(u64::MAX), p.clone());
    files.sort_by_key(key);
    dirs.sort_by_key(key);
    Ok((files, dirs))
}

pub(super) fn name(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The name of a leg: its directory's.
pub(crate) fn leg_name(path: &Path) -> String {
    match path.canonicalize() {
        Ok(full) => name(&full),
        Err(_) => name(path),
    }
}

/// `run4`, `run04`, `run_4` → 4.
pub(super) fn run_number(path: &Path) -> Option<u64> {
    let name = name(path);
    let digits = name.strip_prefix("run")?.trim_start_matches(['_', '-']);
    digits.parse().ok().filter(|n| (1..=MAX_RUN).contains(n))
}

/// Records of this project's tools that have been read, by hash.
#[derive(Debug, Default)]
pub(super) struct Seen(HashSet<u64>);

impl Seen {
    /// Keeps the records that are new; an `end` belongs to its stream and is dropped.
    pub(super) fn retain_new(&mut self, records: &mut Vec<Record>) {
        records.retain(|record| {
            let mut hasher = DefaultHasher::new();
            serde_json::to_string(record).unwrap_or_default().hash(&mut hasher);
            !matches!(record, Record::End(_)) && self.0.insert(hasher.finish())
        });
    }
}

/// True when parts are the runs of one evaluation, one after the other.
pub(super) fn follow_on(parts: &[Part]) -> bool {
    let runs: BTreeSet<Option<u64>> = parts.iter().map(|p| p.run_index).collect();
    runs.len() == parts.len() && parts.windows(2).all(|w| w[0].label == w[1].label)
}

/// Fills what the questions lack from the per-question log; both must agree on what both say.
pub(super) fn join<'a>(
    part: &mut Part,
    rows: impl Iterator<Item = &'a Completion>,
    file: &str,
    notes: &mut Notes,
) {
    let at: BTreeMap<u64, usize> = part.rows.iter().enumerate().map(|(i, r)| (r.index, i)).collect();
    for row in rows {
        let place = row.source.clone().unwrap_or_else(|| file.to_owned());
        let Some(mine) = at.get(&row.index).map(|i| &mut part.rows[*i]) else {
            notes.error("missing_rows", place, format!("index {} is not in {}", row.index, part.file));
            continue;
        };
        for (name, a, b) in [
            ("gold", &mine.gold, &row.gold),
            ("answer", &mine.extracted, &row.extracted),
            ("output_sha256", &mine.text_sha256, &row.text_sha256),
        ] {
            if let (Some(a), Some(b)) = (a, b)
                && a != b
            {
                notes.error("results_disagree", &place, format!("{name} {b:?}, in {} {a:?}", part.file));
            }
        }
        if mine.correct.is_some() && row.correct.is_some() && mine.correct != row.correct {
            notes.error(
                "results_disagree",
                &place,
                format!("correct {:?}, in {} {:?}", row.correct, part.file, mine.correct),
            );
        }
        macro_rules! fill { ($($f:ident),*) => { $(if mine.$f.is_none() { mine.$f = row.$f.clone(); })* } }
        fill!(
            prompt_tokens,
            completion_tokens,
            finish_reason,
            text_chars,
            text_sha256,
            gold,
            extracted,
            correct
        );
        if mine.id.starts_with('q') {
            mine.id.clone_from(&row.id);
        }
    }
}
