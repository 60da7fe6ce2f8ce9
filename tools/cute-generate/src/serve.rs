//! Feeds the engine and writes what comes out, in the order of the requests.

use crate::args::Args;
use crate::journal::{Journal, Spent};
use crate::loading::loading;
use crate::output;
use crate::probe::Probes;
use crate::storm::{Blow, Storm};
use anyhow::{Context, anyhow, ensure};
use cute_checkpoint::{ChatTemplate, Checkpoint, Tokenizer};
use cute_cli::{Exit, Stop};
use cute_engine::backend::Backend;
use cute_engine::pool::Entries as _;
use cute_engine::{Engine, EngineConfig, Event, Request};
use cute_records::digest::sha256_ids;
use cute_records::{
    Chunk, Completion, Count, Finding, FinishReason, Pool, Prompt, Record, Trace, Writer, answer,
};
use indicatif::ProgressBar;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

/// An engine and what belongs to it.
pub struct Server<'a, B: Backend> {
    args: &'a Args,
    engine: Engine<B>,
    tokenizer: Option<Arc<Tokenizer>>,
    template: Option<ChatTemplate>,
    /// bytes of weights that were read to load it
    loaded_bytes: u64,
    /// bytes of weights that a decode step reads; with experts that depends on the tokens
    weight_bytes: Option<u64>,
    bar: ProgressBar,
    requests: u64,
    errors: u64,
    guard_findings: u64,
    /// of replies that wait for their turn
    traces: BTreeMap<u64, Trace>,
    probes: Probes,
    storm: Storm,
}

/// How a run ended.
pub struct Outcome {
    /// prompts that could not be made into requests
    pub refused: u64,
    /// the exit code of the signal that stopped it, and how far it had come
    pub stopped: Option<(Exit, String)>,
    /// why the engine could not go on, if it could not
    pub failed: Option<anyhow::Error>,
}

/// What a completion says of its prompt, known before the reply.
struct Ticket {
    id: String,
    run: u64,
    index: u64,
    prompt_sha256: String,
    prompt_tokens: u64,
    sampling_sha256: String,
    gold: Option<String>,
}

impl<'a, B: Backend> Server<'a, B> {
    /// Loads the model and says on stderr what is out of the ordinary.
    pub fn start(
        backend: B,
        args: &'a Args,
        checkpoint: &Checkpoint,
        text: (Option<Arc<Tokenizer>>, Option<ChatTemplate>),
        config: EngineConfig,
        probes: Probes,
    ) -> anyhow::Result<Self> {
        let (tokenizer, template) = text;
        if let Some(fault) = config.fault {
            let _ = writeln!(
                std::io::stderr(),
                "cute-generate: FAULT INJECTED: {fault}: this run is broken on purpose"
            );
        }
        let bar = cute_cli::progress(0, "generating");
        let log_bar = bar.clone();
        let log = Box::new(move |line: &str| log_line(&log_bar, line));
        let load = || Engine::new(backend, checkpoint, tokenizer.clone(), config, log);
        let (engine, loaded_bytes) = loading(checkpoint, load);
        Ok(Server {
            args,
            engine: engine?,
            loaded_bytes,
            tokenizer,
            template,
            weight_bytes: checkpoint.config.moe.is_none().then(|| checkpoint.unpacked_bytes()),
            bar,
            requests: 0,
            errors: 0,
            guard_findings: 0,
            traces: BTreeMap::new(),
            probes,
            storm: Storm::new(&args.storm),
        })
    }

    /// What the device is called.
    pub fn device(&self) -> String {
        self.engine.device()
    }
    /// Geometry of the KV pool.
    pub fn pool(&self) -> Pool {
        self.engine.pool_record()
    }

