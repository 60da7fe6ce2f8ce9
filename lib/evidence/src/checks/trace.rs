//! `trace` records against what else is known: replies, resets that a path needs, addresses, pools, the dispatch log.

use super::{Case, FindingExt, Leg, finding};
use cute_records::{Completion, Dispatch, Finding, Severity, Trace, TraceLayer};
use std::collections::{BTreeMap, BTreeSet};

/// A contradiction: the check, the layer it is about, and the words behind "request N".
type Wrong = (&'static str, Option<u32>, String);

/// Holds the traces of every leg against the rest of it. One finding a check and leg: the first case, and how many.
pub fn check(case: &Case) -> Vec<Finding> {
    // a log of several producers does not say whose it is
    let one = case.legs.iter().filter(|l| !l.traces.is_empty()).count() == 1;
    case.legs.iter().flat_map(|leg| of_leg(leg, one)).collect()
}

fn of_leg(leg: &Leg, own_log: bool) -> Vec<Finding> {
    let replies: BTreeMap<u64, &Completion> = leg.completions.iter().map(|c| (c.ordinal, c)).collect();
    let logged = if own_log { logged(&leg.dispatch) } else { BTreeMap::new() };
    let mut addresses = BTreeMap::new();
    let mut all: BTreeMap<&str, (u64, Option<u32>, String, u64)> = BTreeMap::new();
    for t in &leg.traces {
        let mut wrong: Vec<Wrong> = Vec::new();
        wrong.extend(against_reply(t, replies.get(&t.ordinal).copied()));
        wrong.extend(moved(t, &mut addresses));
        wrong.extend(against_pool(t, leg));
        for layer in &t.layers {
            wrong.extend(unreset(layer));
            wrong.extend(unlogged(layer, &logged));
        }
        for (check, layer, words) in wrong {
            all.entry(check).or_insert((t.ordinal, layer, words, 0)).3 += 1;
        }
    }
    let found = all.into_iter().map(|(check, (ordinal, layer, words, count))| {
        let message = format!("{}: request {ordinal}: {words}; {count} time(s) in all", leg.title());
        finding(check, Severity::Error, message).ordinal(ordinal).layer(layer).with("count", count)
    });
    found.collect()
}

/// The reply that a trace is of says the same of what both speak of.
fn against_reply(t: &Trace, reply: Option<&Completion>) -> Option<Wrong> {
    const CHECK: &str = "trace_contradicts_reply";
    let Some(c) = reply else { return Some((CHECK, None, "a trace, and no reply".to_owned())) };
    let digest = |name, reply: &Option<String>, trace: &String| {
        let differs = reply.as_ref().is_some_and(|reply| reply != trace);
        differs
            .then(|| format!("its reply has {name} {}, its trace {trace}", reply.as_deref().unwrap_or("-")))
    };
    let words = digest("token_sha256", &c.token_sha256, &t.token_sha256)
        .or_else(|| digest("fingerprint", &c.fingerprint, &t.fingerprint))
        .or_else(|| {
            let (reply, trace) = ((c.slot, c.epoch), (Some(t.slot), Some(t.epoch)));
            (c.slot.is_some() && reply != trace)
                .then(|| format!("its reply ran in slot and epoch {reply:?}, its trace in {trace:?}"))
        })
        .or_else(|| {
            let pages = c.kv_pages.as_ref().filter(|pages| **pages != t.kv_pages)?;
            Some(format!("its reply held pages {pages:?}, its trace {:?}", t.kv_pages))
        })
        .or_else(|| {
            let differs = c.finish_reason.is_some() && c.finish_reason != t.finish_reason;
            differs.then(|| {
                format!("its reply ended by {:?}, its trace by {:?}", c.finish_reason, t.finish_reason)
            })
        });
    words.map(|words| (CHECK, None, words))
}

/// What a path adds up into was zeroed before: the W_O slots by every `coop` step, the MLP's sums by `lite` as well.
fn unreset(l: &TraceLayer) -> Option<Wrong> {
    let resets = l.resets.as_ref()?;
    let steps = |path: &str| l.paths.get(path).copied().unwrap_or(0);
    let needed = [("wo_output", steps("coop")), ("mlp_partial", steps("coop") + steps("lite"))];
    needed.into_iter().find_map(|(buffer, needed)| {
        let n = resets.get(buffer).copied().unwrap_or(0);
        let words = || format!("layer {}: {needed} steps needed {buffer} zeroed, it was {n} times", l.layer);
        (n < needed).then(|| ("trace_missing_reset", Some(l.layer), words()))
    })
}

/// A buffer stays where it is: recorded steps have its address in them.
fn moved(t: &Trace, known: &mut BTreeMap<(Option<u32>, String), String>) -> Option<Wrong> {
    let of_slot =
        |name: &str| if name == "recurrent" { format!("{name} of slot {}", t.slot) } else { name.into() };
    let own = t.buffers.iter().map(|(name, at)| ((None, of_slot(name)), at));
    let of_layers =
        t.layers.iter().flat_map(|l| l.buffers.iter().map(|(name, at)| ((Some(l.layer), name.clone()), at)));
    let mut out = None;
    for (key, at) in own.chain(of_layers) {
        let before = known.entry(key.clone()).or_insert_with(|| at.clone());
        if before != at && out.is_none() {
            let words = format!("buffer {} was at {before}, is at {at}", key.1);
            out = Some(("trace_buffer_moved", key.0, words));
        }
    }
    out
}

/// Free and used entries are all there are, and a page lies at its number times its size.
fn against_pool(t: &Trace, leg: &Leg) -> Option<Wrong> {
    let wrong = |words| Some(("trace_contradicts_pool", None, words));
    let first = leg.traces.first()?;
    let slots = |t: &Trace| t.slots_free.saturating_add(t.slots_used);
    if slots(t) != slots(first) {
        return wrong(format!("{} slots free or used, {} before", slots(t), slots(first)));
    }
    let pool = leg.pool().filter(|_| leg.pools.windows(2).all(|two| two[0] == two[1]))?;
    let pages = t.pages_free.saturating_add(t.pages_used);
    let all = pool.num_blocks?.saturating_sub(pool.first_block?);
    if pages != all {
        return wrong(format!("{pages} pages free or used, the pool has {all}"));
    }
    let bytes = pool.block_bytes?;
    let at = t.kv_pages.iter().map(|page| u64::from(*page).saturating_mul(bytes));
    if t.page_offsets.iter().copied().eq(at) {
        return None;
    }
    wrong(format!("pages {:?} of {bytes} bytes at offsets {:?}", t.kv_pages, t.page_offsets))
}

/// Paths that ran, by the log, in each layer that it names.
fn logged(dispatch: &[Dispatch]) -> BTreeMap<u32, BTreeSet<&str>> {
    let mut out: BTreeMap<u32, BTreeSet<&str>> = BTreeMap::new();
    for d in dispatch.iter().filter(|d| d.is_decode_only) {
        if let (Some(layer), Some(outcome)) = (d.layer_idx, &d.outcome) {
            out.entry(layer).or_default().insert(outcome);
        }
    }
    out
}

/// The log has a line for every path that a layer took.
fn unlogged(l: &TraceLayer, logged: &BTreeMap<u32, BTreeSet<&str>>) -> Option<Wrong> {
    let outcomes = logged.get(&l.layer)?;
    let path = l.paths.keys().find(|path| !outcomes.contains(path.as_str()))?;
    let words = format!("layer {} ran on {path}, and the log has only {outcomes:?}", l.layer);
    Some(("trace_path_unlogged", Some(l.layer), words))
}
