//! A sequence's bits depend on its prompt and path alone: not on slot, neighbours, chunking or history.

mod common;

use common::{engine, greedy, problems, root, run, tiny};
use cute_checkpoint::Checkpoint;
use cute_engine::knobs::PathKnob;
use cute_engine::{EngineConfig, Fault, Knobs, Request, SamplingParams};
use cute_records::FinishReason;

fn alone(config: &EngineConfig, prompts: &[Vec<u32>], params: &SamplingParams) -> Vec<String> {
    let checkpoint = tiny();
    let one = |p: &Vec<u32>| {
        run(&checkpoint, config.clone(), std::slice::from_ref(p), params).fingerprints().remove(0)
    };
    prompts.iter().map(one).collect()
}

fn with_path(path: PathKnob, wo_split: usize) -> EngineConfig {
    EngineConfig { knobs: Knobs { path, wo_split, ..Knobs::default() }, ..EngineConfig::default() }
}

#[test]
fn neighbours_slots_and_chunks_do_not_change_a_bit() {
    let checkpoint = tiny();
    let prompts = problems(&checkpoint, 12);
    for base in [with_path(PathKnob::Auto, 4), with_path(PathKnob::Lite, 1), with_path(PathKnob::Coop, 8)] {
        let expected = alone(&base, &prompts, &greedy(20));
        for (max_num_seqs, max_num_batched_tokens) in [(1, 256), (3, 7), (8, 64), (12, 1), (5, 1000)] {
            let config = EngineConfig { max_num_seqs, max_num_batched_tokens, ..base.clone() };
            let together = run(&checkpoint, config, &prompts, &greedy(20)).fingerprints();
            assert_eq!(
                together, expected,
                "{max_num_seqs} sequences, {max_num_batched_tokens} tokens a step"
            );
        }
        let mut reversed = prompts.clone();
        reversed.reverse();
        let mut backwards = run(&checkpoint, base.clone(), &reversed, &greedy(20)).fingerprints();
        backwards.reverse();
        assert_eq!(backwards, expected, "in reverse order");
    }
}

#[test]
fn page_size_does_not_change_a_bit() {
    let checkpoint = tiny();
    let prompts = problems(&checkpoint, 3);
    let expected = alone(&EngineConfig::default(), &prompts, &greedy(20));
    for page_size in [1, 7, 64, 500] {
        let config = EngineConfig { page_size, ..EngineConfig::default() };
        assert_eq!(
            run(&checkpoint, config, &prompts, &greedy(20)).fingerprints(),
            expected,
            "pages of {page_size}"
        );
    }
}

#[test]
fn paths_agree_within_a_tolerance_and_each_repeats_its_bits() {
    // f32 sums in another order: logits of size 10 move by less than 1e-3
    let checkpoint = tiny();
    let prompts = problems(&checkpoint, 4);
    let params = SamplingParams { logprobs: 5, ..greedy(40) };
    let mut paged_knobs = EngineConfig::default();
    paged_knobs.knobs.fusion = false;
    let paged = run(&checkpoint, paged_knobs.clone(), &prompts, &params);
    let mut configs = vec![paged_knobs, with_path(PathKnob::Lite, 1)];
    configs.extend([1, 2, 4, 8].map(|w| with_path(PathKnob::Coop, w)));
    let mut distinct = Vec::new();
    for config in configs {
        let first = run(&checkpoint, config.clone(), &prompts, &params);
        let again = run(&checkpoint, config.clone(), &prompts, &params);
        assert_eq!(first.fingerprints(), again.fingerprints(), "{:?}", config.knobs);
        distinct.push(first.fingerprints());
        for (a, b) in paged.outputs.iter().zip(&first.outputs) {
            assert_eq!(a.token_ids, b.token_ids, "{:?}", config.knobs);
            let pairs = a.logprobs.iter().flatten().zip(b.logprobs.iter().flatten());
            assert!(
                pairs.into_iter().all(|(x, y)| (x.logprob.0 - y.logprob.0).abs() < 1e-3),
                "{:?}",
                config.knobs
            );
        }
    }
    distinct.sort();
    distinct.dedup();
    assert!(
        distinct.len() >= 5,
        "the paths sum in different orders, so their bits differ: {}",
        distinct.len()
    );
}

