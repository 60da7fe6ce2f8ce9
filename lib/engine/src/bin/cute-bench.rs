//! cute-bench: what decode and prefill cost on a GPU, for the published shapes with random weights, beside the copy
//! bandwidth and the read-only stream measured in the same run.
//!
//! writes  files with --save; one JSON object a measurement on stdout, a table on stderr
//! exits   0 measured · 2 no device, or it failed

use anyhow::{Context, bail};
use clap::Parser;
use cute_checkpoint::{Config, Dtype, Format, LayerType};
use cute_engine::backend::cuda::gpu::{Arg, Gpu, Join, Launch};
use cute_engine::backend::cuda::layouts::Layouts;
use cute_engine::backend::cuda::profile::Profiled;
use cute_engine::backend::cuda::{Cuda, Driver, Layout, LoadOptions, Options, units};
use cute_engine::backend::{Backend, CacheShape, GdnShape, KvDtype};
use cute_engine::batch::{Batch, BatchKind, Segment};
use cute_engine::dispatch::Dispatcher;
use cute_engine::knobs::PathKnob;
use cute_engine::model::{Model, Scratch, left_plain};
use cute_engine::{EngineConfig, Knobs};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

#[path = "cute-bench/disk.rs"]
mod disk;
#[path = "cute-bench/nowhere.rs"]
mod nowhere;

/// Measure decode and prefill on a GPU with random weights of the published shapes.
#[derive(Debug, Parser)]
#[command(name = "cute-bench", version)]
struct Args {
    /// Shapes
    #[arg(long, value_delimiter = ',', default_value = "0.8b,2b,4b,9b,27b")]
    shapes: Vec<String>,
    /// How the matrices that published quantised checkpoints pack are stored: bf16, fp8, nvfp4
    #[arg(long, value_delimiter = ',', default_value = "bf16")]
    format: Vec<String>,
    /// Paths of the decode step: paged, lite, coop, coop-gdn
    #[arg(long, value_delimiter = ',', default_value = "paged,lite,coop,coop-gdn")]
    paths: Vec<String>,
    /// Sequences of a decode step
    #[arg(long, value_delimiter = ',', default_value = "1,4,16")]
    batches: Vec<usize>,
    /// Tokens already in each sequence
    #[arg(long, value_delimiter = ',', default_value = "128,8192")]
    contexts: Vec<usize>,
    /// Prompt lengths for prefill; 0 leaves it out
    #[arg(long, value_delimiter = ',', default_value = "512,8192")]
    prefill: Vec<usize>,
    /// Decode steps timed, after as many of warm-up
    #[arg(long, default_value_t = 20)]
    steps: usize,
    /// Also time every kernel of an eager step
    #[arg(long)]
    profile: bool,
    /// The device's number; for --load also cpu, emulated, and none, where reading and arranging is all there is
    #[arg(long, default_value = "0")]
    device: String,
    #[command(flatten)]
    disk: DiskArgs,
}

/// Instead of decode and prefill, files.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Loading")]
struct DiskArgs {
    /// Write a checkpoint of the first of --shapes and --format with random weights to this directory
    #[arg(long, value_name = "DIR")]
    save: Option<PathBuf>,
    /// GB of a shard of it
    #[arg(long, value_name = "GB", default_value_t = 4.0)]
    shard: f64,
    /// Load the checkpoint in this directory, and say how fast
    #[arg(long, value_name = "DIR")]
    load: Option<PathBuf>,
    /// Times it is loaded
    #[arg(long, value_name = "N", default_value_t = 3)]
    repeats: usize,
    /// Threads that load; 0 for the engine's own choice
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// KiB of each of their buffers; 0 for the engine's own choice
    #[arg(long, value_name = "KIB", default_value_t = 0)]
    buffer: usize,
    /// Put the files out of the page cache before each time
    #[arg(long)]
    cold: bool,
}

const DENSE: (&str, &str) = ("Qwen3_5ForCausalLM", "qwen3_5_text");

