//! Sittings: how the engine is run, and what is heard of it.

use super::{DETECTORS, Museum};
use anyhow::{Context, bail};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::process::{Command, Stdio};

/// One way to run the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sitting {
    /// all probes in a storm, with the engine's checks
    Guards,
    /// all probes without fused paths, every sequence that ends computed once more
    Recompute,
    /// all probes in a light storm, watched by guards that read; the checks that would stop it are left out
    Watched,
    /// all probes on poisoned ground, in the same way
    Poisoned,
    /// all probes
    Probes,
    /// all probes in a storm, under pressure, on the paths where preempted replies keep their bits
    Storm,
    /// the fifty questions three times, the dispatch log held against expectations
    Soak,
    /// a few questions on `coop` and on `lite`
    Paths,
}

/// A detector's first word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// the request it names, if it names one
    pub ordinal: Option<u64>,
    /// requests that had been sent by then
    pub requests: u64,
    /// how often its slot had been recycled by then; where none is named, the slot recycled most
    pub recycles: u64,
}

/// What was heard in a sitting.
#[derive(Clone, Debug, Default)]
pub struct Hearing {
    /// the first word of each detector
    pub heard: BTreeMap<&'static str, Heard>,
    /// findings of severity error, and last words, that no detector stands for
    pub others: Vec<String>,
    /// replies
    pub requests: u64,
    /// slots handed out again
    pub recycles: u64,
}

/// Small pages and steps: many boundaries in few tokens.
const SMALL: &[&str] = &["--max-model-len", "96", "--page-size", "16", "--max-num-batched-tokens", "40"];
const PROBES: &[&str] = &["--probe", "aba,codeword,boundary,canary"];
const STORM: &[&str] = &["--storm", "cancel,preempt", "--storm-every", "12"];
const QUESTIONS: &[&str] = &["--prompts", "examples/arith-50.jsonl"];

impl Sitting {
    /// Every sitting.
    pub const ALL: &[Sitting] = &[
        Sitting::Guards,
        Sitting::Recompute,
        Sitting::Watched,
        Sitting::Poisoned,
        Sitting::Probes,
        Sitting::Storm,
        Sitting::Soak,
        Sitting::Paths,
    ];

    /// Whether what sees into the engine is listened to.
    pub fn is_white(self) -> bool {
        matches!(self, Sitting::Guards | Sitting::Recompute | Sitting::Watched | Sitting::Poisoned)
    }

    /// Whether the engine has its own checks, too.
    pub fn is_checked(self) -> bool {
        matches!(self, Sitting::Guards | Sitting::Recompute)
    }

    /// Options without a value.
    fn switches(self) -> &'static [&'static str] {
        if self == Sitting::Poisoned { &["--poison", "--trace-nonfinite"] } else { &[] }
    }

    /// The options of its runs of `cute-generate`, one after the other on fresh engines. Each has a value.
    fn runs(self) -> Vec<Vec<&'static str>> {
        match self {
            Sitting::Guards => vec![[SMALL, PROBES, STORM, &["--guard", "slot0"]].concat()],
            Sitting::Recompute => {
                vec![[SMALL, PROBES, &["--phase-e-fusion", "0", "--guard", "recompute,slot0"]].concat()]
            }
            Sitting::Watched => {
                let light = ["--storm", "cancel,preempt", "--storm-every", "60"];
                let guards = ["--guard", "rows,slot0,capture", "--trace", "requests"];
                vec![[SMALL, PROBES, &light, &guards].concat()]
            }
            Sitting::Poisoned | Sitting::Probes => vec![[SMALL, PROBES].concat()],
            Sitting::Storm => {
                let storm = ["--storm", "cancel,preempt", "--pressure", "4x", "--phase-e-fusion", "0"];
                vec![[SMALL, PROBES, &storm].concat()]
            }
            Sitting::Soak => vec![[QUESTIONS, &["--runs", "3", "--max-tokens", "100"]].concat()],
            Sitting::Paths => ["coop", "lite"]
                .map(|path| {
                    [QUESTIONS, &["--limit", "6", "--max-tokens", "24", "--phase-e-path", path]].concat()
                })
                .to_vec(),
        }
    }

    /// What the auditor is to expect of the dispatch log, where one path is taken throughout.
    fn expects(self) -> &'static [&'static str] {
        match self {
            Sitting::Recompute | Sitting::Storm | Sitting::Paths => &[],
            _ => &["--expect-coop-layers", "3,7,11"],
        }
    }
}