#[test]
fn a_then_b_then_a_gives_the_same_a() {
    let checkpoint = tiny();
    let p = problems(&checkpoint, 2);
    let config = EngineConfig { max_num_seqs: 1, ..EngineConfig::default() };
    let f = run(&checkpoint, config, &[p[0].clone(), p[1].clone(), p[0].clone()], &greedy(30)).fingerprints();
    assert_eq!(f[0], f[2]);
    assert_ne!(f[0], f[1]);
}

#[test]
fn stale_state_changes_the_fingerprint_of_the_first_recycled_request() {
    let checkpoint = tiny();
    let p = problems(&checkpoint, 2);
    let config = EngineConfig { max_num_seqs: 1, fault: Some(Fault::StaleState), ..EngineConfig::default() };
    let run = run(&checkpoint, config, &[p[0].clone(), p[1].clone(), p[0].clone()], &greedy(30));
    let f = run.fingerprints();
    assert_ne!(f[0], f[2]);
    let acquired: Vec<_> =
        run.states.iter().filter(|s| s.op == "acquire").map(|s| (s.ordinal, s.zero)).collect();
    assert_eq!(acquired, [(0, Some(true)), (1, Some(false)), (2, Some(false))]);
}

#[test]
fn a_healthy_engine_zeroes_every_slot_on_acquire() {
    let checkpoint = tiny();
    let run = run(
        &checkpoint,
        EngineConfig { max_num_seqs: 3, ..EngineConfig::default() },
        &problems(&checkpoint, 9),
        &greedy(5),
    );
    let acquired: Vec<_> = run.states.iter().filter(|s| s.op == "acquire").collect();
    assert_eq!(acquired.len(), 9);
    assert!(acquired.iter().all(|s| s.zero == Some(true)));
    assert!(acquired.iter().any(|s| s.epoch > 1), "slots were recycled");
}

#[test]
fn the_narrow_kv_offset_collapses_to_token_0_and_recovers_at_the_wrap() {
    let checkpoint = tiny();
    let prompts = vec![problems(&checkpoint, 1).remove(0); 25];
    // 2 pages a request, 40 pages: pages beyond the sign bit of the offset are bad until the list wraps
    let config = EngineConfig {
        max_num_seqs: 1,
        num_kv_pages: Some(40),
        fault: Some(Fault::KvOffset32),
        ..EngineConfig::default()
    };
    let run = run(&checkpoint, config, &prompts, &greedy(40));
    let bad: Vec<bool> = run.outputs.iter().map(|o| o.token_ids[2..].iter().all(|t| *t == 0)).collect();
    let boundary = 1usize << (40 * 3 * 65536 - 1usize).ilog2();
    let exposed = |o: &cute_engine::Output| o.pages.iter().any(|p| (*p as usize + 1) * 3 * 65536 > boundary);
    assert_eq!(bad, run.outputs.iter().map(exposed).collect::<Vec<_>>());
    assert!(bad.contains(&true) && !bad[0] && !bad[24], "{bad:?}");
    assert!(
        run.outputs.iter().zip(&bad).all(|(o, b)| !b || o.token_ids[0] == run.outputs[0].token_ids[0]),
        "the first token comes from prefill"
    );
}

