//! What all five tools share: arguments whose values know where they came from, exit codes, `--schema`,
//! `--man` and `--completions`, and the one place that knows about broken pipes, closed streams and signals.
//!
//! A tool's `main` is [`run`] with a body. The body gets its parsed arguments and the resolved
//! configuration; what it returns is the exit code. stdout is records only, stderr is for people.

mod closed;
mod config;
mod exit;
mod io;
mod stop;

pub use config::Config;
pub use exit::Exit;
pub use io::{open, progress, progress_bytes, stdin, stdin_records, stdout, watched};
pub use stop::Stop;

use anyhow::Context;
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory, FromArgMatches};
use clap_complete::Shell;
use std::io::Write;
use std::process::ExitCode;

/// Runs a tool: parses its arguments, answers `--schema`, `--man` and `--completions`, else calls `body`.
///
/// Errors are printed as `tool: message` and exit 2, a stdout that is closed or cannot be written to among them. A reader
/// of stdout that goes away ends the tool quietly with exit 0, as a filter should; a judge fixes its exit code before it
/// writes (see `cute-verdict`).
pub fn run<A: CommandFactory + FromArgMatches>(
    body: impl FnOnce(A, Config) -> anyhow::Result<Exit>,
) -> ExitCode {
    let command = with_extras(A::command());
    let done = if closed::stdout() {
        Err(anyhow::anyhow!("stdout is closed: what is written there would be lost"))
    } else {
        answer(&command, body)
    };
    match done {
        Ok(exit) => exit.into(),
        Err(e) if is_broken_pipe(&e) => Exit::Pass.into(),
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "{}: {e:#}", command.get_name());
            Exit::Trouble.into()
        }
    }
}

fn answer<A: CommandFactory + FromArgMatches>(
    command: &Command,
    body: impl FnOnce(A, Config) -> anyhow::Result<Exit>,
) -> anyhow::Result<Exit> {
    let matches = match parse(command) {
        Ok(matches) => matches,
        Err(e) if e.use_stderr() => {
            let _ = e.print();
            return Ok(Exit::Trouble);
        }
        Err(help) => {
            help.print().and_then(|()| std::io::stdout().flush()).context("cannot write to stdout")?;
            return Ok(Exit::Pass);
        }
    };
    if let Some(result) = extras(command, &matches) {
        result.and_then(|()| Ok(std::io::stdout().flush()?)).context("cannot write to stdout")?;
        return Ok(Exit::Pass);
    }
    let args = A::from_arg_matches(&matches).context("reading the arguments")?;
    body(args, Config::from_matches(command, &matches))
}

/// The arguments. A variable of the environment is none beside `--schema`, `--man` and `--completions`.
fn parse(command: &Command) -> Result<ArgMatches, clap::Error> {
    command.clone().try_get_matches().or_else(|e| {
        let bare = command.clone().mut_args(|arg| arg.env(clap::builder::Resettable::Reset));
        let asked =
            |m: &ArgMatches| m.contains_id("schema") || m.contains_id("completions") || m.get_flag("man");
        bare.try_get_matches().ok().filter(asked).ok_or(e)
    })
}

/// True when an error says that the reader of our output has gone away.
pub fn is_broken_pipe(e: &anyhow::Error) -> bool {
    e.chain().any(|cause| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
            || cause
                .downcast_ref::<cute_records::WriteError>()
                .is_some_and(cute_records::WriteError::is_broken_pipe)
    })
}

const EXIT_CODES: &str = "Exit codes: 0 pass or done, 1 gate failed or expectation violated, 2 trouble (usage, bad input, \
                          I/O, device), 3 inconclusive; 130 and 143 after Ctrl-C and SIGTERM.";

fn with_extras(command: Command) -> Command {
    let examples = command.get_after_help().map(|text| format!("{text}\n\n")).unwrap_or_default();
    let extra = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).help(help).exclusive(true).help_heading("About this tool")
    };
    command
        .max_term_width(100)
        .after_long_help(format!("{examples}{EXIT_CODES}"))
        .arg(
            extra("schema", "Print the JSON Schema of one record type, or of all")
                .value_name("TYPE")
                .num_args(0..=1)
                .default_missing_value("all"),
        )
        .arg(
            extra("completions", "Print completions for a shell")
                .value_name("SHELL")
                .value_parser(clap::value_parser!(Shell)),
        )
        .arg(extra("man", "Print the manual page (roff)").action(ArgAction::SetTrue))
}

fn extras(command: &Command, matches: &ArgMatches) -> Option<anyhow::Result<()>> {
    let mut out = std::io::stdout().lock();
    if let Some(kind) = matches.get_one::<String>("schema") {
        return Some(print_schema(kind, &mut out));
    }
    if let Some(shell) = matches.get_one::<Shell>("completions") {
        let mut text = Vec::new();
        clap_complete::generate(*shell, &mut command.clone(), command.get_name(), &mut text);
        return Some(out.write_all(&text).map_err(Into::into));
    }
    if matches.get_flag("man") {
        return Some(clap_mangen::Man::new(command.clone()).render(&mut out).map_err(Into::into));
    }
    None
}

fn print_schema(kind: &str, out: &mut impl Write) -> anyhow::Result<()> {
    let schema = match kind {
        "all" => cute_records::schema::schema_all(),
        kind => cute_records::schema::schema_of(kind).with_context(|| {
            format!("no record type {kind:?}: expected one of {}", cute_records::TYPES.join(", "))
        })?,
    };
    let mut text = serde_json::to_string_pretty(&schema)?;
    text.push('\n');
    out.write_all(text.as_bytes())?;
    Ok(())
}
