//! The pool replay against arithmetic done by hand.

use cute_evidence::pool::exposure::Exposure;
use cute_evidence::pool::replay::sequential;
use cute_evidence::pool::{Demand, FreeList, Geometry, Width};
use cute_records::Pool;

/// The incident's pool: 3 state groups, 1 attention group, 1600 tokens and 3,276,800 bytes a block.
fn incident(blocks: u64) -> Geometry {
    Geometry {
        blocks,
        first_block: 1,
        block_size: 1600,
        block_bytes: 3_276_800,
        token_bytes: Some(2048),
        state_blocks: 3,
        attention_groups: 1,
    }
}

fn short() -> Demand {
    Demand { attention: 1, tokens: None, prompt: None }
}

/// Requests (0-based, warm-up counted) that the width exposes, one after the other.
fn exposed(g: Geometry, demands: &[Demand]) -> Vec<usize> {
    let held = sequential(g, demands).unwrap();
    let bad = |i: &usize| matches!(Width::I32.exposure(&g, &demands[*i], &held[*i]), Exposure::Bad { .. });
    (0..demands.len()).filter(bad).collect()
}

#[test]
fn the_first_requests_take_blocks_in_group_order_from_block_one() {
    let held = sequential(incident(863), &[short(), short(), Demand { attention: 2, ..short() }]).unwrap();
    assert_eq!(held[0].state, [1, 2, 3]);
    assert_eq!(held[0].attention, [[4]]);
    assert_eq!(held[1].state, [5, 6, 7]);
    assert_eq!(
        (held[2].state.as_slice(), held[2].attention[0].as_slice()),
        ([9, 10, 11].as_slice(), [12, 13].as_slice())
    );
    assert!(held.iter().all(|h| !h.recycled));
}

