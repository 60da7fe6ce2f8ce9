//! The gated delta net over prompts, on the CUDA backend and on the CPU: shapes that no model here has, several
//! sequences side by side, and cuts. On the device that `CUTE_TEST_DEVICE` names, else on an emulated one.

mod common;
#[path = "common/device.rs"]
mod testing;

use common::{golden_models, random_floats};
use cute_checkpoint::{Checkpoint, Config, Dtype, Tensor};
use cute_engine::Knobs;
use cute_engine::backend::cuda::{Cuda, Options};
use cute_engine::backend::{Backend, CacheShape, Cpu, DeltaGate, DeltaNet, GdnShape, KvDtype};
use cute_engine::batch::{Batch, BatchKind, Segment};
use testing::device;

/// Key heads, value heads, Dk, Dv: odd widths, a head in part of a warp, heads that share a block, the published size.
const SHAPES: [[usize; 4]; 5] =
    [[2, 6, 7, 5], [1, 2, 12, 20], [2, 2, 33, 40], [1, 3, 128, 128], [1, 1, 160, 24]];

fn config([hk, hv, dk, dv]: [usize; 4]) -> Config {
    let dir = golden_models().into_iter().next().unwrap();
    Config {
        linear_num_key_heads: hk,
        linear_num_value_heads: hv,
        linear_key_head_dim: dk,
        linear_value_head_dim: dv,
        ..Checkpoint::open(&dir).unwrap().config
    }
}

fn tensor(shape: &[usize], seed: u64) -> Tensor {
    let bytes = random_floats(seed, shape.iter().product()).into_iter().flat_map(f32::to_le_bytes).collect();
    Tensor { name: format!("random {seed}"), dtype: Dtype::F32, shape: shape.to_vec(), bytes }
}

/// Outputs of sequences of these lengths, each cut after every `cut` tokens; the pieces of a turn are one batch.
fn outputs<B: Backend>(backend: &B, config: &Config, lens: &[usize], cut: usize) -> Vec<Vec<f32>> {
    let shape = GdnShape::of(config, 0);
    let (rows, values) = (lens.iter().sum::<usize>(), shape.num_v_heads * shape.v_dim);
    let cache_shape = CacheShape {
        num_pages: 4,
        page_size: 64,
        kv_dtype: KvDtype::F32,
        num_slots: lens.len() + 1,
        max_rows: rows,
        max_len: rows,
    };
    let mut cache = backend.cache(config, cache_shape).unwrap();
    let table = backend.matrix(&[tensor(&[rows, shape.width()], 1)]).unwrap();
    let taps = backend.taps(&tensor(&[shape.channels(), 1, shape.kernel], 2)).unwrap();
    let [a_log, dt_bias, norm] = [(shape.num_v_heads, 3), (shape.num_v_heads, 4), (shape.v_dim, 5)]
        .map(|(n, seed)| backend.vector(&tensor(&[n], seed)).unwrap());
    let mut proj = backend.buf(rows, shape.width()).unwrap();
    let mut qkv = backend.buf(rows, shape.channels()).unwrap();
    let mut o = backend.buf(rows, values).unwrap();
    let mut all = vec![Vec::new(); lens.len()];
    for start in (0..rows).step_by(cut) {
        let mut batch =
            Batch { kind: BatchKind::Prefill, tokens: vec![], segments: vec![], logit_rows: vec![] };
        for (i, &len) in lens.iter().enumerate().filter(|(_, len)| **len > start) {
            let (row, len) = (batch.tokens.len(), cut.min(len - start));
            let first = lens[..i].iter().sum::<usize>() + start;
            batch.tokens.extend(first as u32..(first + len) as u32);
            let (slot, pages) = (i as u32 + 1, vec![1, 2, 3]);
            let (owner, page_epochs) = (i as u64, vec![1; 3]);
            batch.segments.push(Segment { owner, slot, epoch: 1, pages, page_epochs, start, row, len });
        }
        if batch.segments.is_empty() {
            break;
        }
        let gate = DeltaGate { shape, a_log: &a_log, dt_bias: &dt_bias };
        let args = DeltaNet { taps: &taps, gate, norm: (&norm, 1e-6) };
        let mut run = || {
            backend.embed(&mut proj, &table, &batch.tokens)?;
            backend.gated_delta_net(&mut o, &mut qkv, &proj, &args, &mut cache, &batch)?;
            Ok(vec![])
        };
        backend.step(&batch, &[], &Knobs::default(), &mut run).unwrap();
        let read = backend.read(&o, batch.rows()).unwrap();
        for s in &batch.segments {
            all[s.owner as usize].extend(&read[s.row * values..(s.row + s.len) * values]);
        }
    }
    all
}

fn bits(all: &[Vec<f32>]) -> Vec<u32> {
    all.concat().into_iter().map(f32::to_bits).collect()
}

/// Every sequence's outputs are those of the other run, up to a ten-thousandth of the largest.
fn agree(name: &str, ours: &[Vec<f32>], theirs: &[Vec<f32>]) {
    assert_eq!(ours.len(), theirs.len(), "{name}");
    for (i, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
        assert!(ours.len() == theirs.len() && !ours.is_empty(), "{name}, sequence {i}");
        let size = theirs.iter().fold(0f32, |m, x| m.max(x.abs()));
        let worst = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!("{name}, sequence {i}: largest difference {worst:e} of {size}");
        assert!(
            ours.iter().zip(theirs).all(|(a, b)| (a - b).abs() < 1e-4 * size),
            "{name}, sequence {i}: {worst}"
        );
    }
}

#[test]
fn the_delta_rule_agrees_with_the_cpu_on_any_shape_in_any_company_and_cut_anywhere() {
    let Some(gpu) = device() else { return };
    for shape in SHAPES {
        let config = config(shape);
        let cuda = || Cuda::new(gpu.clone(), &config, Options::default()).unwrap();
        let lens = [37, 1, 16];
        let whole = outputs(&cuda(), &config, &lens, 64);
        let expected = outputs(&Cpu::default(), &config, &lens, 64);
        agree(&format!("{shape:?}"), &whole, &expected);
        for cut in [1, 5, 16, 17] {
            assert!(
                bits(&whole) == bits(&outputs(&cuda(), &config, &lens, cut)),
                "{shape:?} cut every {cut}"
            );
        }
    }
}

/// Chunks multiply with 16 bits of each factor.
#[test]
fn the_chunked_delta_rule_agrees_with_the_sequential_one_and_the_cpu_and_may_be_cut_at_multiples_of_64() {
    let Some(gpu) = device() else { return };
    for shape in SHAPES {
        let config = config(shape);
        let options = Options { gdn_chunked: true, ..Options::default() };
        let chunked = || Cuda::new(gpu.clone(), &config, options).unwrap();
        assert_eq!(chunked().chunk_multiple(), 64);
        let lens = [130, 1, 63, 64, 65];
        let whole = outputs(&chunked(), &config, &lens, 192);
        let sequential =
            outputs(&Cuda::new(gpu.clone(), &config, Options::default()).unwrap(), &config, &lens, 192);
        agree(&format!("{shape:?}, sequential"), &whole, &sequential);
        agree(&format!("{shape:?}, CPU"), &whole, &outputs(&Cpu::default(), &config, &lens, 192));
        for cut in [64, 128] {
            assert!(
                bits(&whole) == bits(&outputs(&chunked(), &config, &lens, cut)),
                "{shape:?} cut every {cut}"
            );
        }
        // Neighbours and their lengths change nothing.
        assert!(bits(&whole[..1]) == bits(&outputs(&chunked(), &config, &lens[..1], 192)), "{shape:?} alone");
    }
}
