//! NaN and infinity in the weights, and scales that no quantiser writes: a checkpoint that loads without complaint and
//! answers with garbage.

use crate::checkpoint::Checkpoint;
use crate::shards::Located;
use crate::source::{Elements, Form, Source, widen};
use crate::{Error, tensor};
use cute_records::Count;
use rayon::prelude::*;

/// Bytes looked at in one go; a multiple of every element size.
const BLOCK: u64 = 1 << 22;

/// What was found, by tensor; tensors without any are left out.
#[derive(Debug, Default, PartialEq)]
pub struct Scan {
    /// elements that are NaN or infinite, scales and codes included
    pub non_finite: Count,
    /// scales of blocks that are negative, or zero over FP8 codes that are not
    pub scales: Count,
}

impl Checkpoint {
    /// Counts what cannot be sound in every tensor of the text model. Reads in parallel, a few megabytes at a time;
    /// `progress` hears the bytes of each block.
    ///
    /// Of a block of zeros, transformers writes the scale 1 and others 0 or a very small one. In NVFP4 a scale may
    /// underflow to 0 over codes that are not.
    ///
    /// # Errors
    /// When the bytes cannot be read.
    pub fn scan(&self, progress: impl Fn(u64) + Sync) -> Result<Scan, Error> {
        let mut blocks = Vec::new();
        for source in &self.sources {
            for (i, (at, kind)) in source.stored().into_iter().enumerate() {
                let name = label(&source.name, at);
                let scaled = (i == 1).then_some(source.as_ref());
                blocks.extend(starts(at).map(|start| (name.clone(), at, kind, start, scaled)));
            }
        }
        let counts: Vec<(&str, u64, u64)> = blocks
            .par_iter()
            .map(|(name, at, kind, start, scaled)| {
                let mut bytes = vec![0; (at.entry.bytes - start).min(BLOCK) as usize];
                self.read(at, *start, &mut bytes)?;
                progress(bytes.len() as u64);
                let n = non_finite(*kind, &bytes);
                let scales = scaled.map_or(Ok(0), |source| self.bad_scales(source, *kind, *start, bytes))?;
                Ok((name.as_str(), n, scales))
            })
            .collect::<Result<_, Error>>()?;
        let mut out = Scan::default();
        for (name, n, scales) in counts {
            for (count, n) in [(&mut out.non_finite, n), (&mut out.scales, scales)] {
                if n > 0 {
                    *count.entry(name.to_owned()).or_default() += n;
                }
            }
        }
        Ok(out)
    }

    /// How many of the scales from byte `start` on no quantiser writes.
    fn bad_scales(&self, source: &Source, kind: Elements, start: u64, bytes: Vec<u8>) -> Result<u64, Error> {
        let dtype = match kind {
            Elements::Float(dtype) => dtype,
            Elements::E4m3 => return Ok(bytes.iter().filter(|b| (0x81..0xff).contains(*b)).count() as u64),
            Elements::E8m0 | Elements::E2m1 => return Ok(0),
        };
        let mut n = 0;
        for (i, scale) in widen(kind, bytes).into_iter().enumerate() {
            let at = start as usize / dtype.size() + i;
            n += u64::from(scale < 0.0 || scale == 0.0 && self.any_code(source, at)?);
        }
        Ok(n)
    }

    /// Whether a block of FP8 codes, by the place of its scale, has one that is not zero.
    fn any_code(&self, source: &Source, scale: usize) -> Result<bool, Error> {
        let Form::Fp8 { codes, block: [tall, wide], .. } = &source.form else { return Ok(false) };
        let (plane, inputs) = (source.plane(), source.inputs());
        let (down, across) = (plane.div_ceil(*tall), inputs.div_ceil(*wide));
        let (row, column) = (scale / across % down * tall, scale % across * wide);
        let first = scale / across / down * plane + row;
        let mut bytes = vec![0; (*wide).min(inputs - column)];
        for row in first..first + (*tall).min(plane - row) {
            self.read(codes, (row * inputs + column) as u64, &mut bytes)?;
            if bytes.iter().any(|b| b & 0x7f != 0) {
                return Ok(true);
            }
        }
        Ok(false)
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
