//! The journal of a run: what is finished, kept on disk, so that a run that was killed can go on.
//!
//! `DIR/journal.jsonl` opens with a head: what the run wrote before its first request. Then comes one line for each
//! step in which a reply ended, with the replies, the `state` records since the line before, and the time spent. A
//! line is one write, made before anything of it is on stdout, so killing the process loses nothing that was seen. The
//! disk is asked to keep it ([`SYNC`]) once a second and at the end: that is what a loss of power can cost. The lines are a
//! [`Chain`]: none is believed that is not what was written.
//!
//! A resumed run makes the same steps again. Up to the last one of the journal it computes only what the journal
//! lacks ([`Engine::replay`](cute_engine::Engine::replay)); what is written comes from the journal, durations included.

use crate::chain::Chain;
use anyhow::{Context, bail, ensure};
use cute_engine::backend::Backend;
use cute_engine::engine::Totals;
use cute_engine::{Engine, Known};
use cute_records::{Completion, FinishReason, Line, Parsed, Reader, Record, Run, State, write};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, TryLockError};
use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The version of the journal's format.
const FORMAT: u32 = 2;

/// Longest time that lines written wait for the disk to be asked for them.
const SYNC: Duration = Duration::from_secs(1);

/// Settings whose contents are compared by digest, not by name.
const BY_DIGEST: [&str; 2] = ["model", "prompts"];

/// The first line.
#[derive(Serialize, Deserialize)]
struct Head {
    /// version of this format
    journal: u32,
    /// input lines that could not be read
    bad_lines: u64,
    /// every line of stdout before the first request
    opening: String,
}

/// Each other line: a step in which a reply ended.
#[derive(Default, Serialize, Deserialize)]
struct Entry {
    /// steps of the engine so far, this one included
    step: u64,
    /// what they took
    spent: Spent,
    /// what happened to slots since the entry before
    states: Vec<State>,
    /// the replies that ended, in the order in which they did
    replies: Vec<Completion>,
    /// the tokens of each, when they are streamed: their chunks are made of them again
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tokens: Vec<Vec<u32>>,
}

/// What the steps took: durations of [`Totals`] in nanoseconds, launches and workspace resets of the fused paths.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
pub struct Spent {
    /// journals from before it was known have none
    #[serde(default)]
    load_ns: u64,
    prefill_ns: u64,
    decode_ns: u64,
    zero_check_ns: u64,
    launches: u64,
    resets: u64,
}

/// A journal, or none: then nothing is known and nothing is written down.
#[derive(Default)]
pub struct Journal {
    dir: PathBuf,
    file: Option<File>,
    chain: Chain,
    /// when the disk was last asked to keep the file
    synced: Option<Instant>,
    /// the open directory: its lock keeps a second process away
    lock: Option<File>,
    head: Option<Head>,
    known: BTreeMap<u64, Known>,
    replies: BTreeMap<u64, Completion>,
    states: VecDeque<State>,
    /// the last step that an earlier process wrote down, and what the steps up to it took
    last: u64,
    before: Spent,
    /// what catching up to that step took this process
    catching_up: Spent,
    entry: Entry,
}

