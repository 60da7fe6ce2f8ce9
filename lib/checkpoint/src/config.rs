//! config.json and generation_config.json as a [`Config`]: Hugging Face's names, every value checked.
//!
//! Two shapes of file: the flat text model, and the wrapper whose text model stands under `text_config`.
//! Nothing that decides a result has a silent default: the rotary base must be written down, and a key
//! that is given in two places must say the same in both.

use crate::Error;
use crate::keys::{Keys, object};
use crate::moe::Moe;
use crate::quantization::Quantization;
use crate::refuse::{self, Family};
use serde_json::{Map, Value};

/// The kind of a layer's token mixer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerType {
    /// gated delta net: constant state per sequence
    LinearAttention,
    /// gated grouped-query attention: state grows with the sequence
    FullAttention,
}

impl LayerType {
    /// config.json's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            LayerType::LinearAttention => "linear_attention",
            LayerType::FullAttention => "full_attention",
        }
    }

    fn parse(word: &str) -> Option<Self> {
        [LayerType::LinearAttention, LayerType::FullAttention].into_iter().find(|t| t.as_str() == word)
    }
}

/// The shape of the text model.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// rows of the embedding
    pub vocab_size: usize,
    /// width of the residual stream
    pub hidden_size: usize,
    /// width of the dense MLP; 0 when no layer has one
    pub intermediate_size: usize,
    /// the experts, when layers have them
    pub moe: Option<Moe>,
    /// whose model text and tensor names these are
    pub family: Family,
    /// number of decoder layers
    pub num_hidden_layers: usize,
    /// kind of each layer
    pub layer_types: Vec<LayerType>,
    /// query heads of full attention
    pub num_attention_heads: usize,
    /// key and value heads of full attention; divides the query heads
    pub num_key_value_heads: usize,
    /// width of a head of full attention
    pub head_dim: usize,
    /// `q_proj` yields a gate beside each query
    pub attn_output_gate: bool,
    /// added to the mean square in every RMSNorm
    pub rms_norm_eps: f32,
    /// base of the rotary frequencies
    pub rope_theta: f64,
    /// fraction of a head that rotates
    pub partial_rotary_factor: f64,
    /// query and key heads of linear attention
    pub linear_num_key_heads: usize,
    /// value heads of linear attention; a multiple of the key heads
    pub linear_num_value_heads: usize,
    /// width of a query or key head of linear attention
    pub linear_key_head_dim: usize,
    /// width of a value head of linear attention
    pub linear_value_head_dim: usize,
    /// taps of the short convolution
    pub linear_conv_kernel_dim: usize,
    /// longest sequence the model was made for, in tokens
    pub max_position_embeddings: usize,
    /// the output matrix is the embedding
    pub tie_word_embeddings: bool,
    /// `dtype` or `torch_dtype`, as it stands there
    pub dtype: Option<String>,
    /// first of `architectures`
    pub architecture: String,
    /// `model_type` of the text model
    pub model_type: String,
    /// ids that end a reply: generation_config.json's, else config.json's, else tokenizer_config.json's
    pub eos_token_ids: Vec<u32>,
    /// name of the file that says so
    pub eos_file: &'static str,
}

impl Config {
    /// Dimensions of a head that rotate.
    pub fn rotary_dim(&self) -> usize {
        (self.head_dim as f64 * self.partial_rotary_factor) as usize
    }

    /// Channels of the short convolution: queries, keys and values of linear attention, 2·Hk·Dk + Hv·Dv.
    pub fn conv_channels(&self) -> usize {
        2 * self.linear_num_key_heads * self.linear_key_head_dim
            + self.linear_num_value_heads * self.linear_value_head_dim
    }

    /// Indices of the full-attention layers.
    pub fn full_attention_layers(&self) -> Vec<usize> {
        let full = |(i, t): (usize, &LayerType)| (*t == LayerType::FullAttention).then_some(i);
        self.layer_types.iter().enumerate().filter_map(full).collect()
    }

    /// Reads config.json and, when there is one, generation_config.json. Each is given as path and content.
    ///
    /// # Errors
    /// The first thing that is wrong, by key, value and expectation.
    pub fn parse(config: (&str, &[u8]), generation: Option<(&str, &[u8])>) -> Result<Config, Error> {
        Ok(Self::with_quantization(config, generation, None)?.0)
    }

