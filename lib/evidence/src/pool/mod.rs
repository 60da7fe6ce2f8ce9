//! The cache pool: its geometry, who held which block, and which offsets an index can reach.
//!
//! A hybrid server cuts its memory into blocks that all groups of layers share. A request takes one block for
//! each group that keeps a state per sequence and one more for every `block_size` tokens in each attention group;
//! what it returns goes to the tail of the free list. Which request holds which block is therefore arithmetic.
//!
//! | module | for |
//! |---|---|
//! | [`replay`] | the free list, request by request |
//! | [`exposure`] | offsets beyond an index width: which blocks, from which token, reached by which request |

pub mod exposure;
pub mod replay;

pub use exposure::Width;
pub use replay::{Demand, FreeList, Holding};

use cute_records::{Pool, num};

/// What a replay must know of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// blocks, reserved ones included
    pub blocks: u64,
    /// first block that is handed out
    pub first_block: u64,
    /// tokens of an attention block
    pub block_size: u64,
    /// bytes of a block in one tensor
    pub block_bytes: u64,
    /// bytes of a token in one tensor, if known
    pub token_bytes: Option<u64>,
    /// blocks a request takes before its attention blocks
    pub state_blocks: u64,
    /// groups of layers that take blocks by the token
    pub attention_groups: u64,
}

impl Geometry {
    /// The geometry of a pool record.
    ///
    /// # Errors
    /// The names of the fields that are missing, or what is impossible about them.
    pub fn of(pool: &Pool) -> Result<Geometry, String> {
        let mut missing = Vec::new();
        let mut need = |name: &'static str, value: Option<u64>| {
            if value.is_none() {
                missing.push(name);
            }
            value.unwrap_or(0)
        };
        let g = Geometry {
            blocks: need("num_blocks", pool.num_blocks),
            first_block: pool.first_block.unwrap_or(1),
            block_size: need("block_size", pool.block_size),
            block_bytes: need("block_bytes", pool.block_bytes),
            token_bytes: pool.token_bytes.filter(|t| *t > 0),
            state_blocks: need("state_blocks_per_request", pool.state_blocks_per_request),
            attention_groups: pool.attention_groups.unwrap_or(1).max(1),
        };
        if !missing.is_empty() {
            return Err(format!("the pool's {} is not known", missing.join(", ")));
        }
        // tokens and bytes of all blocks are counted without overflow, and what one request takes is
        let all =
            |of_block: u64| g.blocks.checked_mul(of_block).is_some_and(|all| all > 0 && all <= num::MOST);
        let of_request = g.state_blocks.max(g.attention_groups).max(g.token_bytes.unwrap_or(0));
        if !all(g.block_size)
            || !all(g.block_bytes)
            || g.first_block >= g.blocks
            || g.blocks > 1 << 32
            || of_request > 1 << 32
        {
            return Err(format!(
                "a pool of {} blocks of {} tokens and {} bytes is impossible",
                g.blocks, g.block_size, g.block_bytes
            ));
        }
        Ok(g)
    }

    /// Attention blocks a request of so many tokens takes in each group; every request takes one.
    pub fn attention_blocks(&self, tokens: u64) -> u64 {
        tokens.div_ceil(self.block_size).max(1)
    }

    /// Blocks handed out to one request with so many attention blocks a group.
    pub fn blocks_of(&self, attention: u64) -> u64 {
        self.state_blocks + self.attention_groups.saturating_mul(attention).min(num::MOST)
    }

    /// Blocks that can be handed out at all.
    pub fn usable(&self) -> u64 {
        self.blocks - self.first_block
    }
}
