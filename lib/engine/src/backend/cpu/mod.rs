//! The reference backend: plain loops in a fixed order, f32 arithmetic, weights in their stored dtype.

mod attention;
mod broken;
mod gdn;
pub mod linear;
pub mod math;

use super::{AttentionShape, Backend, CacheShape, DeltaGate, GdnShape, QkNorm, Watch};
use crate::Error;
use crate::batch::{Batch, BatchKind};
use crate::fault::Fault;
use crate::rope::Rope;
use crate::sampler;
use attention::KvPages;
use cute_checkpoint::{Config, Dtype, Format, LayerType, LazyWeight, Tensor, Weight};
use cute_records::digest::Hasher;
pub use linear::Matrix;
use multiversion::multiversion;
use std::ops::Range;

/// Blocks of the seed's cooperative launch per sequence: 8 slices by 8 tiles.
pub const BLOCKS_PER_SEQUENCE: usize = 64;

/// Activations `[rows, width]`.
#[derive(Clone, Debug)]
pub struct Buf {
    /// row-major values
    pub data: Vec<f32>,
    /// columns
    pub width: usize,
}

impl Buf {
    /// Row `i`.
    #[inline(always)]
    pub fn row(&self, i: usize) -> &[f32] {
        &self.data[i * self.width..(i + 1) * self.width]
    }
    /// Row `i`, to write.
    #[inline(always)]
    pub fn row_mut(&mut self, i: usize) -> &mut [f32] {
        &mut self.data[i * self.width..(i + 1) * self.width]
    }
}

/// State of one linear-attention layer and slot.
#[derive(Clone, Debug, Default)]
struct SlotState {
    /// `[Hv, Dk, Dv]`
    recurrent: Vec<f32>,
    /// `[K − 1, C]`, oldest first
    conv: Vec<f32>,
}

/// KV pages and recurrent slots.
#[derive(Debug)]
pub struct Cache {
    kv: KvPages,
    /// `[layer][slot]`
    slots: Vec<Vec<SlotState>>,
}

/// The CPU.
#[derive(Clone, Debug, Default)]
pub struct Cpu {
    /// blocks a cooperative launch may have; no limit by default
    pub resident_cap: Option<usize>,
    /// the fault to inject, if any
    pub fault: Option<Fault>,
    /// where operations report to, when they are watched
    pub watch: Option<Watch>,
}

impl Backend for Cpu {
    type Buf = Buf;
    type Vector = Vec<f32>;
    type Matrix = Matrix;
    type Cache = Cache;
    type Rope = Rope;

    fn name(&self) -> String {
        format!("cpu ({} threads)", rayon::current_num_threads())
    }
    fn resident_cap(&self) -> usize {
        self.resident_cap.unwrap_or(usize::MAX)
    }
    fn coop_blocks(&self, num_seqs: usize) -> usize {
        num_seqs.saturating_mul(BLOCKS_PER_SEQUENCE)
    }

