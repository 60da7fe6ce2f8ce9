//! The decode step's fused kernels.

use super::gpu::{Arg, Join, Launch, Ptr, Unit};
use super::layouts::Mixer;
use super::units::{self, Coop, Linear, PrefillTile, THREADS};
use super::{Buf, Cache, Cuda, MAX_COOP_ROWS, Matrix, int, ptr};
use crate::Error;
use crate::backend::{AttentionShape, CoopGdn, CoopLayer, DeltaGate, DeltaNet, MlpLayer, Workspace};
use crate::batch::Batch;

impl Cuda {
    /// Convolution, delta rule and gated norm of one token a row.
    pub(super) fn gdn_step(
        &self,
        o: &mut Buf,
        proj: &Buf,
        args: &DeltaNet<'_, Self>,
        cache: &mut Cache,
        batch: &Batch,
    ) -> Result<(), Error> {
        let s = &args.gate.shape;
        let (slots, positions) = self.on_batch(|b| (b.seg_slot(), b.positions()))?;
        let list = [
            ptr(o.at),
            ptr(proj.at),
            ptr(args.taps.at),
            ptr(args.gate.a_log.at),
            ptr(args.gate.dt_bias.at),
            ptr(args.norm.0.at),
            ptr(cache.recurrent(s.state_layer)),
            ptr(cache.ring(s.state_layer)),
            ptr(slots),
            ptr(positions),
            Arg::F32(args.norm.1),
            int(o.ld),
            int(proj.ld),
        ];
        let kernel = (units::gdn("gdn_step.cu", s), "gdn_step");
        self.launch(kernel, [s.num_v_heads, batch.rows(), 1], THREADS, units::gdn_step_smem(s), &list)
    }

    /// The gated delta rule over prompts, chunk by chunk.
    pub(super) fn delta_chunks(
        &self,
        o: &mut Buf,
        qkv: &Buf,
        proj: &Buf,
        args: &DeltaGate<'_, Self>,
        cache: &mut Cache,
        batch: &Batch,
    ) -> Result<(), Error> {
        let s = &args.shape;
        if let Some(cut) = batch.segments.iter().find(|s| s.start % units::GDN_CHUNK != 0) {
            return Err(Error::Launch(format!(
                "request {}: its prompt was cut after {} tokens, which is no multiple of {}",
                cut.owner,
                cut.start,
                units::GDN_CHUNK
            )));
        }
        let unit = units::gdn("gdn_chunked.cu", s);
        let b = self.on_batch(|b| *b)?;
        let [chunks, row, len, slot] =
            [self.gdn_chunks.get(), b.seg_row(), b.seg_len(), b.seg_slot()].map(ptr);
        let (ldo, ldq) = (int(o.ld), int(qkv.ld));
        let longest = batch.segments.iter().map(|s| s.len).max().unwrap_or(0);
        let [a_log, dt_bias] = [args.a_log.at, args.dt_bias.at].map(ptr);
        let list = [chunks, ptr(qkv.at), ptr(proj.at), a_log, dt_bias, row, len, ldq, int(proj.ld)];
        let grid = [s.num_v_heads, longest.div_ceil(units::GDN_CHUNK), batch.segments.len()];
        self.launch((unit.clone(), "chunk_matrices"), grid, 128, units::chunk_matrices_smem(s), &list)?;
        let state = ptr(cache.recurrent(s.state_layer));
        let list = [ptr(o.at), ptr(qkv.at), chunks, state, row, len, slot, ldo, ldq];
        let (blocks, smem) = units::delta_chunks(s);
        let grid = [s.num_v_heads, blocks, batch.segments.len()];
        self.launch((unit, "delta_chunks"), grid, 128, smem, &list)
    }

