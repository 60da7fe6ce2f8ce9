//! One method an operation: which kernel, which grid, which arguments.

use super::gpu::Arg;
use super::layout::CHUNK;
use super::units::{self, ARGMAX_BLOCKS, Epilogue, THREADS};
use super::{Buf, Cache, Cuda, MAX_COOP_ROWS, Matrix, Rope, Vector, columns, int, ptr};
use crate::Error;
use crate::backend::{
    AttentionShape, Backend, CacheShape, CoopGdn, CoopLayer, DeltaGate, DeltaNet, GdnShape, MlpLayer,
    MoeLayer, QkNorm, Regions, Routing, StepOps, Watch, Workspace,
};
use crate::batch::{Batch, BatchKind};
use crate::dispatch::{Decision, Path};
use crate::knobs::Knobs;
use crate::sampler::Choice;
use cute_checkpoint::{Config, Format, LazyWeight, Tensor, Weight};
use std::ops::Range;

impl Cuda {
    fn elementwise(&self, name: &'static str, width: usize, rows: usize, args: &[Arg]) -> Result<(), Error> {
        self.launch((units::plain("elementwise.cu"), name), [columns(width), rows, 1], 256, 0, args)
    }
}

/// The bf16 pieces of a matrix that `what` needs plain.
fn plain(w: &Matrix, what: &str) -> Result<usize, Error> {
    w.pieces().ok_or_else(|| Error::Launch(format!("{what} of {} weights", w.head.layout.name())))
}

impl Backend for Cuda {
    type Buf = Buf;
    type Vector = Vector;
    type Matrix = Matrix;
    type Cache = Cache;
    type Rope = Rope;

    fn name(&self) -> String {
        self.gpu().name()
    }
    fn resident_cap(&self) -> usize {
        self.multiprocessors as usize
    }
    fn fused_rows(&self) -> usize {
        MAX_COOP_ROWS
    }
    fn coop_blocks(&self, _num_seqs: usize) -> usize {
        self.multiprocessors as usize
    }

    fn chunk_multiple(&self) -> usize {
        if self.options.gdn_chunked { units::GDN_CHUNK } else { 1 }
    }

    fn buf(&self, rows: usize, width: usize) -> Result<Buf, Error> {
        let ld = width.next_multiple_of(CHUNK);
        let bytes =
            rows.checked_mul(ld * 4).ok_or_else(|| Error::Shape(format!("a buffer of {rows} × {width}")))?;
        let at = self.memory.zeroed(bytes)?;
        Ok(Buf { at, rows, width, ld })
    }
    fn vector(&self, tensor: &Tensor) -> Result<Vector, Error> {
        Vector::load(&self.memory, &tensor.to_f32())
    }
    fn taps(&self, tensor: &Tensor) -> Result<Vector, Error> {
        // tap by tap, [K, C], so that neighbouring channels are neighbours in memory
        let kernel = tensor.shape.last().copied().unwrap_or(1).max(1);
        let w = tensor.to_f32();
        let by_tap: Vec<f32> =
            (0..kernel).flat_map(|tap| w.iter().skip(tap).step_by(kernel).copied()).collect();
        Vector::load(&self.memory, &by_tap)
    }
    fn matrix(&self, tensors: &[Tensor]) -> Result<Matrix, Error> {
        self.packed_matrix(tensors.iter().cloned().map(Weight::Plain).collect())
    }
    fn runs_format(&self, _: Format) -> bool {
        true
    }
    fn packed_matrix(&self, weights: Vec<Weight>) -> Result<Matrix, Error> {
        self.load_now(weights.into_iter().map(LazyWeight::from).collect())
    }
    fn load(&self, weights: Vec<LazyWeight>) -> Result<Matrix, Error> {
        self.queue_loading(weights)
    }
    fn end_loading(&self, keep: bool) -> Result<bool, Error> {
        self.finish_loading(keep)
    }
    fn random_matrix(&self, outputs: &[(usize, Format)], inputs: usize, seed: u64) -> Result<Matrix, Error> {
        self.random(outputs, inputs, seed)
    }
    fn expert_rows(&self, _: usize) -> usize {
        0
    }
    fn expert_matrices(&self, experts: Vec<Vec<LazyWeight>>) -> Result<Vec<Matrix>, Error> {
        self.queue_experts(experts)
    }
    fn random_experts(
        &self,
        count: usize,
        (outputs, format): (usize, Format),
        inputs: usize,
        seed: u64,
    ) -> Result<Vec<Matrix>, Error> {
        self.random_alike(count, (outputs, format), inputs, seed)
    }
    fn cache(&self, config: &Config, shape: CacheShape) -> Result<Cache, Error> {
        self.make_cache(config, shape)
    }
    fn rope(&self, rope: crate::rope::Rope) -> Result<Rope, Error> {
        let (cos, sin) = rope.tables();
        Ok(Rope { cos: Vector::load(&self.memory, cos)?.at, sin: Vector::load(&self.memory, sin)?.at })
    }
    fn address(&self, buf: &Buf) -> u64 {
        buf.at
    }
    fn cache_addresses(&self, cache: &Cache, slot: u32) -> [u64; 2] {
        [cache.parts(slot).next().map_or(0, |(at, _)| at), cache.kv]
    }
    fn workspace_addresses(&self, ws: &Workspace<Self>) -> Vec<(&'static str, u64)> {
        vec![("wo_output", self.slots), ("act", ws.act.at), ("counters", self.counters)]
    }
    fn read(&self, buf: &Buf, rows: usize) -> Result<Vec<f32>, Error> {
        let rows = rows.min(buf.rows);
        let mut padded = vec![0f32; rows * buf.ld];
        self.gpu().download(bytemuck::cast_slice_mut(&mut padded), buf.at)?;
        Ok(padded.chunks_exact(buf.ld).flat_map(|row| &row[..buf.width]).copied().collect())
    }
    fn step(
        &self,
        batch: &Batch,
        intent: &[Decision],
        knobs: &Knobs,
        ops: &mut StepOps<'_>,
    ) -> Result<Vec<Path>, Error> {
        self.run_step(batch, intent, knobs, ops)
    }

