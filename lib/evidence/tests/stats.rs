//! Statistics against scipy's numbers (`golden/stats_golden.json`, made by the script beside it), and against sense.

use cute_evidence::stats::{binomial, changepoint, cusum, homogeneity, intervals, mcnemar, power};
use serde_json::Value;

fn golden(name: &str) -> Vec<Vec<Value>> {
    let all: Value = serde_json::from_str(include_str!("golden/stats_golden.json")).unwrap();
    let rows = all[name].as_array().unwrap().iter();
    rows.map(|r| r.as_array().unwrap().clone()).collect()
}

fn near(ours: f64, theirs: &Value, relative: f64, what: &str) {
    let theirs = theirs.as_f64().unwrap();
    let error = (ours - theirs).abs() / theirs.abs().max(1e-12);
    assert!(error <= relative, "{what}: {ours} against {theirs}, off by {error:.1e}");
}

fn pairs(v: &Value) -> Vec<(u64, u64)> {
    let pair = |p: &Value| (p[0].as_u64().unwrap(), p[1].as_u64().unwrap());
    v.as_array().unwrap().iter().map(pair).collect()
}

#[test]
fn intervals_agree_with_scipy() {
    for row in golden("intervals") {
        let (k, n, level) = (row[0].as_u64().unwrap(), row[1].as_u64().unwrap(), row[2].as_f64().unwrap());
        let w = intervals::wilson(k, n, level).unwrap();
        let c = intervals::clopper_pearson(k, n, level).unwrap();
        for (i, ours) in [w.0, w.1, c.0, c.1].into_iter().enumerate() {
            near(ours, &row[3 + i], 1e-7, &format!("bound {i} of {k}/{n} at {level}"));
        }
    }
    assert_eq!(intervals::wilson(0, 0, 0.95), None);
    assert_eq!(intervals::clopper_pearson(3, 2, 0.95), None);
    // 1 - 0.05^(1/100) = 0.0295, the rule of three says 3/100
    assert!((intervals::zero_upper(100, 0.95) - 0.029513).abs() < 1e-6);
}

#[test]
fn binomial_tails_agree_with_scipy() {
    for row in golden("binomial") {
        let (k, n, p) = (row[0].as_u64().unwrap(), row[1].as_u64().unwrap(), row[2].as_f64().unwrap());
        near(binomial::cdf(k as i64, n, p), &row[3], 1e-9, &format!("cdf({k}, {n}, {p})"));
        near(binomial::pmf(k, n, p), &row[4], 1e-9, &format!("pmf({k}, {n}, {p})"));
    }
    assert_eq!(binomial::cdf(-1, 5, 0.5), 0.0);
    assert_eq!(binomial::cdf(2, 5, 0.0), 1.0);
    assert_eq!(binomial::cdf(2, 5, 1.0), 0.0);
}

#[test]
fn mcnemar_and_holm_agree_with_scipy() {
    for row in golden("mcnemar") {
        let f = mcnemar::Flips {
            lost: row[0].as_u64().unwrap(),
            gained: row[1].as_u64().unwrap(),
            ..Default::default()
        };
        near(f.p(), &row[2], 1e-9, &format!("{f:?}"));
    }
    for row in golden("holm") {
        let numbers =
            |v: &Value| v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect::<Vec<_>>();
        assert_eq!(mcnemar::holm(&numbers(&row[0])), numbers(&row[1]));
    }
    let f =
        mcnemar::Flips::count([(true, true), (true, false), (false, true), (false, false), (true, false)]);
    assert_eq!((f.both_right, f.lost, f.gained, f.both_wrong, f.pairs()), (1, 2, 1, 1, 5));
}

