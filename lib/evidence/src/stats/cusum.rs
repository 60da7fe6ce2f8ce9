//! A Bernoulli CUSUM over the order of requests, with a stated mean number of requests between false alarms.
//!
//! Each miss raises the sum, each hit lowers it, never below zero; an alarm is a sum at or above the threshold.
//! The steps follow from a tolerable miss rate `p0` and an intolerable one `p1`. `p1` is moved a little so that
//! a miss weighs a whole number of hits (Reynolds and Stoumbos): the sum then lives on the integers, and the
//! mean time to an alarm is the exact solution of a small Markov chain (Brook and Evans), not a simulation.

/// A chart: what a miss and a hit weigh, and where it alarms.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Chart {
    /// tolerable miss rate
    pub p0: f64,
    /// intolerable miss rate, as moved
    pub p1: f64,
    /// a miss adds `m - 1`, a hit takes 1
    pub m: u32,
    /// alarm at or above this sum
    pub threshold: u32,
    /// mean requests between false alarms at `p0`
    pub arl0: f64,
    /// mean requests to an alarm at `p1`, started from zero
    pub arl1: f64,
}

/// Largest threshold looked at; beyond it no alarm would come in a soak anyway.
const MOST: u32 = 400;

impl Chart {
    /// The chart for miss rates `p0` < `p1` whose mean time between false alarms is at least `arl0` requests.
    pub fn design(p0: f64, p1: f64, arl0: f64) -> Option<Chart> {
        if !(p0 > 0.0 && p0 < p1 && p1 < 1.0 && arl0 >= 1.0) {
            return None;
        }
        let m = (1.0 / gamma(p0, p1)).round().max(2.0) as u32;
        let p1 = solve(p0, m)?;
        for threshold in m - 1..=MOST.max(m * 12) {
            let arl = run_length(m, threshold, p0);
            if arl >= arl0 {
                return Some(Chart { p0, p1, m, threshold, arl0: arl, arl1: run_length(m, threshold, p1) });
            }
        }
        None
    }

    /// Runs the chart over `misses` in their order.
    pub fn run(&self, misses: impl IntoIterator<Item = bool>) -> Trace {
        let mut trace = Trace { sums: Vec::new(), alarm: None, onset: None };
        let mut sum = 0i64;
        let mut rise = 0usize;
        for (at, miss) in misses.into_iter().enumerate() {
            if sum == 0 {
                rise = at;
            }
            sum = (sum + if miss { i64::from(self.m) - 1 } else { -1 }).max(0);
            trace.sums.push(sum as u32);
            if trace.alarm.is_none() && sum >= i64::from(self.threshold) {
                trace.alarm = Some(at);
                trace.onset = Some(rise);
            }
        }
        trace
    }
}

/// What a chart saw.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace {
    /// the sum after each request
    pub sums: Vec<u32>,
    /// position of the first alarm
    pub alarm: Option<usize>,
    /// where the sum that alarmed left zero for the last time
    pub onset: Option<usize>,
}

/// The rate at which hits and misses balance, as a share of misses.
fn gamma(p0: f64, p1: f64) -> f64 {
    let r1 = -((1.0 - p1) / (1.0 - p0)).ln();
    let r2 = (p1 * (1.0 - p0) / (p0 * (1.0 - p1))).ln();
    r1 / r2
}

/// The `p1` for which a miss weighs exactly `m` times the balance: gamma(p0, p1) = 1 / m.
fn solve(p0: f64, m: u32) -> Option<f64> {
    let want = 1.0 / f64::from(m);
    let (mut low, mut high) = (p0 * (1.0 + 1e-9), 1.0 - 1e-12);
    if !(gamma(p0, low) < want && want < gamma(p0, high)) {
        return None;
    }
    for _ in 0..200 {
        let mid = 0.5 * (low + high);
        if gamma(p0, mid) < want { low = mid } else { high = mid }
    }
    Some(0.5 * (low + high))
}

/// Mean requests to an alarm from sum 0 at miss rate `p`: N(s) = 1 + (1-p) N(max(s-1, 0)) + p N(s+m-1).
///
/// Unknown is N(0); going up from it, each equation gives the next N as a line in N(0), because a hit moves down
/// by exactly one: N(s-1) = (N(s) - 1 - p N(s+m-1)) / (1-p). Solved from the top down that is stable and linear.
pub fn run_length(m: u32, threshold: u32, p: f64) -> f64 {
    let h = threshold as usize;
    let up = m as usize - 1;
    let q = 1.0 - p;
    // N(s) = a[s] + b[s] * N(h-1), from the top: each equation at s gives N(s-1).
    let mut a = vec![0.0; h];
    let mut b = vec![0.0; h];
    b[h - 1] = 1.0;
    for s in (1..h).rev() {
        let above = |v: &[f64]| if s + up < h { v[s + up] } else { 0.0 };
        a[s - 1] = (a[s] - 1.0 - p * above(&a)) / q;
        b[s - 1] = (b[s] - p * above(&b)) / q;
    }
    // The equation at 0 fixes N(h-1).
    let above = |v: &[f64]| if up < h { v[up] } else { 0.0 };
    let top = (1.0 + p * above(&a) - p * a[0]) / (p * b[0] - p * above(&b));
    a[0] + b[0] * top
}