    /// Decode attention: pieces, then their merge.
    pub(super) fn attend_step(
        &self,
        out: &mut Buf,
        proj: &Buf,
        cache: &Cache,
        s: &AttentionShape,
        batch: &Batch,
    ) -> Result<(), Error> {
        let unit = self.attention_unit()?;
        let b = self.on_batch(|b| *b)?;
        let rows = batch.rows();
        let args = [
            ptr(cache.pieces),
            ptr(proj.at),
            ptr(cache.kv),
            ptr(b.pages()),
            ptr(b.positions()),
            int(b.max_pages),
            int(cache.max_pieces),
            int(s.kv_layer),
            int(proj.ld),
        ];
        // enough blocks to fill the device twice; each takes every so many pieces
        let blocks = cache.max_pieces.min((2 * self.multiprocessors as usize).div_ceil(s.num_kv_heads));
        let grid = [blocks, s.num_kv_heads, rows];
        self.launch((unit.unit("attention_step.cu"), "attend"), grid, THREADS, unit.attend_smem(), &args)?;
        let args = [
            ptr(out.at),
            ptr(cache.pieces),
            ptr(proj.at),
            ptr(b.positions()),
            int(cache.max_pieces),
            int(out.ld),
            int(proj.ld),
        ];
        let block = s.head_dim.next_multiple_of(32) as u32;
        self.launch((unit.unit("attention_step.cu"), "merge"), [s.num_heads, rows, 1], block, 0, &args)
    }

    /// Prefill attention.
    pub(super) fn attend_prefill(
        &self,
        out: &mut Buf,
        proj: &Buf,
        cache: &Cache,
        s: &AttentionShape,
        batch: &Batch,
    ) -> Result<(), Error> {
        let unit = self.attention_unit()?;
        let b = self.on_batch(|b| *b)?;
        let longest = batch.segments.iter().map(|s| s.len).max().unwrap_or(0);
        let shared = self.gpu().shared_memory();
        let tiles = unit.prefill_tiles(shared);
        // tiles of many rows, if their blocks fill the device twice
        let grid = |t: &PrefillTile| [s.num_heads, longest.div_ceil(t.rows()), batch.segments.len()];
        let many = |t: &&PrefillTile| grid(t).iter().product::<usize>() >= 2 * self.multiprocessors as usize;
        let Some(tile) = tiles.iter().find(many).or(tiles.last()) else {
            return Err(Error::Launch(format!(
                "attend_prefill: {shared} bytes of shared memory are too few"
            )));
        };
        let args = [
            ptr(out.at),
            ptr(proj.at),
            ptr(cache.kv),
            ptr(b.pages()),
            ptr(b.seg_row()),
            ptr(b.seg_len()),
            ptr(b.seg_start()),
            int(b.max_pages),
            int(s.kv_layer),
            int(out.ld),
            int(proj.ld),
        ];
        let block = tile.warps as u32 * 32;
        self.launch((tile.unit(&unit), "attend_prefill"), grid(tile), block, tile.smem(&unit), &args)
    }

    /// The MLP of path `lite`: one cooperative launch.
    pub(super) fn mlp_launch(
        &self,
        l: MlpLayer<'_, Self>,
        ws: &mut Workspace<Self>,
        rows: usize,
    ) -> Result<(), Error> {
        let coop = self.coop(&l, rows, false)?;
        let args = self.mlp_args(&l, &ws.act, 0, rows);
        self.cooperative(coop.mlp(), "mlp", &args)
    }

    /// A full-attention layer: one cooperative launch.
    pub(super) fn coop_launch(
        &self,
        l: CoopLayer<'_, Self>,
        ws: &mut Workspace<Self>,
        batch: &Batch,
    ) -> Result<(), Error> {
        let rows = batch.rows();
        let coop = self.coop(&l.mlp, rows, ws.regions.on)?;
        let mixer = mixer(l.qkv_proj, l.o_proj)?;
        let b = self.on_batch(|b| *b)?;
        let mut args = self.mlp_args(&l.mlp, &ws.act, self.timing(l.mlp.index), rows);
        args.extend([
            ptr(l.input_norm.0.at),
            ptr(l.qkv_proj.head.at),
            ptr(l.o_proj.head.at),
            ptr(l.proj.at),
            ptr(l.attn.at),
            ptr(self.slots),
            ptr(l.qk_norm.q_norm.at),
            ptr(l.qk_norm.k_norm.at),
            ptr(l.qk_norm.rope.cos),
            ptr(l.qk_norm.rope.sin),
            ptr(l.cache.kv),
            ptr(l.cache.pieces),
            ptr(b.pages()),
            ptr(b.positions()),
            int(b.max_pages),
            int(l.cache.max_pieces),
            int(l.qk_norm.shape.kv_layer),
            int(l.proj.ld),
            int(l.attn.ld),
            ptr(l.qkv_proj.tail.map_or(0, |t| t.at)),
            int(l.qkv_proj.head.n),
        ]);
        self.cooperative(coop.attention(&self.attention_unit()?, mixer, l.wo_split), "coop_attention", &args)
    }

