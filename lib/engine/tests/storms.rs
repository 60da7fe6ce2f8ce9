//! Cancellations and preemptions at random moments: nobody else's bits move, and nothing is left behind.

mod common;

use common::{engine, greedy, problems, run, tiny};
use cute_engine::pool::Entries as _;
use cute_engine::{Engine, EngineConfig, Event, Output, Request, SamplingParams, backend::Cpu};
use cute_records::{FinishReason, State};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use std::collections::BTreeMap;

/// What a storm left: outputs and states, and how many blows each request took.
#[derive(Default)]
struct Storm {
    outputs: BTreeMap<u64, Output>,
    states: Vec<State>,
    cancelled: Vec<u64>,
    preempted: BTreeMap<u64, u64>,
}

fn note<'a>(
    outputs: &'a mut BTreeMap<u64, Output>,
    states: &'a mut Vec<State>,
) -> impl FnMut(Event) + use<'a> {
    |event| match event {
        Event::State(s) => states.push(s),
        Event::Finished(o) => assert!(outputs.insert(o.request.ordinal, *o).is_none(), "ended twice"),
        Event::Chunk(_) => {}
        Event::Finding(f) => panic!("{f:?}"),
        Event::Trace(_) => {}
    }
}

fn add_all(engine: &mut Engine<Cpu>, prompts: &[Vec<u32>], params: &SamplingParams) {
    for (i, prompt) in prompts.iter().enumerate() {
        let params = SamplingParams { seed: i as u64, ..params.clone() };
        let request = Request { id: i.to_string(), ordinal: i as u64, prompt: prompt.clone(), params };
        engine.add(request).unwrap();
    }
}

/// Before each step, by chance, a request is cancelled or preempted, whether it waits, runs or has ended.
fn storm(
    config: EngineConfig,
    prompts: &[Vec<u32>],
    params: &SamplingParams,
    seed: u64,
    per_mille: [u32; 2],
) -> Storm {
    let (mut engine, _) = engine(&tiny(), config);
    add_all(&mut engine, prompts, params);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut out = Storm::default();
    loop {
        let Storm { outputs, states, cancelled, preempted } = &mut out;
        let [cancel, preempt] = per_mille.map(|p| rng.next_u32() % 1000 < p);
        let dice = rng.next_u32() as usize;
        let victim = (dice % prompts.len()) as u64;
        if cancel && engine.cancel(victim, &mut note(outputs, states)).unwrap() {
            cancelled.push(victim);
        }
        let running = &engine.scheduler().running;
        let victim = running.get(dice % running.len().max(1)).map_or(victim, |s| s.request.ordinal);
        if preempt && engine.preempt(victim, &mut note(outputs, states)).unwrap() {
            *preempted.entry(victim).or_default() += 1;
        }
        if !engine.step(&mut note(outputs, states)).unwrap() {
            break;
        }
    }
    let s = engine.scheduler();
    s.slots.check().unwrap();
    s.pages.check().unwrap();
    assert_eq!((s.slots.in_use(), s.pages.in_use(), s.reserved()), (0, 0, 0));
    assert_eq!(out.outputs.len(), prompts.len(), "every request ended");
    let totals = engine.totals();
    assert_eq!(totals.cancelled, out.cancelled.len() as u64);
    assert_eq!(totals.preempted, out.preempted.values().sum::<u64>());
    let count = |op: &str| out.states.iter().filter(|s| s.op == op).count();
    assert_eq!(count("acquire"), count("release"));
    assert!(out.states.iter().all(|s| s.zero != Some(false)), "every slot was zero when it was acquired");
    out
}

fn small() -> EngineConfig {
    EngineConfig { max_num_seqs: 3, max_num_batched_tokens: 16, page_size: 16, ..EngineConfig::default() }
}

fn unfused() -> EngineConfig {
    let mut config = small();
    config.knobs.fusion = false;
    config
}

fn calm(config: EngineConfig, prompts: &[Vec<u32>], params: &SamplingParams) -> BTreeMap<u64, Output> {
    storm(config, prompts, params, 0, [0, 0]).outputs
}

