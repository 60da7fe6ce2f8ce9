//! Run × question, one cell a reply: colour is the label, a cross is a wrong answer.

use crate::checks::{Case, Leg};
use crate::detect::Label;
use crate::gates::{Judgment, judge};
use cute_records::Finding;
use maud::{Markup, html};
use std::collections::{BTreeMap, BTreeSet};

const LEFT: f64 = 62.0;
const TOP: f64 = 30.0;
const WIDTH: f64 = 1060.0;

/// The map of a leg with its legend.
pub fn map(leg: &Leg, case: &Case, j: &Judgment) -> Markup {
    let runs = leg.runs();
    let questions = leg.questions().max(1);
    let cell = ((WIDTH - LEFT - 50.0) / questions as f64).clamp(1.0, 26.0);
    let row = cell.clamp(12.0, 22.0);
    let height = TOP + row * runs.len() as f64 + 34.0;
    let at = |run: u64| runs.iter().position(|r| *r == run).unwrap_or(0) as f64 * row + TOP;
    let predicted = predicted(judge::of_leg(case, leg));
    let kinds: BTreeSet<Label> = leg.labels.iter().map(|l| l.label).collect();
    let step = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
        .into_iter()
        .find(|s| *s as f64 * cell >= 24.0)
        .unwrap_or(2000);
    let place: BTreeMap<u64, (u64, u64)> =
        leg.completions.iter().map(|c| (c.ordinal, (c.run, c.index))).collect();
    let flag = |ordinal: Option<u64>, word: &str| {
        let found = ordinal.and_then(|o| Some((o, *place.get(&o)?)));
        html! {
            @if let Some((ordinal, (run, index))) = found {
                @let x = LEFT + index as f64 * cell;
                path d={ "M" (x) " " (at(run) - 2.0) "v" (row + 3.0) } stroke="var(--ink)" stroke-width="2" {}
                text.mark x=(x + 4.0) y=(height - 6.0) { (word) " " (ordinal) }
                path d={ "M" (x) " " (at(run) + row) "V" (height - 16.0) } stroke="var(--ink)" stroke-width="1" stroke-dasharray="2 3" {}
            }
        }
    };
    let stretch = j.stretches.get(&leg.name);
    html! {
        figure {
            svg viewBox={ "0 0 " (WIDTH) " " (height) } role="img" aria-label="heat map of runs and questions" {
                @for q in (0..questions).step_by(step) {
                    text x=(LEFT + q as f64 * cell + cell / 2.0) y=(TOP - 8.0) text-anchor="middle" { (q) }
                }
                @for run in &runs {
                    @let score = leg.scores().into_iter().find(|s| s.run == *run).unwrap_or_default();
                    text x=(LEFT - 10.0) y=(at(*run) + row / 2.0 + 4.0) text-anchor="end" { "run " (run + 1) }
                    text.mark x=(LEFT + questions as f64 * cell + 8.0) y=(at(*run) + row / 2.0 + 4.0) {
                        @if score.n > 0 { (score.correct) "/" (score.n) }
                    }
                }
                @for (c, l) in leg.replies() {
                    @let (x, y) = (LEFT + c.index as f64 * cell, at(c.run));
                    rect x=(x + 0.5) y=(y + 0.5) width=(cell - 1.0) height=(row - 1.0) rx="2" fill={ "var(--" (l.label.name()) ")" } {
                        title { (hover(c, l, predicted.contains(&c.ordinal))) }
                    }
                    @if predicted.contains(&c.ordinal) {
                        rect x=(x) y=(y + row - 2.0) width=(cell) height="2" fill="var(--window)" pointer-events="none" {}
                    }
                    @if c.correct == Some(false) && cell >= 7.0 {
                        path d={ "M" (x + cell / 2.0 - 2.5) " " (y + row / 2.0 - 2.5) "l5 5m0 -5l-5 5" }
                            stroke="var(--card)" stroke-width="1.3" pointer-events="none" {}
                    }
                }
                (flag(stretch.map(|s| s.onset), "onset"))
                (flag(stretch.and_then(|s| s.recovery), "recovery"))
            }
            ul.legend {
                @for label in Label::ALL.into_iter().filter(|l| kinds.contains(l)) {
                    li { i style={ "background: var(--" (label.name()) ")" } {} (label.meaning()) }
                }
                li { "× wrong answer" }
                @if !predicted.is_empty() { li { i style="background: var(--window); height: 3px; vertical-align: 3px" {} "predicted bad by the mechanism" } }
            }
        }
    }
}

fn hover(c: &cute_records::Completion, l: &crate::detect::Labelled, predicted: bool) -> String {
    let mut out = format!("run {} Q{} · ordinal {} · {}", c.run + 1, c.index, c.ordinal, l.label.meaning());
    let mut say = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            out.push_str(&format!("\n{name}: {value}"));
        }
    };
    say("answer", c.extracted.clone().map(|a| format!("{a} (gold {})", c.gold.as_deref().unwrap_or("?"))));
    say("seen", l.run.as_ref().map(|r| r.seen()));
    say("tokens", c.completion_tokens.map(|t| t.to_string()));
    say("wall", c.wall_ms.map(|t| format!("{:.1} s", t / 1e3)));
    say("slot", c.slot.map(|s| s.to_string()));
    say("KV pages", c.kv_pages.as_ref().map(|p| format!("{p:?}")));
    if predicted {
        out.push_str("\nthe mechanism predicts this reply to be bad");
    }
    out
}

/// Ordinals a mechanism finding predicts to be bad.
pub fn predicted(f: Option<&Finding>) -> BTreeSet<u64> {
    let ranges = f.and_then(|f| f.data.get("predicted_ranges")).and_then(|v| v.as_array());
    let pair = |v: &serde_json::Value| Some((v.get(0)?.as_u64()?, v.get(1)?.as_u64()?));
    ranges.into_iter().flatten().filter_map(pair).flat_map(|(a, b)| a..=b.min(a + 1_000_000)).collect()
}
