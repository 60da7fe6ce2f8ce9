//! Mixtures of experts on a device against the CPU: who takes which expert, to the bit; what experts give, in every layout;
//! and what the bits of a row may depend on.

mod common;
#[path = "common/device.rs"]
mod testing;

use common::random_floats;
use cute_checkpoint::{Config, Dtype, Format, Fp8, GlobalScale, LazyWeight, Moe, Nvfp4, Tensor, Weight};
use cute_engine::Knobs;
use cute_engine::backend::cuda::{Cuda, Layout, LoadOptions, Options};
use cute_engine::backend::{Backend, Cpu, MoeLayer, MoeScratch, MoeWeights, top_k};
use cute_engine::batch::{Batch, BatchKind};
use testing::{batch, cache_shape, device, on_a_device};

/// x keeps 16 of its 24 bits on the device.
const TOLERANCE: f32 = 1e-4;
/// One past a tile of the kernels.
const ROWS: usize = 17;

/// How the weights of experts are stored.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Plain(Dtype),
    Fp8,
    Nvfp4,
    /// an expert of FP8 among those of bf16
    Mixed,
}

/// A mixture of experts, by its sizes.
#[derive(Clone, Copy, Debug)]
struct Case {
    kind: Kind,
    hidden: usize,
    intermediate: usize,
    experts: usize,
    k: usize,
    normalise: bool,
    /// rows of the step
    rows: &'static [usize],
}

fn tensor(dtype: Dtype, [n, k]: [usize; 2], seed: u64, scale: f32) -> Tensor {
    let values = random_floats(seed, n * k).into_iter().map(|x| x * scale);
    let bytes = match dtype {
        Dtype::BF16 => values.flat_map(|x| half::bf16::from_f32(x).to_le_bytes()).collect(),
        Dtype::F16 => values.flat_map(|x| half::f16::from_f32(x).to_le_bytes()).collect(),
        Dtype::F32 => values.flat_map(f32::to_le_bytes).collect(),
    };
    Tensor { name: "t".into(), dtype, shape: vec![n, k], bytes }
}

fn codes(seed: u64, n: usize) -> impl Iterator<Item = u8> {
    random_floats(seed, n).into_iter().map(|x| ((x + 1.0) * 128.0) as u8)
}

/// A matrix of about unit gain.
fn weight(kind: Kind, shape: [usize; 2], seed: u64, expert: usize) -> Weight {
    let [n, k] = shape;
    let gain = 1.7 / (k as f32).sqrt();
    let number = |c: u8| if c & 0x7f == 0x7f { 0 } else { c };
    match kind {
        Kind::Plain(dtype) => Weight::Plain(tensor(dtype, shape, seed, gain)),
        Kind::Mixed if expert != 1 => Weight::Plain(tensor(Dtype::BF16, shape, seed, gain)),
        Kind::Fp8 | Kind::Mixed => Weight::Fp8(Fp8 {
            name: "fp8".into(),
            shape,
            codes: codes(seed, n * k).map(number).collect(),
            scales: random_floats(seed + 1, n).into_iter().map(|s| s * gain / 100.0).collect(),
            block: [1, k],
        }),
        Kind::Nvfp4 => Weight::Nvfp4(Nvfp4 {
            name: "nvfp4".into(),
            shape,
            codes: codes(seed, n * k / 2).collect(),
            scales: codes(seed + 1, n * k / 16).map(number).collect(),
            global: GlobalScale::Multiplier(gain / 300.0),
        }),
    }
}