#[test]
fn homogeneity_agrees_with_scipy_and_with_enumeration() {
    for row in golden("chi2") {
        let h = homogeneity::test(&pairs(&row[0])).unwrap();
        near(h.chi2, &row[1], 1e-9, "chi2");
        assert_eq!(h.df, row[2].as_u64().unwrap());
        near(h.p, &row[3], 1e-7, "p");
    }
    for row in golden("exact") {
        let h = homogeneity::test(&pairs(&row[0])).unwrap();
        near(h.exact_p.unwrap(), &row[1], 1e-9, &format!("{:?}", row[0]));
    }
    assert_eq!(homogeneity::test(&[(1, 2)]), None);
    assert_eq!(homogeneity::test(&[(2, 2), (2, 2)]).unwrap().best(), 1.0);
}

#[test]
fn mean_run_length_is_the_solution_of_the_markov_chain() {
    for row in golden("arl") {
        let int = |i: usize| row[i].as_u64().unwrap() as u32;
        let (up, down, h, p) = (int(0), int(1), int(2), row[3].as_f64().unwrap());
        near(
            cusum::run_length(up, down, h, p),
            &row[4],
            1e-9,
            &format!("+{up} -{down}, threshold {h}, p {p}"),
        );
    }
}

#[test]
fn a_chart_keeps_its_promise_about_false_alarms_and_no_smaller_threshold_does() {
    for (p0, p1, arl0) in [
        (0.04, 0.15, 10_000.0),
        (0.058, 0.168, 1_000.0),
        (0.02, 0.13, 50_000.0),
        (0.3, 0.5, 5_000.0),
        (0.7, 0.81, 10_000.0),
    ] {
        let c = cusum::Chart::design(p0, p1, arl0).unwrap();
        assert!(c.arl0 >= arl0 && cusum::run_length(c.up, c.down, c.threshold - 1, p0) < arl0, "{c:?}");
        assert!(c.arl1 < 200.0 && c.p1 > p0, "{c:?}");
        assert!((c.p1 - p1).abs() <= 0.1 * (p1 - p0), "p1 is moved only a little: {c:?}");
    }
    assert_eq!(cusum::Chart::design(0.5, 0.4, 100.0), None);
    assert_eq!(cusum::Chart::design(0.0, 0.4, 100.0), None);
}

#[test]
fn a_simulation_agrees_with_the_stated_false_alarm_rate() {
    // 400 sound streams of a chart that promises one false alarm in 500: mean 500 within four standard errors of 25.
    let c = cusum::Chart::design(0.05, 0.16, 500.0).unwrap();
    let mut x = 0x9e3779b97f4a7c15u64;
    let mut random = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 11) as f64 / (1u64 << 53) as f64
    };
    let mut total = 0usize;
    for _ in 0..400 {
        let misses: Vec<bool> = (0..20_000).map(|_| random() < 0.05).collect();
        total += c.run(misses).alarm.unwrap() + 1;
    }
    let mean = total as f64 / 400.0;
    assert!((mean - c.arl0).abs() < 4.0 * c.arl0 / 20.0, "{mean} against {}", c.arl0);
}

#[test]
fn the_incident_is_called_within_its_first_dozen_bad_requests() {
    // 48, 48, 48 with misses at 0 and 44, then bad from 162 to 213.
    let misses: Vec<bool> = (0..250).map(|i| matches!(i % 50, 0 | 44) || (162..214).contains(&i)).collect();
    let c = cusum::Chart::design(0.04, 0.15, 10_000.0).unwrap();
    let t = c.run(misses.iter().copied());
    // The sum left zero at the stable miss of request 144; the change point finds the edge itself.
    assert_eq!(t.onset, Some(144), "{c:?}");
    assert!((162..174).contains(&t.alarm.unwrap()), "{t:?}");
    let s = changepoint::worst_segment(&misses).unwrap();
    assert_eq!((s.start, s.end), (162, 214));
    assert_eq!(s.inside, 1.0);
}

