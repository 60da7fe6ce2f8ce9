//! Measures a region buffer.

use super::layout::{Class, Layout, REGIONS, timing, timing_name};
use super::npy::Buffer;
use crate::stats::power::percent;
use cute_records::{Finding, Record, Severity};
use serde_json::json;
use std::collections::BTreeMap;

/// Ticks of the global timer's resolution: regions may overlap by this much.
const RESOLUTION: i64 = 64;
/// Share of the span that a block's regions should account for.
const COVERAGE: f64 = 0.95;

/// One region over all thread blocks of the launch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RegionStats {
    /// number of the region
    pub region: usize,
    /// blocks that ran it in this launch
    pub fresh: usize,
    /// rows left over from an earlier launch
    pub stale: usize,
    /// fresh rows whose entry equals their exit: below the timer's resolution
    pub zero: usize,
    /// durations of fresh rows in nanoseconds, sorted
    pub durations: Vec<i64>,
    /// first entry and last exit, nanoseconds after the launch's first entry
    pub window: Option<(i64, i64)>,
    /// median of all positive durations, stale rows included: what a script that does not look takes
    pub naive_median: Option<f64>,
}

impl RegionStats {
    /// Median of the fresh durations.
    pub fn median(&self) -> Option<f64> {
        median(&self.durations)
    }
}

/// A row of an earlier launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaleRow {
    /// thread block
    pub cta: usize,
    /// region
    pub region: usize,
    /// nanoseconds from its entry to the launch's first entry; negative when it lies behind the launch
    pub age_ns: i64,
}

/// What a buffer says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// the file
    pub file: String,
    /// thread blocks and regions of the buffer
    pub shape: (usize, usize),
    /// first entry to last exit over the phases, in nanoseconds
    pub span_ns: Option<i64>,
    /// sum of the regions' naive medians, in nanoseconds: not a time anything took
    pub sum_of_medians_ns: f64,
    /// every region of the buffer
    pub regions: Vec<RegionStats>,
    /// rows of earlier launches
    pub stale: Vec<StaleRow>,
    /// smallest and largest share of the span that a block's own regions account for
    pub coverage: Option<(f64, f64)>,
    /// sequences that ran
    pub sequences: usize,
    /// pieces of the output projection, given or found
    pub wo_split: usize,
    findings: Vec<Finding>,
}

struct Row {
    cta: usize,
    region: usize,
    entry: i64,
    exit: i64,
}

/// Measures a buffer.
pub fn analyse(buffer: &Buffer, layout: &Layout) -> Report {
    let mut report =
        Report { file: buffer.file.clone(), shape: (buffer.ctas, buffer.regions), ..Report::default() };
    let (rows, summed) = rows(buffer, &mut report);
    let window = window(&rows, buffer.regions);
    let fresh = |row: &&Row| window.is_some_and(|(a, b)| row.exit >= a && row.entry <= b);
    let start = rows.iter().filter(fresh).map(|r| r.entry).min().unwrap_or(0);
    for row in rows.iter().filter(|r| !fresh(r)) {
        let age_ns = start.saturating_sub(row.entry);
        report.stale.push(StaleRow { cta: row.cta, region: row.region, age_ns });
    }
    report.stale.sort_by_key(|s| (s.region, s.cta));
    for region in 0..buffer.regions {
        report.regions.push(stats(region, &rows, &summed, &fresh, start));
    }
    report.sum_of_medians_ns = report.regions.iter().filter_map(|r| r.naive_median).sum();
    let phases =
        |r: &&Row| REGIONS.get(r.region).is_none_or(|r| matches!(r.class, Class::Phase1 | Class::Phase3));
    let first = rows.iter().filter(fresh).filter(phases).map(|r| r.entry).min();
    let last = rows.iter().filter(fresh).filter(phases).map(|r| r.exit).max();
    report.span_ns = first.zip(last).map(|(a, b)| b.saturating_sub(a));
    let live: Vec<&Row> = rows.iter().filter(fresh).collect();
    timelines(&live, &mut report);
    counts(&live, buffer, layout, &mut report);
    report.complain();
    report
}

/// Every row that was written; those of summed regions apart.
fn rows(buffer: &Buffer, report: &mut Report) -> (Vec<Row>, Vec<Row>) {
    let (mut out, mut summed) = (Vec::new(), Vec::new());
    for cta in 0..buffer.ctas {
        for region in 0..buffer.regions {
            let (entry, exit) = buffer.row(cta, region);
            if (entry, exit) == (0, 0) {
                continue;
            }
            let row = Row { cta, region, entry, exit };
            if REGIONS.get(region).is_some_and(|r| r.summed) && entry == 0 {
                summed.push(row);
            } else if entry <= 0 || exit < entry {
                let message = format!(
                    "R{region} of block {cta}: entry {entry}, exit {exit}: expected 0 < entry <= exit"
                );
                report.find("region_row_torn", Severity::Error, message);
            } else {
                out.push(row);
            }
        }
    }
    (out, summed)
}

