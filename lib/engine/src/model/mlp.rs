//! The MLP of a layer: `down(silu(gate x) · up x)`, or a mixture of such experts.

use super::{Loader, Scratch};
use crate::Error;
use crate::backend::{Backend, MlpLayer, MlpWeights, MoeLayer, MoeWeights};
use cute_checkpoint::{Config, Moe};

/// What a layer has behind its mixer.
pub(super) enum Feed<B: Backend> {
    Dense(Mlp<B>),
    Sparse(Box<MoeWeights<B>>),
}

impl<B: Backend> Feed<B> {
    pub(super) fn load(load: &Loader<'_, B>, c: &Config, layer: usize) -> Result<Self, Error> {
        match &c.moe {
            Some(m) if c.is_sparse(layer) => Ok(Feed::Sparse(Box::new(experts(load, m)?))),
            _ => Ok(Feed::Dense(Mlp::load(load, c)?)),
        }
    }

    /// The dense MLP, which fused launches take.
    pub(super) fn dense(&self) -> Option<&Mlp<B>> {
        match self {
            Feed::Dense(mlp) => Some(mlp),
            Feed::Sparse(_) => None,
        }
    }

    /// `s.x += feed(norm(s.x))`
    pub(super) fn forward(
        &self,
        b: &B,
        s: &mut Scratch<B>,
        norm: (&B::Vector, f32),
        rows: usize,
    ) -> Result<(), Error> {
        match (self, &mut s.moe) {
            (Feed::Dense(mlp), _) => mlp.forward(b, s, norm, rows),
            (Feed::Sparse(weights), Some(scratch)) => {
                let (x, n, mixed) = (&mut s.x, &mut s.n, &mut s.mixed);
                b.moe(MoeLayer { x, n, mixed, scratch, norm, weights }, rows)
            }
            (Feed::Sparse(_), None) => Err(Error::Shape("experts without buffers for them".into())),
        }
    }
}

/// Router, experts one by one, shared expert and its gate.
fn experts<B: Backend>(load: &Loader<'_, B>, m: &Moe) -> Result<MoeWeights<B>, Error> {
    let gate_up = |load: &Loader<'_, B>| load.matrix(&["gate_proj.weight", "up_proj.weight"]);
    let down = |load: &Loader<'_, B>| load.matrix(&["down_proj.weight"]);
    let each = |e: usize| load.below(&format!("experts.{e}"));
    let shared = load.below("shared_expert");
    Ok(MoeWeights {
        gate: load.matrix(&["gate.weight"])?,
        gate_up: (0..m.num_experts).map(|e| gate_up(&each(e))).collect::<Result<_, _>>()?,
        down: (0..m.num_experts).map(|e| down(&each(e))).collect::<Result<_, _>>()?,
        shared_gate_up: gate_up(&shared)?,
        shared_down: down(&shared)?,
        shared_gate: load.matrix(&["shared_expert_gate.weight"])?,
        k: m.num_experts_per_tok,
        normalise: m.norm_topk_prob,
    })
}

pub(super) struct Mlp<B: Backend> {
    intermediate: usize,
    /// `[gate_proj; up_proj]`, `[2 I, H]`
    gate_up: B::Matrix,
    /// `[H, I]`
    down_proj: B::Matrix,
}

impl<B: Backend> Mlp<B> {
    pub(super) fn load(load: &Loader<'_, B>, c: &Config) -> Result<Self, Error> {
        Ok(Mlp {
            intermediate: c.intermediate_size,
            gate_up: load.matrix(&["gate_proj.weight", "up_proj.weight"])?,
            down_proj: load.matrix(&["down_proj.weight"])?,
        })
    }

    fn weights(&self) -> MlpWeights<'_, B> {
        MlpWeights { gate_up: &self.gate_up, down: &self.down_proj, intermediate: self.intermediate }
    }

    /// `s.x += mlp(norm(s.x))`
    pub(super) fn forward(
        &self,
        b: &B,
        s: &mut Scratch<B>,
        norm: (&B::Vector, f32),
        rows: usize,
    ) -> Result<(), Error> {
        b.norm_swiglu(&mut s.act, (&mut s.n, &mut s.gate_up), &s.x, norm, &self.gate_up, rows)?;
        b.wrote("swiglu", &s.act, rows)?;
        b.linear_add(&mut s.x, &mut s.mixed, &s.act, &self.down_proj, rows)
    }

    /// The same in one launch.
    pub(super) fn fused<'a>(
        &'a self,
        index: usize,
        s: MlpScratch<'a, B>,
        norm: (&'a B::Vector, f32),
    ) -> MlpLayer<'a, B> {
        MlpLayer { index, x: s.0, n: s.1, mixed: s.2, norm, mlp: self.weights() }
    }
}

/// Residual stream, normed activations and mixer output of a [`Scratch`].
pub(super) type MlpScratch<'a, B> =
    (&'a mut <B as Backend>::Buf, &'a mut <B as Backend>::Buf, &'a mut <B as Backend>::Buf);
