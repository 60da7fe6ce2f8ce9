//! The tensors a config implies: name without prefix, shape, and the part of the model each belongs to.

use crate::config::{Config, LayerType};

/// A tensor the model needs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Expected {
    /// name without the checkpoint's prefix
    pub name: String,
    /// extent of each dimension
    pub shape: Vec<usize>,
    /// the part of the model, as `bytes_by_module` counts it
    pub module: &'static str,
}

/// Every tensor of the text model, in the order of its layers.
pub(crate) fn expected(c: &Config) -> Vec<Expected> {
    let mut out = Vec::with_capacity(3 + 14 * c.num_hidden_layers);
    let mut add = |name: String, shape: &[usize], module: &'static str| {
        out.push(Expected { name, shape: shape.to_vec(), module });
    };
    let (h, i) = (c.hidden_size, c.intermediate_size);
    add("embed_tokens.weight".into(), &[c.vocab_size, h], "embed_tokens");
    for (l, kind) in c.layer_types.iter().enumerate() {
        let p = format!("layers.{l}");
        add(format!("{p}.input_layernorm.weight"), &[h], "norms");
        match kind {
            LayerType::LinearAttention => linear_attention(c, &p, &mut add),
            LayerType::FullAttention => full_attention(c, &p, &mut add),
        }
        add(format!("{p}.post_attention_layernorm.weight"), &[h], "norms");
        add(format!("{p}.mlp.gate_proj.weight"), &[i, h], "mlp");
        add(format!("{p}.mlp.up_proj.weight"), &[i, h], "mlp");
        add(format!("{p}.mlp.down_proj.weight"), &[h, i], "mlp");
    }
    add("norm.weight".into(), &[h], "norms");
    if !c.tie_word_embeddings {
        add("lm_head.weight".into(), &[c.vocab_size, h], "lm_head");
    }
    out
}

/// Name without prefix and shape of every tensor of the text model.
pub fn expected_shapes(c: &Config) -> Vec<(String, Vec<usize>)> {
    expected(c).into_iter().map(|e| (e.name, e.shape)).collect()
}

fn linear_attention(c: &Config, layer: &str, add: &mut impl FnMut(String, &[usize], &'static str)) {
    let (h, hv, channels) = (c.hidden_size, c.linear_num_value_heads, c.conv_channels());
    let values = hv * c.linear_value_head_dim;
    let mut add =
        |name: &str, shape: &[usize]| add(format!("{layer}.linear_attn.{name}"), shape, "linear_attn");
    add("in_proj_qkv.weight", &[channels, h]);
    add("in_proj_z.weight", &[values, h]);
    add("in_proj_b.weight", &[hv, h]);
    add("in_proj_a.weight", &[hv, h]);
    add("conv1d.weight", &[channels, 1, c.linear_conv_kernel_dim]);
    add("A_log", &[hv]);
    add("dt_bias", &[hv]);
    add("norm.weight", &[c.linear_value_head_dim]);
    add("out_proj.weight", &[h, values]);
}

fn full_attention(c: &Config, layer: &str, add: &mut impl FnMut(String, &[usize], &'static str)) {
    let (h, hd) = (c.hidden_size, c.head_dim);
    let (queries, keys) = (c.num_attention_heads * hd, c.num_key_value_heads * hd);
    let gated = if c.attn_output_gate { 2 * queries } else { queries };
    let mut add =
        |name: &str, shape: &[usize]| add(format!("{layer}.self_attn.{name}.weight"), shape, "self_attn");
    add("q_proj", &[gated, h]);
    add("k_proj", &[keys, h]);
    add("v_proj", &[keys, h]);
    add("o_proj", &[h, queries]);
    add("q_norm", &[hd]);
    add("k_norm", &[hd]);
}

/// The tower a tensor belongs to when it is not the text model's: `vision` or `mtp`.
pub(crate) fn other_tower(name: &str) -> Option<&'static str> {
    if name.starts_with("model.visual.") || name.starts_with("visual.") {
        return Some("vision");
    }
    name.starts_with("mtp.").then_some("mtp")
}
