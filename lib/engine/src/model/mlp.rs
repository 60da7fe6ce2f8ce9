//! `down(silu(gate x) · up x)`

use super::{Loader, Scratch};
use crate::Error;
use crate::backend::{Backend, MlpLayer, MlpWeights};
use cute_checkpoint::Config;

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