/// hidden, intermediate, layers, query heads, key/value heads, value heads, tied
const SHAPES: &[(&str, [usize; 6], bool)] = &[
    ("0.8b", [1024, 3584, 24, 8, 2, 16], true),
    ("2b", [2048, 6144, 24, 8, 2, 16], true),
    ("4b", [2560, 9216, 32, 16, 4, 32], true),
    ("9b", [4096, 12288, 32, 16, 4, 32], false),
    ("27b", [5120, 17408, 64, 24, 4, 48], false),
    ("35b-a3b", [2048, 0, 40, 16, 2, 32], false),
    ("122b-a10b", [3072, 0, 48, 32, 2, 64], false),
];

/// Of those that have them: experts, how many a token takes, their width, which is the shared expert's too.
const EXPERTS: &[(&str, [usize; 3])] = &[("35b-a3b", [256, 8, 512]), ("122b-a10b", [256, 8, 1024])];

/// config.json of a published shape.
fn config_json(name: &str) -> anyhow::Result<Value> {
    let known = || SHAPES.iter().map(|(n, ..)| *n).collect::<Vec<_>>().join(", ");
    let (_, [h, i, l, nh, nkv, hv], tied) = SHAPES
        .iter()
        .find(|(n, ..)| *n == name)
        .with_context(|| format!("no shape {name:?}: expected {}", known()))?;
    let experts = EXPERTS.iter().find(|(n, _)| *n == name).map(|(_, e)| e);
    let kind = if experts.is_some() { ("Qwen3_5MoeForCausalLM", "qwen3_5_moe_text") } else { DENSE };
    let mut text = json!({
        "architectures": [kind.0], "model_type": kind.1, "dtype": "bfloat16",
        "vocab_size": 248320, "hidden_size": h, "intermediate_size": i, "num_hidden_layers": l,
        "num_attention_heads": nh, "num_key_value_heads": nkv, "head_dim": 256, "rms_norm_eps": 1e-6,
        "full_attention_interval": 4, "linear_num_key_heads": 16, "linear_num_value_heads": hv,
        "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4,
        "max_position_embeddings": 262_144, "tie_word_embeddings": tied, "hidden_act": "silu",
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25},
        "eos_token_id": 248_044
    });
    if let Some([experts, taken, width]) = experts {
        text["num_experts"] = (*experts).into();
        text["num_experts_per_tok"] = (*taken).into();
        text["moe_intermediate_size"] = (*width).into();
        text["shared_expert_intermediate_size"] = (*width).into();
    }
    Ok(text)
}

fn config(name: &str) -> anyhow::Result<Config> {
    Ok(Config::parse((name, config_json(name)?.to_string().as_bytes()), None)?)
}

/// The format of that name: FP8 has a scale for 128 × 128 weights, as the published checkpoints do.
fn format(name: &str) -> anyhow::Result<Format> {
    match name {
        "bf16" => Ok(Format::Plain(Dtype::BF16)),
        "fp8" => Ok(Format::Fp8Block),
        "nvfp4" => Ok(Format::Nvfp4),
        _ => bail!("no format {name:?}: expected bf16, fp8 or nvfp4"),
    }
}

/// Bytes of weights that a token streams, as a checkpoint stores them: every matrix but the gathered embedding and routed
/// experts; and those of all routed experts.
fn weight_bytes(c: &Config, format: Format) -> (f64, f64) {
    let shapes = cute_checkpoint::expected_shapes(c);
    let streamed = shapes
        .iter()
        .filter(|(name, s)| s.len() == 2 && (name != "embed_tokens.weight" || c.tie_word_embeddings));
    let bytes = |name: &str, n: usize, k: usize| match format {
        _ if left_plain(name) => 2.0 * (n * k) as f64,
        Format::Nvfp4 => (n * k) as f64 * (0.5 + 1.0 / 16.0),
        f if f.is_packed() => (n * k + 2 * n.div_ceil(128) * k.div_ceil(128)) as f64,
        _ => 2.0 * (n * k) as f64,
    };
    let (experts, others): (Vec<_>, Vec<_>) = streamed.partition(|(name, _)| name.contains(".experts."));
    let sum = |of: Vec<&(String, Vec<usize>)>| of.into_iter().map(|(name, s)| bytes(name, s[0], s[1])).sum();
    (sum(others), sum(experts))
}