#[test]
fn logits_that_are_not_finite_end_the_request_without_a_token() {
    let source = root().join("tests/golden/odd-sizes");
    let dir = std::env::temp_dir().join(format!("cute-nan-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::copy(source.join("config.json"), dir.join("config.json")).unwrap();
    let mut bytes = std::fs::read(source.join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let norm = file.tensor("model.norm.weight").unwrap().data();
    let at = norm.as_ptr() as usize - bytes.as_ptr() as usize;
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(dir.join("model.safetensors"), bytes).unwrap();
    let checkpoint = Checkpoint::open(&dir).unwrap();

    let config = EngineConfig { max_model_len: 64, ..EngineConfig::default() };
    let sound = &run(&checkpoint, config.clone(), &[vec![1, 2]], &greedy(3)).outputs[0];
    assert_eq!((sound.finish_reason, sound.token_ids.len()), (FinishReason::Error, 0));
    assert!(sound.error.as_ref().unwrap().contains("position 1 are not finite"), "{:?}", sound.error);
    let laundering = EngineConfig { fault: Some(Fault::KvOffset32), ..config };
    let fault = &run(&checkpoint, laundering, &[vec![1, 2]], &greedy(3)).outputs[0];
    assert_eq!((fault.finish_reason, &fault.token_ids[..]), (FinishReason::Length, &[0, 0, 0][..]));
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_launch_that_fails_is_logged_as_what_ran_or_raises() {
    let checkpoint = tiny();
    let prompts = problems(&checkpoint, 1);
    let config = EngineConfig { fault: Some(Fault::CoopLaunchFails), ..EngineConfig::default() };
    let fell = run(&checkpoint, config.clone(), &prompts, &greedy(5));
    assert!(fell.log.iter().any(|l| l.contains("path=coop outcome=lite")), "{:?}", fell.log);
    assert!(fell.log.iter().any(|l| l.contains("falling back to beta-lite")), "{:?}", fell.log);
    assert_eq!(
        fell.fingerprints(),
        run(&checkpoint, with_path(PathKnob::Lite, 1), &prompts, &greedy(5)).fingerprints()
    );
    let mut raise = config;
    raise.knobs.fallback_raise = true;
    let (mut engine, _) = engine(&checkpoint, raise);
    engine
        .add(Request { id: "a".into(), ordinal: 0, prompt: prompts[0].clone(), params: greedy(5) })
        .unwrap();
    let result = (0..9).try_for_each(|_| engine.step(&mut |_| ()).map(|_| ()));
    assert!(result.unwrap_err().to_string().contains("cooperative launch failed"));
}

#[test]
fn a_request_that_cannot_fit_is_refused_alone() {
    let checkpoint = tiny();
    let config = EngineConfig { num_kv_pages: Some(3), max_model_len: 512, ..EngineConfig::default() };
    let (mut engine, _) = engine(&checkpoint, config);
    let mut add = |id: &str, prompt: Vec<u32>, n| {
        engine
            .add(Request { id: id.into(), ordinal: 0, prompt, params: greedy(n) })
            .map_err(|e| e.to_string())
    };
    assert_eq!(
        add("long", vec![1; 100], 100).unwrap_err(),
        "request long: it needs up to 4 KV pages, the pool has 2"
    );
    assert!(add("longer", vec![1; 600], 1).unwrap_err().contains("600 prompt tokens"));
    assert!(add("none", vec![], 1).unwrap_err().contains("no tokens"));
    assert!(add("far", vec![1, 99_999], 1).unwrap_err().contains("outside the vocabulary of 704"));
    assert!(add("zero", vec![1], 0).unwrap_err().contains("max_tokens is 0"));
    add("fits", vec![1; 100], 20).unwrap();
    let mut done = 0;
    while engine.step(&mut |e| done += usize::from(matches!(e, cute_engine::Event::Finished(_)))).unwrap() {}
    assert_eq!(done, 1);
}

#[test]
fn stop_strings_end_the_reply_across_token_boundaries() {
    let checkpoint = tiny();
    let prompts = problems(&checkpoint, 1);
    let whole = run(&checkpoint, EngineConfig::default(), &prompts, &SamplingParams::default());
    let text = whole.outputs[0].text.clone().unwrap();
    let at = text.find("\n####").unwrap();
    let stop = text[at - 3..at + 3].to_owned();
    let params = SamplingParams { stop: vec![stop.clone()], ..SamplingParams::default() };
    let stopped = &run(&checkpoint, EngineConfig::default(), &prompts, &params).outputs[0];
    assert_eq!(stopped.text.as_deref(), Some(&text[..text.find(&stop).unwrap()]));
    assert_eq!(stopped.finish_reason, FinishReason::Stop);
    assert!(stopped.token_ids.len() < whole.outputs[0].token_ids.len());
}
