//! The exit codes, the same in all five tools.

use std::process::ExitCode;

/// What a tool's exit code says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// done, or every gate passed
    Pass = 0,
    /// a gate failed or an expectation was violated
    Fail = 1,
    /// usage, bad input, I/O or device; clap's own code for usage errors
    Trouble = 2,
    /// the evidence is missing, cut off or empty: no judgment
    Inconclusive = 3,
    /// Ctrl-C: 128 and the number of SIGINT, as shells say it
    Interrupted = 130,
    /// SIGTERM: 128 and its number
    Terminated = 143,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

impl From<cute_records::Outcome> for Exit {
    fn from(outcome: cute_records::Outcome) -> Self {
        match outcome {
            cute_records::Outcome::Pass => Exit::Pass,
            cute_records::Outcome::Fail => Exit::Fail,
            cute_records::Outcome::Inconclusive => Exit::Inconclusive,
        }
    }
}