/// Experts whose weights have been read so far, over all layers and steps.
fn experts_read(backend: &Cuda, c: &Config) -> anyhow::Result<u32> {
    if c.moe.is_some() { Ok(backend.experts_read()?) } else { Ok(0) }
}

/// Bytes of state and cache that one sequence's token reads and writes.
fn state_bytes(c: &Config, context: usize) -> f64 {
    let gdn = c.layer_types.iter().filter(|t| **t == LayerType::LinearAttention).count();
    let kv = c.full_attention_layers().len() * 2 * c.num_key_value_heads * c.head_dim * 2;
    (gdn * GdnShape::of(c, 0).recurrent_len() * 4 * 2) as f64 + (kv * context) as f64
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Milliseconds between marks around `work`, median of several.
fn timed(gpu: &dyn Gpu, repeats: usize, mut work: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let mut times = Vec::new();
    for _ in 0..repeats {
        let from = gpu.mark()?;
        work()?;
        let to = gpu.mark()?;
        times.push(f64::from(gpu.elapsed(from, to)?));
    }
    Ok(median(times))
}

/// GB/s of a device-to-device copy (read and written) and of a read-only stream.
fn ceilings(gpu: &dyn Gpu) -> anyhow::Result<(f64, f64)> {
    let bytes = 4usize << 30;
    let (a, b) = (gpu.alloc(bytes)?, gpu.alloc(bytes)?);
    gpu.fill(a, 0x3c, bytes)?;
    gpu.fill(b, 0x3d, bytes)?;
    let copy = timed(gpu, 9, || Ok(gpu.copy(b, a, bytes)?))?;
    let kernel = gpu.kernel(&units::plain("stream.cu"), "read_stream", 0)?;
    let mut best = f64::INFINITY;
    for per in [2, 4, 8] {
        let grid = [per * gpu.multiprocessors(), 1, 1];
        let launch = Launch { grid, block: 512, smem: 0, join: Join::Plain };
        let args = [Arg::Ptr(a), Arg::U64(bytes as u64 / 16), Arg::Ptr(b)];
        best = best.min(timed(gpu, 9, || Ok(gpu.launch(kernel, launch, &args)?))?);
    }
    gpu.synchronize()?;
    gpu.free(a)?;
    gpu.free(b)?;
    Ok((2.0 * bytes as f64 / copy / 1e6, bytes as f64 / best / 1e6))
}

fn knobs(path: &str) -> anyhow::Result<Knobs> {
    let mut k = Knobs { dispatch_log: false, ..Knobs::default() };
    match path {
        "paged" => k.fusion = false,
        "lite" => k.path = PathKnob::Lite,
        "coop" => k.path = PathKnob::Coop,
        "coop-gdn" => {
            k.path = PathKnob::Coop;
            k.coop_gdn = true;
        }
        _ => bail!("no path {path:?}: expected paged, lite, coop or coop-gdn"),
    }
    Ok(k)
}

/// A step of `kind` for `n` sequences: `len` tokens each from position `start`.
fn batch(kind: BatchKind, n: usize, start: usize, len: usize) -> Batch {
    let pages = (start + len).div_ceil(64) as u32;
    Batch {
        kind,
        tokens: (0..n * len).map(|i| (i * 7919 % 200_000) as u32).collect(),
        segments: (0..n)
            .map(|i| Segment {
                owner: i as u64,
                slot: i as u32 + 1,
                epoch: 1,
                pages: (0..pages).map(|p| 1 + i as u32 * pages + p).collect(),
                page_epochs: vec![1; pages as usize],
                start,
                row: i * len,
                len,
            })
            .collect(),
        logit_rows: (0..n).map(|i| (i + 1) * len - 1).collect(),
    }
}

fn main() -> ExitCode {
    match bench() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("cute-bench: {e:#}");
            ExitCode::from(2)
        }
    }
}

