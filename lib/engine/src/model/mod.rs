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
use crate::dispatch::{Decision, Dispatcher, Path};
use crate::rope::Rope;
use cute_checkpoint::{Checkpoint, Config, Dtype, Format, LazyWeight, Tensor};
use decoder_layer::{DecoderLayer, Step};
use std::collections::BTreeMap;

/// A model on a device.
pub struct Model<B: Backend> {
    /// its configuration
    pub config: Config,
    embed_tokens: B::Matrix,
    layers: Vec<DecoderLayer<B>>,
    norm: B::Vector,
    /// absent when tied to `embed_tokens`
    lm_head: Option<B::Matrix>,
    rope: B::Rope,
}

impl<B: Backend> Model<B> {
    /// Loads the weights; positions up to `max_model_len` get their rotary angles.
    ///
    /// # Errors
    /// When the device does not run weights of this format, or a tensor is unreadable or does not fit on it.
    pub fn load(backend: &B, checkpoint: &Checkpoint, max_model_len: usize) -> Result<Self, Error> {
        if let Some(format) = checkpoint.formats().into_iter().find(|f| !backend.runs_format(*f)) {
            return Err(backend.not_yet(&format!("{} weights", format.name())));
        }
        let weights = Weights::Checkpoint(checkpoint);
        loop {
            let model = Self::build(backend, checkpoint.config.clone(), &weights, max_model_len);
            let whole = backend.end_loading(model.is_ok())?;
            if whole || model.is_err() {
                return model;
            }
        }
    }

    /// A model of a config's shapes with random weights, for measurements: bf16 but for the matrices that published
    /// quantised checkpoints pack, which have `format`.
    ///
    /// # Errors
    /// When it does not fit on the device.
    pub fn random(backend: &B, config: &Config, format: Format, max_model_len: usize) -> Result<Self, Error> {
        let shapes = cute_checkpoint::expected_shapes(config).into_iter().collect();
        Self::build(backend, config.clone(), &Weights::Random(shapes, format), max_model_len)
    }

    fn build(
        backend: &B,
        config: Config,
        weights: &Weights<'_>,
        max_model_len: usize,
    ) -> Result<Self, Error> {
        let load = Loader { backend, weights, prefix: String::new() };
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
            rope: backend.rope(Rope::new(config.rope_theta, config.rotary_dim(), max_model_len))?,
            config,
        })
    }

    /// One step. Returns the largest logit of each of the batch's `logit_rows` and its token, or `None` for a row
    /// that is not finite; the logits themselves stay in `scratch.logits`.
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
    ) -> Result<Vec<Option<Top>>, Error> {
        let attention = || self.layers.iter().enumerate().filter(|(_, l)| l.is_attention()).map(|(i, _)| i);
        let intent: Vec<Decision> = attention().map(|i| dispatcher.decide(backend, i, batch)).collect();
        let wanted = batch.logit_rows.len();
        dispatcher.begin_step();
        let step = Step { b: backend, batch, rope: &self.rope };
        let knobs = dispatcher.config().clone();
        let outcomes = backend.step(batch, &intent, &knobs, &mut || {
            let mut decisions = intent.iter();
            let mut outcomes = Vec::with_capacity(intent.len());
            backend.embed(&mut scratch.x, &self.embed_tokens, &batch.tokens)?;
            backend.wrote("embed", &scratch.x, batch.rows())?;
            for layer in &self.layers {
                let decision = if layer.is_attention() { decisions.next().copied() } else { None };
                let path = layer.forward(&step, cache, scratch, dispatcher, decision)?;
                outcomes.extend(decision.map(|_| path));
            }
            if let Some(watch) = backend.watching() {
                watch.enter(None);
            }
            if wanted > 0 {
                let norm = (&self.norm, self.config.rms_norm_eps);
                let head = self.lm_head.as_ref().unwrap_or(&self.embed_tokens);
                let between = (&mut scratch.mixed, &mut scratch.n);
                backend.lm_head(&mut scratch.logits, between, &scratch.x, &batch.logit_rows, norm, head)?;
                backend.wrote_rows("lm_head", &scratch.logits, &batch.logit_rows)?;
                backend.argmax(&mut scratch.top, &scratch.logits, wanted)?;
            }
            Ok(outcomes)
        })?;
        for ((layer, decision), outcome) in attention().zip(&intent).zip(outcomes) {
            dispatcher.launched(layer, batch, decision, outcome)?;
            if outcome == Path::Coop {
                dispatcher.read_regions(backend, layer)?;
            }
        }
        if wanted == 0 {
            return Ok(Vec::new());
        }
        let top = backend.read(&scratch.top, wanted)?;
        Ok(top.chunks_exact(2).map(|t| (!t[0].is_nan()).then(|| (t[1].to_bits(), t[0]))).collect())
    }
}

