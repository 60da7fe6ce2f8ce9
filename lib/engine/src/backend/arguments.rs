//! What operations are given beside buffers: weights and shapes.

use super::{AttentionShape, Backend, GdnShape};

/// Arguments of [`Backend::qk_norm_rope_kv`].
pub struct QkNorm<'a, B: Backend> {
    /// columns of the projection
    pub shape: AttentionShape,
    /// weights of the query norm, `[head_dim]`
    pub q_norm: &'a B::Vector,
    /// weights of the key norm, `[head_dim]`
    pub k_norm: &'a B::Vector,
    /// angles of all positions
    pub rope: &'a B::Rope,
}

/// Arguments of [`Backend::gated_delta_net`].
pub struct DeltaNet<'a, B: Backend> {
    /// of the convolution, `[C, K]`
    pub taps: &'a B::Vector,
    /// of the recurrence
    pub gate: DeltaGate<'a, B>,
    /// of the gated norm, `[Dv]`, and its eps
    pub norm: (&'a B::Vector, f32),
}

/// Arguments of [`Backend::gated_delta_rule`].
pub struct DeltaGate<'a, B: Backend> {
    /// columns of the projection
    pub shape: GdnShape,
    /// `[Hv]`
    pub a_log: &'a B::Vector,
    /// `[Hv]`
    pub dt_bias: &'a B::Vector,
}