    fn read_regions(&self, layer: usize, regions: &mut Regions) -> Result<(), Error> {
        self.add_regions(layer, regions)
    }

    fn watch(&mut self, watch: Watch) {
        self.options.graphs = false; // what is recorded does not run, and cannot be looked at
        self.watch = Some(watch);
    }
    fn watching(&self) -> Option<&Watch> {
        self.watch.as_ref()
    }

    fn watch_captures(&mut self) {
        self.captures.watched = true;
    }
    fn changed_by_capture(&self) -> Vec<(&'static str, u32)> {
        self.changed()
    }

    fn poison_buf(&self, buf: &mut Buf) -> Result<(), Error> {
        self.fill_buf(buf, 0xff)
    }
    fn poison_own(&self) -> Result<(), Error> {
        self.poison(0xff)
    }

    fn zero_slot(&self, cache: &mut Cache, slot: u32) -> Result<(), Error> {
        self.set_slot(cache, slot, 0)
    }
    fn set_slot(&self, cache: &mut Cache, slot: u32, byte: u8) -> Result<(), Error> {
        cache.parts(slot).try_for_each(|(at, bytes)| self.gpu().fill(at, byte, bytes))
    }
    fn slot_holds(&self, cache: &Cache, slot: u32, byte: u8) -> Result<bool, Error> {
        self.holds(cache.parts(slot), byte)
    }
    fn slot_digest(&self, cache: &Cache, slot: u32) -> Result<String, Error> {
        self.digest(cache.parts(slot))
    }
    fn page_digest(&self, cache: &Cache, page: u32) -> Result<String, Error> {
        self.digest(std::iter::once(cache.page(page)))
    }
    fn set_page(&self, cache: &mut Cache, page: u32, byte: u8) -> Result<(), Error> {
        let (at, bytes) = cache.page(page);
        self.gpu().fill(at, byte, bytes)
    }
    fn page_holds(&self, cache: &Cache, page: u32, byte: u8) -> Result<bool, Error> {
        self.holds(std::iter::once(cache.page(page)), byte)
    }
    fn fill_slot(&self, cache: &mut Cache, slot: u32, value: &mut dyn FnMut() -> f32) -> Result<(), Error> {
        for (at, bytes) in cache.parts(slot) {
            let part: Vec<f32> = (0..bytes / 4).map(|_| value()).collect();
            self.gpu().upload(at, bytemuck::cast_slice(&part))?;
        }
        Ok(())
    }

