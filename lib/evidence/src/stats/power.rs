//! What a gate can see: how often `at least k of n` fails when accuracy is what it should be, and when it has dropped.

use super::binomial;

/// A gate `correct >= k of n`, asked of `runs` runs, all of which must pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Power {
    /// least number of right answers
    pub k: u64,
    /// questions of a run
    pub n: u64,
    /// runs
    pub runs: u64,
}

impl Power {
    /// The gate of a ratio on `n` questions: at least `ceil(n * num / den)`.
    pub fn of_ratio(num: u64, den: u64, n: u64, runs: u64) -> Power {
        let k = (u128::from(n) * u128::from(num)).div_ceil(u128::from(den.max(1)));
        Power { k: k as u64, n, runs }
    }

    /// Chance that one run fails the gate at accuracy `p`.
    pub fn fails_once(&self, p: f64) -> f64 {
        binomial::cdf(self.k as i64 - 1, self.n, p)
    }

    /// Chance that any of the runs fails it.
    pub fn fails(&self, p: f64) -> f64 {
        1.0 - (1.0 - self.fails_once(p)).powi(self.runs as i32)
    }

    /// The sentence a reader needs beside the gate: what it sees and what it wrongly fails, for the same runs.
    pub fn sentence(&self, good: f64, bad: f64) -> String {
        let only = if self.fails_once(bad) < 0.8 { "only " } else { "" };
        let all = match self.runs {
            0 | 1 => String::new(),
            runs => format!(
                "; when all of {runs} runs must pass, it sees the drop in {} and fails a sound system in {}",
                percent(self.fails(bad)),
                percent(self.fails(good)),
            ),
        };
        format!(
            "{} of {} asked once sees a drop from {} to {} in {only}{} of runs and fails a sound system in {}{all}",
            self.k,
            self.n,
            percent(good),
            percent(bad),
            percent(self.fails_once(bad)),
            percent(self.fails_once(good)),
        )
    }
}

/// A p-value as people read it.
pub fn p_value(p: f64) -> String {
    match p {
        p if p >= 0.001 => format!("{p:.3}"),
        // smaller than numbers can be
        0.0 => "1e-300 or less".to_owned(),
        p => format!("{p:.1e}"),
    }
}

/// A share as people read it: never 100 % for less than all, nor 0 % for more than none.
pub fn percent(p: f64) -> String {
    let x = p * 100.0;
    match x {
        x if x > 0.0 && x < 0.1 => format!("{x:.1e} %"),
        x if x < 10.0 && (x - x.round()).abs() > 1e-9 => format!("{} %", hundredths(p, 1)),
        _ => format!("{} %", hundredths(p, 0)),
    }
}

/// The bounds of a share as people read them.
pub fn interval((low, high): (f64, f64)) -> String {
    format!("{} – {} %", hundredths(low, 1), hundredths(high, 1))
}

/// A share in hundredths: with so many decimals, or as many more as it takes not to say 0 or 100 of another one.
fn hundredths(p: f64, decimals: usize) -> String {
    const MOST: usize = 4;
    let shown = |d: usize| format!("{:.d$}", p * 100.0);
    let whole = |text: &str| matches!(text.parse(), Ok(0.0 | 100.0));
    if p <= 0.0 || p >= 1.0 {
        return shown(decimals);
    }
    match (decimals..=MOST).map(shown).find(|text| !whole(text)) {
        Some(text) => text,
        None if p < 0.5 => "0.0001".to_owned(),
        None => "99.9999".to_owned(),
    }
}