impl Museum {
    /// Runs a sitting and listens. Options come behind the sitting's own and take their place; what the tools write is
    /// left in a folder of the name of `what`.
    ///
    /// # Errors
    /// When a tool cannot be run, or its output cannot be read.
    pub fn sit(&self, what: &str, sitting: Sitting, options: &[&str], seed: u64) -> anyhow::Result<Hearing> {
        let folder = self.scratch.join(what);
        std::fs::create_dir_all(&folder)?;
        let name = |what: &str| folder.join(format!("{sitting:?}.{what}").to_lowercase());
        let seed = seed.to_string();
        let (mut words, mut records, mut codes) = (String::new(), Vec::new(), Vec::new());
        for (i, run) in sitting.runs().iter().enumerate() {
            let log = name(&format!("{i}.log"));
            let mut generate = self.tool("cute-generate");
            generate.args(["--device", "cpu", "--model", "examples/tiny-hybrid", "--seed", &seed]);
            generate.args(merged(run, options));
            generate.args(sitting.switches().iter().filter(|switch| !options.contains(switch)));
            if run.contains(&"--storm") {
                generate.args(["--storm-seed", &seed]);
            }
            let out = generate
                .stdin(Stdio::null())
                .stderr(File::create(&log)?)
                .output()
                .with_context(|| format!("running cute-generate from {}", self.tools.display()))?;
            codes.push(out.status.code());
            records.extend(out.stdout);
            words.push_str(&std::fs::read_to_string(&log)?);
        }
        let stream = name("jsonl");
        std::fs::write(&stream, records)?;
        let mut audit = self.tool("cute-audit");
        audit.arg("--quiet").args(sitting.expects());
        if !sitting.expects().is_empty() {
            audit.arg("--dispatch").arg(name("0.log"));
        }
        let audit = audit.stdin(File::open(&stream)?).stderr(Stdio::piped()).output()?;
        if codes.iter().any(|c| !matches!(c, Some(0..=2))) || !matches!(audit.status.code(), Some(0 | 1 | 3))
        {
            bail!("exit codes {codes:?} and {:?}: {words}", audit.status.code());
        }
        let mut hearing = listen(std::str::from_utf8(&audit.stdout)?, &words, codes.contains(&Some(2)))?;
        if sitting == Sitting::Soak {
            std::fs::write(&stream, audit.stdout)?;
            let verdict = self.tool("cute-verdict").arg("--quiet").stdin(File::open(&stream)?).output()?;
            if let Some(ordinal) = cusum(std::str::from_utf8(&verdict.stdout)?)? {
                hearing.first("cusum", Heard { ordinal: Some(ordinal), requests: ordinal + 1, recycles: 0 });
            }
        }
        Ok(hearing)
    }

    fn tool(&self, name: &str) -> Command {
        let mut command = Command::new(self.tools.join(name));
        command.current_dir(&self.root);
        for (name, _) in std::env::vars_os().filter(|(n, _)| n.to_string_lossy().starts_with("CUTE_")) {
            command.env_remove(name);
        }
        command
    }
}

/// The sitting's options, with those of the caller in their place.
fn merged<'a>(run: &[&'a str], options: &[&'a str]) -> Vec<&'a str> {
    let own = run.chunks(2).filter(|pair| !options.contains(&pair[0])).flatten();
    own.chain(options).copied().collect()
}

/// The request at which the cumulative sum of wrong answers says that they have become more frequent.
fn cusum(judged: &str) -> anyhow::Result<Option<u64>> {
    let Some(line) = judged.lines().find(|l| l.starts_with("{\"type\":\"verdict\"")) else { return Ok(None) };
    let verdict: Value = serde_json::from_str(line)?;
    Ok(verdict["details"]["legs"][0]["cusum"]["alarm_ordinal"].as_u64())
}

/// Who spoke, and when: findings in an audited stream, and the last words of an engine that ended in trouble.
fn listen(audited: &str, words: &str, ended_in_trouble: bool) -> anyhow::Result<Hearing> {
    let mut out = Hearing::default();
    let mut epochs: Vec<(u64, u64)> = Vec::new();
    let mut findings = Vec::new();
    for line in audited.lines() {
        let r: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        match r["type"].as_str() {
            Some("completion") => out.requests += 1,
            Some("state") if r["op"] == "acquire" => {
                let (ordinal, epoch) = (r["ordinal"].as_u64(), r["epoch"].as_u64());
                epochs.extend(ordinal.zip(epoch));
                out.recycles += u64::from(epoch > Some(1));
            }
            Some("finding") if r["severity"] == "error" => findings.push((r, out.requests)),
            _ => {}
        }
    }
    let recycles =
        |until: u64| epochs.iter().filter(|(o, _)| *o <= until).map(|(_, e)| e - 1).max().unwrap_or(0);
    // what a run that ended in trouble said last
    let last = words.lines().rfind(|l| l.starts_with("cute-generate: ")).filter(|_| ended_in_trouble);
    let mut told = false;
    for (f, sent) in findings {
        let ended_it = f["message"].as_str().is_some_and(|m| last.is_some_and(|last| last.ends_with(m)));
        told |= ended_it;
        let check = f["check"].as_str().unwrap_or_default();
        let ordinal = f["ordinal"].as_u64();
        let requests = ordinal.map_or(sent, |o| o + 1);
        // a guard names the epoch of the slot it speaks of, 1 for the first use
        let recycles = match f["data"]["epoch"].as_u64() {
            Some(epoch) => epoch.saturating_sub(1),
            None if ended_it => recycles(u64::MAX),
            None => recycles(ordinal.unwrap_or(0)),
        };
        let heard = Heard { ordinal, requests, recycles };
        match DETECTORS.iter().find(|d| d.findings.contains(&check)) {
            Some(d) => out.first(d.column, heard),
            None => out.others.push(f["message"].as_str().unwrap_or(check).to_owned()),
        }
    }
    if ended_in_trouble && !told {
        let last = last.unwrap_or(words);
        let heard = Heard { ordinal: None, requests: out.requests, recycles: recycles(u64::MAX) };
        match DETECTORS.iter().find(|d| d.words.iter().any(|w| last.contains(w))) {
            Some(d) => out.first(d.column, heard),
            None => out.others.push(last.to_owned()),
        }
    }
    Ok(out)
}

impl Hearing {
    fn first(&mut self, column: &'static str, heard: Heard) {
        let first = self.heard.entry(column).or_insert(heard);
        if heard.requests < first.requests {
            *first = heard;
        }
    }
}
