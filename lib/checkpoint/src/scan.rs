//! NaN and infinity in the weights: a checkpoint that loads without complaint and answers with garbage.

use crate::checkpoint::{Checkpoint, Weight};
use crate::{Error, tensor};
use cute_records::Count;
use rayon::prelude::*;

/// Bytes looked at in one go; a multiple of every element size.
const BLOCK: u64 = 1 << 22;

impl Checkpoint {
    /// Counts the elements of every tensor of the text model that are NaN or infinite; tensors without any
    /// are left out. Reads in parallel, a few megabytes at a time; `progress` hears the bytes of each block.
    ///
    /// # Errors
    /// When the bytes cannot be read.
    pub fn scan(&self, progress: impl Fn(u64) + Sync) -> Result<Count, Error> {
        let blocks: Vec<(&str, &Weight, u64)> = self
            .tensors
            .iter()
            .flat_map(|(name, w)| starts(w).map(move |at| (name.as_str(), w, at)))
            .collect();
        let counts: Vec<(&str, u64)> = blocks
            .par_iter()
            .map(|&(name, w, at)| {
                let mut bytes = vec![0; (w.located.entry.bytes - at).min(BLOCK) as usize];
                self.read(&w.located, at, &mut bytes)?;
                progress(bytes.len() as u64);
                Ok((name, tensor::non_finite(w.dtype, &bytes)))
            })
            .collect::<Result<_, Error>>()?;
        let mut out = Count::new();
        for (name, n) in counts.into_iter().filter(|(_, n)| *n > 0) {
            *out.entry(name.to_owned()).or_default() += n;
        }
        Ok(out)
    }
}

fn starts(w: &Weight) -> impl Iterator<Item = u64> + use<> {
    (0..w.located.entry.bytes).step_by(BLOCK as usize)
}
