//! Watching activations: which operation wrote the first value that is not finite, and in which row.
//!
//! A watched backend has a [`Watch`]; operations report what they wrote to it ([`Backend::wrote`]). Each row keeps the
//! first report that found something, in the order of computing. What is watched is read, never written.

use super::Backend;
use crate::Error;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The first value of a row that is not finite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NonFinite {
    /// the decoder layer; `None` before the first and behind the last
    pub layer: Option<usize>,
    /// the operation that wrote it
    pub phase: &'static str,
    /// its position among everything that was written in the step
    pub order: usize,
    /// where it stands in the row
    pub column: usize,
    /// NaN or infinite
    pub value: f32,
}

/// What was seen of a step. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Watch(Arc<Mutex<Seen>>);

#[derive(Debug, Default)]
struct Seen {
    /// between [`Watch::begin`] and [`Watch::end`]
    on: bool,
    layer: Option<usize>,
    reports: usize,
    rows: Vec<Option<NonFinite>>,
}

impl Watch {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on operations belong to a step of so many rows.
    pub fn begin(&self, rows: usize) {
        *self.seen() = Seen { on: true, rows: vec![None; rows], ..Seen::default() };
    }

    /// The step is over. Returns what was found in each of its rows.
    pub fn end(&self) -> Vec<Option<NonFinite>> {
        std::mem::take(&mut *self.seen()).rows
    }

    /// The operations that follow are those of a layer, or of none.
    pub fn enter(&self, layer: Option<usize>) {
        self.seen().layer = layer;
    }

    fn is_on(&self) -> bool {
        self.seen().on
    }

    /// Takes note of the first values that are not finite, by row of the step.
    fn note(&self, phase: &'static str, found: impl Iterator<Item = (usize, usize, f32)>) {
        let seen = &mut *self.seen();
        seen.reports += 1;
        let (layer, order) = (seen.layer, seen.reports);
        for (row, column, value) in found {
            if let Some(first) = seen.rows.get_mut(row) {
                first.get_or_insert(NonFinite { layer, phase, order, column, value });
            }
        }
    }
}

/// Reports the first `rows` rows of a buffer, which are the step's rows `of(0)`, `of(1)`, …
pub(super) fn report<B: Backend>(
    b: &B,
    phase: &'static str,
    buf: &B::Buf,
    rows: usize,
    of: impl Fn(usize) -> usize,
) -> Result<(), Error> {
    let Some(watch) = b.watching().filter(|w| rows > 0 && w.is_on()) else { return Ok(()) };
    let values = b.read(buf, rows)?;
    let width = (values.len() / rows).max(1);
    let bad = values.chunks_exact(width).enumerate().filter_map(|(i, row)| {
        let column = row.iter().position(|x| !x.is_finite())?;
        Some((of(i), column, row[column]))
    });
    watch.note(phase, bad);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_keeps_the_first_report_and_a_step_forgets_the_one_before() {
        let watch = Watch::default();
        assert!(!watch.is_on());
        watch.begin(2);
        watch.enter(Some(4));
        watch.note("conv", std::iter::empty());
        watch.note("delta_rule", [(1, 7, f32::NEG_INFINITY), (9, 0, f32::NAN)].into_iter());
        watch.enter(None);
        watch.note("lm_head", [(1, 0, f32::NAN), (0, 3, f32::INFINITY)].into_iter());
        let at = |layer, phase, order, column, value| Some(NonFinite { layer, phase, order, column, value });
        let first = at(None, "lm_head", 3, 3, f32::INFINITY);
        assert_eq!(watch.end(), [first, at(Some(4), "delta_rule", 2, 7, f32::NEG_INFINITY)]);
        assert!(!watch.is_on());
        watch.begin(1);
        assert_eq!(watch.end(), [None]);
    }
}
