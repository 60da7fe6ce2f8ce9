//! Run × question, one cell a reply: colour is the label, a cross is a wrong answer.

use super::plot::WIDTH;
use crate::checks::{Case, Leg};
use crate::detect::{Label, Labelled};
use crate::gates::{Judgment, judge};
use cute_records::{Completion, Finding, RunScore};
use maud::{Markup, html};
use std::collections::{BTreeMap, BTreeSet};

const LEFT: f64 = 62.0;
/// Before the scores at the right.
const GAP: f64 = 8.0;
/// Room for a letter of these.
const LETTER: f64 = 8.0;
const TOP: f64 = 46.0;
/// Height that all runs together fill at most.
const TALLEST: f64 = 1200.0;
/// Beyond so many replies a healthy one is background, and a page must still open.
const CROWDED: usize = 8000;

/// Width of a cell that has room for a cross.
const CROSSED: f64 = 7.0;

/// Where things stand on the map.
struct Grid {
    runs: BTreeMap<u64, usize>,
    columns: BTreeMap<u64, usize>,
    cell: f64,
    row: f64,
    place: BTreeMap<u64, (u64, u64)>,
}

impl Grid {
    fn x(&self, index: u64) -> f64 {
        self.column(self.columns.get(&index).copied().unwrap_or(0))
    }
    fn column(&self, at: usize) -> f64 {
        ((LEFT + at as f64 * self.cell) * 100.0).round() / 100.0
    }
    fn y(&self, run: u64) -> f64 {
        TOP + self.row * self.runs.get(&run).copied().unwrap_or(0) as f64
    }

    /// A flag at the left edge of a cell, its word above the map (onset) or below it (recovery).
    fn flag(&self, ordinal: Option<u64>, word: &str, above: bool) -> Markup {
        let found = ordinal.and_then(|o| Some((o, *self.place.get(&o)?)));
        let bottom = TOP + self.row * self.runs.len() as f64;
        html! {
            @if let Some((ordinal, (run, index))) = found {
                @let (x, y) = (self.x(index), self.y(run));
                @let (from, to, text) = if above { (TOP - 22.0, y + self.row, TOP - 26.0) } else { (y, bottom + 12.0, bottom + 24.0) };
                path d={ "M" (x) " " (from) "V" (to) } stroke="var(--ink)" stroke-width="1" stroke-dasharray="2 2" {}
                path d={ "M" (x) " " (y) "v" (self.row) } stroke="var(--ink)" stroke-width="2.5" {}
                @let side = if x > WIDTH * 0.8 { "end" } else { "start" };
                text.mark x=(x) y=(text) text-anchor=(side) { (word) ": ordinal " (ordinal) ", run " (run + 1) " Q" (index) }
            }
        }
    }
}