    /// As [`Config::parse`], with what config.json and hf_quant_config.json, when there is one, say of quantised weights.
    pub(crate) fn with_quantization(
        config: (&str, &[u8]),
        generation: Option<(&str, &[u8])>,
        modelopt: Option<(&str, &[u8])>,
    ) -> Result<(Config, Option<Quantization>), Error> {
        let (file, text) = config;
        let root_map = object(file, text)?;
        let root = Keys { file, prefix: "", map: &root_map };
        let t = match root.object("text_config")? {
            Some(map) => Keys { file, prefix: "text_config.", map },
            None => root,
        };
        let (architecture, model_type, family) = refuse::kind(&root, &t)?;
        refuse::features(&t)?;
        let modelopt = match modelopt {
            Some((file, text)) => Some((file, object(file, text)?)),
            None => None,
        };
        let modelopt = modelopt.as_ref().map(|(file, map)| Keys { file, prefix: "", map });
        let quantization = Quantization::parse(&root, &t, modelopt.as_ref())?;
        let mut out = dimensions(&t, architecture, model_type, family)?;
        (out.rope_theta, out.partial_rotary_factor) = rope(&root, &t)?;
        out.rms_norm_eps = rms_norm_eps(&t)?;
        // Of a wrapper the outer level decides, as in transformers, whose save_pretrained may write another word inside.
        let [first, second] = if refuse::is_wrapper(&out.architecture) { [root, t] } else { [t, root] };
        let tied = [first.flag("tie_word_embeddings")?, second.flag("tie_word_embeddings")?];
        out.tie_word_embeddings = tied.into_iter().flatten().next().unwrap_or(false);
        out.dtype = dtype(&root, &t)?;
        out.relations(&t)?;
        out.eos_token_ids = match generation {
            None => Vec::new(),
            Some((file, text)) => eos(&Keys { file, prefix: "", map: &object(file, text)? }, out.vocab_size)?,
        };
        for keys in [t, root] {
            if out.eos_token_ids.is_empty() {
                out.eos_file = "config.json";
                out.eos_token_ids = eos(&keys, out.vocab_size)?;
            }
        }
        Ok((out, quantization))
    }

    /// Whether a layer has experts in place of a dense MLP.
    pub fn is_sparse(&self, layer: usize) -> bool {
        self.moe.as_ref().is_some_and(|m| m.sparse.get(layer) == Some(&true))
    }

    /// Checks what two keys must say together.
    fn relations(&self, t: &Keys<'_>) -> Result<(), Error> {
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            let expected = format!("a divisor of num_attention_heads, {}", self.num_attention_heads);
            return Err(t.wrong("num_key_value_heads", self.num_key_value_heads, &expected));
        }
        if !self.linear_num_value_heads.is_multiple_of(self.linear_num_key_heads) {
            let expected = format!("a multiple of linear_num_key_heads, {}", self.linear_num_key_heads);
            return Err(t.wrong("linear_num_value_heads", self.linear_num_value_heads, &expected));
        }
        let rotary = self.rotary_dim();
        if rotary == 0 || !rotary.is_multiple_of(2) {
            let found = format!("{} of head_dim {} = {rotary}", self.partial_rotary_factor, self.head_dim);
            return Err(t.wrong("partial_rotary_factor", found, "an even number of rotary dimensions"));
        }
        Ok(())
    }
}