fn bench() -> anyhow::Result<()> {
    let args = Args::parse();
    let DiskArgs { save, shard, load, repeats, threads, buffer, cold } = &args.disk;
    if let Some(dir) = save {
        let (shape, format) = (args.shapes.first(), args.format.first());
        let first = shape.zip(format).context("no shape or no format")?;
        disk::save(dir, first.0, first.1, (shard * 1e9) as u64)?;
    }
    if let Some(dir) = load {
        let mut options = LoadOptions { threads: *threads, ..LoadOptions::default() };
        if *buffer > 0 {
            options.buffer = buffer << 10;
            options.read = options.read.min(options.buffer);
        }
        disk::load(dir, &disk::To::open(&args.device)?, options, (*repeats, *cold))?;
    }
    if save.is_some() || load.is_some() {
        return Ok(());
    }
    let gpu: Arc<dyn Gpu> = Arc::new(Driver::open(disk::ordinal(&args.device)?)?);
    let (copy, stream) = ceilings(&*gpu)?;
    println!("{}", json!({"what": "ceilings", "device": gpu.name(), "copy_gb_s": copy, "read_gb_s": stream}));
    eprintln!("{}: copy {copy:.0} GB/s, read-only stream {stream:.0} GB/s", gpu.name());
    for name in &args.shapes {
        for format in &args.format {
            shape(&args, &gpu, (name, format), stream)?;
        }
    }
    Ok(())
}

/// Writes what each kernel of the last step took.
fn shares(profiled: &Profiled, mut of: serde_json::Value) -> anyhow::Result<()> {
    let shares = profiled.take()?;
    let total: f64 = shares.values().map(|s| s.ms).sum();
    eprintln!("{of}: {total:.3} ms in kernels, one by one");
    for (kernel, s) in &shares {
        eprintln!(
            "    {kernel:<44} {:>4} x {:8.2} us = {:5.1} %",
            s.launches,
            s.ms * 1e3 / s.launches as f64,
            100.0 * s.ms / total
        );
    }
    of["what"] = "profile".into();
    of["kernels"] = shares
        .into_iter()
        .map(|(k, s)| (k, json!({"launches": s.launches, "ms": s.ms})))
        .collect::<serde_json::Map<_, _>>()
        .into();
    println!("{of}");
    Ok(())
}

