//! A run that goes on from what is known of it cannot be told from one that was never interrupted.

mod common;

use common::{engine, problems, tiny};
use cute_engine::backend::Cpu;
use cute_engine::knobs::PathKnob;
use cute_engine::{Engine, EngineConfig, Event, Fault, Known, Output, Request, SamplingParams};
use cute_records::{Finding, FinishReason, State};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// Small pools and few rows, so that requests wait, pages go round, prompts come in chunks and paths change with the
/// number of sequences: two fit a cooperative launch of 128 blocks, three do not.
fn config() -> EngineConfig {
    let mut config = EngineConfig {
        max_num_seqs: 3,
        max_model_len: 256,
        max_num_batched_tokens: 50,
        page_size: 16,
        num_kv_pages: Some(22),
        ..EngineConfig::default()
    };
    (config.knobs.path, config.knobs.resident_cap) = (PathKnob::Auto, Some(128));
    config
}

fn started() -> (Engine<Cpu>, Arc<Mutex<Vec<String>>>) {
    started_with(config())
}

fn started_with(config: EngineConfig) -> (Engine<Cpu>, Arc<Mutex<Vec<String>>>) {
    let checkpoint = tiny();
    let (mut engine, log) = engine(&checkpoint, config);
    for (i, prompt) in problems(&checkpoint, 6).into_iter().enumerate() {
        let sampled = if i % 2 == 0 { 0.0 } else { 1.2 };
        let params = SamplingParams {
            max_tokens: 3 + 4 * (i * 5 % 6),
            temperature: sampled,
            seed: i as u64,
            ignore_eos: true,
            ..SamplingParams::default()
        };
        engine.add(Request { id: i.to_string(), ordinal: i as u64, prompt, params }).unwrap();
    }
    (engine, log)
}

/// One step's events.
type Step = (Vec<State>, Vec<Output>, Vec<Finding>);

fn take(engine: &mut Engine<Cpu>, known: Option<&BTreeMap<u64, Known>>) -> Option<Step> {
    let (mut states, mut outputs, mut findings) = (Vec::new(), Vec::new(), Vec::new());
    let mut emit = |event| match event {
        Event::State(s) => states.push(s),
        Event::Finished(o) => outputs.push(*o),
        Event::Finding(f) => findings.push(f),
        Event::Chunk(_) | Event::Trace(_) => {}
    };
    let worked = match known {
        Some(known) => engine.replay(known, &mut emit),
        None => engine.step(&mut emit),
    };
    worked.unwrap().then_some((states, outputs, findings))
}

fn place(o: &Output) -> (u64, usize, u32, u64, Vec<u32>) {
    (o.request.ordinal, o.token_ids.len(), o.slot, o.epoch, o.pages.clone())
}

fn counters(engine: &Engine<Cpu>) -> Vec<u64> {
    let (t, s) = (engine.totals(), engine.scheduler());
    let steps = [t.steps, t.decode_steps, t.prefill_tokens, t.decode_tokens, t.admissions, t.recycles];
    let pools = [s.slots.acquired, s.slots.released, s.pages.acquired, s.pages.released];
    [&steps[..], &pools].concat()
}

#[test]
fn a_run_goes_on_from_every_step_in_which_a_reply_ended() {
    let (mut whole, log) = started();
    let steps: Vec<Step> = std::iter::from_fn(|| take(&mut whole, None)).collect();
    let ends: Vec<usize> = (0..steps.len()).filter(|i| !steps[*i].1.is_empty()).collect();
    assert!(ends.len() >= 5, "replies end one by one: {ends:?}");
    for path in ["path=coop", "path=lite"] {
        assert!(log.lock().unwrap().iter().any(|line| line.contains(path)), "{path}");
    }
    for last in ends {
        let outputs = steps[..=last].iter().flat_map(|(_, outputs, _)| outputs);
        let known: BTreeMap<u64, Known> = outputs
            .map(|o| {
                let known = Known {
                    tokens: o.token_ids.len(),
                    finish_reason: o.finish_reason,
                    token_ids: Vec::new(),
                };
                (o.request.ordinal, known)
            })
            .collect();
        let mut again = started().0;
        for (i, (states, outputs, findings)) in steps.iter().enumerate() {
            let (s, o, f) = take(&mut again, (i <= last).then_some(&known)).unwrap();
            let event = |s: &State| (s.op.clone(), s.ordinal, s.slot, s.epoch, s.free);
            assert_eq!(
                s.iter().map(event).collect::<Vec<_>>(),
                states.iter().map(event).collect::<Vec<_>>(),
                "step {i}, known up to {last}"
            );
            for (a, b) in o.iter().zip(outputs) {
                assert_eq!(place(a), place(b), "step {i}, known up to {last}");
                if i > last {
                    assert_eq!((&a.fingerprint, &a.token_ids), (&b.fingerprint, &b.token_ids));
                }
            }
            assert_eq!((o.len(), &f), (outputs.len(), findings));
        }
        assert!(take(&mut again, None).is_none());
        assert_eq!(counters(&again), counters(&whole), "known up to {last}");
    }
}

#[test]
fn a_reply_that_ended_in_an_error_ends_where_a_token_would_have_been() {
    let known: BTreeMap<u64, Known> = (0..6)
        .map(|i| (i, Known { tokens: 2, finish_reason: FinishReason::Error, token_ids: Vec::new() }))
        .collect();
    let mut engine = started().0;
    let outputs: Vec<Output> =
        std::iter::from_fn(|| take(&mut engine, Some(&known))).flat_map(|(_, outputs, _)| outputs).collect();
    assert_eq!(outputs.len(), 6);
    assert!(outputs.iter().all(|o| o.token_ids.len() == 2 && o.finish_reason == FinishReason::Error));
    // a third logit row was wanted of each, and there was no fourth: two decode steps a sequence
    assert_eq!(engine.totals().decode_tokens, 12);
}

#[test]
fn a_reply_without_finite_logits_has_its_finding_in_a_resumed_run_too() {
    let broken = || EngineConfig { fault: Some(Fault::StaleState), poison: true, ..config() };
    let mut whole = started_with(broken()).0;
    let steps: Vec<Step> = std::iter::from_fn(|| take(&mut whole, None)).collect();
    let known: BTreeMap<u64, Known> = steps
        .iter()
        .flat_map(|(_, outputs, _)| outputs)
        .map(|o| {
            (
                o.request.ordinal,
                Known { tokens: o.token_ids.len(), finish_reason: o.finish_reason, token_ids: Vec::new() },
            )
        })
        .collect();
    let mut again = started_with(broken()).0;
    let mut found = 0;
    for (.., findings) in &steps {
        assert_eq!(&take(&mut again, Some(&known)).unwrap().2, findings);
        found += findings.len();
    }
    assert_eq!(found, 6, "every slot holds NaN, and every reply ends in an error");
}
