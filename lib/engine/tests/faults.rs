//! Every fault where it stands: what it changes, what it leaves alone, and which of the engine's checks stops it.

mod common;

use common::{Run, eight_replies, engine, four_seats, greedy, problems, run, tiny};
use cute_engine::knobs::PathKnob;
use cute_engine::{EngineConfig, Event, Fault, Guards, Request};
use cute_records::Finding;

const GUARDS: Guards = Guards { recompute: Some(1), rows: None, slot0: true, capture: false };

/// Which of eight requests have other bits than a sound engine's.
fn hurt(fault: Fault) -> Vec<usize> {
    let (sound, broken) = (eight_replies(four_seats(None)), eight_replies(four_seats(Some(fault))));
    assert_eq!(broken.outputs.len(), 8, "{fault}: every request ends");
    let pairs = sound.fingerprints().into_iter().zip(broken.fingerprints()).enumerate();
    pairs.filter(|(_, (a, b))| a != b).map(|(i, _)| i).collect()
}

#[test]
fn each_fault_hurts_the_replies_it_says_and_no_other() {
    let recycled = vec![4, 5, 6, 7];
    let all: Vec<usize> = (0..8).collect();
    for (fault, expected) in [
        // the first four requests have slots that nobody had before
        (Fault::StaleState, recycled.clone()),
        (Fault::StaleConv, recycled.clone()),
        (Fault::GarbageState, recycled),
        // nobody is cancelled or preempted here
        (Fault::StaleResume, vec![]),
        (Fault::LostRelease, vec![]),
        // nothing is right but the tokens before the second launch
        (Fault::SkipWoReset, all.clone()),
        (Fault::StaleBarrier, all.clone()),
        (Fault::StateBf16, all),
    ] {
        assert_eq!(hurt(fault), expected, "{fault}");
    }
    for fault in [
        Fault::DoubleFree,
        Fault::LateStep,
        Fault::PadRowSlot0,
        Fault::PadRowLive,
        Fault::CaptureLiveSlot,
        Fault::BakedSlot,
        Fault::ChunkGrid,
        Fault::NanToken,
    ] {
        let hurt = hurt(fault);
        assert!(!hurt.is_empty() && hurt.len() <= 8, "{fault}: {hurt:?}");
    }
}

#[test]
fn faults_of_company_leave_a_lone_request_alone() {
    let checkpoint = tiny();
    let lone = |fault| {
        let prompts = problems(&checkpoint, 1);
        run(&checkpoint, four_seats(fault), &prompts, &greedy(12)).fingerprints()
    };
    for fault in
        [Fault::DoubleFree, Fault::LateStep, Fault::PadRowLive, Fault::ChunkGrid, Fault::SharedScratch]
    {
        assert_eq!(lone(Some(fault)), lone(None), "{fault}");
    }
}

#[test]
fn the_fourth_sequence_of_a_step_is_one_too_many_for_shared_scratch() {
    let checkpoint = tiny();
    let with = |seats, fault| {
        let config = EngineConfig { max_num_seqs: seats, max_num_batched_tokens: 512, ..four_seats(fault) };
        run(&checkpoint, config, &problems(&checkpoint, 4), &greedy(12)).fingerprints()
    };
    assert_eq!(with(3, Some(Fault::SharedScratch)), with(3, None), "the third row is shared with nobody");
    assert_ne!(with(4, Some(Fault::SharedScratch)), with(4, None));
}

#[test]
fn a_silent_fallback_has_the_bits_of_lite_and_the_log_of_coop() {
    let checkpoint = tiny();
    let told = |path, fault| {
        let mut config = four_seats(fault);
        config.knobs.path = path;
        run(&checkpoint, config, &problems(&checkpoint, 2), &greedy(6))
    };
    let silent = told(PathKnob::Coop, Some(Fault::SilentFallback));
    assert!(silent.log.iter().all(|l| l.contains("path=coop outcome=coop")), "{:?}", silent.log);
    assert_eq!(silent.fingerprints(), told(PathKnob::Lite, None).fingerprints());
    assert_ne!(silent.fingerprints(), told(PathKnob::Coop, None).fingerprints());
}

