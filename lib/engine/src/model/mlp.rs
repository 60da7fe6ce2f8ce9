//! The MLP of a layer: `down(silu(gate x) · up x)`, or a mixture of such experts.

use super::{Loader, Scratch};
use crate::Error;
use crate::backend::{Backend, MlpLayer, MlpWeights, MoeLayer, MoeWeights};
use cute_checkpoint::{Config, Moe};

/// Matrices of an MLP.
const GATE_UP: [&str; 2] = ["gate_proj.weight", "up_proj.weight"];
const DOWN: [&str; 1] = ["down_proj.weight"];

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

/// Router, experts, shared expert and its gate.
fn experts<B: Backend>(load: &Loader<'_, B>, m: &Moe) -> Result<MoeWeights<B>, Error> {
    let shared = load.below("shared_expert");
    Ok(MoeWeights {
        gate: load.matrix(&["gate.weight"])?,
        gate_up: load.experts(m.num_experts, &GATE_UP)?,
        down: load.experts(m.num_experts, &DOWN)?,
        shared_gate_up: shared.matrix(&GATE_UP)?,
        shared_down: shared.matrix(&DOWN)?,
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
            gate_up: load.matrix(&GATE_UP)?,
            down_proj: load.matrix(&DOWN)?,
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
