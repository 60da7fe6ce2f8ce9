//! cute-verdict: judge records; the exit code is the judgment.
//!
//! reads   records with completions and findings (stdin), result files     writes  what it read, then a `verdict`
//! exits   0 every gate passed · 1 a gate failed · 2 trouble · 3 inconclusive: evidence is missing, cut off or empty
//!
//! The exit code is fixed before anything is printed, and stays what it is when nobody reads the output.

mod output;
mod sources;

use clap::Parser;
use cute_cli::{Config, Exit};
use cute_evidence::checks::pipe::Outlet;
use cute_evidence::checks::{self, Case, Expectations};
use cute_evidence::gates::{Ask, Settings, judge};
use cute_records::{End, Record};
use std::path::PathBuf;
use std::process::ExitCode;

const EXAMPLES: &str = "Gates: METRIC OP VALUE, e.g. correct>=45/50 (each run, by the share), errors=0, findings=0, degenerate=0,
accuracy>=90%, mcnemar>=0.05, cusum=0, unexplained=0, finding.fingerprint_differs=0, label.ngram_loop<=1/50.
Without --gate: completions>=1, errors=0, findings=0. docs/GATES.md lists them all.

Examples:
  cute-generate … | cute-audit | cute-verdict --gate 'correct>=45/50' --report soak.html; echo $?
  cute-dispatch-extract docker.log | cute-audit --explain --results soak/ | cute-verdict --report incident.html
  cute-verdict --results soak/ --seed-compat - < /dev/null";

/// Judge records; the exit code is the judgment.
#[derive(Debug, Parser)]
#[command(name = "cute-verdict", version, after_help = EXAMPLES)]
struct Args {
    /// A gate that must hold; may be repeated
    #[arg(long, value_name = "GATE")]
    gate: Vec<Ask>,
    /// Runs that must be there; fewer are inconclusive
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    runs: Option<u64>,
    /// Accuracy of a sound system, for the CUSUM and the power [default: the first run's own]
    #[arg(long, value_name = "SHARE", value_parser = share)]
    baseline: Option<f64>,
    /// Mean number of requests between false alarms of the CUSUM
    #[arg(long, value_name = "REQUESTS", default_value_t = 10_000.0, value_parser = requests)]
    false_alarm_every: f64,
    /// Result file or directory of another server; one leg each; may be repeated
    #[arg(long, value_name = "PATH")]
    results: Vec<PathBuf>,
    /// Write the HTML report to this file
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Write the tables in markdown to this file (`-` for stderr) instead of as text to stderr
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Write the fields of the original scripts' verdict.json to this file (`-` for stderr)
    #[arg(long, value_name = "FILE")]
    seed_compat: Option<PathBuf>,
    /// No tables
    #[arg(long, short)]
    quiet: bool,
}

fn share(s: &str) -> Result<f64, String> {
    let x: f64 = s.parse().map_err(|_| format!("{s:?} is no number: expected a share such as 0.96"))?;
    if x > 0.0 && x < 1.0 { Ok(x) } else { Err(format!("{s} is no share between 0 and 1")) }
}

fn requests(s: &str) -> Result<f64, String> {
    let x: f64 = s.parse().map_err(|_| format!("{s:?} is no number of requests"))?;
    if (10.0..=1e7).contains(&x) {
        Ok(x)
    } else {
        Err(format!("{s} is not between 10 and 10 million requests"))
    }
}

fn main() -> ExitCode {
    cute_cli::run(verdict)
}

fn verdict(args: Args, config: Config) -> anyhow::Result<Exit> {
    anyhow::ensure!(
        args.report.as_ref().is_none_or(|path| path.as_os_str() != "-"),
        "--report -: stdout carries the records; name a file for the page"
    );
    let mut out = Outlet::new(cute_cli::stdout());
    let mut case = Case::default();
    out.write(&Record::Run(config.run()))?;
    let trouble = sources::read(&args.results, &mut case, &mut out)?;
    // Whatever a cute-audit upstream saw: what came beside it, or after it, nobody has checked.
    for finding in checks::unknown(&case, &checks::all(&case, &Expectations::default())) {
        out.write(&Record::Finding(finding.clone()))?;
        case.findings.push(finding);
    }
    let settings = Settings {
        gates: args.gate.clone(),
        runs: args.runs,
        baseline: args.baseline,
        arl0: args.false_alarm_every,
    };
    let judgment = judge(&case, &settings);
    let exit = if trouble > 0 { Exit::Trouble } else { Exit::from(judgment.verdict.outcome) };
    out.write(&Record::Verdict(judgment.verdict.clone()))?;
    out.end(End { tool: config.tool().to_owned(), complete: trouble == 0, ..End::default() })?;
    let shown = output::all(&args, &case, &judgment);
    // A closed pipe among the outputs must not read as "the reader has seen enough, exit 0".
    shown.map_err(|e| anyhow::anyhow!("{e:#}"))?;
    Ok(unless_lost(&out, exit))
}

/// A judgment stays when its records could not be written; a pass without its records is trouble.
fn unless_lost(out: &Outlet<'_>, exit: Exit) -> Exit {
    let Some(e) = out.lost() else { return exit };
    let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("cute-verdict: {e}\n"));
    if exit == Exit::Pass { Exit::Trouble } else { exit }
}
