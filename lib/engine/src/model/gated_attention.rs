//! Gated attention: weights by checkpoint name, and the layer's formula.

use super::{Loader, Scratch};
use crate::Error;
use crate::backend::{AttentionShape, Backend, QkNorm};
use crate::batch::Batch;
use crate::rope::Rope;
use cute_checkpoint::Config;

pub(super) struct GatedAttention<B: Backend> {
    pub(super) shape: AttentionShape,
    /// `[q_proj; k_proj; v_proj]`
    qkv_proj: B::Matrix,
    /// `[head_dim]`, zero-centred
    q_norm: B::Vector,
    /// `[head_dim]`, zero-centred
    k_norm: B::Vector,
    /// `[H, heads · head_dim]`
    pub(super) o_proj: B::Matrix,
}

impl<B: Backend> GatedAttention<B> {
    pub(super) fn load(load: &Loader<'_, B>, c: &Config, kv_layer: usize) -> Result<Self, Error> {
        Ok(GatedAttention {
            shape: AttentionShape::of(c, kv_layer),
            qkv_proj: load.matrix(&["q_proj.weight", "k_proj.weight", "v_proj.weight"])?,
            q_norm: load.vector("q_norm.weight")?,
            k_norm: load.vector("k_norm.weight")?,
            o_proj: load.matrix(&["o_proj.weight"])?,
        })
    }

    /// Projects `s.n` into `s.attn_proj`, norms and rotates q and k, writes k and v to the pages.
    pub(super) fn project(
        &self,
        b: &B,
        batch: &Batch,
        cache: &mut B::Cache,
        s: &mut Scratch<B>,
        rope: &Rope,
    ) -> Result<(), Error> {
        b.linear(&mut s.attn_proj, &s.n, &self.qkv_proj, batch.rows())?;
        let args = QkNorm { shape: self.shape, q_norm: &self.q_norm, k_norm: &self.k_norm, rope };
        b.qk_norm_rope_kv(&mut s.attn_proj, cache, &args, batch)
    }

    /// Attention over the pages and W_O, into `s.mixed`.
    pub(super) fn forward(
        &self,
        b: &B,
        batch: &Batch,
        cache: &B::Cache,
        s: &mut Scratch<B>,
    ) -> Result<(), Error> {
        b.attention(&mut s.attn, &s.attn_proj, cache, &self.shape, batch)?;
        b.linear(&mut s.mixed, &s.attn, &self.o_proj, batch.rows())
    }
}
