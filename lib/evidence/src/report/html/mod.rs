//! The HTML report: one self-contained file, SVG and CSS inline, no script; it follows the reader's light or dark
//! setting and says on hover what each mark is.
//!
//! | module | for |
//! |---|---|
//! | [`style`] | the sheet: colours by name, once for light and once for dark |
//! | [`heat`] | run × question, one cell a reply |

pub mod heat;
pub mod style;

use super::{Table, table::Align, tables};
use crate::checks::{Case, Leg};
use crate::gates::{Judgment, figures};
use cute_records::{Outcome, Run};
use maud::{DOCTYPE, Markup, PreEscaped, html};

/// The whole page.
pub fn page(case: &Case, j: &Judgment) -> String {
    let title = format!("Verdict: {}", tables::word(j.verdict.outcome).to_lowercase());
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) }
                style { (PreEscaped(style::SHEET)) }
            }
            body {
                main {
                    (head(case, j))
                    (gates(j))
                    @for leg in case.with_completions() { (leg_section(leg, case, j)) }
                    @for t in tables::mechanisms(case) { section { (table(&t)) } }
                    @if let Some(t) = tables::dispatch_table(case) { section { (table(&t)) } }
                    @if let Some(t) = tables::findings(case) { section { (table(&t)) } }
                    (provenance(case))
                }
            }
        }
    };
    page.into_string()
}

fn badge(o: Outcome) -> &'static str {
    match o {
        Outcome::Pass => "pass",
        Outcome::Fail => "fail",
        Outcome::Inconclusive => "open",
    }
}

fn head(case: &Case, j: &Judgment) -> Markup {
    let v = &j.verdict;
    let replies = figures::replies(case).count();
    html! {
        header {
            p.badge.(badge(v.outcome)) { (tables::word(v.outcome).to_lowercase()) }
            h1 { (headline(case, j)) }
            dl.tiles {
                (tile("replies", &replies.to_string()))
                (tile("degenerate", &v.degenerate.to_string()))
                (tile("onset", &v.onset_ordinal.map_or("–".into(), |n| n.to_string())))
                (tile("recovery", &v.recovery_ordinal.map_or("–".into(), |n| n.to_string())))
                @if let Some(explained) = v.explained { (tile("labels explained", &format!("{explained} / {}", v.labels))) }
                @if let Some(blocks) = v.pool_blocks { (tile("pool blocks", &blocks.to_string())) }
                (tile("findings", &v.findings.to_string()))
            }
        }
    }
}

fn tile(name: &str, value: &str) -> Markup {
    html! { div { dt { (name) } dd { (value) } } }
}

/// The verdict in one sentence.
fn headline(case: &Case, j: &Judgment) -> String {
    let v = &j.verdict;
    let scores: Vec<String> = v.runs.iter().filter(|s| s.n > 0).map(|s| s.correct.to_string()).collect();
    let of = v.runs.iter().map(|s| s.n).max().unwrap_or(0);
    let scored =
        if scores.is_empty() { String::new() } else { format!("{} of {of} correct", scores.join(", ")) };
    if let Some(f) = case.findings.iter().find(|f| f.check == "mechanism") {
        return if scored.is_empty() { f.message.clone() } else { format!("{scored}. {}", f.message) };
    }
    match (v.onset_ordinal, v.recovery_ordinal) {
        (Some(a), Some(b)) => format!("{scored}. Bad from request {a}, good again from {b}."),
        (Some(a), None) => format!("{scored}. Bad from request {a} to the end."),
        _ => scored,
    }
}

fn gates(j: &Judgment) -> Markup {
    html! {
        section {
            h2 { "Gates" }
            table.gates {
                thead { tr { th { "gate" } th { "outcome" } th { "because" } } }
                tbody {
                    @for g in &j.verdict.gates {
                        tr {
                            td { code { (g.gate) } }
                            td { span.badge.small.(badge(g.outcome)) { (tables::word(g.outcome).to_lowercase()) } }
                            td { (g.reason) }
                        }
                    }
                }
            }
            @if let Some(power) = &j.power { p.note { "Power: " (power) "." } }
        }
    }
}

fn leg_section(leg: &Leg, case: &Case, j: &Judgment) -> Markup {
    html! {
        section {
            h2 { "Replies of " (leg.title()) }
            (heat::map(leg, case, j))
            (table(&tables::runs(leg, j)))
            @if let Some(t) = tables::flips(leg, j) { (table(&t)) }
            @if let Some(t) = tables::misses(leg, usize::MAX) {
                details { summary { (t.title) " (" (t.rows.len()) ")" } (untitled(&t)) }
            }
        }
    }
}

/// A table of the report.
pub fn table(t: &Table) -> Markup {
    html! {
        h3 { (t.title) }
        (untitled(t))
    }
}

fn untitled(t: &Table) -> Markup {
    let side = |i: usize| if t.columns[i].1 == Align::Right { "num" } else { "" };
    html! {
        div.scroll {
            table {
                thead { tr { @for (i, (h, _)) in t.columns.iter().enumerate() { th.(side(i)) { (h) } } } }
                tbody {
                    @for row in &t.rows { tr { @for (i, cell) in row.iter().enumerate() { td.(side(i)) { (cell) } } } }
                }
            }
        }
        @for note in &t.notes { p.note { (note) } }
    }
}

fn provenance(case: &Case) -> Markup {
    html! {
        section {
            h2 { "Provenance" }
            @for run in &case.runs { (run_section(run)) }
            @if case.runs.is_empty() { p.note { "No run record: the producers of this stream did not introduce themselves." } }
        }
    }
}

fn run_section(run: &Run) -> Markup {
    html! {
        details {
            summary {
                (run.tool) " " (run.version)
                @if let Some(device) = &run.device { " on " (device) }
                @if let Some(fault) = &run.fault { " " span.badge.small.fail { "fault " (fault) } }
            }
            div.scroll {
                table {
                    tbody {
                        @for (name, digest) in &run.digests { tr { td { (name) } td { code { (digest) } } td { "sha256" } } }
                        @for (name, s) in &run.config {
                            tr { td { (name) } td { code { (s.value) } } td { (format!("{:?}", s.origin).to_lowercase()) } }
                        }
                    }
                }
            }
        }
    }
}