    fn embed(&self, x: &mut Buf, table: &Matrix, tokens: &[u32]) -> Result<(), Error> {
        if let Some(id) = tokens.iter().find(|id| **id as usize >= table.n()) {
            return Err(Error::Token { id: *id, vocab: table.n() });
        }
        let pieces = plain(table, "an embedding")?;
        let args = [
            ptr(x.at),
            ptr(table.head.at),
            ptr(self.on_batch(|b| b.tokens())?),
            int(table.k),
            int(pieces),
            int(table.kp()),
            int(x.ld),
            ptr(self.counters),
            int(self.layers),
        ];
        let grid = [table.k.div_ceil(256 * 8), tokens.len(), 1];
        self.launch((units::plain("embed.cu"), "embed"), grid, 256, 0, &args)
    }
    fn rms_norm(&self, out: &mut Buf, x: &Buf, w: &Vector, eps: f32, rows: usize) -> Result<(), Error> {
        let args = [ptr(out.at), ptr(x.at), ptr(w.at), Arg::F32(eps), int(out.ld), int(x.ld)];
        self.launch((units::norm(x.width), "rms_norm"), [rows, 1, 1], THREADS, 64, &args)
    }
    fn add(&self, x: &mut Buf, y: &Buf, rows: usize) -> Result<(), Error> {
        self.elementwise("add", x.width, rows, &[ptr(x.at), ptr(y.at), int(x.width), int(x.ld), int(y.ld)])
    }
    fn linear(&self, out: &mut Buf, x: &Buf, w: &Matrix, rows: usize) -> Result<(), Error> {
        self.product(out, x, w, Epilogue::Store, rows)
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
        let pieces = plain(w, "a product over a part of the inputs")?;
        w.parts().into_iter().try_for_each(|part| {
            let args = [
                ptr(out.at + 4 * (slot * w.n() + part.first) as u64),
                ptr(x.at),
                ptr(part.at),
                int(range.start),
                int(range.end),
                int(part.n),
                int(pieces),
                int(w.kp()),
                int(out.ld),
                int(x.ld),
            ];
            let unit = (units::plain("elementwise.cu"), "linear_partial");
            self.launch(unit, [part.n.div_ceil(8), rows, 1], 256, 0, &args)
        })
    }
    fn gather(&self, out: &mut Buf, ws: &Buf, slots: usize, rows: usize) -> Result<(), Error> {
        let args = [ptr(out.at), ptr(ws.at), int(slots), int(out.width), int(out.ld), int(ws.ld)];
        self.elementwise("gather", out.width, rows, &args)
    }
    fn zero(&self, buf: &mut Buf, rows: usize) -> Result<(), Error> {
        self.gpu().fill(buf.at, 0, rows * buf.ld * 4)
    }
    fn swiglu(&self, act: &mut Buf, gate_up: &Buf, rows: usize) -> Result<(), Error> {
        let args = [ptr(act.at), ptr(gate_up.at), int(act.width), int(act.ld), int(gate_up.ld)];
        self.elementwise("swiglu", act.width, rows, &args)
    }
    fn argmax(&self, out: &mut Buf, logits: &Buf, rows: usize) -> Result<(), Error> {
        let unit = units::plain("argmax.cu");
        let scratch = 8 * 8;
        for first in (0..rows).step_by(self.argmax_rows) {
            let rows = (rows - first).min(self.argmax_rows);
            let at = |b: &Buf| ptr(b.at + (first * b.ld * 4) as u64);
            let args = [ptr(self.argmax), at(logits), int(logits.width), int(logits.ld)];
            let grid = [ARGMAX_BLOCKS as usize, rows, 1];
            self.launch((unit.clone(), "argmax_part"), grid, 256, scratch, &args)?;
            let args = [at(out), ptr(self.argmax), Arg::U32(ARGMAX_BLOCKS), int(out.ld)];
            self.launch((unit.clone(), "argmax_whole"), [rows, 1, 1], 256, scratch, &args)?;
        }
        Ok(())
    }
    fn choose(&self, logits: &mut Buf, choices: &[Choice]) -> Result<Vec<u32>, Error> {
        self.choose_tokens(logits, choices)
    }
    fn select(&self, out: &mut Buf, x: &Buf, rows: &[usize]) -> Result<(), Error> {
        let at = self.on_batch(|b| b.logit_rows())?;
        let args = [ptr(out.at), ptr(x.at), ptr(at), int(out.width), int(out.ld), int(x.ld)];
        self.elementwise("select_rows", out.width, rows.len(), &args)
    }

