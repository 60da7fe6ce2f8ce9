//! Where the evidence comes from: stdin, result directories, text logs, region buffers.

use super::Args;
use anyhow::Context;
use cute_evidence::checks::{Case, pipe::Outlet};
use cute_evidence::{adapters, logs, provenance, region};
use cute_records::{Record, WriteError};
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
    let logged = case.seen.contains_key("pool") || case.seen.contains_key("event");
    for path in &args.results {
        results(path, logged, args.results.len() > 1, case, out)?;
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

/// A result file or directory as one leg. Its own log is read too, unless the stream already brought one.
fn results(
    path: &Path,
    logged: bool,
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
    if !logged {
        for path in &evidence.logs {
            log(path, case, out)?;
        }
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
        case.add(&record);
        out.write(&record)
    };
    logs::extract(&name, reader, &logs::PackSet::auto()?, sink)?;
    Ok(())
}

fn add(record: &Record, case: &mut Case, out: &mut Outlet<'_>) -> anyhow::Result<()> {
    case.add(record);
    out.write(record)?;
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
