//! A stored tensor of the text model: where its bytes and its scales stand, and how rows of it are read.

use crate::Error;
use crate::shards::{Located, Shards};
use crate::tensor::{Dtype, Tensor};
use crate::weight::{Format, Fp8, GlobalScale, NVFP4_BLOCK, Nvfp4, Weight, e8m0};
use safetensors::Dtype as Stored;
use std::ops::Range;

/// A tensor of the text model as it is stored.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// its name without the checkpoint's prefix
    pub name: String,
    /// the part of the model it belongs to
    pub module: &'static str,
    /// extents of its values; the last are the inputs, those before the last two are planes
    pub shape: Vec<usize>,
    /// where its bytes stand
    pub form: Form,
}

/// The bytes of a stored tensor.
#[derive(Clone, Debug)]
pub(crate) enum Form {
    /// numbers
    Plain(Dtype, Located),
    /// codes and scales, one for each block of outputs and inputs of a plane
    Fp8 { codes: Located, scales: Located, block: [usize; 2], format: Format },
    /// codes, scales and the global scale, which divides when `divides`
    Nvfp4 { codes: Located, scales: Located, global: Located, divides: bool },
}

/// What the bytes of a stored tensor are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Elements {
    /// numbers
    Float(Dtype),
    /// e4m3
    E4m3,
    /// bare exponents
    E8m0,
    /// pairs of e2m1, none of which is NaN or infinite
    E2m1,
}

impl Elements {
    /// How scales of this dtype are read.
    pub fn of_scale(dtype: Stored) -> Option<Elements> {
        match dtype {
            Stored::U8 | Stored::F8_E8M0 => Some(Elements::E8m0),
            other => Dtype::from_safetensors(other).map(Elements::Float),
        }
    }
}

impl Source {
    /// Number of its values.
    pub fn parameters(&self) -> u64 {
        self.shape.iter().product::<usize>() as u64
    }

    /// How it is stored.
    pub fn format(&self) -> Format {
        match self.form {
            Form::Plain(dtype, _) => Format::Plain(dtype),
            Form::Fp8 { format, .. } => format,
            Form::Nvfp4 { .. } => Format::Nvfp4,
        }
    }

    /// Its stored tensors, scales included, and what each holds.
    pub fn stored(&self) -> Vec<(&Located, Elements)> {
        match &self.form {
            Form::Plain(dtype, at) => vec![(at, Elements::Float(*dtype))],
            Form::Fp8 { codes, scales, .. } => {
                let kind = Elements::of_scale(scales.entry.dtype).unwrap_or(Elements::E8m0);
                vec![(codes, Elements::E4m3), (scales, kind)]
            }
            Form::Nvfp4 { codes, scales, global, .. } => {
                vec![(codes, Elements::E2m1), (scales, Elements::E4m3), (global, Elements::Float(Dtype::F32))]
            }
        }
    }

    /// Bytes in the files, scales included.
    pub fn bytes(&self) -> u64 {
        self.stored().iter().map(|(at, _)| at.entry.bytes).sum()
    }

    /// Extent of the last dimension.
    pub fn inputs(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }
    /// Outputs of all planes.
    pub fn rows(&self) -> usize {
        self.shape[..self.shape.len().saturating_sub(1)].iter().product()
    }
    /// Outputs of one plane.
    pub fn plane(&self) -> usize {
        if self.shape.len() < 2 { 1 } else { self.shape[self.shape.len() - 2] }
    }
}

