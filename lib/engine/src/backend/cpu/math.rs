//! Scalar functions and sums with the same bits on every machine.
//!
//! Sums run over [`LANES`] partial sums in a fixed tree, products and sums are rounded separately (never
//! fused), and `exp` is a polynomial of our own: whatever instruction set the loops are compiled for, and
//! however many rows are computed together, a row's result does not change.

/// Partial sums of a dot product.
pub const LANES: usize = 16;

/// Adds the partial sums of `N` dot products, each in the same fixed tree. Never inlined: taking them from
/// memory is what lets the compiler keep them in whole vector registers inside the loops.
#[inline(never)]
pub fn reduce<const N: usize>(acc: &[[f32; LANES]; N]) -> [f32; N] {
    let mut quarter = [[0f32; 4]; N];
    for (q, a) in quarter.iter_mut().zip(acc) {
        for l in 0..4 {
            q[l] = (a[l] + a[l + 8]) + (a[l + 4] + a[l + 12]);
        }
    }
    quarter.map(|q| (q[0] + q[2]) + (q[1] + q[3]))
}

/// `Σ a·b` in the fixed order.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let ((ac, ar), (bc, br)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut acc = [0f32; LANES];
    for (l, (x, y)) in ar.iter().zip(br).enumerate() {
        acc[l] = x * y;
    }
    for (x, y) in ac.iter().zip(bc) {
        for l in 0..LANES {
            acc[l] += x[l] * y[l];
        }
    }
    let [sum] = reduce(&[acc]);
    sum
}

/// `e^x`, relative error below 2e-7; 0 below −87.3, ∞ above 88.7, NaN for NaN.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2^23: adding it rounds to an integer
    let c = x.clamp(-87.33, 88.72);
    let n = (c * LOG2_E + ROUND) - ROUND;
    let r = (c - n * LN2_HI) - n * LN2_LO;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_2e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let y = p * (r * r) + r + 1.0;
    // 2^n in two factors, so that n = 128 does not overflow the exponent
    let n = n as i32;
    let half = n >> 1;
    let scale = |e: i32| f32::from_bits(((e + 127) as u32) << 23);
    let y = y * scale(half) * scale(n - half);
    if x < -87.33 {
        0.0
    } else if x > 88.72 {
        f32::INFINITY
    } else if x.is_nan() {
        x
    } else {
        y
    }
}

/// `1 / (1 + e^−x)`
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `x · sigmoid(x)`
#[inline(always)]
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// `ln(1 + e^x)`, linear above 20.
pub fn softplus(x: f32) -> f32 {
    if x > 20.0 { x } else { libm::log1pf(libm::expf(x)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ten_millionths_and_keeps_its_limits() {
        let mut worst = 0f64;
        for i in -870_000..=880_000 {
            let x = i as f32 / 10_000.0;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - exact).abs() / exact);
        }
        assert!(worst < 2e-7, "{worst}");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
        assert!(silu(-200.0) == 0.0 && sigmoid(-200.0) == 0.0 && sigmoid(200.0) == 1.0);
    }

    #[test]
    fn a_dot_product_counts_every_element_once() {
        for n in [0, 1, 15, 16, 17, 31, 33, 200] {
            let a: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let ones = vec![1.0; n];
            assert_eq!(dot(&a, &ones), (n * n.saturating_sub(1) / 2) as f32, "{n}");
        }
    }
}
