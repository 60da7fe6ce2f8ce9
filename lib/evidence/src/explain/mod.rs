//! Which mechanism explains which labels.
//!
//! For each leg the pool is replayed from its own log, or read from the replies where they witness their blocks;
//! every hypothesis then says which requests must be bad, and is scored against the labels one by one. What wins is
//! claimed only when it leaves its rivals behind; what it does not explain is said. Over several legs, counters at
//! onset are compared. And whatever the labels say, a pool whose offsets pass an index width is reported.
//!
//! | module | for |
//! |---|---|
//! | [`requests`] | requests in pool order, warm-up, demands |
//! | [`gauge`] | the usage gauge as a witness of demands |
//! | [`placing`] | results among served requests, when some are missing |
//! | [`hypotheses`] | rivals and their scores |
//! | [`playing`] | blocks of every result: witnessed or replayed |
//! | [`leg`] | one leg explained |
//! | [`invariance`] | counters at onset over legs |

pub mod gauge;
pub mod hypotheses;
pub mod invariance;
pub mod leg;
pub mod placing;
pub mod playing;
pub mod requests;

use crate::checks::Case;
use crate::report::{Table, tables};
use cute_records::Finding;

/// What was found, and the tables that show it.
#[derive(Clone, Debug, Default)]
pub struct Explanation {
    /// findings: `mechanism`, `invariance`, `pool_exposed`, …
    pub findings: Vec<Finding>,
    /// hypotheses and legs
    pub tables: Vec<Table>,
}

/// Looks for the mechanism behind degenerate output.
pub fn explain(case: &Case) -> Explanation {
    let mut out = Explanation::default();
    let mut onsets = Vec::new();
    for leg in &case.legs {
        let explained = leg::explain(leg);
        out.tables.extend(explained.findings.iter().filter_map(tables::hypotheses));
        out.findings.extend(explained.findings);
        onsets.extend(explained.onset);
    }
    if let Some((finding, table)) = invariance::compare(&onsets) {
        out.findings.push(finding);
        out.tables.push(table);
    }
    out
}