/// A token and its logit.
pub type Top = (u32, f32);

/// Loads tensors by their checkpoint names below a prefix.
struct Loader<'a, B: Backend> {
    backend: &'a B,
    weights: &'a Weights<'a>,
    prefix: String,
}

/// Where weights come from.
enum Weights<'a> {
    Checkpoint(&'a Checkpoint),
    /// by shape, of no meaning, for measurements
    Random(BTreeMap<String, Vec<usize>>, Format),
}

/// Whether published quantised checkpoints leave a matrix plain: embeddings, and what is small and decides much.
pub fn left_plain(name: &str) -> bool {
    let last = name.trim_end_matches(".weight").rsplit('.').next();
    ["embed_tokens", "lm_head", "in_proj_a", "in_proj_b", "gate", "shared_expert_gate"]
        .map(Some)
        .contains(&last)
}

impl<'a, B: Backend> Loader<'a, B> {
    fn below(&self, name: &str) -> Loader<'a, B> {
        Loader { backend: self.backend, weights: self.weights, prefix: format!("{}{name}.", self.prefix) }
    }
    fn tensor(&self, name: &str) -> Result<Tensor, Error> {
        let name = format!("{}{name}", self.prefix);
        match self.weights {
            Weights::Checkpoint(checkpoint) => Ok(checkpoint.tensor(&name)?),
            Weights::Random(shapes, _) => {
                let shape = shape(shapes, &name)?;
                // zero-centred norms at one, a plain one, A at one, and taps that let the input through
                let bytes = vec![0; 4 * shape.iter().product::<usize>()];
                Ok(Tensor { name, dtype: Dtype::F32, shape: shape.to_vec(), bytes })
            }
        }
    }
    fn vector(&self, name: &str) -> Result<B::Vector, Error> {
        self.backend.vector(&self.tensor(name)?)
    }
    fn taps(&self, name: &str) -> Result<B::Vector, Error> {
        self.backend.taps(&self.tensor(name)?)
    }
    /// Several matrices stacked by rows: one product instead of many, the same sums.
    fn matrix(&self, names: &[&str]) -> Result<B::Matrix, Error> {
        match self.weights {
            Weights::Checkpoint(checkpoint) => self.backend.load(self.stored(checkpoint, names)?),
            Weights::Random(shapes, format) => self.random(shapes, *format, names),
        }
    }
    fn stored(&self, checkpoint: &Checkpoint, names: &[&str]) -> Result<Vec<LazyWeight>, Error> {
        let lazy = |name: &&str| Ok(checkpoint.lazy(&format!("{}{name}", self.prefix))?);
        names.iter().map(lazy).collect()
    }
    fn random(
        &self,
        shapes: &BTreeMap<String, Vec<usize>>,
        format: Format,
        names: &[&str],
    ) -> Result<B::Matrix, Error> {
        let mut outputs = Vec::new();
        let mut inputs = 0;
        for name in names {
            let shape = shape(shapes, &format!("{}{name}", self.prefix))?;
            outputs.push((shape[0], if left_plain(name) { Format::Plain(Dtype::BF16) } else { format }));
            inputs = shape[1];
        }
        self.backend.random_matrix(&outputs, inputs, digest_seed(&self.prefix))
    }
    /// Such a matrix of each of `count` experts.
    fn experts(&self, count: usize, names: &[&str]) -> Result<Vec<B::Matrix>, Error> {
        let each = |e: usize| self.below(&format!("experts.{e}"));
        let (shapes, format) = match self.weights {
            Weights::Checkpoint(checkpoint) => {
                let stored = (0..count).map(|e| each(e).stored(checkpoint, names));
                return self.backend.expert_matrices(stored.collect::<Result<_, _>>()?);
            }
            Weights::Random(shapes, format) => (shapes, *format),
        };
        let prefix = each(0).prefix;
        let of = |n: &&str| shape(shapes, &format!("{prefix}{n}")).map(|s| (s[0], s[1]));
        let shapes = names.iter().map(of).collect::<Result<Vec<_>, _>>()?;
        let outputs = shapes.iter().map(|(n, _)| n).sum();
        let inputs = shapes.first().map_or(0, |(_, k)| *k);
        self.backend.random_experts(count, (outputs, format), inputs, digest_seed(&prefix))
    }
}

fn shape<'a>(shapes: &'a BTreeMap<String, Vec<usize>>, name: &str) -> Result<&'a [usize], Error> {
    shapes
        .get(name)
        .map(Vec::as_slice)
        .ok_or_else(|| Error::Shape(format!("no tensor {name} in this architecture")))
}

/// A number that differs from name to name.
fn digest_seed(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}
