//! The fused operations' definitions: what `lite` and `coop` compute, slot by slot, with their workspaces.
//!
//! A launch resets what it uses: partial products are added into slots that were zeroed before, and the
//! arrival counters start at zero. Slots are summed in ascending order, so a path gives the same bits each time.

use super::{Backend, DeltaNet, QkNorm};
use crate::Error;
use crate::batch::Batch;
use crate::fault::Fault;
use std::time::{Duration, Instant};

/// Pieces the MLP's down product is split into.
pub const MLP_SPLIT: usize = 8;

/// Weights of one MLP.
pub struct MlpWeights<'a, B: Backend> {
    /// `[gate; up]`, `[2 I, H]`
    pub gate_up: &'a B::Matrix,
    /// `[H, I]`
    pub down: &'a B::Matrix,
    /// I
    pub intermediate: usize,
}

/// Everything a fused MLP reads and writes.
pub struct MlpLayer<'a, B: Backend> {
    /// the decoder layer, from 0
    pub index: usize,
    /// residual stream `[rows, H]`, in place
    pub x: &'a mut B::Buf,
    /// normed activations `[rows, H]`, scratch
    pub n: &'a mut B::Buf,
    /// `[rows, H]`, scratch
    pub mixed: &'a mut B::Buf,
    /// post-attention norm and its eps
    pub norm: (&'a B::Vector, f32),
    /// the MLP
    pub mlp: MlpWeights<'a, B>,
}

/// Everything one cooperative launch reads and writes.
pub struct CoopLayer<'a, B: Backend> {
    /// the MLP and what is common to all phases
    pub mlp: MlpLayer<'a, B>,
    /// attention output `[rows, heads · head_dim]`, scratch
    pub attn: &'a mut B::Buf,
    /// projections of this layer, scratch
    pub proj: &'a mut B::Buf,
    /// pages
    pub cache: &'a mut B::Cache,
    /// input norm and its eps
    pub input_norm: (&'a B::Vector, f32),
    /// `[q; k; v]`
    pub qkv_proj: &'a B::Matrix,
    /// norms and angles of q and k
    pub qk_norm: QkNorm<'a, B>,
    /// `[H, heads · head_dim]`
    pub o_proj: &'a B::Matrix,
    /// pieces each key/value head group's inputs are split into: 1, 2, 4 or 8
    pub wo_split: usize,
}

/// Everything a cooperative launch of a gated-delta-net layer reads and writes.
pub struct CoopGdn<'a, B: Backend> {
    /// the MLP and what is common to all phases
    pub mlp: MlpLayer<'a, B>,
    /// `[rows, 2 I]` and `[rows, I]`, scratch
    pub gate_up: &'a mut B::Buf,
    /// see `gate_up`
    pub act: &'a mut B::Buf,
    /// projections, convolved q, k and v, and the result before the output projection: scratch
    pub proj: &'a mut B::Buf,
    /// see `proj`
    pub qkv: &'a mut B::Buf,
    /// see `proj`
    pub o: &'a mut B::Buf,
    /// slots
    pub cache: &'a mut B::Cache,
    /// input norm and its eps
    pub input_norm: (&'a B::Vector, f32),
    /// `[qkv; z; b; a]`
    pub in_proj: &'a B::Matrix,
    /// the mixer's own weights
    pub args: DeltaNet<'a, B>,
    /// `[H, Hv · Dv]`
    pub out_proj: &'a B::Matrix,
}

/// Arrival counters of a cooperative launch. Each must be zero at its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// attention groups done
    pub pre_wo: usize,
    /// W_O pieces done
    pub phase1: usize,
    /// blocks past the barrier
    pub grid_barrier: usize,
    /// MLP pieces done
    pub mlp: usize,
}

/// The phases of a cooperative launch that are timed with `CUTE_BETA_REGION_TIMING=1`.
pub const REGIONS: [&str; 4] = ["phase1_attn_pre_wo", "phase1_wo_gemv", "phase1_gather_reduce", "phase3_mlp"];

/// Time spent in each of [`REGIONS`]; nothing is read from a clock unless it is on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Regions {
    /// whether launches are timed
    pub on: bool,
    /// time by region, from the first block's entry to the last one's exit
    pub spent: [Duration; REGIONS.len()],
    /// time by region that blocks were in it, on average over the blocks: the rest of `spent` they waited
    pub busy: [Duration; REGIONS.len()],
    /// launches timed
    pub launches: u64,
}

impl Regions {
    fn start(&self) -> Option<Instant> {
        self.on.then(Instant::now)
    }
    /// Adds the time since `mark` to a region and starts the next.
    fn next(&mut self, region: usize, mark: Option<Instant>) -> Option<Instant> {
        let now = mark.map(|_| Instant::now());
        if let (Some(mark), Some(now)) = (mark, now) {
            self.spent[region] += now - mark;
            self.busy[region] += now - mark;
        }
        now
    }
}