    /// A gated-delta-net layer: one cooperative launch.
    pub(super) fn coop_gdn_launch(&self, l: CoopGdn<'_, Self>, batch: &Batch) -> Result<(), Error> {
        let rows = batch.rows();
        let coop = self.coop(&l.mlp, rows, false)?;
        let mixer = mixer(l.in_proj, l.out_proj)?;
        let s = &l.args.gate.shape;
        let (slots, positions) = self.on_batch(|b| (b.seg_slot(), b.positions()))?;
        let mut args = self.mlp_args(&l.mlp, l.act, 0, rows);
        args.extend([
            ptr(l.input_norm.0.at),
            ptr(l.in_proj.head.at),
            ptr(l.out_proj.head.at),
            ptr(l.proj.at),
            ptr(l.o.at),
            ptr(l.args.taps.at),
            ptr(l.args.gate.a_log.at),
            ptr(l.args.gate.dt_bias.at),
            ptr(l.args.norm.0.at),
            ptr(l.cache.recurrent(s.state_layer)),
            ptr(l.cache.ring(s.state_layer)),
            ptr(slots),
            ptr(positions),
            int(l.proj.ld),
            int(l.o.ld),
            ptr(l.in_proj.tail.map_or(0, |t| t.at)),
            int(l.in_proj.head.n),
        ]);
        self.cooperative(coop.gdn(s, mixer), "coop_gdn", &args)
    }

    fn coop(&self, l: &MlpLayer<'_, Self>, rows: usize, timing: bool) -> Result<Coop, Error> {
        whole(l.mlp.gate_up)?;
        whole(l.mlp.down)?;
        if rows > MAX_COOP_ROWS {
            return Err(Error::Launch(format!("{rows} rows: a cooperative launch takes {MAX_COOP_ROWS}")));
        }
        Ok(Coop {
            hidden: l.mlp.gate_up.k,
            intermediate: l.mlp.intermediate,
            gate_up: l.mlp.gate_up.head.layout,
            down: l.mlp.down.head.layout,
            rows: Linear::rows_for(rows),
            timing,
            shared: self.gpu().shared_memory(),
        })
    }

    /// The arguments that all cooperative kernels begin with.
    fn mlp_args(&self, l: &MlpLayer<'_, Self>, act: &Buf, timing: Ptr, rows: usize) -> Vec<Arg> {
        vec![
            ptr(l.x.at),
            ptr(l.n.at),
            ptr(self.counters + 4 * l.index as u64),
            ptr(timing),
            ptr(l.mlp.gate_up.head.at),
            ptr(l.mlp.down.head.at),
            ptr(l.norm.0.at),
            ptr(act.at),
            Arg::F32(l.norm.1),
            int(rows),
            int(l.x.ld),
            int(act.ld),
        ]
    }

    fn cooperative(&self, (unit, smem): (Unit, u32), name: &'static str, args: &[Arg]) -> Result<(), Error> {
        let kernel = self.kernel(unit, name, smem)?;
        let resident = self.gpu().occupancy(kernel, THREADS, smem)?;
        if resident == 0 {
            return Err(Error::Launch(format!(
                "{name}: no block of {smem} bytes of shared memory is resident"
            )));
        }
        let join = if self.options.overlap { Join::CooperativeOverlapped } else { Join::Cooperative };
        let launch = Launch { grid: [self.multiprocessors, 1, 1], block: THREADS, smem, join };
        self.gpu().launch(kernel, launch, args)
    }
}

/// Of the matrices of a layer only the projections may have rows of two layouts.
fn whole(w: &Matrix) -> Result<(), Error> {
    let Some(tail) = w.tail else { return Ok(()) };
    let names = [w.head.layout.name(), tail.layout.name()];
    Err(Error::Launch(format!("a matrix of {} and {} rows in a cooperative launch", names[0], names[1])))
}

fn mixer(proj: &Matrix, out: &Matrix) -> Result<Mixer, Error> {
    whole(out)?;
    Ok(Mixer { proj: proj.head.layout, tail: proj.tail.map(|t| t.layout), out: out.head.layout })
}
