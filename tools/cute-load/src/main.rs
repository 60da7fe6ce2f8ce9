//! cute-load: open, hash and check a checkpoint; print one `model` record.
//!
//! reads   a checkpoint directory or name    writes  `run`, `model`, `finding` records, `end`; with --compile, the
//!                                                   cache of compiled kernels
//! exits   0 sound · 1 it differs from the record, or holds NaN, infinity or impossible scales · 2 refused, or other trouble

mod kernels;

use anyhow::Context;
use clap::{Parser, ValueEnum, value_parser};
use cute_checkpoint::hub::locate;
use cute_checkpoint::verify::{Difference, differences, directory_differences, read_model};
use cute_checkpoint::{ChatTemplate, Checkpoint, Tokenizer, memory_plan};
use cute_cli::{Config, Exit, progress_bytes};
use cute_records::{End, Finding, Model, Record, Severity, Writer};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const TOOL: &str = "cute-load";
const EXAMPLES: &str = "Examples:
  cute-load examples/tiny-hybrid > model.jsonl
  cute-load examples/tiny-hybrid --verify model.jsonl
  cute-load Qwen/Qwen3.5-4B@main | jq 'select(.type==\"model\") | {repository, revision, digest}'
  cute-load examples/tiny-hybrid --scan --max-num-seqs 64 | jq 'select(.type==\"model\").plan'
  cute-load examples/tiny-hybrid --compile --arch sm_90a,sm_120a";

/// Open, hash and check a checkpoint; print one model record.
#[derive(Debug, Parser)]
#[command(name = TOOL, version, after_help = EXAMPLES)]
struct Args {
    /// Directory with config.json, safetensors files and, for text, tokenizer.json; or a name, ORG/NAME or
    /// ORG/NAME@REVISION, that `hf download` has put into the Hugging Face cache
    dir: PathBuf,
    /// Sequences in flight the memory plan is made for
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = value_parser!(u64).range(1..=1 << 20))]
    max_num_seqs: u64,
    /// Tokens of the longest sequence planned for [default: the model's own limit, at most 1024, as in cute-generate]
    #[arg(long, value_name = "TOKENS", value_parser = value_parser!(u64).range(1..))]
    max_model_len: Option<u64>,
    /// Tokens of a KV page
    #[arg(long, value_name = "TOKENS", default_value_t = 64, value_parser = value_parser!(u64).range(1..=1 << 16))]
    page_size: u64,
    /// Element type of the KV cache planned for: f32 as on the CPU, bf16 as on a GPU
    #[arg(long, value_name = "DTYPE", default_value = "f32")]
    kv_cache_dtype: KvDtype,
    /// Look for NaN and infinity in every tensor, and for scales that no quantiser writes; a finding each, and exit 1
    #[arg(long)]
    scan: bool,
    /// Compare with the model record in this stream (`-` for stdin); a finding per difference, and exit 1
    #[arg(long, value_name = "FILE")]
    verify: Option<PathBuf>,
    #[command(flatten)]
    kernels: kernels::KernelArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum KvDtype {
    F32,
    Bf16,
    /// 8 bits, without a scale
    #[value(name = "fp8_e4m3")]
    Fp8E4m3,
}

fn main() -> ExitCode {
    cute_cli::run(load)
}

fn load(args: Args, mut config: Config) -> anyhow::Result<Exit> {
    let recorded = args.verify.as_deref().map(recorded).transpose()?;
    config.resolve("max_num_seqs", args.max_num_seqs);
    config.resolve("page_size", args.page_size);
    let mut out = cute_cli::stdout();
    let (model, mut findings) = match examine(&args, &mut config) {
        Ok(model) => model,
        Err(error) => return refused(&args, &config, recorded.as_ref(), &error, &mut out),
    };
    let mut run = config.run();
    run.digests.insert("model".to_owned(), model.digest.clone());
    run.digests.extend(model.tokenizer_sha256.clone().map(|d| ("tokenizer".to_owned(), d)));
    if let Some(recorded) = &recorded {
        findings.extend(differences(&model, recorded)?.into_iter().map(difference));
    }
    out.write(&Record::Run(run))?;
    out.write(&Record::Model(model))?;
    report(&findings, &mut out)?;
    out.end(TOOL, true)?;
    let failed = findings.iter().any(|f| f.severity == Severity::Error);
    Ok(if failed { Exit::Fail } else { Exit::Pass })
}

