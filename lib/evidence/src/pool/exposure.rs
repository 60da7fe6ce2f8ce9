//! Offsets beyond an index width.
//!
//! A kernel that multiplies a block number by the bytes of a block in a narrow integer reaches the wrong memory as
//! soon as the product passes the width. Everything follows from the geometry: the first bad block, the first bad
//! token in it, and the first request that holds it.

use super::{Demand, Geometry, Holding};

/// The number of offsets an index can tell apart, as a power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Width(pub u32);

impl Width {
    /// A signed 32-bit byte offset.
    pub const I32: Width = Width(31);
    /// An unsigned 32-bit byte offset.
    pub const U32: Width = Width(32);

    /// The first offset that does not fit.
    pub fn limit(self) -> u128 {
        1u128 << self.0
    }

    /// Name of the mechanism.
    pub fn mechanism(self) -> String {
        match self {
            Width::U32 => "kv_offset_u32_overflow".to_owned(),
            Width(k) => format!("kv_offset_i{}_overflow", k + 1),
        }
    }

    /// What the index is, in words.
    pub fn words(self) -> String {
        match self {
            Width::U32 => "unsigned 32-bit".to_owned(),
            Width(k) => format!("signed {}-bit", k + 1),
        }
    }

    /// The block in which the first offset lies that does not fit.
    pub fn first_bad_block(self, g: &Geometry) -> u64 {
        (self.limit() / u128::from(g.block_bytes)) as u64
    }

    /// The first bad token in that block; 0 when all of it is bad or the bytes of a token are not known.
    pub fn first_bad_token(self, g: &Geometry) -> u64 {
        let into = self.limit() - u128::from(self.first_bad_block(g)) * u128::from(g.block_bytes);
        g.token_bytes.map_or(0, |t| into.div_ceil(u128::from(t)) as u64)
    }

    /// True when some block of the pool lies beyond the width at all.
    pub fn reachable(self, g: &Geometry) -> bool {
        u128::from(g.blocks) * u128::from(g.block_bytes) > self.limit()
    }

    /// Position in a sequence of the first token that lies beyond the width, given one group's attention blocks.
    /// `tokens`: how many the sequence has; unknown is as many as the blocks hold.
    pub fn first_bad_position(self, g: &Geometry, blocks: &[u32], tokens: Option<u64>) -> Option<u64> {
        let total = tokens.unwrap_or(blocks.len() as u64 * g.block_size);
        let (bad_block, bad_token) = (self.first_bad_block(g), self.first_bad_token(g));
        for (i, b) in blocks.iter().enumerate() {
            let start = i as u64 * g.block_size;
            let used = total.saturating_sub(start).min(g.block_size);
            let from = match u64::from(*b).cmp(&bad_block) {
                std::cmp::Ordering::Less => continue,
                // Without the bytes of a token the whole block counts as soon as its end does not fit.
                std::cmp::Ordering::Equal if g.token_bytes.is_none() => 0,
                std::cmp::Ordering::Equal => bad_token,
                std::cmp::Ordering::Greater => 0,
            };
            if from < used {
                return Some(start + from);
            }
        }
        None
    }

    /// What holding these blocks means for a request.
    pub fn exposure(self, g: &Geometry, demand: &Demand, holding: &Holding) -> Exposure {
        let position =
            |tokens| holding.attention.iter().filter_map(|b| self.first_bad_position(g, b, tokens)).min();
        match demand.tokens {
            Some(tokens) => match position(Some(tokens)) {
                None => Exposure::Clean,
                Some(at) => {
                    let decoded_from = demand.prompt.map_or(at, |p| at.max(p));
                    Exposure::Bad { at: Some(at), shows: tokens.saturating_sub(decoded_from + 1) }
                }
            },
            None => {
                let boundary = self.first_bad_block(g);
                let beyond = holding.attention.iter().flatten().any(|b| u64::from(*b) > boundary);
                let inside = holding.attention.iter().flatten().any(|b| u64::from(*b) == boundary);
                let from_start = self.first_bad_token(g) == 0;
                match (beyond || inside && from_start, inside) {
                    (true, _) => Exposure::Bad { at: None, shows: u64::MAX },
                    (false, true) => Exposure::Open,
                    _ => Exposure::Clean,
                }
            }
        }
    }

    /// Static exposure: can requests of one attention block each ever reach a bad offset, and which is the first?
    pub fn first_request(self, g: &Geometry) -> Option<FirstRequest> {
        if !self.reachable(g) {
            return None;
        }
        let each = g.blocks_of(1);
        let bad = self.first_bad_block(g) + u64::from(self.first_bad_token(g) > 0);
        // The k-th request's last attention block is first_block + k * each - 1, until the list wraps.
        let closed = (bad + 1).saturating_sub(g.first_block).div_ceil(each);
        let before_wrap = closed * each <= g.usable();
        Some(FirstRequest { number: closed, before_wrap })
    }
}

/// What holding its blocks means for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposure {
    /// every offset fits
    Clean,
    /// some offset does not fit
    Bad {
        /// position of the first such token, if the number of tokens is known
        at: Option<u64>,
        /// tokens generated after it: so long is the damage that can be seen
        shows: u64,
    },
    /// depends on the number of tokens, which is not known
    Open,
}

/// The first request of one attention block that is exposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirstRequest {
    /// 1-based, warm-up requests counted
    pub number: u64,
    /// false when the free list wraps before: only longer requests or a replay can tell
    pub before_wrap: bool,
}
