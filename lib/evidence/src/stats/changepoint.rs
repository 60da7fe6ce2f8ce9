//! The likeliest bad stretch: the segment whose miss rate differs most convincingly from the rest.

use super::binomial;

/// A stretch of the order axis with a miss rate of its own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Segment {
    /// first position inside
    pub start: usize,
    /// first position after; the length of the series when it never ends
    pub end: usize,
    /// miss rate inside
    pub inside: f64,
    /// miss rate outside
    pub outside: f64,
    /// log of how much likelier two rates are than one
    pub log_likelihood_ratio: f64,
}

/// Longest series searched exhaustively; longer ones are searched on a grid and then refined at both edges.
const EXHAUSTIVE: usize = 3000;

/// The segment that maximises the likelihood of two rates, worse inside than outside. `None` when no segment is
/// worse than the rest or the gain is below what two free edges and a second rate gain by chance.
pub fn worst_segment(misses: &[bool]) -> Option<Segment> {
    let n = misses.len();
    let mut sum = vec![0u64; n + 1];
    for (i, miss) in misses.iter().enumerate() {
        sum[i + 1] = sum[i] + u64::from(*miss);
    }
    let step = n.div_ceil(EXHAUSTIVE).max(1);
    let mut best = None;
    let mut consider = |start: usize, end: usize| {
        if let Some(s) = score(&sum, start, end)
            && best.is_none_or(|b: Segment| s.log_likelihood_ratio > b.log_likelihood_ratio)
        {
            best = Some(s);
        }
    };
    for start in (0..n).step_by(step) {
        for end in (start + step..=n).step_by(step) {
            consider(start, end);
        }
        consider(start, n);
    }
    if step > 1 {
        let Segment { start, end, .. } = best?;
        let mut consider = |start: usize, end: usize| {
            if let Some(s) = score(&sum, start, end)
                && best.is_none_or(|b: Segment| s.log_likelihood_ratio > b.log_likelihood_ratio)
            {
                best = Some(s);
            }
        };
        for s in start.saturating_sub(step)..=(start + step).min(n) {
            for e in end.saturating_sub(step)..=(end + step).min(n) {
                consider(s, e);
            }
        }
    }
    best.filter(|b| b.log_likelihood_ratio > penalty(n))
}

/// A recovery is claimed when so few misses behind a segment would come this rarely at one rate for both. The
/// likeliest segment always ends at a miss, with hits behind it: the edge was chosen, so the level is strict.
const RECOVERED: f64 = 0.001;

/// Whether what stands behind a segment can be told from it (one-sided exact test).
pub fn told_from_rest(misses: &[bool], segment: &Segment) -> bool {
    let count = |of: &[bool]| of.iter().filter(|m| **m).count() as u64;
    let (inside, behind) = (&misses[segment.start..segment.end], &misses[segment.end..]);
    let (marked, all) = (count(inside) + count(behind), (inside.len() + behind.len()) as u64);
    binomial::hypergeometric_cdf(count(behind), behind.len() as u64, marked, all) < RECOVERED
}

/// Two edges and one more rate, each worth half a log of the length (Schwarz), and one more edge for the search.
pub fn penalty(n: usize) -> f64 {
    2.0 * (n.max(2) as f64).ln()
}

fn score(sum: &[u64], start: usize, end: usize) -> Option<Segment> {
    let n = sum.len() - 1;
    if start >= end || end > n {
        return None;
    }
    let (inside_n, outside_n) = ((end - start) as f64, (n - (end - start)) as f64);
    let inside_k = (sum[end] - sum[start]) as f64;
    let all = sum[n] as f64;
    let inside = inside_k / inside_n;
    let outside = if outside_n > 0.0 { (all - inside_k) / outside_n } else { 0.0 };
    if inside <= outside || outside_n == 0.0 {
        return None;
    }
    let log_likelihood_ratio =
        entropy(inside_k, inside_n) + entropy(all - inside_k, outside_n) - entropy(all, n as f64);
    Some(Segment { start, end, inside, outside, log_likelihood_ratio })
}

/// k ln(k/n) + (n-k) ln((n-k)/n): the log-likelihood at the best rate.
fn entropy(k: f64, n: f64) -> f64 {
    let part = |x: f64| if x > 0.0 { x * (x / n).ln() } else { 0.0 };
    part(k) + part(n - k)
}