/// The newest launch: the time covered by the regions that most blocks run, joined over blocks that overlap.
fn window(rows: &[Row], regions: usize) -> Option<(i64, i64)> {
    let mut per_region = vec![0usize; regions];
    let mut blocks = std::collections::BTreeSet::new();
    for row in rows {
        per_region[row.region] += 1;
        blocks.insert(row.cta);
    }
    let dense = |r: &&Row| per_region[r.region] * 2 > blocks.len();
    let any_dense = rows.iter().any(|r| dense(&r));
    let mut spans: BTreeMap<usize, (i64, i64)> = BTreeMap::new();
    for row in rows.iter().filter(|r| !any_dense || dense(r)) {
        let span = spans.entry(row.cta).or_insert((row.entry, row.exit));
        *span = (span.0.min(row.entry), span.1.max(row.exit));
    }
    let mut spans: Vec<(i64, i64)> = spans.into_values().collect();
    spans.sort_by_key(|(_, exit)| std::cmp::Reverse(*exit));
    let mut window = *spans.first()?;
    for (entry, exit) in spans {
        if exit >= window.0 {
            window.0 = window.0.min(entry);
        }
    }
    Some(window)
}

fn stats(
    region: usize,
    rows: &[Row],
    summed: &[Row],
    fresh: &impl Fn(&&Row) -> bool,
    start: i64,
) -> RegionStats {
    let mut out = RegionStats { region, ..RegionStats::default() };
    let mine = || rows.iter().filter(|r| r.region == region);
    for row in mine().filter(fresh) {
        out.fresh += 1;
        out.zero += usize::from(row.entry == row.exit);
        out.durations.push(row.exit.saturating_sub(row.entry));
        let (entry, exit) = (row.entry.saturating_sub(start), row.exit.saturating_sub(start));
        let (a, b) = out.window.unwrap_or((entry, exit));
        out.window = Some((a.min(entry), b.max(exit)));
    }
    out.stale = mine().count() - out.fresh;
    let sums = summed.iter().filter(|r| r.region == region).map(|r| r.exit);
    out.durations.extend(sums.clone());
    out.fresh += sums.clone().count();
    out.durations.sort_unstable();
    let mut naive: Vec<i64> =
        mine().map(|r| r.exit.saturating_sub(r.entry)).chain(sums).filter(|d| *d > 0).collect();
    naive.sort_unstable();
    out.naive_median = median(&naive);
    out
}

/// Order and coverage of each block's own regions.
fn timelines(live: &[&Row], report: &mut Report) {
    let mut blocks: BTreeMap<usize, Vec<&Row>> = BTreeMap::new();
    for row in live {
        blocks.entry(row.cta).or_default().push(row);
    }
    let span = report.span_ns.filter(|s| *s > 0);
    let mut overlaps = Vec::new();
    for (cta, mut rows) in blocks {
        rows.sort_by_key(|r| (r.entry, r.exit, r.region));
        let mut covered: i64 = 0;
        let mut until = i64::MIN;
        for row in &rows {
            covered = covered.saturating_add(row.exit.saturating_sub(row.entry.max(until)).max(0));
            until = until.max(row.exit);
        }
        for pair in rows.windows(2) {
            if pair[0].exit.saturating_sub(pair[1].entry) > RESOLUTION {
                overlaps.push(format!("R{} past R{} in block {cta}", pair[0].region, pair[1].region));
            }
        }
        if let Some(span) = span {
            let share = covered as f64 / span as f64;
            let (lo, hi) = report.coverage.unwrap_or((share, share));
            report.coverage = Some((lo.min(share), hi.max(share)));
        }
    }
    if !overlaps.is_empty() {
        let shown = overlaps[..overlaps.len().min(4)].join(", ");
        let message =
            format!("{} region(s) last beyond the next one of their block: {shown}", overlaps.len());
        report.find("region_overlap", Severity::Warning, message);
    }
}

/// Active blocks against the launch shape.
fn counts(live: &[&Row], buffer: &Buffer, layout: &Layout, report: &mut Report) {
    let per = layout.per_sequence();
    if buffer.ctas == 0 || !buffer.ctas.is_multiple_of(per) {
        let message =
            format!("{} blocks are no multiple of {per}: active blocks are not checked", buffer.ctas);
        report.find("region_layout_unknown", Severity::Warning, message);
        return;
    }
    let sequences: std::collections::BTreeSet<usize> = live.iter().map(|r| r.cta / per).collect();
    report.sequences = sequences.len();
    let pieces = report.regions.get(2).map_or(0, |r| r.fresh);
    let found = pieces / (layout.kv_heads * report.sequences).max(1);
    report.wo_split = layout.wo_split.unwrap_or(found);
    let mut wrong = Vec::new();
    for stats in &report.regions {
        let expected = layout.active(stats.region, report.wo_split).map(|n| n * report.sequences);
        if let Some(expected) = expected.filter(|n| *n != stats.fresh) {
            wrong.push(format!("R{}: {} of {expected}", stats.region, stats.fresh));
        }
    }
    if !wrong.is_empty() {
        let message = format!("blocks that ran a region, of those that should: {}", wrong.join(", "));
        report.find("region_active_blocks", Severity::Warning, message);
    }
}

