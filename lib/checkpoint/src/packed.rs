//! How a weight is stored, told from its tensors: the matrix itself, its codes, the scales beside it.

use crate::Error;
use crate::expected::Expected;
use crate::quantization::{Method, Quantization};
use crate::shards::{Located, Shards};
use crate::source::{Elements, Form};
use crate::tensor::Dtype;
use crate::weight::{Format, NVFP4_BLOCK};
use safetensors::Dtype as Stored;

/// Scales of weights, by the end of their names.
const SCALES: [&str; 4] = ["weight_scale", "weight_scale_inv", "weight_scale_2", "weight_global_scale"];
/// Scales of activations, which weight-only inference has no use for.
pub(crate) const ACTIVATION_SCALES: [&str; 3] = [".input_scale", ".input_global_scale", ".activation_scale"];

/// Finds what an expected tensor is stored as.
pub(crate) struct Finder<'a> {
    pub shards: &'a Shards,
    pub quantization: Option<&'a Quantization>,
}

/// What stands for an expected tensor, and the full names of all of it.
pub(crate) type Found = (Form, Vec<String>);

impl Finder<'_> {
    fn get(&self, name: &str) -> Option<&Located> {
        self.shards.tensors.get(name)
    }

    pub fn file(&self, at: &Located) -> String {
        self.shards.files[at.shard].path.clone()
    }

    /// The form of the tensor `full`, which is expected to be `want`; `None` when there is none.
    pub fn find(&self, want: &Expected, full: &str) -> Result<Option<Found>, Error> {
        let base = full.strip_suffix(".weight");
        let packed = base.and_then(|b| self.get(&format!("{b}.weight_packed"))).filter(|_| want.linear);
        let at = match (self.get(full), packed) {
            (None, None) => return base.map_or(Ok(None), |base| self.foreign(base)),
            (Some(at), Some(packed)) => return Err(self.stray(at, packed)),
            (None, Some(packed)) => return self.nvfp4(want, base.unwrap_or(full), packed, true).map(Some),
            (Some(at), None) => at,
        };
        match (at.entry.dtype, base) {
            (Stored::F8_E4M3, _) if want.linear => self.fp8(want, full, at).map(Some),
            (Stored::U8, Some(base)) if want.linear => {
                if let Some(at) = self.get(&format!("{full}.absmax")) {
                    return Err(self.unsupported(
                        at,
                        "a bitsandbytes weight",
                        "its nf4 table and nested scales",
                    ));
                }
                self.nvfp4(want, base, at, false).map(Some)
            }
            (dtype, base) => {
                let Some(dtype) = Dtype::from_safetensors(dtype) else {
                    return Err(self.dtype(at, want.linear));
                };
                self.shape(at, &want.shape)?;
                let scale = |s: &str| base.and_then(|base| self.get(&format!("{base}.{s}")));
                match SCALES.iter().find_map(|s| scale(s)) {
                    Some(scale) if want.linear => Err(self.stray(at, scale)),
                    _ => Ok(Some((Form::Plain(dtype, at.clone()), vec![full.to_owned()]))),
                }
            }
        }
    }

    /// Codes of 8 bits and the scales beside them.
    fn fp8(&self, want: &Expected, full: &str, codes: &Located) -> Result<Found, Error> {
        self.shape(codes, &want.shape)?;
        let names = match full.strip_suffix(".weight") {
            Some(base) => [format!("{base}.weight_scale_inv"), format!("{base}.weight_scale")],
            None => [format!("{full}_scale_inv"), format!("{full}_scale")],
        };
        let found: Vec<&Located> = names.iter().filter_map(|n| self.get(n)).collect();
        let scales = match found[..] {
            [one] => one,
            [one, two, ..] => return Err(self.stray(one, two)),
            [] => {
                let huggingface = self.quantization.is_none_or(|q| q.method == Method::Fp8);
                let name = &names[usize::from(!huggingface)];
                return Err(self.missing_scale(codes, name));
            }
        };
        let block = self.quantization.map_or([128, 128], |q| q.block);
        let candidates = fp8_shapes(&want.shape, block);
        let fits: Vec<_> = candidates.iter().filter(|c| c.shape == scales.entry.shape).collect();
        let announced = |f: Format| self.quantization.is_some_and(|q| q.formats().contains(&f));
        let Some(chosen) = fits.iter().find(|c| announced(c.format)).or(fits.first()) else {
            let likely = candidates.iter().find(|c| announced(c.format)).or(candidates.first());
            return Err(self.wrong_shape(scales, likely.map_or(&[], |c| &c.shape)));
        };
        match Elements::of_scale(scales.entry.dtype) {
            Some(Elements::E8m0) if chosen.format != Format::Fp8Block => {
                return Err(self.scale_dtype(scales, "BF16, F16 or F32"));
            }
            None => return Err(self.scale_dtype(scales, "BF16, F16, F32 or, as exponents, F8_E8M0 or U8")),
            Some(_) => {}
        }
        let form = Form::Fp8 {
            codes: codes.clone(),
            scales: scales.clone(),
            block: chosen.block,
            format: chosen.format,
        };
        Ok((form, vec![full.to_owned(), scales.entry.name.clone()]))
    }

    /// Codes of 4 bits, their scales and the global one.
    fn nvfp4(&self, want: &Expected, base: &str, codes: &Located, divides: bool) -> Result<Found, Error> {
        let (&[outputs, inputs], true) =
            (&want.shape[..].try_into().unwrap_or([0, 0]), want.shape.len() == 2)
        else {
            return Err(self.dtype(codes, false));
        };
        if !inputs.is_multiple_of(NVFP4_BLOCK) {
            let why = format!("its {inputs} inputs are no multiple of {NVFP4_BLOCK}");
            return Err(self.contradiction(codes, Format::Nvfp4, why));
        }
        self.shape(codes, &[outputs, inputs / 2])?;
        let scale = |name: &str, dtype: Stored, shapes: &[&[usize]]| -> Result<&Located, Error> {
            let name = format!("{base}.{name}");
            let at = self.get(&name).ok_or_else(|| self.missing_scale(codes, &name))?;
            if at.entry.dtype != dtype {
                return Err(self.scale_dtype(at, &format!("{dtype:?}")));
            }
            match shapes.contains(&&at.entry.shape[..]) {
                true => Ok(at),
                false => Err(self.wrong_shape(at, shapes[0])),
            }
        };
        let scales = scale("weight_scale", Stored::F8_E4M3, &[&[outputs, inputs / NVFP4_BLOCK]])?;
        let global = match divides {
            true => scale("weight_global_scale", Stored::F32, &[&[1], &[]])?,
            false => scale("weight_scale_2", Stored::F32, &[&[], &[1]])?,
        };
        for other in SCALES {
            if let Some(other) = self.get(&format!("{base}.{other}"))
                && ![scales, global].iter().any(|s| s.entry.name == other.entry.name)
            {
                return Err(self.stray(codes, other));
            }
        }
        let names = [codes, scales, global].map(|at| at.entry.name.clone()).into();
        Ok((
            Form::Nvfp4 { codes: codes.clone(), scales: scales.clone(), global: global.clone(), divides },
            names,
        ))
    }

    /// Packed tensors of other methods in place of a weight.
    fn foreign(&self, base: &str) -> Result<Option<Found>, Error> {
        let needs = "packed integers with zero points";
        match self.get(&format!("{base}.qweight")) {
            Some(at) => Err(self.unsupported(at, "an AWQ or GPTQ weight", needs)),
            None => Ok(None),
        }
    }

    fn unsupported(&self, at: &Located, what: &str, needs: &str) -> Error {
        let what = format!("tensor {}, {what},", at.entry.name);
        Error::Unsupported { file: self.file(at), what, needed: format!("it needs {needs}") }
    }
    fn shape(&self, at: &Located, expected: &[usize]) -> Result<(), Error> {
        if at.entry.shape == expected { Ok(()) } else { Err(self.wrong_shape(at, expected)) }
    }
    fn wrong_shape(&self, at: &Located, expected: &[usize]) -> Error {
        Error::Shape {
            file: self.file(at),
            tensor: at.entry.name.clone(),
            found: format!("{:?}", at.entry.shape),
            expected: format!("{expected:?}"),
        }
    }
    fn dtype(&self, at: &Located, linear: bool) -> Error {
        let found = format!("{:?}", at.entry.dtype);
        let quantised = found.starts_with("F8") || matches!(found.as_str(), "U8" | "I8" | "F4" | "I32");
        let hint = match (quantised, linear) {
            (false, _) => "",
            (true, false) => " (it looks quantised)",
            (true, true) => ", or packed as F8_E4M3 or U8 with scales",
        };
        Error::Dtype { file: self.file(at), tensor: at.entry.name.clone(), found, hint: hint.to_owned() }
    }
    fn scale_dtype(&self, at: &Located, expected: &str) -> Error {
        Error::ScaleDtype {
            file: self.file(at),
            tensor: at.entry.name.clone(),
            found: format!("{:?}", at.entry.dtype),
            expected: expected.to_owned(),
        }
    }
    fn missing_scale(&self, codes: &Located, scale: &str) -> Error {
        Error::MissingScale {
            file: self.file(codes),
            tensor: codes.entry.name.clone(),
            dtype: format!("{:?}", codes.entry.dtype),
            scale: scale.to_owned(),
        }
    }
    fn stray(&self, at: &Located, other: &Located) -> Error {
        Error::StrayScale {
            file: self.file(other),
            tensor: at.entry.name.clone(),
            dtype: format!("{:?}", at.entry.dtype),
            other: other.entry.name.clone(),
        }
    }
    /// A packed tensor that the config does not allow.
    pub fn contradiction(&self, at: &Located, format: Format, why: String) -> Error {
        Error::Contradiction {
            file: self.file(at),
            tensor: at.entry.name.clone(),
            format: format.name().to_owned(),
            why,
        }
    }
}

