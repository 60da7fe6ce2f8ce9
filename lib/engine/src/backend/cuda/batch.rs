//! The step's batch in device memory: what recorded kernels read instead of arguments.

use super::arena::Arena;
use super::gpu::{Gpu, Ptr};
use crate::Error;
use crate::backend::CacheShape;
use crate::batch::Batch;

/// Arrays of u32, one after the other in one allocation, written by one upload a step.
#[derive(Clone, Copy, Debug)]
pub(super) struct DeviceBatch {
    at: Ptr,
    rows: usize,
    seqs: usize,
    /// pages a sequence can have
    pub(super) max_pages: usize,
    page_size: usize,
}

impl DeviceBatch {
    pub(super) fn new(memory: &Arena, shape: &CacheShape) -> Result<Self, Error> {
        let mut batch = DeviceBatch {
            at: 0,
            rows: shape.max_rows,
            seqs: shape.num_slots,
            max_pages: shape.max_len.div_ceil(shape.page_size),
            page_size: shape.page_size,
        };
        batch.at = memory.alloc(batch.len() * 4)?;
        Ok(batch)
    }

    fn len(&self) -> usize {
        3 * self.rows + self.seqs * (5 + self.max_pages)
    }
    fn seq_array(&self, i: usize) -> Ptr {
        self.at + 4 * (3 * self.rows + i * self.seqs) as u64
    }
    /// token of each row
    pub(super) fn tokens(&self) -> Ptr {
        self.at
    }
    /// position of each row
    pub(super) fn positions(&self) -> Ptr {
        self.at + 4 * self.rows as u64
    }
    /// segment of each row
    pub(super) fn segment(&self) -> Ptr {
        self.at + 8 * self.rows as u64
    }
    /// first row of each segment
    pub(super) fn seg_row(&self) -> Ptr {
        self.seq_array(0)
    }
    /// rows of each segment
    pub(super) fn seg_len(&self) -> Ptr {
        self.seq_array(1)
    }
    /// first position of each segment
    pub(super) fn seg_start(&self) -> Ptr {
        self.seq_array(2)
    }
    /// slot of each segment
    pub(super) fn seg_slot(&self) -> Ptr {
        self.seq_array(3)
    }
    /// rows whose logits are wanted
    pub(super) fn logit_rows(&self) -> Ptr {
        self.seq_array(4)
    }
    /// pages `[segment, max_pages]`
    pub(super) fn pages(&self) -> Ptr {
        self.seq_array(5)
    }

    /// Writes a batch.
    pub(super) fn upload(&self, gpu: &dyn Gpu, batch: &Batch) -> Result<(), Error> {
        let segs = batch.segments.len();
        if batch.rows() > self.rows || segs.max(batch.logit_rows.len()) > self.seqs {
            return Err(Error::Shape(format!(
                "a step of {} rows, {segs} sequences and {} logits: the device's batch holds {} and {}",
                batch.rows(),
                batch.logit_rows.len(),
                self.rows,
                self.seqs
            )));
        }
        // page tables beyond the last segment are not sent
        let mut words = vec![0u32; 3 * self.rows + 5 * self.seqs + segs * self.max_pages];
        let (by_row, by_seq) = words.split_at_mut(3 * self.rows);
        let (arrays, pages) = by_seq.split_at_mut(5 * self.seqs);
        by_row[..batch.rows()].copy_from_slice(&batch.tokens);
        for (i, s) in batch.segments.iter().enumerate() {
            let last = s.start + s.len - 1;
            if last / self.page_size >= s.pages.len().min(self.max_pages) {
                return Err(Error::NoPage { owner: s.owner, position: last });
            }
            for j in 0..s.len {
                by_row[self.rows + s.row + j] = (s.start + j) as u32;
                by_row[2 * self.rows + s.row + j] = i as u32;
            }
            for (array, value) in [s.row, s.len, s.start, s.slot as usize].into_iter().enumerate() {
                arrays[array * self.seqs + i] = value as u32;
            }
            let known = s.pages.len().min(self.max_pages);
            pages[i * self.max_pages..][..known].copy_from_slice(&s.pages[..known]);
        }
        for (i, row) in batch.logit_rows.iter().enumerate() {
            arrays[4 * self.seqs + i] = *row as u32;
        }
        gpu.upload(self.at, bytemuck::cast_slice(&words))
    }
}
