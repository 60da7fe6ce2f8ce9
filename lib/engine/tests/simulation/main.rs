//! The scheduler and its pools, simulated: no device, no clock, no floats, every life made of a seed.
//!
//! A million schedules, a schedule being a call of `schedule()` that made a batch, are led through arrivals, chunked
//! prefill, cancellations, preemptions and pools too small, and after each all invariants of ownership are
//! checked. A violation is printed with its seed and the smallest plan found that still shows it. That the
//! simulator sees what it is for is shown in [`broken`].

mod books;
mod broken;
mod plan;
mod subject;
mod world;

use plan::{Event, Plan, What};
use proptest::prelude::*;
use std::panic::{AssertUnwindSafe, catch_unwind};
use subject::{Subject, Tally, sound};
use world::live;

/// A life, panics caught.
fn trial<S: Subject>(plan: &Plan, make: impl Fn(&Plan) -> S) -> Result<Tally, String> {
    catch_unwind(AssertUnwindSafe(|| live(make(plan), plan))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        Err(format!("panicked: {}", text.unwrap_or_default()))
    })
}

/// The life of a seed. The error names the seed and holds the shrunk plan.
fn seed<S: Subject>(seed: u64, make: impl Fn(&Plan) -> S) -> Result<Tally, (Plan, String)> {
    let plan = Plan::random(seed);
    let Err(first) = trial(&plan, &make) else { return trial(&plan, &make).map_err(|e| (plan, e)) };
    let small = plan.shrink(|p| trial(p, &make).is_err());
    let last = trial(&small, &make).unwrap_err();
    Err((small.clone(), format!("seed {seed}: {first}\nthe smallest plan that fails: {last}\n{small}")))
}

/// Seeds from `first` on until so many schedules were made.
fn simulate(first: u64, schedules: u64) -> (u64, Tally) {
    let (mut at, mut tally) = (first, Tally::default());
    while tally.schedules < schedules {
        tally += seed(at, sound).unwrap_or_else(|(_, e)| panic!("{e}"));
        at += 1;
    }
    (at - first, tally)
}

#[test]
fn a_million_schedules_keep_every_invariant() {
    let (seeds, t) = simulate(0, 1_000_000);
    println!("{seeds} seeds, {t:?}");
    // a million quiet schedules would prove little
    for (what, count, least) in [
        ("finished", t.finished, 50_000),
        ("refused", t.refused, 5_000),
        ("cancelled while they waited", t.cancelled_waiting, 5_000),
        ("cancelled while they ran", t.cancelled_running, 5_000),
        ("preempted in prefill", t.preempted_in_prefill, 1_000),
        ("preempted in decode", t.preempted_in_decode, 5_000),
        ("recycled slots", t.recycled, 50_000),
        ("cut prompts", t.chunks, 10_000),
        ("short of pages", t.short_of_pages, 10_000),
        ("short of slots", t.short_of_slots, 10_000),
    ] {
        assert!(count >= least, "{what}: {count}, expected at least {least}");
    }
}

#[test]
#[ignore = "minutes; for releases"]
fn ten_million_other_schedules_keep_every_invariant() {
    let (seeds, tally) = simulate(1 << 32, 10_000_000);
    println!("{seeds} seeds, {tally:?}");
}

#[test]
fn the_same_seed_gives_the_same_life() {
    assert_eq!(Plan::random(7), Plan::random(7));
    assert_ne!(Plan::random(7), Plan::random(8));
    let twice = [(); 2].map(|()| format!("{:?}", live(sound(&Plan::random(7)), &Plan::random(7))));
    assert_eq!(twice[0], twice[1]);
}

fn event() -> impl Strategy<Value = Event> {
    let what = prop_oneof![
        6 => (0..40usize, 1..40usize, 1..20usize)
            .prop_map(|(prompt, max_tokens, reply)| What::Arrive { prompt, max_tokens, reply }),
        1 => (0..64usize).prop_map(|pick| What::Cancel { pick }),
        1 => (0..64usize).prop_map(|pick| What::Preempt { pick }),
    ];
    (0..4usize, what).prop_map(|(after, what)| Event { after, what })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_life_keeps_every_invariant(
        (max_num_seqs, max_model_len, max_num_batched_tokens) in (1..6usize, 1..40usize, 1..50usize),
        (page_size, num_slots, num_pages) in (1..20usize, 1..7usize, 1..60usize),
        events in proptest::collection::vec(event(), 0..40),
    ) {
        let plan =
            Plan { max_num_seqs, max_model_len, max_num_batched_tokens, page_size, num_slots, num_pages, events };
        let result = trial(&plan, sound);
        prop_assert!(result.is_ok(), "{}\n{plan}", result.unwrap_err());
    }
}