    /// Runs the prompt set `--runs` times, until `stop` is asked for. A resumed run starts with the steps of its journal.
    pub fn run(
        &mut self,
        journal: &mut Journal,
        stop: &Stop,
        out: &mut Writer<'_>,
    ) -> anyhow::Result<Outcome> {
        let prompts = self.probes.prompts();
        let total = prompts.len() as u64 * self.args.runs;
        self.bar.set_length(total);
        let mut tickets = BTreeMap::new();
        let mut done: BTreeMap<u64, Completion> = BTreeMap::new();
        let (mut next, mut refused) = (0, 0);
        while self.requests < total {
            if let Some(exit) = stop.asked() {
                let stopped =
                    Some((exit, format!("{} of {total} requests", self.requests + done.len() as u64)));
                done.into_values().try_for_each(|completion| self.write(completion, out))?;
                return Ok(Outcome { refused, stopped, failed: None });
            }
            while next < total
                && self.engine.scheduler().waiting() < self.args.max_num_seqs
                && self.probes.may_start(next, tickets.len())
            {
                let (run, index) = (next / prompts.len() as u64, next % prompts.len() as u64);
                let (ticket, admitted) = self.submit(&prompts[index as usize], run, index, next);
                if let Err(e) = admitted {
                    log_line(&self.bar, &format!("cute-generate: {e:#}"));
                    refused += 1;
                    done.insert(next, output::refused(&ticket_base(&ticket, next), &e));
                } else {
                    tickets.insert(next, ticket);
                }
                next += 1;
            }
            let before = self.engine.totals().steps;
            let mut events = Vec::new();
            let mut emit = |event| events.push(event);
            let in_flight: Vec<u64> = tickets.keys().copied().collect();
            let running: Vec<u64> =
                self.engine.scheduler().running.iter().map(|s| s.request.ordinal).collect();
            let blows = self.storm.blows(&in_flight, &running);
            let struck = blows.into_iter().try_for_each(|(blow, ordinal)| {
                let struck = match blow {
                    Blow::Cancel => self.engine.cancel(ordinal, &mut emit),
                    Blow::Preempt => self.engine.preempt(ordinal, &mut emit),
                };
                struck.map(|_| ())
            });
            let worked = struck.and_then(|()| match journal.known(before) {
                Some(known) => self.engine.replay(known, &mut emit),
                None => self.engine.step(&mut emit),
            });
            // by request, so that a resumed run, which repeats some and computes the others, writes them in the same order
            events.sort_by_key(|event| if let Event::Chunk(c) = event { (0, c.ordinal) } else { (1, 0) });
            for event in events {
                match event {
                    Event::Chunk(chunk) => {
                        let ticket = tickets.get(&chunk.ordinal).filter(|_| !self.probes.asks(chunk.ordinal));
                        if let Some(Ticket { run, index, .. }) = ticket {
                            out.write(&Record::Chunk(Chunk { run: *run, index: *index, ..chunk }))?;
                        }
                    }
                    Event::Finding(finding) => {
                        self.guard_findings += 1;
                        self.report_findings([finding], out)?;
                    }
                    Event::State(state) => out.write(&Record::State(journal.state(state, before)?))?,
                    Event::Trace(trace) => {
                        self.traces.insert(trace.ordinal, *trace);
                    }
                    Event::Finished(reply) => {
                        let ordinal = reply.request.ordinal;
                        self.probes.read(ordinal, &reply.token_ids);
                        if let Some(ticket) = tickets.remove(&ordinal) {
                            let token_ids = self.args.stream.then(|| reply.token_ids.clone());
                            let completion =
                                output::completion(&ticket_base(&ticket, ordinal), *reply, self.args);
                            done.insert(ordinal, journal.reply(completion, token_ids, before)?);
                        }
                    }
                }
            }
            let worked = match worked {
                Ok(worked) => worked,
                Err(e) => {
                    done.into_values().try_for_each(|completion| self.write(completion, out))?;
                    return Ok(Outcome { refused, stopped: None, failed: Some(e.into()) });
                }
            };
            journal.step(before, self.engine.totals().steps, Spent::of(&self.engine))?;
            let written = self.requests;
            while let Some(completion) = done.remove(&self.requests) {
                self.write(completion, out)?;
            }
            if !worked && self.requests == written && written < total {
                let failed = anyhow!("the engine is idle with {} requests unanswered", total - written);
                return Ok(Outcome { refused, stopped: None, failed: Some(failed) });
            }
        }
        self.report_findings(self.probes.blind(), out)?;
        self.bar.finish_and_clear();
        Ok(Outcome { refused, stopped: None, failed: None })
    }