/// The error that a guarded engine ends with, its finding, and the requests that had ended by then.
fn stopped(fault: Fault, cancel: Option<u64>) -> (String, Option<Finding>, usize) {
    let checkpoint = tiny();
    let (mut engine, _) = engine(&checkpoint, EngineConfig { unguarded: false, ..four_seats(Some(fault)) });
    for (i, prompt) in problems(&checkpoint, 8).into_iter().enumerate() {
        let request = Request { id: i.to_string(), ordinal: i as u64, prompt, params: greedy(12) };
        engine.add(request).unwrap();
    }
    let (mut ended, mut finding) = (0, None);
    let mut emit = |e| match e {
        Event::Finished(_) => ended += 1,
        Event::Finding(f) => assert_eq!(finding.replace(f), None, "one finding"),
        Event::State(_) | Event::Chunk(_) | Event::Trace(_) => {}
    };
    for step in 0..500 {
        if step == 4
            && let Some(ordinal) = cancel
        {
            assert!(engine.cancel(ordinal, &mut emit).unwrap());
        }
        match engine.step(&mut emit) {
            Ok(true) => {}
            Ok(false) => return ("nothing".to_owned(), finding, ended),
            Err(e) => return (e.to_string(), finding, ended),
        }
    }
    panic!("{fault}: no end after 500 steps");
}

#[test]
fn the_engines_own_checks_stop_what_breaks_ownership_or_a_counter() {
    for (fault, cancel, words) in [
        (Fault::DoubleFree, None, "slot 1: released by request 0, owned by nobody"),
        (Fault::LateStep, None, "slot 1: used by request 0 in epoch 1, but it is Some((Some(4), 2))"),
        (Fault::LostRelease, Some(1), "slots: 4 are owned, and the 3 sequences that run hold 3 of them"),
        (
            Fault::SkipWoReset,
            None,
            "1 cooperative launches are said to have run, its W_O slots were reset 0 times",
        ),
        (
            Fault::SilentFallback,
            None,
            "1 cooperative launches are said to have run, its W_O slots were reset 0 times",
        ),
        (Fault::StaleBarrier, None, "it was not reset"),
    ] {
        let (error, finding, ended) = stopped(fault, cancel);
        assert!(error.contains(words), "{fault}: {error}");
        assert!(ended <= 2, "{fault}: {ended} requests had ended");
        let finding = finding.unwrap_or_else(|| panic!("{fault}: no finding"));
        assert_eq!(finding.message, error);
        let counter = words.contains("reset");
        assert_eq!(finding.check, if counter { "counter_broken" } else { "ownership_broken" }, "{fault}");
        assert_eq!(finding.layer, counter.then_some(3), "{fault}: the first layer with a counter");
    }
    assert_eq!(stopped(Fault::LostRelease, None), ("nothing".to_owned(), None, 8), "nobody is cancelled");
    let (_, finding, _) = stopped(Fault::LateStep, None);
    let Finding { ordinal, data, .. } = finding.unwrap();
    assert_eq!(ordinal, Some(0));
    for (name, value) in [("slot", 1), ("expected_epoch", 1), ("epoch", 2), ("owner", 4)] {
        assert_eq!(data[name], value, "{name}");
    }
    assert_eq!(
        data["layers"],
        serde_json::json!([0, 1, 2, 4, 5, 6, 8, 9, 10]),
        "where that slot's state lies"
    );
}

/// A guarded engine without fused paths that computes every sequence that ends once more.
fn recomputed(fault: Option<Fault>) -> Run {
    let mut config = EngineConfig { unguarded: false, guards: GUARDS, ..four_seats(fault) };
    config.knobs.fusion = false;
    eight_replies(config)
}