impl Case {
    fn config(&self) -> Config {
        let tiny = common::tiny().config;
        let moe = Moe {
            num_experts: self.experts,
            num_experts_per_tok: self.k,
            moe_intermediate_size: self.intermediate,
            shared_expert_intermediate_size: 32,
            norm_topk_prob: self.normalise,
            sparse: vec![true; tiny.num_hidden_layers],
        };
        Config { hidden_size: self.hidden, moe: Some(moe), ..tiny }
    }
    fn cuda(&self) -> Option<Cuda> {
        self.cuda_with(Options::default().expert_rows)
    }
    /// One that computes the experts of so many rows at once.
    fn cuda_with(&self, expert_rows: usize) -> Option<Cuda> {
        let load = LoadOptions { threads: 2, buffer: 1 << 20, ..LoadOptions::default() };
        let options = Options { graphs: false, expert_rows, load, ..Options::default() };
        let cuda = Cuda::new(device()?, &self.config(), options).unwrap();
        cuda.cache(&self.config(), cache_shape(ROWS)).unwrap();
        Some(cuda)
    }
    /// The weights; those of the experts in `nan` are all NaN, where they are bf16.
    fn weights<B: Backend>(&self, b: &B, nan: &[usize]) -> MoeWeights<B> {
        let (h, i, s) = (self.hidden, self.intermediate, 32);
        let plain = |shape: [usize; 2], seed| {
            b.matrix(&[tensor(Dtype::F32, shape, seed, 1.7 / (shape[1] as f32).sqrt())]).unwrap()
        };
        let one = |e: usize, shape, seed: u64| match weight(self.kind, shape, seed + 10 * e as u64, e) {
            Weight::Plain(mut t) if nan.contains(&e) => {
                assert_eq!(t.dtype, Dtype::BF16);
                t.bytes.fill(0xff);
                Weight::Plain(t)
            }
            w => w,
        };
        let halves = |shape: [usize; 2], seed: u64| {
            b.matrix(&[0, 1].map(|half| tensor(Dtype::BF16, shape, seed + half, 0.2))).unwrap()
        };
        let experts = |of: &dyn Fn(usize) -> Vec<Weight>| {
            loop {
                let all = (0..self.experts).map(|e| of(e).into_iter().map(LazyWeight::from).collect());
                let matrices = b.expert_matrices(all.collect()).unwrap();
                if b.end_loading(true).unwrap() {
                    return matrices;
                }
            }
        };
        MoeWeights {
            gate: plain([self.experts, h], 1),
            gate_up: experts(&|e| vec![one(e, [i, h], 2000), one(e, [i, h], 3000)]),
            down: experts(&|e| vec![one(e, [h, i], 4000)]),
            shared_gate_up: halves([s, h], 5000),
            shared_down: plain([h, s], 5002),
            shared_gate: plain([1, h], 5003),
            k: self.k,
            normalise: self.normalise,
        }
    }
    /// `x += moe(rms_norm(x))` for rows `first` to `first + m` of a fixed matrix, every other buffer full of NaN.
    fn run<B: Backend>(&self, b: &B, kind: BatchKind, w: &MoeWeights<B>, first: usize, m: usize) -> Vec<f32> {
        let h = self.hidden;
        let moe = self.config().moe.unwrap();
        let norm = b.vector(&Tensor { shape: vec![h], ..tensor(Dtype::F32, [1, h], 7, 0.5) }).unwrap();
        let mut x = buffer(b, kind, &tensor(Dtype::F32, [ROWS, h], 6, 1.0), first, m);
        let (mut n, mut mixed) = (b.buf(m, h).unwrap(), b.buf(m, h).unwrap());
        let mut scratch = MoeScratch::new(b, &moe, h, m).unwrap();
        for buf in [&mut n, &mut mixed, &mut scratch.logits, &mut scratch.out, &mut scratch.shared_act] {
            b.poison_buf(buf).unwrap();
        }
        b.poison_own().unwrap();
        let layer = MoeLayer {
            x: &mut x,
            n: &mut n,
            mixed: &mut mixed,
            scratch: &mut scratch,
            norm: (&norm, 1e-6),
            weights: w,
        };
        b.moe(layer, m).unwrap();
        b.read(&x, m).unwrap()
    }
}

/// Rows `first` to `first + m` of a matrix; what follows is of a step of this kind.
fn buffer<B: Backend>(b: &B, kind: BatchKind, t: &Tensor, first: usize, m: usize) -> B::Buf {
    let table = b.matrix(std::slice::from_ref(t)).unwrap();
    let mut buf = b.buf(m, t.shape[1]).unwrap();
    let tokens: Vec<u32> = (first as u32..(first + m) as u32).collect();
    let batch = Batch { tokens: tokens.clone(), ..batch(kind, m) };
    b.step(&batch, &[], &Knobs::default(), &mut || b.embed(&mut buf, &table, &tokens).map(|()| Vec::new()))
        .unwrap();
    buf
}

