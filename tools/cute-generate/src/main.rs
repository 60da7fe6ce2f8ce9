//! cute-generate: run the engine over prompts; print what it answers and what happened to its state.
//!
//! reads   prompts (GSM8K lines, `prompt`, `messages`, `prompt_token_ids`), a `model` record
//! writes  `run`, `pool`, `state`, `completion`, `timing`, `finding`, `end`; dispatch log lines on stderr
//! exits   0 done · 1 a probe found a difference, a guard a broken invariant · 2 usage, bad input, a model that is not what it was, I/O, device ·
//!         130 Ctrl-C · 143 SIGTERM

mod args;
mod chain;
mod device;
mod input;
mod integers;
mod journal;
mod loading;
mod output;
mod probe;
mod serve;
mod storm;

use anyhow::{Context, bail};
use args::Args;
use cute_checkpoint::{ChatTemplate, Checkpoint, Tokenizer};
use cute_cli::{Config, Exit, Stop};
use cute_engine::backend::Backend;
use cute_engine::{Engine, EngineConfig};
use cute_records::{End, FileDigest, Model, Pool, Reader, Record, Run, Writer};
use device::Device;
use input::Input;
use journal::Journal;
use loading::Hashing;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;

const TOOL: &str = "cute-generate";

fn main() -> ExitCode {
    cute_cli::run(generate)
}

fn generate(args: Args, mut config: Config) -> anyhow::Result<Exit> {
    if args.list_faults {
        return output::list_faults();
    }
    args.check_journal()?;
    let journal = match &args.journal {
        Some(dir) => Journal::open(dir, args.resume)?,
        None => Journal::default(),
    };
    if args.threads > 0 {
        rayon::ThreadPoolBuilder::new()
            .num_threads(args.threads as usize)
            .build_global()
            .context("starting threads")?;
    }
    args.sampling(0, &Default::default()).validate().map_err(anyhow::Error::msg)?;
    let named = args.model.as_deref().map(Checkpoint::open).transpose()?;
    let mut input = input::read(&args)?;
    let checkpoint = match (named, &input.model) {
        (Some(checkpoint), _) => checkpoint,
        (None, Some(model)) => Checkpoint::open(model.path.as_ref())?,
        (None, None) => {
            bail!(
                "no model: give --model DIR or --model ORG/NAME, or a model record on stdin (cute-load DIR | cute-generate …)"
            )
        }
    };
    if input.prompts.is_empty() && args.probes.probe.is_empty() {
        bail!("no prompts: expected JSON lines with question, prompt, messages or prompt_token_ids");
    }
    if args.model.is_some() {
        input.note(checkpoint.findings());
    }
    let dir = checkpoint.dir.clone();
    let tokenizer = Tokenizer::open(&dir)?.map(Arc::new);
    if let Some(tokenizer) = &tokenizer {
        tokenizer.check(&checkpoint.config)?;
    }
    let mut template = ChatTemplate::open(&dir)?;
    match (&mut template, &args.chat_template) {
        (Some(template), Some(name)) => template.choose(name)?,
        (None, Some(name)) => bail!("--chat-template {name}: the model has no chat template"),
        (_, None) => {}
    }
    let checkpoint = Arc::new(checkpoint);
    // a record says which model it has to be, and a journal must know
    let hashed = args.hash_model || input.model.is_some() || args.journal.is_some();
    let hashing = hashed.then(|| Hashing::start(&checkpoint)).transpose()?;
    let engine = args.engine_config(&checkpoint.config)?;
    let probes = probe::Probes::plan(&args, &checkpoint.config, &engine, std::mem::take(&mut input.prompts))?;
    args.resolve(&mut config, &engine);
    let mut run = config.run();
    run.digests.insert("prompts".into(), input.digest.clone());
    run.fault = engine.fault.map(|f| f.to_string());

    let device = Device::open(args.device, args.gdn_prefill, &checkpoint, &engine)?;
    let probes = probes.with_preempted(matches!(device, Device::Cpu(_)) && !engine.knobs.fusion);
    let job = Job { args: &args, input, journal, run, hashing, probes, text: (tokenizer, template), engine };
    match device {
        Device::Cpu(cpu) => job.run_on(cpu, &checkpoint),
        Device::Cuda(cuda) => job.run_on(*cuda, &checkpoint),
    }
}

