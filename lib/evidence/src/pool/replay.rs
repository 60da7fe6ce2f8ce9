//! The free list, request by request.

use super::Geometry;
use std::collections::VecDeque;

/// What a request asks of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// attention blocks in each group
    pub attention: u64,
    /// prompt and generated tokens, if known
    pub tokens: Option<u64>,
    /// tokens of the prompt, if known
    pub prompt: Option<u64>,
}

/// The blocks a request held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    /// one for each state group
    pub state: Vec<u32>,
    /// attention blocks, group by group, each in the order of the tokens
    pub attention: Vec<Vec<u32>>,
    /// true when any of them had been held before
    pub recycled: bool,
}

impl Holding {
    /// The highest attention block.
    pub fn highest(&self) -> Option<u32> {
        self.attention.iter().flatten().copied().max()
    }

    /// Every block, state blocks first.
    pub fn all(&self) -> impl Iterator<Item = u32> {
        self.state.iter().chain(self.attention.iter().flatten()).copied()
    }
}

/// A first-in first-out free list.
#[derive(Clone, Debug)]
pub struct FreeList {
    geometry: Geometry,
    free: VecDeque<u32>,
    used: Vec<bool>,
    taken: u64,
}

impl FreeList {
    /// All usable blocks, lowest first.
    pub fn new(geometry: Geometry) -> Self {
        let free = (geometry.first_block..geometry.blocks).map(|b| b as u32).collect();
        FreeList { geometry, free, used: vec![false; geometry.blocks as usize], taken: 0 }
    }

    /// Blocks handed out so far, counting each time.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    fn pop(&mut self, recycled: &mut bool) -> Option<u32> {
        let b = self.free.pop_front()?;
        self.taken += 1;
        *recycled |= std::mem::replace(&mut self.used[b as usize], true);
        Some(b)
    }

    /// Takes what a request asks for: a block for every state group, then its attention blocks, group by group.
    /// `None` when the pool is too small for it.
    pub fn acquire(&mut self, demand: &Demand) -> Option<Holding> {
        let mut h = Holding::default();
        for _ in 0..self.geometry.state_blocks {
            h.state.push(self.pop(&mut h.recycled)?);
        }
        for _ in 0..self.geometry.attention_groups {
            let mut group = Vec::new();
            for _ in 0..demand.attention {
                group.push(self.pop(&mut h.recycled)?);
            }
            h.attention.push(group);
        }
        Some(h)
    }

    /// Returns a request's blocks to the tail: state blocks in order, attention blocks last token first.
    pub fn release(&mut self, holding: &Holding) {
        self.free.extend(&holding.state);
        for group in &holding.attention {
            self.free.extend(group.iter().rev());
        }
    }
}

/// Which blocks each request held, when they came strictly one after the other. `None` when one does not fit.
pub fn sequential<'a>(
    geometry: Geometry,
    demands: impl IntoIterator<Item = &'a Demand>,
) -> Option<Vec<Holding>> {
    let mut list = FreeList::new(geometry);
    let mut out = Vec::new();
    for demand in demands {
        let holding = list.acquire(demand)?;
        list.release(&holding);
        out.push(holding);
    }
    Some(out)
}
