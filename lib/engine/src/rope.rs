//! Rotary angles, computed once for all positions.

/// Rotary angles: `cos` and `sin` of `position · theta^(−2j / rotary_dim)`.
#[derive(Clone, Debug)]
pub struct Rope {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rope {
    /// A table for positions below `len`.
    pub fn new(theta: f64, rotary_dim: usize, len: usize) -> Self {
        let half = rotary_dim / 2;
        let inv_freq: Vec<f32> =
            (0..half).map(|j| (1.0 / libm::pow(theta, 2.0 * j as f64 / rotary_dim as f64)) as f32).collect();
        let angles = || (0..len).flat_map(|p| inv_freq.iter().map(move |f| p as f32 * f));
        Rope { half, cos: angles().map(libm::cosf).collect(), sin: angles().map(libm::sinf).collect() }
    }
    /// Cosines and sines of all positions, each `[positions, rotary_dim / 2]`.
    pub fn tables(&self) -> (&[f32], &[f32]) {
        (&self.cos, &self.sin)
    }
    /// `cos` and `sin` at a position, each `rotary_dim / 2` long.
    pub fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let r = position * self.half..(position + 1) * self.half;
        (&self.cos[r.clone()], &self.sin[r])
    }
}
