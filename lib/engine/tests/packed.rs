//! Products with FP8 and NVFP4 weights on a device against the CPU, which widens them to f32: scales of every kind, sizes
//! around units, blocks and tiles, stacks of two formats; and what the bits of a row may depend on.

mod common;
#[path = "common/device.rs"]
mod testing;

use common::random_floats;
use cute_checkpoint::{Config, Dtype, Format, Fp8, GlobalScale, Nvfp4, Tensor, Weight};
use cute_engine::Knobs;
use cute_engine::backend::cuda::gpu::Gpu;
use cute_engine::backend::cuda::{Cuda, Layout, Options, Settings};
use cute_engine::backend::{Backend, Cpu};
use cute_engine::batch::{Batch, BatchKind};
use std::sync::Arc;
use testing::{batch, cache_shape, device, device_or, on_a_device};

/// x keeps 16 of its 24 bits on the device.
const TOLERANCE: f32 = 1e-4;
const ROWS: usize = 17;

fn bytes(seed: u64, n: usize) -> Vec<u8> {
    random_floats(seed, n).iter().map(|x| ((x + 1.0) * 128.0) as u8).collect()
}

/// How the scales of a matrix lie.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Tensor,
    Channel,
    /// so many outputs and inputs
    Block(usize, usize),
    Multiplied,
    Divided,
    Plain(Dtype),
}

/// A matrix of random codes with random scales, also subnormal and negative ones.
fn weight(kind: Kind, n: usize, k: usize, seed: u64) -> Weight {
    let name = format!("{kind:?}");
    let fp8 = |block: [usize; 2]| {
        let codes = bytes(seed, n * k).into_iter().map(|c| if c & 0x7f == 0x7f { 0 } else { c }).collect();
        let scales = random_floats(seed + 1, n.div_ceil(block[0]) * k.div_ceil(block[1]));
        Weight::Fp8(Fp8 {
            name: name.clone(),
            shape: [n, k],
            codes,
            scales: scales.iter().map(|s| s / 64.0).collect(),
            block,
        })
    };
    let nvfp4 = |global| {
        let scales =
            bytes(seed + 1, n * k / 16).into_iter().map(|c| if c & 0x7f == 0x7f { 1 } else { c }).collect();
        Weight::Nvfp4(Nvfp4 {
            name: name.clone(),
            shape: [n, k],
            codes: bytes(seed, n * k / 2),
            scales,
            global,
        })
    };
    match kind {
        Kind::Tensor => fp8([n, k]),
        Kind::Channel => fp8([1, k]),
        Kind::Block(tall, wide) => fp8([tall, wide]),
        Kind::Multiplied => nvfp4(GlobalScale::Multiplier(0.00173)),
        Kind::Divided => nvfp4(GlobalScale::Divisor(613.7)),
        Kind::Plain(dtype) => Weight::Plain(tensor(dtype, n, k, seed)),
    }
}

fn tensor(dtype: Dtype, n: usize, k: usize, seed: u64) -> Tensor {
    let values = random_floats(seed, n * k).into_iter();
    let bytes = match dtype {
        Dtype::BF16 => values.flat_map(|x| half::bf16::from_f32(x).to_le_bytes()).collect(),
        Dtype::F16 => values.flat_map(|x| half::f16::from_f32(x).to_le_bytes()).collect(),
        Dtype::F32 => values.flat_map(f32::to_le_bytes).collect(),
    };
    Tensor { name: "t".into(), dtype, shape: vec![n, k], bytes }
}

/// A buffer with rows `first` to `first + m` of a table: they are embedded.
fn rows<B: Backend>(b: &B, t: &Tensor, first: usize, m: usize) -> B::Buf {
    rows_of(BatchKind::Decode, b, t, first, m)
}

/// What follows is of a step of this kind.
fn rows_of<B: Backend>(kind: BatchKind, b: &B, t: &Tensor, first: usize, m: usize) -> B::Buf {
    let table = b.matrix(std::slice::from_ref(t)).unwrap();
    let mut buf = b.buf(m, t.shape[1]).unwrap();
    let tokens: Vec<u32> = (first as u32..(first + m) as u32).collect();
    let batch = Batch { tokens: tokens.clone(), ..batch(kind, m) };
    b.step(&batch, &[], &Knobs::default(), &mut || b.embed(&mut buf, &table, &tokens).map(|()| Vec::new()))
        .unwrap();
    buf
}