#[test]
fn blocks_come_back_state_first_and_attention_last_token_first() {
    // Six usable blocks: the second request wraps into what the first returned: 1, then 3, 2.
    let g = Geometry { blocks: 7, state_blocks: 1, ..incident(7) };
    let long = Demand { attention: 2, ..short() };
    let held = sequential(g, &[long, long, long, long]).unwrap();
    assert_eq!(held[0].all().collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(held[1].all().collect::<Vec<_>>(), [4, 5, 6]);
    assert_eq!(held[2].all().collect::<Vec<_>>(), [1, 3, 2]);
    assert!(held[2].recycled && !held[1].recycled);
    assert_eq!(held[3].all().collect::<Vec<_>>(), [4, 6, 5]);
}

#[test]
fn a_request_that_does_not_fit_has_no_replay() {
    assert_eq!(sequential(incident(5), &[Demand { attention: 2, ..short() }]), None);
}

#[test]
fn the_bad_edge_is_block_655_token_576() {
    // 2^31 / 3,276,800 = 655.36; 2^31 - 655 x 3,276,800 = 1,179,648 = 576 x 2048
    let g = incident(863);
    assert_eq!(Width::I32.first_bad_block(&g), 655);
    assert_eq!(Width::I32.first_bad_token(&g), 576);
    assert_eq!(Width::I32.first_bad_position(&g, &[655], Some(576)), None);
    assert_eq!(Width::I32.first_bad_position(&g, &[655], Some(577)), Some(576));
    assert_eq!(Width::I32.first_bad_position(&g, &[654], Some(1600)), None);
    assert_eq!(Width::I32.first_bad_position(&g, &[656], Some(1)), Some(0));
    assert_eq!(
        Width::I32.first_bad_position(&g, &[12, 700], Some(1600)),
        None,
        "the second block holds nothing yet"
    );
    assert_eq!(Width::I32.first_bad_position(&g, &[12, 700], Some(1601)), Some(1600));
    assert!(!Width::U32.reachable(&g));
}

#[test]
fn without_the_bytes_of_a_token_a_block_counts_as_soon_as_its_end_does_not_fit() {
    let g = Geometry { token_bytes: None, ..incident(863) };
    assert_eq!(Width::I32.first_bad_position(&g, &[655], Some(1)), Some(0));
    assert_eq!(Width::I32.first_bad_position(&g, &[654], Some(1600)), None);
}

#[test]
fn an_unknown_number_of_tokens_leaves_the_boundary_block_open() {
    let g = incident(863);
    let holding = |b: u32| cute_evidence::pool::Holding { attention: vec![vec![b]], ..Default::default() };
    assert_eq!(Width::I32.exposure(&g, &short(), &holding(655)), Exposure::Open);
    assert_eq!(Width::I32.exposure(&g, &short(), &holding(654)), Exposure::Clean);
    assert!(matches!(Width::I32.exposure(&g, &short(), &holding(656)), Exposure::Bad { .. }));
}

#[test]
fn the_visible_damage_starts_with_the_first_token_that_decode_makes() {
    let g = incident(863);
    let holding = cute_evidence::pool::Holding { attention: vec![vec![700]], ..Default::default() };
    let d = Demand { attention: 1, tokens: Some(100), prompt: Some(60) };
    // 40 tokens are generated; the first comes out of prefill and is right.
    assert_eq!(Width::I32.exposure(&g, &d, &holding), Exposure::Bad { at: Some(0), shows: 39 });
    let d = Demand { attention: 1, tokens: Some(61), prompt: Some(60) };
    assert_eq!(Width::I32.exposure(&g, &d, &holding), Exposure::Bad { at: Some(0), shows: 0 });
}

#[test]
fn one_warmup_and_250_short_requests_expose_162_to_213_in_the_incidents_pools() {
    for blocks in [863, 864] {
        let bad = exposed(incident(blocks), &[short(); 251]);
        // ordinals leave the warm-up out
        assert_eq!((bad[0] - 1, bad[bad.len() - 1] - 1, bad.len()), (162, 213, 52), "{blocks} blocks");
    }
}

#[test]
fn a_pool_up_to_655_blocks_is_never_exposed() {
    assert!(exposed(incident(655), &[short(); 1000]).is_empty());
    assert!(!Width::I32.reachable(&incident(655)));
    assert_eq!(Width::I32.first_request(&incident(655)), None);
    assert!(Width::I32.reachable(&incident(656)));
    let full = Demand { attention: 1, tokens: Some(1600), prompt: None };
    assert!(!exposed(incident(656), &[full; 2000]).is_empty(), "block 655, past its token 576");
}

#[test]
fn the_closed_form_agrees_with_the_replay() {
    for blocks in [700, 863, 865, 1480, 5000] {
        for state_blocks in [0, 1, 3, 5] {
            let g = Geometry { state_blocks, ..incident(blocks) };
            let first = Width::I32.first_request(&g).unwrap();
            let replayed =
                exposed(g, &vec![short(); first.number as usize + 5]).first().map(|i| *i as u64 + 1);
            if first.before_wrap {
                assert_eq!(replayed, Some(first.number), "{blocks} blocks, {state_blocks} state blocks");
            }
        }
    }
    assert_eq!(
        Width::I32.first_request(&incident(863)).unwrap().number,
        164,
        "the 164th request is ordinal 162 after one warm-up"
    );
}

#[test]
fn blocks_are_conserved_whatever_is_asked() {
    let g = incident(64);
    let mut list = FreeList::new(g);
    let mut seed = 7u64;
    for _ in 0..2000 {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1);
        let d = Demand { attention: 1 + (seed >> 60) % 5, tokens: None, prompt: None };
        let h = list.acquire(&d).unwrap();
        let mut all: Vec<u32> = h.all().collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len() as u64, g.blocks_of(d.attention));
        assert!(all.iter().all(|b| (1..64).contains(b)));
        list.release(&h);
    }
}

#[test]
fn a_pool_record_that_says_too_little_names_what_is_missing() {
    let why =
        Geometry::of(&Pool { num_blocks: Some(863), block_size: Some(1600), ..Pool::default() }).unwrap_err();
    assert_eq!(why, "the pool's block_bytes, state_blocks_per_request is not known");
    let impossible = Pool {
        num_blocks: Some(1),
        block_size: Some(16),
        block_bytes: Some(8),
        state_blocks_per_request: Some(0),
        ..Pool::default()
    };
    assert!(Geometry::of(&impossible).unwrap_err().contains("impossible"));
}

#[test]
fn mechanisms_are_named_by_their_width() {
    assert_eq!(Width::I32.mechanism(), "kv_offset_i32_overflow");
    assert_eq!(Width::U32.mechanism(), "kv_offset_u32_overflow");
    assert_eq!(Width(19).mechanism(), "kv_offset_i20_overflow");
}