impl Journal {
    /// Opens the journal of a directory, reading what it holds.
    ///
    /// # Errors
    /// When a journal is there and is not to be resumed, belongs to a running process, or cannot be read.
    pub fn open(dir: &Path, resume: bool) -> anyhow::Result<Self> {
        let name = dir.display();
        fs::create_dir_all(dir).with_context(|| format!("cannot make the journal's directory {name}"))?;
        let lock = File::open(dir).with_context(|| format!("cannot open the journal's directory {name}"))?;
        // where a file system knows no locks there is no such protection
        if let Err(TryLockError::WouldBlock) = lock.try_lock() {
            bail!("{name} holds the journal of a process that is still running");
        }
        let mut journal = Journal { dir: dir.to_owned(), lock: Some(lock), ..Journal::default() };
        let path = journal.path();
        let there = path.try_exists().with_context(|| format!("cannot look for {}", path.display()))?;
        match (there, resume) {
            (true, false) => bail!(
                "{} is there already: give --resume to go on with that run, or name another directory",
                path.display()
            ),
            (true, true) => journal.read().map(|()| journal),
            (false, true) => {
                say(&format!("{name} holds no journal yet: the run starts at its beginning"));
                Ok(journal)
            }
            (false, false) => Ok(journal),
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.join("journal.jsonl")
    }

    fn read(&mut self) -> anyhow::Result<()> {
        let path = self.path();
        let name = path.display().to_string();
        let (file, cut) = write::append(&path).with_context(|| format!("cannot open {name}"))?;
        if cut > 0 {
            say(&format!("{name}: its last line was cut off; {cut} bytes of it are dropped"));
        }
        self.file = Some(file);
        let lines = Reader::new(&name, BufReader::new(File::open(&path)?)).max_line(usize::MAX >> 1);
        for line in lines {
            let line = line?;
            if self.head.is_some() {
                self.chain.check(&line)?;
                self.recall(&line)?;
                continue;
            }
            let head: Head = line.json()?;
            ensure!(
                head.journal == FORMAT,
                "{name} has format {}: this build reads format {FORMAT}",
                head.journal
            );
            self.chain.check(&line)?;
            self.head = Some(head);
        }
        ensure!(self.head.is_some(), "{name} is empty: it has no head");
        let replies = self.replies.len();
        say(&format!("{name} holds {replies} replies of {} steps", self.last));
        Ok(())
    }

    fn recall(&mut self, line: &Line) -> anyhow::Result<()> {
        let entry: Entry = line.json()?;
        if entry.step <= self.last {
            return Err(line.error(format!("step {} after step {}", entry.step, self.last)).into());
        }
        (self.last, self.before) = (entry.step, entry.spent);
        self.states.extend(entry.states);
        let (streamed, n) = (!entry.tokens.is_empty(), entry.tokens.len());
        if streamed && n != entry.replies.len() {
            let replies = entry.replies.len();
            return Err(line.error(format!("the tokens of {n} replies, and {replies} replies")).into());
        }
        let mut tokens = entry.tokens.into_iter();
        for reply in entry.replies {
            let token_ids = tokens.next().unwrap_or_default();
            let generated = reply.completion_tokens.unwrap_or_default();
            if streamed && token_ids.len() as u64 != generated {
                let n = token_ids.len();
                return Err(line.error(format!("{n} tokens of a reply that has {generated}")).into());
            }
            let known = Known {
                tokens: generated as usize,
                finish_reason: reply.finish_reason.unwrap_or(FinishReason::Error),
                token_ids,
            };
            self.known.insert(reply.ordinal, known);
            if let Some(twice) = self.replies.insert(reply.ordinal, reply) {
                return Err(line.error(format!("a second reply to request {}", twice.ordinal)).into());
            }
        }
        Ok(())
    }

    /// Begins with what stands before the first request: writes it down, or compares it with what was written down.
    /// Returns what belongs on stdout.
    ///
    /// # Errors
    /// When the journal is that of another run, naming each difference, or cannot be written.
    pub fn begin(&mut self, run: &Run, bad_lines: u64, opening: String) -> anyhow::Result<String> {
        let name = self.path().display().to_string();
        match (&self.lock, self.head.take()) {
            (None, _) => Ok(opening),
            (_, None) => self.create(&Head { journal: FORMAT, bad_lines, opening }),
            (_, Some(head)) => {
                let mut differences = differences(&run_of(&name, &head.opening)?, run);
                if head.bad_lines != bad_lines {
                    let then = head.bad_lines;
                    differences.push(format!("{then} unreadable line(s) of input, now {bad_lines}"));
                }
                ensure!(
                    differences.is_empty(),
                    "{name} is the journal of another run: {}",
                    differences.join("; ")
                );
                Ok(head.opening)
            }
        }
    }

    /// Writes a journal with nothing but its head, whole or not at all.
    fn create(&mut self, head: &Head) -> anyhow::Result<String> {
        let (path, new) = (self.path(), self.dir.join("journal.jsonl.new"));
        let mut write = || {
            let mut file = File::create(&new)?;
            file.write_all(&self.chain.seal(head)?)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            self.lock.as_ref().map_or(Ok(()), File::sync_all)?;
            std::io::Result::Ok(file)
        };
        let file = write().with_context(|| format!("cannot write {}", path.display()))?;
        self.file = Some(file);
        Ok(head.opening.clone())
    }

    /// What is known of the steps to come, while there is any that an earlier process has made.
    pub fn known(&self, steps: u64) -> Option<&BTreeMap<u64, Known>> {
        (steps < self.last).then_some(&self.known)
    }

    /// Takes note of a `state` record. Returns what belongs on stdout.
    ///
    /// # Errors
    /// When the journal has another record in its place.
    pub fn state(&mut self, state: State, steps: u64) -> anyhow::Result<State> {
        if self.known(steps).is_none() {
            if self.file.is_some() {
                self.entry.states.push(state.clone());
            }
            return Ok(state);
        }
        let event = |s: &State| (s.op.clone(), s.ordinal, s.slot, s.epoch, s.free);
        match self.states.pop_front() {
            Some(recorded) if event(&recorded) == event(&state) => Ok(recorded),
            other => Err(self.astray(&format!("{state:?} comes where it has {other:?}"))),
        }
    }

    /// Takes note of a reply, and of its tokens where they are streamed. Returns what belongs on stdout.
    ///
    /// # Errors
    /// When the journal has no such reply where it should have.
    pub fn reply(
        &mut self,
        reply: Completion,
        token_ids: Option<Vec<u32>>,
        steps: u64,
    ) -> anyhow::Result<Completion> {
        if self.known(steps).is_none() {
            if self.file.is_some() {
                self.entry.replies.push(reply.clone());
                self.entry.tokens.extend(token_ids);
            }
            return Ok(reply);
        }
        let place = |c: &Completion| {
            let request = (c.id.clone(), c.prompt_sha256.clone(), c.sampling_sha256.clone());
            (request, c.completion_tokens, c.slot, c.epoch, c.kv_pages.clone())
        };
        match self.replies.remove(&reply.ordinal) {
            Some(recorded) if place(&recorded) == place(&reply) => Ok(recorded),
            Some(_) => Err(self.astray(&format!("its reply {} is another request's", reply.ordinal))),
            None => Err(self.astray(&format!("it lacks reply {}", reply.ordinal))),
        }
    }

    /// Ends a step: what it finished is in the journal when this returns.
    ///
    /// # Errors
    /// When the journal cannot be written, or did not hold what the steps up to here have made.
    pub fn step(&mut self, before: u64, steps: u64, spent: Spent) -> anyhow::Result<()> {
        if before < self.last {
            if steps == self.last {
                self.catching_up = spent;
                if !self.replies.is_empty() || !self.states.is_empty() {
                    let (replies, states) = (self.replies.len(), self.states.len());
                    let left = format!("{replies} replies and {states} states of it have not come");
                    return Err(self.astray(&left));
                }
            }
            return Ok(());
        }
        if self.entry.replies.is_empty() {
            return Ok(());
        }
        let spent = self.work(spent);
        let entry = Entry { step: steps, spent, ..std::mem::take(&mut self.entry) };
        let path = self.path();
        let Some(file) = &mut self.file else { return Ok(()) };
        let written = self.chain.seal(&entry).and_then(|line| file.write_all(&line));
        written.with_context(|| trouble(&path))?;
        if self.synced.get_or_insert_with(Instant::now).elapsed() >= SYNC { self.sync() } else { Ok(()) }
    }

    /// Waits until what was written is on the disk.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn sync(&mut self) -> anyhow::Result<()> {
        self.synced = Some(Instant::now());
        let kept = self.file.as_ref().map_or(Ok(()), File::sync_data);
        kept.with_context(|| trouble(&self.path()))
    }

