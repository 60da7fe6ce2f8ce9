//! Everything known about the configuration of one leg, and what in it contradicts itself.

use super::names::{ENGINE, ENVIRONMENT, EVALUATION, RECORDED, SILENT, spell};
use crate::adapters::{self, Error};
use cute_records::{Completion, Dispatch, Event, Finding, Pool, Record, Severity};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Who says a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Says {
    /// arguments and environment: what was asked for
    Requested,
    /// the server's own log: what took effect
    Effective,
    /// result files: what somebody wrote down
    Recorded,
}

/// A value and where it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// the value, in one spelling
    pub value: String,
    /// `file:line`
    pub at: String,
}

/// What is known about one knob.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Knob {
    /// the first value each side says
    pub values: BTreeMap<Says, Sighting>,
}

impl Knob {
    /// The value one side says.
    pub fn says(&self, who: Says) -> Option<&str> {
        self.values.get(&who).map(|s| s.value.as_str())
    }

    /// The value that counts: what took effect, else what was asked for, else what was written down.
    pub fn value(&self) -> Option<&str> {
        self.says(Says::Effective).or(self.says(Says::Requested)).or(self.says(Says::Recorded))
    }

    /// For a table: `align → none` where asking and effect differ.
    pub fn cell(&self) -> String {
        match (self.says(Says::Requested).or(self.says(Says::Recorded)), self.says(Says::Effective)) {
            (Some(asked), Some(got)) if asked != got => format!("{asked} → {got}"),
            _ => self.value().unwrap_or("-").to_owned(),
        }
    }
}

/// Everything known about one leg.
#[derive(Clone, Debug, Default)]
pub struct Leg {
    /// name of the leg: its directory or file
    pub name: String,
    /// knobs by name
    pub knobs: BTreeMap<String, Knob>,
    /// what came out: scores, totals, pool figures
    pub outcomes: BTreeMap<String, Sighting>,
    /// what the leg's own evidence contradicts
    pub findings: Vec<Finding>,
    pub(super) dispatches: Vec<Dispatch>,
    pub(super) boots: u64,
    pub(super) has_log: bool,
}

impl Leg {
    /// Gathers a leg from its directory, or from one file of it: log, environment, verdict, results.
    ///
    /// # Errors
    /// When nothing there is understood.
    pub fn read(path: &Path) -> Result<Leg, Error> {
        let evidence = adapters::read(path)?;
        let name = if path.is_dir() {
            adapters::leg_name(path)
        } else {
            path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default()
        };
        let mut leg = Leg { name, ..Leg::default() };
        evidence.records.iter().for_each(|r| leg.note(r));
        for log in &evidence.logs {
            let (records, _) = crate::logs::read(log)
                .map_err(|e| Error::Bad { file: log.display().to_string(), message: e.to_string() })?;
            records.iter().for_each(|r| leg.note(r));
        }
        leg.completions(evidence.completions.iter());
        leg.check();
        Ok(leg)
    }

