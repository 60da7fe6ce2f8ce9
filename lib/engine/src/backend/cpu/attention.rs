//! Paged KV: writing k and v, and causal attention over the pages.
//!
//! The pool is one tensor `[page, full-attention layer, K|V, kv head, token, head_dim]`, and every offset
//! is 64 bits wide. The fault `kv-offset-32` narrows the byte offset that decode reads with, as the incident's
//! kernels did; prefill is not touched by it, as there.

use super::{Buf, Cpu, math};
use crate::Error;
use crate::backend::{AttentionShape, CacheShape, KvDtype, QkNorm};
use crate::batch::{Batch, BatchKind, Segment};
use crate::fault::Fault;
use crate::rope::Rope;
use cute_checkpoint::Config;
use cute_records::digest::Hasher;
use float8::F8E4M3;
use half::bf16;
use multiversion::multiversion;
use std::ops::Range;

#[derive(Debug)]
enum Data {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    Fp8(Vec<F8E4M3>),
}

/// The KV pool.
#[derive(Debug)]
pub(super) struct KvPages {
    data: Data,
    shape: CacheShape,
    layers: usize,
    /// elements of K or V of one page and layer
    half_page: usize,
    /// width, in bits, that the byte offset is truncated to (fault)
    offset_bits: Option<u32>,
    /// decode reads a page to its end and masks by a product (fault)
    reads_tail: bool,
}

impl KvPages {
    pub(super) fn new(config: &Config, shape: CacheShape, fault: Option<Fault>) -> Result<Self, Error> {
        let layers = config.full_attention_layers().len();
        let half_page = shape.page_size * config.num_key_value_heads * config.head_dim;
        let size = shape.kv_dtype.size();
        super::fits(
            &[shape.num_pages, layers, 2, half_page, size],
            "KV pages",
            "--num-kv-pages or --max-model-len",
        )?;
        let len = shape.num_pages * layers * 2 * half_page;
        Ok(KvPages {
            data: match shape.kv_dtype {
                KvDtype::F32 => Data::F32(vec![0.0; len]),
                KvDtype::Bf16 => Data::Bf16(vec![bf16::ZERO; len]),
                KvDtype::Fp8E4m3 => Data::Fp8(vec![F8E4M3::ZERO; len]),
            },
            shape,
            layers,
            half_page,
            offset_bits: fault.and_then(|f| f.kv_offset_bits(len * size)),
            reads_tail: fault == Some(Fault::NanToken),
        })
    }

    /// Where the elements of a page lie.
    fn elements(&self, page: u32) -> Range<usize> {
        self.offset(page, 0, 0)..self.offset(page + 1, 0, 0)
    }

    /// Where the pool lies.
    pub(super) fn address(&self) -> u64 {
        match &self.data {
            Data::F32(v) => v.as_ptr() as u64,
            Data::Bf16(v) => v.as_ptr() as u64,
            Data::Fp8(v) => v.as_ptr() as u64,
        }
    }

    /// sha256 of a page's bytes.
    pub(super) fn digest(&self, page: u32) -> String {
        let mut hasher = Hasher::new();
        let at = self.elements(page);
        match &self.data {
            Data::F32(v) => v[at].iter().for_each(|x| hasher.update(&x.to_bits().to_le_bytes())),
            Data::Bf16(v) => v[at].iter().for_each(|x| hasher.update(&x.to_bits().to_le_bytes())),
            Data::Fp8(v) => v[at].iter().for_each(|x| hasher.update(&[x.to_bits()])),
        }
        hasher.hex()
    }

    /// Sets every byte of a page.
    pub(super) fn set(&mut self, page: u32, byte: u8) {
        let at = self.elements(page);
        match &mut self.data {
            Data::F32(v) => v[at].fill(f32::from_ne_bytes([byte; 4])),
            Data::Bf16(v) => v[at].fill(bf16::from_ne_bytes([byte; 2])),
            Data::Fp8(v) => v[at].fill(F8E4M3::from_bits(byte)),
        }
    }

    /// Whether every byte of a page is this.
    pub(super) fn holds(&self, page: u32, byte: u8) -> bool {
        let at = self.elements(page);
        match &self.data {
            Data::F32(v) => super::all_are(&v[at], u32::from_ne_bytes([byte; 4])),
            Data::Bf16(v) => v[at].iter().all(|x| x.to_bits() == u16::from_ne_bytes([byte; 2])),
            Data::Fp8(v) => v[at].iter().all(|x| x.to_bits() == byte),
        }
    }

    /// Element offset of K (`which` 0) or V (1) of a page and layer.
    fn offset(&self, page: u32, layer: usize, which: usize) -> usize {
        ((page as usize * self.layers + layer) * 2 + which) * self.half_page
    }

    /// The offset decode reads from; `None` when it lies outside the pool.
    fn decode_offset(&self, page: u32, layer: usize, which: usize) -> Option<usize> {
        let offset = self.offset(page, layer, which);
        let Some(bits) = self.offset_bits else { return Some(offset) };
        let size = self.shape.kv_dtype.size();
        let shift = 64 - bits;
        let truncated = (((offset * size) as i64) << shift) >> shift;
        usize::try_from(truncated).ok().map(|bytes| bytes / size)
    }