#[test]
fn a_sequence_computed_again_alone_leaves_the_same_state_unless_something_is_wrong() {
    assert_eq!(recomputed(None).findings, []);
    for fault in [
        Fault::StaleState,
        Fault::PadRowLive,
        Fault::CaptureLiveSlot,
        Fault::BakedSlot,
        Fault::ChunkGrid,
        Fault::StateBf16,
        Fault::NanToken,
    ] {
        let run = recomputed(Some(fault));
        let first = run.findings.iter().find(|f| f.check == "state_not_reproduced");
        let first = first.unwrap_or_else(|| panic!("{fault}: {:?}", run.findings));
        // a warm-up writes to the page that is nobody's, too
        let others = run.findings.iter().filter(|f| f.check != first.check).count();
        assert_eq!(others, usize::from(fault == Fault::CaptureLiveSlot), "{:?}", run.findings);
        let slot = run.states.iter().find(|s| Some(s.ordinal) == first.ordinal).map(|s| s.slot);
        assert_eq!(first.data["slot"], serde_json::json!(slot), "{fault}: {first:?}");
    }
    let padded = recomputed(Some(Fault::PadRowSlot0)).findings;
    let checks: Vec<&str> = padded.iter().map(|f| f.check.as_str()).collect();
    assert_eq!(checks, ["reserved_slot_written", "reserved_page_written"]);
    let refused = cute_engine::Engine::new(
        cute_engine::backend::Cpu::default(),
        &tiny(),
        None,
        EngineConfig { guards: GUARDS, ..EngineConfig::default() },
        Box::new(|_| ()),
    );
    let message = refused.err().map(|e| e.to_string()).unwrap_or_default();
    assert!(message.starts_with("--guard recompute needs --phase-e-fusion 0"), "{message}");
}

/// Names of what is found, and the slots or pages they name.
fn rows_found(fault: Option<Fault>) -> Vec<serde_json::Value> {
    let guards = Guards { rows: Some(1), ..Guards::default() };
    let run = eight_replies(EngineConfig { guards, ..four_seats(fault) });
    assert!(run.findings.iter().all(|f| f.check == "row_outside_step_written"), "{:?}", run.findings);
    run.findings.into_iter().map(|f| f.data.get("slot").or(f.data.get("page")).cloned().unwrap()).collect()
}

#[test]
fn a_step_that_writes_to_a_slot_or_page_of_none_of_its_sequences_is_found() {
    assert_eq!(rows_found(None), Vec::<serde_json::Value>::new());
    assert!(rows_found(Some(Fault::PadRowSlot0)).contains(&0.into()));
    for fault in [Fault::CaptureLiveSlot, Fault::BakedSlot] {
        assert_ne!(rows_found(Some(fault)), Vec::<serde_json::Value>::new(), "{fault}");
    }
}

#[test]
fn poison_changes_nothing_but_for_who_reads_what_was_never_written_to_them() {
    let poisoned = |fault| eight_replies(EngineConfig { poison: true, ..four_seats(fault) });
    assert_eq!(poisoned(None).fingerprints(), eight_replies(four_seats(None)).fingerprints());
    let stale = poisoned(Some(Fault::StaleState));
    let wrong: Vec<bool> = stale.outputs.iter().map(|o| o.error.is_some()).collect();
    assert_eq!(wrong, [true; 8], "even a slot that was never used holds NaN");
}

#[test]
fn names_are_found_again_and_each_fault_has_a_story_and_a_thread() {
    for e in Fault::ALL {
        assert_eq!(e.name.parse(), Ok(e.fault));
        let (repository, number) = e.source.split_once('#').unwrap();
        assert!(repository.split('/').count() == 2 && number.parse::<u64>().is_ok(), "{}", e.source);
        assert!(!e.story.is_empty() && e.fault.to_string() == e.name);
    }
    let names: std::collections::BTreeSet<_> = Fault::ALL.iter().map(|e| e.name).collect();
    assert_eq!(names.len(), Fault::ALL.len());
}
