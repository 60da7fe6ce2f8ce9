//! Gated attention: weights by checkpoint name, and the layer's formula.

use super::{Loader, Scratch};
use crate::Error;
use crate::backend::{AttentionShape, Backend, QkNorm};
use crate::batch::Batch;
use cute_checkpoint::Config;

pub(super) struct GatedAttention<B: Backend> {
    shape: AttentionShape,
    /// `[q_proj; k_proj; v_proj]`
    pub(super) qkv_proj: B::Matrix,
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

    /// `s.x += attention(norm(s.x))`, over the pages.
    pub(super) fn forward(
        &self,
        b: &B,
        batch: &Batch,
        cache: &mut B::Cache,
        s: &mut Scratch<B>,
        norm: (&B::Vector, f32),
        rope: &B::Rope,
    ) -> Result<(), Error> {
        let rows = batch.rows();
        b.norm_linear(&mut s.attn_proj, &mut s.n, &s.x, norm, &self.qkv_proj, rows)?;
        b.wrote("qkv_proj", &s.attn_proj, rows)?;
        b.qk_norm_rope_kv(&mut s.attn_proj, cache, &self.qk_norm(rope), batch)?;
        b.wrote("qk_norm", &s.attn_proj, rows)?;
        b.attention(&mut s.attn, &s.attn_proj, cache, &self.shape, batch)?;
        b.wrote("attention", &s.attn, rows)?;
        b.linear_add(&mut s.x, &mut s.mixed, &s.attn, &self.o_proj, rows)?;
        b.wrote("o_proj", &s.x, rows)
    }

    pub(super) fn qk_norm<'a>(&'a self, rope: &'a B::Rope) -> QkNorm<'a, B> {
        QkNorm { shape: self.shape, q_norm: &self.q_norm, k_norm: &self.k_norm, rope }
    }
}
