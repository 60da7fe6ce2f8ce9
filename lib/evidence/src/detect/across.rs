//! Misses compared over the runs of one prompt set.

use super::{Label, Labelled};
use cute_records::Completion;
use serde_json::json;
use std::collections::BTreeMap;

/// Refines the label of wrong but healthy replies by comparing the runs of one leg: `stable_miss` when every
/// healthy run gives the same wrong answer, `knife_edge` when healthy runs disagree. Needs two healthy runs
/// of the same question; with fewer, labels stay as they are.
pub fn across(completions: &[&Completion], labels: &mut [Labelled]) {
    let mut questions: BTreeMap<(Option<&str>, u64), Vec<usize>> = BTreeMap::new();
    for (at, c) in completions.iter().enumerate() {
        if labels[at].label == Label::Healthy && c.correct.is_some() {
            questions.entry((c.leg.as_deref(), c.index)).or_default().push(at);
        }
    }
    for at in questions.into_values() {
        let runs: std::collections::BTreeSet<u64> = at.iter().map(|i| completions[*i].run).collect();
        if runs.len() < 2 {
            continue;
        }
        let right = at.iter().filter(|i| completions[**i].correct == Some(true)).count();
        let wrong: Vec<usize> =
            at.iter().copied().filter(|i| completions[*i].correct == Some(false)).collect();
        if wrong.is_empty() {
            continue;
        }
        let answers: Vec<&str> =
            wrong.iter().map(|i| completions[*i].extracted.as_deref().unwrap_or("")).collect();
        let same = right == 0 && answers.iter().all(|a| *a == answers[0]);
        for i in &wrong {
            labels[*i].label = if same { Label::StableMiss } else { Label::KnifeEdge };
            labels[*i].evidence.insert("healthy_runs".into(), json!(runs.len()));
            labels[*i].evidence.insert("right_in".into(), json!(right));
            labels[*i].evidence.insert("answers".into(), json!(answers));
        }
    }
}
