//! Same prompt, same fingerprint: in an engine whose reductions have a fixed order, nothing about the company a
//! request keeps may change a bit of its logits.
//!
//! Replies are grouped by the digests of their prompt and sampling parameters (the seed among them), or by index
//! when there is none. The first reply of a group sets the measure. When a run sampled and does not say with which
//! parameters, replies differ by design and the check says so instead. Cancelled replies are not whole, and
//! preempted ones went through prefill, which sums in another order: neither are compared.

use super::{Case, FindingExt, Leg, finding, ranges};
use crate::detect::Label;
use cute_records::{Completion, Finding, FinishReason, Run, Severity};
use std::collections::BTreeMap;

/// Compares replies to the same prompt.
pub fn check(case: &Case) -> Vec<Finding> {
    let mut out = Vec::new();
    let untold = case.with_completions().all(|leg| leg.replies().all(|(c, _)| c.sampling_sha256.is_none()));
    if let Some(temperature) = case.runs.iter().find_map(sampled).filter(|_| untold) {
        out.push(finding(
            "same_prompt_skipped",
            Severity::Info,
            format!(
                "the producer sampled (temperature {temperature}): replies to the same prompt may differ"
            ),
        ));
        return out;
    }
    for leg in case.with_completions() {
        out.extend(compare(leg, "fingerprint_differs", "fingerprint", |c| c.fingerprint.as_deref()));
        out.extend(compare(leg, "tokens_differ", "token_sha256", |c| c.token_sha256.as_deref()));
    }
    out
}

/// The temperature a producer sampled with, if it did.
fn sampled(run: &Run) -> Option<f64> {
    let value = &run.config.get("temperature")?.value;
    let t = value.as_f64().or_else(|| value.as_str().and_then(|s| s.parse().ok()))?;
    (t > 0.0).then_some(t)
}

fn compare(leg: &Leg, check: &str, field: &str, of: impl Fn(&Completion) -> Option<&str>) -> Option<Finding> {
    let mut groups: BTreeMap<String, Vec<&Completion>> = BTreeMap::new();
    for (c, l) in leg.replies() {
        let cancelled = c.finish_reason == Some(FinishReason::Cancelled);
        if l.label == Label::ClientError || cancelled || c.preempted.is_some() || of(c).is_none() {
            continue;
        }
        let prompt = c.prompt_sha256.clone().unwrap_or_else(|| format!("index {}", c.index));
        let key = prompt + c.sampling_sha256.as_deref().unwrap_or_default();
        groups.entry(key).or_default().push(c);
    }
    let compared: usize = groups.values().map(|g| g.len() - 1).sum();
    let mut first: Option<(&Completion, &Completion)> = None;
    let mut others: Vec<u64> = Vec::new();
    for group in groups.values() {
        for c in &group[1..] {
            if of(c) != of(group[0]) {
                others.push(c.ordinal);
                if first.is_none_or(|(d, _)| c.ordinal < d.ordinal) {
                    first = Some((c, group[0]));
                }
            }
        }
    }
    let (c, measure) = first?;
    others.sort_unstable();
    let place = match (c.slot, c.recycle) {
        (Some(slot), Some(n)) => format!(", slot {slot} used {n} time(s) before"),
        _ => String::new(),
    };
    let message = format!(
        "request {} (run {}, index {}{place}) has another {field} than request {} with the same prompt; \
         {} of {compared} repeats differ",
        c.ordinal,
        c.run,
        c.index,
        measure.ordinal,
        others.len()
    );
    Some(
        finding(check, Severity::Error, message)
            .ordinal(c.ordinal)
            .with("measure_ordinal", measure.ordinal)
            .with("count", others.len())
            .with("compared", compared)
            .with("ordinals", ranges(others))
            .with("slot", c.slot)
            .with("recycle", c.recycle),
    )
}