/// Matrices stacked by rows, all with `k` inputs.
struct Case {
    k: usize,
    stack: Vec<(Kind, usize)>,
}

impl Case {
    fn new(k: usize, stack: &[(Kind, usize)]) -> Case {
        Case { k, stack: stack.to_vec() }
    }
    fn weights(&self) -> Vec<Weight> {
        self.stack
            .iter()
            .enumerate()
            .map(|(i, (kind, n))| weight(*kind, *n, self.k, 10 * i as u64 + 1))
            .collect()
    }
    fn outputs(&self) -> usize {
        self.stack.iter().map(|(_, n)| n).sum()
    }

    /// Every product once, of rows `first` to `first + m`; the results by name.
    fn products<B: Backend>(&self, b: &B, first: usize, m: usize) -> Vec<(&'static str, Vec<f32>)> {
        self.products_of(BatchKind::Decode, b, first, m)
    }
    /// The same in a prompt.
    fn in_a_prompt<B: Backend>(&self, b: &B, first: usize, m: usize) -> Vec<(&'static str, Vec<f32>)> {
        self.products_of(BatchKind::Prefill, b, first, m)
    }
    fn products_of<B: Backend>(
        &self,
        kind: BatchKind,
        b: &B,
        first: usize,
        m: usize,
    ) -> Vec<(&'static str, Vec<f32>)> {
        let (k, n) = (self.k, self.outputs());
        let all = ROWS.max(first + m);
        let x = rows_of(kind, b, &tensor(Dtype::F32, all, k, 100), first, m);
        let w = b.packed_matrix(self.weights()).unwrap();
        let norm = b.vector(&Tensor { shape: vec![k], ..tensor(Dtype::F32, 1, k, 101) }).unwrap();
        let residual = tensor(Dtype::F32, all, n, 102);
        let norm = (&norm, 1e-6);
        let (mut out, mut normed) = (b.buf(m, n).unwrap(), b.buf(m, k).unwrap());
        let mut all = Vec::new();
        b.linear(&mut out, &x, &w, m).unwrap();
        all.push(("linear", b.read(&out, m).unwrap()));
        b.norm_linear(&mut out, &mut normed, &x, norm, &w, m).unwrap();
        all.push(("norm_linear", b.read(&out, m).unwrap()));
        let mut sum = rows_of(kind, b, &residual, first, m);
        b.linear_add(&mut sum, &mut out, &x, &w, m).unwrap();
        all.push(("linear_add", b.read(&sum, m).unwrap()));
        if let [(a, one), (b_, two)] = self.stack[..]
            && one == two
            && !matches!(b_, Kind::Plain(_))
            && (!matches!(a, Kind::Block(..)) || matches!(b_, Kind::Block(..)))
        {
            let mut act = b.buf(m, one).unwrap();
            b.norm_swiglu(&mut act, (&mut normed, &mut out), &x, norm, &w, m).unwrap();
            all.push(("norm_swiglu", b.read(&act, m).unwrap()));
        }
        all
    }
}

fn backend() -> Option<Cuda> {
    backend_of(common::tiny().config, ROWS)
}

fn backend_of(config: Config, rows: usize) -> Option<Cuda> {
    backend_on(device()?, config, rows)
}

fn backend_on(gpu: Arc<dyn Gpu>, config: Config, rows: usize) -> Option<Cuda> {
    let backend = Cuda::new(gpu, &config, Options { graphs: false, ..Options::default() }).unwrap();
    backend.cache(&config, cache_shape(rows)).unwrap();
    Some(backend)
}

