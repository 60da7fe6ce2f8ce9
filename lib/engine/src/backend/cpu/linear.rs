//! `y = x Wᵀ` with weights in their stored dtype and f32 sums in a fixed order.
//!
//! Every output element is one [`LANES`]-wide dot product, whatever is computed beside it: blocking over
//! outputs and rows changes which weights are reused, never the bits.

use super::Buf;
use super::math::{LANES, reduce};
use crate::Error;
use cute_checkpoint::{Dtype, Tensor};
use multiversion::multiversion;
use rayon::prelude::*;
use std::ops::Range;

/// Multiply-adds below which another thread costs more than it brings.
const PARALLEL: usize = 1 << 20;

/// A weight matrix `[outputs, inputs]`, row-major.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// rows of the matrix
    pub outputs: usize,
    /// columns of the matrix
    pub inputs: usize,
    data: Data,
}

#[derive(Clone, Debug)]
enum Data {
    Bf16(Vec<Bf16>),
    F16(Vec<F16>),
    F32(Vec<f32>),
}

#[derive(Clone, Copy, Debug)]
struct Bf16(u16);
#[derive(Clone, Copy, Debug)]
struct F16(u16);

trait Element: Copy + Send + Sync {
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
        let first = tensors.first().ok_or_else(|| Error::Shape("a matrix of no tensors".into()))?;
        let mut matrix = Matrix {
            outputs: 0,
            inputs: first.shape.last().copied().unwrap_or(0),
            data: match first.dtype {
                Dtype::BF16 => Data::Bf16(Vec::new()),
                Dtype::F16 => Data::F16(Vec::new()),
                Dtype::F32 => Data::F32(Vec::new()),
            },
        };
        for t in tensors {
            let [out, inputs] = t.shape[..] else {
                return Err(Error::Shape(format!(
                    "{}: shape {:?}, expected two dimensions",
                    t.name, t.shape
                )));
            };
            if inputs != matrix.inputs {
                return Err(Error::Shape(format!(
                    "{}: {inputs} inputs, {} has {}",
                    t.name, first.name, matrix.inputs
                )));
            }
            matrix.outputs += out;
            let u16s = || t.bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
            match (&mut matrix.data, t.dtype) {
                (Data::Bf16(v), Dtype::BF16) => v.extend(u16s().map(Bf16)),
                (Data::F16(v), Dtype::F16) => v.extend(u16s().map(F16)),
                (Data::F32(v), _) => v.extend(t.to_f32()),
                _ => {
                    return Err(Error::Shape(format!(
                        "{} is {}, {} is {}: fused projections need one dtype",
                        t.name,
                        t.dtype.name(),
                        first.name,
                        first.dtype.name()
                    )));
                }
            }
        }
        Ok(matrix)
    }

    /// Bytes the weights take.
    pub fn bytes(&self) -> usize {
        let n = self.outputs * self.inputs;
        if matches!(self.data, Data::F32(_)) { 4 * n } else { 2 * n }
    }

    /// Row `i` as f32.
    pub fn row(&self, i: usize, out: &mut [f32]) {
        let r = i * self.inputs..(i + 1) * self.inputs;
        match &self.data {
            Data::Bf16(v) => out.iter_mut().zip(&v[r]).for_each(|(o, w)| *o = w.f32()),
            Data::F16(v) => out.iter_mut().zip(&v[r]).for_each(|(o, w)| *o = w.f32()),
            Data::F32(v) => out.copy_from_slice(&v[r]),
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
        match &self.data {
            Data::Bf16(v) => self.apply_to(v, out, column, x, range, rows, add),
            Data::F16(v) => self.apply_to(v, out, column, x, range, rows, add),
            Data::F32(v) => self.apply_to(v, out, column, x, range, rows, add),
        }
    }

    #[allow(clippy::too_many_arguments)] // one inner call, split off for the dtype only
    fn apply_to<E: Element>(
        &self,
        v: &[E],
        out: &mut Buf,
        column: usize,
        x: &Buf,
        range: Range<usize>,
        rows: usize,
        add: bool,
    ) {
        let (n, width) = (self.outputs, out.width);
        let task = |out_rows: &mut [f32], row: usize, count: usize| {
            let xs: Vec<&[f32]> = (row..row + count).map(|r| &x.row(r)[range.clone()]).collect();
            let job = Job { w: v, inputs: self.inputs, k: range.clone(), add };
            block(&job, out_rows, width, column, 0..n, &xs);
        };
        let threads = rayon::current_num_threads();
        let data = &mut out.data[..rows * width];
        if rows * n * range.len() < PARALLEL || threads == 1 {
            task(data, 0, rows);
        } else if rows == 1 {
            let xs = [&x.row(0)[range.clone()]];
            let each = n.div_ceil(threads).next_multiple_of(4);
            data[column..column + n].par_chunks_mut(each).enumerate().for_each(|(i, part)| {
                let job = Job { w: &v[i * each * self.inputs..], inputs: self.inputs, k: range.clone(), add };
                let len = part.len();
                block(&job, part, len, 0, 0..len, &xs);
            });
        } else {
            let each = rows.div_ceil(threads);
            data.par_chunks_mut(each * width)
                .enumerate()
                .for_each(|(i, part)| task(part, i * each, part.len() / width));
        }
    }
}

