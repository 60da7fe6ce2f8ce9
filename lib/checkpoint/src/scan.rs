//! NaN and infinity in the weights: a checkpoint that loads without complaint and answers with garbage.

use crate::checkpoint::Checkpoint;
use crate::shards::Located;
use crate::source::Elements;
use crate::{Error, tensor};
use cute_records::Count;
use rayon::prelude::*;

/// Bytes looked at in one go; a multiple of every element size.
const BLOCK: u64 = 1 << 22;

impl Checkpoint {
    /// Counts the elements of every tensor of the text model that are NaN or infinite, scales and codes included;
    /// tensors without any are left out. Reads in parallel, a few megabytes at a time; `progress` hears the bytes of each block.
    ///
    /// # Errors
    /// When the bytes cannot be read.
    pub fn scan(&self, progress: impl Fn(u64) + Sync) -> Result<Count, Error> {
        let stored =
            self.sources.iter().flat_map(|s| s.stored().into_iter().map(move |t| (s.name.as_str(), t)));
        let blocks: Vec<(String, &Located, Elements, u64)> = stored
            .flat_map(|(name, (at, kind))| starts(at).map(move |start| (label(name, at), at, kind, start)))
            .collect();
        let counts: Vec<(&str, u64)> = blocks
            .par_iter()
            .map(|(name, at, kind, start)| {
                let mut bytes = vec![0; (at.entry.bytes - start).min(BLOCK) as usize];
                self.read(at, *start, &mut bytes)?;
                progress(bytes.len() as u64);
                Ok((name.as_str(), non_finite(*kind, &bytes)))
            })
            .collect::<Result<_, Error>>()?;
        let mut out = Count::new();
        for (name, n) in counts.into_iter().filter(|(_, n)| *n > 0) {
            *out.entry(name.to_owned()).or_default() += n;
        }
        Ok(out)
    }
}

/// The name without the checkpoint's prefix: the weight's, with the last step of the stored tensor.
fn label(weight: &str, at: &Located) -> String {
    match at.entry.name.find(weight.strip_suffix(".weight").unwrap_or(weight)) {
        Some(prefix) => at.entry.name[prefix..].to_owned(),
        None => at.entry.name.clone(),
    }
}

fn non_finite(kind: Elements, bytes: &[u8]) -> u64 {
    let count = |nan: &dyn Fn(u8) -> bool| bytes.iter().filter(|b| nan(**b)).count() as u64;
    match kind {
        Elements::Float(dtype) => tensor::non_finite(dtype, bytes),
        Elements::E4m3 => count(&|b| b & 0x7f == 0x7f),
        Elements::E8m0 => count(&|b| b == 0xff),
        Elements::E2m1 => 0,
    }
}

fn starts(at: &Located) -> impl Iterator<Item = u64> + use<> {
    (0..at.entry.bytes).step_by(BLOCK as usize)
}
