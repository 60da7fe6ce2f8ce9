//! What goes out: completions, timings, and a line for people.

use crate::args::Args;
use cute_cli::Exit;
use cute_engine::backend::{REGIONS, Regions};
use cute_engine::engine::Totals;
use cute_engine::{Fault, Output, SamplingParams};
use cute_records::digest::{sha256, sha256_ids};
use cute_records::{Completion, FinishReason, Num, Timing, answer};
use serde_json::json;
use std::io::Write;

/// The record of a reply; `base` says what is known of its prompt.
pub fn completion(base: &Completion, reply: Output, args: &Args) -> Completion {
    let cut_off = reply.finish_reason == FinishReason::Length;
    let whole = !matches!(reply.finish_reason, FinishReason::Error | FinishReason::Cancelled);
    let graded = base.gold.is_some() && whole;
    let ran = reply.epoch != 0;
    let extracted = reply.text.as_deref().filter(|_| graded).and_then(|t| answer::extract(t, cut_off));
    Completion {
        completion_tokens: Some(reply.token_ids.len() as u64),
        finish_reason: Some(reply.finish_reason),
        stop_reason: reply.stop_reason,
        token_sha256: Some(sha256_ids(&reply.token_ids)),
        fingerprint: Some(reply.fingerprint),
        correct: graded.then(|| extracted.is_some() && extracted == base.gold),
        extracted,
        text: reply.text,
        wall_ms: Some(millis(reply.wall)),
        decode_ms: Some(millis(reply.decode)),
        slot: ran.then_some(reply.slot),
        epoch: ran.then_some(reply.epoch),
        recycle: ran.then(|| reply.epoch.saturating_sub(1)),
        preempted: (reply.preempted > 0).then_some(reply.preempted),
        kv_pages: Some(reply.pages),
        token_ids: args.token_ids.then_some(reply.token_ids),
        logprobs: (args.logprobs > 0).then_some(reply.logprobs),
        error: reply.error,
        ..base.clone()
    }
}

/// A digest of everything that may change a reply but the prompt. A greedy reply does not depend on its seed.
pub fn sampling_sha256(p: &SamplingParams) -> String {
    let seed = if p.temperature == 0.0 { 0 } else { p.seed };
    let cuts = (p.max_tokens, &p.stop, p.ignore_eos);
    let mut all = vec![json!([p.temperature, p.top_k, p.top_p, p.min_p, p.repetition_penalty, seed, cuts])];
    // on its own, so that digests from before it was known stay what they were
    all.extend(p.include_stop_str_in_output.then(|| json!("include_stop_str_in_output")));
    sha256(all.iter().map(serde_json::Value::to_string).collect::<String>().as_bytes())
}

/// The record of a request that was never run.
pub fn refused(base: &Completion, error: &anyhow::Error) -> Completion {
    Completion { finish_reason: Some(FinishReason::Error), error: Some(format!("{error:#}")), ..base.clone() }
}

/// What took how long. `loaded` bytes were read for the weights, `weight_bytes` are those of a decode step, where every step reads the same.
pub fn timings(t: &Totals, loaded: u64, weight_bytes: Option<u64>) -> Vec<Timing> {
    let timing = |name: &str, elapsed, count, tokens, bytes| Timing {
        name: name.into(),
        ms: millis(elapsed),
        count,
        tokens,
        bytes,
        ..Timing::default()
    };
    let decode_bytes = weight_bytes.map(|bytes| t.decode_steps * bytes);
    let mut decode = timing("decode", t.decode, t.decode_steps, Some(t.decode_tokens), decode_bytes);
    let rate = |bytes| ("weight_gb_per_second".to_owned(), Num(per_second(bytes, t.decode) / 1e9));
    let tokens = ("tokens_per_second".to_owned(), Num(per_second(t.decode_tokens, t.decode)));
    decode.figures = [tokens].into_iter().chain(decode_bytes.map(rate)).collect();
    let mut prefill = timing("prefill", t.prefill, t.steps - t.decode_steps, Some(t.prefill_tokens), None);
    prefill.figures = [("tokens_per_second".to_owned(), Num(per_second(t.prefill_tokens, t.prefill)))].into();
    let mut load = timing("load", t.load, 1, None, Some(loaded));
    load.figures = [("gb_per_second".to_owned(), Num(per_second(loaded, t.load) / 1e9))].into();
    vec![load, prefill, decode, timing("zero_check", t.zero_check, t.admissions, None, None)]
}

/// What the phases of a layer's cooperative launches took.
pub fn regions(layer: usize, r: &Regions) -> impl Iterator<Item = Timing> {
    let times = r.spent.into_iter().zip(r.busy);
    REGIONS.iter().zip(times).map(move |(name, (spent, busy))| Timing {
        name: format!("region_{name}"),
        layer: u32::try_from(layer).ok(),
        ms: millis(spent),
        count: r.launches,
        figures: (!spent.is_zero())
            .then(|| ("coverage".to_owned(), Num(busy.as_secs_f64() / spent.as_secs_f64())))
            .into_iter()
            .collect(),
        ..Timing::default()
    })
}

/// One line for people: every rate with what it is a rate of.
pub fn summary(requests: u64, errors: u64, t: &Totals, weight_bytes: Option<u64>) -> String {
    let weights = weight_bytes.map_or(String::new(), |bytes| {
        format!(", weights at {:.1} GB/s", per_second(t.decode_steps * bytes, t.decode) / 1e9)
    });
    format!(
        "cute-generate: {requests} requests, {errors} errors; prefill {} tokens at {:.0} tok/s; decode {} tokens at {:.0} tok/s \
         ({:.1} a step{weights}); {} slots recycled",
        t.prefill_tokens,
        per_second(t.prefill_tokens, t.prefill),
        t.decode_tokens,
        per_second(t.decode_tokens, t.decode),
        t.decode_tokens as f64 / t.decode_steps.max(1) as f64,
        t.recycles,
    )
}

/// Prints the faults: a name, a sentence and a public thread each.
pub fn list_faults() -> anyhow::Result<Exit> {
    let mut out = std::io::stdout().lock();
    for e in Fault::ALL {
        writeln!(out, "{:18} {} [{}]", e.name, e.story, e.source)?;
    }
    Ok(Exit::Pass)
}

fn millis(d: std::time::Duration) -> f64 {
    d.as_secs_f64() * 1e3
}

fn per_second(n: u64, d: std::time::Duration) -> f64 {
    if d.is_zero() { 0.0 } else { n as f64 / d.as_secs_f64() }
}
