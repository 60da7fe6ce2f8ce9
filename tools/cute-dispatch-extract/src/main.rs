//! cute-dispatch-extract: text logs to typed records.
//!
//! reads   logs of any size (files, or stdin)     writes  `run`, `dispatch`, `pool`, `event`, `finding`, `end`
//! exits   0 done · 2 bad usage, or a log that cannot be read (the others are still read)

mod sink;

use anyhow::Context;
use clap::Parser;
use cute_cli::{Config, Exit};
use cute_evidence::logs::{self, Counters, PackSet};
use cute_records::End;
use indicatif::ProgressBar;
use sink::{Only, ToWriter};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const EXAMPLES: &str = "Examples:
  cute-dispatch-extract docker.log | jq -c 'select(.type==\"dispatch\") | .layer_idx'
  docker logs -f nvllm 2>&1 | cute-dispatch-extract --only pool,dispatch
  cute-dispatch-extract --list-packs nvllm";

/// Text logs of inference servers to typed records.
///
/// Recognises the lines of this project's engine, of vLLM and of its nvllm fork: dispatch decisions, the cache pool's
/// figures (and the block count that follows from them, with the rule), statistics, requests, fallbacks, errors. Each
/// record names the file, line and byte it was read from, and appears as soon as its line does.
///
/// Every line is counted: the `end` record's counters say lines = matched + ignored + unmatched.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
struct Args {
    /// Logs to read; `-` or none is stdin
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Pattern table: auto, cute, nvllm, vllm
    #[arg(long, default_value = "auto", value_name = "NAME")]
    pack: String,

    /// List the pattern tables, or the patterns of one
    #[arg(long, value_name = "PACK", num_args = 0..=1, default_missing_value = "all", exclusive = true)]
    list_packs: Option<String>,

    /// Record types to write; findings are always written
    #[arg(long, value_name = "TYPES", value_delimiter = ',', default_value = "dispatch,pool,event")]
    only: Vec<Only>,
}

fn main() -> ExitCode {
    cute_cli::run(extract)
}

fn extract(args: Args, config: Config) -> anyhow::Result<Exit> {
    if let Some(pack) = &args.list_packs {
        let listing = logs::listing(Some(pack))
            .with_context(|| format!("no pattern table {pack:?}: --list-packs names them"))?;
        std::io::stdout().write_all(listing.as_bytes())?;
        return Ok(Exit::Pass);
    }
    let packs = PackSet::named(&args.pack)?;
    let stdin = PathBuf::from("-");
    let files = if args.files.is_empty() { std::slice::from_ref(&stdin) } else { &args.files[..] };
    if files.iter().any(|f| f == &stdin) && std::io::stdin().is_terminal() {
        anyhow::bail!("stdin is a terminal: name a log, or pipe one in (--help shows examples)");
    }

    let size = files.iter().filter_map(|f| f.metadata().ok()).map(|m| m.len()).sum();
    let bar = if size > 0 { cute_cli::progress_bytes(size, "reading") } else { ProgressBar::hidden() };
    let mut sink = ToWriter::new(&args.only, bar);
    sink.writer.write(&config.run().into())?;
    sink.writer.flush()?;
    let mut total = Counters::default();
    let mut unread = Vec::new();
    for file in files {
        match read(file, &packs, &mut sink) {
            Ok(counters) => total.add(&counters),
            Err(logs::Error::Sink(e)) => return Err(e.into()),
            Err(e) => {
                let complain = || writeln!(std::io::stderr(), "{}: {e}", config.tool());
                let _ = sink.bar.suspend(complain);
                unread.push(e.to_string());
            }
        }
    }
    sink.bar.finish_and_clear();
    let complete = unread.is_empty();
    sink.writer.end_with(End {
        tool: config.tool().to_owned(),
        complete,
        reason: (!complete).then(|| format!("not read: {}", unread.join("; "))),
        counters: total.to_count(),
        ..End::default()
    })?;
    Ok(if complete { Exit::Pass } else { Exit::Trouble })
}

fn read(path: &Path, packs: &PackSet, sink: &mut ToWriter) -> Result<Counters, logs::Error> {
    if path == Path::new("-") {
        return logs::extract("stdin", cute_cli::stdin(), packs, sink);
    }
    let name = path.display().to_string();
    match std::fs::File::open(path) {
        Ok(file) => logs::extract(&name, file, packs, sink),
        Err(error) => Err(logs::Error::Io { file: name, error }),
    }
}