    fn qk_norm_rope_kv(
        &self,
        proj: &mut Buf,
        cache: &mut Cache,
        args: &QkNorm<'_, Self>,
        batch: &Batch,
    ) -> Result<(), Error> {
        let (s, unit) = (&args.shape, self.attention_unit()?);
        let (pages, segment, positions, max_pages) =
            self.on_batch(|b| (b.pages(), b.segment(), b.positions(), b.max_pages))?;
        let args = [
            ptr(proj.at),
            ptr(args.q_norm.at),
            ptr(args.k_norm.at),
            ptr(args.rope.cos),
            ptr(args.rope.sin),
            ptr(cache.kv),
            ptr(pages),
            ptr(segment),
            ptr(positions),
            int(max_pages),
            int(s.kv_layer),
            Arg::F32(s.eps),
            int(proj.ld),
        ];
        let items = s.num_heads + 2 * s.num_kv_heads;
        let smem = (4 * s.head_dim * 4) as u32;
        let kernel = (unit.unit("attention_step.cu"), "qk_norm_rope_kv");
        self.launch(kernel, [items.div_ceil(4), batch.rows(), 1], 128, smem, &args)
    }
    fn attention(
        &self,
        out: &mut Buf,
        proj: &Buf,
        cache: &Cache,
        shape: &AttentionShape,
        batch: &Batch,
    ) -> Result<(), Error> {
        match batch.kind {
            BatchKind::Decode => self.attend_step(out, proj, cache, shape, batch),
            BatchKind::Prefill => self.attend_prefill(out, proj, cache, shape, batch),
        }
    }

    fn causal_conv1d(
        &self,
        qkv: &mut Buf,
        proj: &Buf,
        w: &Vector,
        cache: &mut Cache,
        shape: &GdnShape,
        batch: &Batch,
    ) -> Result<(), Error> {
        let unit = units::gdn("gdn_sequence.cu", shape);
        let ring = ptr(cache.ring(shape.state_layer));
        let b = self.on_batch(|b| *b)?;
        let grid = |rows| [columns(shape.channels()), rows, 1];
        let args = [
            ptr(qkv.at),
            ptr(proj.at),
            ptr(w.at),
            ring,
            ptr(b.segment()),
            ptr(b.seg_row()),
            ptr(b.seg_slot()),
            ptr(b.positions()),
            int(qkv.ld),
            int(proj.ld),
        ];
        self.launch((unit.clone(), "causal_conv1d"), grid(batch.rows()), 256, 0, &args)?;
        let [row, len, start, slot] = [b.seg_row(), b.seg_len(), b.seg_start(), b.seg_slot()].map(ptr);
        let args = [ring, ptr(proj.at), row, len, start, slot, int(proj.ld)];
        self.launch((unit, "conv_advance"), grid(batch.segments.len()), 256, 0, &args)
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
        if self.options.gdn_chunked {
            return self.delta_chunks(o, qkv, proj, args, cache, batch);
        }
        let s = &args.shape;
        let b = self.on_batch(|b| *b)?;
        let unit = units::gdn("gdn_sequence.cu", s);
        let scalars = ptr(self.delta_scalars.get());
        let (ldo, ldq) = (int(o.ld), int(qkv.ld));
        let list =
            [scalars, ptr(qkv.at), ptr(proj.at), ptr(args.a_log.at), ptr(args.dt_bias.at), ldq, int(proj.ld)];
        let grid = [s.num_k_heads.div_ceil(8), batch.rows(), 1];
        self.launch((unit.clone(), "delta_scalars"), grid, 256, 0, &list)?;
        let state = ptr(cache.recurrent(s.state_layer));
        let [row, len, slot] = [b.seg_row(), b.seg_len(), b.seg_slot()].map(ptr);
        let list = [ptr(o.at), ptr(qkv.at), scalars, state, row, len, slot, ldo, ldq];
        let (blocks, smem) = units::delta_rule(s);
        self.launch((unit, "delta_rule"), [blocks, batch.segments.len(), 1], 128, smem, &list)
    }
    fn rms_norm_gated(
        &self,
        o: &mut Buf,
        proj: &Buf,
        w: &Vector,
        shape: &GdnShape,
        eps: f32,
        rows: usize,
    ) -> Result<(), Error> {
        let args = [ptr(o.at), ptr(proj.at), ptr(w.at), Arg::F32(eps), int(o.ld), int(proj.ld)];
        let kernel = (units::gdn("gdn_sequence.cu", shape), "rms_norm_gated");
        self.launch(kernel, [shape.num_v_heads.div_ceil(8), rows, 1], 256, 0, &args)
    }

