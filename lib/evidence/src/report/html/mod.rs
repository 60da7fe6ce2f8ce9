//! The HTML report: one self-contained file, SVG and CSS inline, no script; it follows the reader's light or dark
//! setting and says on hover what each mark is.
//!
//! | module | for |
//! |---|---|
//! | [`style`] | the sheet: colours by name, once for light and once for dark |
//! | [`heat`] | run × question, one cell a reply |
//! | [`curve`] | the CUSUM |
//! | [`strip`] | the pool replay |
//! | [`plot`] | scales and axes of both |

pub mod curve;
pub mod heat;
pub mod plot;
pub mod strip;
pub mod style;

use super::table::{Align, cut};
use super::{Table, runs, tables};
use crate::checks::{Case, Leg};
use crate::gates::{Judgment, figures, judge};
use cute_records::{Finding, Outcome, Pool, Run};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde_json::Value;

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
                    @for f in case.findings.iter().filter(|f| f.check == "mechanism") { (mechanism(f)) }
                    @for f in case.findings.iter().filter(|f| f.check == "invariance") {
                        section { h2 { "Across legs" } p { (f.message) } }
                    }
                    @if let Some(t) = tables::dispatch_table(case) { section { h2 { "Dispatch" } (untitled(&t)) } }
                    @if let Some(t) = tables::findings(case) { section { h2 { "Findings" } (untitled(&t)) } }
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
    let many = scores.len() > 12;
    let mut out = match scores.len() {
        0 => format!("{} replies", figures::replies(case).count()),
        n if many => format!("{n} runs of {of} questions"),
        _ => format!("{} of {of} correct", scores.join(", ")),
    };
    out += &match (v.onset_ordinal, v.recovery_ordinal) {
        (Some(a), Some(b)) => format!("; bad from request {a}, good again from {b}"),
        (Some(a), None) => format!("; bad from request {a}, not recovered by the end"),
        _ => String::new(),
    };
    if let Some(m) = &v.mechanism {
        out += &format!(". {m} explains {} of {} labels", v.explained.unwrap_or(0), v.labels);
    }
    out + "."
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
            @if let Some(curve) = curve::cusum(leg, j) { (curve) }
            @if let Some(strip) = strip::pool(leg, judge::of_leg(case, leg), j) { (strip) }
            (table(&runs::table(leg, j)))
            @if let Some(t) = tables::flips(leg, j) { (table(&t)) }
            @if let Some(t) = tables::misses(leg, tables::Rows::All) {
                details { summary { (t.title) " (" (t.rows.len()) ")" } (untitled(&t)) }
            }
        }
    }
}

/// What was weighed and what won: a bar for the share of labels each hypothesis explains.
fn mechanism(f: &Finding) -> Markup {
    let list = f.data.get("hypotheses").and_then(Value::as_array);
    let labels = f.data.get("labels").and_then(Value::as_u64).unwrap_or(0).max(1);
    let winner = f.data.get("mechanism").and_then(Value::as_str);
    let text = |h: &Value, key: &str| h.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
    let number = |h: &Value, key: &str| h.get(key).and_then(Value::as_u64).unwrap_or(0);
    html! {
        section {
            h2 { "Mechanism" }
            p.claim { (f.message) }
            @if let Some(list) = list {
                div.scroll {
                    table.rivals {
                        thead { tr { th { "hypothesis" } th { "labels explained" } th.num { "missed" } th.num { "false" } th.num { "chosen values" } th { "says bad" } th { "claim" } } }
                        tbody {
                            @for h in list {
                                tr.won[winner == Some(&text(h, "id"))] {
                                    td { code { (text(h, "id")) } }
                                    td.bar {
                                        span style={ "width: " (format!("{:.1}", 100.0 * number(h, "explained") as f64 / labels as f64)) "%" } {}
                                        em { (number(h, "explained")) " of " (labels) }
                                    }
                                    td.num { (number(h, "missed")) }
                                    td.num { (number(h, "false_alarms")) }
                                    td.num { (number(h, "chosen_values")) }
                                    td { (cut(&text(h, "predicted"), 30)) }
                                    td { (text(h, "says")) }
                                }
                            }
                        }
                    }
                }
                p.note { "Chosen values were picked by looking at the labels, always the best ones; a hypothesis with none of them had to be right beforehand." }
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
            @for leg in &case.legs { @for p in &leg.pools { (pool_section(leg, p)) } }
            @for run in &case.runs { (run_section(run)) }
            @if case.runs.is_empty() { p.note { "No run record: the producers of this stream did not introduce themselves." } }
        }
    }
}

fn pool_section(leg: &Leg, p: &Pool) -> Markup {
    let show = |n: Option<u64>| n.map_or("-".to_owned(), |n| n.to_string());
    html! {
        p {
            b { "Pool of " (leg.title()) ": " } (show(p.num_blocks)) " blocks of " (show(p.block_size)) " tokens and "
            (show(p.block_bytes)) " bytes, first block " (show(p.first_block)) ", "
            (show(p.state_blocks_per_request)) " state blocks a request. "
            @if let Some(rule) = &p.rule { span.note { (rule) ". " } }
            @if let Some(s) = &p.source { code { (s.file) ":" (s.line) } }
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
