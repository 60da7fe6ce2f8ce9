//! A Bernoulli CUSUM over the order of requests, with a stated mean number of requests between false alarms.
//!
//! Each miss raises the sum, each hit lowers it, never below zero; an alarm is a sum at or above the threshold.
//! The steps follow from a tolerable miss rate `p0` and an intolerable one `p1`. `p1` is moved a little so that
//! both steps are whole numbers (Reynolds and Stoumbos): the sum then lives on the integers, and the mean time to
//! an alarm is the exact solution of a small Markov chain (Brook and Evans), not a simulation.

/// A chart: what a miss and a hit weigh, and where it alarms.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Chart {
    /// tolerable miss rate
    pub p0: f64,
    /// intolerable miss rate, as moved
    pub p1: f64,
    /// a miss adds this
    pub up: u32,
    /// a hit takes this
    pub down: u32,
    /// alarm at or above this sum
    pub threshold: u32,
    /// mean requests between false alarms at `p0`
    pub arl0: f64,
    /// mean requests to an alarm at `p1`, started from zero
    pub arl1: f64,
}

/// Largest threshold looked at; beyond it no alarm would come in a soak anyway.
const MOST: u32 = 1500;
/// Largest step: a finer lattice would not move `p1` by anything worth the states.
const FINEST: u32 = 40;

impl Chart {
    /// The chart for miss rates `p0` < `p1` whose mean time between false alarms is at least `arl0` requests.
    pub fn design(p0: f64, p1: f64, arl0: f64) -> Option<Chart> {
        if !(p0 > 0.0 && p0 < p1 && p1 < 1.0 && arl0 >= 1.0) {
            return None;
        }
        let (up, down, p1) = lattice(p0, p1)?;
        let enough = |threshold: u32| run_length(up, down, threshold, p0) >= arl0;
        let (mut low, mut high) = (0, up.max(2));
        while !enough(high) {
            low = high;
            high *= 2;
            if high > MOST {
                return None;
            }
        }
        while high - low > 1 {
            let mid = (low + high) / 2;
            if enough(mid) { high = mid } else { low = mid }
        }
        let of = |p: f64| run_length(up, down, high, p);
        Some(Chart { p0, p1, up, down, threshold: high, arl0: of(p0), arl1: of(p1) })
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
            sum = (sum + if miss { i64::from(self.up) } else { -i64::from(self.down) }).max(0);
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

/// The miss rate at which a sum neither rises nor falls.
fn balance(p0: f64, p1: f64) -> f64 {
    let r1 = -((1.0 - p1) / (1.0 - p0)).ln();
    let r2 = (p1 * (1.0 - p0) / (p0 * (1.0 - p1))).ln();
    r1 / r2
}

/// Whole steps up and down whose balance is close to that of the two rates, and the `p1` they stand for: the
/// coarsest steps that move `p1` by at most a twentieth of its distance from `p0`, else the closest.
fn lattice(p0: f64, p1: f64) -> Option<(u32, u32, f64)> {
    let want = balance(p0, p1);
    let mut best: Option<(f64, (u32, u32, f64))> = None;
    for m in 2..=FINEST {
        let down = ((want * f64::from(m)).round() as u32).clamp(1, m - 1);
        let Some(moved) = solve(p0, f64::from(down) / f64::from(m)) else { continue };
        let off = (moved - p1).abs();
        if best.is_none_or(|(b, _)| off < b) {
            best = Some((off, (m - down, down, moved)));
        }
        if off <= 0.05 * (p1 - p0) {
            break;
        }
    }
    best.map(|(_, steps)| steps)
}

/// The `p1` whose balance with `p0` is `want`.
fn solve(p0: f64, want: f64) -> Option<f64> {
    let (mut low, mut high) = (p0 + (1.0 - p0) * 1e-9, 1.0 - 1e-12);
    if !(balance(p0, low) < want && want < balance(p0, high)) {
        return None;
    }
    for _ in 0..200 {
        let mid = 0.5 * (low + high);
        if balance(p0, mid) < want { low = mid } else { high = mid }
    }
    Some(0.5 * (low + high))
}

/// Mean requests to an alarm from sum 0 at miss rate `p`, exactly: sums below the threshold are the states of an
/// absorbing Markov chain. States are eliminated from 0 upward without a single subtraction (Grassmann, Taksar and
/// Heyman), so no digit is lost however rare the alarm is.
pub fn run_length(up: u32, down: u32, threshold: u32, p: f64) -> f64 {
    let (h, up, down) = (threshold as usize, up as usize, down as usize);
    let q = 1.0 - p;
    let mut step = vec![vec![0.0f64; h]; h];
    let mut alarm = vec![0.0f64; h];
    let mut time = vec![1.0f64; h];
    for s in 0..h {
        step[s][s.saturating_sub(down)] += q;
        if s + up < h { step[s][s + up] += p } else { alarm[s] += p }
    }
    let mut leave = vec![0.0f64; h];
    for s in 0..h {
        let reach = (s + up).min(h - 1);
        leave[s] = step[s][s + 1..=reach].iter().sum::<f64>() + alarm[s];
        let (done, rest) = step.split_at_mut(s + 1);
        for (i, row) in rest.iter_mut().enumerate().take(down) {
            let share = row[s] / leave[s];
            if share > 0.0 {
                for j in s + 1..=reach {
                    row[j] += share * done[s][j];
                }
                alarm[s + 1 + i] += share * alarm[s];
                time[s + 1 + i] += share * time[s];
            }
        }
    }
    let mut mean = vec![0.0f64; h];
    for s in (0..h).rev() {
        let reach = (s + up).min(h - 1);
        let ahead: f64 = (s + 1..=reach).map(|j| step[s][j] * mean[j]).sum();
        mean[s] = (time[s] + ahead) / leave[s];
    }
    mean[0]
}
