//! A mixture of experts: router, routed experts, the gated shared expert; what each operation computes.
//!
//! A row's sum runs over the experts it takes in ascending order and ends with the shared expert, whatever other rows are
//! in the step: rows that take the same expert are only multiplied together. An expert that no row takes is not read.

use super::Backend;
use super::cpu::math;
use crate::Error;
use cute_checkpoint::Moe;

/// Weights of the experts of one layer.
pub struct MoeWeights<B: Backend> {
    /// of the router, `[E, H]`
    pub gate: B::Matrix,
    /// `[gate; up]` of each expert, `[2 I, H]`
    pub gate_up: Vec<B::Matrix>,
    /// of each expert, `[H, I]`
    pub down: Vec<B::Matrix>,
    /// `[gate; up]` of the shared expert, `[2 S, H]`
    pub shared_gate_up: B::Matrix,
    /// of the shared expert, `[H, S]`
    pub shared_down: B::Matrix,
    /// of the shared expert's gate, `[1, H]`
    pub shared_gate: B::Matrix,
    /// experts a row takes
    pub k: usize,
    /// the weights of a row's experts sum to 1
    pub normalise: bool,
}

/// Buffers of a mixture of experts for so many rows.
pub struct MoeScratch<B: Backend> {
    /// router logits `[rows, E]`
    pub logits: B::Buf,
    /// rows that take one expert `[rows, H]`; this and the next two have no rows where a device computes all experts at once
    pub taken: B::Buf,
    /// `[gate | up]` of an expert `[rows, 2 I]`
    pub gate_up: B::Buf,
    /// `silu(gate) · up` of an expert `[rows, I]`
    pub act: B::Buf,
    /// what an expert gives `[rows, H]`
    pub out: B::Buf,
    /// as `gate_up`, of the shared expert `[rows, 2 S]`
    pub shared_gate_up: B::Buf,
    /// as `act`, of the shared expert `[rows, S]`
    pub shared_act: B::Buf,
    /// logit of the shared expert's gate `[rows, 1]`
    pub shared_gate: B::Buf,
}

impl<B: Backend> MoeScratch<B> {
    /// Buffers for steps of up to `rows` tokens of width `hidden`.
    ///
    /// # Errors
    /// When the device has no memory for them.
    pub fn new(backend: &B, m: &Moe, hidden: usize, rows: usize) -> Result<Self, Error> {
        let buf = |width| backend.buf(rows, width);
        let of_one = |width| backend.buf(backend.expert_rows(rows), width);
        let (i, s) = (m.moe_intermediate_size, m.shared_expert_intermediate_size);
        Ok(MoeScratch {
            logits: buf(m.num_experts)?,
            taken: of_one(hidden)?,
            gate_up: of_one(2 * i)?,
            act: of_one(i)?,
            out: buf(hidden)?,
            shared_gate_up: buf(2 * s)?,
            shared_act: buf(s)?,
            shared_gate: buf(1)?,
        })
    }
}

impl<B: Backend> MoeScratch<B> {
    /// Fills every buffer with NaN.
    pub(crate) fn poison(&mut self, backend: &B) -> Result<(), Error> {
        let MoeScratch { logits, taken, gate_up, act, out, shared_gate_up, shared_act, shared_gate } = self;
        [logits, taken, gate_up, act, out, shared_gate_up, shared_act, shared_gate]
            .into_iter()
            .try_for_each(|buf| backend.poison_buf(buf))
    }
}

/// Everything a mixture of experts reads and writes.
pub struct MoeLayer<'a, B: Backend> {
    /// residual stream `[rows, H]`, in place
    pub x: &'a mut B::Buf,
    /// normed activations `[rows, H]`, scratch
    pub n: &'a mut B::Buf,
    /// the sum over experts `[rows, H]`, scratch
    pub mixed: &'a mut B::Buf,
    /// the other buffers
    pub scratch: &'a mut MoeScratch<B>,
    /// post-attention norm and its eps
    pub norm: (&'a B::Vector, f32),
    /// the experts
    pub weights: &'a MoeWeights<B>,
}

/// An expert that a row takes, and its weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Taken {
    /// from 0
    pub expert: usize,
    /// what its output is multiplied with
    pub weight: f32,
}

/// The experts of each row, ascending.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Routing(pub Vec<Vec<Taken>>);

impl Routing {
    /// Rows that take an expert, and their weights.
    pub fn rows_of(&self, expert: usize) -> (Vec<usize>, Vec<f32>) {
        let weight = |(row, taken): (usize, &Vec<Taken>)| {
            taken.iter().find(|t| t.expert == expert).map(|t| (row, t.weight))
        };
        self.0.iter().enumerate().filter_map(weight).unzip()
    }

    /// Experts that any row takes, ascending.
    pub fn chosen(&self) -> Vec<usize> {
        let mut all: Vec<usize> = self.0.iter().flatten().map(|t| t.expert).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// The `k` experts with the largest softmax of `logits`, ascending; of equal ones the lower. A NaN makes all weights NaN.
pub fn top_k(logits: &[f32], k: usize, normalise: bool) -> Vec<Taken> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f32> = logits.iter().map(|x| math::exp(x - largest)).collect();
    let sum: f32 = powers.iter().sum();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| powers[b].total_cmp(&powers[a]).then(a.cmp(&b)));
    order.truncate(k);
    let all: f32 = order.iter().map(|&e| powers[e] / sum).sum();
    let weight = |e: usize| if normalise { powers[e] / sum / all } else { powers[e] / sum };
    let mut taken: Vec<Taken> =
        order.iter().map(|&expert| Taken { expert, weight: weight(expert) }).collect();
    taken.sort_by_key(|t| t.expert);
    taken
}

