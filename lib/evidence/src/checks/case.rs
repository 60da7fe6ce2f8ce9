//! Everything a stream said, sorted by leg.
//!
//! A leg is one boot of one server: its replies, its pool, its log. Records that name no leg belong to the
//! stream's own; a second producer in the same stream starts the next one, so that two engines' ordinals
//! never mix.

use super::LogLine;
use super::chunks::Chunks;
use super::state::States;
use crate::detect::{self, Labelled};
use cute_records::{
    Completion, Count, Dispatch, Event, Finding, Ledger, Model, Parsed, Pool, Record, Run, RunScore,
    Severity, Source, Timing, Trace, Verdict,
};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

/// Whether a reply came, by its text, the end of it, or its length.
pub(crate) fn has_output(c: &Completion) -> bool {
    c.text.is_some() || c.text_tail.is_some() || c.completion_tokens.is_some()
}

/// One boot of one server.
#[derive(Clone, Debug, Default)]
pub struct Leg {
    /// its name; empty for the stream's own
    pub name: String,
    /// its replies by ordinal, each once
    pub completions: Vec<Completion>,
    /// a label for each of them
    pub labels: Vec<Labelled>,
    /// pools its log or engine reported
    pub pools: Vec<Pool>,
    /// recognised log lines that a check or a replay needs, in order
    pub log: Vec<LogLine>,
    /// recognised log lines, all of them
    pub log_lines: u64,
    /// recognised log lines by pattern
    pub log_events: Count,
    /// dispatch decisions
    pub dispatch: Vec<Dispatch>,
    /// how its requests were served
    pub traces: Vec<Trace>,
}

/// Everything a stream said.
#[derive(Debug, Default)]
pub struct Case {
    /// who wrote it
    pub runs: Vec<Run>,
    /// the checkpoints it names
    pub models: Vec<Model>,
    /// its legs, in order of appearance
    pub legs: Vec<Leg>,
    /// findings that came with it
    pub findings: Vec<Finding>,
    /// durations
    pub timings: Vec<Timing>,
    /// lives of slots and pages
    pub states: States,
    /// chunks of replies that are streamed
    pub chunks: Chunks,
    /// runs against ends
    pub ledger: Ledger,
    /// lines that could not be understood, as `file:line: reason`
    pub bad_lines: Vec<String>,
    /// the last line of the stream, when it has no newline: its writer was cut off within it
    pub torn: Option<String>,
    /// records of the stream that came when no `run` was open: nobody vouches for them
    pub unowned: u64,
    /// verdicts that the stream brought
    pub verdicts: Vec<Verdict>,
    /// producers, as places in `runs`, whose replies name no leg
    pub answered: BTreeSet<usize>,
    /// records seen, by type
    pub seen: Count,
    producers: usize,
    open: BTreeMap<String, usize>,
    places: HashSet<u64>,
}

impl Case {
    /// Takes note of the next record of the stream.
    pub fn note(&mut self, parsed: &Parsed) {
        let opens = matches!(parsed, Parsed::Known(r) if matches!(**r, Record::Run(_) | Record::End(_)));
        if !opens && self.ledger.spans().iter().all(|s| s.end.is_some()) {
            self.unowned += 1;
        }
        self.ledger.note(parsed);
        if let Parsed::Known(record) = parsed {
            if let Record::Verdict(verdict) = &**record {
                self.verdicts.push(verdict.clone());
            }
            self.add(record);
        }
    }

    /// Takes note of a record that came from elsewhere than the stream (a results directory, a log).
    pub fn add(&mut self, record: &Record) {
        self.admit(record);
    }

    /// As [`Case::add`]; false when the same line of the same log has said the same already: a log read twice
    /// counts once.
    pub fn admit(&mut self, record: &Record) -> bool {
        if place(record).is_some_and(|place| !self.places.insert(place)) {
            return false;
        }
        *self.seen.entry(record.kind().to_owned()).or_default() += 1;
        match record {
            Record::Run(run) => {
                if run.tool == "cute-generate" {
                    self.producers += 1;
                    self.states.begin();
                    self.chunks.begin(run);
                }
                self.runs.push(run.clone());
            }
            Record::Model(model) => self.models.push(model.clone()),
            Record::Chunk(c) => self.chunks.note(c),
            Record::Completion(c) => {
                if c.leg.is_none() {
                    self.chunks.close(c);
                }
                self.completion(c.clone());
            }
            Record::Dispatch(d) => self.of_source(&d.source.file).dispatch.push(d.clone()),
            Record::Pool(p) => {
                let file = p.source.as_ref().map_or(String::new(), |s| s.file.clone());
                self.of_source(&file).pools.push(p.clone());
            }
            Record::Event(e) => self.event(e),
            Record::State(s) => self.states.note(s),
            Record::Trace(t) => {
                let name = self.producer();
                self.leg(&name).traces.push(t.clone());
            }
            Record::Timing(t) => self.timings.push(t.clone()),
            Record::Finding(f) => self.findings.push(f.clone()),
            Record::End(end) if end.tool == "cute-generate" => self.chunks.end(end),
            Record::Prompt(_) | Record::Verdict(_) | Record::End(_) => {}
        }
        true
    }

