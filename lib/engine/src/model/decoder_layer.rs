//! One decoder layer: `x ← x + mixer(norm(x))`, `x ← x + mlp(norm(x))`.

use super::gated_attention::GatedAttention;
use super::gated_delta_net::GatedDeltaNet;
use super::mlp::Mlp;
use super::{Loader, Scratch};
use crate::Error;
use crate::backend::{Backend, CoopLayer};
use crate::batch::Batch;
use crate::dispatch::{Dispatcher, Path};
use crate::rope::Rope;
use cute_checkpoint::{Config, LayerType};

pub(super) struct DecoderLayer<B: Backend> {
    index: usize,
    input_layernorm: B::Vector,
    token_mixer: TokenMixer<B>,
    post_attention_layernorm: B::Vector,
    mlp: Mlp<B>,
    eps: f32,
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
            mlp: Mlp::load(&load.below("mlp"), c)?,
            eps: c.rms_norm_eps,
        })
    }

    pub(super) fn forward(
        &self,
        b: &B,
        batch: &Batch,
        cache: &mut B::Cache,
        s: &mut Scratch<B>,
        rope: &Rope,
        dispatcher: &mut Dispatcher<B>,
    ) -> Result<(), Error> {
        let rows = batch.rows();
        b.rms_norm(&mut s.n, &s.x, &self.input_layernorm, self.eps, rows)?;
        let path = match &self.token_mixer {
            TokenMixer::GatedDeltaNet(gdn) => {
                gdn.forward(b, batch, cache, s)?;
                Path::Paged
            }
            TokenMixer::GatedAttention(attention) => {
                attention.project(b, batch, cache, s, rope)?;
                let decision = dispatcher.decide(self.index, batch);
                if decision.path == Path::Coop {
                    match self.coop(b, attention, batch, cache, s, dispatcher) {
                        Ok(()) => {
                            dispatcher.launched(self.index, batch, &decision, Path::Coop);
                            return Ok(());
                        }
                        Err(e) => dispatcher.fallback(self.index, &decision, e)?,
                    }
                }
                let outcome = if decision.path == Path::Coop { Path::Lite } else { decision.path };
                attention.forward(b, batch, cache, s)?;
                dispatcher.launched(self.index, batch, &decision, outcome);
                outcome
            }
        };
        b.add_rms_norm(&mut s.n, &mut s.x, &s.mixed, (&self.post_attention_layernorm, self.eps), rows)?;
        match (path, dispatcher.workspace(self.index)) {
            (Path::Lite, Some(ws)) => b.fused_mlp(&mut s.mixed, &s.n, self.mlp.weights(), ws, rows)?,
            _ => self.mlp.forward(b, s, rows)?,
        }
        b.add(&mut s.x, &s.mixed, rows)
    }

    fn coop(
        &self,
        b: &B,
        attention: &GatedAttention<B>,
        batch: &Batch,
        cache: &B::Cache,
        s: &mut Scratch<B>,
        dispatcher: &mut Dispatcher<B>,
    ) -> Result<(), Error> {
        let wo_split = dispatcher.config().wo_split;
        if dispatcher.coop_launch_fails() {
            return Err(Error::Launch("cooperative launch failed (fault coop-launch-fails)".into()));
        }
        let Some(ws) = dispatcher.workspace(self.index) else {
            return Err(Error::Launch(format!("layer {} has no cooperative workspace", self.index)));
        };
        let layer = CoopLayer {
            x: &mut s.x,
            n: &mut s.n,
            attn: &mut s.attn,
            mixed: &mut s.mixed,
            proj: &s.attn_proj,
            cache,
            shape: attention.shape,
            o_proj: &attention.o_proj,
            wo_split,
            norm: (&self.post_attention_layernorm, self.eps),
            mlp: self.mlp.weights(),
        };
        b.coop_layer(layer, ws, batch)
    }
}
