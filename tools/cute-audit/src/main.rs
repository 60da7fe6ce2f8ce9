//! cute-audit: check records for invariants; append findings.
//!
//! reads   any records (stdin), result files, text logs     writes  what it read, then `finding` records
//! exits   0 done · 1 an expectation or an invariant is violated · 2 trouble · 3 nothing to check
//!
//! It judges nothing: whether a finding is tolerable is cute-verdict's question.

mod sources;

use clap::Parser;
use cute_cli::{Config, Exit};
use cute_evidence::checks::pipe::Outlet;
use cute_evidence::checks::{self, Case, Expectations, Layers, is_gap};
use cute_evidence::{explain, report};
use cute_records::{End, Finding, Record, Severity};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

const EXAMPLES: &str = "Examples:
  cute-generate … 2> gen.log | cute-audit --expect-coop-layers 3,7 --dispatch gen.log | cute-verdict
  cute-dispatch-extract docker.log | cute-audit --explain --results soak/ | cute-verdict
  cute-audit --compare soak_a/ soak_b/ < /dev/null | jq 'select(.type==\"finding\")'";

/// Check records for invariants and append what is found.
#[derive(Debug, Parser)]
#[command(name = "cute-audit", version, after_help = EXAMPLES)]
struct Args {
    /// Layers that must run on coop in every decode step, and no other; `none` for no layer
    #[arg(long, value_name = "LAYERS")]
    expect_coop_layers: Option<Layers>,
    /// Layers that must run on lite
    #[arg(long, value_name = "LAYERS")]
    expect_lite_layers: Option<Layers>,
    /// Layers that must run on paged
    #[arg(long, value_name = "LAYERS")]
    expect_paged_layers: Option<Layers>,
    /// Without a dispatch record, exit 3 instead of calling silence a success
    #[arg(long)]
    require_records: bool,
    /// Text log with dispatch lines, read when stdin has ended; may be repeated
    #[arg(long, value_name = "LOG")]
    dispatch: Vec<PathBuf>,
    /// Result file or directory of another server, appended as records; one leg each; may be repeated
    #[arg(long, value_name = "PATH")]
    results: Vec<PathBuf>,
    /// Look for the mechanism behind degenerate output: pool replay, thresholds, invariance over legs
    #[arg(long)]
    explain: bool,
    /// Legs (directories) whose configuration is compared knob by knob
    #[arg(long, value_name = "LEG", num_args = 1..)]
    compare: Vec<PathBuf>,
    /// Region-timing buffer (.npy); may be repeated
    #[arg(long, value_name = "FILE")]
    region: Vec<PathBuf>,
    /// Write the tables in markdown to this file (`-` for stderr) instead of as text to stderr
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// No tables
    #[arg(long, short)]
    quiet: bool,
}

fn main() -> ExitCode {
    cute_cli::run(audit)
}

fn audit(args: Args, config: Config) -> anyhow::Result<Exit> {
    anyhow::ensure!(
        args.dispatch.iter().all(|log| log.as_os_str() != "-"),
        "--dispatch -: stdin brings the records; give the log as a file, or pipe it through cute-dispatch-extract"
    );
    let mut out = Outlet::new(cute_cli::stdout());
    let mut case = Case::default();
    out.write(&Record::Run(config.run()))?;
    let trouble = sources::read(&args, &mut case, &mut out)?;
    let expected = Expectations {
        coop: args.expect_coop_layers,
        lite: args.expect_lite_layers,
        paged: args.expect_paged_layers,
        require_records: args.require_records,
    };
    let mut findings = checks::all(&case, &expected);
    let mut tables = Vec::new();
    if args.explain {
        let explanation = explain::explain(&case);
        findings.extend(explanation.findings);
        tables.extend(explanation.tables);
    }
    if !args.compare.is_empty() {
        let comparison = sources::compare(&args.compare)?;
        findings.extend(comparison.findings.clone());
        tables.push(report::tables::comparison(&comparison));
    }
    if args.compare.is_empty() && nothing(&case) {
        let message = "nothing came in that could be checked: no record but `run` and `end`";
        findings.push(checks::finding("no_records", Severity::Warning, message));
    }
    let findings = checks::unknown(&case, &findings);
    for finding in &findings {
        out.write(&Record::Finding(finding.clone()))?;
    }
    case.findings.extend(findings);
    out.end(End { tool: config.tool().to_owned(), complete: trouble == 0, ..End::default() })?;
    tables.extend(report::tables::dispatch_table(&case));
    tables.extend(report::tables::findings(&case));
    if !args.quiet {
        show(&tables, args.markdown.as_deref())?;
    }
    let exit = exit(&case.findings, trouble);
    let Some(e) = out.lost() else { return Ok(exit) };
    let _ = writeln!(std::io::stderr(), "cute-audit: {e}");
    Ok(if exit == Exit::Fail { exit } else { Exit::Trouble })
}

/// True when nothing came in but who wrote it.
fn nothing(case: &Case) -> bool {
    case.bad_lines.is_empty() && case.seen.keys().all(|kind| kind == "run" || kind == "end")
}

/// Trouble before violation before missing evidence.
fn exit(findings: &[Finding], trouble: usize) -> Exit {
    if trouble > 0 {
        Exit::Trouble
    } else if findings.iter().any(|f| f.severity == Severity::Error && !is_gap(f)) {
        Exit::Fail
    } else if findings.iter().any(is_gap) {
        Exit::Inconclusive
    } else {
        Exit::Pass
    }
}

fn show(tables: &[report::Table], markdown: Option<&std::path::Path>) -> anyhow::Result<()> {
    let text: Vec<String> = match markdown {
        Some(_) => tables.iter().map(report::Table::markdown).collect(),
        None => tables.iter().map(|t| t.text(report::table::WIDTH)).collect(),
    };
    match markdown {
        Some(path) if path != std::path::Path::new("-") => {
            // A closed pipe here must not read as "the reader has seen enough, exit 0".
            report::file::write(path, text.concat().as_bytes())
                .map_err(|e| anyhow::anyhow!("cannot write {}: {e}", path.display()))
        }
        // Nobody may be reading stderr either; that is no reason to fail.
        _ => {
            let _ = std::io::stderr().write_all(text.join("\n").as_bytes());
            Ok(())
        }
    }
}
