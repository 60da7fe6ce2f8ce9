//! Tails of the binomial distribution, through the incomplete beta function.

use statrs::function::beta::beta_reg;
use statrs::function::gamma::ln_gamma;

/// P(X <= k) for X of `n` trials with probability `p`.
pub fn cdf(k: i64, n: u64, p: f64) -> f64 {
    if k < 0 {
        return 0.0;
    }
    let k = k as u64;
    if k >= n || p <= 0.0 {
        return 1.0;
    }
    if p >= 1.0 {
        return 0.0;
    }
    beta_reg((n - k) as f64, k as f64 + 1.0, 1.0 - p)
}

/// P(X = k).
pub fn pmf(k: u64, n: u64, p: f64) -> f64 {
    if k > n {
        return 0.0;
    }
    if p <= 0.0 {
        return f64::from(k == 0);
    }
    if p >= 1.0 {
        return f64::from(k == n);
    }
    (ln_choose(n, k) + k as f64 * p.ln() + (n - k) as f64 * (-p).ln_1p()).exp()
}

/// P(X <= k) for X marked ones among `drawn` of `all`, `marked` of them marked: the exact test of two shares.
pub fn hypergeometric_cdf(k: u64, drawn: u64, marked: u64, all: u64) -> f64 {
    let least = (drawn + marked).saturating_sub(all);
    let of =
        |x: u64| (ln_choose(marked, x) + ln_choose(all - marked, drawn - x) - ln_choose(all, drawn)).exp();
    (least..=k.min(drawn).min(marked)).map(of).sum::<f64>().min(1.0)
}

/// Natural logarithm of n over k.
pub fn ln_choose(n: u64, k: u64) -> f64 {
    ln_gamma(n as f64 + 1.0) - ln_gamma(k as f64 + 1.0) - ln_gamma((n - k) as f64 + 1.0)
}