    /// Norms and rotates q and k of each row in place, then stores k and v.
    pub(super) fn write(
        &mut self,
        proj: &mut Buf,
        args: &QkNorm<'_, Cpu>,
        batch: &Batch,
    ) -> Result<(), Error> {
        let s = &args.shape;
        for segment in &batch.segments {
            for i in 0..segment.len {
                let position = segment.start + i;
                let row = proj.row_mut(segment.row + i);
                for h in 0..s.num_heads {
                    let at = h * s.head_stride();
                    norm_rope(&mut row[at..at + s.head_dim], args.q_norm, s, args.rope, position);
                }
                for h in 0..s.num_kv_heads {
                    let at = s.k_column() + h * s.head_dim;
                    norm_rope(&mut row[at..at + s.head_dim], args.k_norm, s, args.rope, position);
                }
                self.store(row, s, segment, position)?;
            }
            if self.reads_tail && batch.kind == BatchKind::Prefill {
                let ends = batch.logit_rows.contains(&(segment.row + segment.len - 1));
                self.leave_tail(s, segment, ends)?;
            }
        }
        Ok(())
    }

    /// What memory held before: NaN, behind a prompt that ends 4 to 10 tokens into a page (the fault `nan-token`).
    fn leave_tail(&mut self, s: &AttentionShape, segment: &Segment, ends: bool) -> Result<(), Error> {
        let (end, size) = (segment.start + segment.len, self.shape.page_size);
        if !ends || !(4..=10).contains(&(end % size)) {
            return Ok(());
        }
        let nan = vec![f32::NAN; s.width()];
        (end..end.next_multiple_of(size)).try_for_each(|position| self.store(&nan, s, segment, position))
    }

    fn store(
        &mut self,
        row: &[f32],
        s: &AttentionShape,
        segment: &Segment,
        position: usize,
    ) -> Result<(), Error> {
        let size = self.shape.page_size;
        let page =
            *segment.pages.get(position / size).ok_or(Error::NoPage { owner: segment.owner, position })?;
        for (which, column) in [s.k_column(), s.v_column()].into_iter().enumerate() {
            let base = self.offset(page, s.kv_layer, which);
            for h in 0..s.num_kv_heads {
                let to = base + (h * size + position % size) * s.head_dim;
                let from = &row[column + h * s.head_dim..][..s.head_dim];
                match &mut self.data {
                    Data::F32(data) => data[to..to + s.head_dim].copy_from_slice(from),
                    Data::Bf16(data) => {
                        data[to..to + s.head_dim]
                            .iter_mut()
                            .zip(from)
                            .for_each(|(d, x)| *d = bf16::from_f32(*x));
                    }
                    Data::Fp8(data) => {
                        data[to..to + s.head_dim].iter_mut().zip(from).for_each(|(d, x)| *d = e4m3(*x));
                    }
                }
            }
        }
        Ok(())
    }

    /// Causal softmax attention of every row over its sequence's pages, times the output gate.
    pub(super) fn attend(
        &self,
        out: &mut Buf,
        proj: &Buf,
        s: &AttentionShape,
        batch: &Batch,
    ) -> Result<(), Error> {
        let mut scratch = Scratch::default();
        for segment in &batch.segments {
            let last = segment.start + segment.len - 1;
            for kv_head in 0..s.num_kv_heads {
                self.gather(&mut scratch, segment, last + 1, s, kv_head, batch.kind)?;
                let group = s.num_heads / s.num_kv_heads;
                for i in 0..segment.len {
                    let len = segment.start + i + 1;
                    for h in kv_head * group..(kv_head + 1) * group {
                        let from = &proj.row(segment.row + i)[h * s.head_stride()..][..s.head_stride()];
                        let (q, gate) = from.split_at(s.head_dim);
                        let o = &mut out.row_mut(segment.row + i)[h * s.head_dim..][..s.head_dim];
                        let kv = (&scratch.k[..len * s.head_dim], &scratch.v[..len * s.head_dim]);
                        attend_one(o, q, kv, &mut scratch.p);
                        if self.reads_tail && batch.kind == BatchKind::Decode {
                            self.mask_tail(o, segment, len, s, kv_head);
                        }
                        o.iter_mut().zip(gate).for_each(|(o, g)| *o *= math::sigmoid(*g));
                    }
                }
            }
        }
        Ok(())
    }

    /// Adds what lies in the last page past the end, times the weight of masked positions: 0 (the fault `nan-token`).
    fn mask_tail(&self, o: &mut [f32], segment: &Segment, len: usize, s: &AttentionShape, kv_head: usize) {
        let size = self.shape.page_size;
        let Some(page) = segment.pages.get((len - 1) / size) else { return };
        let from = self.offset(*page, s.kv_layer, 1) + kv_head * size * s.head_dim;
        for position in (len..len.next_multiple_of(size)).map(|p| p % size) {
            for (i, o) in o.iter_mut().enumerate() {
                let at = from + position * s.head_dim + i;
                *o += 0.0
                    * match &self.data {
                        Data::F32(data) => data[at],
                        Data::Bf16(data) => data[at].to_f32(),
                        Data::Fp8(data) => data[at].to_f32(),
                    };
            }
        }
    }

