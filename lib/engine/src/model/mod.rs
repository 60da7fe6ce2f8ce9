//! The model text, once for all backends: embed → [norm → mixer → add → norm → MLP → add] × L → norm → lm_head.

mod decoder_layer;
mod gated_attention;
mod gated_delta_net;
mod mlp;
mod scratch;

pub use scratch::Scratch;

use crate::Error;
use crate::backend::Backend;
use crate::batch::Batch;
use crate::dispatch::Dispatcher;
use crate::rope::Rope;
use cute_checkpoint::{Checkpoint, Config, Tensor};
use decoder_layer::DecoderLayer;

/// A model on a device.
pub struct Model<B: Backend> {
    /// its configuration
    pub config: Config,
    embed_tokens: B::Matrix,
    layers: Vec<DecoderLayer<B>>,
    norm: B::Vector,
    /// absent when tied to `embed_tokens`
    lm_head: Option<B::Matrix>,
    rope: Rope,
}

impl<B: Backend> Model<B> {
    /// Loads the weights; positions up to `max_model_len` get their rotary angles.
    ///
    /// # Errors
    /// When a tensor is missing, unreadable or does not fit on the device.
    pub fn load(backend: &B, checkpoint: &Checkpoint, max_model_len: usize) -> Result<Self, Error> {
        let config = checkpoint.config.clone();
        let load = Loader { backend, checkpoint, prefix: String::new() };
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        let (mut kv_layer, mut state_layer) = (0, 0);
        for i in 0..config.num_hidden_layers {
            let load = load.below(&format!("layers.{i}"));
            layers.push(DecoderLayer::load(&load, &config, i, &mut kv_layer, &mut state_layer)?);
        }
        Ok(Model {
            embed_tokens: load.matrix(&["embed_tokens.weight"])?,
            layers,
            norm: load.vector("norm.weight")?,
            lm_head: if config.tie_word_embeddings { None } else { Some(load.matrix(&["lm_head.weight"])?) },
            rope: Rope::new(config.rope_theta, config.rotary_dim(), max_model_len),
            config,
        })
    }

    /// One step. Returns the logits of the batch's `logit_rows`, each `vocab_size` long.
    ///
    /// # Errors
    /// When the device fails, or a fused launch does and falling back is forbidden.
    pub fn forward(
        &self,
        backend: &B,
        batch: &Batch,
        cache: &mut B::Cache,
        scratch: &mut Scratch<B>,
        dispatcher: &mut Dispatcher<B>,
    ) -> Result<Vec<f32>, Error> {
        backend.embed(&mut scratch.x, &self.embed_tokens, &batch.tokens)?;
        for layer in &self.layers {
            layer.forward(backend, batch, cache, scratch, &self.rope, dispatcher)?;
        }
        let wanted = batch.logit_rows.len();
        if wanted == 0 {
            return Ok(Vec::new());
        }
        backend.select(&mut scratch.mixed, &scratch.x, &batch.logit_rows)?;
        backend.rms_norm(&mut scratch.n, &scratch.mixed, &self.norm, self.config.rms_norm_eps, wanted)?;
        let head = self.lm_head.as_ref().unwrap_or(&self.embed_tokens);
        backend.linear(&mut scratch.logits, &scratch.n, head, wanted)?;
        backend.read(&scratch.logits, wanted)
    }
}

/// Loads tensors by their checkpoint names below a prefix.
struct Loader<'a, B: Backend> {
    backend: &'a B,
    checkpoint: &'a Checkpoint,
    prefix: String,
}

impl<'a, B: Backend> Loader<'a, B> {
    fn below(&self, name: &str) -> Loader<'a, B> {
        Loader {
            backend: self.backend,
            checkpoint: self.checkpoint,
            prefix: format!("{}{name}.", self.prefix),
        }
    }
    fn tensor(&self, name: &str) -> Result<Tensor, Error> {
        Ok(self.checkpoint.tensor(&format!("{}{name}", self.prefix))?)
    }
    fn vector(&self, name: &str) -> Result<B::Vector, Error> {
        self.backend.vector(&self.tensor(name)?)
    }
    fn taps(&self, name: &str) -> Result<B::Vector, Error> {
        self.backend.taps(&self.tensor(name)?)
    }
    /// Several matrices stacked by rows: one product instead of many, the same sums.
    fn matrix(&self, names: &[&str]) -> Result<B::Matrix, Error> {
        let tensors = names.iter().map(|n| self.tensor(n)).collect::<Result<Vec<_>, _>>()?;
        self.backend.matrix(&tensors)
    }
}
