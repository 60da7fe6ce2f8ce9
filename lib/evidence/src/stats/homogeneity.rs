//! Do all runs share one accuracy?
//!
//! Pearson's chi-squared, and for runs of equal size its exact distribution given the total: the statistic then
//! depends on the runs only through the sum of squares of their counts, so the exact p is a small sum.

use super::binomial::ln_choose;
use statrs::distribution::{ChiSquared, ContinuousCDF};
use std::collections::HashMap;

/// What the test says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Homogeneity {
    /// Pearson's statistic
    pub chi2: f64,
    /// its degrees of freedom
    pub df: u64,
    /// p by the chi-squared distribution
    pub p: f64,
    /// p by the exact conditional distribution, when all runs have the same size
    pub exact_p: Option<f64>,
}

impl Homogeneity {
    /// The better of the two p values.
    pub fn best(&self) -> f64 {
        self.exact_p.unwrap_or(self.p)
    }
}

/// Tests (right, asked) of several runs. `None` with fewer than two runs or no variation to speak of.
pub fn test(runs: &[(u64, u64)]) -> Option<Homogeneity> {
    let runs: Vec<(u64, u64)> = runs.iter().copied().filter(|(_, n)| *n > 0).collect();
    let right: u64 = runs.iter().map(|r| r.0).sum();
    let asked: u64 = runs.iter().map(|r| r.1).sum();
    if runs.len() < 2 {
        return None;
    }
    let df = runs.len() as u64 - 1;
    if right == 0 || right == asked {
        return Some(Homogeneity { chi2: 0.0, df, p: 1.0, exact_p: Some(1.0) });
    }
    let p = right as f64 / asked as f64;
    let chi2: f64 = runs
        .iter()
        .map(|(k, n)| {
            let e = *n as f64 * p;
            (*k as f64 - e).powi(2) / (*n as f64 * p * (1.0 - p))
        })
        .sum();
    let tail = ChiSquared::new(df as f64).map_or(1.0, |d| d.sf(chi2));
    Some(Homogeneity { chi2, df, p: tail, exact_p: exact(&runs, right) })
}

/// P(sum of squares >= observed | total), for runs of equal size.
fn exact(runs: &[(u64, u64)], right: u64) -> Option<f64> {
    let n = runs[0].1;
    if runs.iter().any(|r| r.1 != n) || n > 400 || runs.len() > 12 {
        return None;
    }
    // After each run: weight of every (total, sum of squares) so far, scaled to stay finite.
    let weight: Vec<f64> =
        (0..=n).map(|k| (ln_choose(n, k) - n as f64 * std::f64::consts::LN_2).exp()).collect();
    let mut states: HashMap<(u64, u64), f64> = HashMap::from([((0, 0), 1.0)]);
    for _ in runs {
        let mut next: HashMap<(u64, u64), f64> = HashMap::new();
        for ((total, squares), w) in &states {
            for k in 0..=n.min(right - total) {
                *next.entry((total + k, squares + k * k)).or_default() += w * weight[k as usize];
            }
        }
        states = next;
    }
    let observed: u64 = runs.iter().map(|r| r.0 * r.0).sum();
    let mut all: Vec<(u64, f64)> =
        states.into_iter().filter(|((total, _), _)| *total == right).map(|((_, s), w)| (s, w)).collect();
    all.sort_unstable_by_key(|(s, _)| *s);
    let total: f64 = all.iter().map(|(_, w)| w).sum();
    let tail: f64 = all.iter().filter(|(s, _)| *s >= observed).map(|(_, w)| w).sum();
    Some((tail / total).min(1.0))
}
