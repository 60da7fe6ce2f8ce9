//! Trouble that a server logged: launches that failed and fell back, kernels that were not built, dead workers.

use super::{Case, FindingExt, LogLine, finding};
use cute_records::{Finding, Severity};
use std::collections::BTreeMap;

/// One finding for every kind of trouble, with the first line and the number of lines.
pub fn check(case: &Case) -> Vec<Finding> {
    let mut kinds: BTreeMap<&str, (&LogLine, u64)> = BTreeMap::new();
    for line in case.legs.iter().flat_map(|l| &l.log) {
        if let Some(name) = line.trouble() {
            kinds.entry(name).or_insert((line, 0)).1 += 1;
        }
    }
    let one = |(name, (line, count)): (&str, (&LogLine, u64))| {
        // A line of level ERROR may be a client's fault; a launch that failed or a worker that died is not.
        let severity = if name == "log_error" { Severity::Warning } else { Severity::Error };
        finding("server_trouble", severity, format!("the server log reports {name}, {count} time(s)"))
            .at(Some(format!("{}:{}", line.file, line.line)))
            .with("event", name)
            .with("count", count)
    };
    kinds.into_iter().map(one).collect()
}