    fn event(&mut self, e: &Event) {
        let leg = self.of_source(&e.source.file);
        let file = match leg.log.last() {
            Some(line) => line.file.clone(),
            None => e.source.file.as_str().into(),
        };
        // what a result file says is no line of a log
        leg.log_lines += u64::from(e.pack != crate::adapters::PACK);
        *leg.log_events.entry(e.event.clone()).or_default() += 1;
        leg.log.extend(LogLine::of(e, &file));
    }

    fn completion(&mut self, mut c: Completion) {
        let name = c.leg.clone().unwrap_or_else(|| self.producer());
        if c.leg.is_none()
            && let Some(at) = self.runs.iter().rposition(|r| r.digests.contains_key("model"))
        {
            self.answered.insert(at);
        }
        let labelled = detect::label(&c);
        // Texts, ids and probabilities have served the detectors; a long soak must fit in memory.
        c.token_ids = None;
        c.logprobs = None;
        c.text = c.text.map(|_| String::new());
        c.text_tail = c.text_tail.map(|_| String::new());
        let leg = self.leg(&name);
        leg.completions.push(c);
        leg.labels.push(labelled);
    }

    /// The leg of what names none.
    fn producer(&self) -> String {
        if self.producers > 1 { format!("producer {}", self.producers) } else { String::new() }
    }

    /// The leg of this name, made if it is new.
    pub fn leg(&mut self, name: &str) -> &mut Leg {
        let at = *self.open.entry(name.to_owned()).or_insert_with(|| {
            self.legs.push(Leg { name: name.to_owned(), ..Leg::default() });
            self.legs.len() - 1
        });
        &mut self.legs[at]
    }

    /// Where a log's records wait until [`Case::finish`] knows whose log it is.
    fn of_source(&mut self, file: &str) -> &mut Leg {
        self.leg(&format!("\0{file}"))
    }

    /// Logs whose records are waiting for [`Case::finish`].
    pub fn log_files(&self) -> impl Iterator<Item = &str> {
        self.legs.iter().filter_map(|l| l.name.strip_prefix('\0')).filter(|f| !f.is_empty())
    }

    /// Brings order in: logs go to their legs, replies are sorted by ordinal and compared across runs.
    pub fn finish(&mut self) {
        let (logs, mut legs): (Vec<Leg>, Vec<Leg>) =
            std::mem::take(&mut self.legs).into_iter().partition(|l| l.name.starts_with('\0'));
        self.open.clear();
        for log in logs {
            let file = log.name.trim_start_matches('\0').to_owned();
            let at = owner(&legs, &file);
            let leg = match at {
                Some(at) => &mut legs[at],
                None => {
                    legs.push(Leg { name: folder(&file).unwrap_or(&file).to_owned(), ..Leg::default() });
                    let last = legs.len() - 1;
                    &mut legs[last]
                }
            };
            leg.pools.extend(log.pools);
            leg.log.extend(log.log);
            leg.log_lines += log.log_lines;
            for (event, n) in log.log_events {
                *leg.log_events.entry(event).or_default() += n;
            }
            leg.dispatch.extend(log.dispatch);
        }
        for leg in &mut legs {
            leg.settle();
            leg.drop_copies();
        }
        self.legs = legs;
    }

    /// Legs that hold replies.
    pub fn with_completions(&self) -> impl Iterator<Item = &Leg> {
        self.legs.iter().filter(|l| !l.completions.is_empty())
    }

    /// Findings of severity `error`.
    pub fn errors(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|f| f.severity == Severity::Error)
    }

    /// All dispatch decisions, whatever their leg.
    pub fn dispatch(&self) -> impl Iterator<Item = &Dispatch> {
        self.legs.iter().flat_map(|l| &l.dispatch)
    }
}

/// What a line of a log said, and where, as one number; nothing for records that stand in no log.
fn place(record: &Record) -> Option<u64> {
    let mut h = DefaultHasher::new();
    record.kind().hash(&mut h);
    let mut at = |s: &Source| (&s.file, s.line, s.byte, &s.process, &s.timestamp).hash(&mut h);
    match record {
        Record::Dispatch(d) => {
            at(&d.source);
            (&d.layer_name, d.layer_idx, d.num_seqs, d.is_decode_only).hash(&mut h);
            (d.use_beta_coop, d.use_beta_lite, &d.path, &d.outcome, &d.reason).hash(&mut h);
        }
        Record::Event(e) => {
            at(&e.source);
            (&e.event, &e.fields).hash(&mut h);
        }
        Record::Pool(p) => {
            at(p.source.as_ref()?);
            (p.num_blocks, p.block_bytes, p.token_bytes, &p.rule).hash(&mut h);
        }
        Record::Finding(f) => {
            f.at.as_ref()?.hash(&mut h);
            (&f.check, &f.message, f.ordinal, f.layer, &f.data).hash(&mut h);
        }
        _ => return None,
    }
    Some(h.finish())
}

