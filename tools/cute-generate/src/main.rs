//! cute-generate: run the engine over prompts; print what it answers and what happened to its state.
//!
//! reads   prompts (GSM8K lines, `prompt`, `messages`, `prompt_token_ids`), a `model` record
//! writes  `run`, `pool`, `state`, `completion`, `timing`, `finding`, `end`; dispatch log lines on stderr
//! exits   0 done · 1 a probe found a difference · 2 usage, bad input, a model that is not what it was, I/O, device

mod args;
mod input;
mod output;
mod probe;
mod serve;

use anyhow::{Context, bail};
use args::Args;
use cute_checkpoint::{ChatTemplate, Checkpoint, Tokenizer};
use cute_cli::{Config, Exit};
use cute_records::{End, Record};
use std::process::ExitCode;
use std::sync::Arc;

fn main() -> ExitCode {
    cute_cli::run(generate)
}

fn generate(args: Args, mut config: Config) -> anyhow::Result<Exit> {
    if args.list_faults {
        return output::list_faults();
    }
    if args.threads > 0 {
        rayon::ThreadPoolBuilder::new()
            .num_threads(args.threads as usize)
            .build_global()
            .context("starting threads")?;
    }
    args.sampling(0, &Default::default()).validate().map_err(anyhow::Error::msg)?;
    let named = args.model.as_deref().map(Checkpoint::open).transpose()?;
    let mut input = input::read(&args)?;
    let model = input.model.as_ref();
    let checkpoint = match (named, model) {
        (Some(checkpoint), _) => checkpoint,
        (None, Some(model)) => Checkpoint::open(model.path.as_ref())?,
        (None, None) => {
            bail!("no model: give --model DIR, or a model record on stdin (cute-load DIR | cute-generate …)")
        }
    };
    if input.prompts.is_empty() && args.probes.probe.is_empty() {
        bail!("no prompts: expected JSON lines with question, prompt, messages or prompt_token_ids");
    }
    let dir = checkpoint.dir.clone();
    let tokenizer = Tokenizer::open(&dir)?.map(Arc::new);
    if let Some(tokenizer) = &tokenizer {
        tokenizer.check(&checkpoint.config)?;
    }
    let template = ChatTemplate::open(&dir)?;
    let bar = cute_cli::progress_bytes(checkpoint.total_bytes(), "hashing the model");
    let files = checkpoint.digest(|n| bar.inc(n))?;
    bar.finish_and_clear();
    let digest = Checkpoint::model_digest(&files);
    if let Some(recorded) = model.filter(|m| m.digest != digest) {
        bail!(
            "{} is not the model of the record: its digest is {digest}, the record says {}",
            dir.display(),
            recorded.digest
        );
    }
    let engine = args.engine_config(&checkpoint.config)?;
    let probes = probe::Probes::plan(&args, &checkpoint.config, &engine, std::mem::take(&mut input.prompts))?;
    args.resolve(&mut config, &engine);
    let mut run = config.run();
    run.digests.insert("model".into(), digest);
    run.digests.insert("prompts".into(), input.digest.clone());
    let tokenizer_digest = files.iter().find(|f| f.name == "tokenizer.json").map(|f| f.sha256.clone());
    run.digests.extend(tokenizer_digest.map(|d| ("tokenizer".into(), d)));
    run.fault = engine.fault.map(|f| f.to_string());

    let mut out = cute_cli::stdout();
    let mut server = serve::Server::start(&args, &checkpoint, tokenizer, template, engine, probes)?;
    run.device = Some(server.device());
    out.write(&Record::Run(run))?;
    for (line, parsed) in &input.forward {
        out.forward(line, parsed)?;
    }
    for finding in input.findings {
        out.write(&Record::Finding(finding))?;
    }
    out.write(&Record::Pool(server.pool()))?;
    // inside the pool, so that the engine's parallel loops start without waking a thread from outside
    let refused = rayon::scope(|_| server.run(&mut out))?;
    server.report(&mut out)?;
    let reason = (input.bad > 0).then(|| format!("{} line(s) of the input could not be read", input.bad));
    out.end_with(End {
        tool: config.tool().into(),
        complete: reason.is_none(),
        reason,
        counters: server.counters(),
        ..End::default()
    })?;
    Ok(match (input.bad + refused, server.probe_findings()) {
        (0, 0) => Exit::Pass,
        (0, _) => Exit::Fail,
        _ => Exit::Trouble,
    })
}