    /// What the work took, by whichever process did it, without catching up.
    pub fn work(&self, now: Spent) -> Spent {
        let (b, c) = (&self.before, &self.catching_up);
        Spent {
            load_ns: b.load_ns.saturating_add(now.load_ns.saturating_sub(c.load_ns)),
            prefill_ns: b.prefill_ns.saturating_add(now.prefill_ns.saturating_sub(c.prefill_ns)),
            decode_ns: b.decode_ns.saturating_add(now.decode_ns.saturating_sub(c.decode_ns)),
            zero_check_ns: b.zero_check_ns.saturating_add(now.zero_check_ns.saturating_sub(c.zero_check_ns)),
            launches: b.launches.saturating_add(now.launches.saturating_sub(c.launches)),
            resets: b.resets.saturating_add(now.resets.saturating_sub(c.resets)),
        }
    }

    fn astray(&self, how: &str) -> anyhow::Error {
        anyhow::anyhow!("{} does not fit the steps of this run: {how}", self.path().display())
    }
}

impl Spent {
    /// What an engine has spent so far.
    pub fn of<B: Backend>(engine: &Engine<B>) -> Self {
        let nanos = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        let (totals, (launches, resets)) = (engine.totals(), engine.launches());
        Spent {
            load_ns: nanos(totals.load),
            prefill_ns: nanos(totals.prefill),
            decode_ns: nanos(totals.decode),
            zero_check_ns: nanos(totals.zero_check),
            launches,
            resets,
        }
    }