    fn write(&mut self, completion: Completion, out: &mut Writer<'_>) -> anyhow::Result<()> {
        self.requests += 1;
        self.errors += u64::from(completion.finish_reason == Some(FinishReason::Error));
        self.bar.inc(1);
        let trace = self.traces.remove(&completion.ordinal);
        let (completion, findings) = self.probes.judge(completion);
        out.write(&Record::Completion(completion))?;
        if let Some(trace) = trace {
            out.write(&Record::Trace(trace))?;
        }
        self.report_findings(findings, out)
    }

    /// What probes and guards found so far.
    pub fn findings(&self) -> u64 {
        self.probes.findings() + self.guard_findings
    }

    /// Writes findings as records, and as lines for people.
    fn report_findings(
        &self,
        findings: impl IntoIterator<Item = Finding>,
        out: &mut Writer<'_>,
    ) -> anyhow::Result<()> {
        for finding in findings {
            log_line(&self.bar, &format!("cute-generate: {}", finding.message));
            out.write(&Record::Finding(finding))?;
        }
        Ok(())
    }

    /// Tokenises a prompt and queues it.
    fn submit(
        &mut self,
        prompt: &Prompt,
        run: u64,
        index: u64,
        ordinal: u64,
    ) -> (Ticket, anyhow::Result<()>) {
        let id = prompt.id.clone().unwrap_or_else(|| index.to_string());
        let worked = prompt.answer.as_deref();
        let gold = prompt.gold.as_deref().or(worked);
        let mut ticket = Ticket {
            gold: gold.and_then(|g| answer::gold(g).or_else(|| answer::normalise(g))),
            prompt_sha256: sha256_ids(&[]),
            prompt_tokens: 0,
            sampling_sha256: String::new(),
            id: id.clone(),
            run,
            index,
        };
        let tokens = match self.tokens(prompt) {
            Ok(tokens) => tokens,
            Err(e) => return (ticket, Err(e.context(format!("request {id}")))),
        };
        ticket.prompt_sha256 = sha256_ids(&tokens);
        ticket.prompt_tokens = tokens.len() as u64;
        let params = self.args.sampling(index, &prompt.sampling);
        ticket.sampling_sha256 = output::sampling_sha256(&params);
        if !params.stop.is_empty() && self.tokenizer.is_none() {
            return (
                ticket,
                Err(anyhow!("request {id}: stop strings need a tokenizer.json, the model has none")),
            );
        }
        let queued = self.engine.add(Request { id, ordinal, prompt: tokens, params });
        (ticket, queued.map_err(Into::into))
    }

    fn tokens(&self, prompt: &Prompt) -> anyhow::Result<Vec<u32>> {
        let templated = prompt.prompt_token_ids.is_none() && (prompt.messages.is_some() || self.args.chat);
        for (given, name) in [
            (prompt.tools.is_some(), "tools"),
            (prompt.chat_template_kwargs.is_some(), "chat_template_kwargs"),
        ] {
            ensure!(templated || !given, "{name} is for the chat template: expected messages, or --chat");
        }
        if let Some(ids) = &prompt.prompt_token_ids {
            return Ok(ids.clone());
        }
        let tokenizer =
            self.tokenizer.as_ref().context("the model has no tokenizer.json: expected prompt_token_ids")?;
        let user = |text: &String| vec![json!({"role": "user", "content": text})];
        let messages = match (&prompt.messages, prompt.prompt.as_ref().or(prompt.question.as_ref())) {
            (Some(messages), _) => Some(messages.clone()),
            (None, text) => text.filter(|_| self.args.chat).map(user),
        };
        if let Some(messages) = messages {
            return Ok(tokenizer.encode(&self.render(&messages, prompt)?)?);
        }
        let text = match (&prompt.prompt, &prompt.question) {
            (Some(text), _) => text.clone(),
            (_, Some(question)) => self.args.question_template.replace("{question}", question),
            _ => String::new(),
        };
        Ok(tokenizer.encode_whole(&text)?)
    }

