//! Geometry of caches, and of the fused projections of both kinds of layers.

use cute_checkpoint::Config;

/// Element type of the KV cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvDtype {
    /// exact
    #[default]
    F32,
    /// rounded to nearest even when written
    Bf16,
    /// float8 e4m3 without a scale: rounded to nearest even, what is beyond 448 becomes 448
    Fp8E4m3,
}

impl KvDtype {
    /// All of them.
    pub const ALL: [KvDtype; 3] = [KvDtype::F32, KvDtype::Bf16, KvDtype::Fp8E4m3];

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            KvDtype::F32 => 4,
            KvDtype::Bf16 => 2,
            KvDtype::Fp8E4m3 => 1,
        }
    }
}

/// Geometry of the caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheShape {
    /// KV pages, the null page 0 included
    pub num_pages: usize,
    /// tokens of a page
    pub page_size: usize,
    /// element type of K and V
    pub kv_dtype: KvDtype,
    /// recurrent slots, the reserved slot 0 included
    pub num_slots: usize,
    /// most rows of a step
    pub max_rows: usize,
    /// most tokens of a sequence
    pub max_len: usize,
}

impl CacheShape {
    /// Bytes of one page: K and V of `page_size` tokens in every full-attention layer.
    pub fn page_bytes(&self, config: &Config) -> usize {
        config.full_attention_layers().len() * self.page_layer_bytes(config)
    }

    /// Bytes of one page in one layer.
    pub fn page_layer_bytes(&self, config: &Config) -> usize {
        2 * self.page_size * config.num_key_value_heads * config.head_dim * self.kv_dtype.size()
    }
}

/// Columns of the fused projection of an attention layer: per query head `head_dim` query values, then (when
/// the output is gated) `head_dim` gate values; then all key heads, then all value heads.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    /// query heads
    pub num_heads: usize,
    /// key/value heads
    pub num_kv_heads: usize,
    /// width of a head
    pub head_dim: usize,
    /// leading dimensions of a head that rotate
    pub rotary_dim: usize,
    /// the output gate exists
    pub gated: bool,
    /// which full-attention layer this is, counted from 0
    pub kv_layer: usize,
    /// of q_norm and k_norm
    pub eps: f32,
}

impl AttentionShape {
    /// Columns between two query heads.
    pub fn head_stride(&self) -> usize {
        self.head_dim * if self.gated { 2 } else { 1 }
    }
    /// First column of the keys.
    pub fn k_column(&self) -> usize {
        self.num_heads * self.head_stride()
    }
    /// First column of the values.
    pub fn v_column(&self) -> usize {
        self.k_column() + self.num_kv_heads * self.head_dim
    }
    /// Columns in all.
    pub fn width(&self) -> usize {
        self.v_column() + self.num_kv_heads * self.head_dim
    }
}

/// Columns of the fused projection of a gated-delta-net layer: `[q | k | v | z | b | a]`.
#[derive(Clone, Copy, Debug)]
pub struct GdnShape {
    /// key heads Hk
    pub num_k_heads: usize,
    /// value heads Hv
    pub num_v_heads: usize,
    /// Dk
    pub k_dim: usize,
    /// Dv
    pub v_dim: usize,
    /// taps of the convolution K
    pub kernel: usize,
    /// which linear-attention layer this is, counted from 0
    pub state_layer: usize,
}

impl GdnShape {
    /// Channels of the convolution, `2 Hk Dk + Hv Dv`.
    pub fn channels(&self) -> usize {
        2 * self.num_k_heads * self.k_dim + self.num_v_heads * self.v_dim
    }
    /// First column of z.
    pub fn z_column(&self) -> usize {
        self.channels()
    }
    /// First column of b.
    pub fn b_column(&self) -> usize {
        self.z_column() + self.num_v_heads * self.v_dim
    }
    /// First column of a.
    pub fn a_column(&self) -> usize {
        self.b_column() + self.num_v_heads
    }
    /// Columns in all.
    pub fn width(&self) -> usize {
        self.a_column() + self.num_v_heads
    }
    /// Elements of the recurrent state of one sequence.
    pub fn recurrent_len(&self) -> usize {
        self.num_v_heads * self.k_dim * self.v_dim
    }
    /// Elements of the convolution state of one sequence.
    pub fn conv_len(&self) -> usize {
        self.channels() * (self.kernel - 1)
    }
}
