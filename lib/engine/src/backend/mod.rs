//! What the model text asks of a device: one method an operation, a line of the paper each.
//!
//! Activations are f32 buffers `[rows, width]`, one row a token of the batch. Outputs come first. A fused
//! operation is a method whose default body is its unfused definition, so that the reference inherits the
//! definition and a faster backend proves itself against it.

mod arguments;
pub mod cpu;
pub mod cuda;
mod fused;
mod moe;
mod shapes;
mod watch;

pub use arguments::{DeltaGate, DeltaNet, QkNorm};
pub use cpu::Cpu;
pub use fused::{CoopGdn, CoopLayer, Counters, MLP_SPLIT, MlpLayer, MlpWeights, REGIONS, Regions, Workspace};
pub use moe::{MoeLayer, MoeScratch, MoeWeights, Routing, Taken, top_k};
pub use shapes::{AttentionShape, CacheShape, GdnShape, KvDtype};
pub use watch::{NonFinite, Watch};

use crate::Error;
use crate::batch::Batch;
use crate::dispatch::{Decision, Path};
use crate::knobs::Knobs;
use crate::rope::Rope;
use crate::sampler::{self, Choice};
use cute_checkpoint::{Config, Format, LazyWeight, Tensor, Weight};

/// [`Backend::choose`] for rows that are read.
fn choose_on_the_host<B: Backend>(b: &B, logits: &B::Buf, choices: &[Choice]) -> Result<Vec<u32>, Error> {
    let rows = choices.iter().map(|c| c.row + 1).max().unwrap_or(0);
    let mut all = b.read(logits, rows)?;
    let width = all.len() / rows.max(1);
    Ok(choices.iter().map(|c| sampler::choose(&mut all[c.row * width..][..width], c)).collect())
}

/// A device that runs the model text. Row counts come from the batch; buffers may hold more rows.
pub trait Backend: Sized {
    /// activations, f32 `[rows, width]`
    type Buf;
    /// a one-dimensional weight, f32
    type Vector;
    /// a weight matrix `[out, in]` in its stored dtype
    type Matrix;
    /// KV pages and recurrent slots of all layers
    type Cache;
    /// rotary angles
    type Rope;

    /// What the device is called in records, e.g. `cpu (2 threads)`.
    fn name(&self) -> String;
    /// Blocks of a cooperative launch that are resident at once.
    fn resident_cap(&self) -> usize;
    /// Most sequences that a fused launch takes.
    fn fused_rows(&self) -> usize {
        usize::MAX
    }
    /// Blocks that a cooperative launch for so many sequences has.
    fn coop_blocks(&self, num_seqs: usize) -> usize;

    /// What a prompt may be cut at: the tokens of a step that do not end a prompt are a multiple of this.
    fn chunk_multiple(&self) -> usize {
        1
    }

    /// Whether [`Backend::packed_matrix`] takes weights of a format.
    fn runs_format(&self, format: Format) -> bool {
        !format.is_packed()
    }
    /// Rows of the buffers that [`MoeScratch`] has for one expert, in steps of up to `rows`: none where [`Backend::moe`] has
    /// buffers of its own.
    fn expert_rows(&self, rows: usize) -> usize {
        rows
    }

