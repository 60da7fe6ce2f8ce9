//! Where the evidence comes from: stdin, result directories, text logs, region buffers.

use super::Args;
use anyhow::Context;
use cute_evidence::checks::{Case, pipe::Outlet};
use cute_evidence::{adapters, logs, provenance, region};
use cute_records::{Record, WriteError};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

/// Reads everything that was given into `case` and `out`. Returns how much of it could not be read.
pub fn read(args: &Args, case: &mut Case, out: &mut Outlet<'_>) -> anyhow::Result<usize> {
    let others = !(args.results.is_empty()
        && args.dispatch.is_empty()
        && args.region.is_empty()
        && args.compare.is_empty());
    match cute_cli::stdin_records() {
        Some(lines) => {
            case.read(lines, out, &mut |e| eprintln_quietly(&format!("cute-audit: {e}")))?;
        }
        None if others => {}
        None => anyhow::bail!(
            "stdin is a terminal: pipe records in, or give --results, --dispatch or --compare (see --help)"
        ),
    }
    let several = args.results.len() > 1;
    let streamed = Streamed::of(case, several);
    for path in &args.results {
        results(path, &streamed, several, case, out)?;
    }
    for path in &args.dispatch {
        log(path, case, out)?;
    }
    for path in &args.region {
        for record in region::records(path)? {
            add(&record, case, out)?;
        }
    }
    case.finish();
    Ok(case.bad_lines.len())
}

/// Logs that the stream has brought already.
struct Streamed {
    files: BTreeSet<PathBuf>,
    any: bool,
    several: bool,
}

impl Streamed {
    fn of(case: &Case, several: bool) -> Self {
        let files = case.log_files().filter_map(|f| std::fs::canonicalize(f).ok()).collect();
        Streamed { files, any: case.log_files().next().is_some(), several }
    }

    /// True when this log need not be read again. A stream's log may have been named differently, or come through
    /// stdin; with one leg it is taken for that leg's own.
    fn has(&self, log: &Path) -> bool {
        let same = std::fs::canonicalize(log).is_ok_and(|log| self.files.contains(&log));
        same || self.any && !self.several
    }
}

/// A result file or directory as one leg. Its own log is read too, unless the stream already brought it.
fn results(
    path: &Path,
    streamed: &Streamed,
    several: bool,
    case: &mut Case,
    out: &mut Outlet<'_>,
) -> anyhow::Result<()> {
    let evidence = adapters::read(path)?;
    for mut c in evidence.completions {
        if several || c.leg.is_none() {
            c.leg = Some(leg_name(path));
        }
        add(&Record::Completion(c), case, out)?;
    }
    for record in &evidence.records {
        add(record, case, out)?;
    }
    for finding in evidence.findings {
        add(&Record::Finding(finding), case, out)?;
    }
    for path in evidence.logs.iter().filter(|log| !streamed.has(log)) {
        log(path, case, out)?;
    }
    Ok(())
}

fn leg_name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned())
}

fn log(path: &Path, case: &mut Case, out: &mut Outlet<'_>) -> anyhow::Result<()> {
    let name = path.display().to_string();
    let file = File::open(path).with_context(|| format!("cannot open {name}"))?;
    let reader = BufReader::with_capacity(1 << 16, file);
    let sink = &mut |record: Record| -> Result<(), WriteError> {
        if case.admit(&record) { out.write(&record) } else { Ok(()) }
    };
    logs::extract(&name, reader, &logs::PackSet::auto()?, sink)?;
    Ok(())
}

fn add(record: &Record, case: &mut Case, out: &mut Outlet<'_>) -> anyhow::Result<()> {
    if case.admit(record) {
        out.write(record)?;
    }
    Ok(())
}

/// Compares legs by their directories.
pub fn compare(paths: &[PathBuf]) -> anyhow::Result<provenance::Comparison> {
    let legs = paths.iter().map(|p| provenance::Leg::read(p)).collect::<Result<Vec<_>, _>>()?;
    Ok(provenance::compare(&legs))
}

fn eprintln_quietly(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{line}");
}