    fn norm_linear(
        &self,
        out: &mut Buf,
        n: &mut Buf,
        x: &Buf,
        norm: (&Vector, f32),
        w: &Matrix,
        rows: usize,
    ) -> Result<(), Error> {
        self.normed_product(out, n, x, norm, (w, Epilogue::Store), rows)
    }
    fn linear_add(
        &self,
        x: &mut Buf,
        _mixed: &mut Buf,
        y: &Buf,
        w: &Matrix,
        rows: usize,
    ) -> Result<(), Error> {
        self.product(x, y, w, Epilogue::Add, rows)
    }
    fn norm_swiglu(
        &self,
        act: &mut Buf,
        (n, _gate_up): (&mut Buf, &mut Buf),
        x: &Buf,
        norm: (&Vector, f32),
        w: &Matrix,
        rows: usize,
    ) -> Result<(), Error> {
        self.normed_product(act, n, x, norm, (w, Epilogue::Swiglu), rows)
    }
    fn lm_head(
        &self,
        logits: &mut Buf,
        (selected, n): (&mut Buf, &mut Buf),
        x: &Buf,
        rows: &[usize],
        norm: (&Vector, f32),
        head: &Matrix,
    ) -> Result<(), Error> {
        self.select(selected, x, rows)?;
        self.normed_linear(logits, n, selected, norm, (head, Epilogue::Store), rows.len())
    }
    fn gated_delta_net(
        &self,
        o: &mut Buf,
        qkv: &mut Buf,
        proj: &Buf,
        args: &DeltaNet<'_, Self>,
        cache: &mut Cache,
        batch: &Batch,
    ) -> Result<(), Error> {
        if batch.kind == BatchKind::Decode {
            return self.gdn_step(o, proj, args, cache, batch);
        }
        self.causal_conv1d(qkv, proj, args.taps, cache, &args.gate.shape, batch)?;
        self.wrote("conv", qkv, batch.rows())?;
        self.gated_delta_rule(o, qkv, proj, &args.gate, cache, batch)?;
        self.wrote("delta_rule", o, batch.rows())?;
        self.rms_norm_gated(o, proj, args.norm.0, &args.gate.shape, args.norm.1, batch.rows())
    }
    fn route(&self, logits: &Buf, k: usize, normalise: bool, rows: usize) -> Result<Routing, Error> {
        self.routing(logits, k, normalise, rows)
    }
    fn moe(&self, layer: MoeLayer<'_, Self>, rows: usize) -> Result<(), Error> {
        self.moe_launch(layer, rows)
    }
    fn fused_mlp(
        &self,
        layer: MlpLayer<'_, Self>,
        ws: &mut Workspace<Self>,
        rows: usize,
    ) -> Result<(), Error> {
        self.mlp_launch(layer, ws, rows)
    }
    fn coop_layer(
        &self,
        layer: CoopLayer<'_, Self>,
        ws: &mut Workspace<Self>,
        batch: &Batch,
    ) -> Result<(), Error> {
        self.coop_launch(layer, ws, batch)
    }
    fn coop_gdn(&self, layer: CoopGdn<'_, Self>, batch: &Batch) -> Result<(), Error> {
        self.coop_gdn_launch(layer, batch)
    }
}