    /// Totals with these durations.
    pub fn totals(&self, totals: Totals) -> Totals {
        Totals {
            load: Duration::from_nanos(self.load_ns),
            prefill: Duration::from_nanos(self.prefill_ns),
            decode: Duration::from_nanos(self.decode_ns),
            zero_check: Duration::from_nanos(self.zero_check_ns),
            ..totals
        }
    }

    /// Launches and workspace resets.
    pub fn launches(&self) -> (u64, u64) {
        (self.launches, self.resets)
    }
}

/// The `run` record that opens a stream.
fn run_of(name: &str, opening: &str) -> anyhow::Result<Run> {
    let first = Reader::new(name, opening.as_bytes()).next().transpose()?;
    if let Some(Parsed::Known(record)) = first.map(|line| line.parse()).transpose()?
        && let Record::Run(run) = *record
    {
        return Ok(run);
    }
    bail!("{name} does not open with a run record")
}

/// What keeps `now` from being the run that `then` was. Where a value came from is no difference.
fn differences(then: &Run, now: &Run) -> Vec<String> {
    let mut out = Vec::new();
    let mut compare = |name: &str, then: &str, now: &str| {
        if then != now {
            out.push(format!("{name} was {then}, is {now}"));
        }
    };
    compare("the version", &then.version, &now.version);
    compare("the device", then.device.as_deref().unwrap_or("-"), now.device.as_deref().unwrap_or("-"));
    let names = |a: Vec<&String>, b: Vec<&String>| -> Vec<String> {
        let mut all: Vec<String> = a.into_iter().chain(b).cloned().collect();
        all.sort();
        all.dedup();
        all
    };
    for name in names(then.config.keys().collect(), now.config.keys().collect()) {
        let value = |run: &Run| run.config.get(&name).map_or("unset".to_owned(), |s| s.value.to_string());
        if !BY_DIGEST.contains(&name.as_str()) {
            compare(&format!("--{}", name.replace('_', "-")), &value(then), &value(now));
        }
    }
    for name in names(then.digests.keys().collect(), now.digests.keys().collect()) {
        let digest = |run: &Run| run.digests.get(&name).map_or("none".to_owned(), |d| d.clone());
        compare(&format!("the digest of the {name}"), &digest(then), &digest(now));
    }
    out
}

fn trouble(path: &Path) -> String {
    format!("cannot write {} (it can be resumed once that is mended)", path.display())
}

fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "cute-generate: {text}");
}