fn cases() -> Vec<Case> {
    use Kind::*;
    let case = |kind, [hidden, intermediate, experts, k]: [usize; 4], rows| Case {
        kind,
        hidden,
        intermediate,
        experts,
        k,
        normalise: k != 1,
        rows,
    };
    let (bf16, all) = (Plain(Dtype::BF16), &[1, 2, 3, 5, 8, 16, 17][..]);
    // sizes that are no multiples of tiles and units; all experts; one expert
    let mut cases = vec![
        case(bf16, [72, 20, 16, 2], all),
        case(bf16, [72, 20, 4, 4], &[1, 16]),
        case(Fp8, [144, 24, 7, 2], &[1, 5, 17]),
        case(Nvfp4, [144, 48, 7, 1], &[1, 5, 17]),
        case(Mixed, [72, 24, 4, 2], &[5]),
    ];
    if on_a_device() {
        for kind in [bf16, Plain(Dtype::F16), Plain(Dtype::F32), Fp8, Nvfp4, Mixed] {
            for (experts, k) in [(4, 1), (7, 2), (16, 2), (16, 16)] {
                cases.push(case(kind, [144, 48, experts, k], all));
            }
            // as wide as published ones
            cases.push(case(kind, [2048, 512, 24, 8], &[1, 5, 16, 17]));
        }
        for kind in [bf16, Plain(Dtype::F16), Plain(Dtype::F32), Fp8] {
            cases.push(case(kind, [100, 20, 7, 2], all));
        }
    }
    cases
}

