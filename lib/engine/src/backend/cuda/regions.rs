//! When each block entered and left each phase of a cooperative launch.

use super::{Cuda, PHASES};
use crate::Error;
use crate::backend::{REGIONS, Regions};
use std::ops::Range;
use std::time::Duration;

/// The phases of `coop_attention` that make up each of [`REGIONS`].
const PHASES_OF: [Range<usize>; REGIONS.len()] = [0..4, 4..5, 5..6, 6..8];

impl Cuda {
    /// Adds what the blocks of a layer's last launch wrote down, `[phase, block, (entry, exit)]` in nanoseconds.
    pub(super) fn add_regions(&self, layer: usize, regions: &mut Regions) -> Result<(), Error> {
        let blocks = self.multiprocessors as usize;
        let mut words = vec![0u64; PHASES * blocks * 2];
        self.gpu().download(bytemuck::cast_slice_mut(&mut words), self.timing(layer))?;
        let phases: Vec<&[u64]> = words.chunks_exact(2 * blocks).collect();
        regions.launches += 1;
        for (i, range) in PHASES_OF.into_iter().enumerate() {
            let (span, busy) = span(range.map(|p| phases[p]));
            regions.spent[i] += Duration::from_nanos(span);
            regions.busy[i] += Duration::from_nanos(busy / blocks as u64);
        }
        // what a launch with other phases leaves out must not be read again
        self.gpu().fill(self.timing(layer), 0, words.len() * 8)
    }
}

/// From the first entry to the last exit, and the sum of what lies between each entry and its exit. A phase that did
/// not run is all zeros.
fn span<'a>(phases: impl Iterator<Item = &'a [u64]>) -> (u64, u64) {
    let times = phases.flat_map(|p| p.chunks_exact(2)).filter(|t| t[0] > 0 && t[1] >= t[0]);
    let (mut first, mut last, mut busy) = (u64::MAX, 0, 0);
    for t in times {
        (first, last, busy) = (first.min(t[0]), last.max(t[1]), busy + t[1] - t[0]);
    }
    (last.saturating_sub(first), busy)
}

#[cfg(test)]
mod tests {
    use super::span;

    #[test]
    fn a_span_is_not_the_sum_of_its_parts() {
        let (a, b) = ([10, 20, 12, 30], [31, 40, 30, 35]);
        assert_eq!(span([&a[..], &b[..]].into_iter()), (30, 10 + 18 + 9 + 5));
        assert_eq!(span([&[0, 0, 0, 0][..]].into_iter()), (0, 0));
    }
}
