//! The pool replay: the highest attention block of every request, against the first block that cannot be addressed.

use super::plot::{Plot, WIDTH};
use crate::checks::Leg;
use crate::gates::Judgment;
use cute_records::Finding;
use maud::{Markup, html};
use serde_json::Value;

/// Dots drawn at most; of more requests every so-manieth is shown.
const MOST: usize = 4000;

/// The strip of a leg, when its mechanism finding carries a replay.
pub fn pool(leg: &Leg, f: Option<&Finding>, j: &Judgment) -> Option<Markup> {
    let f = f?;
    let blocks: Vec<Option<u64>> =
        f.data.get("highest_block")?.as_array()?.iter().map(Value::as_u64).collect();
    if blocks.len() != leg.completions.len() || blocks.iter().flatten().count() == 0 {
        return None;
    }
    let number = |key: &str| f.data.get(key).and_then(Value::as_u64);
    let pool = number("pool_blocks")?;
    let bad = number("first_bad_block").filter(|b| *b < pool);
    let plot = Plot::new(
        leg.completions.first()?.ordinal,
        leg.completions.last()?.ordinal,
        pool as f64 * 1.04,
        230.0,
    );
    let radius = (500.0 / blocks.len() as f64).clamp(1.2, 3.2);
    let token =
        number("first_bad_token").filter(|t| *t > 0).map(|t| format!(" token {t}")).unwrap_or_default();
    Some(html! {
        h3 { "Pool replay: highest attention block each request held" }
        figure {
            svg viewBox={ "0 0 " (WIDTH) " " (plot.height) } role="img" aria-label="highest attention block of each request" {
                @if let Some(bad) = bad {
                    rect x=(plot.x(plot.first)) y=(plot.y(pool as f64)) width=(plot.x(plot.last) - plot.x(plot.first))
                        height=(plot.y(bad as f64) - plot.y(pool as f64)) fill="var(--bad-bg)" {}
                }
                (plot.frame(leg, j.stretches.get(&leg.name), "block"))
                @if let Some(bad) = bad {
                    path d={ "M" (plot.x(plot.first)) " " (plot.y(bad as f64)) "H" (plot.x(plot.last)) }
                        stroke="var(--bad)" stroke-dasharray="5 4" {}
                    text x=(plot.x(plot.last) + 6.0) y=(plot.y(bad as f64) + 4.0) { (bad) }
                }
                path d={ "M" (plot.x(plot.first)) " " (plot.y(pool as f64)) "H" (plot.x(plot.last)) } stroke="var(--soft)" {}
                text x=(plot.x(plot.last) + 6.0) y=(plot.y(pool as f64) + 4.0) { (pool) }
                @let every = (blocks.len() / MOST).max(1);
                @for ((c, l), block) in leg.replies().zip(&blocks).step_by(every) {
                    @if let Some(block) = block {
                        circle cx=(plot.x(c.ordinal as f64)) cy=(plot.y(*block as f64)) r=(radius) fill=(colour(l.degenerate())) {
                            title { "ordinal " (c.ordinal) " (run " (c.run + 1) " Q" (c.index) "): block " (block) ", " (l.label.meaning()) }
                        }
                    }
                }
            }
            ul.legend {
                li { i.dot style="background: var(--good)" {} "output sound" }
                li { i.dot style="background: var(--single_token_run)" {} "output collapsed" }
                @if let Some(bad) = bad {
                    li { i style="background: var(--bad-bg)" {} "beyond " (f.data.get("index").and_then(Value::as_str).unwrap_or("the index")) ": block " (bad) (token) " upward" }
                }
                li { "pool ends at " (pool) }
            }
        }
        p.note { "Blocks: " (f.data.get("blocks_known_by").and_then(Value::as_str).unwrap_or("")) ". Demands: " (demands(f)) "." }
    })
}

fn colour(bad: bool) -> &'static str {
    if bad { "var(--single_token_run)" } else { "var(--good)" }
}

fn demands(f: &Finding) -> String {
    let known = f.data.get("demands_known_by").and_then(Value::as_object);
    let words = known.into_iter().flatten().map(|(how, n)| format!("{how} ({n})"));
    words.collect::<Vec<_>>().join(", ")
}
