//! Intervals, paired tests, sequential tests, change points and power: numbers a gate can stand on.
//!
//! Everything here is exact where exactness is affordable, and says which approximation it is where it is not.
//! Special functions come from `statrs`; the rest is short enough to read. Golden values against scipy are in
//! `tests/golden/stats_golden.json`, made by the script beside it.
//!
//! | module | for |
//! |---|---|
//! | [`intervals`] | Wilson and Clopper–Pearson |
//! | [`binomial`] | tails of the binomial distribution |
//! | [`mcnemar`] | the same questions twice: flips and their exact p |
//! | [`homogeneity`] | do all runs share one accuracy? |
//! | [`cusum`] | a Bernoulli CUSUM with a stated time between false alarms |
//! | [`changepoint`] | the likeliest bad stretch |
//! | [`power`] | what a gate can see |

pub mod binomial;
pub mod changepoint;
pub mod cusum;
pub mod homogeneity;
pub mod intervals;
pub mod mcnemar;
pub mod power;
