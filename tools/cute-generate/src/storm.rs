//! Storms: requests cancelled and preempted at random moments, the same ones for the same seed.
//!
//! Before a step, by chance, one of the requests in flight is cancelled, or one of the running ones is sent back to the
//! queue. Chance is drawn from the seed alone, and what can be struck depends on the run alone: the same command strikes
//! the same requests at the same steps. Who is left alone keeps every bit of its logits.

use clap::{ValueEnum, value_parser};
use cute_engine::sampler::Stream;

/// The storm, as it is asked for.
#[derive(Debug, clap::Args)]
#[group(id = "storms")]
#[command(next_help_heading = "Storms")]
pub struct Options {
    /// Strike requests at random: cancel (waiting or running ones), preempt (running ones)
    #[arg(long, value_name = "NAMES", value_enum, value_delimiter = ',')]
    pub storm: Vec<Blow>,
    /// Which requests are struck, and when
    #[arg(long, value_name = "N", default_value_t = 0, requires = "storm")]
    pub storm_seed: u64,
    /// Steps between two blows of a kind, on average
    #[arg(long, value_name = "STEPS", default_value_t = 16, requires = "storm", value_parser = value_parser!(u64).range(1..=1 << 20))]
    pub storm_every: u64,
}

/// What can happen to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Blow {
    /// it ends with what it had generated, as `cancelled`
    Cancel,
    /// it gives back its slot and pages and is computed again from its first token
    Preempt,
}

/// A storm that goes on.
pub struct Storm {
    kinds: Vec<Blow>,
    every: u64,
    random: Stream,
}

impl Storm {
    /// The storm of these options; a calm one when none is asked for.
    pub fn new(options: &Options) -> Storm {
        let mut kinds = Vec::new();
        for kind in [Blow::Cancel, Blow::Preempt] {
            kinds.extend(options.storm.contains(&kind).then_some(kind));
        }
        Storm { kinds, every: options.storm_every, random: Stream::new(options.storm_seed) }
    }

    /// Who is struck before the next step, at most one by each kind: by its ordinal, out of those in flight and those of
    /// them that run.
    pub fn blows(&mut self, in_flight: &[u64], running: &[u64]) -> Vec<(Blow, u64)> {
        let Storm { kinds, every, random } = self;
        let mut draw = |n: u64| (random.uniform() * n as f64) as u64;
        let mut strike = |kind: Blow| {
            let (now, pick) = (draw(*every) == 0, draw(1 << 32));
            let among = if kind == Blow::Cancel { in_flight } else { running };
            let victim = among.get(pick as usize % among.len().max(1));
            victim.filter(|_| now).map(|ordinal| (kind, *ordinal))
        };
        kinds.iter().filter_map(|kind| strike(*kind)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn storm(storm: &[Blow], seed: u64, every: u64) -> Storm {
        Storm::new(&Options { storm: storm.to_vec(), storm_seed: seed, storm_every: every })
    }

    #[test]
    fn the_same_seed_strikes_the_same_requests_and_another_does_not() {
        let blows = |seed| -> Vec<_> {
            let mut storm = storm(&[Blow::Preempt, Blow::Cancel], seed, 4);
            (0..200).flat_map(|_| storm.blows(&[1, 2, 3, 4, 5], &[1, 2])).collect()
        };
        assert_eq!(blows(7), blows(7));
        assert_ne!(blows(7), blows(8));
        // two kinds, 200 steps, one in four: 100 blows, standard deviation 8.7
        assert!(blows(7).len().abs_diff(100) < 40, "{}", blows(7).len());
        assert!(
            blows(7).iter().all(|(kind, o)| *kind == Blow::Cancel || *o <= 2),
            "only who runs is preempted"
        );
        assert!((1..=5).all(|o| blows(7).contains(&(Blow::Cancel, o))), "whoever is in flight is cancelled");
    }

    #[test]
    fn without_a_storm_nothing_is_struck_and_nobody_is_struck_where_nobody_is() {
        assert_eq!(storm(&[], 1, 1).blows(&[1], &[1]), []);
        assert_eq!(storm(&[Blow::Cancel, Blow::Preempt], 1, 1).blows(&[], &[]), []);
        assert_eq!(storm(&[Blow::Cancel, Blow::Preempt], 1, 1).blows(&[3], &[]), [(Blow::Cancel, 3)]);
    }
}