/// What is to be done, on whatever device.
struct Job<'a> {
    args: &'a Args,
    input: Input,
    journal: Journal,
    run: Run,
    /// of the model's files, under way
    hashing: Option<Hashing>,
    probes: probe::Probes,
    text: (Option<Arc<Tokenizer>>, Option<ChatTemplate>),
    engine: EngineConfig,
}

impl Job<'_> {
    fn run_on<B: Backend>(self, backend: B, checkpoint: &Checkpoint) -> anyhow::Result<Exit>
    where
        Engine<B>: Send,
    {
        let Job { args, input, mut journal, mut run, hashing, probes, text, engine } = self;
        let mut server = serve::Server::start(backend, args, checkpoint, text, engine, probes)?;
        if let Some(hashing) = hashing {
            run.digests.extend(digests(&hashing.finish()?, checkpoint, input.model.as_ref())?);
        }
        run.device = Some(server.device());
        let opening = journal.begin(&run, input.bad, opening(run.clone(), &input, server.pool())?)?;
        let mut out = cute_cli::stdout();
        for line in Reader::new("opening", opening.as_bytes()) {
            let line = line?;
            out.forward(&line, &line.parse()?)?;
        }
        let stop = Stop::watch().context("taking signals")?;
        let done = serve(&mut server, &input, &mut journal, &stop, &mut out);
        match (done, stop.asked()) {
            // Ctrl-C ends the readers of a pipeline, too: their absence is no news
            (Err(e), Some(exit)) if cute_cli::is_broken_pipe(&e) => Ok(exit),
            (done, _) => done,
        }
    }
}

/// Digests of model and tokenizer, by name, if the model is the one of the record.
fn digests(
    files: &[FileDigest],
    checkpoint: &Checkpoint,
    recorded: Option<&Model>,
) -> anyhow::Result<BTreeMap<String, String>> {
    let digest = Checkpoint::model_digest(files);
    if let Some(recorded) = recorded.filter(|m| m.digest != digest) {
        bail!(
            "{} is not the model of the record: its digest is {digest}, the record says {}",
            checkpoint.dir.display(),
            recorded.digest
        );
    }
    let tokenizer = files.iter().find(|f| f.name == "tokenizer.json").map(|f| f.sha256.clone());
    let named = [("model", Some(digest)), ("tokenizer", tokenizer)];
    Ok(named.into_iter().filter_map(|(name, digest)| Some((name.to_owned(), digest?))).collect())
}

/// Everything from the first request to `end`.
fn serve<B: Backend>(
    server: &mut serve::Server<'_, B>,
    input: &Input,
    journal: &mut Journal,
    stop: &Stop,
    out: &mut Writer<'_>,
) -> anyhow::Result<Exit>
where
    Engine<B>: Send,
{
    // inside the pool, so that the engine's parallel loops start without waking a thread from outside
    let outcome = rayon::scope(|_| server.run(journal, stop, out))?;
    journal.sync()?;
    let mut reasons = Vec::new();
    if input.bad > 0 {
        reasons.push(format!("{} line(s) of the input could not be read", input.bad));
    }
    if let Some((exit, so_far)) = &outcome.stopped {
        let signal = if *exit == Exit::Interrupted { "Ctrl-C" } else { "SIGTERM" };
        reasons.push(format!("stopped by {signal} after {so_far}"));
    }
    reasons.extend(outcome.failed.as_ref().map(|e| format!("{e:#}")));
    server.report(journal, out)?;
    out.end_with(End {
        tool: TOOL.into(),
        complete: reasons.is_empty(),
        reason: (!reasons.is_empty()).then(|| reasons.join("; ")),
        counters: server.counters(journal),
        ..End::default()
    })?;
    if let Some(e) = outcome.failed {
        return Err(e);
    }
    Ok(match outcome.stopped {
        Some((exit, _)) => exit,
        None if input.bad + outcome.refused > 0 => Exit::Trouble,
        None if server.findings() > 0 => Exit::Fail,
        None => Exit::Pass,
    })
}

/// What stands before the first request, as lines.
fn opening(run: Run, input: &Input, pool: Pool) -> anyhow::Result<String> {
    let mut lines = Vec::new();
    let mut out = Writer::new(&mut lines);
    out.write(&Record::Run(run))?;
    for (line, parsed) in &input.forward {
        out.forward(line, parsed)?;
    }
    for finding in &input.findings {
        out.write(&Record::Finding(finding.clone()))?;
    }
    out.write(&Record::Pool(pool))?;
    drop(out);
    Ok(String::from_utf8(lines)?)
}
