//! Mixtures of experts: who takes which expert is decided on the device, so that steps can be recorded.
//!
//! `route` finds each row's experts, `plan` the list of experts that any row takes, with their rows. The two products of
//! experts.cu go through that list, whatever its length, and read no other expert. `combine` adds up.

use super::gemm::{Tile, on_tensor_cores};
use super::gpu::{Arg, Ptr};
use super::units::{self, Epilogue, Linear, THREADS};
use super::{Buf, Cuda, Matrix, Part, columns, int, layout, ptr};
use crate::Error;
use crate::backend::{Backend, MoeLayer, MoeWeights, Routing, Taken};
use crate::batch::BatchKind;
use cute_checkpoint::Moe;

/// Items of the list for each block of a product: with the one it begins in, no more than its ring has shares for.
const OF_A_BLOCK: usize = 8;

/// The plan of a step, and what experts compute. A line is a row with one of its experts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mixture {
    /// most rows
    rows: usize,
    /// experts there are
    experts: usize,
    /// experts a row takes
    k: usize,
    /// `[rows, k]` experts of each row, ascending
    taken: Ptr,
    /// `[rows, k]` their weights
    weights: Ptr,
    /// `[rows, k]` their lines
    place: Ptr,
    /// `[lines]` the row of each
    row_of: Ptr,
    /// `[items, 4]` expert, first line, lines
    items: Ptr,
    /// of the items of the last plan, and of all
    count: Ptr,
    /// `silu(gate) · up` `[lines, I]`
    act: Buf,
    /// what experts give `[lines, H]`
    out: Buf,
}

/// Elements that the lines of so many rows have, as the operand of the experts' second product.
pub(super) fn narrow_elements(m: &Moe, rows: usize) -> usize {
    rows * m.num_experts_per_tok * m.moe_intermediate_size.next_multiple_of(layout::BLOCK)
}

/// How the products of a step are made: the most lines of an item, and the tiles if it is the tensor cores' prompt.
#[derive(Clone, Copy)]
struct Way {
    rows: usize,
    most: usize,
    tile: Option<Tile>,
}

impl Mixture {
    /// What lies in rows with a padded end.
    pub(super) fn bufs(&self) -> [&Buf; 2] {
        [&self.act, &self.out]
    }
    /// Most items of the list for so many rows, in items of up to `most` lines.
    fn most_items(&self, rows: usize, most: usize) -> usize {
        let lines = rows * self.k;
        // each expert has one that is not full
        lines.min(self.experts + lines / most)
    }
}

impl Cuda {
    /// Of so many rows, those whose experts are computed at once; kernels/linear.cuh has 16 bits for a row.
    pub(super) fn rows_at_once(&self, rows: usize) -> usize {
        rows.min(self.options.expert_rows).clamp(1, 1 << 15)
    }

    /// Room for the experts of steps of up to `rows` rows; and where the plan lies, and its bytes.
    pub(super) fn make_mixture(
        &self,
        m: &Moe,
        hidden: usize,
        rows: usize,
    ) -> Result<(Mixture, (Ptr, usize)), Error> {
        let (rows, experts, k) = (self.rows_at_once(rows), m.num_experts, m.num_experts_per_tok);
        let lines = rows * k;
        let bytes = (4 * lines + 4 * lines + 4) * 4;
        let at = self.memory.zeroed(bytes)?;
        let array = |i: usize| at + (4 * i * lines) as Ptr;
        let mixture = Mixture {
            rows,
            experts,
            k,
            items: at,
            taken: array(4),
            weights: array(5),
            place: array(6),
            row_of: array(7),
            count: array(8),
            act: self.buf(lines, m.moe_intermediate_size)?,
            out: self.buf(lines, hidden)?,
        };
        Ok((mixture, (at, bytes)))
    }

    /// Of how many experts weights were read, since the cache was made; in steps of more than 16 rows those of many rows
    /// count more than once.
    ///
    /// # Errors
    /// When the device has failed, or there are no experts.
    pub fn experts_read(&self) -> Result<u32, Error> {
        let mut count = [0u32; 2];
        self.gpu().download(bytemuck::cast_slice_mut(&mut count), self.mixture()?.count)?;
        Ok(count[1])
    }

    fn mixture(&self) -> Result<Mixture, Error> {
        self.mixture.borrow().ok_or_else(|| Error::Config("experts before the cache was made".into()))
    }

    /// What `route` finds, on the host.
    pub(super) fn routing(
        &self,
        logits: &Buf,
        k: usize,
        normalise: bool,
        rows: usize,
    ) -> Result<Routing, Error> {
        let m = self.mixture()?;
        if rows > m.rows || k != m.k || logits.width != m.experts {
            return Err(Error::Shape(format!(
                "{rows} rows with {k} of {} experts: there is room for {} with {} of {}",
                logits.width, m.rows, m.k, m.experts
            )));
        }
        let way = Way { rows, most: Linear::rows_for(rows), tile: None };
        self.plan(&m, logits, 0, normalise, way)?;
        self.planned(&m, rows)
    }