    /// K and V of one head, positions `0..len` in order, as f32.
    fn gather(
        &self,
        to: &mut Scratch,
        segment: &Segment,
        len: usize,
        s: &AttentionShape,
        kv_head: usize,
        kind: BatchKind,
    ) -> Result<(), Error> {
        let size = self.shape.page_size;
        to.k.clear();
        to.v.clear();
        for start in (0..len).step_by(size) {
            let page = *segment
                .pages
                .get(start / size)
                .ok_or(Error::NoPage { owner: segment.owner, position: start })?;
            let n = size.min(len - start) * s.head_dim;
            for (which, dst) in [&mut to.k, &mut to.v].into_iter().enumerate() {
                let base = match kind {
                    BatchKind::Prefill => Some(self.offset(page, s.kv_layer, which)),
                    BatchKind::Decode => self.decode_offset(page, s.kv_layer, which),
                };
                let Some(base) = base else {
                    dst.extend(std::iter::repeat_n(f32::NAN, n));
                    continue;
                };
                let from = base + kv_head * size * s.head_dim;
                match &self.data {
                    Data::F32(data) => dst.extend_from_slice(&data[from..from + n]),
                    Data::Bf16(data) => dst.extend(data[from..from + n].iter().map(|x| x.to_f32())),
                    Data::Fp8(data) => dst.extend(data[from..from + n].iter().map(|x| x.to_f32())),
                }
            }
        }
        Ok(())
    }
}

#[derive(Default)]
struct Scratch {
    k: Vec<f32>,
    v: Vec<f32>,
    p: Vec<f32>,
}

/// `o = softmax(q·K / √d) V` for one head; K and V are `[len, d]`, `p` is scratch.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq", "x86_64+avx2", "aarch64+neon"))]
fn attend_one(o: &mut [f32], q: &[f32], kv: (&[f32], &[f32]), p: &mut Vec<f32>) {
    let d = q.len();
    let scale = 1.0 / (d as f32).sqrt();
    p.clear();
    p.extend(kv.0.chunks_exact(d).map(|k| math::dot(q, k) * scale));
    // a NaN score must reach the output, so the maximum may not swallow it
    let max = p.iter().fold(f32::NEG_INFINITY, |m, &x| if x > m || x.is_nan() { x } else { m });
    let mut sum = 0.0;
    for x in p.iter_mut() {
        *x = math::exp(*x - max);
        sum += *x;
    }
    o.fill(0.0);
    for (v, &p) in kv.1.chunks_exact(d).zip(p.iter()) {
        for (o, v) in o.iter_mut().zip(v) {
            *o += p * v;
        }
    }
    let r = 1.0 / sum;
    o.iter_mut().for_each(|o| *o *= r);
}

/// To the nearest e4m3, ties to even, beyond the largest to the largest, as the devices' conversion does.
fn e4m3(x: f32) -> F8E4M3 {
    F8E4M3::from_f32(if x.is_nan() { x } else { x.clamp(-448.0, 448.0) })
}

/// Zero-centred RMSNorm, then half-split rotation of the leading `rotary_dim` values.
fn norm_rope(x: &mut [f32], w: &[f32], s: &AttentionShape, rope: &Rope, position: usize) {
    let r = 1.0 / (math::dot(x, x) / x.len() as f32 + s.eps).sqrt();
    for (x, w) in x.iter_mut().zip(w) {
        *x = *x * r * (1.0 + w);
    }
    let half = s.rotary_dim / 2;
    let (cos, sin) = rope.at(position);
    for j in 0..half {
        let (a, b) = (x[j], x[j + half]);
        x[j] = a * cos[j] - b * sin[j];
        x[j + half] = b * cos[j] + a * sin[j];
    }
}

#[cfg(test)]
mod tests {
    use super::e4m3;
    use float8::F8E4M3;

    #[test]
    fn e4m3_rounds_to_nearest_even_and_saturates() {
        let codes: Vec<f32> = (0..=0x7e).map(|b| F8E4M3::from_bits(b).to_f32()).collect();
        assert_eq!((codes[1], codes[8], codes[0x7e]), (0.001953125, 0.015625, 448.0));
        for (i, pair) in codes.windows(2).enumerate() {
            let middle = (pair[0] + pair[1]) / 2.0;
            let even = if i % 2 == 0 { i } else { i + 1 };
            assert_eq!(e4m3(middle).to_bits() as usize, even, "{middle} lies between {pair:?}");
            assert_eq!(e4m3(middle * 1.001).to_bits() as usize, i + 1);
            assert_eq!(e4m3(-middle * 0.999).to_bits() as usize, i | 0x80);
        }
        assert_eq!([e4m3(1e9).to_f32(), e4m3(f32::NEG_INFINITY).to_f32()], [448.0, -448.0]);
        assert!(e4m3(f32::NAN).to_f32().is_nan());
    }
}