/// Opens, checks, hashes and, if asked, scans.
fn examine(args: &Args, config: &mut Config) -> anyhow::Result<(Model, Vec<Finding>)> {
    let checkpoint = Checkpoint::open(&args.dir)?;
    let limit = checkpoint.config.max_position_embeddings as u64;
    let max_model_len = args.max_model_len.unwrap_or(limit.min(1024));
    config.resolve("max_model_len", max_model_len);
    anyhow::ensure!(
        max_model_len <= limit,
        "--max-model-len {max_model_len}: expected at most {limit}, config.json's max_position_embeddings"
    );
    if let Some(tokenizer) = Tokenizer::open(&checkpoint.dir)? {
        tokenizer.check(&checkpoint.config)?;
    }
    let template = ChatTemplate::open(&checkpoint.dir)?;
    let bar = progress_bytes(checkpoint.total_bytes(), "hashing");
    let files = checkpoint.digest(|n| bar.inc(n))?;
    bar.finish_and_clear();
    let element = match args.kv_cache_dtype {
        KvDtype::F32 => 4,
        KvDtype::Bf16 => 2,
        KvDtype::Fp8E4m3 => 1,
    };
    let weights = checkpoint.weight_bytes();
    let shape = &checkpoint.config;
    let mut plan = memory_plan(shape, weights, element, args.max_num_seqs, max_model_len, args.page_size);
    plan.unpacked_weight_bytes = checkpoint.unpacked_bytes();
    let mut model = checkpoint.model(files, template.as_ref(), plan);
    let mut findings = checkpoint.findings().to_vec();
    if args.scan {
        let bar = progress_bytes(weights, "scanning");
        let found = checkpoint.scan(|n| bar.inc(n))?;
        bar.finish_and_clear();
        for (tensor, n) in &found.non_finite {
            let message = format!("tensor {tensor} holds {n} values that are NaN or infinite");
            findings.push(finding("non_finite_weights", message, [("tensor", tensor.clone())]));
        }
        for (tensor, n) in &found.scales {
            let message = format!(
                "tensor {tensor} holds {n} scales that are negative, or zero over codes that are not"
            );
            findings.push(finding("impossible_scales", message, [("tensor", tensor.clone())]));
        }
        model.non_finite = Some(found.non_finite);
    }
    kernels::compile(&args.kernels, &checkpoint, config)?;
    Ok((model, findings))
}

/// The model record to compare with.
fn recorded(path: &Path) -> anyhow::Result<Model> {
    let name = if path == Path::new("-") { "stdin".to_owned() } else { path.display().to_string() };
    read_model(&name, cute_cli::open(path)?).context("--verify")
}

/// A refused checkpoint leaves a stream that says why. Against a record the files that differ are named, too.
fn refused(
    args: &Args,
    config: &Config,
    recorded: Option<&Model>,
    error: &anyhow::Error,
    out: &mut Writer<'_>,
) -> anyhow::Result<Exit> {
    let differences = match recorded {
        Some(recorded) if error.is::<cute_checkpoint::Error>() => match locate(&args.dir) {
            Ok(found) if found.dir.is_dir() => directory_differences(&found.dir, recorded)?,
            _ => Vec::new(),
        },
        _ => Vec::new(),
    };
    let findings: Vec<Finding> = differences.into_iter().map(difference).collect();
    out.write(&Record::Run(config.run()))?;
    report(&findings, out)?;
    let reason = Some(format!("{error:#}"));
    out.end_with(End { tool: TOOL.to_owned(), complete: false, reason, ..End::default() })?;
    let _ = writeln!(std::io::stderr(), "{TOOL}: {error:#}");
    Ok(if findings.is_empty() { Exit::Trouble } else { Exit::Fail })
}

/// Writes findings as records, and as lines for people.
fn report(findings: &[Finding], out: &mut Writer<'_>) -> anyhow::Result<()> {
    for finding in findings {
        out.write(&Record::Finding(finding.clone()))?;
        let _ = writeln!(std::io::stderr(), "{TOOL}: {}", finding.message);
    }
    Ok(())
}

fn difference(d: Difference) -> Finding {
    finding("model_differs", d.message, [("field", d.field)])
}

fn finding<const N: usize>(check: &str, message: String, data: [(&str, String); N]) -> Finding {
    Finding {
        check: check.to_owned(),
        severity: Severity::Error,
        message,
        ordinal: None,
        layer: None,
        at: None,
        data: BTreeMap::from(data.map(|(k, v)| (k.to_owned(), v.into()))),
    }
}
