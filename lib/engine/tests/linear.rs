//! The kernel `linear` on the emulated device: products long enough to go around its ring of stages, and rings of every
//! length, against plain loops.

mod selftest;

use cute_engine::backend::cuda::gpu::{Arg, Gpu, Join, Launch};
use cute_engine::backend::cuda::layout::CHUNK;
use cute_engine::backend::cuda::units::{Epilogue, Linear, THREADS};
use cute_engine::backend::cuda::{BF16, Emulated, Layout, Settings};
use half::bf16;
use selftest::{floats, get_floats, put, put_floats};
use std::path::Path;

/// Bytes of shared memory of a block on sm_90, and sizes that leave room for a short ring only.
const LARGE: u32 = 227 << 10;
const SMALL: [u32; 2] = [60 << 10, 34 << 10];

fn device(seed: u64) -> Option<Emulated> {
    let cache = Some(Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulated"));
    Emulated::new(Settings { seed, cache, ..Settings::default() })
        .inspect_err(|e| println!("skipped: {e}"))
        .ok()
}

/// A matrix, inputs and what the outputs hold before.
struct Case {
    k: usize,
    n: usize,
    pieces: usize,
    epilogue: Epilogue,
    /// [n or 2 n, pieces · kp]
    w: Vec<f32>,
    /// [ROWS, kp]
    x: Vec<f32>,
    /// [ROWS, n]
    before: Vec<f32>,
}

const ROWS: usize = 16;

impl Case {
    fn new(k: usize, n: usize, pieces: usize, epilogue: Epilogue) -> Case {
        let kp = k.next_multiple_of(CHUNK);
        let inside = |(i, v): (usize, f32)| if i % kp < k { bf16::from_f32(v).to_f32() } else { 0.0 };
        let w_rows = if epilogue == Epilogue::Swiglu { 2 * n } else { n };
        let w = floats(1, w_rows * pieces * kp).into_iter().enumerate().map(inside).collect();
        let x = floats(2, ROWS * kp).into_iter().enumerate();
        let x = x.map(|(i, v)| if i % kp < k { v } else { 0.0 }).collect();
        Case { k, n, pieces, epilogue, w, x, before: floats(3, ROWS * n) }
    }
    fn kp(&self) -> usize {
        self.k.next_multiple_of(CHUNK)
    }
    /// Row `row` of x times row `o` of W, and the sum of the magnitudes.
    fn dot(&self, row: usize, o: usize) -> (f64, f64) {
        let kp = self.kp();
        let w = &self.w[o * self.pieces * kp..][..self.pieces * kp];
        w.iter().enumerate().fold((0.0, 0.0), |(sum, size), (i, w)| {
            let product = f64::from(*w) * f64::from(self.x[row * kp + i % kp]);
            (sum + product, size + product.abs())
        })
    }
    /// W in the order of kernels/weights.cuh: tiles of 8 outputs, of which 32 inputs lie together; gate, then up.
    fn tiles(&self) -> Vec<f32> {
        let width = self.pieces * self.kp();
        let mut tiles = Vec::new();
        for half in self.w.chunks(self.n * width) {
            for rows in half.chunks(8 * width) {
                for run in (0..width).step_by(32) {
                    for row in 0..8 {
                        let zeros = [0.0; 32];
                        let at = row * width + run;
                        tiles.extend(rows.get(at..at + 32).unwrap_or(&zeros));
                    }
                }
            }
        }
        tiles
    }
    /// The outputs of rows `rows`, by a launch of `blocks` blocks.
    fn run(&self, gpu: &dyn Gpu, rows: std::ops::Range<usize>, shared: u32, blocks: u32) -> Vec<f32> {
        let (m, kp) = (rows.len(), self.kp());
        let rows_of = Linear::rows_for(m);
        let op = Linear {
            k: self.k,
            layout: Layout::Bf16 { pieces: self.pieces },
            tail: None,
            rows: rows_of,
            epilogue: self.epilogue,
            norm: false,
            alone: false,
            shared,
        };
        let kernel = gpu.kernel(&op.unit(), "linear", op.smem()).unwrap();
        let bits: Vec<u32> = self
            .tiles()
            .chunks_exact(2)
            .map(|w| {
                u32::from(bf16::from_f32(w[0]).to_bits()) | u32::from(bf16::from_f32(w[1]).to_bits()) << 16
            })
            .collect();
        let w = put(gpu, &bits);
        let x = put_floats(gpu, &self.x[rows.start * kp..rows.end * kp]);
        let out = put_floats(gpu, &self.before[rows.start * self.n..rows.end * self.n]);
        let int = |n: usize| Arg::U32(n as u32);
        let args = [
            Arg::Ptr(w),
            Arg::Ptr(x),
            Arg::Ptr(out),
            Arg::Ptr(0),
            Arg::F32(0.0),
            int(m),
            int(self.n),
            int(kp),
            int(self.n),
            Arg::Ptr(0),
            int(self.n),
        ];
        let launch = Launch { grid: [blocks, 1, 1], block: THREADS, smem: op.smem(), join: Join::Overlapped };
        gpu.launch(kernel, launch, &args).unwrap();
        let got = get_floats(gpu, out, m * self.n);
        [w, x, out].into_iter().for_each(|at| gpu.free(at).unwrap());
        got
    }
    /// Each output differs from the exact one by no more than what bf16 hi + lo and sums in f32 explain.
    fn check(&self, got: &[f32]) {
        for (i, got) in got.iter().enumerate() {
            let (row, o) = (i / self.n, i % self.n);
            let (y, size) = self.dot(row, o);
            let (exact, size) = match self.epilogue {
                Epilogue::Store => (y, size),
                Epilogue::Add => (y + f64::from(self.before[i]), size),
                Epilogue::Swiglu => {
                    let (u, u_size) = self.dot(row, self.n + o);
                    (y / (1.0 + (-y).exp()) * u, (size + 1.0) * (u.abs() + 1.0) + u_size * (y.abs() + 1.0))
                }
            };
            let error = (f64::from(*got) - exact).abs();
            assert!(error <= (size + 1.0) * 2f64.powi(-15), "row {row}, output {o}: {got} for {exact}");
        }
    }
}

/// Runs a case in batches of 1, 5 and 16 rows; outputs are right and have the same bits in each.
fn holds(case: &Case, shared: u32, blocks: u32, seed: u64) {
    let Some(gpu) = device(seed) else { return };
    let all = case.run(&gpu, 0..ROWS, shared, blocks);
    case.check(&all);
    for rows in [3..4, 8..13] {
        let expected = &all[rows.start * case.n..rows.end * case.n];
        let same = case
            .run(&gpu, rows.clone(), shared, 3)
            .iter()
            .zip(expected)
            .all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(same, "rows {rows:?} of {} inputs have other bits alone", case.k);
    }
}

#[test]
fn a_product_is_right_where_neither_inputs_nor_outputs_fill_their_last_stage() {
    for seed in [0, 5] {
        holds(&Case::new(2600, 100, 1, Epilogue::Swiglu), LARGE, 3, seed);
    }
    holds(&Case::new(1100, 203, 1, Epilogue::Add), LARGE, 3, 2);
}

#[test]
fn blocks_without_outputs_and_warps_without_inputs_do_no_harm() {
    holds(&Case::new(40, 20, 3, Epilogue::Store), LARGE, 7, 1);
}

#[test]
fn a_short_ring_gives_the_bits_of_a_long_one() {
    let Some(gpu) = device(3) else { return };
    let case = Case::new(2600, 100, 1, Epilogue::Swiglu);
    let long = |rows: usize| case.run(&gpu, 0..rows, LARGE, 3);
    for (rows, short) in [(1, SMALL[0]), (1, SMALL[1]), (8, SMALL[0]), (16, SMALL[0])] {
        assert_eq!(
            case.run(&gpu, 0..rows, short, 3),
            long(rows),
            "{rows} rows, {short} bytes of shared memory"
        );
    }
}

#[test]
fn the_ring_is_as_long_as_shared_memory_allows() {
    let op = |rows, k, shared| {
        let op = Linear {
            k,
            layout: BF16,
            tail: None,
            rows,
            epilogue: Epilogue::Store,
            norm: false,
            alone: false,
            shared,
        };
        let length = op.unit().defines.iter().find(|(name, _)| *name == "RING").unwrap().1.clone();
        assert!(op.smem() <= shared, "{} of {shared} bytes", op.smem());
        length
    };
    let of = |rows, k| [LARGE, 99 << 10].map(|shared| op(rows, k, shared));
    assert_eq!(of(1, 5120), ["10", "4"]);
    assert_eq!(of(1, 17408), ["9", "1"]);
    assert_eq!(of(8, 17408), ["6", "4"]);
    assert_eq!(of(16, 17408), ["6", "4"]);
}