#[test]
fn a_storm_of_cancellations_and_preemptions_moves_no_bit_of_the_others() {
    let prompts = problems(&tiny(), 10);
    for (config, params) in [
        (small(), greedy(24)),
        (unfused(), greedy(24)),
        (small(), SamplingParams { temperature: 0.8, ..greedy(24) }),
    ] {
        let expected = calm(config.clone(), &prompts, &params);
        let (mut whole, mut cancelled, mut preempted) = (0, 0, 0);
        for seed in 1..6 {
            let got = storm(config.clone(), &prompts, &params, seed, [40, 60]);
            for (ordinal, output) in &got.outputs {
                let calm = &expected[ordinal];
                let times = got.preempted.get(ordinal).copied().unwrap_or(0);
                assert_eq!(output.preempted, times);
                if got.cancelled.contains(ordinal) {
                    assert_eq!(output.finish_reason, FinishReason::Cancelled);
                    assert!(calm.token_ids.starts_with(&output.token_ids), "what there was is not lost");
                    assert!(output.token_ids.len() < calm.token_ids.len());
                    cancelled += 1;
                } else {
                    assert_eq!(output.finish_reason, FinishReason::Length);
                    assert_eq!(
                        output.token_ids, calm.token_ids,
                        "request {ordinal}, preempted {times} times"
                    );
                    if times == 0 {
                        assert_eq!(output.fingerprint, calm.fingerprint, "request {ordinal} was left alone");
                        whole += 1;
                    }
                    preempted += u64::from(times > 0);
                }
            }
        }
        println!("{whole} left alone, {cancelled} cancelled, {preempted} preempted and finished");
        assert!(whole >= 10 && cancelled >= 5 && preempted >= 5, "{whole}, {cancelled}, {preempted}");
    }
}

/// Preempted replies that kept every bit of their logits, and how many were preempted.
fn kept(config: EngineConfig) -> (usize, usize) {
    let (prompts, params) = (problems(&tiny(), 10), greedy(24));
    let expected = calm(config.clone(), &prompts, &params);
    let got = storm(config, &prompts, &params, 11, [0, 100]);
    let same = got.preempted.keys().filter(|o| got.outputs[o].fingerprint == expected[o].fingerprint);
    (same.count(), got.preempted.len())
}

#[test]
fn a_preempted_reply_keeps_its_bits_where_prefill_and_decode_sum_in_one_order() {
    let (same, all) = kept(unfused());
    assert!(same == all && all >= 5, "without fused paths {same} of {all} kept their bits");
    let (same, all) = kept(small());
    assert!(
        same < all && all >= 5,
        "a fused path sums in another order, yet {same} of {all} kept their bits"
    );
}

#[test]
fn a_request_cancelled_before_it_ran_has_an_output_and_no_slot() {
    let prompts = problems(&tiny(), 3);
    let (mut engine, _) = engine(&tiny(), EngineConfig { max_num_seqs: 1, ..EngineConfig::default() });
    add_all(&mut engine, &prompts, &greedy(4));
    let (mut outputs, mut states) = (BTreeMap::new(), Vec::new());
    assert!(!engine.preempt(1, &mut note(&mut outputs, &mut states)).unwrap(), "it does not run");
    assert!(engine.cancel(1, &mut note(&mut outputs, &mut states)).unwrap());
    assert!(!engine.cancel(1, &mut note(&mut outputs, &mut states)).unwrap(), "it has ended");
    assert!(!engine.cancel(7, &mut note(&mut outputs, &mut states)).unwrap(), "there is no such request");
    let o = &outputs[&1];
    assert_eq!((o.finish_reason, o.slot, o.epoch, o.pages.len()), (FinishReason::Cancelled, 0, 0, 0));
    assert_eq!((o.token_ids.len(), o.text.as_deref(), states.len()), (0, Some(""), 0));
    while engine.step(&mut note(&mut outputs, &mut states)).unwrap() {}
    assert_eq!(outputs.len(), 3);
    assert_eq!(engine.totals().admissions, 2);
}

#[test]
fn a_cancelled_request_frees_its_slot_for_the_next_at_once() {
    let prompts = problems(&tiny(), 2);
    let (mut engine, _) = engine(&tiny(), EngineConfig { max_num_seqs: 1, ..EngineConfig::default() });
    add_all(&mut engine, &prompts, &greedy(9));
    let (mut outputs, mut states) = (BTreeMap::new(), Vec::new());
    for _ in 0..4 {
        assert!(engine.step(&mut note(&mut outputs, &mut states)).unwrap());
    }
    assert!(engine.cancel(0, &mut note(&mut outputs, &mut states)).unwrap());
    assert_eq!((outputs[&0].token_ids.len(), outputs[&0].slot, outputs[&0].epoch), (4, 1, 1));
    assert_eq!((states[1].op.as_str(), states[1].free), ("release", 1));
    engine.step(&mut note(&mut outputs, &mut states)).unwrap();
    let s = states.last().unwrap();
    assert_eq!((s.op.as_str(), s.ordinal, s.slot, s.epoch, s.zero), ("acquire", 1, 1, 2, Some(true)));
    while engine.step(&mut note(&mut outputs, &mut states)).unwrap() {}
    let alone = run(&tiny(), EngineConfig::default(), &prompts[1..], &greedy(9));
    assert_eq!(outputs[&1].fingerprint, alone.outputs[0].fingerprint);
}
