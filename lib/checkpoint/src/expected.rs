//! The tensors a config implies: name without prefix, shape, the part of the model each belongs to, and which rows
//! of it the model text calls by another name.

use crate::config::{Config, LayerType};
use crate::moe::Moe;
use crate::refuse::Family;
use std::ops::Range;

/// A tensor the model needs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Expected {
    /// name without the checkpoint's prefix
    pub name: String,
    /// extent of each dimension
    pub shape: Vec<usize>,
    /// the part of the model, as `bytes_by_module` counts it
    pub module: &'static str,
    /// it is multiplied with, so it may be packed
    pub linear: bool,
    /// what the model text calls its rows, planes one after the other; empty when it uses the tensor as it is
    pub parts: Vec<Part>,
}

/// Rows of a stored tensor under a name of their own.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Part {
    /// name without the checkpoint's prefix
    pub name: String,
    /// rows, in order
    pub rows: Vec<Range<usize>>,
}

impl Part {
    fn len(&self) -> usize {
        self.rows.iter().map(Range::len).sum()
    }
}

/// Collects expected tensors.
struct List(Vec<Expected>);

impl List {
    fn plain(&mut self, name: String, shape: &[usize], module: &'static str) {
        self.0.push(Expected { name, shape: shape.to_vec(), module, linear: false, parts: Vec::new() });
    }
    fn linear(&mut self, name: String, shape: &[usize], module: &'static str) {
        self.parts(name, shape, module, Vec::new());
    }
    fn parts(&mut self, name: String, shape: &[usize], module: &'static str, parts: Vec<Part>) {
        self.0.push(Expected { name, shape: shape.to_vec(), module, linear: true, parts });
    }
}

/// Every tensor of the text model, in the order of its layers. `has` tells whether the checkpoint has a tensor: experts
/// are stored one by one or all in one.
pub(crate) fn expected(c: &Config, has: &dyn Fn(&str) -> bool) -> Vec<Expected> {
    let mut list = List(Vec::with_capacity(3 + 14 * c.num_hidden_layers));
    let h = c.hidden_size;
    list.linear("embed_tokens.weight".into(), &[c.vocab_size, h], "embed_tokens");
    for (l, kind) in c.layer_types.iter().enumerate() {
        let p = format!("layers.{l}");
        list.plain(format!("{p}.input_layernorm.weight"), &[h], "norms");
        match kind {
            LayerType::LinearAttention => linear_attention(c, &p, &mut list),
            LayerType::FullAttention => full_attention(c, &p, &mut list),
        }
        list.plain(format!("{p}.post_attention_layernorm.weight"), &[h], "norms");
        match &c.moe {
            Some(moe) if c.is_sparse(l) => experts(moe, h, &format!("{p}.mlp"), has, &mut list),
            _ => mlp(c.intermediate_size, h, &format!("{p}.mlp"), "mlp", &mut list),
        }
    }
    list.plain("norm.weight".into(), &[h], "norms");
    if !c.tie_word_embeddings {
        list.linear("lm_head.weight".into(), &[c.vocab_size, h], "lm_head");
    }
    list.0
}

/// Name without prefix and shape of every tensor of the text model, by the names it uses.
pub fn expected_shapes(c: &Config) -> Vec<(String, Vec<usize>)> {
    let named = |e: Expected| -> Vec<(String, Vec<usize>)> {
        let inputs = e.shape.last().copied().unwrap_or(1);
        match e.parts.is_empty() {
            true => vec![(e.name, e.shape)],
            false => e.parts.into_iter().map(|p| (p.name.clone(), vec![p.len(), inputs])).collect(),
        }
    };
    expected(c, &|_| false).into_iter().flat_map(named).collect()
}

fn linear_attention(c: &Config, layer: &str, list: &mut List) {
    const MODULE: &str = "linear_attn";
    let (h, hv, channels) = (c.hidden_size, c.linear_num_value_heads, c.conv_channels());
    let values = hv * c.linear_value_head_dim;
    let name = |name: &str| format!("{layer}.linear_attn.{name}");
    if c.family == Family::Qwen3Next {
        interleaved(c, &name, list);
    } else {
        list.linear(name("in_proj_qkv.weight"), &[channels, h], MODULE);
        list.linear(name("in_proj_z.weight"), &[values, h], MODULE);
        list.linear(name("in_proj_b.weight"), &[hv, h], MODULE);
        list.linear(name("in_proj_a.weight"), &[hv, h], MODULE);
    }
    list.plain(name("conv1d.weight"), &[channels, 1, c.linear_conv_kernel_dim], MODULE);
    list.plain(name("A_log"), &[hv], MODULE);
    list.plain(name("dt_bias"), &[hv], MODULE);
    list.plain(name("norm.weight"), &[c.linear_value_head_dim], MODULE);
    list.linear(name("out_proj.weight"), &[h, values], MODULE);
}

