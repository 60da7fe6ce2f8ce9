//! Tokens chosen where the logits lie, several rows at a launch.

use super::arena::Arena;
use super::gpu::{Join, Launch, Ptr};
use super::{Buf, Cuda, int, ptr, units};
use crate::Error;
use crate::backend::{CacheShape, choose_on_the_host};
use crate::sampler::Choice;

/// Threads of a block, and what it keeps in shared memory: two halves of each bin, sums of warps, what was found.
const THREADS: u32 = 512;
const SMEM: u32 = 2 * BINS as u32 * 4 + THREADS / 32 * 8 + 16;
/// As in choose.cu.
const BINS: usize = 2048;
const HISTOGRAMS: usize = 3 * 5;
/// Most blocks of a row.
const BLOCKS: usize = 16;
/// Most ids of a block, and of a row.
const OF_BLOCK: usize = (1 << 16) - 1;
const IDS: usize = 1 << 22;
/// Words of a choice.
const WORDS: usize = 12;

/// Device memory for so many rows at once, in one allocation: what is zero before a launch comes first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choosing {
    at: Ptr,
    rows: usize,
    /// of a row
    blocks: usize,
    /// most ids that penalties are for, of a row
    seen: usize,
}

impl Choosing {
    /// None when a row has too many logits for the device.
    pub(super) fn new(memory: &Arena, vocab: usize, shape: &CacheShape) -> Result<Option<Self>, Error> {
        let resident = memory.gpu.multiprocessors() as usize;
        let blocks = vocab.div_ceil(OF_BLOCK).max(BLOCKS).min(resident);
        if vocab > IDS || vocab > blocks * OF_BLOCK {
            return Ok(None);
        }
        let rows = (resident / blocks).min(shape.num_slots).max(1);
        let mut choosing = Choosing { at: 0, rows, blocks, seen: vocab.min(shape.max_len) };
        choosing.at = memory.alloc(choosing.extent().1)?;
        Ok(Some(choosing))
    }

    /// Address and bytes of all of it.
    pub(super) fn extent(&self) -> (Ptr, usize) {
        let seen = self.rows * self.seen * 4;
        (self.at, (self.seen_ids() - self.at) as usize + seen)
    }
    fn zeroed(&self) -> usize {
        self.rows * (HISTOGRAMS * BINS * 8 + 4)
    }
    fn counters(&self) -> Ptr {
        self.at + (self.rows * HISTOGRAMS * BINS * 8) as Ptr
    }
    fn tops(&self) -> Ptr {
        self.counters() + 4 * self.rows as Ptr
    }
    fn tokens(&self) -> Ptr {
        self.tops() + (4 * self.rows * self.blocks) as Ptr
    }
    /// Choices, then what they have seen: one upload.
    fn choices(&self) -> Ptr {
        (self.tokens() + 4 * self.rows as Ptr).next_multiple_of(16)
    }
    fn seen_ids(&self) -> Ptr {
        self.choices() + (4 * WORDS * self.rows) as Ptr
    }
}

impl Cuda {
    /// A token for each choice.
    pub(super) fn choose_tokens(&self, logits: &Buf, choices: &[Choice]) -> Result<Vec<u32>, Error> {
        let Some(c) = self.choosing.get() else {
            return choose_on_the_host(self, logits, choices);
        };
        let kernel = self.kernel(units::plain("choose.cu"), "choose", SMEM)?;
        let mut tokens = Vec::with_capacity(choices.len());
        for choices in choices.chunks(c.rows) {
            let mut words = vec![0u32; WORDS * c.rows];
            for (choice, to) in choices.iter().zip(0..) {
                if choice.seen.len() > c.seen || choice.row >= logits.rows {
                    let (seen, row) = (choice.seen.len(), choice.row);
                    return Err(Error::Shape(format!("a choice in row {row} after {seen} other tokens")));
                }
                let halves = |x: u64| [x as u32, (x >> 32) as u32];
                let [[a, b], [d, e]] = [choice.nucleus(), choice.random].map(halves);
                let floats = [choice.temperature, choice.min_p, choice.repetition_penalty].map(f32::to_bits);
                let seen = (words.len() - WORDS * c.rows) as u32;
                let likeliest = u32::try_from(choice.likeliest()).unwrap_or(u32::MAX);
                let fields =
                    [a, b, d, e, choice.row as u32, likeliest, floats[0], floats[1], floats[2], seen];
                words[to * WORDS..][..fields.len()].copy_from_slice(&fields);
                words[to * WORDS + fields.len()] = choice.seen.len() as u32;
                words.extend(&choice.seen);
            }
            self.gpu().fill(c.at, 0, c.zeroed())?;
            self.gpu().upload(c.choices(), bytemuck::cast_slice(&words))?;
            let args = [
                ptr(c.tokens()),
                ptr(logits.at),
                ptr(c.choices()),
                ptr(c.seen_ids()),
                ptr(c.at),
                ptr(c.tops()),
                ptr(c.counters()),
                int(logits.width),
                int(logits.ld),
            ];
            let grid = [c.blocks as u32, choices.len() as u32, 1];
            let launch = Launch { grid, block: THREADS, smem: SMEM, join: Join::Cooperative };
            self.gpu().launch(kernel, launch, &args)?;
            let mut found = vec![0u32; choices.len()];
            self.gpu().download(bytemuck::cast_slice_mut(&mut found), c.tokens())?;
            tokens.extend(found);
        }
        Ok(tokens)
    }
}