/// Persistent buffers of one layer's fused launches.
pub struct Workspace<B: Backend> {
    /// `[rows, kv_heads · wo_split, H]`
    pub wo_output: B::Buf,
    /// `[rows, MLP_SPLIT, H]`
    pub mlp_partial: B::Buf,
    /// `[rows, 2 I]`
    pub gate_up: B::Buf,
    /// `[rows, I]`
    pub act: B::Buf,
    /// arrival counters
    pub counters: Counters,
    /// launches so far
    pub launches: u64,
    /// resets so far
    pub resets: u64,
    /// launches that came to their reset, and those of them that zeroed the W_O slots: one each cooperative launch. A
    /// backend that has launches of its own counts neither
    pub begun: u64,
    /// see `begun`
    pub wo_resets: u64,
    /// launches said to have been cooperative
    pub coop_launches: u64,
    /// `wo_resets` and `begun` when they were last asked for
    told: [u64; 2],
    /// time by phase
    pub regions: Regions,
    /// what is wrong with its resets, if anything
    pub fault: Option<Fault>,
    /// counters are waited for, not checked
    pub unguarded: bool,
}

impl<B: Backend> Workspace<B> {
    /// Buffers for `rows` sequences.
    ///
    /// # Errors
    /// When the device has no memory for them.
    pub fn new(
        backend: &B,
        rows: usize,
        hidden: usize,
        intermediate: usize,
        wo_slots: usize,
    ) -> Result<Self, Error> {
        Ok(Workspace {
            wo_output: backend.buf(rows, wo_slots * hidden)?,
            mlp_partial: backend.buf(rows, MLP_SPLIT * hidden)?,
            gate_up: backend.buf(rows, 2 * intermediate)?,
            act: backend.buf(rows, intermediate)?,
            counters: Counters::default(),
            launches: 0,
            resets: 0,
            begun: 0,
            wo_resets: 0,
            coop_launches: 0,
            told: [0; 2],
            regions: Regions::default(),
            fault: None,
            unguarded: false,
        })
    }

    /// Fills every buffer with NaN.
    pub(crate) fn poison(&mut self, backend: &B) -> Result<(), Error> {
        let Workspace { wo_output, mlp_partial, gate_up, act, .. } = self;
        [wo_output, mlp_partial, gate_up, act].into_iter().try_for_each(|buf| backend.poison_buf(buf))
    }

    /// What a launch does first: zero the partial sums and the counters.
    fn reset(&mut self, backend: &B, rows: usize, with_wo: bool) -> Result<(), Error> {
        self.begun += 1;
        backend.zero(&mut self.mlp_partial, rows)?;
        let grid_barrier =
            if self.fault == Some(Fault::StaleBarrier) { self.counters.grid_barrier } else { 0 };
        self.counters = Counters { grid_barrier, ..Counters::default() };
        if with_wo {
            if self.fault == Some(Fault::SkipWoReset) {
                return Ok(());
            }
            backend.zero(&mut self.wo_output, rows)?;
            self.wo_resets += 1;
        }
        self.resets += 1;
        Ok(())
    }

    /// Takes note of a launch that is said to have been cooperative, or not, and holds that against the resets.
    pub(crate) fn launched(&mut self, layer: usize, coop: bool) -> Result<(), Error> {
        self.launches += 1;
        self.coop_launches += u64::from(coop);
        if self.begun == 0 || self.unguarded || self.wo_resets == self.coop_launches {
            return Ok(());
        }
        let Workspace { wo_resets, coop_launches, .. } = self;
        let message = format!(
            "{coop_launches} cooperative launches are said to have run, its W_O slots were reset {wo_resets} times"
        );
        Err(Error::Counter { layer, message })
    }

    /// How often the W_O slots and the MLP's partial sums were zeroed since this was last asked; `None` where the backend
    /// does not count it.
    pub(crate) fn resets_since(&mut self) -> Option<[u64; 2]> {
        let now = [self.wo_resets, self.begun];
        let before = std::mem::replace(&mut self.told, now);
        (self.begun > 0).then(|| [now[0] - before[0], now[1] - before[1]])
    }

    /// What a block at the grid barrier waits for: is it there already, before any block of this launch has come?
    fn barrier_is_open(&self, rows: usize) -> bool {
        self.unguarded && self.counters.grid_barrier >= rows
    }
}

/// Contiguous piece `i` of `n` of `len` elements.
fn piece(len: usize, i: usize, n: usize) -> std::ops::Range<usize> {
    len * i / n..len * (i + 1) / n
}

fn arrived(layer: usize, name: &str, counter: usize, expected: usize) -> Result<(), Error> {
    if counter == expected {
        return Ok(());
    }
    let message =
        format!("counter {name} is {counter} after its phase, expected {expected}: it was not reset");
    Err(Error::Counter { layer, message })
}

pub(super) fn mlp<B: Backend>(
    b: &B,
    l: MlpLayer<'_, B>,
    ws: &mut Workspace<B>,
    rows: usize,
) -> Result<(), Error> {
    ws.reset(b, rows, false)?;
    b.rms_norm(l.n, l.x, l.norm.0, l.norm.1, rows)?;
    b.wrote("norm", l.n, rows)?;
    mlp_phase(b, l, ws, rows)
}