    fn buf(&self, rows: usize, width: usize) -> Result<Buf, Error> {
        let len =
            rows.checked_mul(width).ok_or_else(|| Error::Shape(format!("a buffer of {rows} × {width}")))?;
        Ok(Buf { data: vec![0.0; len], width })
    }
    fn vector(&self, tensor: &Tensor) -> Result<Vec<f32>, Error> {
        Ok(tensor.to_f32())
    }
    fn taps(&self, tensor: &Tensor) -> Result<Vec<f32>, Error> {
        // kept tap by tap, [K, C], so that neighbouring channels are neighbours in memory
        let kernel = tensor.shape.last().copied().unwrap_or(1).max(1);
        let w = tensor.to_f32();
        Ok((0..kernel).flat_map(|tap| w.iter().skip(tap).step_by(kernel).copied()).collect())
    }
    fn matrix(&self, tensors: &[Tensor]) -> Result<Matrix, Error> {
        Matrix::stack(tensors)
    }
    fn runs_format(&self, _: Format) -> bool {
        true
    }
    /// Widens everything to f32, which holds the values of packed weights as they are defined.
    fn packed_matrix(&self, weights: Vec<Weight>) -> Result<Matrix, Error> {
        self.load(weights.into_iter().map(LazyWeight::from).collect())
    }
    fn load(&self, weights: Vec<LazyWeight>) -> Result<Matrix, Error> {
        Matrix::load(&weights)
    }
    fn random_matrix(&self, outputs: &[(usize, Format)], inputs: usize, seed: u64) -> Result<Matrix, Error> {
        let outputs: usize = outputs.iter().map(|(n, _)| n).sum();
        let mut stream = sampler::Stream::new(seed);
        let scale = (12.0 / inputs as f64).sqrt();
        let mut weight = || half::bf16::from_f64((stream.uniform() - 0.5) * scale).to_le_bytes();
        let bytes = (0..outputs * inputs).flat_map(|_| weight()).collect();
        let (name, shape) = ("random".into(), vec![outputs, inputs]);
        Matrix::stack(&[Tensor { name, dtype: Dtype::BF16, shape, bytes }])
    }
    fn cache(&self, config: &Config, shape: CacheShape) -> Result<Cache, Error> {
        let gdn = GdnShape::of(config, 0);
        let layers = config.layer_types.iter().filter(|t| **t == LayerType::LinearAttention).count();
        let slot =
            || SlotState { recurrent: vec![0.0; gdn.recurrent_len()], conv: vec![0.0; gdn.conv_len()] };
        Ok(Cache {
            kv: KvPages::new(config, shape, self.fault)?,
            slots: (0..layers).map(|_| (0..shape.num_slots).map(|_| slot()).collect()).collect(),
        })
    }
    fn rope(&self, rope: Rope) -> Result<Rope, Error> {
        Ok(rope)
    }
    fn address(&self, buf: &Buf) -> u64 {
        buf.data.as_ptr() as u64
    }
    fn cache_addresses(&self, cache: &Cache, slot: u32) -> [u64; 2] {
        let state = cache.states(slot).next().map_or(0, |state| state.as_ptr() as u64);
        [state, cache.kv.address()]
    }
    fn read(&self, buf: &Buf, rows: usize) -> Result<Vec<f32>, Error> {
        Ok(buf.data[..rows * buf.width].to_vec())
    }

    fn watch(&mut self, watch: Watch) {
        self.watch = Some(watch);
    }
    fn watching(&self) -> Option<&Watch> {
        self.watch.as_ref()
    }

    fn zero_slot(&self, cache: &mut Cache, slot: u32) -> Result<(), Error> {
        for state in cache.slots.iter_mut().map(|layer| &mut layer[slot as usize]) {
            state.recurrent.fill(0.0);
            if self.fault != Some(Fault::StaleConv) {
                state.conv.fill(0.0);
            }
        }
        Ok(())
    }
    fn set_slot(&self, cache: &mut Cache, slot: u32, byte: u8) -> Result<(), Error> {
        self.fill_slot(cache, slot, &mut || f32::from_ne_bytes([byte; 4]))
    }
    fn slot_holds(&self, cache: &Cache, slot: u32, byte: u8) -> Result<bool, Error> {
        Ok(cache.states(slot).all(|values| all_are(values, u32::from_ne_bytes([byte; 4]))))
    }
    fn slot_digest(&self, cache: &Cache, slot: u32) -> Result<String, Error> {
        let mut hasher = Hasher::new();
        for values in cache.states(slot) {
            for x in values {
                hasher.update(&x.to_bits().to_le_bytes());
            }
        }
        Ok(hasher.hex())
    }
    fn fill_slot(&self, cache: &mut Cache, slot: u32, value: &mut dyn FnMut() -> f32) -> Result<(), Error> {
        for state in cache.slots.iter_mut().map(|layer| &mut layer[slot as usize]) {
            state.recurrent.iter_mut().chain(&mut state.conv).for_each(|x| *x = value());
        }
        Ok(())
    }

