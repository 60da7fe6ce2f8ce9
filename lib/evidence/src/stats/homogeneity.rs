//! Do all runs share one accuracy?
//!
//! Pearson's chi-squared, and for runs of equal size its exact distribution given the total: the statistic then
//! depends on the runs only through the sum of squares of their counts, so the exact p is a small sum.

use super::binomial::ln_choose;
use statrs::distribution::{ChiSquared, ContinuousCDF};

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

/// States the exact distribution may take; beyond it chi-squared is close enough.
const STATES: u64 = 4_000_000;

/// P(sum of squares >= observed | total), for runs of equal size.
fn exact(runs: &[(u64, u64)], right: u64) -> Option<f64> {
    let n = runs[0].1;
    let highest = (runs.len() as u64).checked_mul(n.checked_mul(n)?)?;
    if runs.iter().any(|r| r.1 != n) || (right + 1).checked_mul(highest + 1)? > STATES {
        return None;
    }
    let observed: u64 = runs.iter().map(|r| r.0 * r.0).sum();
    // Weight of k right answers in a run, scaled to stay finite.
    let weight: Vec<f64> =
        (0..=n).map(|k| (ln_choose(n, k) - n as f64 * std::f64::consts::LN_2).exp()).collect();
    // After each run but the last: weight of every (total, sum of squares) so far.
    let width = highest as usize + 1;
    let mut states = vec![0.0; (right as usize + 1) * width];
    states[0] = 1.0;
    for done in 0..runs.len() - 1 {
        let mut next = vec![0.0; states.len()];
        let (most, squares) = (right.min(done as u64 * n) as usize, done * (n * n) as usize);
        for total in 0..=most {
            for s in total..=squares.max(total) {
                let w = states[total * width + s];
                if w > 0.0 {
                    for k in 0..=(n as usize).min(right as usize - total) {
                        next[(total + k) * width + s + k * k] += w * weight[k];
                    }
                }
            }
        }
        states = next;
    }
    // The last run takes what is left of the total.
    let (mut tail, mut all) = (0.0, 0.0);
    for total in right.saturating_sub(n)..=right {
        let k = right - total;
        for s in 0..=(highest - k * k) {
            let w = states[total as usize * width + s as usize] * weight[k as usize];
            all += w;
            if s + k * k >= observed {
                tail += w;
            }
        }
    }
    Some((tail / all).min(1.0))
}
