//! Logits to a token: seeded, deterministic, ties to the lowest id.

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

/// Chooses a token. `logits` are finite (see [`argmax`]) and are changed; `seen` are the sequence's tokens.
pub fn sample(
    logits: &mut [f32],
    params: &SamplingParams,
    seen: impl Iterator<Item = u32>,
    stream: &mut Stream,
) -> u32 {
    if params.repetition_penalty != 1.0 {
        let mut penalised = vec![false; logits.len()];
        for id in seen {
            if let (Some(x), Some(done)) = (logits.get_mut(id as usize), penalised.get_mut(id as usize))
                && !std::mem::replace(done, true)
            {
                *x = if *x > 0.0 { *x / params.repetition_penalty } else { *x * params.repetition_penalty };
            }
        }
    }
    if params.temperature == 0.0 {
        return argmax(logits).map_or(0, |(id, _)| id);
    }
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let at = |id: u32| logits[id as usize];
    order.sort_by(|a, b| at(*b).total_cmp(&at(*a)).then(a.cmp(b)));
    if params.top_k > 0 {
        order.truncate(params.top_k);
    }
    let max = at(order[0]);
    let weight = |id: u32| libm::exp(f64::from(at(id) - max) / f64::from(params.temperature));
    let mut weights: Vec<f64> = order.iter().map(|id| weight(*id)).collect();
    let keep = weights.iter().take_while(|w| **w >= f64::from(params.min_p)).count().max(1);
    weights.truncate(keep);
    let total: f64 = weights.iter().sum();
    let mut kept = 0.0;
    let nucleus = weights.iter().position(|w| {
        kept += w;
        kept >= f64::from(params.top_p) * total
    });
    weights.truncate(nucleus.map_or(weights.len(), |n| n + 1));
    let mut u = stream.uniform() * weights.iter().sum::<f64>();
    for (id, w) in order.iter().zip(&weights) {
        u -= w;
        if u < 0.0 {
            return *id;
        }
    }
    order[weights.len() - 1]
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
            counts[sample(&mut logits.to_vec(), p, std::iter::empty(), &mut stream) as usize] += 1;
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
        let mut stream = Stream::new(0);
        // 3 / 2 = 1.5 > 1.4: once penalised it still wins; twice it would not
        assert_eq!(sample(&mut [1.4, 3.0], &p, [1, 1].into_iter(), &mut stream), 1);
        assert_eq!(sample(&mut [1.6, 3.0], &p, [1].into_iter(), &mut stream), 0);
        assert_eq!(sample(&mut [-1.0, -0.9], &p, [1].into_iter(), &mut stream), 0);
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