impl Shards {
    /// Reads rows of a stored tensor as what the model text calls `name`, into `spare` if it is large enough.
    pub fn draw(
        &self,
        source: &Source,
        name: String,
        rows: &[Range<usize>],
        shape: Vec<usize>,
        spare: Vec<u8>,
    ) -> Result<Weight, Error> {
        let inputs = source.inputs();
        match &source.form {
            Form::Plain(dtype, at) => {
                let bytes = self.rows(at, rows, inputs * dtype.size(), spare)?;
                Ok(Weight::Plain(Tensor { name, dtype: *dtype, shape, bytes }))
            }
            Form::Fp8 { codes, scales, block, .. } => {
                let codes = self.rows(codes, rows, inputs, spare)?;
                let (scales, block) = self.fp8_scales(source, scales, *block, rows)?;
                Ok(Weight::Fp8(Fp8 { name, shape: matrix(&shape), codes, scales, block }))
            }
            Form::Nvfp4 { codes, scales, global, divides } => {
                let mut scalar = [0; 4];
                self.read(global, 0, &mut scalar)?;
                let scalar = f32::from_le_bytes(scalar);
                Ok(Weight::Nvfp4(Nvfp4 {
                    name,
                    shape: matrix(&shape),
                    codes: self.rows(codes, rows, inputs / 2, spare)?,
                    scales: self.rows(scales, rows, inputs / NVFP4_BLOCK, Vec::new())?,
                    global: match divides {
                        true => GlobalScale::Divisor(scalar),
                        false => GlobalScale::Multiplier(scalar),
                    },
                }))
            }
        }
    }

    /// Rows of so many bytes.
    fn rows(
        &self,
        at: &Located,
        rows: &[Range<usize>],
        width: usize,
        spare: Vec<u8>,
    ) -> Result<Vec<u8>, Error> {
        let n: usize = rows.iter().map(Range::len).sum::<usize>() * width;
        let mut bytes = spare;
        if bytes.try_reserve_exact(n.saturating_sub(bytes.len())).is_err() {
            let file = self.files[at.shard].path.clone();
            return Err(Error::Memory { file, tensor: at.entry.name.clone(), bytes: n as u64 });
        }
        bytes.resize(n, 0);
        let mut rest = &mut bytes[..];
        for range in rows {
            let (here, behind) = rest.split_at_mut(range.len() * width);
            self.read(at, (range.start * width) as u64, here)?;
            rest = behind;
        }
        Ok(bytes)
    }

    /// The scales of some rows, and the block each is for: as stored when the rows begin with a block of one plane and
    /// follow each other, else one row of scales a row.
    fn fp8_scales(
        &self,
        source: &Source,
        scales: &Located,
        block: [usize; 2],
        rows: &[Range<usize>],
    ) -> Result<(Vec<f32>, [usize; 2]), Error> {
        let [tall, wide] = block;
        let (plane, across) = (source.plane(), source.inputs().div_ceil(wide.max(1)));
        let down = plane.div_ceil(tall);
        let row_of = |r: usize| r / plane * down + r % plane / tall;
        let kind = Elements::of_scale(scales.entry.dtype).unwrap_or(Elements::E8m0);
        let read = |rows: Range<usize>| -> Result<Vec<f32>, Error> {
            let width = across * if let Elements::Float(dtype) = kind { dtype.size() } else { 1 };
            Ok(widen(kind, self.rows(scales, &[rows], width, Vec::new())?))
        };
        if let [one] = rows
            && !one.is_empty()
            && (one.start % plane).is_multiple_of(tall)
            && (one.end <= (one.start / plane + 1) * plane || plane.is_multiple_of(tall))
        {
            return Ok((read(row_of(one.start)..row_of(one.end - 1) + 1)?, block));
        }
        let mut out = Vec::new();
        for range in rows.iter().filter(|r| !r.is_empty()) {
            let first = row_of(range.start);
            let some = read(first..row_of(range.end - 1) + 1)?;
            for r in range.clone() {
                out.extend_from_slice(&some[(row_of(r) - first) * across..][..across]);
            }
        }
        Ok((out, [1, wide]))
    }
}

/// Scales as f32; exact.
pub(crate) fn widen(kind: Elements, bytes: Vec<u8>) -> Vec<f32> {
    match kind {
        Elements::Float(dtype) => {
            Tensor { name: String::new(), dtype, shape: vec![bytes.len() / dtype.size()], bytes }.to_f32()
        }
        _ => bytes.into_iter().map(e8m0).collect(),
    }
}

/// Planes one below the other.
fn matrix(shape: &[usize]) -> [usize; 2] {
    let (inputs, outer) = shape.split_last().map_or((1, shape), |(k, outer)| (*k, outer));
    [outer.iter().product(), inputs]
}