fn cases() -> Vec<Case> {
    use Kind::*;
    let rest = (Plain(Dtype::F32), 4);
    // longer than a stage of one row and of several; odd sizes; what the kernels do not keep packed
    let mut all = vec![
        Case::new(2578, &[(Block(8, 128), 56), (Block(8, 256), 56)]),
        Case::new(2576, &[(Divided, 56), (Divided, 56)]),
        Case::new(144, &[(Multiplied, 40), rest, rest]),
        Case::new(64, &[(Tensor, 20)]),
        Case::new(64, &[(Tensor, 16), (Plain(Dtype::BF16), 16)]),
    ];
    if on_a_device() {
        all.extend([
            Case::new(144, &[(Block(128, 128), 256), (Block(128, 128), 160), rest, rest]),
            Case::new(300, &[(Tensor, 24), (Channel, 16), (Block(16, 128), 40)]),
            Case::new(1100, &[(Channel, 13)]),
            Case::new(272, &[(Multiplied, 40), (Divided, 40)]),
            Case::new(16, &[(Multiplied, 9)]),
            Case::new(1, &[(Tensor, 1)]),
            Case::new(96, &[(Block(5, 48), 20), (Multiplied, 8)]),
        ]);
        for k in [2560, 5120, 6144, 17408] {
            all.push(Case::new(k, &[(Block(128, 128), 2560), (Block(128, 128), 2560)]));
            all.push(Case::new(k, &[(Multiplied, 2560), (Multiplied, 2560)]));
        }
    }
    all
}

