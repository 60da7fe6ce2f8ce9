//! The same questions twice: which answers flipped, and would chance flip them so one-sidedly?

use super::binomial;

/// Right and wrong answers of one set of questions in two runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flips {
    /// right in both
    pub both_right: u64,
    /// right before, wrong after
    pub lost: u64,
    /// wrong before, right after
    pub gained: u64,
    /// wrong in both
    pub both_wrong: u64,
}

impl Flips {
    /// Counts pairs (before, after).
    pub fn count(pairs: impl IntoIterator<Item = (bool, bool)>) -> Self {
        let mut f = Flips::default();
        for pair in pairs {
            match pair {
                (true, true) => f.both_right += 1,
                (true, false) => f.lost += 1,
                (false, true) => f.gained += 1,
                (false, false) => f.both_wrong += 1,
            }
        }
        f
    }

    /// Questions compared.
    pub fn pairs(&self) -> u64 {
        self.both_right + self.lost + self.gained + self.both_wrong
    }

    /// Exact two-sided p of McNemar's test: flips fall either way like a fair coin.
    pub fn p(&self) -> f64 {
        let n = self.lost + self.gained;
        (2.0 * binomial::cdf(self.lost.min(self.gained) as i64, n, 0.5)).min(1.0)
    }
}

/// Holm's correction: each p as large as it must be when all of them are looked at.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|a, b| p[*a].total_cmp(&p[*b]));
    let mut out = vec![1.0; p.len()];
    let mut least = 0.0f64;
    for (rank, at) in order.iter().enumerate() {
        least = least.max(p[*at] * (p.len() - rank) as f64).min(1.0);
        out[*at] = least;
    }
    out
}
