//! One finding for every reply that is not healthy, with the detector's evidence.

use super::{Case, FindingExt, finding};
use crate::detect::Label;
use cute_records::{Finding, Severity};

/// How bad a label is. A collapse or a failed request breaks an invariant; a loop, a cut or an empty reply
/// weakens the evidence; misses are the model's own, cancellations the client's, and both worth knowing.
pub fn severity(label: Label) -> Option<Severity> {
    match label {
        Label::Healthy => None,
        Label::SingleTokenRun | Label::LuckyGarbage | Label::ClientError => Some(Severity::Error),
        Label::NgramLoop | Label::Empty | Label::CutOff => Some(Severity::Warning),
        Label::StableMiss | Label::KnifeEdge | Label::Cancelled => Some(Severity::Info),
    }
}

/// Labels every reply of a case.
pub fn check(case: &Case) -> Vec<Finding> {
    let mut out = Vec::new();
    for leg in &case.legs {
        for (c, l) in leg.replies() {
            let Some(severity) = severity(l.label) else { continue };
            let what = l.evidence.get("seen").or_else(|| l.evidence.get("error")).and_then(|v| v.as_str());
            let message = format!(
                "request {} (run {}, index {}): {}{}",
                c.ordinal,
                c.run,
                c.index,
                l.label.meaning(),
                what.map(|w| format!(": {w}")).unwrap_or_default()
            );
            let mut f = finding(l.label.name(), severity, message).ordinal(c.ordinal).at(c.source.clone());
            f.data = l.evidence.clone();
            f = f.with("run", c.run).with("index", c.index);
            if !leg.name.is_empty() {
                f = f.with("leg", leg.name.as_str());
            }
            out.push(f);
        }
    }
    out
}
