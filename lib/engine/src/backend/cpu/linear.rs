//! `y = x Wᵀ` with weights in their stored dtype and f32 sums in a fixed order.
//!
//! Weights are kept in panels of [`LANES`] outputs, input by input, so that the lanes of a vector are outputs and
//! no sum ever crosses lanes. Every output is two sums over the even and the odd inputs, ascending, added at
//! the end: blocking over panels and rows changes which weights are reused, never the bits.

use super::Buf;
use super::math::LANES;
use crate::Error;
use cute_checkpoint::lazy::read_stacked;
use cute_checkpoint::{Dtype, Format, LazyWeight, Tensor, Weight};
use multiversion::multiversion;
use rayon::prelude::*;
use std::ops::Range;

/// Multiply-adds below which another thread costs more than it brings.
const PARALLEL: usize = 1 << 19;

/// Bytes of weights that a thread reads at once.
const READ: usize = 1 << 20;

/// A weight matrix `[outputs, inputs]`.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// rows of the matrix
    pub outputs: usize,
    /// columns of the matrix
    pub inputs: usize,
    data: Data,
}

/// `[outputs / LANES, inputs]`, the last panel filled up with zeros.
#[derive(Clone, Debug)]
enum Data {
    Bf16(Vec<[Bf16; LANES]>),
    F16(Vec<[F16; LANES]>),
    F32(Vec<[f32; LANES]>),
}

#[derive(Clone, Copy, Debug, Default)]
struct Bf16(u16);
#[derive(Clone, Copy, Debug, Default)]
struct F16(u16);

trait Element: Copy + Default + Send + Sync {
    fn f32(self) -> f32;
}
impl Element for Bf16 {
    #[inline(always)]
    fn f32(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }
}
impl Element for F16 {
    #[inline(always)]
    fn f32(self) -> f32 {
        half::f16::from_bits(self.0).to_f32()
    }
}
impl Element for f32 {
    #[inline(always)]
    fn f32(self) -> f32 {
        self
    }
}

impl Matrix {
    /// Stacks tensors `[out_i, in]` by rows.
    ///
    /// # Errors
    /// When shapes or dtypes differ.
    pub fn stack(tensors: &[Tensor]) -> Result<Self, Error> {
        let lazy = |t: &Tensor| LazyWeight::from(Weight::Plain(t.clone()));
        Matrix::load(&tensors.iter().map(lazy).collect::<Vec<_>>())
    }

    /// Stacks weights `[out_i, in]` by rows, reading a few rows at a time. Where one is packed, all become f32, which
    /// holds the values of packed weights as they are defined.
    ///
    /// # Errors
    /// When shapes or dtypes differ, or a weight cannot be read.
    pub fn load(weights: &[LazyWeight]) -> Result<Self, Error> {
        let first = weights.first().ok_or_else(|| Error::Shape("a matrix of no tensors".into()))?;
        let inputs = first.shape().last().copied().unwrap_or(0);
        let packed = weights.iter().any(|w| w.format().is_packed());
        let dtype = |w: &LazyWeight| match w.format() {
            Format::Plain(dtype) if !packed => dtype,
            _ => Dtype::F32,
        };
        let mut outputs = 0;
        for w in weights {
            let &[out, width] = w.shape() else {
                return Err(Error::Shape(format!(
                    "{}: shape {:?}, expected two dimensions",
                    w.name(),
                    w.shape()
                )));
            };
            if width != inputs || dtype(w) != dtype(first) {
                return Err(Error::Shape(format!(
                    "{} is {} [{out}, {width}], {} is {} with {inputs} inputs: fused projections need one of each",
                    w.name(),
                    dtype(w).name(),
                    first.name(),
                    dtype(first).name()
                )));
            }
            outputs += out;
        }
        let bits = |b: &[u8]| u16::from_le_bytes([b[0], b[1]]);
        let data = match dtype(first) {
            Dtype::BF16 => Data::Bf16(panels(weights, outputs, inputs, |b| Bf16(bits(b)))?),
            Dtype::F16 => Data::F16(panels(weights, outputs, inputs, |b| F16(bits(b)))?),
            Dtype::F32 => {
                Data::F32(panels(weights, outputs, inputs, |b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))?)
            }
        };
        Ok(Matrix { outputs, inputs, data })
    }

    /// Row `i` as f32.
    pub fn row(&self, i: usize, out: &mut [f32]) {
        fn copy<E: Element>(v: &[[E; LANES]], i: usize, out: &mut [f32]) {
            let panel = &v[i / LANES * out.len()..][..out.len()];
            out.iter_mut().zip(panel).for_each(|(o, w)| *o = w[i % LANES].f32());
        }
        let out = &mut out[..self.inputs];
        match &self.data {
            Data::Bf16(v) => copy(v, i, out),
            Data::F16(v) => copy(v, i, out),
            Data::F32(v) => copy(v, i, out),
        }
    }

    /// `out[:, column ..] (+)= x[:, k] W[:, k]ᵀ` over the inputs k of `range`.
    pub(super) fn apply(
        &self,
        out: &mut Buf,
        column: usize,
        x: &Buf,
        range: Range<usize>,
        rows: usize,
        add: bool,
    ) {
        let job = Job { outputs: self.outputs, inputs: self.inputs, k: range, width: out.width, column, add };
        match &self.data {
            Data::Bf16(v) => job.run(v, out, x, rows),
            Data::F16(v) => job.run(v, out, x, rows),
            Data::F32(v) => job.run(v, out, x, rows),
        }
    }
}

