//! The mixture of experts of a config: how many, how many of them a token takes, and which layers have them.

use crate::Error;
use crate::json::MAX_TENSORS;
use crate::keys::Keys;
use crate::refuse::Family;
use serde_json::Value;

/// Routed experts in place of a dense MLP, and a gated shared expert beside them.
#[derive(Clone, Debug, PartialEq)]
pub struct Moe {
    /// routed experts of a layer
    pub num_experts: usize,
    /// routed experts a token takes; at most all
    pub num_experts_per_tok: usize,
    /// width of a routed expert
    pub moe_intermediate_size: usize,
    /// width of the shared expert
    pub shared_expert_intermediate_size: usize,
    /// the weights of the experts taken are divided by their sum
    pub norm_topk_prob: bool,
    /// for each layer, whether it has experts; the others have a dense MLP
    pub sparse: Vec<bool>,
}

impl Moe {
    /// Reads the keys of a family with experts.
    pub(crate) fn parse(t: &Keys<'_>, family: Family, layers: usize) -> Result<Moe, Error> {
        let num_experts = t.count("num_experts", 1 << 14)?;
        if layers.saturating_mul(3 * num_experts) > MAX_TENSORS {
            let found = format!("{num_experts} in {layers} layers");
            return Err(t.wrong("num_experts", found, &format!("at most {MAX_TENSORS} matrices in all")));
        }
        let norm = t.flag("norm_topk_prob")?;
        if family == Family::Qwen35Moe && norm == Some(false) {
            let needed = "it needs router weights as they are; qwen3_5_moe always divides them by their sum";
            return Err(t.unsupported("norm_topk_prob false in qwen3_5_moe", needed));
        }
        Ok(Moe {
            num_experts,
            num_experts_per_tok: t.count("num_experts_per_tok", num_experts)?,
            moe_intermediate_size: t.count("moe_intermediate_size", 1 << 20)?,
            shared_expert_intermediate_size: t.count("shared_expert_intermediate_size", 1 << 22)?,
            norm_topk_prob: norm.unwrap_or(true),
            sparse: match family {
                Family::Qwen3Next => sparse(t, layers)?,
                _ => vec![true; layers],
            },
        })
    }
}

/// A layer i of qwen3_next has experts when it is not in `mlp_only_layers` and i + 1 is a multiple of
/// `decoder_sparse_step`.
fn sparse(t: &Keys<'_>, layers: usize) -> Result<Vec<bool>, Error> {
    let step = match t.get("decoder_sparse_step") {
        None => 1,
        Some(_) => t.count("decoder_sparse_step", 1 << 12)?,
    };
    let mut sparse: Vec<bool> = (1..=layers).map(|i| i.is_multiple_of(step)).collect();
    let expected = format!("a list of layers below num_hidden_layers, {layers}");
    match t.get("mlp_only_layers") {
        None => {}
        Some(Value::Array(dense)) => {
            for value in dense {
                let layer = value.as_u64().and_then(|l| usize::try_from(l).ok()).filter(|l| *l < layers);
                sparse[layer.ok_or_else(|| t.bad("mlp_only_layers", value, &expected))?] = false;
            }
        }
        Some(other) => return Err(t.bad("mlp_only_layers", other, &expected)),
    }
    Ok(sparse)
}
