//! Where do results stand among the requests a server answered, when results are missing?
//!
//! By their durations: results of one file followed each other, so the times at which their lines were logged are a
//! running sum of their wall times. The place where this fits the log must be much better than any other. A client
//! that replays the same prompts fits in several places equally well; then the number of its folder (`run02`) tells
//! which of them it is. Else the results stay unplaced. Labels are not looked at.

use super::gauge::Served;
use cute_records::Completion;

/// Rows of one file need this many durations to be told from any others.
const LEAST: usize = 8;
/// The second-best place must fit this many times worse.
const DECISIVE: f64 = 1.5;
/// The best place must fit within this many seconds (root mean square); readings come every ten seconds or more.
const CLOSE: f64 = 45.0;

/// The served request of each row, where it can be told.
pub fn place(rows: &[&Completion], served: &[Served]) -> Vec<Option<usize>> {
    let mut out = vec![None; rows.len()];
    let mut groups: Vec<std::ops::Range<usize>> = Vec::new();
    for i in 0..rows.len() {
        match groups.last_mut() {
            Some(g) if file(rows[g.start]) == file(rows[i]) && rows[g.start].run == rows[i].run => {
                g.end = i + 1
            }
            _ => groups.push(i..i + 1),
        }
    }
    groups.retain(|g| g.len() >= LEAST && rows[g.clone()].iter().all(|c| c.wall_ms.is_some()));
    // Long groups first: they are the surest, and others must fit around them.
    groups.sort_by_key(|g| std::cmp::Reverse(g.len()));
    for g in groups {
        let before = out[..g.start].iter().rev().flatten().next().map_or(0, |p| p + 1);
        let after = out[g.end..].iter().flatten().next().copied().unwrap_or(served.len());
        if let Some(at) = best(&rows[g.clone()], served, before, after) {
            for (k, slot) in out[g].iter_mut().enumerate() {
                *slot = Some(at + k);
            }
        }
    }
    out
}

fn file(c: &Completion) -> &str {
    let source = c.source.as_deref().unwrap_or("");
    source.rsplit_once(':').map_or(source, |(file, _)| file)
}

fn best(rows: &[&Completion], served: &[Served], from: usize, to: usize) -> Option<usize> {
    let last = to.checked_sub(rows.len())?;
    let mut fits: Vec<(f64, usize)> =
        (from..=last).filter_map(|at| Some((misfit(rows, &served[at..at + rows.len()])?, at))).collect();
    fits.sort_by(|a, b| a.0.total_cmp(&b.0));
    let fit = fits.first().map(|(fit, _)| *fit).filter(|fit| *fit <= CLOSE)?;
    let mut equal: Vec<usize> =
        fits.iter().take_while(|(f, _)| *f < DECISIVE * fit.max(1.0)).map(|(_, at)| *at).collect();
    equal.sort_unstable();
    // Places that overlap are one place, badly told; replays stand apart from each other.
    let apart = equal.windows(2).all(|w| w[1] - w[0] >= rows.len());
    match equal.as_slice() {
        [at] => Some(*at),
        several if apart => several.get(replay_number(file(rows[0]))?.checked_sub(1)?).copied(),
        _ => None,
    }
}

/// The number in a folder's name such as `run02`.
fn replay_number(path: &str) -> Option<usize> {
    path.rsplit('/').find_map(|part| {
        let digits = part.strip_prefix("run")?;
        digits.trim_start_matches(['_', '-']).parse().ok()
    })
}

/// Root mean square, in seconds, between the logged times and the running sum of the wall times.
fn misfit(rows: &[&Completion], served: &[Served]) -> Option<f64> {
    let mut clock = 0.0;
    let mut off = Vec::new();
    for (c, s) in rows.iter().zip(served) {
        let wall = c.wall_ms? / 1e3;
        let begins = clock;
        clock += wall;
        let (low, high) = s.logged?;
        off.push((low + high) / 2.0 - if s.streamed { begins } else { clock });
    }
    let mean = off.iter().sum::<f64>() / off.len() as f64;
    Some((off.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / off.len() as f64).sqrt())
}
