//! The gated delta net's three steps: short convolution, the recurrence, the gated norm.
//!
//! Prefill runs the same recurrence as decode, token by token: any cut of a prompt gives the same bits.

use super::{Buf, Cpu, SlotState, math};
use crate::backend::{DeltaGate, GdnShape};
use crate::batch::{Batch, Segment};
use multiversion::multiversion;
use rayon::prelude::*;
use std::ops::Range;

/// State elements below which another thread costs more than it brings.
const PARALLEL: usize = 1 << 15;

/// `c_t = SiLU(Σ_τ w[τ] u_{t−K+1+τ})` for the rows of one sequence. `w` is `[K, C]`, `state` the last
/// K − 1 inputs `[K − 1, C]`, oldest first; it is advanced.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq", "x86_64+avx2", "aarch64+neon"))]
pub(super) fn causal_conv1d(
    qkv: &mut Buf,
    proj: &Buf,
    w: &[f32],
    state: &mut [f32],
    shape: &GdnShape,
    rows: Range<usize>,
) {
    let (c, k) = (shape.channels(), shape.kernel);
    for row in rows {
        let u = &proj.row(row)[..c];
        let out = &mut qkv.row_mut(row)[..c];
        out.fill(0.0);
        let inputs = state.chunks_exact(c).chain(std::iter::once(u));
        for (w, u) in w.chunks_exact(c).zip(inputs) {
            for ((out, w), u) in out.iter_mut().zip(w).zip(u) {
                *out += w * u;
            }
        }
        out.iter_mut().for_each(|x| *x = math::silu(*x));
        if k > 1 {
            state.copy_within(c.., 0);
            state[(k - 2) * c..].copy_from_slice(u);
        }
    }
}

pub(super) fn gated_delta_rule(
    o: &mut Buf,
    qkv: &Buf,
    proj: &Buf,
    args: &DeltaGate<'_, Cpu>,
    slots: &mut [SlotState],
    batch: &Batch,
) {
    let width = o.width;
    let mut rest = &mut o.data[..batch.rows() * width];
    let mut jobs = Vec::with_capacity(batch.segments.len());
    let mut later = Vec::new();
    for s in &batch.segments {
        let (part, tail) = rest.split_at_mut(s.len * width);
        rest = tail;
        match std::mem::take(&mut slots[s.slot as usize].recurrent) {
            // nobody shares a slot, unless a fault makes them: then one goes after the other
            state if state.is_empty() => later.push((s, part)),
            state => jobs.push((s, part, state)),
        }
    }
    let work = |(s, out, state): &mut (&Segment, &mut [f32], Vec<f32>)| {
        for (i, out) in out.chunks_exact_mut(width).enumerate() {
            step(out, qkv.row(s.row + i), proj.row(s.row + i), args, state);
        }
    };
    if jobs.len() > 1 && batch.rows() * args.shape.recurrent_len() >= PARALLEL {
        jobs.par_iter_mut().for_each(work);
    } else {
        jobs.iter_mut().for_each(work);
    }
    for (s, _, state) in jobs {
        slots[s.slot as usize].recurrent = state;
    }
    for (s, part) in later {
        let mut job = (s, part, std::mem::take(&mut slots[s.slot as usize].recurrent));
        work(&mut job);
        slots[s.slot as usize].recurrent = job.2;
    }
}

/// One token, all heads. `out` is `[Hv, Dv]`, `qkv` the convolved `[q | k | v]`, `state` `[Hv, Dk, Dv]`.
pub(super) fn step(out: &mut [f32], qkv: &[f32], proj: &[f32], args: &DeltaGate<'_, Cpu>, state: &mut [f32]) {
    let GdnShape { num_k_heads, num_v_heads, k_dim, v_dim, .. } = args.shape;
    let (q_all, rest) = qkv.split_at(num_k_heads * k_dim);
    let (k_all, v_all) = rest.split_at(num_k_heads * k_dim);
    let per_k = num_v_heads / num_k_heads;
    let (mut q, mut k, mut d) = (vec![0.0; k_dim], vec![0.0; k_dim], vec![0.0; v_dim]);
    for h in 0..num_v_heads {
        if h % per_k == 0 {
            let head = (h / per_k) * k_dim..(h / per_k + 1) * k_dim;
            l2norm(&mut q, &q_all[head.clone()], 1.0 / (k_dim as f32).sqrt());
            l2norm(&mut k, &k_all[head], 1.0);
        }
        let beta = math::sigmoid(proj[args.shape.b_column() + h]);
        let a = proj[args.shape.a_column() + h];
        let g = -libm::expf(args.a_log[h]) * math::softplus(a + args.dt_bias[h]);
        let alpha = math::exp(g);
        let s = &mut state[h * k_dim * v_dim..(h + 1) * k_dim * v_dim];
        let v = &v_all[h * v_dim..(h + 1) * v_dim];
        delta(&mut out[h * v_dim..(h + 1) * v_dim], s, &q, &k, v, (alpha, beta), &mut d);
    }
}

/// `x · rsqrt(Σx² + 1e−6) · scale`
fn l2norm(out: &mut [f32], x: &[f32], scale: f32) {
    let r = 1.0 / (math::dot(x, x) + 1e-6).sqrt();
    for (o, x) in out.iter_mut().zip(x) {
        *o = x * r * scale;
    }
}

/// `S ← αS; d = β(v − Sᵀk); S ← S + k dᵀ; o = Sᵀq` for one head; `d` is scratch.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2", "aarch64+neon"))]
fn delta(o: &mut [f32], s: &mut [f32], q: &[f32], k: &[f32], v: &[f32], gate: (f32, f32), d: &mut [f32]) {
    let (alpha, beta) = gate;
    let dv = v.len();
    d.fill(0.0);
    for (row, &k) in s.chunks_exact_mut(dv).zip(k) {
        for (s, d) in row.iter_mut().zip(&mut *d) {
            *s *= alpha;
            *d += *s * k;
        }
    }
    for (d, v) in d.iter_mut().zip(v) {
        *d = beta * (v - *d);
    }
    o.fill(0.0);
    for ((row, &k), &q) in s.chunks_exact_mut(dv).zip(k).zip(q) {
        for ((s, d), o) in row.iter_mut().zip(&*d).zip(&mut *o) {
            *s += k * d;
            *o += *s * q;
        }
    }
}

/// `o · rsqrt(mean(o²) + eps) · w · silu(z)` per head of `w.len()` values, in place.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq", "x86_64+avx2", "aarch64+neon"))]
pub(super) fn rms_norm_gated(o: &mut [f32], z: &[f32], w: &[f32], eps: f32) {
    for (o, z) in o.chunks_exact_mut(w.len()).zip(z.chunks_exact(w.len())) {
        let r = 1.0 / (math::dot(o, o) / w.len() as f32 + eps).sqrt();
        for ((o, z), w) in o.iter_mut().zip(z).zip(w) {
            *o = *o * r * w * math::silu(*z);
        }
    }
}