#[test]
fn every_product_gives_what_the_cpu_gives() {
    let Some(cuda) = backend() else { return };
    for case in cases() {
        for m in [1, 3, ROWS] {
            let ours = case.products(&cuda, 0, m);
            for ((name, ours), (_, reference)) in ours.iter().zip(case.products(&Cpu::default(), 0, m)) {
                let what = format!("{name}: {m} rows, {} inputs, {:?}", case.k, case.stack);
                let scale = reference.iter().fold(1e-3f32, |m, x| m.max(x.abs()));
                let worst = ours.iter().zip(&reference).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst <= TOLERANCE * scale, "{what}: {worst:e} of {scale:e}");
                assert!(ours.iter().all(|x| x.is_finite()), "{what}");
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_a_batch() {
    let Some(cuda) = backend() else { return };
    for case in cases() {
        let all = case.products(&cuda, 0, ROWS);
        for (first, m) in [(3, 1), (8, 7), (16, 1)] {
            for ((name, ours), (_, together)) in case.products(&cuda, first, m).iter().zip(&all) {
                let width = ours.len() / m;
                let expected = &together[first * width..][..ours.len()];
                let same = ours.iter().zip(expected).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{name}: rows {first} to {}, {} inputs, {:?}", first + m, case.k, case.stack);
            }
        }
    }
}

#[test]
fn weights_stay_packed_where_the_kernels_take_them_and_lose_nothing_where_not() {
    let Some(cuda) = backend() else { return };
    use Kind::*;
    let of = |stack: &[(Kind, usize)]| {
        let m = cuda.packed_matrix(Case::new(256, stack).weights()).unwrap();
        (m.head.layout, m.tail.map(|t| t.layout))
    };
    let wide = |pieces| (Layout::Bf16 { pieces }, None);
    assert_eq!(of(&[(Tensor, 16), (Channel, 8), (Block(8, 128), 8)]), (Layout::Fp8, None));
    assert_eq!(of(&[(Multiplied, 8), (Divided, 16)]), (Layout::Nvfp4, None));
    let rest = (Layout::Nvfp4, Some(Layout::Bf16 { pieces: 1 }));
    assert_eq!(of(&[(Multiplied, 64), (Plain(Dtype::BF16), 3), (Plain(Dtype::BF16), 4)]), rest);
    assert_eq!(of(&[(Tensor, 16), (Multiplied, 8)]), wide(3));
    assert_eq!(of(&[(Block(8, 32), 16)]), wide(3));
    assert_eq!(of(&[(Tensor, 8), (Plain(Dtype::BF16), 8)]), wide(3));
}

#[test]
fn random_weights_of_every_format_have_the_variance_they_should() {
    let Some(cuda) = backend() else { return };
    let plain = Format::Plain(Dtype::BF16);
    let x = rows(&cuda, &tensor(Dtype::F32, ROWS, 144, 100), 0, 1);
    for format in [plain, Format::Fp8Block, Format::Nvfp4] {
        let w = cuda.random_matrix(&[(400, format), (100, plain)], 144, 5).unwrap();
        assert_eq!(w.tail.is_some(), format.is_packed(), "{format:?}");
        let mut out = cuda.buf(1, 500).unwrap();
        cuda.linear(&mut out, &x, &w, 1).unwrap();
        let y = cuda.read(&out, 1).unwrap();
        for (part, name) in [(&y[..400], "first"), (&y[400..], "last")] {
            // x is uniform within ±1: a variance of a third
            let variance = part.iter().map(|y| y * y).sum::<f32>() / part.len() as f32;
            assert!((0.2..0.5).contains(&variance), "{format:?}, {name} rows: {variance}");
        }
    }
}

/// Activations and weights have 8 bits of mantissa in a prompt's products.
const PROMPT_TOLERANCE: f32 = 1e-2;

#[test]
fn a_prompt_is_multiplied_on_the_tensor_cores_with_the_weights_the_cpu_has() {
    // wide enough a model for the tensor cores; the matrices are smaller
    let config = Config { hidden_size: 2688, ..common::tiny().config };
    use Kind::*;
    let blocks = (Block(8, 128), 40);
    let rest = (Plain(Dtype::BF16), 5);
    let few = [
        Case::new(128, &[blocks, blocks]),
        Case::new(112, &[(Divided, 48), (Multiplied, 48)]),
        Case::new(128, &[(Channel, 64), rest, rest]),
    ];
    // one past a tile of rows, of outputs and of the stages in flight
    let wide = |kind, k| Case::new(k, &[(kind, 264), (kind, 264)]);
    let many = [wide(Block(8, 128), 600), wide(Divided, 592), wide(Plain(Dtype::BF16), 570)];
    let of_each = |k| [Block(128, 128), Divided, Plain(Dtype::BF16)].map(|kind| wide(kind, k));
    let (deep, tall) = (of_each(2576), of_each(576));
    let mut all = vec![(true, ROWS, &few[..], 5), (true, 130, &many, 127)];
    if on_a_device() {
        all.extend([(true, 177, &deep[..], 175), (true, 1025, &tall, 1022)]);
    } else {
        // by the kernel for other devices
        all.extend([(false, ROWS, &few[..], 5), (false, 130, &many[..1], 127)]);
    }
    for (wgmma, rows, cases, part) in all {
        let Some(gpu) = device_or(Settings { wgmma, ..Settings::default() }) else { return };
        let Some(cuda) = backend_on(gpu, config.clone(), rows) else { return };
        for case in cases {
            let all = case.in_a_prompt(&cuda, 0, rows);
            for ((name, ours), (_, reference)) in all.iter().zip(case.products(&Cpu::default(), 0, rows)) {
                let scale = reference.iter().fold(1e-3f32, |m, x| m.max(x.abs()));
                let worst = ours.iter().zip(&reference).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                let what = format!("{name}, {rows} rows, {:?}", case.stack);
                assert!(worst <= PROMPT_TOLERANCE * scale, "{what}: {worst:e} of {scale:e}");
                assert!(ours.iter().all(|x| x.is_finite()), "{what}");
            }
            // what is read before it has come, or after something else has, differs from time to time
            for _ in 0..if on_a_device() { 20 } else { 0 } {
                assert_eq!(case.in_a_prompt(&cuda, 0, rows), all, "{rows} rows, {:?}", case.stack);
            }
            for few in [1, 2] {
                for ((name, alone), (_, together)) in case.in_a_prompt(&cuda, part, few).iter().zip(&all) {
                    let width = alone.len() / few;
                    let same = alone[..] == together[part * width..][..few * width];
                    assert!(same, "{name}, {few} rows alone, {:?}", case.stack);
                }
            }
            if rows == ROWS {
                // x has fewer bits there: else these were the kernels of decoding
                assert_ne!(all[0].1, case.products(&cuda, 0, ROWS)[0].1, "{:?}", case.stack);
            }
        }
    }
}