/// The MLP of the normed `n`, and the residual.
fn mlp_phase<B: Backend>(b: &B, l: MlpLayer<'_, B>, ws: &mut Workspace<B>, rows: usize) -> Result<(), Error> {
    b.linear(&mut ws.gate_up, l.n, l.mlp.gate_up, rows)?;
    b.wrote("gate_up", &ws.gate_up, rows)?;
    b.swiglu(&mut ws.act, &ws.gate_up, rows)?;
    b.wrote("swiglu", &ws.act, rows)?;
    for i in 0..MLP_SPLIT {
        let range = piece(l.mlp.intermediate, i, MLP_SPLIT);
        b.linear_partial(&mut ws.mlp_partial, i, &ws.act, l.mlp.down, range, rows)?;
        ws.counters.mlp += 1;
    }
    arrived(l.index, "mlp_arrival", ws.counters.mlp, MLP_SPLIT)?;
    b.gather(l.mixed, &ws.mlp_partial, MLP_SPLIT, rows)?;
    b.add(l.x, l.mixed, rows)
}

pub(super) fn coop_layer<B: Backend>(
    b: &B,
    l: CoopLayer<'_, B>,
    ws: &mut Workspace<B>,
    batch: &Batch,
) -> Result<(), Error> {
    let rows = batch.rows();
    let m = l.mlp;
    let shape = l.qk_norm.shape;
    ws.reset(b, rows, true)?;
    let mark = ws.regions.start();
    // phase 1: projections, then attention, one group a key/value head
    b.norm_linear(l.proj, m.n, m.x, l.input_norm, l.qkv_proj, rows)?;
    b.wrote("qkv_proj", l.proj, rows)?;
    b.qk_norm_rope_kv(l.proj, l.cache, &l.qk_norm, batch)?;
    b.wrote("qk_norm", l.proj, rows)?;
    b.attention(l.attn, l.proj, l.cache, &shape, batch)?;
    b.wrote("attention", l.attn, rows)?;
    ws.counters.pre_wo += shape.num_kv_heads;
    arrived(m.index, "pre_wo_arrival", ws.counters.pre_wo, shape.num_kv_heads)?;
    let mark = ws.regions.next(0, mark);
    // W_O: the inputs of each group in wo_split pieces, each into its own slot
    let group = shape.num_heads * shape.head_dim / shape.num_kv_heads;
    for by in 0..shape.num_kv_heads {
        for bx in 0..l.wo_split {
            let k = piece(group, bx, l.wo_split);
            let range = by * group + k.start..by * group + k.end;
            b.linear_partial(&mut ws.wo_output, by * l.wo_split + bx, l.attn, l.o_proj, range, rows)?;
            ws.counters.phase1 += 1;
        }
    }
    let slots = shape.num_kv_heads * l.wo_split;
    arrived(m.index, "phase1_arrival", ws.counters.phase1, slots)?;
    let mark = ws.regions.next(1, mark);
    // gather in slot order, residual, norm
    b.gather(m.mixed, &ws.wo_output, slots, rows)?;
    b.add(m.x, m.mixed, rows)?;
    b.wrote("o_proj", m.x, rows)?;
    // phase 2: grid barrier; who is let through too early finds in `n` what phase 1 had there
    if !ws.barrier_is_open(rows) {
        b.rms_norm(m.n, m.x, m.norm.0, m.norm.1, rows)?;
        b.wrote("norm", m.n, rows)?;
    }
    ws.counters.grid_barrier += rows;
    if !ws.unguarded {
        arrived(m.index, "grid_barrier", ws.counters.grid_barrier, rows)?;
    }
    let mark = ws.regions.next(2, mark);
    // phase 3: MLP
    mlp_phase(b, m, ws, rows)?;
    ws.regions.next(3, mark);
    ws.regions.launches += u64::from(mark.is_some());
    Ok(())
}

pub(super) fn coop_gdn<B: Backend>(b: &B, l: CoopGdn<'_, B>, batch: &Batch) -> Result<(), Error> {
    let (rows, m) = (batch.rows(), l.mlp);
    b.norm_linear(l.proj, m.n, m.x, l.input_norm, l.in_proj, rows)?;
    b.wrote("in_proj", l.proj, rows)?;
    b.gated_delta_net(l.o, l.qkv, l.proj, &l.args, l.cache, batch)?;
    b.wrote("gated_norm", l.o, rows)?;
    b.linear_add(m.x, m.mixed, l.o, l.out_proj, rows)?;
    b.wrote("out_proj", m.x, rows)?;
    b.norm_swiglu(l.act, (m.n, l.gate_up), m.x, m.norm, m.mlp.gate_up, rows)?;
    b.wrote("swiglu", l.act, rows)?;
    b.linear_add(m.x, m.mixed, l.act, m.mlp.down, rows)
}
