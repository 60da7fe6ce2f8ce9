//! One leg explained: replay, rivals, claim.

use super::hypotheses::{self, Score, Target};
use super::invariance::AtOnset;
use super::playing::{self, Played};
use super::requests::{Boot, Requests, boots};
use crate::checks::{FindingExt, Leg, finding, ranges};
use crate::detect::Label;
use crate::pool::exposure::Width;
use crate::pool::{Demand, Geometry, Holding};
use cute_records::{Completion, Finding, Severity};
use serde_json::json;

/// What one leg yields.
#[derive(Clone, Debug, Default)]
pub struct LegExplained {
    /// its findings
    pub findings: Vec<Finding>,
    /// its counters at onset, when it has one
    pub onset: Option<AtOnset>,
}

/// Explains a leg.
pub fn explain(leg: &Leg) -> LegExplained {
    let mut out = LegExplained::default();
    let targets: Vec<Target> = leg.replies().map(|(c, l)| target(c, l)).collect();
    let boots = boots(leg);
    let geometries: Vec<_> = boots.iter().map(|b| Geometry::of(b.pool)).collect();
    for (boot, geometry) in boots.iter().zip(&geometries) {
        out.findings.extend(static_exposure(leg, boot, geometry.as_ref()));
    }
    if leg.completions.is_empty() {
        return out;
    }
    let fitting = boots.iter().zip(geometries).filter_map(|(b, g)| Some(Requests::of(leg, b, g.ok()?)));
    // Of several boots in one log, the one that served about as many requests as there are results.
    let requests =
        fitting.min_by_key(|r| (r.at.iter().flatten().count().abs_diff(r.rows.len()), r.sequence.len()));
    let bad = targets.iter().flatten().filter(|b| **b).count();
    let mut scores = hypotheses::of_order(&leg.completions.iter().collect::<Vec<_>>(), &targets);
    let mut played = None;
    let mut why = None;
    match &requests {
        None => {
            let broken = boots.first().and_then(|b| Geometry::of(b.pool).err());
            why = Some(
                broken.unwrap_or("no pool record: give the server's log to cute-dispatch-extract".to_owned()),
            );
        }
        Some(r) => match playing::play(r, &targets) {
            None => {
                why = Some(format!("a request does not fit into the pool of {} blocks", r.geometry.blocks))
            }
            Some(p) if p.placed() == 0 => {
                let served = r.sequence.len();
                why = Some(format!(
                    "the log answered {served} requests and {} results have no certain place among them",
                    r.rows.len()
                ));
            }
            Some(p) => {
                let known = p.known();
                let widths = hypotheses::widths(&r.geometry, p.witnessed);
                let mut of_pool: Vec<Score> = widths
                    .into_iter()
                    .map(|w| hypotheses::overflow(w, &r.geometry, &known, &targets))
                    .collect();
                hypotheses::rank(&mut of_pool);
                keep_best_odd_width(&mut of_pool);
                of_pool.extend(hypotheses::of_blocks(&known, &targets));
                of_pool.iter_mut().for_each(|s| s.free += p.chosen);
                scores.extend(of_pool);
                drop(known);
                played = Some(p);
            }
        },
    }
    if let Some(why) = why.filter(|_| bad > 0) {
        out.findings.push(finding("replay_impossible", Severity::Warning, format!("{}: {why}", leg.title())));
    }
    hypotheses::rank(&mut scores);
    if bad > 0 || played.is_some() {
        let facts = Facts {
            leg,
            targets: &targets,
            scores: &scores,
            requests: requests.as_ref(),
            played: played.as_ref(),
        };
        out.findings.push(facts.mechanism());
    }
    out.onset = onset(leg, &targets, requests.as_ref(), played.as_ref());
    out
}

/// Of the widths that no computer has only the best is worth showing.
fn keep_best_odd_width(ranked: &mut Vec<Score>) {
    let mut seen = false;
    ranked.retain(|s| s.free == 0 || !std::mem::replace(&mut seen, true));
}

/// What the hypotheses must say of a reply: bad when it collapsed; nothing when the request failed.
fn target(c: &Completion, l: &crate::detect::Labelled) -> Target {
    let output = c.text.is_some() || c.text_tail.is_some() || c.completion_tokens.is_some();
    (output && l.label != Label::ClientError).then(|| l.degenerate())
}

