//! `down(silu(gate x) · up x)`

use super::{Loader, Scratch};
use crate::Error;
use crate::backend::{Backend, MlpWeights};
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

    pub(super) fn weights(&self) -> MlpWeights<'_, B> {
        MlpWeights { gate_up: &self.gate_up, down: &self.down_proj, intermediate: self.intermediate }
    }

    /// Reads `s.n`, writes `s.mixed`.
    pub(super) fn forward(&self, b: &B, s: &mut Scratch<B>, rows: usize) -> Result<(), Error> {
        b.linear(&mut s.gate_up, &s.n, &self.gate_up, rows)?;
        b.swiglu(&mut s.act, &s.gate_up, rows)?;
        b.linear(&mut s.mixed, &s.act, &self.down_proj, rows)
    }
}