pub(super) fn route<B: Backend>(
    b: &B,
    logits: &B::Buf,
    k: usize,
    normalise: bool,
    rows: usize,
) -> Result<Routing, Error> {
    let all = b.read(logits, rows)?;
    let experts = all.len() / rows.max(1);
    Ok(Routing(all.chunks_exact(experts.max(1)).map(|row| top_k(row, k, normalise)).collect()))
}

pub(super) fn experts<B: Backend>(
    b: &B,
    l: &mut MoeLayer<'_, B>,
    routing: &Routing,
    rows: usize,
) -> Result<(), Error> {
    let s = &mut *l.scratch;
    b.zero(l.mixed, rows)?;
    for e in routing.chosen() {
        let (rows, weights) = routing.rows_of(e);
        b.select(&mut s.taken, l.n, &rows)?;
        b.linear(&mut s.gate_up, &s.taken, &l.weights.gate_up[e], rows.len())?;
        b.swiglu(&mut s.act, &s.gate_up, rows.len())?;
        b.linear(&mut s.out, &s.act, &l.weights.down[e], rows.len())?;
        b.wrote_rows("expert", &s.out, &rows)?;
        b.add_weighted(l.mixed, &s.out, &rows, &weights)?;
    }
    Ok(())
}

pub(super) fn shared_expert<B: Backend>(b: &B, l: &mut MoeLayer<'_, B>, rows: usize) -> Result<(), Error> {
    let (s, w) = (&mut *l.scratch, l.weights);
    b.linear(&mut s.shared_gate, l.n, &w.shared_gate, rows)?;
    let open: Vec<f32> = b.read(&s.shared_gate, rows)?.into_iter().map(math::sigmoid).collect();
    b.linear(&mut s.shared_gate_up, l.n, &w.shared_gate_up, rows)?;
    b.swiglu(&mut s.shared_act, &s.shared_gate_up, rows)?;
    b.linear(&mut s.out, &s.shared_act, &w.shared_down, rows)?;
    b.add_weighted(l.mixed, &s.out, &(0..rows).collect::<Vec<_>>(), &open)
}

pub(super) fn moe<B: Backend>(b: &B, mut l: MoeLayer<'_, B>, rows: usize) -> Result<(), Error> {
    b.rms_norm(l.n, l.x, l.norm.0, l.norm.1, rows)?;
    b.wrote("norm", l.n, rows)?;
    b.linear(&mut l.scratch.logits, l.n, &l.weights.gate, rows)?;
    b.wrote("router", &l.scratch.logits, rows)?;
    let routing = b.route(&l.scratch.logits, l.weights.k, l.weights.normalise, rows)?;
    b.experts(&mut l, &routing, rows)?;
    b.wrote("experts", l.mixed, rows)?;
    b.shared_expert(&mut l, rows)?;
    b.wrote("shared_expert", l.mixed, rows)?;
    b.add(l.x, l.mixed, rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn experts(taken: &[Taken]) -> Vec<usize> {
        taken.iter().map(|t| t.expert).collect()
    }

    #[test]
    fn the_largest_are_taken_in_ascending_order_and_ties_go_to_the_lower() {
        let two = 2f32.ln();
        // softmax of (ln 2, 0, ln 2, 0): 2, 1, 2, 1 of 6
        let taken = top_k(&[two, 0.0, two, 0.0], 3, false);
        assert_eq!(experts(&taken), [0, 1, 2]);
        let weights: Vec<f32> = taken.iter().map(|t| t.weight).collect();
        for (w, want) in weights.iter().zip([2.0 / 6.0, 1.0 / 6.0, 2.0 / 6.0]) {
            assert!((w - want).abs() < 1e-6, "{weights:?}");
        }
        let sum: f32 = top_k(&[two, 0.0, two, 0.0], 3, true).iter().map(|t| t.weight).sum();
        assert!((sum - 1.0).abs() < 1e-6, "{sum}");
    }

    #[test]
    fn logits_that_are_not_finite_end_in_weights_that_are_not() {
        for bad in [f32::NAN, f32::INFINITY] {
            let taken = top_k(&[0.0, bad, 1.0], 2, true);
            assert_eq!(taken.len(), 2);
            assert!(taken.iter().any(|t| t.weight.is_nan()), "{taken:?}");
        }
        assert!(top_k(&[-300.0, 0.0], 2, true).iter().all(|t| t.weight.is_finite()));
    }

    #[test]
    fn an_expert_is_asked_for_its_rows_only() {
        let taken = |expert, weight| Taken { expert, weight };
        let routing = Routing(vec![vec![taken(1, 0.25), taken(4, 0.75)], vec![], vec![taken(4, 1.0)]]);
        assert_eq!(routing.chosen(), [1, 4]);
        assert_eq!(routing.rows_of(4), (vec![0, 2], vec![0.75, 1.0]));
        assert_eq!(routing.rows_of(0), (vec![], vec![]));
    }
}
