//! Two runs told to take different paths: do their bits say that they did?
//!
//! `coop` and `lite` sum W_O's products in different orders, so the same prompt has different bits on them. Where every
//! reply of two runs is the same to the bit, one of them ran the other's path, whatever its log says. A log tells what a
//! server believes; this does not ask it.

use super::{Case, FindingExt, Leg, finding};
use cute_records::{Completion, Finding, FinishReason, Run, Severity};
use std::collections::BTreeMap;

/// Replies that two runs must share before their agreement says anything.
const ENOUGH: usize = 4;

/// Compares each two producers that were told different paths.
pub fn check(case: &Case) -> Vec<Finding> {
    let producers: Vec<&Run> = case.runs.iter().filter(|r| r.tool == "cute-generate").collect();
    let legs: Vec<(&str, &Run, &Leg)> = producers
        .iter()
        .enumerate()
        .filter_map(|(i, run)| {
            let name = if i == 0 { String::new() } else { format!("producer {}", i + 1) };
            Some((told(run)?, *run, case.legs.iter().find(|l| l.name == name)?))
        })
        .collect();
    let mut out = Vec::new();
    for (i, (path, run, leg)) in legs.iter().enumerate() {
        for (other_path, other_run, other) in &legs[i + 1..] {
            let same_model = run.digests.get("model") == other_run.digests.get("model");
            if path != other_path && same_model {
                out.extend(compare((path, leg), (other_path, other)));
            }
        }
    }
    out
}

/// The path that a producer's fused layers were told to take.
fn told(run: &Run) -> Option<&str> {
    let setting = |name: &str| run.config.get(name).map(|s| &s.value);
    let fused = setting("phase_e_fusion").and_then(|v| v.as_bool()) == Some(true);
    setting("phase_e_path")?.as_str().filter(|path| fused && ["coop", "lite"].contains(path))
}

fn compare((path, leg): (&str, &Leg), (other_path, other): (&str, &Leg)) -> Option<Finding> {
    let (bits, other_bits) = (bits(leg), bits(other));
    let pairs: Vec<_> = bits.iter().filter_map(|(key, c)| Some((*c, *other_bits.get(key)?))).collect();
    if pairs.len() < ENOUGH || pairs.iter().any(|(a, b)| a.fingerprint != b.fingerprint) {
        return None;
    }
    let (a, b) = pairs.first()?;
    let message = format!(
        "{} and {} were told paths {path} and {other_path}, and all {} replies they share agree to the bit: one of them \
         ran the other's path",
        leg.title(),
        other.title(),
        pairs.len()
    );
    Some(
        finding("path_without_effect", Severity::Error, message)
            .ordinal(b.ordinal)
            .with("measure_ordinal", a.ordinal)
            .with("compared", pairs.len())
            .with("leg", other.name.as_str()),
    )
}

/// The first whole reply to each prompt that has decode steps in it.
fn bits(leg: &Leg) -> BTreeMap<String, &Completion> {
    let mut out = BTreeMap::new();
    for c in &leg.completions {
        let cut = matches!(c.finish_reason, Some(FinishReason::Cancelled | FinishReason::Error));
        let (Some(prompt), true) = (&c.prompt_sha256, c.completion_tokens >= Some(2)) else { continue };
        if !cut && c.preempted.is_none() && c.fingerprint.is_some() {
            out.entry(format!("{prompt} {}", c.sampling_sha256.as_deref().unwrap_or_default())).or_insert(c);
        }
    }
    out
}