struct Job<'a, E> {
    w: &'a [E],
    inputs: usize,
    k: Range<usize>,
    add: bool,
}

impl<E> Job<'_, E> {
    #[inline(always)]
    fn weights(&self, output: usize) -> &[E] {
        &self.w[output * self.inputs + self.k.start..output * self.inputs + self.k.end]
    }
}

/// All outputs for a few rows: one output for four rows at a time, then four outputs for one row.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2", "aarch64+neon"))]
fn block<E: Element>(
    job: &Job<'_, E>,
    out: &mut [f32],
    width: usize,
    column: usize,
    outputs: Range<usize>,
    xs: &[&[f32]],
) {
    let (fours, ones) = xs.as_chunks::<4>();
    let mut put = |t: usize, r: usize, y: f32| {
        let o = &mut out[t * width + column + r];
        *o = if job.add { *o + y } else { y };
    };
    for (i, x) in fours.iter().enumerate() {
        for r in outputs.clone() {
            let w = job.weights(r);
            let y = dots([w; 4], *x);
            y.iter().enumerate().for_each(|(j, y)| put(4 * i + j, r, *y));
        }
    }
    for (i, x) in ones.iter().enumerate() {
        let t = 4 * fours.len() + i;
        let mut r = outputs.start;
        while r + 4 <= outputs.end {
            let y = dots(std::array::from_fn(|j| job.weights(r + j)), [x; 4]);
            y.iter().enumerate().for_each(|(j, y)| put(t, r + j, *y));
            r += 4;
        }
        for r in r..outputs.end {
            put(t, r, dots([job.weights(r); 4], [x; 4])[0]);
        }
    }
}

/// Four dot products at once. Where the four weights or inputs are the same slice they are loaded once.
#[inline(always)]
fn dots<E: Element>(w: [&[E]; 4], x: [&[f32]; 4]) -> [f32; 4] {
    let ((w0, wt0), (w1, wt1), (w2, wt2), (w3, wt3)) =
        (w[0].as_chunks(), w[1].as_chunks(), w[2].as_chunks(), w[3].as_chunks());
    let ((x0, xt0), (x1, xt1), (x2, xt2), (x3, xt3)) =
        (x[0].as_chunks(), x[1].as_chunks(), x[2].as_chunks(), x[3].as_chunks());
    let (mut a0, mut a1, mut a2, mut a3) = (tail(wt0, xt0), tail(wt1, xt1), tail(wt2, xt2), tail(wt3, xt3));
    let ws = w0.iter().zip(w1).zip(w2).zip(w3);
    let xs = x0.iter().zip(x1).zip(x2).zip(x3);
    for ((((w0, w1), w2), w3), (((x0, x1), x2), x3)) in ws.zip(xs) {
        a0 = multiply_add(a0, w0, x0);
        a1 = multiply_add(a1, w1, x1);
        a2 = multiply_add(a2, w2, x2);
        a3 = multiply_add(a3, w3, x3);
    }
    reduce(&[a0, a1, a2, a3])
}

/// `acc + w·x` by lanes, product and sum rounded separately.
#[inline(always)]
fn multiply_add<E: Element>(mut acc: [f32; LANES], w: &[E; LANES], x: &[f32; LANES]) -> [f32; LANES] {
    for l in 0..LANES {
        acc[l] += w[l].f32() * x[l];
    }
    acc
}

/// Partial sums that hold what does not fill all lanes.
#[inline(always)]
fn tail<E: Element>(w: &[E], x: &[f32]) -> [f32; LANES] {
    let mut acc = [0f32; LANES];
    for ((a, w), x) in acc.iter_mut().zip(w).zip(x) {
        *a = w.f32() * x;
    }
    acc
}
