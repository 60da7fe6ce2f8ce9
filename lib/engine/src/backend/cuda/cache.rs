//! KV pages and recurrent slots on the device.

use super::arena::Arena;
use super::gpu::Ptr;
use super::units::most_pieces;
use crate::Error;
use crate::backend::{CacheShape, GdnShape};
use crate::fault::Fault;
use cute_checkpoint::{Config, LayerType};

/// KV pages and recurrent slots of all layers.
#[derive(Clone, Debug)]
pub struct Cache {
    /// `[page, layer, K|V, kv head, token, head_dim]`
    pub(super) kv: Ptr,
    page_bytes: usize,
    /// recurrent state, `[linear layer, slot, Hv, Dk, Dv]`
    recurrent: Ptr,
    /// ring of the convolution's inputs, `[linear layer, slot, K, C]`
    ring: Ptr,
    /// partial results of decode attention, `[sequence, head, piece, head_dim + 2]`
    pub(super) pieces: Ptr,
    pub(super) pieces_bytes: usize,
    /// pieces of a sequence of the longest length
    pub(super) max_pieces: usize,
    layers: usize,
    slots: usize,
    recurrent_len: usize,
    ring_len: usize,
    pub(super) offset_bits: Option<u32>,
}

impl Cache {
    pub(super) fn new(
        memory: &Arena,
        config: &Config,
        shape: CacheShape,
        fault: Option<Fault>,
    ) -> Result<Self, Error> {
        let gdn = GdnShape::of(config, 0);
        let layers = config.layer_types.iter().filter(|t| **t == LayerType::LinearAttention).count();
        let (recurrent_len, ring_len) = (gdn.recurrent_len(), gdn.channels() * gdn.kernel);
        let kv_bytes = shape.page_bytes(config) * shape.num_pages;
        let max_pieces = most_pieces(shape.max_len);
        let part = shape.num_slots * config.num_attention_heads * max_pieces * (config.head_dim + 2);
        Ok(Cache {
            kv: memory.zeroed(kv_bytes)?,
            page_bytes: shape.page_bytes(config),
            recurrent: memory.zeroed(layers * shape.num_slots * recurrent_len * 4)?,
            ring: memory.zeroed(layers * shape.num_slots * ring_len * 4)?,
            pieces: memory.alloc(part * 4)?,
            pieces_bytes: part * 4,
            max_pieces,
            layers,
            slots: shape.num_slots,
            recurrent_len,
            ring_len,
            offset_bits: fault.and_then(|f| f.kv_offset_bits(kv_bytes)),
        })
    }

    /// Recurrent state of all slots of a linear layer.
    pub(super) fn recurrent(&self, layer: usize) -> Ptr {
        self.recurrent + (layer * self.slots * self.recurrent_len * 4) as u64
    }
    /// Ring of all slots of a linear layer.
    pub(super) fn ring(&self, layer: usize) -> Ptr {
        self.ring + (layer * self.slots * self.ring_len * 4) as u64
    }
    /// Slots, the reserved slot 0 included.
    pub(super) fn slots(&self) -> u32 {
        self.slots as u32
    }
    /// Address and bytes of a page.
    pub(super) fn page(&self, page: u32) -> (Ptr, usize) {
        (self.kv + page as u64 * self.page_bytes as u64, self.page_bytes)
    }
    /// Address and bytes of each part of a slot.
    pub(super) fn parts(&self, slot: u32) -> impl Iterator<Item = (Ptr, usize)> + '_ {
        let slot = slot as usize;
        (0..self.layers).flat_map(move |layer| {
            let recurrent = self.recurrent(layer) + (slot * self.recurrent_len * 4) as u64;
            let ring = self.ring(layer) + (slot * self.ring_len * 4) as u64;
            [(recurrent, self.recurrent_len * 4), (ring, self.ring_len * 4)]
        })
    }
}
