//! Logits to a token: seeded, deterministic, ties to the lowest id.

use crate::backend::cpu::math;
use crate::sequence::SamplingParams;
use cute_records::{Num, TokenLogprob};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// The random stream of a request.
#[derive(Clone, Debug)]
pub struct Stream(ChaCha8Rng);

impl Stream {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        Stream(ChaCha8Rng::seed_from_u64(seed))
    }
    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The largest logit and its id, ties to the lowest id; `None` when any value is NaN or +∞, or none is finite.
pub fn argmax(logits: &[f32]) -> Option<(u32, f32)> {
    let mut best = (0, f32::NEG_INFINITY);
    for (id, &x) in logits.iter().enumerate() {
        if x.is_nan() || x == f32::INFINITY {
            return None;
        }
        if x > best.1 {
            best = (id as u32, x);
        }
    }
    best.1.is_finite().then_some(best)
}

/// A token to choose from a row of logits, and how.
///
/// Weights are integers and cuts are by order alone (larger logits first, of equal ones the lower id), so any way of adding
/// them up gives the same token: a device may sum in parallel and still choose what [`choose`] does.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// row of the logits
    pub row: usize,
    /// as in [`SamplingParams`], as the others
    pub temperature: f32,
    /// see there
    pub top_k: usize,
    /// see there
    pub top_p: f32,
    /// see there
    pub min_p: f32,
    /// see there
    pub repetition_penalty: f32,
    /// tokens that the penalty is for, each once
    pub seen: Vec<u32>,
    /// 64 random bits
    pub random: u64,
}

impl Choice {
    /// The next choice of a request whose tokens so far are `seen`.
    pub fn new(
        row: usize,
        params: &SamplingParams,
        seen: impl Iterator<Item = u32>,
        stream: &mut Stream,
    ) -> Self {
        let mut seen: Vec<u32> = if params.repetition_penalty == 1.0 { Vec::new() } else { seen.collect() };
        seen.sort_unstable();
        seen.dedup();
        let SamplingParams { temperature, top_k, top_p, min_p, repetition_penalty, .. } = *params;
        let random = if temperature == 0.0 { 0 } else { stream.0.next_u64() };
        Choice { row, temperature, top_k, top_p, min_p, repetition_penalty, seen, random }
    }

    /// The likeliest tokens that are kept; all when 0. Without temperature only one is.
    pub fn likeliest(&self) -> usize {
        if self.temperature == 0.0 { 1 } else { self.top_k }
    }

    /// `top_p` as a fraction of 2⁶⁴; everything is kept when 0.
    pub fn nucleus(&self) -> u64 {
        if self.top_p < 1.0 { (f64::from(self.top_p) * 2f64.powi(64)) as u64 } else { 0 }
    }
}

/// The upper half of the product of `a` and `b`, rounded up when `up`.
fn high_product(a: u64, b: u64, up: bool) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product >> 64) as u64 + u64::from(up && product as u64 != 0)
}

/// Chooses a token. `logits` are finite or −∞, one at least finite (see [`argmax`]), and are changed.
///
/// A token's weight is `⌊2³² exp((x − max) / temperature)⌋`. Kept are the first `top_k` in order, of these those with an
/// exponential of at least `min_p`, of these the fewest whose weights make up `top_p` of all. The token is the first whose
/// weights up to it exceed `random / 2⁶⁴` of the sum.
pub fn choose(logits: &mut [f32], c: &Choice) -> u32 {
    for id in &c.seen {
        if let Some(x) = logits.get_mut(*id as usize) {
            *x = if *x > 0.0 { *x / c.repetition_penalty } else { *x * c.repetition_penalty };
        }
    }
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let at = |id: u32| logits[id as usize];
    order.sort_unstable_by(|a, b| at(*b).total_cmp(&at(*a)).then(a.cmp(b)));
    let Some(&first) = order.first() else { return 0 };
    if c.likeliest() > 0 {
        order.truncate(c.likeliest());
    }
    if c.temperature == 0.0 {
        return first;
    }
    let weight = |id: &u32| {
        let e = math::exp((at(*id) - at(first)) / c.temperature);
        if e >= c.min_p { (e * 2f32.powi(32)) as u64 } else { 0 }
    };
    let mut weights: Vec<u64> = order.iter().map(weight).collect();
    // how many of the first weights add up to so much
    let up_to = |weights: &[u64], least: u64| {
        let sums = weights.iter().scan(0, |sum, w| {
            *sum += w;
            Some(*sum)
        });
        sums.take_while(|sum| *sum < least).count() + 1
    };
    if c.nucleus() > 0 {
        let least = high_product(c.nucleus(), weights.iter().sum(), true);
        weights.truncate(up_to(&weights, least));
    }
    let least = high_product(c.random, weights.iter().sum(), false) + 1;
    order[up_to(&weights, least) - 1]
}