    /// A zeroed buffer.
    fn buf(&self, rows: usize, width: usize) -> Result<Self::Buf, Error>;
    /// Loads a vector.
    fn vector(&self, tensor: &Tensor) -> Result<Self::Vector, Error>;
    /// Loads the taps of a convolution, `[C, 1, K]`.
    fn taps(&self, tensor: &Tensor) -> Result<Self::Vector, Error>;
    /// Loads matrices with equal `in`, stacked by rows.
    fn matrix(&self, tensors: &[Tensor]) -> Result<Self::Matrix, Error>;
    /// Loads matrices with equal `in`, stacked by rows, some of them packed. A device may keep them packed; their
    /// values are those of [`Weight::to_f32`].
    fn packed_matrix(&self, weights: Vec<Weight>) -> Result<Self::Matrix, Error> {
        let packed = weights.iter().find(|w| w.format().is_packed());
        Err(self.not_yet(&format!("{} weights", packed.map_or("packed", |w| w.format().name()))))
    }
    /// Loads weights with equal `in`, stacked by rows, from where they are stored. A device may fill the matrix by and
    /// by, until [`Backend::end_loading`].
    fn load(&self, weights: Vec<LazyWeight>) -> Result<Self::Matrix, Error> {
        let weights = weights.iter().map(LazyWeight::read_all).collect::<Result<Vec<_>, _>>()?;
        if weights.iter().any(|w| w.format().is_packed()) {
            return self.packed_matrix(weights);
        }
        self.matrix(&weights.into_iter().map(Weight::into_tensor).collect::<Vec<_>>())
    }
    /// Waits until every matrix of [`Backend::load`] is filled; unless `keep`, what is not yet is given up. False when
    /// values were found that stand against the form planned for them: all these matrices are gone then, and are to be
    /// loaded once more.
    fn end_loading(&self, keep: bool) -> Result<bool, Error> {
        let _ = keep;
        Ok(true)
    }
    /// Loads matrices of one shape, each as [`Backend::load`] does, of which a row is multiplied with a few.
    fn expert_matrices(&self, experts: Vec<Vec<LazyWeight>>) -> Result<Vec<Self::Matrix>, Error> {
        experts.into_iter().map(|weights| self.load(weights)).collect()
    }
    /// A matrix of random weights with variance `1 / inputs`, for measurements: so many outputs of each format, one below the
    /// other. Where weights are not kept packed they are bf16.
    fn random_matrix(
        &self,
        outputs: &[(usize, Format)],
        inputs: usize,
        seed: u64,
    ) -> Result<Self::Matrix, Error>;
    /// `count` of them, all of one shape and format, as [`Backend::expert_matrices`] loads them.
    fn random_experts(
        &self,
        count: usize,
        (outputs, format): (usize, Format),
        inputs: usize,
        seed: u64,
    ) -> Result<Vec<Self::Matrix>, Error> {
        let seed = |i: usize| seed.wrapping_add(i as u64);
        (0..count).map(|i| self.random_matrix(&[(outputs, format)], inputs, seed(i))).collect()
    }
    /// Zeroed caches.
    fn cache(&self, config: &Config, shape: CacheShape) -> Result<Self::Cache, Error>;
    /// Takes over rotary angles.
    fn rope(&self, rope: Rope) -> Result<Self::Rope, Error>;
    /// Where a buffer lies.
    fn address(&self, buf: &Self::Buf) -> u64;
    /// Where a slot's state in the first linear layer lies, and where the KV memory starts.
    fn cache_addresses(&self, cache: &Self::Cache, slot: u32) -> [u64; 2];
    /// What the fused launches of a layer work in, by name, and where it lies.
    fn workspace_addresses(&self, ws: &Workspace<Self>) -> Vec<(&'static str, u64)> {
        let buffers = [
            ("wo_output", &ws.wo_output),
            ("mlp_partial", &ws.mlp_partial),
            ("gate_up", &ws.gate_up),
            ("act", &ws.act),
        ];
        buffers.map(|(name, buf)| (name, self.address(buf))).into()
    }
    /// Reads the first `rows` rows back to the host.
    fn read(&self, buf: &Self::Buf, rows: usize) -> Result<Vec<f32>, Error>;

    /// Runs the operations of one step, `ops`, which returns what each attention layer did. A device may record
    /// them under the step's shape, the `intent` of its layers and the `knobs`, and later replay the recording instead.
    fn step(
        &self,
        batch: &Batch,
        intent: &[Decision],
        knobs: &Knobs,
        ops: &mut StepOps<'_>,
    ) -> Result<Vec<Path>, Error> {
        let _ = (batch, intent, knobs);
        ops()
    }

    /// Adds the phases of a layer's last cooperative launch to `regions`, where the device keeps them until asked.
    fn read_regions(&self, layer: usize, regions: &mut Regions) -> Result<(), Error> {
        let _ = (layer, regions);
        Ok(())
    }

    /// Reports what operations write to `watch` from now on. A device that records steps does not record watched ones.
    fn watch(&mut self, watch: Watch);
    /// Where operations report to, when they are watched.
    fn watching(&self) -> Option<&Watch>;
    /// An operation, by its name, has written the first rows of a buffer: those of the step.
    fn wrote(&self, phase: &'static str, buf: &Self::Buf, rows: usize) -> Result<(), Error> {
        watch::report(self, phase, buf, rows, |i| i)
    }
    /// The same where the buffer's i-th row is the step's row `rows[i]`.
    fn wrote_rows(&self, phase: &'static str, buf: &Self::Buf, rows: &[usize]) -> Result<(), Error> {
        watch::report(self, phase, buf, rows.len(), |i| rows[i])
    }