/// Reads weights into panels, some at a time on every thread.
fn panels<E: Element>(
    weights: &[LazyWeight],
    outputs: usize,
    inputs: usize,
    element: impl Fn(&[u8]) -> E + Sync,
) -> Result<Vec<[E; LANES]>, Error> {
    let mut data = vec![[E::default(); LANES]; outputs.div_ceil(LANES) * inputs];
    let (inputs, size) = (inputs.max(1), size_of::<E>());
    let panels = (READ / (LANES * inputs * size)).max(1);
    data.par_chunks_mut(panels * inputs).enumerate().try_for_each_init(Vec::new, |spare, (i, part)| {
        let first = i * panels * LANES;
        let read = read_stacked(weights, first..(first + panels * LANES).min(outputs), spare)?;
        let mut o = 0;
        for w in read {
            let t = w.into_tensor();
            let t = if size == 4 { t.into_f32() } else { t };
            for row in t.bytes.chunks_exact(inputs * size) {
                let panel = &mut part[o / LANES * inputs..][..inputs];
                for (w, bytes) in panel.iter_mut().zip(row.chunks_exact(size)) {
                    w[o % LANES] = element(bytes);
                }
                o += 1;
            }
            spare.push(t.bytes);
        }
        Ok::<(), Error>(())
    })?;
    Ok(data)
}

/// What one product does, but for the element type.
#[derive(Clone)]
struct Job {
    outputs: usize,
    inputs: usize,
    /// inputs that count
    k: Range<usize>,
    /// columns of the output buffer, and the first to write
    width: usize,
    column: usize,
    add: bool,
}

impl Job {
    /// Splits the work over threads: by rows, or, for a single row, by panels.
    fn run<E: Element>(&self, v: &[[E; LANES]], out: &mut Buf, x: &Buf, rows: usize) {
        let threads = rayon::current_num_threads();
        let inputs_of = |rows: Range<usize>| rows.map(|r| &x.row(r)[self.k.clone()]).collect::<Vec<_>>();
        let data = &mut out.data[..rows * self.width];
        if rows * self.outputs * self.k.len() < PARALLEL || threads == 1 {
            block(self, v, data, &inputs_of(0..rows));
        } else if rows == 1 {
            let xs = inputs_of(0..1);
            let each = self.outputs.div_ceil(LANES * threads) * LANES;
            let parts = data[self.column..self.column + self.outputs].par_chunks_mut(each);
            parts.enumerate().for_each(|(i, part)| {
                let job = Job { outputs: part.len(), width: part.len(), column: 0, ..self.clone() };
                block(&job, &v[i * each / LANES * self.inputs..], part, &xs);
            });
        } else {
            let each = rows.div_ceil(threads);
            data.par_chunks_mut(each * self.width).enumerate().for_each(|(i, part)| {
                block(self, v, part, &inputs_of(i * each..i * each + part.len() / self.width));
            });
        }
    }

