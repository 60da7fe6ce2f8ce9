//! Gated DeltaNet: weights by checkpoint name, and the layer's formula.

use super::{Loader, Scratch};
use crate::Error;
use crate::backend::{Backend, CoopGdn, DeltaGate, DeltaNet, GdnShape, MlpLayer};
use crate::batch::Batch;
use cute_checkpoint::Config;

pub(super) struct GatedDeltaNet<B: Backend> {
    shape: GdnShape,
    eps: f32,
    /// `[in_proj_qkv; in_proj_z; in_proj_b; in_proj_a]`, `[C + Hv·Dv + 2·Hv, H]`
    in_proj: B::Matrix,
    /// `[C, K]`
    conv1d: B::Vector,
    /// `[Hv]`
    a_log: B::Vector,
    /// `[Hv]`
    dt_bias: B::Vector,
    /// `[Dv]`, a plain weight
    norm: B::Vector,
    /// `[H, Hv·Dv]`
    out_proj: B::Matrix,
}

impl<B: Backend> GatedDeltaNet<B> {
    pub(super) fn load(load: &Loader<'_, B>, c: &Config, state_layer: usize) -> Result<Self, Error> {
        Ok(GatedDeltaNet {
            shape: GdnShape::of(c, state_layer),
            eps: c.rms_norm_eps,
            in_proj: load.matrix(&[
                "in_proj_qkv.weight",
                "in_proj_z.weight",
                "in_proj_b.weight",
                "in_proj_a.weight",
            ])?,
            conv1d: load.taps("conv1d.weight")?,
            a_log: load.vector("A_log")?,
            dt_bias: load.vector("dt_bias")?,
            norm: load.vector("norm.weight")?,
            out_proj: load.matrix(&["out_proj.weight"])?,
        })
    }

    /// `s.x += gdn(norm(s.x))`; advances the sequences' states.
    pub(super) fn forward(
        &self,
        b: &B,
        batch: &Batch,
        cache: &mut B::Cache,
        s: &mut Scratch<B>,
        norm: (&B::Vector, f32),
    ) -> Result<(), Error> {
        let rows = batch.rows();
        b.norm_linear(&mut s.gdn_proj, &mut s.n, &s.x, norm, &self.in_proj, rows)?;
        b.wrote("in_proj", &s.gdn_proj, rows)?;
        b.gated_delta_net(&mut s.o, &mut s.qkv, &s.gdn_proj, &self.args(), cache, batch)?;
        b.wrote("gated_norm", &s.o, rows)?;
        b.linear_add(&mut s.x, &mut s.mixed, &s.o, &self.out_proj, rows)?;
        b.wrote("out_proj", &s.x, rows)
    }

    /// The whole layer, to be one launch.
    pub(super) fn coop<'a>(
        &'a self,
        mlp: MlpLayer<'a, B>,
        (proj, qkv, o, gate_up, act): CoopScratch<'a, B>,
        cache: &'a mut B::Cache,
        input_norm: (&'a B::Vector, f32),
    ) -> CoopGdn<'a, B> {
        CoopGdn {
            mlp,
            gate_up,
            act,
            proj,
            qkv,
            o,
            cache,
            input_norm,
            in_proj: &self.in_proj,
            args: self.args(),
            out_proj: &self.out_proj,
        }
    }

    fn args(&self) -> DeltaNet<'_, B> {
        DeltaNet {
            taps: &self.conv1d,
            gate: DeltaGate { shape: self.shape, a_log: &self.a_log, dt_bias: &self.dt_bias },
            norm: (&self.norm, self.eps),
        }
    }
}

/// `gdn_proj`, `qkv`, `o`, `gate_up` and `act` of a [`Scratch`].
pub(super) type CoopScratch<'a, B> = (
    &'a mut <B as Backend>::Buf,
    &'a mut <B as Backend>::Buf,
    &'a mut <B as Backend>::Buf,
    &'a mut <B as Backend>::Buf,
    &'a mut <B as Backend>::Buf,
);
