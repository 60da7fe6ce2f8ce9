//! Products with a matrix: by `linear`, which streams it for a few rows, or by `gemm` for the many of a prompt.

use super::gpu::Arg;
use super::units::{Epilogue, Linear, THREADS};
use super::{Buf, Cuda, Matrix, Vector, int, ptr};
use crate::Error;
use crate::backend::Backend;
use crate::batch::BatchKind;

impl Cuda {
    /// `out (=, +=, swiglu) [norm](x) Wᵀ` by the kernel `linear`, for any number of rows.
    pub(super) fn linear_launch(
        &self,
        out: &Buf,
        x: &Buf,
        w: &Matrix,
        epilogue: Epilogue,
        norm: Option<(&Vector, f32)>,
        rows: usize,
    ) -> Result<(), Error> {
        let (norm, eps) = norm.map_or((0, 0.0), |(v, eps)| (v.at, eps));
        w.launches(epilogue)?.into_iter().try_for_each(|(part, tail)| {
            let op = Linear {
                k: w.k,
                layout: part.layout,
                tail: tail.map(|t| t.layout),
                rows: Linear::rows_for(rows),
                epilogue,
                norm: norm != 0,
                alone: Linear::is_alone(epilogue, w.n()),
                shared: self.gpu().shared_memory(),
            };
            let args = [
                ptr(part.at),
                ptr(x.at),
                ptr(out.at + 4 * part.first as u64),
                ptr(norm),
                Arg::F32(eps),
                int(rows),
                int(part.n),
                int(x.ld),
                int(out.ld),
                ptr(tail.map_or(0, |t| t.at)),
                int(part.n + tail.map_or(0, |t| t.n)),
            ];
            let blocks = part.n.div_ceil(8).min(self.multiprocessors as usize);
            let grid = [blocks, rows.div_ceil(op.rows), 1];
            self.launch((op.unit(), "linear"), grid, THREADS, op.smem(), &args)
        })
    }

    /// The product of the normed `x`; `n` is scratch.
    pub(super) fn normed_product(
        &self,
        out: &Buf,
        n: &mut Buf,
        x: &Buf,
        norm: (&Vector, f32),
        (w, epilogue): (&Matrix, Epilogue),
        rows: usize,
    ) -> Result<(), Error> {
        if self.is_prompt_product(w) {
            self.rms_norm(n, x, norm.0, norm.1, rows)?;
            return self.gemm(out, n, w, epilogue, rows);
        }
        self.normed_linear(out, n, x, norm, (w, epilogue), rows)
    }

    /// The same through `linear`.
    pub(super) fn normed_linear(
        &self,
        out: &Buf,
        n: &mut Buf,
        x: &Buf,
        norm: (&Vector, f32),
        (w, epilogue): (&Matrix, Epilogue),
        rows: usize,
    ) -> Result<(), Error> {
        if rows == 1 {
            return self.linear_launch(out, x, w, epilogue, Some(norm), 1);
        }
        self.rms_norm(n, x, norm.0, norm.1, rows)?;
        self.linear_launch(out, n, w, epilogue, None, rows)
    }

    /// A prompt's products may go to the tensor cores: then all of them do, whatever their number of rows.
    fn is_prompt_product(&self, w: &Matrix) -> bool {
        self.kind.get() == BatchKind::Prefill && self.on_tensor_cores(w)
    }

    /// `out (=, +=, swiglu) x Wᵀ`.
    pub(super) fn product(
        &self,
        out: &Buf,
        x: &Buf,
        w: &Matrix,
        epilogue: Epilogue,
        rows: usize,
    ) -> Result<(), Error> {
        if self.is_prompt_product(w) {
            return self.gemm(out, x, w, epilogue, rows);
        }
        self.linear_launch(out, x, w, epilogue, None, rows)
    }
}