#[test]
fn no_change_point_is_found_where_there_is_none() {
    assert_eq!(changepoint::worst_segment(&[]), None);
    assert_eq!(changepoint::worst_segment(&[true; 40]), None);
    let misses: Vec<bool> = (0..250).map(|i| matches!(i % 50, 0 | 44)).collect();
    assert_eq!(changepoint::worst_segment(&misses), None);
}

#[test]
fn a_long_series_is_searched_on_a_grid_and_refined_to_the_exact_edges() {
    let misses: Vec<bool> = (0..20_000).map(|i| i % 25 == 0 || (7_003..7_451).contains(&i)).collect();
    let s = changepoint::worst_segment(&misses).unwrap();
    assert!((s.start as i64 - 7_003).abs() <= 3 && (s.end as i64 - 7_451).abs() <= 1, "{s:?}");
}

#[test]
fn the_power_of_a_gate_is_stated_exactly() {
    // P(X <= 44 | 50, 0.90) = 0.384; the 57 % often quoted belong to P(X <= 45), the gate 46 of 50.
    let gate = power::Power::of_ratio(45, 50, 50, 5);
    assert_eq!(gate.k, 45);
    assert!((gate.fails_once(0.90) - 0.38388).abs() < 1e-5);
    assert!((power::Power::of_ratio(46, 50, 50, 1).fails_once(0.90) - 0.56880).abs() < 1e-5);
    assert!((gate.fails(0.90) - (1.0 - 0.616123f64.powi(5))).abs() < 1e-5);
    assert_eq!(
        gate.sentence(0.96, 0.90),
        "45 of 50 asked once sees a drop from 96 % to 90 % in only 38 % of runs and fails a sound system in 1.4 %; \
         when all of 5 runs must pass, it sees the drop in 91 % and fails a sound system in 7.0 %"
    );
    // 0.9 of 49 questions is 44.1: at least 45 of them.
    assert_eq!(power::Power::of_ratio(45, 50, 49, 1).k, 45);
}

#[test]
fn a_gate_that_sees_nearly_every_drop_does_not_say_only() {
    let gate = |k, n| power::Power { k, n, runs: 1 };
    assert!(gate(45, 50).sentence(0.96, 0.90).contains("in only 38 %"));
    let sure = gate(480, 500).sentence(0.96, 0.80);
    assert!(!sure.contains("only") && sure.contains("in 100 % of runs"), "{sure}");
}

#[test]
fn p_values_are_decimals_until_they_are_tiny() {
    let p_value = cute_evidence::stats::power::p_value;
    assert_eq!([p_value(1.0), p_value(0.0312), p_value(0.001)], ["1.000", "0.031", "0.001"]);
    assert_eq!(p_value(1.24e-9), "1.2e-9");
}

#[test]
fn no_percentage_says_all_of_less_or_none_of_more() {
    let percent = cute_evidence::stats::power::percent;
    let of = |k: f64, n: f64| percent(k / n);
    assert_eq!([of(249.0, 250.0), of(250.0, 250.0), of(0.0, 250.0)], ["99.6 %", "100 %", "0 %"]);
    assert_eq!([of(9_999.0, 10_000.0), of(1.0, 250.0), of(48.0, 50.0)], ["99.99 %", "0.4 %", "96 %"]);
    assert_eq!([percent(1.0 - 1e-13), percent(1e-13)], ["99.9999 %", "1.0e-11 %"]);
    let interval = cute_evidence::stats::power::interval;
    assert_eq!(interval((0.9779, 0.9998987)), "97.8 – 99.99 %");
    assert_eq!(interval((0.0, 1.0)), "0.0 – 100.0 %");
}

#[test]
fn two_shares_are_compared_exactly() {
    let p = cute_evidence::stats::binomial::hypergeometric_cdf(6, 20, 12, 30);
    assert!((p - 0.118271633414).abs() < 1e-9, "{p}");
    assert!((cute_evidence::stats::binomial::hypergeometric_cdf(12, 20, 12, 30) - 1.0).abs() < 1e-12);
}
