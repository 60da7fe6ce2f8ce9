//! The CUSUM over the order of requests, with its threshold and its alarm.

use super::plot::{Plot, WIDTH};
use crate::checks::Leg;
use crate::gates::Judgment;
use maud::{Markup, html};

/// Points drawn at most.
const MOST: usize = 3000;

/// The curve of a leg, when it has graded replies.
pub fn cusum(leg: &Leg, j: &Judgment) -> Option<Markup> {
    let s = j.charts.get(&leg.name)?;
    let stretch = j.stretches.get(&leg.name);
    let highest = s.sums.iter().copied().max().unwrap_or(0).max(s.chart.threshold) as f64;
    let plot = Plot::new(*s.ordinals.first()?, *s.ordinals.last()?, highest * 1.08, 200.0);
    // Of a long series the highest point of each piece is drawn: an alarm must not fall between two points.
    let every = s.sums.len().div_ceil(MOST).max(1);
    let highest_of = |(o, v): (&[u64], &[u32])| {
        let at = (0..v.len()).max_by_key(|i| v[*i]).unwrap_or(0);
        format!("{} {}", plot.x(o[at] as f64), plot.y(f64::from(v[at])))
    };
    let points: Vec<String> = s.ordinals.chunks(every).zip(s.sums.chunks(every)).map(highest_of).collect();
    let threshold = plot.y(f64::from(s.chart.threshold));
    Some(html! {
        h3 { "CUSUM of wrong answers, in the order of requests" }
        figure {
            svg viewBox={ "0 0 " (WIDTH) " " (plot.height) } role="img" aria-label="CUSUM of wrong answers" {
                (plot.frame(leg, stretch, "sum"))
                path d={ "M" (points.join("L")) } fill="none" stroke="var(--accent)" stroke-width="1.6" stroke-linejoin="round" {}
                path d={ "M" (plot.x(plot.first)) " " (threshold) "H" (plot.x(plot.last)) } stroke="var(--bad)" stroke-dasharray="5 4" {}
                text x=(plot.x(plot.last) + 6.0) y=(threshold + 4.0) { "alarm" }
                @if let Some(alarm) = s.alarm {
                    @let at = s.ordinals.iter().position(|o| *o == alarm).unwrap_or(0);
                    @let (x, y) = (plot.x(alarm as f64), plot.y(f64::from(s.sums[at])));
                    circle cx=(x) cy=(y) r="4" fill="var(--bad)" { title { "alarm at ordinal " (alarm) } }
                    text.mark x=(x - 8.0) y=(y - 2.0) text-anchor="end" { "alarm " (alarm) }
                }
            }
        }
    })
}