/// The leg a log belongs to: the only one; else the one whose replies were read beside it.
fn owner(legs: &[Leg], file: &str) -> Option<usize> {
    if legs.len() == 1 {
        return Some(0);
    }
    if let Some(dir) = folder(file) {
        let beside = |l: &Leg| {
            l.name == dir
                || l.completions.iter().any(|c| c.source.as_deref().is_some_and(|s| within(s, file)))
        };
        if let Some(at) = legs.iter().position(beside) {
            return Some(at);
        }
    }
    // The stream's own log names no folder that results were read from.
    legs.iter().position(|l| l.name.is_empty())
}

/// True when a result file stands in the folder of a log, or below it.
fn within(result: &str, log: &str) -> bool {
    let dir = log.rsplit_once('/').map_or("", |(d, _)| d);
    !dir.is_empty() && result.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'))
}

/// Last folder of a path.
fn folder(file: &str) -> Option<&str> {
    let dir = file.rsplit_once('/')?.0;
    Some(dir.rsplit_once('/').map_or(dir, |(_, last)| last)).filter(|d| !d.is_empty())
}

impl Leg {
    fn settle(&mut self) {
        let replies = std::mem::take(&mut self.completions).into_iter().zip(std::mem::take(&mut self.labels));
        let mut replies: Vec<(Completion, Labelled)> = replies.collect();
        replies.sort_by_key(|(c, _)| c.ordinal);
        (self.completions, self.labels) = replies.into_iter().unzip();
        let refs: Vec<&Completion> = self.completions.iter().collect();
        detect::across(&refs, &mut self.labels);
    }

    /// Drops dispatch records of a saved audit (`dispatch_audit.json`) that the leg's own log holds as well.
    fn drop_copies(&mut self) {
        let saved = |d: &Dispatch| d.source.file.ends_with(".json");
        let said =
            |d: &Dispatch| (d.layer_idx, d.use_beta_coop, d.use_beta_lite, d.num_seqs, d.is_decode_only);
        let logged: BTreeSet<_> = self.dispatch.iter().filter(|d| !saved(d)).map(said).collect();
        self.dispatch.retain(|d| !saved(d) || !logged.contains(&said(d)));
    }

    /// Replies with their labels, by ordinal.
    pub fn replies(&self) -> impl Iterator<Item = (&Completion, &Labelled)> {
        self.completions.iter().zip(&self.labels)
    }

    /// What to call it on a page.
    pub fn title(&self) -> &str {
        if self.name.is_empty() { "this stream" } else { &self.name }
    }

    /// The runs, 0-based numbers in order.
    pub fn runs(&self) -> Vec<u64> {
        self.completions.iter().map(|c| c.run).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Questions of the prompt set, ascending: all up to the highest index, or, where most of these are nobody's, those
    /// that were asked.
    pub fn questions(&self) -> Vec<u64> {
        let asked: BTreeSet<u64> = self.completions.iter().map(|c| c.index).collect();
        let end = asked.last().map_or(0, |last| last.saturating_add(1));
        if end <= 2 * asked.len() as u64 + 100 { (0..end).collect() } else { asked.into_iter().collect() }
    }

    /// A score for each run.
    pub fn scores(&self) -> Vec<RunScore> {
        let mut by_run: BTreeMap<u64, RunScore> = BTreeMap::new();
        for (c, l) in self.replies() {
            let s = by_run.entry(c.run).or_insert_with(|| RunScore { run: c.run, ..RunScore::default() });
            // a reply that has no grade is neither right nor wrong; a request without a reply is wrong
            let asked = c.gold.is_some() && l.label != detect::Label::Cancelled && !has_output(c);
            s.n += u64::from(c.correct.is_some() || asked);
            s.correct += u64::from(c.correct == Some(true));
            s.errors += u64::from(l.label == detect::Label::ClientError);
            s.degenerate += u64::from(l.degenerate());
        }
        by_run.into_values().collect()
    }

    /// Ordinals of replies that collapsed into one token.
    pub fn degenerate(&self) -> Vec<u64> {
        self.replies().filter(|(_, l)| l.degenerate()).map(|(c, _)| c.ordinal).collect()
    }

    /// The pool with the most to say, if any was reported.
    pub fn pool(&self) -> Option<&Pool> {
        self.pools.iter().rev().max_by_key(|p| {
            [p.num_blocks, p.block_bytes, p.block_size, p.token_bytes, p.state_blocks_per_request]
                .iter()
                .flatten()
                .count()
        })
    }
}