    /// The error for what this device does not run.
    fn not_yet(&self, what: &str) -> Error {
        Error::Config(format!(
            "{what} on {} are not supported yet: run on the CPU (--device cpu)",
            self.name()
        ))
    }

    /// Watches what recording a step does to the caches, from now on; for devices that record steps.
    fn watch_captures(&mut self) {}
    /// Slots and pages that changed while a step was recorded, since this was last asked.
    fn changed_by_capture(&self) -> Vec<(&'static str, u32)> {
        Vec::new()
    }

    /// Fills all of a buffer with NaN; what a device keeps zero behind its rows stays so.
    fn poison_buf(&self, buf: &mut Self::Buf) -> Result<(), Error>;
    /// Fills with NaN what the backend itself works in, and no operation reads before it has written it.
    fn poison_own(&self) -> Result<(), Error> {
        Ok(())
    }

    /// Zeroes conv_state and recurrent_state of a slot in every layer.
    fn zero_slot(&self, cache: &mut Self::Cache, slot: u32) -> Result<(), Error>;
    /// Sets every byte of a slot in every layer.
    fn set_slot(&self, cache: &mut Self::Cache, slot: u32, byte: u8) -> Result<(), Error>;
    /// Whether every byte of a slot is this, in every layer.
    fn slot_holds(&self, cache: &Self::Cache, slot: u32, byte: u8) -> Result<bool, Error>;
    /// Whether every element of a slot is +0 in every layer.
    fn slot_is_zero(&self, cache: &Self::Cache, slot: u32) -> Result<bool, Error> {
        self.slot_holds(cache, slot, 0)
    }
    /// sha256 of a slot's bytes, all layers.
    fn slot_digest(&self, cache: &Self::Cache, slot: u32) -> Result<String, Error>;
    /// Fills a slot with values a fault chooses: `value(i)` for the i-th element over all layers.
    fn fill_slot(
        &self,
        cache: &mut Self::Cache,
        slot: u32,
        value: &mut dyn FnMut() -> f32,
    ) -> Result<(), Error>;

    /// sha256 of a page's bytes, K and V of all layers.
    fn page_digest(&self, cache: &Self::Cache, page: u32) -> Result<String, Error>;
    /// Sets every byte of a page, K and V of all layers.
    fn set_page(&self, cache: &mut Self::Cache, page: u32, byte: u8) -> Result<(), Error>;
    /// Whether every byte of a page is this.
    fn page_holds(&self, cache: &Self::Cache, page: u32, byte: u8) -> Result<bool, Error>;

    /// `x[t] = E[token[t]]`
    fn embed(&self, x: &mut Self::Buf, table: &Self::Matrix, tokens: &[u32]) -> Result<(), Error>;
    /// `out = x · rsqrt(mean(x²) + eps) · (1 + w)`
    fn rms_norm(
        &self,
        out: &mut Self::Buf,
        x: &Self::Buf,
        w: &Self::Vector,
        eps: f32,
        rows: usize,
    ) -> Result<(), Error>;
    /// `x += y`
    fn add(&self, x: &mut Self::Buf, y: &Self::Buf, rows: usize) -> Result<(), Error>;
    /// `out = x Wᵀ`
    fn linear(&self, out: &mut Self::Buf, x: &Self::Buf, w: &Self::Matrix, rows: usize) -> Result<(), Error>;
    /// `out[:, slot] += x[:, k] W[:, k]ᵀ` for the inputs k of `range`; `out` is `[rows, slots · W.out]`.
    fn linear_partial(
        &self,
        out: &mut Self::Buf,
        slot: usize,
        x: &Self::Buf,
        w: &Self::Matrix,
        range: std::ops::Range<usize>,
        rows: usize,
    ) -> Result<(), Error>;
    /// `out = Σ ws[:, slot]`, slots ascending.
    fn gather(&self, out: &mut Self::Buf, ws: &Self::Buf, slots: usize, rows: usize) -> Result<(), Error>;
    /// Zeroes the first rows of a workspace.
    fn zero(&self, buf: &mut Self::Buf, rows: usize) -> Result<(), Error>;
    /// `act = silu(gate) · up`, where `gate_up` is `[gate | up]`
    fn swiglu(&self, act: &mut Self::Buf, gate_up: &Self::Buf, rows: usize) -> Result<(), Error>;
    /// `out[i] = (largest logit, its id's bits)`, ties to the lowest id; `(NaN, _)` when a logit is NaN or +∞, or
    /// none is finite. `out` is `[rows, 2]`.
    fn argmax(&self, out: &mut Self::Buf, logits: &Self::Buf, rows: usize) -> Result<(), Error>;
    /// A token for each choice, as [`sampler::choose`] makes it; rows that are penalised are changed.
    fn choose(&self, logits: &mut Self::Buf, choices: &[Choice]) -> Result<Vec<u32>, Error> {
        choose_on_the_host(self, logits, choices)
    }
    /// Copies rows: `out[i] = x[rows[i]]`
    fn select(&self, out: &mut Self::Buf, x: &Self::Buf, rows: &[usize]) -> Result<(), Error>;
    /// `x[rows[i]] += weights[i] · y[i]`, i ascending; product and sum rounded separately.
    fn add_weighted(
        &self,
        x: &mut Self::Buf,
        y: &Self::Buf,
        rows: &[usize],
        weights: &[f32],
    ) -> Result<(), Error> {
        let _ = (x, y, rows, weights);
        Err(Error::Launch("add_weighted: experts are computed together here".into()))
    }