/// The `n` likeliest tokens with their log-probabilities, likeliest first.
pub fn logprobs(logits: &[f32], n: usize) -> Vec<TokenLogprob> {
    let max = logits.iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x));
    let sum: f64 = logits.iter().map(|x| libm::exp(f64::from(x - max))).sum();
    let log_sum = f64::from(max) + libm::log(sum);
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
    let top = order.into_iter().take(n);
    top.map(|id| TokenLogprob { id, logprob: Num(f64::from(logits[id as usize]) - log_sum) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(f: impl FnOnce(&mut SamplingParams)) -> SamplingParams {
        let mut p = SamplingParams { temperature: 1.0, ..SamplingParams::default() };
        f(&mut p);
        p
    }

    fn histogram(p: &SamplingParams, logits: &[f32]) -> Vec<usize> {
        let mut stream = Stream::new(1);
        let mut counts = vec![0; logits.len()];
        for _ in 0..10_000 {
            let choice = Choice::new(0, p, std::iter::empty(), &mut stream);
            counts[choose(&mut logits.to_vec(), &choice) as usize] += 1;
        }
        counts
    }

    #[test]
    fn ties_go_to_the_lowest_id_and_nan_is_no_token() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0]), Some((1, 3.0)));
        assert_eq!(argmax(&[f32::NEG_INFINITY, -5.0]), Some((1, -5.0)));
        assert_eq!(argmax(&[1.0, f32::NAN]), None);
        assert_eq!(argmax(&[1.0, f32::INFINITY]), None);
        assert_eq!(argmax(&[f32::NEG_INFINITY]), None);
        assert_eq!(argmax(&[]), None);
    }

    #[test]
    fn samples_follow_the_probabilities() {
        // weights 1 : 2 : 1, so 2,500 : 5,000 : 2,500 of 10,000, standard deviation 50 at most
        let counts = histogram(&params(|_| ()), &[0.0, std::f32::consts::LN_2, 0.0]);
        assert!(counts[1].abs_diff(5_000) < 250 && counts[0].abs_diff(2_500) < 250, "{counts:?}");
    }

    #[test]
    fn top_k_top_p_and_min_p_each_cut_the_tail() {
        let logits = [0.0, std::f32::consts::LN_2, -1.0]; // probabilities .297 .594 .109
        assert_eq!(histogram(&params(|p| p.top_k = 1), &logits), [0, 10_000, 0]);
        assert_eq!(histogram(&params(|p| p.top_p = 0.5), &logits), [0, 10_000, 0]);
        assert_eq!(histogram(&params(|p| p.top_p = 0.6), &logits)[2], 0);
        assert_eq!(histogram(&params(|p| p.min_p = 0.4), &logits)[2], 0);
        assert!(histogram(&params(|p| p.min_p = 0.1), &logits)[2] > 0);
    }

    #[test]
    fn the_repetition_penalty_counts_a_token_once() {
        let p = SamplingParams { repetition_penalty: 2.0, ..SamplingParams::default() };
        let with = |logits: &mut [f32], seen: &[u32]| {
            choose(logits, &Choice::new(0, &p, seen.iter().copied(), &mut Stream::new(0)))
        };
        // 3 / 2 = 1.5 > 1.4: once penalised it still wins; twice it would not
        assert_eq!(with(&mut [1.4, 3.0], &[1, 1]), 1);
        assert_eq!(with(&mut [1.6, 3.0], &[1]), 0);
        assert_eq!(with(&mut [-1.0, -0.9], &[1]), 0);
    }

    #[test]
    fn the_first_and_the_last_random_bits_choose_the_ends_of_what_is_kept() {
        let p = params(|p| p.top_k = 3);
        // 1, 1 / e and 1 / e²: .665, .245 and .090 of their sum
        let fraction = |x: f64| (x * 2f64.powi(64)) as u64;
        for (random, token) in
            [(0, 2), (fraction(0.66), 2), (fraction(0.67), 0), (fraction(0.92), 4), (u64::MAX, 4)]
        {
            let choice = Choice { random, ..Choice::new(0, &p, std::iter::empty(), &mut Stream::new(0)) };
            assert_eq!(choose(&mut [1.0, -9.0, 2.0, -9.0, 0.0], &choice), token, "{random:#x}");
        }
    }

    #[test]
    fn log_probabilities_sum_to_one() {
        let all = logprobs(&[0.0, 1.0, -2.0], 3);
        assert_eq!(all.iter().map(|t| t.id).collect::<Vec<_>>(), [1, 0, 2]);
        let sum: f64 = all.iter().map(|t| t.logprob.0.exp()).sum();
        assert!((sum - 1.0).abs() < 1e-6);
        assert_eq!(logprobs(&[0.0, 1.0], 0), []);
    }
}
