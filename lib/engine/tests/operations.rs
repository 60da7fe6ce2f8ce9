//! Each operation on a device against the same operation on the CPU: one text for both, over shapes of one, odd, and one
//! past a tile; outputs are NaN before, inputs are random.

mod common;
#[path = "common/device.rs"]
mod testing;

use cute_checkpoint::{Dtype, Format, Tensor};
use cute_engine::Knobs;
use cute_engine::backend::cuda::{Cuda, Options};
use cute_engine::backend::{Backend, Cpu};
use cute_engine::batch::BatchKind;
use cute_engine::sampler::Stream;
use testing::{batch, cache_shape, device, on_a_device};

/// x keeps 16 of its 24 bits on the device; sums of up to a few hundred terms of size one.
const TOLERANCE: f32 = 2e-3;
const ROWS: usize = 17;

fn tensor(stream: &mut Stream, shape: &[usize], dtype: Dtype) -> Tensor {
    let n: usize = shape.iter().product();
    let values = (0..n).map(|_| (stream.uniform() * 2.0 - 1.0) as f32);
    let bytes = match dtype {
        Dtype::BF16 => values.flat_map(|x| half::bf16::from_f32(x).to_le_bytes()).collect(),
        Dtype::F16 => values.flat_map(|x| half::f16::from_f32(x).to_le_bytes()).collect(),
        Dtype::F32 => values.flat_map(f32::to_le_bytes).collect(),
    };
    Tensor { name: "t".into(), dtype, shape: shape.to_vec(), bytes }
}

/// A buffer with these rows: they are embedded.
fn rows<B: Backend>(b: &B, t: &Tensor) -> B::Buf {
    let n = t.shape[0];
    let table = b.matrix(std::slice::from_ref(t)).unwrap();
    let mut buf = b.buf(n, t.shape[1]).unwrap();
    let batch = batch(BatchKind::Prefill, n);
    b.step(&batch, &[], &Knobs::default(), &mut || {
        b.embed(&mut buf, &table, &batch.tokens).map(|()| Vec::new())
    })
    .unwrap();
    buf
}

fn nan<B: Backend>(b: &B, n: usize, width: usize) -> B::Buf {
    let bytes = (0..n * width).flat_map(|_| f32::NAN.to_le_bytes()).collect();
    rows(b, &Tensor { name: "nan".into(), dtype: Dtype::F32, shape: vec![n, width], bytes })
}

struct Case {
    rows: usize,
    k: usize,
    n: usize,
    dtype: Dtype,
}

/// Every operation once; the results by name.
fn operations<B: Backend>(b: &B, c: &Case) -> Vec<(&'static str, Vec<f32>)> {
    let mut stream = Stream::new((c.rows * 1000 + c.k * 10 + c.n) as u64);
    let s = &mut stream;
    let x = rows(b, &tensor(s, &[c.rows, c.k], Dtype::F32));
    let w = b.matrix(&[tensor(s, &[c.n, c.k], c.dtype)]).unwrap();
    let (gate, up) = (tensor(s, &[c.n, c.k], c.dtype), tensor(s, &[c.n, c.k], c.dtype));
    let gate_up = b.matrix(&[gate, up]).unwrap();
    let norm = b.vector(&tensor(s, &[c.k], Dtype::F32)).unwrap();
    let residual = tensor(s, &[c.rows, c.n], Dtype::F32);
    let norm = (&norm, 1e-6);
    let m = c.rows;
    let mut all = Vec::new();
    let mut keep = |name, buf: &B::Buf| all.push((name, b.read(buf, m).unwrap()));

    let mut out = nan(b, m, c.n);
    b.linear(&mut out, &x, &w, m).unwrap();
    keep("linear", &out);
    let (mut normed, mut out) = (nan(b, m, c.k), nan(b, m, c.n));
    b.norm_linear(&mut out, &mut normed, &x, norm, &w, m).unwrap();
    keep("norm_linear", &out);
    let mut normed = nan(b, m, c.k);
    b.rms_norm(&mut normed, &x, norm.0, norm.1, m).unwrap();
    keep("rms_norm", &normed);
    let (mut sum, mut mixed) = (rows(b, &residual), nan(b, m, c.n));
    b.linear_add(&mut sum, &mut mixed, &x, &w, m).unwrap();
    keep("linear_add", &sum);
    let (mut act, mut both) = (nan(b, m, c.n), nan(b, m, 2 * c.n));
    b.norm_swiglu(&mut act, (&mut normed, &mut both), &x, norm, &gate_up, m).unwrap();
    keep("norm_swiglu", &act);
    b.linear(&mut both, &x, &gate_up, m).unwrap();
    let mut act = nan(b, m, c.n);
    b.swiglu(&mut act, &both, m).unwrap();
    keep("swiglu", &act);
    let mut parts = b.buf(m, 2 * c.n).unwrap();
    b.linear_partial(&mut parts, 0, &x, &w, 0..c.k / 2, m).unwrap();
    b.linear_partial(&mut parts, 1, &x, &w, c.k / 2..c.k, m).unwrap();
    let mut out = nan(b, m, c.n);
    b.gather(&mut out, &parts, 2, m).unwrap();
    keep("linear_partial, gather", &out);
    let mut sum = rows(b, &residual);
    b.add(&mut sum, &out, m).unwrap();
    keep("add", &sum);
    let mut out = nan(b, m, c.k);
    b.select(&mut out, &x, &batch(BatchKind::Prefill, m).logit_rows).unwrap();
    keep("select", &out);
    let mut top = nan(b, m, 2);
    b.argmax(&mut top, &x, m).unwrap();
    keep("argmax", &top);
    all
}