    fn page_digest(&self, cache: &Cache, page: u32) -> Result<String, Error> {
        Ok(cache.kv.digest(page))
    }
    fn set_page(&self, cache: &mut Cache, page: u32, byte: u8) -> Result<(), Error> {
        cache.kv.set(page, byte);
        Ok(())
    }
    fn page_holds(&self, cache: &Cache, page: u32, byte: u8) -> Result<bool, Error> {
        Ok(cache.kv.holds(page, byte))
    }
    fn poison_buf(&self, buf: &mut Buf) -> Result<(), Error> {
        buf.data.fill(f32::NAN);
        Ok(())
    }

    fn embed(&self, x: &mut Buf, table: &Matrix, tokens: &[u32]) -> Result<(), Error> {
        for (i, &token) in tokens.iter().enumerate() {
            if token as usize >= table.outputs {
                return Err(Error::Token { id: token, vocab: table.outputs });
            }
            table.row(token as usize, x.row_mut(i));
        }
        Ok(())
    }
    fn rms_norm(&self, out: &mut Buf, x: &Buf, w: &Vec<f32>, eps: f32, rows: usize) -> Result<(), Error> {
        for i in 0..rows {
            rms_norm_row(out.row_mut(i), x.row(i), w, eps);
        }
        Ok(())
    }
    fn add(&self, x: &mut Buf, y: &Buf, rows: usize) -> Result<(), Error> {
        let n = rows * x.width;
        x.data[..n].iter_mut().zip(&y.data[..n]).for_each(|(x, y)| *x += y);
        Ok(())
    }
    fn linear(&self, out: &mut Buf, x: &Buf, w: &Matrix, rows: usize) -> Result<(), Error> {
        w.apply(out, 0, x, 0..w.inputs, rows, false);
        Ok(())
    }
    fn linear_partial(
        &self,
        out: &mut Buf,
        slot: usize,
        x: &Buf,
        w: &Matrix,
        range: Range<usize>,
        rows: usize,
    ) -> Result<(), Error> {
        w.apply(out, slot * w.outputs, x, range, rows, true);
        Ok(())
    }
    fn gather(&self, out: &mut Buf, ws: &Buf, slots: usize, rows: usize) -> Result<(), Error> {
        let width = out.width;
        for i in 0..rows {
            let parts = ws.row(i);
            let sum = out.row_mut(i);
            sum.copy_from_slice(&parts[..width]);
            for part in parts.chunks_exact(width).take(slots).skip(1) {
                sum.iter_mut().zip(part).for_each(|(s, p)| *s += p);
            }
        }
        Ok(())
    }
    fn zero(&self, buf: &mut Buf, rows: usize) -> Result<(), Error> {
        buf.data[..rows * buf.width].fill(0.0);
        Ok(())
    }
    fn swiglu(&self, act: &mut Buf, gate_up: &Buf, rows: usize) -> Result<(), Error> {
        for i in 0..rows {
            let (gate, up) = gate_up.row(i).split_at(act.width);
            swiglu_row(act.row_mut(i), gate, up);
        }
        Ok(())
    }
    fn argmax(&self, out: &mut Buf, logits: &Buf, rows: usize) -> Result<(), Error> {
        for i in 0..rows {
            let (id, logit) = sampler::argmax(logits.row(i)).unwrap_or((0, f32::NAN));
            out.row_mut(i).copy_from_slice(&[logit, f32::from_bits(id)]);
        }
        Ok(())
    }
    fn select(&self, out: &mut Buf, x: &Buf, rows: &[usize]) -> Result<(), Error> {
        for (i, &r) in rows.iter().enumerate() {
            out.row_mut(i).copy_from_slice(x.row(r));
        }
        Ok(())
    }
    fn add_weighted(&self, x: &mut Buf, y: &Buf, rows: &[usize], weights: &[f32]) -> Result<(), Error> {
        for (i, (&row, w)) in rows.iter().zip(weights).enumerate() {
            x.row_mut(row).iter_mut().zip(y.row(i)).for_each(|(x, y)| *x += w * y);
        }
        Ok(())
    }