/// Everything the mechanism finding is made of.
struct Facts<'a> {
    leg: &'a Leg,
    targets: &'a [Target],
    scores: &'a [Score],
    requests: Option<&'a Requests<'a>>,
    played: Option<&'a Played>,
}

impl Facts<'_> {
    /// The finding that carries the claim, the scores and the replay.
    fn mechanism(&self) -> Finding {
        let Facts { leg, targets, scores, requests, played } = *self;
        let labels = targets.iter().flatten().count() as u64;
        let bad = targets.iter().flatten().filter(|b| **b).count() as u64;
        let ordinal = |i: usize| leg.completions[i].ordinal;
        let best = scores.iter().find(|s| s.width.is_some() && claimed(s, scores, bad));
        let unexplained: Vec<u64> =
            best.map(|s| s.unexplained(targets).map(ordinal).collect()).unwrap_or_default();
        let mut f = finding("mechanism", Severity::Info, self.sentence(best, labels, bad, &unexplained))
            .with("mechanism", best.map(|s| s.id.as_str()))
            .with("labels", labels)
            .with("degenerate", bad)
            .with("explained", best.map(|s| s.explained))
            .with("unexplained_ordinals", json!(unexplained))
            .with("predicted_ranges", json!(best.map(|s| pairs(s.bad().map(ordinal))).unwrap_or_default()));
        if !leg.name.is_empty() {
            f = f.with("leg", leg.name.as_str());
        }
        if let Some(onset) = (0..targets.len()).find(|i| targets[*i] == Some(true)) {
            let back = (onset..targets.len()).find(|i| targets[*i] == Some(false));
            f = f.ordinal(ordinal(onset)).with("onset_ordinal", ordinal(onset));
            f = f.with("recovery_ordinal", back.map(ordinal));
        }
        if let Some(r) = requests {
            f = geometry(f, r, best.and_then(|s| s.width));
        }
        if let Some(p) = played {
            let highest = |k: &Option<(Demand, Holding)>| k.as_ref().and_then(|(_, h)| h.highest());
            f = f
                .with("warmup_requests", p.warmup)
                .with("replayed_requests", p.requests)
                .with("blocks_known_by", p.how.as_str())
                .with("witnessed", p.witnessed)
                .with("unsure_ordinals", ranges(p.unsure.iter().map(|i| ordinal(*i))))
                .with("highest_block", json!(p.of_row.iter().map(highest).collect::<Vec<_>>()));
        }
        let entry = |s: &Score| {
            json!({"id": s.id, "says": s.says, "chosen_values": s.free, "explained": s.explained, "missed": s.missed,
                   "false_alarms": s.false_alarms, "open": s.open, "predicted": ranges(s.bad().map(ordinal))})
        };
        f.with("hypotheses", json!(scores.iter().map(entry).collect::<Vec<_>>()))
    }

    fn sentence(&self, best: Option<&Score>, labels: u64, bad: u64, unexplained: &[u64]) -> String {
        let of = if self.leg.name.is_empty() { String::new() } else { format!("{}: ", self.leg.name) };
        let Some(s) = best else {
            if bad == 0 {
                return format!("{of}no output collapsed: nothing to explain in {labels} labels");
            }
            let first = self.scores.first();
            let first =
                first.map_or(String::new(), |s| format!("; closest: {} explains {}", s.id, s.explained));
            return format!("{of}no mechanism explains the {bad} collapsed outputs of {labels}{first}");
        };
        let rival = self.scores.iter().find(|o| o.width.is_none());
        let rival = rival.map_or(String::new(), |r| format!(" (best rival: {}, {})", r.id, r.explained));
        let rest = if unexplained.is_empty() {
            String::new()
        } else {
            format!("; not explained: {} ({})", unexplained.len(), ranges(unexplained.iter().copied()))
        };
        let lost = self.played.map_or(0, |p| self.targets.len() - p.placed());
        let lost = if lost > 0 {
            format!("; {lost} result(s) have no certain place among the served requests")
        } else {
            String::new()
        };
        let unsure = match self.requests.and_then(Requests::ambiguous_from) {
            Some(n) => format!("; requests overlap from {n} on, where the order of blocks is not certain"),
            None => String::new(),
        };
        format!(
            "{of}{}: {} of {labels} labels explained{rival}; {}{rest}{lost}{unsure}",
            s.id, s.explained, s.says
        )
    }
}