/// qwen3_next's projections: for each key head its q, its k, the v of its value heads and the z of its value heads;
/// then, in the other matrix, their b and their a.
fn interleaved(c: &Config, name: &impl Fn(&str) -> String, list: &mut List) {
    let (h, keys, dk) = (c.hidden_size, c.linear_num_key_heads, c.linear_key_head_dim);
    let each = c.linear_num_value_heads / keys;
    let values = each * c.linear_value_head_dim;
    let group = 2 * dk + 2 * values;
    let of_groups = |group: usize, start: usize, len: usize| {
        (0..keys).map(move |j| j * group + start..j * group + start + len)
    };
    let qkv = of_groups(group, 0, dk).chain(of_groups(group, dk, dk)).chain(of_groups(group, 2 * dk, values));
    let part = |weight: &str, rows| Part { name: name(weight), rows };
    let qkvz = vec![
        part("in_proj_qkv.weight", qkv.collect()),
        part("in_proj_z.weight", of_groups(group, 2 * dk + values, values).collect()),
    ];
    list.parts(name("in_proj_qkvz.weight"), &[keys * group, h], "linear_attn", qkvz);
    let ba = vec![
        part("in_proj_b.weight", of_groups(2 * each, 0, each).collect()),
        part("in_proj_a.weight", of_groups(2 * each, each, each).collect()),
    ];
    list.parts(name("in_proj_ba.weight"), &[keys * 2 * each, h], "linear_attn", ba);
}

fn full_attention(c: &Config, layer: &str, list: &mut List) {
    const MODULE: &str = "self_attn";
    let (h, hd) = (c.hidden_size, c.head_dim);
    let (queries, keys) = (c.num_attention_heads * hd, c.num_key_value_heads * hd);
    let gated = if c.attn_output_gate { 2 * queries } else { queries };
    let name = |name: &str| format!("{layer}.self_attn.{name}.weight");
    list.linear(name("q_proj"), &[gated, h], MODULE);
    list.linear(name("k_proj"), &[keys, h], MODULE);
    list.linear(name("v_proj"), &[keys, h], MODULE);
    list.linear(name("o_proj"), &[h, queries], MODULE);
    list.plain(name("q_norm"), &[hd], MODULE);
    list.plain(name("k_norm"), &[hd], MODULE);
}

fn mlp(i: usize, h: usize, mlp: &str, module: &'static str, list: &mut List) {
    list.linear(format!("{mlp}.gate_proj.weight"), &[i, h], module);
    list.linear(format!("{mlp}.up_proj.weight"), &[i, h], module);
    list.linear(format!("{mlp}.down_proj.weight"), &[h, i], module);
}

/// Router, routed experts, shared expert and its gate.
fn experts(m: &Moe, h: usize, p: &str, has: &dyn Fn(&str) -> bool, list: &mut List) {
    let (n, i) = (m.num_experts, m.moe_intermediate_size);
    list.linear(format!("{p}.gate.weight"), &[n, h], "router");
    let (gate_up, down) = (format!("{p}.experts.gate_up_proj"), format!("{p}.experts.down_proj"));
    if has(&gate_up) || has(&down) {
        let rows = |e: usize, name: &str, rows: Range<usize>| Part {
            name: format!("{p}.experts.{e}.{name}.weight"),
            rows: vec![rows],
        };
        let halves = |e: usize| {
            let at = 2 * i * e;
            [rows(e, "gate_proj", at..at + i), rows(e, "up_proj", at + i..at + 2 * i)]
        };
        list.parts(gate_up, &[n, 2 * i, h], "experts", (0..n).flat_map(halves).collect());
        let downs = (0..n).map(|e| rows(e, "down_proj", h * e..h * (e + 1)));
        list.parts(down, &[n, h, i], "experts", downs.collect());
    } else {
        (0..n).for_each(|e| mlp(i, h, &format!("{p}.experts.{e}"), "experts", list));
    }
    mlp(m.shared_expert_intermediate_size, h, &format!("{p}.shared_expert"), "shared_expert", list);
    list.linear(format!("{p}.shared_expert_gate.weight"), &[1, h], "router");
}

/// The tower a tensor belongs to when it is not the text model's: `vision` or `mtp`.
pub(crate) fn other_tower(name: &str) -> Option<&'static str> {
    if name.starts_with("model.visual.") || name.starts_with("visual.") {
        return Some("vision");
    }
    name.starts_with("mtp.").then_some("mtp")
}
