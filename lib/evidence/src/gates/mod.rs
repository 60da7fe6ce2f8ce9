//! The judge's gates: evidence in, outcomes out.
//!
//! A gate is one comparison, `metric op value`. It passes only on evidence that could have failed it: no runs,
//! no rows, no audit, a cut-off stream are *inconclusive*, and say so. Thresholds are shares of what was asked, so
//! that they scale with the number of questions.
//!
//! | module | for |
//! |---|---|
//! | [`expr`] | the grammar, and errors that point at the column |
//! | [`metric`] | what can be gated: what it proves, what failure means, what it needs |
//! | [`figures`] | the numbers a case yields |
//! | [`eval`] | one gate against a case |
//! | [`mod@judge`] | gates against a case; the verdict record |
//! | [`seed`] | the original scripts' verdict fields |

pub mod eval;
pub mod expr;
pub mod figures;
pub mod judge;
pub mod metric;
mod runs;
pub mod seed;
mod server;

pub use expr::{GateError, Op, Threshold};
pub use judge::{Judgment, Settings, judge};
pub use metric::{METRICS, Metric};

use std::str::FromStr;

/// One gate as asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// the gate as typed
    pub text: String,
    /// what is compared
    pub metric: Subject,
    /// how
    pub op: Op,
    /// with what
    pub threshold: Threshold,
}

/// What a gate is about.
#[derive(Clone, Debug, PartialEq)]
pub enum Subject {
    /// a metric of the table
    Metric(&'static Metric),
    /// the number of findings of one check, `finding.NAME`
    Finding(String),
    /// the number of recognised log lines of one pattern, `event.NAME`
    Event(String),
    /// the number of replies with one label, `label.NAME`
    Label(crate::detect::Label),
}

impl FromStr for Ask {
    type Err = GateError;
    fn from_str(s: &str) -> Result<Self, GateError> {
        expr::parse(s)
    }
}

/// The gates of a verdict that was asked for none.
pub fn default_gates() -> Vec<Ask> {
    ["completions>=1", "errors=0", "findings=0"].iter().filter_map(|g| g.parse().ok()).collect()
}