/// The counts, and the kind of each layer. The limits are far above every published model and low enough
/// that no product of two or three of them overflows.
fn dimensions(
    t: &Keys<'_>,
    architecture: String,
    model_type: String,
    family: Family,
) -> Result<Config, Error> {
    let num_hidden_layers = t.count("num_hidden_layers", 1 << 12)?;
    let moe = match family {
        Family::Qwen35 => None,
        _ => Some(Moe::parse(t, family, num_hidden_layers)?),
    };
    let dense = moe.as_ref().is_none_or(|m| m.sparse.contains(&false));
    Ok(Config {
        vocab_size: t.count("vocab_size", 1 << 24)?,
        hidden_size: t.count("hidden_size", 1 << 20)?,
        intermediate_size: if dense { t.count("intermediate_size", 1 << 22)? } else { 0 },
        moe,
        family,
        num_hidden_layers,
        layer_types: layer_types(t, num_hidden_layers)?,
        num_attention_heads: t.count("num_attention_heads", 1 << 12)?,
        num_key_value_heads: t.count("num_key_value_heads", 1 << 12)?,
        head_dim: t.count("head_dim", 1 << 12)?,
        attn_output_gate: t.flag("attn_output_gate")?.unwrap_or(true),
        linear_num_key_heads: t.count("linear_num_key_heads", 1 << 12)?,
        linear_num_value_heads: t.count("linear_num_value_heads", 1 << 12)?,
        linear_key_head_dim: t.count("linear_key_head_dim", 1 << 12)?,
        linear_value_head_dim: t.count("linear_value_head_dim", 1 << 12)?,
        linear_conv_kernel_dim: t.count("linear_conv_kernel_dim", 1 << 6)?,
        max_position_embeddings: t.count("max_position_embeddings", 1 << 31)?,
        rms_norm_eps: 0.0,
        rope_theta: 0.0,
        partial_rotary_factor: 0.0,
        tie_word_embeddings: false,
        dtype: None,
        architecture,
        model_type,
        eos_token_ids: Vec::new(),
        eos_file: "generation_config.json",
    })
}

/// `layer_types` decides; without it every `full_attention_interval`-th layer is full attention.
fn layer_types(t: &Keys<'_>, layers: usize) -> Result<Vec<LayerType>, Error> {
    const WORDS: &str = "\"linear_attention\" or \"full_attention\"";
    let expected = format!("{layers} strings (num_hidden_layers), each {WORDS}");
    match t.get("layer_types") {
        Some(Value::Array(words)) if words.len() != layers => {
            Err(t.wrong("layer_types", format!("{} entries long", words.len()), &expected))
        }
        Some(Value::Array(words)) => {
            let parse = |(i, word): (usize, &Value)| {
                let kind = word.as_str().and_then(LayerType::parse);
                kind.ok_or_else(|| t.bad(&format!("layer_types[{i}]"), word, WORDS))
            };
            words.iter().enumerate().map(parse).collect()
        }
        Some(other) => Err(t.bad("layer_types", other, &expected)),
        None if t.get("full_attention_interval").is_none() => {
            Err(t.missing("layer_types", &format!("{expected}, or full_attention_interval")))
        }
        None => {
            let interval = t.count("full_attention_interval", 1 << 12)?;
            let kind = |i: usize| match (i + 1).is_multiple_of(interval) {
                true => LayerType::FullAttention,
                false => LayerType::LinearAttention,
            };
            Ok((0..layers).map(kind).collect())
        }
    }
}

fn rms_norm_eps(t: &Keys<'_>) -> Result<f32, Error> {
    const EXPECTED: &str = "a number above 0 and below 1";
    let value = t.get("rms_norm_eps").ok_or_else(|| t.missing("rms_norm_eps", EXPECTED))?;
    let eps = t.number("rms_norm_eps")?.unwrap_or_default();
    // Compared as f32, as the engine uses it: 1e-60 would be 0.
    match eps as f32 {
        eps if eps > 0.0 && eps < 1.0 => Ok(eps),
        _ => Err(t.bad("rms_norm_eps", value, EXPECTED)),
    }
}

/// `rope_theta` and `partial_rotary_factor`: in `rope_parameters`, in the older `rope_scaling`, or beside
/// the other keys.
fn rope(root: &Keys<'_>, t: &Keys<'_>) -> Result<(f64, f64), Error> {
    let prefix = |key: &str| format!("{}{key}.", t.prefix);
    let (parameters, scaling) = (prefix("rope_parameters"), prefix("rope_scaling"));
    let mut places = Vec::new();
    for (key, prefix) in [("rope_parameters", &parameters), ("rope_scaling", &scaling)] {
        if let Some(map) = t.object(key)? {
            let keys = Keys { file: t.file, prefix, map };
            refuse::rope_type(&keys)?;
            places.push(keys);
        }
    }
    places.push(*t);
    if !std::ptr::eq(t.map, root.map) {
        places.push(*root);
    }
    let theta = agreed(&places, "rope_theta")?.ok_or_else(|| {
        t.missing("rope_parameters.rope_theta", "the base of the rotary frequencies, e.g. 10000000")
    })?;
    if !(1.0..=1e15).contains(&theta) {
        return Err(t.wrong("rope_theta", theta, "a number from 1 to 1e15"));
    }
    let factor = agreed(&places, "partial_rotary_factor")?.unwrap_or(0.25);
    if !(factor > 0.0 && factor <= 1.0) {
        return Err(t.wrong("partial_rotary_factor", factor, "a number above 0, at most 1"));
    }
    Ok((theta, factor))
}