    /// Norms and rotates q and k in place, and writes k and v to the pages.
    fn qk_norm_rope_kv(
        &self,
        proj: &mut Self::Buf,
        cache: &mut Self::Cache,
        args: &QkNorm<'_, Self>,
        batch: &Batch,
    ) -> Result<(), Error>;
    /// Causal softmax attention over the pages, times `sigmoid(gate)` when gated.
    fn attention(
        &self,
        out: &mut Self::Buf,
        proj: &Self::Buf,
        cache: &Self::Cache,
        shape: &AttentionShape,
        batch: &Batch,
    ) -> Result<(), Error>;

    /// Depthwise causal convolution and SiLU over q, k and v; advances conv_state.
    fn causal_conv1d(
        &self,
        qkv: &mut Self::Buf,
        proj: &Self::Buf,
        w: &Self::Vector,
        cache: &mut Self::Cache,
        shape: &GdnShape,
        batch: &Batch,
    ) -> Result<(), Error>;
    /// `S ← αS; d = β(v − Sᵀk̂); S ← S + k̂dᵀ; o = Sᵀq̂`; advances recurrent_state.
    fn gated_delta_rule(
        &self,
        o: &mut Self::Buf,
        qkv: &Self::Buf,
        proj: &Self::Buf,
        args: &DeltaGate<'_, Self>,
        cache: &mut Self::Cache,
        batch: &Batch,
    ) -> Result<(), Error>;
    /// `y = o · rsqrt(mean(o²) + eps) · w · silu(z)`, per value head, in place.
    fn rms_norm_gated(
        &self,
        o: &mut Self::Buf,
        proj: &Self::Buf,
        w: &Self::Vector,
        shape: &GdnShape,
        eps: f32,
        rows: usize,
    ) -> Result<(), Error>;