fn geometry(f: Finding, r: &Requests<'_>, width: Option<Width>) -> Finding {
    let basis: serde_json::Map<String, serde_json::Value> =
        r.bases().iter().map(|(b, n)| (b.word().to_owned(), json!(n))).collect();
    let f = f
        .with("pool_blocks", r.geometry.blocks)
        .with("block_size", r.geometry.block_size)
        .with("block_bytes", r.geometry.block_bytes)
        .with("demands_known_by", basis)
        .with("ambiguous_from", r.ambiguous_from());
    let Some(width) = width else { return f };
    f.with("first_bad_block", width.first_bad_block(&r.geometry))
        .with("first_bad_token", width.first_bad_token(&r.geometry))
        .with("offset_limit", width.limit().to_string())
        .with("index", width.words())
}

/// A claim needs most of the bad outputs, few false alarms, and every rival behind it.
fn claimed(s: &Score, all: &[Score], bad: u64) -> bool {
    let hit = bad.saturating_sub(s.missed);
    let called = s.bad().count() as u64;
    let rivals = all.iter().filter(|o| o.width.is_none()).map(|o| o.explained).max().unwrap_or(0);
    bad > 0 && hit * 10 >= bad * 9 && hit * 10 >= called * 9 && s.explained > rivals
}

fn pairs(ordinals: impl Iterator<Item = u64>) -> Vec<(u64, u64)> {
    let mut out: Vec<(u64, u64)> = Vec::new();
    for n in ordinals {
        match out.last_mut() {
            Some((_, end)) if *end + 1 == n => *end = n,
            _ => out.push((n, n)),
        }
    }
    out
}

fn onset(
    leg: &Leg,
    targets: &[Target],
    requests: Option<&Requests<'_>>,
    played: Option<&Played>,
) -> Option<AtOnset> {
    let at = (0..targets.len()).find(|i| targets[*i] == Some(true))?;
    let before = &leg.completions[..at];
    let back = (at..targets.len()).find(|i| targets[*i] == Some(false));
    let tokens = before.iter().map(|c| Some(c.prompt_tokens? + c.completion_tokens?)).sum::<Option<u64>>();
    Some(AtOnset {
        leg: leg.title().to_owned(),
        ordinal: leg.completions[at].ordinal,
        recovery: back.map(|i| leg.completions[i].ordinal),
        seconds: before.iter().map(|c| c.wall_ms.map(|t| t / 1e3)).sum::<Option<f64>>(),
        tokens,
        blocks: played.and_then(|p| p.taken[at]),
        highest: played.and_then(|p| p.of_row[at].as_ref()?.1.highest()).map(u64::from),
        pool: requests.map(|r| r.geometry.blocks),
    })
}

/// Whatever the labels say: can this pool reach offsets beyond an index width, and from which request on?
fn static_exposure(leg: &Leg, boot: &Boot<'_>, geometry: Result<&Geometry, &String>) -> Option<Finding> {
    let of = if leg.name.is_empty() { String::new() } else { format!("{}: ", leg.name) };
    let at = boot.pool.source.as_ref().map(|s| format!("{}:{}", s.file, s.line));
    let g = geometry.ok()?;
    let bytes = u128::from(g.blocks) * u128::from(g.block_bytes);
    let Some(first) = Width::I32.first_request(g) else {
        let message = format!(
            "{of}a pool of {} blocks ends at byte {bytes}: every offset fits a signed 32-bit index",
            g.blocks
        );
        return Some(
            finding("pool_not_exposed", Severity::Info, message).at(at).with("pool_blocks", g.blocks),
        );
    };
    let (block, token) = (Width::I32.first_bad_block(g), Width::I32.first_bad_token(g));
    let when = if first.before_wrap {
        format!(
            "request {} of a server (warm-up counted) is the first with one attention block that reaches it",
            first.number
        )
    } else {
        "requests of one attention block reach it only after the free list has wrapped".to_owned()
    };
    let message = format!(
        "{of}a pool of {} blocks of {} bytes passes 2^31 in block {block} at token {token}: a signed 32-bit byte offset \
         cannot address it; {when}",
        g.blocks, g.block_bytes
    );
    // This project's own engine indexes with 64 bits; only a log leaves the width in doubt.
    let severity = if boot.pool.source.is_some() { Severity::Warning } else { Severity::Info };
    Some(
        finding("pool_exposed", severity, message)
            .at(at)
            .with("pool_blocks", g.blocks)
            .with("first_bad_block", block)
            .with("first_bad_token", token)
            .with("first_request", first.number)
            .with("before_wrap", first.before_wrap),
    )
}