/// The number under `key` wherever it stands; an error when two places differ.
fn agreed(places: &[Keys<'_>], key: &str) -> Result<Option<f64>, Error> {
    let mut first: Option<(&str, f64)> = None;
    for keys in places {
        match (keys.number(key)?, first) {
            (Some(x), None) => first = Some((keys.prefix, x)),
            (Some(x), Some((prefix, y))) if x != y => {
                return Err(keys.wrong(key, x, &format!("{y}, as {prefix}{key} says")));
            }
            _ => {}
        }
    }
    Ok(first.map(|(_, x)| x))
}

fn dtype(root: &Keys<'_>, t: &Keys<'_>) -> Result<Option<String>, Error> {
    for keys in [t, root] {
        for key in ["dtype", "torch_dtype"] {
            if let Some(word) = keys.text(key)? {
                return Ok(Some(word.to_owned()));
            }
        }
    }
    Ok(None)
}

/// `eos_token_id`: one id or a list of them, each below the vocabulary's size.
fn eos(keys: &Keys<'_>, vocab_size: usize) -> Result<Vec<u32>, Error> {
    let expected = format!("a token id below vocab_size {vocab_size}, or a list of them");
    let id = |value: &Value| match value.as_u64().and_then(|n| u32::try_from(n).ok()) {
        Some(id) if (id as usize) < vocab_size => Ok(id),
        _ => Err(keys.bad("eos_token_id", value, &expected)),
    };
    let mut ids = match keys.get("eos_token_id") {
        None => Vec::new(),
        Some(Value::Array(list)) => list.iter().map(id).collect::<Result<_, _>>()?,
        Some(one) => vec![id(one)?],
    };
    let mut seen = std::collections::BTreeSet::new();
    ids.retain(|id| seen.insert(*id));
    Ok(ids)
}

/// The f64 with the same shortest decimal form: 1e-6, not 9.999999974752427e-7.
fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or_else(|_| f64::from(x))
}

/// The shape of the text model as a `model` record carries it, in config.json's words.
impl From<&Config> for Map<String, Value> {
    fn from(c: &Config) -> Self {
        let types: Vec<&str> = c.layer_types.iter().map(|t| t.as_str()).collect();
        let value = serde_json::json!({
            "attn_output_gate": c.attn_output_gate,
            "dtype": c.dtype,
            "eos_token_id": c.eos_token_ids,
            "head_dim": c.head_dim,
            "hidden_size": c.hidden_size,
            "intermediate_size": c.intermediate_size,
            "layer_types": types,
            "linear_conv_kernel_dim": c.linear_conv_kernel_dim,
            "linear_key_head_dim": c.linear_key_head_dim,
            "linear_num_key_heads": c.linear_num_key_heads,
            "linear_num_value_heads": c.linear_num_value_heads,
            "linear_value_head_dim": c.linear_value_head_dim,
            "max_position_embeddings": c.max_position_embeddings,
            "num_attention_heads": c.num_attention_heads,
            "num_hidden_layers": c.num_hidden_layers,
            "num_key_value_heads": c.num_key_value_heads,
            "partial_rotary_factor": c.partial_rotary_factor,
            "rms_norm_eps": shortest(c.rms_norm_eps),
            "rope_theta": c.rope_theta,
            "tie_word_embeddings": c.tie_word_embeddings,
            "vocab_size": c.vocab_size,
        });
        let mut map = match value {
            Value::Object(map) => map,
            _ => Map::new(),
        };
        if let Some(m) = &c.moe {
            map.insert("moe_intermediate_size".to_owned(), m.moe_intermediate_size.into());
            map.insert("norm_topk_prob".to_owned(), m.norm_topk_prob.into());
            map.insert("num_experts".to_owned(), m.num_experts.into());
            map.insert("num_experts_per_tok".to_owned(), m.num_experts_per_tok.into());
            let shared = m.shared_expert_intermediate_size;
            map.insert("shared_expert_intermediate_size".to_owned(), shared.into());
            let dense = (0..c.num_hidden_layers).filter(|l| !c.is_sparse(*l));
            map.insert("mlp_only_layers".to_owned(), dense.collect());
        }
        map
    }
}
