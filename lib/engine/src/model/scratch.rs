//! Every activation buffer: name, shape, who writes it. Allocated once; a step allocates none.

use crate::Error;
use crate::backend::{AttentionShape, Backend, GdnShape, MoeScratch};
use cute_checkpoint::Config;

/// Activation buffers for up to `rows` tokens a step.
pub struct Scratch<B: Backend> {
    /// residual stream `[rows, H]`: embedding, then every layer in place
    pub x: B::Buf,
    /// normed activations `[rows, H]`
    pub n: B::Buf,
    /// a mixer's or MLP's output before it joins the residual `[rows, H]`
    pub mixed: B::Buf,
    /// a mixer's fused input projection `[rows, widest]`
    pub gdn_proj: B::Buf,
    /// the same for attention layers
    pub attn_proj: B::Buf,
    /// convolved q, k and v `[rows, C]`
    pub qkv: B::Buf,
    /// delta-rule output `[rows, Hv · Dv]`
    pub o: B::Buf,
    /// attention output `[rows, heads · head_dim]`
    pub attn: B::Buf,
    /// `[gate | up]` `[rows, 2 I]`
    pub gate_up: B::Buf,
    /// `silu(gate) · up` `[rows, I]`
    pub act: B::Buf,
    /// of layers with experts, where there are any
    pub moe: Option<MoeScratch<B>>,
    /// `[logit rows, vocab_size]`
    pub logits: B::Buf,
    /// the largest logit and its id `[logit rows, 2]`
    pub top: B::Buf,
}

impl<B: Backend> Scratch<B> {
    /// Buffers for steps of up to `rows` tokens and `logit_rows` logits.
    ///
    /// # Errors
    /// When the device has no memory for them.
    pub fn new(backend: &B, c: &Config, rows: usize, logit_rows: usize) -> Result<Self, Error> {
        let gdn = GdnShape::of(c, 0);
        let attention = AttentionShape::of(c, 0);
        let buf = |width| backend.buf(rows, width);
        Ok(Scratch {
            x: buf(c.hidden_size)?,
            n: backend.buf(rows.max(logit_rows), c.hidden_size)?,
            mixed: backend.buf(rows.max(logit_rows), c.hidden_size)?,
            gdn_proj: buf(gdn.width())?,
            attn_proj: buf(attention.width())?,
            qkv: buf(gdn.channels())?,
            o: buf(gdn.num_v_heads * gdn.v_dim)?,
            attn: buf(attention.num_heads * attention.head_dim)?,
            gate_up: buf(2 * c.intermediate_size)?,
            act: buf(c.intermediate_size)?,
            moe: match &c.moe {
                Some(m) => Some(MoeScratch::new(backend, m, c.hidden_size, rows)?),
                None => None,
            },
            logits: backend.buf(logit_rows, c.vocab_size)?,
            top: backend.buf(logit_rows, 2)?,
        })
    }
}

impl<B: Backend> Scratch<B> {
    /// Fills every buffer with NaN: a step that reads what it has not written shows it.
    ///
    /// # Errors
    /// When the device fails.
    pub fn poison(&mut self, backend: &B) -> Result<(), Error> {
        let Scratch { x, n, mixed, gdn_proj, attn_proj, qkv, o, attn, gate_up, act, moe, logits, top } = self;
        for buf in [x, n, mixed, gdn_proj, attn_proj, qkv, o, attn, gate_up, act, logits, top] {
            backend.poison_buf(buf)?;
        }
        moe.as_mut().map_or(Ok(()), |moe| moe.poison(backend))
    }
}

impl GdnShape {
    /// The shape of a config's linear-attention layers; `state_layer` counts them from 0.
    pub fn of(c: &Config, state_layer: usize) -> Self {
        GdnShape {
            num_k_heads: c.linear_num_key_heads,
            num_v_heads: c.linear_num_value_heads,
            k_dim: c.linear_key_head_dim,
            v_dim: c.linear_value_head_dim,
            kernel: c.linear_conv_kernel_dim,
            state_layer,
        }
    }
}

impl AttentionShape {
    /// The shape of a config's full-attention layers; `kv_layer` counts them from 0.
    pub fn of(c: &Config, kv_layer: usize) -> Self {
        AttentionShape {
            num_heads: c.num_attention_heads,
            num_kv_heads: c.num_key_value_heads,
            head_dim: c.head_dim,
            rotary_dim: c.rotary_dim(),
            gated: c.attn_output_gate,
            kv_layer,
            eps: c.rms_norm_eps,
        }
    }
}