    fn render(&self, messages: &[Value], prompt: &Prompt) -> anyhow::Result<String> {
        let template =
            self.template.as_ref().context("the model has no chat template: expected prompt or question")?;
        let mut variables = self.args.chat_template_kwargs.clone().unwrap_or_default();
        variables.extend(prompt.chat_template_kwargs.clone().into_iter().flatten());
        for name in ["messages", "tools", "add_generation_prompt"] {
            let given = variables.contains_key(name);
            ensure!(!given, "chat_template_kwargs holds {name}, which is no variable of its own");
        }
        variables.extend(prompt.tools.clone().map(|tools| ("tools".to_owned(), Value::Array(tools))));
        Ok(template.render_with(messages, true, &variables)?)
    }

    /// Writes the `timing` records, and one line for people. What a resumed run that was stopped before it had caught
    /// up with its journal could say of time and tokens would not belong together: it says nothing.
    pub fn report(&self, journal: &Journal, out: &mut Writer<'_>) -> anyhow::Result<()> {
        let totals = self.engine.totals();
        if journal.known(totals.steps).is_some() {
            return Ok(());
        }
        let totals = journal.work(Spent::of(&self.engine)).totals(totals);
        for timing in output::timings(&totals, self.loaded_bytes, self.weight_bytes) {
            out.write(&Record::Timing(timing))?;
        }
        for (layer, regions) in self.engine.regions() {
            for timing in output::regions(layer, regions) {
                out.write(&Record::Timing(timing))?;
            }
        }
        log_line(&self.bar, &output::summary(self.requests, self.errors, &totals, self.weight_bytes));
        Ok(())
    }

    /// What stands in the `end` record.
    pub fn counters(&self, journal: &Journal) -> Count {
        let s = self.engine.scheduler();
        let (launches, resets) = journal.work(Spent::of(&self.engine)).launches();
        let totals = self.engine.totals();
        let engine = [
            ("requests", self.requests),
            ("errors", self.errors),
            ("cancelled", totals.cancelled),
            ("preempted", totals.preempted),
            ("steps", totals.steps),
            ("slots_acquired", s.slots.acquired),
            ("slots_released", s.slots.released),
            ("slots_in_use", s.slots.in_use()),
            ("slots_free", s.slots.free() as u64),
            ("slots_recycled", totals.recycles),
            ("pages_acquired", s.pages.acquired),
            ("pages_released", s.pages.released),
            ("pages_in_use", s.pages.in_use()),
            ("pages_free", s.pages.free() as u64),
            ("fused_launches", launches),
            ("workspace_resets", resets),
        ]
        .map(|(name, n)| (name.to_owned(), n));
        engine.into_iter().chain(self.probes.counters()).collect()
    }
}

fn ticket_base(t: &Ticket, ordinal: u64) -> Completion {
    Completion {
        id: t.id.clone(),
        run: t.run,
        index: t.index,
        ordinal,
        prompt_tokens: Some(t.prompt_tokens),
        prompt_sha256: Some(t.prompt_sha256.clone()),
        sampling_sha256: Some(t.sampling_sha256.clone()),
        gold: t.gold.clone(),
        ..Completion::default()
    }
}

/// A line on stderr that does not tear the progress bar. A closed stderr is no reason to stop.
fn log_line(bar: &ProgressBar, line: &str) {
    if bar.is_hidden() {
        let _ = writeln!(std::io::stderr(), "{line}");
    } else {
        bar.println(line);
    }
}