fn config() -> cute_checkpoint::Config {
    common::tiny().config
}

#[test]
fn a_recorded_step_is_not_replayed_under_other_knobs() {
    let Some(gpu) = device() else { return };
    let b = Cuda::new(gpu, &config(), Options::default()).unwrap();
    let _cache = b.cache(&config(), cache_shape(ROWS)).unwrap();
    let table = b.random_matrix(&[(8, Format::Plain(Dtype::BF16))], 40, 1).unwrap();
    let mut x = b.buf(1, 40).unwrap();
    let batch = batch(BatchKind::Decode, 1);
    let mut ran = 0;
    let mut steps = |knobs: &Knobs| {
        for _ in 0..4 {
            b.step(&batch, &[], knobs, &mut || {
                ran += 1;
                b.embed(&mut x, &table, &batch.tokens).map(|()| Vec::new())
            })
            .unwrap();
        }
        ran
    };
    let coop_gdn = Knobs { coop_gdn: true, ..Knobs::default() };
    assert_eq!(steps(&Knobs::default()), 2, "once eagerly, once to record it");
    assert_eq!(steps(&coop_gdn), 4, "a recording of its own");
    assert_eq!(steps(&Knobs::default()), 4, "replayed");
}

#[test]
fn every_operation_gives_what_the_cpu_gives() {
    let Some(gpu) = device() else { return };
    let backend = Cuda::new(gpu, &config(), Options::default()).unwrap();
    let _cache = backend.cache(&config(), cache_shape(ROWS)).unwrap();
    let mut cases = Vec::new();
    let inputs: &[usize] =
        if on_a_device() { &[1, 7, 31, 32, 33, 100, 511, 512, 513, 1025, 2080] } else { &[1, 33, 545] };
    for &k in inputs {
        for (rows, n) in [(1, 1), (1, 9), (2, 7), (7, 8), (8, 17), (9, 130), (16, 5), (ROWS, 33)] {
            cases.push(Case { rows, k, n, dtype: Dtype::BF16 });
        }
    }
    cases.push(Case { rows: 3, k: 40, n: 11, dtype: Dtype::F32 });
    cases.push(Case { rows: 1, k: 40, n: 11, dtype: Dtype::F16 });
    for c in &cases {
        for ((name, ours), (_, reference)) in
            operations(&backend, c).iter().zip(operations(&Cpu::default(), c))
        {
            let what = format!("{name}: {} rows, {} inputs, {} outputs, {:?}", c.rows, c.k, c.n, c.dtype);
            assert_eq!(ours.len(), reference.len(), "{what}");
            let scale = reference.iter().fold(1.0f32, |m, x| m.max(x.abs()));
            for (i, (a, b)) in ours.iter().zip(&reference).enumerate() {
                let same = a.to_bits() == b.to_bits() || (a - b).abs() <= TOLERANCE * scale;
                assert!(same, "{what}: element {i} is {a}, on the CPU {b}");
            }
        }
    }
}

#[test]
fn argmax_names_the_lowest_of_equals_and_no_token_where_a_logit_is_not_finite() {
    let Some(gpu) = device() else { return };
    let backend = Cuda::new(gpu, &config(), Options::default()).unwrap();
    let _cache = backend.cache(&config(), cache_shape(ROWS)).unwrap();
    let (inf, n) = (f32::INFINITY, 700);
    let row = |f: &dyn Fn(usize) -> f32| (0..n).map(f).collect::<Vec<f32>>();
    let cases = [
        row(&|i| if i == 650 || i == 13 { 3.0 } else { -1.0 }),
        row(&|i| if i == 699 { -0.5 } else { -1.0 }),
        row(&|i| if i == 3 { f32::NAN } else { i as f32 }),
        row(&|i| if i == 500 { inf } else { 0.0 }),
        row(&|i| if i == 7 { -4.0 } else { -inf }),
        row(&|_| -inf),
    ];
    let bytes = cases.concat().into_iter().flat_map(f32::to_le_bytes).collect();
    let logits =
        rows(&backend, &Tensor { name: "logits".into(), dtype: Dtype::F32, shape: vec![6, n], bytes });
    let mut top = nan(&backend, 6, 2);
    backend.argmax(&mut top, &logits, 6).unwrap();
    let found: Vec<Option<(f32, u32)>> = backend
        .read(&top, 6)
        .unwrap()
        .chunks_exact(2)
        .map(|t| (!t[0].is_nan()).then(|| (t[0], t[1].to_bits())))
        .collect();
    assert_eq!(found, [Some((3.0, 13)), Some((-0.5, 699)), None, None, Some((-4.0, 7)), None]);
}