    /// The plan of the last launch.
    fn planned(&self, m: &Mixture, rows: usize) -> Result<Routing, Error> {
        let (mut taken, mut weights) = (vec![0u32; rows * m.k], vec![0f32; rows * m.k]);
        self.gpu().download(bytemuck::cast_slice_mut(&mut taken), m.taken)?;
        self.gpu().download(bytemuck::cast_slice_mut(&mut weights), m.weights)?;
        let all: Vec<Taken> = taken
            .into_iter()
            .zip(weights)
            .map(|(expert, weight)| Taken { expert: expert as usize, weight })
            .collect();
        Ok(Routing(all.chunks_exact(m.k).map(<[Taken]>::to_vec).collect()))
    }

    /// Who takes which expert, of so many rows from `first` on.
    fn plan(
        &self,
        m: &Mixture,
        logits: &Buf,
        first: usize,
        normalise: bool,
        Way { rows, most, .. }: Way,
    ) -> Result<(), Error> {
        let lists = [m.place, m.items, m.row_of, m.count].map(ptr);
        let args = [
            &[ptr(m.taken), ptr(m.weights)][..],
            &lists,
            &[ptr(row(logits, first)), int(m.experts), int(m.k), int(usize::from(normalise)), int(logits.ld)],
        ];
        let words = |n: usize| (4 * n) as u32;
        let smem = words(m.experts.next_multiple_of(32) + m.k + 9);
        self.launch((units::plain("moe.cu"), "route"), [rows, 1, 1], 288, smem, &args.concat())?;
        if rows == 1 {
            return Ok(());
        }
        let args = [&lists[..], &[ptr(m.taken), int(rows), int(m.experts), int(m.k), int(most)]];
        let smem = words(m.experts + 10);
        self.launch((units::plain("moe.cu"), "plan"), [m.experts, 1, 1], 256, smem, &args.concat())
    }

    /// How so many rows go through a layer's experts: those of a prompt through the tensor cores if all of them can.
    fn way(&self, m: &Mixture, w: &MoeWeights<Self>, rows: usize) -> Way {
        let fits = |experts: &[Matrix]| experts.iter().all(|m| on_tensor_cores(m.head.layout));
        let fit = fits(&w.gate_up) && fits(&w.down);
        if self.kind.get() != BatchKind::Prefill || !self.tensor_cores || !fit {
            return Way { rows, most: Linear::rows_for(rows), tile: None };
        }
        let tile = Tile::of_experts((rows * m.k).div_ceil(m.experts), self.gpu().shared_memory());
        Way { rows, most: tile.block[0], tile: Some(tile) }
    }

    /// One of the two products of the experts that rows take.
    fn expert_product(
        &self,
        m: &Mixture,
        (out, x): (&Buf, &Buf),
        experts: &[Matrix],
        epilogue: Epilogue,
        way: Way,
    ) -> Result<(), Error> {
        let (w, stride) = stack(experts)?;
        let part = match &w.products(epilogue)?[..] {
            [part] => *part,
            _ => return Err(Error::Launch("an expert in two parts".into())),
        };
        let lists = [Arg::U64(stride), ptr(m.items), ptr(m.row_of), ptr(m.count), int(part.n)];
        let items = m.most_items(way.rows, way.most);
        match way.tile {
            Some(tile) => self.expert_gemm((out, x), (part, w.k), &lists, (epilogue, tile), items),
            None => {
                let shared = self.gpu().shared_memory();
                let (k, layout, rows) = (w.k, part.layout, way.most);
                let op = Linear { k, layout, tail: None, rows, epilogue, norm: false, alone: true, shared };
                let args = [&[ptr(part.at), ptr(x.at), ptr(out.at)][..], &lists, &[int(x.ld), int(out.ld)]];
                let tiles = items * part.n.div_ceil(8);
                let blocks = (self.multiprocessors as usize).max(items.div_ceil(OF_A_BLOCK)).min(tiles);
                let unit = (op.experts(), "experts");
                self.launch(unit, [blocks, 1, 1], THREADS, op.smem(), &args.concat())
            }
        }
    }

    /// The same on the tensor cores.
    fn expert_gemm(
        &self,
        (out, x): (&Buf, &Buf),
        (part, k): (Part, usize),
        lists: &[Arg],
        (epilogue, tile): (Epilogue, Tile),
        items: usize,
    ) -> Result<(), Error> {
        let layout = part.layout;
        let narrow = self.narrow(x, (layout, k), x.rows)?;
        let lds = [Arg::U64(layout.kp(k) as u64), Arg::U64(out.ld as u64)];
        let args = [&[ptr(out.at), ptr(narrow), ptr(part.at)][..], lists, &lds].concat();
        let columns = tile.block[1] / if epilogue == Epilogue::Swiglu { 2 } else { 1 };
        let grid = [items * part.n.div_ceil(columns), 1, 1];
        let unit = (tile.experts(layout, k, epilogue), "gemm");
        self.launch(unit, grid, tile.threads(), tile.smem(layout), &args)
    }

