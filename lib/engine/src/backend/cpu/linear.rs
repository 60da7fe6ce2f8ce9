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
                return Err(Error::Shape(format!("{}: shape {:?}, expected two dimensions", t.name, t.shape)));
            };
            if inputs != matrix.inputs {
                return Err(Error::Shape(format!("{}: {inputs} inputs, {} has {}", t.name, first.name, matrix.inputs)));
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
    pub(super) fn apply(&self, out: &mut Buf, column: usize, x: &Buf, range: Range<usize>, rows: usize, add: bool) {
        match &self.data {
            Data::Bf16(v) => self.apply_to(v, out, column, x, range, rows, add),
            Data::F16(v) => self.apply_to(v, out, column, x, range, rows, add),
            Data::F32(v) => self.apply_to(v, out, column, x, range, rows, add),
        }
    }

    #[allow(clippy::too_many_arguments)] // one inner call, split off for the dtype only
    fn apply_to<E: Element>(&self, v: &[E], out: &mut Buf, column: usize, x: &Buf, range: Range<usize>, rows: usize, add: bool) {
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
            data.par_chunks_mut(each * width).enumerate().for_each(|(i, part)| task(part, i * each, part.len() / width));
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

/// All outputs for a few rows: four rows at a time, then one by one.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "aarch64+neon"))]
fn block<E: Element>(job: &Job<'_, E>, out: &mut [f32], width: usize, column: usize, outputs: Range<usize>, xs: &[&[f32]]) {
    let mut t = 0;
    while t < xs.len() {
        if xs.len() - t >= 4 {
            tile::<E, 2, 4>(job, out, width, column, outputs.clone(), xs, t);
            t += 4;
        } else {
            tile::<E, 4, 1>(job, out, width, column, outputs.clone(), xs, t);
            t += 1;
        }
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)] // inlined into `block`
fn tile<E: Element, const R: usize, const T: usize>(
    job: &Job<'_, E>,
    out: &mut [f32],
    width: usize,
    column: usize,
    outputs: Range<usize>,
    xs: &[&[f32]],
    t: usize,
) {
    let mut put = |r: usize, i: usize, y: f32| {
        let o = &mut out[(t + i) * width + column + r];
        *o = if job.add { *o + y } else { y };
    };
    let x: [&[f32]; T] = std::array::from_fn(|i| xs[t + i]);
    let mut r = outputs.start;
    while r + R <= outputs.end {
        let w: [&[E]; R] = std::array::from_fn(|i| job.weights(r + i));
        let y = dots::<E, R, T>(w, x);
        for (i, row) in y.iter().enumerate() {
            for (j, &v) in row.iter().enumerate() {
                put(r + i, j, v);
            }
        }
        r += R;
    }
    while r < outputs.end {
        let y = dots::<E, 1, T>([job.weights(r)], x);
        for (j, &v) in y[0].iter().enumerate() {
            put(r, j, v);
        }
        r += 1;
    }
}

#[inline(always)]
fn dots<E: Element, const R: usize, const T: usize>(w: [&[E]; R], x: [&[f32]; T]) -> [[f32; T]; R] {
    let n = w[0].len();
    let whole = n / LANES * LANES;
    let mut acc = [[[0f32; LANES]; T]; R];
    for r in 0..R {
        for t in 0..T {
            for (l, (a, b)) in w[r][whole..].iter().zip(&x[t][whole..n]).enumerate() {
                acc[r][t][l] = a.f32() * b;
            }
        }
    }
    let mut k = 0;
    while k < whole {
        let xk: [&[f32; LANES]; T] = std::array::from_fn(|t| lanes(x[t], k));
        for r in 0..R {
            let wk: &[E; LANES] = lanes(w[r], k);
            let mut wf = [0f32; LANES];
            for l in 0..LANES {
                wf[l] = wk[l].f32();
            }
            for t in 0..T {
                for l in 0..LANES {
                    acc[r][t][l] += wf[l] * xk[t][l];
                }
            }
        }
        k += LANES;
    }
    std::array::from_fn(|r| std::array::from_fn(|t| reduce(acc[r][t])))
}

/// The [`LANES`] elements from `k` on.
#[inline(always)]
fn lanes<T>(x: &[T], k: usize) -> &[T; LANES] {
    match x[k..k + LANES].try_into() {
        Ok(a) => a,
        Err(_) => unreachable!("a slice of LANES elements is an array of LANES elements"),
    }
}
