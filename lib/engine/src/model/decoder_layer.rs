//! One decoder layer: `x ← x + mixer(norm(x))`, `x ← x + mlp(norm(x))`.

use super::gated_attention::GatedAttention;
use super::gated_delta_net::GatedDeltaNet;
use super::mlp::{Feed, Mlp};
use super::{Loader, Scratch};
use crate::Error;
use crate::backend::{Backend, CoopLayer};
use crate::batch::Batch;
use crate::dispatch::{Decision, Dispatcher, Path};
use crate::fault::Fault;
use cute_checkpoint::{Config, LayerType};

pub(super) struct DecoderLayer<B: Backend> {
    index: usize,
    input_layernorm: B::Vector,
    token_mixer: TokenMixer<B>,
    post_attention_layernorm: B::Vector,
    mlp: Feed<B>,
    eps: f32,
}

/// What is the same for all layers of a step.
pub(super) struct Step<'a, B: Backend> {
    pub(super) b: &'a B,
    pub(super) batch: &'a Batch,
    pub(super) rope: &'a B::Rope,
}

enum TokenMixer<B: Backend> {
    GatedDeltaNet(GatedDeltaNet<B>),
    GatedAttention(GatedAttention<B>),
}

impl<B: Backend> DecoderLayer<B> {
    pub(super) fn load(
        load: &Loader<'_, B>,
        c: &Config,
        index: usize,
        kv_layer: &mut usize,
        state_layer: &mut usize,
    ) -> Result<Self, Error> {
        let (token_mixer, counter) = match c.layer_types[index] {
            LayerType::LinearAttention => (
                TokenMixer::GatedDeltaNet(GatedDeltaNet::load(&load.below("linear_attn"), c, *state_layer)?),
                state_layer,
            ),
            LayerType::FullAttention => (
                TokenMixer::GatedAttention(GatedAttention::load(&load.below("self_attn"), c, *kv_layer)?),
                kv_layer,
            ),
        };
        *counter += 1;
        Ok(DecoderLayer {
            index,
            input_layernorm: load.vector("input_layernorm.weight")?,
            token_mixer,
            post_attention_layernorm: load.vector("post_attention_layernorm.weight")?,
            mlp: Feed::load(&load.below("mlp"), c, index)?,
            eps: c.rms_norm_eps,
        })
    }

    /// Whether this is a full-attention layer, whose path is dispatched.
    pub(super) fn is_attention(&self) -> bool {
        matches!(self.token_mixer, TokenMixer::GatedAttention(_))
    }

    /// Runs the layer on the path of `decision`, which an attention layer has. Returns the path it took.
    pub(super) fn forward(
        &self,
        step: &Step<'_, B>,
        cache: &mut B::Cache,
        s: &mut Scratch<B>,
        dispatcher: &mut Dispatcher<B>,
        decision: Option<Decision>,
    ) -> Result<Path, Error> {
        if let Some(watch) = step.b.watching() {
            watch.enter(Some(self.index));
        }
        let Step { b, batch, rope } = *step;
        let rows = batch.rows();
        let input_norm = (&self.input_layernorm, self.eps);
        let norm = (&self.post_attention_layernorm, self.eps);
        let mut path = decision.map_or(Path::Paged, |d| d.path);
        match (&self.token_mixer, self.mlp.dense()) {
            (TokenMixer::GatedDeltaNet(gdn), Some(mlp)) if dispatcher.coop_gdn(b, batch) => {
                let mlp = mlp.fused(self.index, (&mut s.x, &mut s.n, &mut s.mixed), norm);
                let scratch = (&mut s.gdn_proj, &mut s.qkv, &mut s.o, &mut s.gate_up, &mut s.act);
                b.coop_gdn(gdn.coop(mlp, scratch, cache, input_norm), batch)?;
                // what a launch of a whole layer leaves of its phases, for backends that cannot be looked at in between
                b.wrote("in_proj", &s.gdn_proj, rows)?;
                b.wrote("gated_norm", &s.o, rows)?;
                b.wrote("layer", &s.x, rows)?;
                return Ok(Path::Coop);
            }
            (TokenMixer::GatedDeltaNet(gdn), _) => gdn.forward(b, batch, cache, s, input_norm)?,
            (TokenMixer::GatedAttention(attention), mlp) => {
                if let (Some(decision), Some(mlp)) = (decision.filter(|d| d.path == Path::Coop), mlp) {
                    match self.coop(step, (attention, mlp), cache, s, dispatcher) {
                        Ok(()) => {
                            b.wrote("qk_norm", &s.attn_proj, rows)?;
                            b.wrote("attention", &s.attn, rows)?;
                            b.wrote("layer", &s.x, rows)?;
                            return Ok(Path::Coop);
                        }
                        Err(e @ Error::Counter { .. }) => return Err(e),
                        Err(_) if dispatcher.fault() == Some(Fault::SilentFallback) => {}
                        Err(e) => dispatcher.fallback(self.index, &decision, e)?,
                    }
                    path = Path::Lite;
                }
                attention.forward(b, batch, cache, s, input_norm, rope)?;
            }
        }
        match (path, dispatcher.workspace(self.index), self.mlp.dense()) {
            (Path::Lite, Some(ws), Some(mlp)) => {
                let layer = mlp.fused(self.index, (&mut s.x, &mut s.n, &mut s.mixed), norm);
                b.fused_mlp(layer, ws, rows)?;
            }
            _ => self.mlp.forward(b, s, norm, rows)?,
        }
        b.wrote("mlp", &s.x, rows)?;
        match (dispatcher.fault(), decision) {
            (Some(Fault::SilentFallback), Some(decision)) => Ok(decision.path),
            _ => Ok(path),
        }
    }

    fn coop(
        &self,
        step: &Step<'_, B>,
        (attention, mlp): (&GatedAttention<B>, &Mlp<B>),
        cache: &mut B::Cache,
        s: &mut Scratch<B>,
        dispatcher: &mut Dispatcher<B>,
    ) -> Result<(), Error> {
        let wo_split = dispatcher.config().wo_split;
        if let Some(fault) = dispatcher.fault().filter(|f| f.fails_coop()) {
            return Err(Error::Launch(format!("cooperative launch failed (fault {fault})")));
        }
        let Some(ws) = dispatcher.workspace(self.index) else {
            return Err(Error::Launch(format!("layer {} has no cooperative workspace", self.index)));
        };
        let norm = (&self.post_attention_layernorm, self.eps);
        let layer = CoopLayer {
            mlp: mlp.fused(self.index, (&mut s.x, &mut s.n, &mut s.mixed), norm),
            attn: &mut s.attn,
            proj: &mut s.attn_proj,
            cache,
            input_norm: (&self.input_layernorm, self.eps),
            qkv_proj: &attention.qkv_proj,
            qk_norm: attention.qk_norm(step.rope),
            o_proj: &attention.o_proj,
            wo_split,
        };
        step.b.coop_layer(layer, ws, step.batch)
    }
}