    /// `x += moe(rms_norm(x))`.
    pub(super) fn moe_launch(&self, l: MoeLayer<'_, Self>, rows: usize) -> Result<(), Error> {
        let m = self.mixture()?;
        let (w, s) = (l.weights, l.scratch);
        if w.gate_up.len() != m.experts || w.k != m.k {
            return Err(Error::Shape(format!(
                "{} experts of which a row takes {}: there is room for {} and {}",
                w.gate_up.len(),
                w.k,
                m.experts,
                m.k
            )));
        }
        self.rms_norm(l.n, l.x, l.norm.0, l.norm.1, rows)?;
        self.wrote("norm", l.n, rows)?;
        self.product(&s.logits, l.n, &w.gate, Epilogue::Store, rows)?;
        self.wrote("router", &s.logits, rows)?;
        self.product(&s.shared_gate, l.n, &w.shared_gate, Epilogue::Store, rows)?;
        self.product(&s.shared_act, l.n, &w.shared_gate_up, Epilogue::Swiglu, rows)?;
        self.product(&s.out, &s.shared_act, &w.shared_down, Epilogue::Store, rows)?;
        for first in (0..rows).step_by(m.rows) {
            let rows = (rows - first).min(m.rows);
            let way = self.way(&m, w, rows);
            self.plan(&m, &s.logits, first, w.normalise, way)?;
            let act = Buf { rows: rows * m.k, ..m.act };
            self.expert_product(&m, (&act, &part(l.n, first, rows)), &w.gate_up, Epilogue::Swiglu, way)?;
            self.expert_product(&m, (&m.out, &act), &w.down, Epilogue::Store, way)?;
            let combine = |x: Ptr, shared: Ptr| {
                let [mixed, gate] = [&*l.mixed, &s.shared_gate].map(|buf| ptr(row(buf, first)));
                let lists = [ptr(m.out.at), ptr(m.place), ptr(m.weights)];
                let lds = [l.x, l.mixed, &m.out, &s.out, &s.shared_gate].map(|buf| int(buf.ld));
                let args =
                    [&[ptr(x), mixed][..], &lists, &[ptr(shared), gate, int(l.x.width), int(m.k)], &lds];
                let grid = [columns(l.x.width), rows, 1];
                self.launch((units::plain("moe.cu"), "combine"), grid, 256, 0, &args.concat())
            };
            if self.watch.is_none() {
                combine(row(l.x, first), row(&s.out, first))?;
                continue;
            }
            self.blame_experts(&m, first, rows)?;
            combine(0, 0)?;
            self.wrote_part("experts", l.mixed, first, rows)?;
            combine(0, row(&s.out, first))?;
            self.wrote_part("shared_expert", l.mixed, first, rows)?;
            combine(row(l.x, first), row(&s.out, first))?;
        }
        Ok(())
    }

    /// Reports what each expert gave.
    fn blame_experts(&self, m: &Mixture, first: usize, rows: usize) -> Result<(), Error> {
        let mut row_of = vec![0u32; rows * m.k];
        self.gpu().download(bytemuck::cast_slice_mut(&mut row_of), m.row_of)?;
        let rows: Vec<usize> = row_of.into_iter().map(|r| first + r as usize).collect();
        self.wrote_rows("expert", &m.out, &rows)
    }

    /// Reports so many rows of a buffer from `first` on.
    fn wrote_part(&self, phase: &'static str, buf: &Buf, first: usize, rows: usize) -> Result<(), Error> {
        self.wrote_rows(phase, &part(buf, first, rows), &(first..first + rows).collect::<Vec<_>>())
    }
}

/// Where a row begins.
fn row(buf: &Buf, i: usize) -> Ptr {
    buf.at + (i * buf.ld * 4) as Ptr
}

/// So many rows from one on.
fn part(buf: &Buf, first: usize, rows: usize) -> Buf {
    Buf { at: row(buf, first), rows, ..*buf }
}

/// The first of a layer's experts, and the bytes from one to the next.
fn stack(experts: &[Matrix]) -> Result<(Matrix, u64), Error> {
    let [first, rest @ ..] = experts else { return Err(Error::Launch("a layer without experts".into())) };
    let stride = first.bytes() as u64;
    let alike = |(i, m): (usize, &Matrix)| {
        m.head.at == first.head.at + (i as u64 + 1) * stride
            && (m.k, m.head.n, m.head.layout) == (first.k, first.head.n, first.head.layout)
    };
    if first.tail.is_some() || !rest.iter().enumerate().all(alike) {
        return Err(Error::Launch("experts that do not lie one after the other".into()));
    }
    Ok((*first, stride))
}
