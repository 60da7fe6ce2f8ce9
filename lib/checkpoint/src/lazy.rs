//! A weight whose rows are read when they are asked for, so that a large one need never stand in memory whole.

use crate::Error;
use crate::checkpoint::Checkpoint;
use crate::shards::Shards;
use crate::source::{Form, Source};
use crate::weight::{Format, Weight};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A weight in its files, or one that was read already: what it is, and its rows on demand. It may be sent to other
/// threads and outlives its checkpoint.
#[derive(Clone, Debug)]
pub struct LazyWeight {
    name: String,
    shape: Vec<usize>,
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    /// rows of a stored tensor, planes one below the other
    Stored(Arc<Shards>, Arc<Source>, Vec<Range<usize>>),
    Read(Arc<Weight>),
}

impl LazyWeight {
    /// Name without the checkpoint's prefix.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Extent of each dimension, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Rows: the product of all extents but the last.
    pub fn rows(&self) -> usize {
        self.shape[..self.shape.len().saturating_sub(1)].iter().product()
    }

    /// How it is stored.
    pub fn format(&self) -> Format {
        match &self.place {
            Place::Stored(_, source, _) => source.format(),
            Place::Read(weight) => weight.format(),
        }
    }

    /// Inputs that share a scale of an FP8 weight; `None` for others.
    pub fn scale_inputs(&self) -> Option<usize> {
        match &self.place {
            Place::Stored(_, source, _) => match source.form {
                Form::Fp8 { block, .. } => Some(block[1]),
                _ => None,
            },
            Place::Read(weight) => match &**weight {
                Weight::Fp8(w) => Some(w.block[1]),
                _ => None,
            },
        }
    }

    /// Bytes of a row, scales left out.
    pub fn row_bytes(&self) -> usize {
        let inputs = self.shape.last().copied().unwrap_or(1);
        match self.format() {
            Format::Plain(dtype) => inputs * dtype.size(),
            Format::Nvfp4 => inputs / 2,
            _ => inputs,
        }
    }

    /// Reads some rows, `[rows.len(), inputs]`. `spare` is memory to read into, if it is large enough
    /// ([`Weight::into_bytes`] gives it back).
    ///
    /// # Errors
    /// When there are no such rows, there is no memory for them, or their bytes cannot be read: naming file, tensor and
    /// offset.
    pub fn read(&self, rows: Range<usize>, spare: Vec<u8>) -> Result<Weight, Error> {
        if rows.start > rows.end || rows.end > self.rows() {
            let (tensor, found) = (self.name.clone(), format!("{rows:?}"));
            return Err(Error::NoSuchRows { tensor, found, rows: self.rows() });
        }
        match &self.place {
            Place::Stored(shards, source, all) => {
                let shape = vec![rows.len(), source.inputs()];
                shards.draw(source, self.name.clone(), &part(all, rows), shape, spare)
            }
            Place::Read(weight) => Ok(weight.rows(rows)),
        }
    }

    /// Reads all of it.
    ///
    /// # Errors
    /// As [`LazyWeight::read`].
    pub fn read_all(&self) -> Result<Weight, Error> {
        match &self.place {
            Place::Stored(shards, source, all) => {
                shards.draw(source, self.name.clone(), all, self.shape.clone(), Vec::new())
            }
            Place::Read(weight) => Ok((**weight).clone()),
        }
    }
}

impl From<Weight> for LazyWeight {
    fn from(weight: Weight) -> LazyWeight {
        let (name, shape) = (weight.name().to_owned(), weight.shape().to_vec());
        LazyWeight { name, shape, place: Place::Read(Arc::new(weight)) }
    }
}

impl Checkpoint {
    /// A tensor of the text model, unread; `name` is without prefix, as for [`Checkpoint::weight`].
    ///
    /// # Errors
    /// When there is no such tensor.
    pub fn lazy(&self, name: &str) -> Result<LazyWeight, Error> {
        let drawn = self.tensors.get(name).ok_or_else(|| Error::NoSuchTensor {
            dir: self.dir.display().to_string(),
            tensor: name.to_owned(),
        })?;
        let source = &self.sources[drawn.source];
        let (rows, shape) = match &drawn.rows {
            None => (std::iter::once(0..source.rows()).collect(), source.shape.clone()),
            Some(rows) => (rows.clone(), vec![rows.iter().map(Range::len).sum(), source.inputs()]),
        };
        let place = Place::Stored(self.shards.clone(), source.clone(), rows);
        Ok(LazyWeight { name: name.to_owned(), shape, place })
    }

    /// Bytes of tensors that have been read so far, by whoever holds a [`LazyWeight`] of it, too.
    pub fn bytes_read(&self) -> u64 {
        self.shards.read.load(Ordering::Relaxed)
    }
}

/// Reads rows of weights that are stacked one below the other: a piece of each weight that has some of them. Memory to
/// read into is taken from `spare`.
///
/// # Errors
/// As [`LazyWeight::read`].
pub fn read_stacked(
    weights: &[LazyWeight],
    rows: Range<usize>,
    spare: &mut Vec<Vec<u8>>,
) -> Result<Vec<Weight>, Error> {
    let mut before = 0;
    let mut out = Vec::new();
    for w in weights {
        let (start, end) = (rows.start.max(before), rows.end.min(before + w.rows()));
        if start < end {
            out.push(w.read(start - before..end - before, spare.pop().unwrap_or_default())?);
        }
        before += w.rows();
    }
    Ok(out)
}

/// The rows `wanted` of ranges that are counted through.
fn part(ranges: &[Range<usize>], wanted: Range<usize>) -> Vec<Range<usize>> {
    let mut before = 0;
    let mut out = Vec::new();
    for range in ranges {
        let start = wanted.start.max(before);
        let end = wanted.end.min(before + range.len());
        if start < end {
            out.push(range.start + start - before..range.start + end - before);
        }
        before += range.len();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::part;

    #[test]
    fn a_part_of_ranges_is_what_stands_there_when_they_are_counted_through() {
        let ranges = [3..7, 20..21, 10..15];
        let all: Vec<usize> = ranges.iter().cloned().flatten().collect();
        for start in 0..=all.len() {
            for end in start..=all.len() {
                let found: Vec<usize> = part(&ranges, start..end).into_iter().flatten().collect();
                assert_eq!(found, all[start..end], "{start}..{end}");
            }
        }
    }
}