fn shape(args: &Args, gpu: &Arc<dyn Gpu>, (name, stored): (&str, &str), stream: f64) -> anyhow::Result<()> {
    let c = config(name)?;
    let format = format(stored)?;
    let (weight_bytes, expert_bytes) = weight_bytes(&c, format);
    let all_experts = c.moe.as_ref().map_or(1, |m| m.num_experts * c.num_hidden_layers);
    let max_batch = args.batches.iter().copied().max().unwrap_or(1);
    let longest = args.contexts.iter().chain(&args.prefill).copied().max().unwrap_or(128) + 64 * args.steps;
    let profiled = Arc::new(Profiled::new(gpu.clone()));
    let (on, options) = if args.profile {
        (profiled.clone() as Arc<dyn Gpu>, Options { graphs: false, overlap: false, ..Options::default() })
    } else {
        (gpu.clone(), Options::default())
    };
    let backend = Cuda::new(on, &c, options)?;
    let start = Instant::now();
    backend.compile_ahead(&c, &Layouts::packed(&c, Layout::of(format)))?;
    let compile = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let model = Model::random(&backend, &c, format, longest)?;
    gpu.synchronize()?;
    let load = start.elapsed().as_secs_f64();
    let rows = args
        .prefill
        .iter()
        .copied()
        .max()
        .unwrap_or(0)
        .clamp(max_batch, EngineConfig::default().max_num_batched_tokens.max(8192));
    let shape = CacheShape {
        num_pages: 1 + max_batch * longest.div_ceil(64),
        page_size: 64,
        kv_dtype: KvDtype::Bf16,
        num_slots: max_batch + 1,
        max_rows: rows,
        max_len: longest,
    };
    let mut cache = backend.cache(&c, shape)?;
    let mut scratch = Scratch::new(&backend, &c, rows, max_batch)?;
    println!(
        "{}",
        json!({
            "what": "load", "shape": name, "format": stored, "seconds": load, "compile_s": compile,
            "weight_gb": (weight_bytes + expert_bytes) / 1e9,
        })
    );
    for path in &args.paths {
        let mut dispatcher = Dispatcher::new(&backend, &c, knobs(path)?, max_batch, None, Box::new(|_| ()))?;
        for &n in &args.batches {
            for &context in &args.contexts {
                if args.profile {
                    for _ in 0..2 {
                        profiled.take()?;
                        let batch = batch(BatchKind::Decode, n, context, 1);
                        model.forward(&backend, &batch, &mut cache, &mut scratch, &mut dispatcher)?;
                    }
                    shares(
                        &profiled,
                        json!({"shape": name, "format": stored, "path": path, "batch": n, "context": context}),
                    )?;
                    continue;
                }
                let mut times = Vec::new();
                let first = Instant::now();
                let mut build = 0.0;
                let mut read_before = 0;
                for step in 0..2 * args.steps {
                    let batch = batch(BatchKind::Decode, n, context + step, 1);
                    if step == args.steps {
                        read_before = experts_read(&backend, &c)?;
                    }
                    let start = Instant::now();
                    model.forward(&backend, &batch, &mut cache, &mut scratch, &mut dispatcher)?;
                    if step == 0 {
                        build = first.elapsed().as_secs_f64();
                    }
                    if step >= args.steps {
                        times.push(start.elapsed().as_secs_f64() * 1e3);
                    }
                }
                // of the experts that were chosen: counted on the device, as the router chose them
                let read = experts_read(&backend, &c)?.wrapping_sub(read_before);
                let chosen = f64::from(read) / (args.steps * all_experts) as f64;
                let gb = (weight_bytes + chosen * expert_bytes + n as f64 * state_bytes(&c, context)) / 1e9;
                let ms = median(times);
                let rate = gb / ms * 1e3;
                println!(
                    "{}",
                    json!({
                        "what": "decode", "shape": name, "format": stored, "path": path, "batch": n, "context": context, "ms": ms,
                        "gb": gb, "experts_read": chosen, "gb_s": rate, "share_of_stream": rate / stream, "first_step_s": build,
                    })
                );
                eprintln!(
                    "{name:>5} {stored:<5} {path:<9} batch {n:>2} context {context:>5}: {ms:7.3} ms/token, {rate:5.0} GB/s, {:.1} % of the stream",
                    100.0 * rate / stream
                );
            }
        }
    }
    for &len in args.prefill.iter().filter(|n| **n > 0) {
        let mut dispatcher =
            Dispatcher::new(&backend, &c, knobs("paged")?, max_batch, None, Box::new(|_| ()))?;
        let mut times = Vec::new();
        for _ in 0..4 {
            profiled.take()?;
            let start = Instant::now();
            let batch = batch(BatchKind::Prefill, 1, 0, len);
            model.forward(&backend, &batch, &mut cache, &mut scratch, &mut dispatcher)?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        if args.profile {
            shares(&profiled, json!({"shape": name, "format": stored, "prefill": len}))?;
            continue;
        }
        let ms = median(times.split_off(1));
        let rate = len as f64 / ms * 1e3;
        println!(
            "{}",
            json!({"what": "prefill", "shape": name, "format": stored, "tokens": len, "ms": ms, "tok_s": rate})
        );
        eprintln!("{name:>5} {stored:<5} prefill {len:>5}: {ms:8.2} ms, {rate:.0} tokens/s");
    }
    Ok(())
}
