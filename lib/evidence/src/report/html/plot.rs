//! A plot over the order of requests: scales, axes, run borders, the bad stretch as a band.

use crate::checks::Leg;
use crate::gates::judge::Stretch;
use maud::{Markup, html};
use std::collections::BTreeMap;

/// Width of every figure in its own units.
pub const WIDTH: f64 = 1060.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 50.0;
const TOP: f64 = 26.0;
const BOTTOM: f64 = 30.0;

/// Scales of a figure: ordinals to the right, values upward.
#[derive(Clone, Copy, Debug)]
pub struct Plot {
    /// first ordinal
    pub first: f64,
    /// last ordinal
    pub last: f64,
    /// largest value
    pub top: f64,
    /// height of the figure
    pub height: f64,
}

impl Plot {
    /// Scales for ordinals `first..=last` and values up to `top`.
    pub fn new(first: u64, last: u64, top: f64, height: f64) -> Self {
        Plot { first: first as f64, last: (last as f64).max(first as f64 + 1.0), top: top.max(1.0), height }
    }

    /// Horizontal place of an ordinal.
    pub fn x(&self, ordinal: f64) -> f64 {
        let x = LEFT + (ordinal - self.first) / (self.last - self.first) * (WIDTH - LEFT - RIGHT);
        (x * 100.0).round() / 100.0
    }

    /// Vertical place of a value.
    pub fn y(&self, value: f64) -> f64 {
        let y = self.height - BOTTOM - (value / self.top).clamp(0.0, 1.0) * (self.height - TOP - BOTTOM);
        (y * 100.0).round() / 100.0
    }

    /// Axes with ticks, a border between runs, and the bad stretch as a band.
    pub fn frame(&self, leg: &Leg, stretch: Option<&Stretch>, unit: &str) -> Markup {
        let borders = borders(leg);
        let (bottom, top) = (self.y(0.0), self.y(self.top));
        html! {
            @if let Some(s) = stretch {
                @for (a, b) in bands(s, self.last as u64 + 1) {
                    rect x=(self.x(a as f64)) y=(top) width=((self.x(b as f64) - self.x(a as f64)).max(1.0)) height=(bottom - top)
                        fill="var(--bad)" fill-opacity="0.07" {}
                }
            }
            @for value in ticks(self.top, 4) {
                path d={ "M" (LEFT) " " (self.y(value)) "H" (WIDTH - RIGHT) } stroke="var(--grid)" {}
                text x=(LEFT - 8.0) y=(self.y(value) + 4.0) text-anchor="end" { (value) }
            }
            @for ordinal in ticks(self.last, 10) {
                @if ordinal >= self.first { text x=(self.x(ordinal)) y=(bottom + 16.0) text-anchor="middle" { (ordinal) } }
            }
            @for (run, ordinal) in &borders {
                path d={ "M" (self.x(*ordinal as f64)) " " (top - 14.0) "V" (bottom) } stroke="var(--line)" {}
                @if borders.len() <= 12 { text x=(self.x(*ordinal as f64) + 5.0) y=(top - 6.0) { "run " (run + 1) } }
            }
            path d={ "M" (LEFT) " " (bottom) "H" (WIDTH - RIGHT) } stroke="var(--line)" {}
            text x=(LEFT - 8.0) y=(top - 6.0) text-anchor="end" { (unit) }
        }
    }
}

/// Borders drawn at most; runs of a very long soak blur anyway.
const BORDERS: usize = 100;

/// Each run and its first ordinal.
fn borders(leg: &Leg) -> Vec<(u64, u64)> {
    let mut first: BTreeMap<u64, u64> = BTreeMap::new();
    for c in &leg.completions {
        let at = first.entry(c.run).or_insert(c.ordinal);
        *at = (*at).min(c.ordinal);
    }
    if first.len() > BORDERS { Vec::new() } else { first.into_iter().collect() }
}

/// Bad stretches as half-open ranges of ordinals.
pub fn bands(s: &Stretch, end: u64) -> Vec<(u64, u64)> {
    let mut out = vec![(s.onset, s.last.map_or(end, |l| l + 1))];
    out.extend(s.further.iter().map(|(a, b)| (*a, b + 1)));
    out
}

/// Round values up to `top`, about `n` of them.
fn ticks(top: f64, n: usize) -> Vec<f64> {
    let rough = top / n as f64;
    let power = 10f64.powf(rough.max(1e-9).log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].into_iter().map(|k| k * power).find(|s| *s >= rough).unwrap_or(rough).max(1.0);
    (0..).map(|i| f64::from(i) * step).take_while(|v| *v <= top * 1.0001).take(200).collect()
}