    /// Fused: `out = rms_norm(x) Wᵀ`; `n` is scratch. This body is the definition, as below.
    fn norm_linear(
        &self,
        out: &mut Self::Buf,
        n: &mut Self::Buf,
        x: &Self::Buf,
        norm: (&Self::Vector, f32),
        w: &Self::Matrix,
        rows: usize,
    ) -> Result<(), Error> {
        self.rms_norm(n, x, norm.0, norm.1, rows)?;
        self.wrote("norm", n, rows)?;
        self.linear(out, n, w, rows)
    }
    /// Fused: `x += y Wᵀ`; `mixed` is scratch.
    fn linear_add(
        &self,
        x: &mut Self::Buf,
        mixed: &mut Self::Buf,
        y: &Self::Buf,
        w: &Self::Matrix,
        rows: usize,
    ) -> Result<(), Error> {
        self.linear(mixed, y, w, rows)?;
        self.add(x, mixed, rows)
    }
    /// Fused: `act = silu(g) · u` with `[g | u] = rms_norm(x) Wᵀ`; `n` and `gate_up` are scratch.
    fn norm_swiglu(
        &self,
        act: &mut Self::Buf,
        scratch: (&mut Self::Buf, &mut Self::Buf),
        x: &Self::Buf,
        norm: (&Self::Vector, f32),
        w: &Self::Matrix,
        rows: usize,
    ) -> Result<(), Error> {
        let (n, gate_up) = scratch;
        self.rms_norm(n, x, norm.0, norm.1, rows)?;
        self.wrote("norm", n, rows)?;
        self.linear(gate_up, n, w, rows)?;
        self.wrote("gate_up", gate_up, rows)?;
        self.swiglu(act, gate_up, rows)
    }
    /// Fused: `logits[i] = rms_norm(x[rows[i]]) Wᵀ`; the pair is scratch.
    fn lm_head(
        &self,
        logits: &mut Self::Buf,
        (selected, n): (&mut Self::Buf, &mut Self::Buf),
        x: &Self::Buf,
        rows: &[usize],
        norm: (&Self::Vector, f32),
        head: &Self::Matrix,
    ) -> Result<(), Error> {
        self.select(selected, x, rows)?;
        self.rms_norm(n, selected, norm.0, norm.1, rows.len())?;
        self.wrote_rows("norm", n, rows)?;
        self.linear(logits, n, head, rows.len())
    }
    /// Fused: convolution, delta rule and gated norm. `o` is the result, `qkv` scratch.
    fn gated_delta_net(
        &self,
        o: &mut Self::Buf,
        qkv: &mut Self::Buf,
        proj: &Self::Buf,
        args: &DeltaNet<'_, Self>,
        cache: &mut Self::Cache,
        batch: &Batch,
    ) -> Result<(), Error> {
        self.causal_conv1d(qkv, proj, args.taps, cache, &args.gate.shape, batch)?;
        self.wrote("conv", qkv, batch.rows())?;
        self.gated_delta_rule(o, qkv, proj, &args.gate, cache, batch)?;
        self.wrote("delta_rule", o, batch.rows())?;
        self.rms_norm_gated(o, proj, args.norm.0, &args.gate.shape, args.norm.1, batch.rows())
    }
    /// Which experts each row takes, and with what weight, from the router's logits `[rows, E]`: softmax, the `k` largest,
    /// divided by their sum when `normalise`.
    fn route(&self, logits: &Self::Buf, k: usize, normalise: bool, rows: usize) -> Result<Routing, Error> {
        moe::route(self, logits, k, normalise, rows)
    }
    /// `mixed = Σ w_e · expert_e(n)` over the experts that a row takes, in ascending order. Reads chosen experts only.
    fn experts(&self, layer: &mut MoeLayer<'_, Self>, routing: &Routing, rows: usize) -> Result<(), Error> {
        moe::experts(self, layer, routing, rows)
    }
    /// `mixed += sigmoid(w_sg · n) · shared_expert(n)`
    fn shared_expert(&self, layer: &mut MoeLayer<'_, Self>, rows: usize) -> Result<(), Error> {
        moe::shared_expert(self, layer, rows)
    }
    /// Fused: `x += moe(rms_norm(x))`: router, experts, shared expert.
    fn moe(&self, layer: MoeLayer<'_, Self>, rows: usize) -> Result<(), Error> {
        moe::moe(self, layer, rows)
    }
    /// Fused: `x += mlp(rms_norm(x))` with the down product split over [`MLP_SPLIT`] slots (path `lite`).
    fn fused_mlp(
        &self,
        layer: MlpLayer<'_, Self>,
        ws: &mut Workspace<Self>,
        rows: usize,
    ) -> Result<(), Error> {
        fused::mlp(self, layer, ws, rows)
    }
    /// Fused: a whole layer: projections, attention, W_O split into slots, residual and norm, MLP (path `coop`).
    fn coop_layer(
        &self,
        layer: CoopLayer<'_, Self>,
        ws: &mut Workspace<Self>,
        batch: &Batch,
    ) -> Result<(), Error> {
        fused::coop_layer(self, layer, ws, batch)
    }
    /// Fused: a whole gated-delta-net layer of a decode step.
    fn coop_gdn(&self, layer: CoopGdn<'_, Self>, batch: &Batch) -> Result<(), Error> {
        fused::coop_gdn(self, layer, batch)
    }
}

/// The operations of a step; see [`Backend::step`].
pub type StepOps<'a> = dyn FnMut() -> Result<Vec<Path>, Error> + 'a;