    fn qk_norm_rope_kv(
        &self,
        proj: &mut Buf,
        cache: &mut Cache,
        args: &QkNorm<'_, Self>,
        batch: &Batch,
    ) -> Result<(), Error> {
        cache.kv.write(proj, args, batch)
    }
    fn attention(
        &self,
        out: &mut Buf,
        proj: &Buf,
        cache: &Cache,
        shape: &AttentionShape,
        batch: &Batch,
    ) -> Result<(), Error> {
        cache.kv.attend(out, proj, shape, batch)
    }

    fn causal_conv1d(
        &self,
        qkv: &mut Buf,
        proj: &Buf,
        w: &Vec<f32>,
        cache: &mut Cache,
        shape: &GdnShape,
        batch: &Batch,
    ) -> Result<(), Error> {
        let layer = &mut cache.slots[shape.state_layer];
        for s in &batch.segments {
            gdn::causal_conv1d(qkv, proj, w, &mut layer[s.slot as usize].conv, shape, s.row..s.row + s.len);
        }
        if self.fault == Some(Fault::SharedScratch) {
            broken::share_rows(qkv, batch);
        }
        Ok(())
    }
    fn gated_delta_rule(
        &self,
        o: &mut Buf,
        qkv: &Buf,
        proj: &Buf,
        args: &DeltaGate<'_, Self>,
        cache: &mut Cache,
        batch: &Batch,
    ) -> Result<(), Error> {
        let layer = &mut cache.slots[args.shape.state_layer];
        match self.fault {
            Some(Fault::ChunkGrid) if batch.kind == BatchKind::Prefill => {
                broken::delta_rule_over_one_grid(o, qkv, proj, args, layer, batch);
            }
            _ => gdn::gated_delta_rule(o, qkv, proj, args, layer, batch),
        }
        if self.fault == Some(Fault::StateBf16) {
            broken::round_states(layer, batch);
        }
        Ok(())
    }
    fn rms_norm_gated(
        &self,
        o: &mut Buf,
        proj: &Buf,
        w: &Vec<f32>,
        shape: &GdnShape,
        eps: f32,
        rows: usize,
    ) -> Result<(), Error> {
        for i in 0..rows {
            gdn::rms_norm_gated(o.row_mut(i), &proj.row(i)[shape.z_column()..shape.b_column()], w, eps);
        }
        Ok(())
    }
}

impl Cache {
    fn states(&self, slot: u32) -> impl Iterator<Item = &[f32]> {
        let states = self.slots.iter().map(move |layer| &layer[slot as usize]);
        states.flat_map(|s| [&s.recurrent[..], &s.conv[..]])
    }
}

/// Refuses what the memory cannot hold, instead of dying when it is touched.
fn fits(factors: &[usize], what: &str, less: &str) -> Result<(), Error> {
    let bytes = factors.iter().fold(1u128, |bytes, f| bytes.saturating_mul(*f as u128));
    let available = available_memory().unwrap_or(1 << 47);
    if bytes <= u128::from(available) {
        return Ok(());
    }
    let gb = |bytes: u128| bytes as f64 / 1e9;
    Err(Error::Config(format!(
        "the {what} need {:.1} GB, {:.1} GB of memory are available: lower {less}",
        gb(bytes),
        gb(u128::from(available))
    )))
}

/// `MemAvailable` of /proc/meminfo, in bytes; `None` where there is none.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// True when every value has these bits.
#[multiversion(targets("x86_64+avx2", "aarch64+neon"))]
fn all_are(values: &[f32], word: u32) -> bool {
    values.iter().fold(0, |bits, x| bits | (x.to_bits() ^ word)) == 0
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2", "aarch64+neon"))]
fn rms_norm_row(out: &mut [f32], x: &[f32], w: &[f32], eps: f32) {
    let r = 1.0 / (math::dot(x, x) / x.len() as f32 + eps).sqrt();
    for ((o, x), w) in out.iter_mut().zip(x).zip(w) {
        *o = x * r * (1.0 + w);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq", "x86_64+avx2", "aarch64+neon"))]
fn swiglu_row(act: &mut [f32], gate: &[f32], up: &[f32]) {
    for ((a, g), u) in act.iter_mut().zip(gate).zip(up) {
        *a = math::silu(*g) * u;
    }
}