impl Report {
    fn find(&mut self, check: &str, severity: Severity, message: String) {
        self.findings.push(Finding {
            check: check.to_owned(),
            severity,
            message: format!("{}: {message}", self.file),
            ordinal: None,
            layer: None,
            at: Some(self.file.clone()),
            data: BTreeMap::new(),
        });
    }

    fn complain(&mut self) {
        let Some(span) = self.span_ns else {
            return self.find(
                "region_empty",
                Severity::Error,
                "no phase was ever entered: nothing was timed".to_owned(),
            );
        };
        for s in self.stale.clone().iter().take(16) {
            let message = format!(
                "R{} of block {}: {:.0} ms older than the launch: a row of an earlier one, it must not be averaged in",
                s.region,
                s.cta,
                s.age_ns as f64 / 1e6
            );
            self.find("region_stale_row", Severity::Error, message);
        }
        let (ms, sum) = (span as f64 / 1e6, self.sum_of_medians_ns / 1e6);
        if (sum - ms).abs() > 0.05 * ms {
            let message = format!(
                "the regions' medians add up to {sum:.3} ms, the span from first entry to last exit is {ms:.2} ms: blocks \
                 run side by side and loops are sampled, so the sum is no duration"
            );
            self.find("region_sum_is_no_span", Severity::Warning, message);
        }
        let sampled: Vec<String> = REGIONS
            .iter()
            .enumerate()
            .filter(|(i, r)| r.last_slice && self.regions.get(*i).is_some_and(|s| s.fresh > 0))
            .map(|(i, _)| format!("R{i}"))
            .collect();
        if !sampled.is_empty() {
            let message = format!(
                "{} hold the last slice of a loop only: their durations stand for one pass",
                sampled.join(", ")
            );
            self.find("region_last_slice_only", Severity::Warning, message);
        }
        if let Some((lo, hi)) = self.coverage.filter(|(lo, _)| *lo < COVERAGE) {
            let message = format!(
                "a block's own regions account for {} to {} of the span: the rest was not timed",
                percent(lo),
                percent(hi)
            );
            self.find("region_coverage", Severity::Warning, message);
        }
        let zero: Vec<String> = self
            .regions
            .iter()
            .filter(|r| r.zero > 0)
            .map(|r| format!("R{} ({} of {})", r.region, r.zero, r.fresh))
            .collect();
        if !zero.is_empty() {
            let message = format!(
                "durations below the timer's resolution read 0 and count as 0, not as missing: {}",
                zero.join(", ")
            );
            self.find("region_zero_durations", Severity::Info, message);
        }
    }

    /// What is wrong with the buffer or with reading it naively.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// `timing` records (the span first) and the findings.
    pub fn records(&self) -> Vec<Record> {
        let mut out: Vec<Record> = Vec::new();
        if let Some(span) = self.span_ns {
            let (lo, hi) = self.coverage.unwrap_or_default();
            let figures = [
                ("sum_of_medians_ms", self.sum_of_medians_ns / 1e6),
                ("coverage_min", lo),
                ("coverage_max", hi),
                ("ctas", self.shape.0 as f64),
                ("regions", self.shape.1 as f64),
                ("stale_rows", self.stale.len() as f64),
                ("wo_split", self.wo_split as f64),
                ("sequences", self.sequences as f64),
            ];
            out.push(
                timing("kernel span, first entry to last exit".to_owned(), span as f64, 1, &figures).into(),
            );
        }
        for r in &self.regions {
            let Some(median) = r.median() else { continue };
            let n = r.durations.len();
            let mean = r.durations.iter().map(|d| *d as f64).sum::<f64>() / n as f64;
            let us = |ns: i64| ns as f64 / 1e3;
            let mut figures = vec![
                ("mean_us", mean / 1e3),
                ("min_us", us(r.durations[0])),
                ("max_us", us(r.durations[n - 1])),
                ("stale_rows", r.stale as f64),
                ("zero_rows", r.zero as f64),
            ];
            if let Some((entry, exit)) = r.window {
                figures.extend([("first_entry_us", us(entry)), ("last_exit_us", us(exit))]);
            }
            out.push(timing(timing_name(r.region), median, n as u64, &figures).into());
        }
        let findings = self.findings.iter().cloned().map(|mut f| {
            f.data.insert("shape".to_owned(), json!([self.shape.0, self.shape.1, 2]));
            Record::Finding(f)
        });
        out.extend(findings);
        out
    }
}

fn median(sorted: &[i64]) -> Option<f64> {
    let n = sorted.len();
    match n {
        0 => None,
        n if n % 2 == 1 => Some(sorted[n / 2] as f64),
        n => Some((sorted[n / 2 - 1] as f64 + sorted[n / 2] as f64) / 2.0),
    }
}
