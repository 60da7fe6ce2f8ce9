//! How sure a rate is: Wilson's score interval and the exact interval of Clopper and Pearson.

use statrs::distribution::{Beta, ContinuousCDF, Normal};

/// Wilson's score interval for `k` of `n`. Covers the true rate in about `level` of all cases.
pub fn wilson(k: u64, n: u64, level: f64) -> Option<(f64, f64)> {
    if n == 0 || k > n {
        return None;
    }
    let z = Normal::standard().inverse_cdf(0.5 + level / 2.0);
    let (n, p) = (n as f64, k as f64 / n as f64);
    let centre = p + z * z / (2.0 * n);
    let half = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + z * z / n;
    let low = if k == 0 { 0.0 } else { (centre - half) / scale };
    let high = if p == 1.0 { 1.0 } else { (centre + half) / scale };
    Some((low, high))
}

/// The exact interval of Clopper and Pearson for `k` of `n`. Covers the true rate in at least `level` of all cases.
pub fn clopper_pearson(k: u64, n: u64, level: f64) -> Option<(f64, f64)> {
    if n == 0 || k > n {
        return None;
    }
    let tail = (1.0 - level) / 2.0;
    let (kf, nf) = (k as f64, n as f64);
    let low = if k == 0 { 0.0 } else { Beta::new(kf, nf - kf + 1.0).ok()?.inverse_cdf(tail) };
    let high = if k == n { 1.0 } else { Beta::new(kf + 1.0, nf - kf).ok()?.inverse_cdf(1.0 - tail) };
    Some((low, high))
}

/// Upper bound of a rate after zero events in `n`: the exact form of the rule of three.
pub fn zero_upper(n: u64, level: f64) -> f64 {
    if n == 0 { 1.0 } else { 1.0 - (1.0 - level).powf(1.0 / n as f64) }
}