    /// Gathers a leg from records.
    pub fn from_records<'a>(name: &str, records: impl IntoIterator<Item = &'a Record>) -> Leg {
        let mut leg = Leg { name: name.to_owned(), ..Leg::default() };
        let mut replies = Vec::new();
        for record in records {
            match record {
                Record::Completion(c) => replies.push(c),
                other => leg.note(other),
            }
        }
        leg.completions(replies.into_iter());
        leg.check();
        leg
    }

    pub(super) fn set(&mut self, knob: &str, who: Says, value: &Value, at: &str) {
        let Some(value) = spell(knob, value) else { return };
        let sighting = Sighting { value, at: at.to_owned() };
        let first = self
            .knobs
            .entry(knob.to_owned())
            .or_default()
            .values
            .entry(who)
            .or_insert_with(|| sighting.clone());
        if first.value != sighting.value {
            let message = format!(
                "{knob} is {} here and {} at {}: two configurations in one leg",
                sighting.value, first.value, first.at
            );
            self.find("knob_changes_within_leg", Severity::Warning, at, message);
        }
    }

    pub(super) fn find(&mut self, check: &str, severity: Severity, at: &str, message: String) {
        if self.findings.iter().any(|f| f.check == check && f.message.ends_with(&message)) {
            return;
        }
        self.findings.push(Finding {
            check: check.to_owned(),
            severity,
            message: format!("{}: {message}", self.name),
            ordinal: None,
            layer: None,
            at: Some(at.to_owned()),
            data: BTreeMap::new(),
        });
    }

    fn outcome(&mut self, name: &str, value: String, at: &str) {
        self.outcomes.entry(name.to_owned()).or_insert(Sighting { value, at: at.to_owned() });
    }

    fn note(&mut self, record: &Record) {
        match record {
            Record::Event(e) => self.event(e),
            Record::Pool(p) => self.pool(p),
            Record::Dispatch(d) => self.dispatches.push(d.clone()),
            Record::Run(run) => {
                let at = format!("run record of {}", run.tool);
                for (name, setting) in &run.config {
                    self.set(&format!("{}.{name}", run.tool), Says::Effective, &setting.value, &at);
                }
                for (name, digest) in &run.digests {
                    self.set(&format!("digest.{name}"), Says::Effective, &Value::from(digest.as_str()), &at);
                }
                for (name, value) in [("device", &run.device), ("fault", &run.fault)] {
                    if let Some(value) = value {
                        self.set(name, Says::Effective, &Value::from(value.as_str()), &at);
                    }
                }
            }
            _ => {}
        }
    }

    fn event(&mut self, e: &Event) {
        let at = format!("{}:{}", e.source.file, e.source.line);
        let table = |leg: &mut Leg, table: &[(&str, &str)], who: Says| {
            for (field, knob) in table {
                if let Some(value) = e.fields.get(*field) {
                    leg.set(knob, who, value, &at);
                }
            }
        };
        self.has_log |= e.pack != crate::adapters::PACK;
        match e.event.as_str() {
            "environment" => {
                for (name, value) in &e.fields {
                    let knob = ENVIRONMENT.iter().find(|(n, _)| n == name).map_or(name.as_str(), |(_, k)| k);
                    self.set(knob, Says::Requested, value, &at);
                }
            }
            "recorded_verdict" => {
                table(self, RECORDED, Says::Recorded);
                self.scores(e, &at);
            }
            "manifest" => table(self, RECORDED, Says::Recorded),
            "evaluation" => table(self, EVALUATION, Says::Recorded),
            "args" => {
                self.boots += 1;
                for (name, value) in e.fields.iter().filter(|(n, _)| !SILENT.contains(&n.as_str())) {
                    match value {
                        Value::Object(map) if name == "compilation_config" => {
                            for inner in ["cudagraph_mode", "cudagraph_capture_sizes"] {
                                self.set(inner, Says::Requested, map.get(inner).unwrap_or(&Value::Null), &at);
                            }
                        }
                        _ => self.set(name, Says::Requested, value, &at),
                    }
                }
            }
            "engine_config" => {
                table(self, ENGINE, Says::Effective);
                table(self, &[("version", "engine_version")], Says::Effective);
                if let Some(Value::Object(map)) = e.fields.get("compilation_config") {
                    for inner in ["cudagraph_mode", "cudagraph_capture_sizes"] {
                        self.set(inner, Says::Effective, map.get(inner).unwrap_or(&Value::Null), &at);
                    }
                }
            }
            "version" => {
                table(self, &[("version", "version")], Says::Effective);
                let version = e.fields.get("version").and_then(Value::as_str).unwrap_or_default();
                if let Some(commit) = version.rsplit_once("+g").map(|(_, c)| c.split('.').next().unwrap_or(c))
                {
                    self.set("image_commit", Says::Effective, &Value::from(commit), &at);
                }
            }
            "attention_backend" => table(self, &[("backend", "attention_backend")], Says::Effective),
            "fallback_raise" => table(self, &[("value", "fallback_raise")], Says::Effective),
            "mlp_tile_preset" => table(self, &[("preset", "mlp_tile")], Says::Effective),
            "chunked_prefill" => {
                table(self, &[("max_num_batched_tokens", "max_num_batched_tokens")], Says::Effective)
            }
            "coop_construction_failed" => {
                let message =
                    "the cooperative kernel was not built: dispatch is disabled, and the server runs on";
                self.find("coop_not_built", Severity::Error, &at, message.to_owned());
            }
            "unknown_environment" => {
                let name = e.fields.get("variable").and_then(Value::as_str).unwrap_or("a variable");
                self.find(
                    "knob_without_effect",
                    Severity::Info,
                    &at,
                    format!("{name} is set and nobody reads it"),
                );
            }
            _ => {}
        }
    }

    fn pool(&mut self, p: &Pool) {
        let at =
            p.source.as_ref().map_or_else(|| "pool record".to_owned(), |s| format!("{}:{}", s.file, s.line));
        for (knob, value) in
            [("mamba_cache_mode", &p.mamba_cache_mode), ("kv_cache_dtype", &p.kv_cache_dtype)]
        {
            if let Some(value) = value {
                self.set(knob, Says::Effective, &Value::from(value.as_str()), &at);
            }
        }
        for (knob, value) in [("max_model_len", p.max_model_len), ("attention_block_size", p.block_size)] {
            if let Some(value) = value {
                self.set(knob, Says::Effective, &Value::from(value), &at);
            }
        }
        for (name, value) in [
            ("pool_blocks", p.num_blocks),
            ("pool_tokens", p.kv_cache_tokens),
            ("pool_bytes", p.available_bytes),
        ] {
            if let Some(value) = value {
                self.outcome(name, value.to_string(), &at);
            }
        }
    }

    fn scores(&mut self, e: &Event, at: &str) {
        if let Some(arm) = e.fields.get("arm").and_then(Value::as_str) {
            self.outcome("arm", arm.to_owned(), at);
        }
        let correct = |v: &Value| v.get("correct").map_or("-".to_owned(), Value::to_string);
        if let Some(runs) = e.fields.get("runs").and_then(Value::as_array) {
            self.outcome("correct", runs.iter().map(correct).collect::<Vec<_>>().join(" "), at);
        } else if let Some(n) = e.fields.get("gsm8k_correct").filter(|v| !v.is_null()) {
            self.outcome("correct", n.to_string(), at);
        }
        if let Some(Value::Object(totals)) = e.fields.get("token_summary") {
            for (name, value) in totals {
                self.outcome(name, value.to_string(), at);
            }
        }
    }

    fn completions<'a>(&mut self, replies: impl Iterator<Item = &'a Completion>) {
        let (mut runs, mut tokens): (BTreeMap<u64, u64>, Option<u64>) = (BTreeMap::new(), Some(0));
        let mut n = 0;
        for c in replies {
            n += 1;
            if let Some(correct) = c.correct {
                *runs.entry(c.run).or_default() += u64::from(correct);
            }
            tokens = tokens.zip(c.completion_tokens).map(|(a, b)| a.saturating_add(b));
        }
        if !runs.is_empty() {
            let words: Vec<String> = runs.values().map(u64::to_string).collect();
            self.outcome("correct", words.join(" "), "results");
        }
        if let Some(tokens) = tokens.filter(|_| n > 0) {
            self.outcome("sum_completion_tokens", tokens.to_string(), "results");
        }
    }
}

/// Layers of some dispatch decisions as a list.
pub(super) fn layer_list<'a>(dispatches: impl Iterator<Item = &'a Dispatch>) -> String {
    let layers: BTreeSet<u32> = dispatches.filter_map(|d| d.layer_idx).collect();
    layers.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}
