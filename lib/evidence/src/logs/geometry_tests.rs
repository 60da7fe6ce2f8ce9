//! The geometry of pools, derived from figures: what comes out, and what is refused.

use super::*;

/// The incident's kind of boot: 16 attention layers, three state groups beside them.
fn boot(tokens: u64, concurrency: f64, gib: f64) -> Facts {
    Facts {
        tokens: Some(tokens),
        concurrency: Some(concurrency),
        available_gib: Some(gib),
        max_model_len: Some(65536),
        block_size: Some(1600),
        page_size: Some(64),
        mamba_cache_mode: Some("none".into()),
        kv_heads: Some(4),
        head_dim: Some(256),
        kv_cache_dtype: Some("fp8_e4m3".into()),
        layers: Some(16),
        ..Facts::default()
    }
}

#[test]
fn block_counts_follow_from_tokens_and_concurrency() {
    // 44 = ceil(65536/1600) + 3; 44 x 19.61 = 862.84, 44 x 19.64 = 864.16, 44 x 19.57 = 861.08, 44 x 19.66 = 865.04
    for (tokens, m, gib, blocks) in [
        (344_000, 19.61, 42.14, 863),
        (345_600, 19.64, 42.19, 864),
        (344_000, 19.57, 42.06, 861),
        (345_600, 19.66, 42.25, 865),
    ] {
        let d = derive(&boot(tokens, m, gib));
        assert_eq!(d.pool.num_blocks, Some(blocks), "{:?}", d.pool.rule);
        assert_eq!((d.pool.attention_groups, d.pool.state_groups), (Some(1), Some(3)));
        assert_eq!((d.pool.block_bytes, d.pool.token_bytes), (Some(3_276_800), Some(2048)));
        assert_eq!(d.pool.state_blocks_per_request, Some(3));
        assert_eq!(d.contradiction, None, "{:?}", d.pool.rule);
    }
}

#[test]
fn the_layout_comes_from_the_figures_and_is_not_assumed() {
    // every pool of every layout is found again from what the server would print about it
    for (attention, state) in [(1, 0), (1, 1), (1, 2), (1, 3), (1, 5), (1, 7)] {
        for blocks in [97u64, 300, 655, 863, 1480, 5000] {
            for (len, bs) in [(65536u64, 1600u64), (16384, 784), (32768, 528)] {
                let need = attention * len.div_ceil(bs) + state;
                let m = (blocks as f64 / need as f64 * 100.0).round() / 100.0;
                let tokens = blocks / (attention + state) * bs;
                let f = Facts {
                    tokens: Some(tokens),
                    concurrency: Some(m),
                    max_model_len: Some(len),
                    block_size: (state > 0).then_some(bs),
                    given_block_size: (state == 0).then_some(bs),
                    ..Facts::default()
                };
                let p = derive(&f).pool;
                assert_eq!(
                    (p.attention_groups, p.state_groups),
                    (Some(attention), Some(state)),
                    "{f:?} {:?}",
                    p.rule
                );
                assert_eq!(p.num_blocks, Some(blocks), "{f:?} {:?}", p.rule);
            }
        }
    }
}

#[test]
fn newer_servers_report_tokens_as_concurrency_times_length() {
    // 10 = ceil(2048/640) + 3 x 2 (mode align); floor(136 x 2048 / 10) = 27,852
    let f = Facts {
        tokens: Some(27_852),
        concurrency: Some(13.60),
        max_model_len: Some(2048),
        block_size: Some(640),
        mamba_cache_mode: Some("align".into()),
        ..Facts::default()
    };
    let p = derive(&f).pool;
    assert_eq!((p.num_blocks, p.state_groups), (Some(136), Some(3)), "{:?}", p.rule);
    assert_eq!(p.state_blocks_per_request, None, "mode align takes blocks by position");
}

#[test]
fn a_pure_attention_pool_has_one_group() {
    // 27,919 blocks of 16 tokens; 446,704 / 8192 = 54.53
    let f = Facts {
        tokens: Some(446_704),
        concurrency: Some(54.53),
        max_model_len: Some(8192),
        ..Facts::default()
    };
    let p = derive(&f).pool;
    assert_eq!((p.num_blocks, p.state_groups), (Some(27_919), Some(0)), "{:?}", p.rule);
    assert!(p.rule.unwrap().contains("assumed"));
}

#[test]
fn figures_that_contradict_the_memory_line_are_told() {
    let d = derive(&boot(344_000, 19.61, 30.0));
    assert_eq!(d.pool.num_blocks, Some(863));
    assert!(d.contradiction.unwrap().contains("614"));
}

#[test]
fn figures_no_layout_explains_yield_no_block_count() {
    let mut f = boot(344_000, 3.0, 42.14);
    f.available_gib = None;
    let p = derive(&f).pool;
    assert_eq!(p.num_blocks, None);
    assert!(p.rule.unwrap().contains("not derived"));
    let p = derive(&Facts { tokens: Some(5), ..Facts::default() }).pool;
    assert!(p.rule.unwrap().contains("lacks the maximum concurrency, the longest request"));
}

#[test]
fn extreme_figures_do_not_panic() {
    for tokens in [0, 1, u64::MAX, 1 << 50] {
        for m in [0.0, -1.0, 1e300, f64::NAN, 0.01] {
            for len in [0, 1, u64::MAX] {
                let mut f = boot(tokens, m, m);
                f.max_model_len = Some(len);
                f.speculative = Some(u64::MAX);
                derive(&f);
                f.kv_heads = Some(u64::MAX);
                f.layers = Some(0);
                derive(&f);
            }
        }
    }
}
