//! The memory a served model takes: weights, a pool of KV pages, a pool of recurrent-state slots.

use crate::config::Config;
use cute_records::MemoryPlan;

/// Bytes of one element of recurrent and convolution state.
const STATE_ELEMENT: u64 = 4;

/// Plans pools for `max_num_seqs` sequences of `max_model_len` tokens in pages of `page_size` tokens.
///
/// Page 0 is the null page and slot 0 is reserved: padding rows of a batch point there. Figures that would
/// not fit 64 bits are given as the largest number.
pub fn memory_plan(
    config: &Config,
    weight_bytes: u64,
    kv_element_bytes: u64,
    max_num_seqs: u64,
    max_model_len: u64,
    page_size: u64,
) -> MemoryPlan {
    let product = |factors: &[u64]| factors.iter().fold(1u64, |p, &f| p.saturating_mul(f));
    let full = config.full_attention_layers().len() as u64;
    let linear = config.num_hidden_layers as u64 - full;
    let (heads, width) = (config.num_key_value_heads as u64, config.head_dim as u64);
    let kv_bytes_per_token = product(&[2, full, heads, width, kv_element_bytes]);
    let recurrent = product(&[
        config.linear_num_value_heads as u64,
        config.linear_key_head_dim as u64,
        config.linear_value_head_dim as u64,
    ]);
    let conv = product(&[config.conv_channels() as u64, config.linear_conv_kernel_dim as u64 - 1]);
    let recurrent_bytes_per_sequence = product(&[linear, recurrent.saturating_add(conv), STATE_ELEMENT]);
    let pages = product(&[max_num_seqs, max_model_len.div_ceil(page_size.max(1))]);
    let kv_pages = pages.saturating_add(1);
    let state_slots = max_num_seqs.saturating_add(1);
    let kv_pool_bytes = product(&[kv_pages, page_size, kv_bytes_per_token]);
    let state_pool_bytes = product(&[state_slots, recurrent_bytes_per_sequence]);
    MemoryPlan {
        max_num_seqs,
        max_model_len,
        weight_bytes,
        unpacked_weight_bytes: weight_bytes,
        kv_bytes_per_token,
        recurrent_bytes_per_sequence,
        page_size,
        kv_pages,
        state_slots,
        kv_pool_bytes,
        state_pool_bytes,
        total_bytes: weight_bytes.saturating_add(kv_pool_bytes).saturating_add(state_pool_bytes),
    }
}