    /// The inputs that count of a panel.
    #[inline(always)]
    fn panel<'a, E>(&self, v: &'a [[E; LANES]], panel: usize) -> &'a [[E; LANES]] {
        &v[panel * self.inputs + self.k.start..panel * self.inputs + self.k.end]
    }

    #[inline(always)]
    fn put(&self, out: &mut [f32], row: usize, panel: usize, y: &[f32; LANES]) {
        let at = row * self.width + self.column;
        let out = &mut out[at..at + self.outputs][panel * LANES..];
        if self.add {
            out.iter_mut().zip(y).for_each(|(o, y)| *o += y);
        } else {
            out.iter_mut().zip(y).for_each(|(o, y)| *o = *y);
        }
    }
}

/// All outputs for a few rows: one panel for four rows at a time, then four panels for one row.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2", "aarch64+neon"))]
fn block<E: Element>(job: &Job, v: &[[E; LANES]], out: &mut [f32], xs: &[&[f32]]) {
    let panels = job.outputs.div_ceil(LANES);
    let (fours, ones) = xs.as_chunks::<4>();
    for (i, x) in fours.iter().enumerate() {
        for p in 0..panels {
            let w = job.panel(v, p);
            for (j, y) in products([w; 4], *x).iter().enumerate() {
                job.put(out, 4 * i + j, p, y);
            }
        }
    }
    for (i, x) in ones.iter().enumerate() {
        for p in (0..panels).step_by(4) {
            // the last group repeats its last panel
            let w = std::array::from_fn(|j| job.panel(v, (p + j).min(panels - 1)));
            for (j, y) in products(w, [x; 4]).iter().enumerate().take(panels - p) {
                job.put(out, 4 * fours.len() + i, p + j, y);
            }
        }
    }
}

/// Four products of a panel and a row at once. Equal panels or rows are loaded once.
#[inline(always)]
fn products<E: Element>(w: [&[[E; LANES]]; 4], x: [&[f32]; 4]) -> [[f32; LANES]; 4] {
    let zero = [[0f32; LANES]; 2];
    let (mut a, mut b, mut c, mut d) = (zero, zero, zero, zero);
    let n = x[0].len();
    let (w0, w1, w2, w3) = (&w[0][..n], &w[1][..n], &w[2][..n], &w[3][..n]);
    let (x0, x1, x2, x3) = (&x[0][..n], &x[1][..n], &x[2][..n], &x[3][..n]);
    let mut k = 0;
    while k + 2 <= n {
        for odd in 0..2 {
            multiply_add(&mut a[odd], &w0[k + odd], x0[k + odd]);
            multiply_add(&mut b[odd], &w1[k + odd], x1[k + odd]);
            multiply_add(&mut c[odd], &w2[k + odd], x2[k + odd]);
            multiply_add(&mut d[odd], &w3[k + odd], x3[k + odd]);
        }
        k += 2;
    }
    if k < n {
        multiply_add(&mut a[0], &w0[k], x0[k]);
        multiply_add(&mut b[0], &w1[k], x1[k]);
        multiply_add(&mut c[0], &w2[k], x2[k]);
        multiply_add(&mut d[0], &w3[k], x3[k]);
    }
    [a, b, c, d].map(|[even, odd]| std::array::from_fn(|l| even[l] + odd[l]))
}

/// `acc += w·x` by lanes, product and sum rounded separately.
#[inline(always)]
fn multiply_add<E: Element>(acc: &mut [f32; LANES], w: &[E; LANES], x: f32) {
    for l in 0..LANES {
        acc[l] += w[l].f32() * x;
    }
}