/// A shape that the scales of a matrix of 8-bit floats may have.
struct Scales {
    shape: Vec<usize>,
    /// outputs and inputs that share one
    block: [usize; 2],
    format: Format,
}

/// All of them, the usual ones of each format first.
fn fp8_shapes(shape: &[usize], block: [usize; 2]) -> Vec<Scales> {
    let Some((&[outputs, inputs], planes)) = shape.split_last_chunk::<2>().map(|(planes, m)| (m, planes))
    else {
        return Vec::new();
    };
    let of = |format, block, shape: &[usize]| Scales { shape: [planes, shape].concat(), block, format };
    let [down, across] = [outputs.div_ceil(block[0]), inputs.div_ceil(block[1])];
    let whole = [outputs, inputs];
    let mut out = vec![
        of(Format::Fp8Block, block, &[down, across]),
        of(Format::Fp8Tensor, whole, &[]),
        of(Format::Fp8Channel, [1, inputs], &[outputs, 1]),
        of(Format::Fp8Block, block, &[down, 1, across, 1]),
        of(Format::Fp8Channel, [1, inputs], &[outputs]),
    ];
    match planes.is_empty() {
        true => out.push(of(Format::Fp8Tensor, whole, &[1])),
        false => out.push(of(Format::Fp8Tensor, whole, &[1, 1])),
    }
    out
}