#[test]
fn a_mixture_of_experts_gives_what_the_cpu_gives() {
    for case in cases() {
        let Some(cuda) = case.cuda() else { return };
        let (ours, theirs) = (case.weights(&cuda, &[]), case.weights(&Cpu::default(), &[]));
        for &m in case.rows {
            let ours = case.run(&cuda, BatchKind::Decode, &ours, 0, m);
            let reference = case.run(&Cpu::default(), BatchKind::Decode, &theirs, 0, m);
            let scale = reference.iter().fold(1e-3f32, |m, x| m.max(x.abs()));
            let worst = ours.iter().zip(&reference).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= TOLERANCE * scale, "{case:?}, {m} rows: {worst:e} of {scale:e}");
            assert!(ours.iter().all(|x| x.is_finite()), "{case:?}, {m} rows");
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_among_rows_that_share_its_experts() {
    for case in cases() {
        let Some(cuda) = case.cuda() else { return };
        let w = case.weights(&cuda, &[]);
        let all = case.run(&cuda, BatchKind::Decode, &w, 0, ROWS);
        if case.rows.contains(&ROWS) {
            let Some(small) = case.cuda_with(8) else { return };
            let w = case.weights(&small, &[]);
            assert_eq!(case.run(&small, BatchKind::Decode, &w, 0, ROWS), all, "{case:?}: eight rows at once");
        }
        for (first, m) in [(0, 1), (16, 1), (3, 5), (0, 16)] {
            if !case.rows.contains(&m) {
                continue;
            }
            let part = case.run(&cuda, BatchKind::Decode, &w, first, m);
            let expected = &all[first * case.hidden..][..part.len()];
            let same = part.iter().zip(expected).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{case:?}: rows {first} to {}", first + m);
        }
    }
}

/// Activations and weights have 8 bits of mantissa in a prompt's products.
const PROMPT_TOLERANCE: f32 = 1e-2;

#[test]
fn a_prompts_experts_are_multiplied_on_the_tensor_cores_with_bits_that_do_not_depend_on_cuts() {
    let bf16 = Kind::Plain(Dtype::BF16);
    let mut cases =
        vec![(bf16, [512, 20, 4, 2]), (Kind::Fp8, [512, 48, 4, 2]), (Kind::Nvfp4, [512, 48, 4, 2])];
    if on_a_device() {
        for kind in [bf16, Kind::Fp8, Kind::Nvfp4] {
            cases.extend([(kind, [512, 64, 16, 3]), (kind, [2048, 512, 24, 8])]);
        }
    }
    for (kind, [hidden, intermediate, experts, k]) in cases {
        let case = Case { kind, hidden, intermediate, experts, k, normalise: true, rows: &[] };
        let Some(cuda) = case.cuda() else { return };
        let (w, on_cpu) = (case.weights(&cuda, &[]), case.weights(&Cpu::default(), &[]));
        let all = case.run(&cuda, BatchKind::Prefill, &w, 0, ROWS);
        let reference = case.run(&Cpu::default(), BatchKind::Prefill, &on_cpu, 0, ROWS);
        let scale = reference.iter().fold(1e-3f32, |m, x| m.max(x.abs()));
        let worst = all.iter().zip(&reference).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= PROMPT_TOLERANCE * scale, "{case:?}: {worst:e} of {scale:e}");
        // x has fewer bits there: else these were the kernels of decoding
        assert_ne!(all, case.run(&cuda, BatchKind::Decode, &w, 0, ROWS), "{case:?}");
        // seven rows at once, three times
        let Some(small) = case.cuda_with(7) else { return };
        let w7 = case.weights(&small, &[]);
        assert_eq!(case.run(&small, BatchKind::Prefill, &w7, 0, ROWS), all, "{case:?}: seven at once");
        for (first, m) in [(5, 2), (16, 1)] {
            let part = case.run(&cuda, BatchKind::Prefill, &w, first, m);
            assert_eq!(part[..], all[first * case.hidden..][..part.len()], "{case:?}: {m} rows from {first}");
        }
    }
}

#[test]
fn the_device_finds_the_experts_and_weights_of_the_host_to_the_bit() {
    for (experts, k) in [(1, 1), (4, 1), (4, 4), (7, 2), (16, 3), (300, 10)] {
        for normalise in [false, true] {
            let case = Case {
                kind: Kind::Plain(Dtype::BF16),
                hidden: 72,
                intermediate: 20,
                experts,
                k,
                normalise,
                rows: &[],
            };
            let Some(cuda) = case.cuda() else { return };
            let mut logits = random_floats(experts as u64, ROWS * experts);
            logits.iter_mut().for_each(|x| *x *= 9.0);
            let row = |i: usize| i * experts..(i + 1) * experts;
            logits[row(1)].fill(0.5); // all alike
            logits[row(2)].iter_mut().for_each(|x| *x = x.round()); // many alike
            logits[row(3)].iter_mut().step_by(2).for_each(|x| *x = -300.0); // powers of zero
            logits[row(4)][experts - 1] = 100.0;
            logits[row(5)][0] = f32::NEG_INFINITY;
            logits[row(6)][experts.min(2) - 1] = f32::NAN;
            logits[row(7)][experts / 2] = f32::INFINITY;
            logits[row(8)].fill(f32::NEG_INFINITY);
            let bytes = logits.iter().flat_map(|x| x.to_le_bytes()).collect();
            let t = Tensor { name: "t".into(), dtype: Dtype::F32, shape: vec![ROWS, experts], bytes };
            for (first, rows) in (0..ROWS).map(|i| (i, 1)).chain([(0, ROWS), (2, 5)]) {
                let buf = buffer(&cuda, BatchKind::Decode, &t, first, rows);
                let found = cuda.route(&buf, k, normalise, rows).unwrap();
                assert_eq!(found.0.len(), rows);
                for (i, found) in found.0.iter().enumerate() {
                    let i = first + i;
                    let expected = top_k(&logits[row(i)], k, normalise);
                    let ascending = found.windows(2).all(|w| w[0].expert < w[1].expert);
                    assert!(found.len() == k && ascending && found[k - 1].expert < experts, "{found:?}");
                    if expected.iter().any(|t| t.weight.is_nan()) {
                        assert!(found.iter().all(|t| t.weight.is_nan()), "row {i}: {found:?}");
                        continue;
                    }
                    let bits = |taken: &[cute_engine::backend::Taken]| -> Vec<(usize, u32)> {
                        taken.iter().map(|t| (t.expert, t.weight.to_bits())).collect()
                    };
                    assert_eq!(bits(found), bits(&expected), "{experts} experts, row {i}");
                }
            }
        }
    }
}

#[test]
fn a_step_reads_the_experts_that_its_rows_take_and_no_others() {
    let case = Case { normalise: true, ..cases()[0] };
    let Some(cuda) = case.cuda() else { return };
    let (cpu, sound) = (Cpu::default(), case.weights(&cuda, &[]));
    let on_cpu = case.weights(&cpu, &[]);
    for (first, m) in [(0, 1), (4, 1), (9, 3), (0, 8)] {
        // the router on the CPU says which; a tie that falls otherwise here would fail the comparison above
        let h = case.hidden;
        let x = buffer(&cpu, BatchKind::Decode, &tensor(Dtype::F32, [ROWS, h], 6, 1.0), first, m);
        let norm = cpu.vector(&Tensor { shape: vec![h], ..tensor(Dtype::F32, [1, h], 7, 0.5) }).unwrap();
        let (mut n, mut logits) = (cpu.buf(m, h).unwrap(), cpu.buf(m, case.experts).unwrap());
        cpu.rms_norm(&mut n, &x, &norm, 1e-6, m).unwrap();
        cpu.linear(&mut logits, &n, &on_cpu.gate, m).unwrap();
        let chosen = cpu.route(&logits, case.k, true, m).unwrap().chosen();
        let others: Vec<usize> = (0..case.experts).filter(|e| !chosen.contains(e)).collect();
        assert!(!others.is_empty());
        let poisoned = case.weights(&cuda, &others);
        let before = case.run(&cuda, BatchKind::Decode, &sound, first, m);
        let after = case.run(&cuda, BatchKind::Decode, &poisoned, first, m);
        assert_eq!(before, after, "rows {first} to {}", first + m);
        assert!(after.iter().all(|x| x.is_finite()));
        // `run` sets the counter to ones, and a plan adds its experts to it
        assert_eq!(cuda.experts_read().unwrap().wrapping_add(1), chosen.len() as u32);
        let taken = case.weights(&cuda, &chosen[..1]);
        assert!(case.run(&cuda, BatchKind::Decode, &taken, first, m).iter().any(|x| x.is_nan()));
    }
}

#[test]
fn experts_of_one_layer_share_a_layout_and_a_shape_and_are_not_too_many() {
    for (kind, layout) in [
        (Kind::Plain(Dtype::BF16), Layout::Bf16 { pieces: 1 }),
        (Kind::Plain(Dtype::F16), Layout::Bf16 { pieces: 2 }),
        (Kind::Fp8, Layout::Fp8),
        (Kind::Nvfp4, Layout::Nvfp4),
        (Kind::Mixed, Layout::Bf16 { pieces: 3 }),
    ] {
        let case = Case { kind, hidden: 144, intermediate: 48, ..cases()[0] };
        let Some(cuda) = case.cuda() else { return };
        let w = case.weights(&cuda, &[]);
        assert!(w.gate_up.iter().chain(&w.down).all(|m| m.head.layout == layout), "{kind:?}");
    }
    let Some(gpu) = device() else { return };
    let config = Case { experts: 1 << 14, k: 3, ..cases()[0] }.config();
    let error = Cuda::new(gpu, &config, Options::default()).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(error.contains("16384 experts of which a token takes 3"), "{error}");
    let Some(cuda) = cases()[0].cuda() else { return };
    let uneven = |e: usize| vec![Weight::Plain(tensor(Dtype::BF16, [8 + 8 * (e / 2), 64], 1, 1.0)).into()];
    let error = cuda.expert_matrices((0..3).map(uneven).collect()).unwrap_err().to_string();
    assert!(error.contains("expert 2") && error.contains("16, 64"), "{error}");
}

#[test]
fn random_experts_of_every_format_have_the_variance_they_should_and_differ() {
    let Some(cuda) = cases()[0].cuda() else { return };
    let x = buffer(&cuda, BatchKind::Decode, &tensor(Dtype::F32, [ROWS, 144], 6, 1.0), 0, 1);
    for format in [Format::Plain(Dtype::BF16), Format::Fp8Block, Format::Nvfp4] {
        let experts = cuda.random_experts(3, (400, format), 144, 5).unwrap();
        let products: Vec<Vec<f32>> = experts
            .iter()
            .map(|w| {
                let mut out = cuda.buf(1, 400).unwrap();
                cuda.linear(&mut out, &x, w, 1).unwrap();
                cuda.read(&out, 1).unwrap()
            })
            .collect();
        for y in &products {
            // x is uniform within ±1: a variance of a third
            let variance = y.iter().map(|y| y * y).sum::<f32>() / y.len() as f32;
            assert!((0.2..0.5).contains(&variance), "{format:?}: {variance}");
        }
        assert!(products[0] != products[1] && products[1] != products[2], "{format:?}");
    }
}
