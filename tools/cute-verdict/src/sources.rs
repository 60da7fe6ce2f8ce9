//! Where the evidence comes from: stdin and result directories.

use cute_evidence::adapters;
use cute_evidence::checks::{Case, pipe::Outlet};
use cute_records::Record;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Reads everything into `case` and `out`. Returns how many lines could not be understood.
pub fn read(paths: &[PathBuf], case: &mut Case, out: &mut Outlet<'_>) -> anyhow::Result<usize> {
    match cute_cli::stdin_records() {
        Some(lines) => case.read(lines, out, &mut |e| {
            let _ = writeln!(std::io::stderr(), "cute-verdict: {e}");
        })?,
        None if !paths.is_empty() => {}
        None => anyhow::bail!("stdin is a terminal: pipe records in, or give --results (see --help)"),
    }
    for path in paths {
        results(path, paths.len() > 1, case, out)?;
    }
    case.finish();
    Ok(case.bad_lines.len())
}

fn results(path: &Path, several: bool, case: &mut Case, out: &mut Outlet<'_>) -> anyhow::Result<()> {
    let evidence = adapters::read(path)?;
    let mut add = |record: Record| -> anyhow::Result<()> {
        case.add(&record);
        Ok(out.write(&record)?)
    };
    for mut c in evidence.completions {
        if several || c.leg.is_none() {
            c.leg = Some(
                path.file_name()
                    .map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned()),
            );
        }
        add(Record::Completion(c))?;
    }
    for record in evidence.records {
        add(record)?;
    }
    for finding in evidence.findings {
        add(Record::Finding(finding))?;
    }
    Ok(())
}