/// The map of a leg with its legend.
pub fn map(leg: &Leg, case: &Case, j: &Judgment) -> Markup {
    let questions = leg.questions();
    let score = |s: &RunScore| format!("{}/{}", s.correct, s.n);
    let scores = leg.scores();
    let widest = scores.iter().map(|s| score(s).len()).max().unwrap_or(0);
    let right = GAP + LETTER * widest as f64;
    let cell = ((WIDTH - LEFT - right) / questions.len().max(1) as f64).min(26.0);
    let runs = leg.runs();
    let grid = Grid {
        row: cell.clamp(14.0, 22.0).min(TALLEST / runs.len().max(1) as f64),
        runs: runs.iter().enumerate().map(|(at, run)| (*run, at)).collect(),
        columns: questions.iter().enumerate().map(|(at, question)| (*question, at)).collect(),
        cell,
        place: leg.completions.iter().map(|c| (c.ordinal, (c.run, c.index))).collect(),
    };
    let height = TOP + grid.row * grid.runs.len() as f64 + 32.0;
    let predicted = predicted(judge::of_leg(case, leg));
    let kinds: BTreeSet<Label> = leg.labels.iter().map(|l| l.label).collect();
    let step = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
        .into_iter()
        .find(|s| *s as f64 * cell >= 24.0)
        .unwrap_or((24.0 / cell).ceil() as usize);
    let stretch = j.stretches.get(&leg.name);
    let end = grid.column(questions.len());
    html! {
        figure {
            svg viewBox={ "0 0 " (WIDTH) " " (height) } role="img" aria-label="heat map of runs and questions" {
                @for q in questions.iter().copied().step_by(step) {
                    text x=(grid.x(q) + cell / 2.0) y=(TOP - 7.0) text-anchor="middle" { (q) }
                }
                text x=(LEFT - 10.0) y=(TOP - 7.0) text-anchor="end" { "question" }
                @let named = (12.0 / grid.row).ceil() as usize;
                @for s in scores.iter().step_by(named) {
                    @let y = grid.y(s.run) + grid.row / 2.0 + 4.0;
                    text x=(LEFT - 10.0) y=(y) text-anchor="end" { "run " (s.run + 1) }
                    @if s.n > 0 { text.mark x=(end + GAP) y=(y) { (score(s)) } }
                }
                @let crowded = leg.completions.len() > CROWDED;
                @if crowded {
                    @for run in grid.runs.keys() {
                        rect x=(LEFT) y=(grid.y(*run) + 0.5) width=(end - LEFT) height=(grid.row - 1.0) fill="var(--healthy)" {}
                    }
                }
                @for (c, l) in leg.replies().filter(|(_, l)| !crowded || l.label != Label::Healthy).take(CROWDED) { (square(c, l, &grid, predicted.contains(&c.ordinal))) }
                (grid.flag(stretch.map(|s| s.onset), "onset", true))
                (grid.flag(stretch.and_then(|s| s.recovery), "recovery", false))
            }
            ul.legend {
                @for label in Label::ALL.into_iter().filter(|l| kinds.contains(l)) {
                    li { i style={ "background: var(--" (label.name()) ")" } {} (label.meaning()) }
                }
                @if cell >= CROSSED { li { b { "×" } " wrong answer" } }
                @if !predicted.is_empty() {
                    li { i.under {} "the mechanism says: must be bad" }
                }
            }
        }
    }
}

fn square(c: &Completion, l: &Labelled, grid: &Grid, predicted: bool) -> Markup {
    let (x, y, cell, row) = (grid.x(c.index), grid.y(c.run), grid.cell, grid.row);
    let gap = if cell >= 5.0 { 1.0 } else { 0.0 };
    html! {
        rect x=(x + gap / 2.0) y=(y + 0.5) width=(cell - gap) height=(row - 1.0) rx=(2.0 * gap) fill={ "var(--" (l.label.name()) ")" } {
            title { (hover(c, l, predicted)) }
        }
        @if predicted { rect x=(x) y=(y + row - 3.0) width=(cell) height="2.5" fill="var(--window)" pointer-events="none" {} }
        @if c.correct == Some(false) && cell >= CROSSED {
            path d={ "M" (x + cell / 2.0 - 2.5) " " (y + row / 2.0 - 2.5) "l5 5m0 -5l-5 5" }
                stroke="var(--card)" stroke-width="1.4" pointer-events="none" {}
        }
    }
}

fn hover(c: &Completion, l: &Labelled, predicted: bool) -> String {
    let mut out = format!("run {} Q{} · ordinal {} · {}", c.run + 1, c.index, c.ordinal, l.label.meaning());
    let mut say = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            out.push_str(&format!("\n{name}: {value}"));
        }
    };
    say("answer", c.extracted.clone().map(|a| format!("{a} (gold {})", c.gold.as_deref().unwrap_or("?"))));
    say("seen", l.run.as_ref().map(|r| r.seen()));
    say("repeats", l.looping.as_ref().map(|l| l.unit.clone()));
    say("tokens", c.completion_tokens.map(|t| t.to_string()));
    say("wall", c.wall_ms.map(|t| format!("{:.1} s", t / 1e3)));
    say("slot", c.slot.map(|s| s.to_string()));
    say("KV pages", c.kv_pages.as_ref().map(|p| format!("{p:?}")));
    if predicted {
        out.push_str("\nthe mechanism says: must be bad");
    }
    out
}

/// Ordinals a mechanism finding predicts to be bad.
pub fn predicted(f: Option<&Finding>) -> BTreeSet<u64> {
    let ranges = f.and_then(|f| f.data.get("predicted_ranges")).and_then(|v| v.as_array());
    let pair = |v: &serde_json::Value| Some((v.get(0)?.as_u64()?, v.get(1)?.as_u64()?));
    ranges
        .into_iter()
        .flatten()
        .filter_map(pair)
        .flat_map(|(a, b)| a..=b.min(a.saturating_add(1_000_000)))
        .collect()
}
