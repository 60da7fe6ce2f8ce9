//! What the judge shows: tables, the HTML page, the original scripts' fields.

use anyhow::Context;
use cute_evidence::checks::Case;
use cute_evidence::gates::{Judgment, seed};
use cute_evidence::report::{Table, file, html, table, tables};
use std::io::Write;
use std::path::Path;

/// Everything that was asked for beside the records.
pub fn all(args: &super::Args, case: &Case, j: &Judgment) -> anyhow::Result<()> {
    if let Some(path) = &args.report {
        report(path, case, j)?;
    }
    if let Some(path) = &args.seed_compat {
        seed_compat(path, case, j)?;
    }
    if !args.quiet {
        tables(case, j, args.markdown.as_deref())?;
    }
    Ok(())
}

/// Writes the HTML report, whole or not at all.
fn report(path: &Path, case: &Case, j: &Judgment) -> anyhow::Result<()> {
    file::write(path, html::page(case, j).as_bytes())
        .with_context(|| format!("cannot write the report {}", path.display()))
}

/// Writes the original scripts' verdict.json fields.
fn seed_compat(path: &Path, case: &Case, j: &Judgment) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(&seed::compat(case, j))? + "\n";
    to(Some(path), &text)
}

/// Shows the tables, as text or in markdown.
fn tables(case: &Case, j: &Judgment, markdown: Option<&Path>) -> anyhow::Result<()> {
    let tables = tables::all(case, j);
    match markdown {
        Some(path) => to(Some(path), &tables.iter().map(Table::markdown).collect::<String>()),
        None => to(None, &tables.iter().map(|t| t.text(table::WIDTH)).collect::<Vec<_>>().join("\n")),
    }
}

/// To a file, or to stderr, where nobody may be reading.
fn to(path: Option<&Path>, text: &str) -> anyhow::Result<()> {
    match path {
        Some(path) if path != Path::new("-") => {
            file::write(path, text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
        }
        _ => {
            let _ = std::io::stderr().write_all(text.as_bytes());
            Ok(())
        }
    }
}
